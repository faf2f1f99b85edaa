"""Fakes of the services that a rollout calls, for tests and for trying an agent without a model.

They behave as the real ones: the policy works in token ids, stops at its stop strings and keeps its token limit. Each
records what it was asked. `testing.servers` puts them behind real HTTP.
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
    """One token a byte, one for each of the chat template's markers and one for each of `pieces`. It needs no files.

    A piece such as `>\\n` makes a tag's last token hold more than the tag, as tokens of real vocabularies do.
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
    """Responds by a function of the prompt's text, or with a list of responses one after the other.

    `prompts` holds the ids of every call. A response ends with the token in which the first stop string ends, or at the
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
    """Takes `seconds` for every call; None: until `release`. `calls` run now, `most_calls` at most so far."""

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
    """Finds the passages listed for a query, else `default`. The first `failures` calls fail."""

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
    """Answers by a function of question and passages; `asked` holds the prompts. The first `failures` calls fail."""

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
