"""Fakes of the services that a rollout calls, for tests and for trying an agent without a model.

They behave like the real services: the policy works with token ids, and its responses end at a stop string or at the
token limit. Each fake records its calls. `testing.servers` serves them over real HTTP.
"""

import asyncio
import re
import threading
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from s3_agent.clients.policy import Completion, TokenPolicy
from s3_agent.clients.prompts import AnswerPrompt
from s3_agent.clients.tokenizer import Tokenizer
from s3_agent.errors import GeneratorError, PolicyError, RetrieverError
from s3_agent.types import Passage

Respond = Callable[[str], str]


class ToyTokenizer:
    """Has one token for each byte, each marker of the chat template, and each of `pieces`. It needs no files.

    With a piece such as `>\\n`, a tag's last token also contains text after the tag, as in real vocabularies.
    """

    MARKERS = ("<|im_start|>", "<|im_end|>")
    control = frozenset(MARKERS)

    def __init__(self, pieces: Sequence[str] = ()) -> None:
        self._pieces = (*self.MARKERS, *pieces)
        self._split = re.compile("(" + "|".join(map(re.escape, self._pieces)) + ")")

    def chat(self, message: str) -> list[int]:
        start, end = self.MARKERS
        return self.encode(f"{start}user\n{message}{end}\n{start}assistant\n")

    def next_user_turn(self, message: str) -> str:
        start, end = self.MARKERS
        return f"{end}\n{start}user\n{message}{end}\n{start}assistant\n"

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for number, part in enumerate(self._split.split(text)):
            ids += [256 + self._pieces.index(part)] if number % 2 else part.encode()
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        parts = (bytes([token]) if token < 256 else self._pieces[token - 256].encode() for token in ids)
        return b"".join(parts).decode(errors="replace")


class FakePolicy(TokenPolicy):
    """Responds with a function of the prompt's text, or with the responses of a list, one after the other.

    `prompts` has the token ids of every call. A response ends with the token that completes a stop string, or at the
    limit.
    """

    def __init__(self, respond: Respond | Sequence[str], tokenizer: Tokenizer | None = None) -> None:
        super().__init__(tokenizer or ToyTokenizer())
        self.prompts: list[tuple[int, ...]] = []
        self.responses: list[tuple[int, ...]] = []
        self._respond = respond if callable(respond) else _in_turn(respond)

    async def complete(self, prompt_ids: Sequence[int], *, max_tokens: int, stop: Sequence[str]) -> Completion:
        text = self._respond(self.tokenizer.decode(prompt_ids))
        ids = self.tokenizer.encode(text)
        stopped = bisect_left(
            range(len(ids)), True, key=lambda last: any(mark in self.tokenizer.decode(ids[: last + 1]) for mark in stop)
        )
        ids = ids[: stopped + 1]
        completion = Completion(
            token_ids=tuple(ids[:max_tokens]), finish_reason="stop" if len(ids) <= max_tokens else "length"
        )
        self.prompts.append(tuple(prompt_ids))
        self.responses.append(completion.token_ids)
        return completion


class FakeSlowPolicy(FakePolicy):
    """Each call takes `seconds`; None: until `release`. `calls` are running now, `most_calls` were the most so far."""

    def __init__(self, respond: Respond | Sequence[str], *, seconds: float | None = None) -> None:
        super().__init__(respond)
        self.calls = self.most_calls = 0
        self.seconds = seconds
        self._released = threading.Event()
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    def release(self) -> None:
        """Let every call end, also later ones. May be called from any thread."""
        self._released.set()
        for loop, event in self._waiting:
            loop.call_soon_threadsafe(event.set)

    async def complete(self, prompt_ids: Sequence[int], *, max_tokens: int, stop: Sequence[str]) -> Completion:
        self.calls += 1
        self.most_calls = max(self.most_calls, self.calls)
        try:
            event = asyncio.Event()
            self._waiting.append((asyncio.get_running_loop(), event))
            if not self._released.is_set():  # checked after the event is stored, so that no call waits forever
                with suppress(TimeoutError):
                    async with asyncio.timeout(self.seconds):
                        await event.wait()
            return await super().complete(prompt_ids, max_tokens=max_tokens, stop=stop)
        finally:
            self.calls -= 1


def _in_turn(responses: Sequence[str]) -> Respond:
    left = iter(responses)

    def respond(_: str) -> str:
        try:
            return next(left)
        except StopIteration:
            raise PolicyError("the scripted policy has no response left") from None

    return respond


class FakeRetriever:
    """Returns the passages that `found` lists for a query, else `default`. The first `failures` calls fail."""

    def __init__(
        self,
        found: Mapping[str, Sequence[Passage]] | None = None,
        *,
        default: Sequence[Passage] = (),
        failures: int = 0,
    ) -> None:
        self.queries: list[tuple[str, int]] = []
        self.failures = failures
        self._found, self._default = dict(found or {}), default

    async def retrieve(self, query: str, *, topk: int) -> tuple[Passage, ...]:
        self.queries.append((query, topk))
        if len(self.queries) <= self.failures:
            raise RetrieverError("the fake retriever fails, as it was set to do")
        return tuple(self._found.get(query, self._default))[:topk]


class FakeGenerator:
    """Answers with a function of question and passages; `asked` has the prompts. The first `failures` calls fail."""

    def __init__(self, answer: Callable[[str, str], str] | str, *, failures: int = 0) -> None:
        self.calls: list[tuple[str, tuple[Passage, ...]]] = []
        self.asked: list[AnswerPrompt | None] = []
        self.failures = failures
        self._answer = answer

    async def fit(
        self, question: str, passages: Sequence[Passage], *, prompt: AnswerPrompt | None = None
    ) -> tuple[Passage, ...]:
        return tuple(passages)

    async def answer(self, question: str, passages: Sequence[Passage], *, prompt: AnswerPrompt | None = None) -> str:
        self.calls.append((question, tuple(passages)))
        self.asked.append(prompt)
        if len(self.calls) <= self.failures:
            raise GeneratorError("the fake generator fails, as it was set to do")
        context = " ".join(passage.text for passage in passages)
        return self._answer if isinstance(self._answer, str) else self._answer(question, context)
