"""Fakes of the services that a rollout talks to, for tests and for trying an agent without a model.

They keep the promises of the real ones: the policy works in token ids, stops at its stop strings and obeys its token
limit; each remembers what it was asked. `fake_servers` puts them behind real HTTP.
"""

from collections.abc import Callable, Mapping, Sequence

from s3_agent.clients.policy import Completion, Tokenizer
from s3_agent.errors import GeneratorError, PolicyError, RetrieverError
from s3_agent.types import Passage

Respond = Callable[[str], str]


class ToyTokenizer:
    """One token a byte, and one for each of the chat template's markers. It needs no files."""

    MARKERS = ("<|im_start|>", "<|im_end|>")

    def chat(self, message: str) -> list[int]:
        start, end = self.MARKERS
        return self.encode(f"{start}user\n{message}{end}\n{start}assistant\n")

    def encode(self, text: str) -> list[int]:
        if not text:
            return []
        for number, marker in enumerate(self.MARKERS):
            head, found, tail = text.partition(marker)
            if found:
                return [*self.encode(head), 256 + number, *self.encode(tail)]
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        parts = (bytes([token]) if token < 256 else self.MARKERS[token - 256].encode() for token in ids)
        return b"".join(parts).decode(errors="replace")


class FakePolicy:
    """Responds by a function of the prompt's text, or with a list of responses one after the other.

    `prompts` holds the ids of every call. A response ends at the first stop string, which it keeps, or at the limit.
    """

    def __init__(self, respond: Respond | Sequence[str], tokenizer: Tokenizer | None = None) -> None:
        self.tokenizer: Tokenizer = tokenizer or ToyTokenizer()
        self.prompts: list[tuple[int, ...]] = []
        self.responses: list[tuple[int, ...]] = []
        self._respond = respond if callable(respond) else _in_turn(respond)

    async def complete(self, prompt_ids: Sequence[int], *, max_tokens: int, stop: Sequence[str]) -> Completion:
        text = self._respond(self.tokenizer.decode(prompt_ids))
        ends = [text.find(mark) + len(mark) for mark in stop if mark in text]
        ids = self.tokenizer.encode(text[: min(ends, default=None)])
        completion = Completion(
            token_ids=tuple(ids[:max_tokens]), finish_reason="stop" if len(ids) <= max_tokens else "length"
        )
        self.prompts.append(tuple(prompt_ids))
        self.responses.append(completion.token_ids)
        return completion


def _in_turn(responses: Sequence[str]) -> Respond:
    left = iter(responses)

    def respond(_: str) -> str:
        try:
            return next(left)
        except StopIteration:
            raise PolicyError("the scripted policy has no response left") from None

    return respond


class FakeRetriever:
    """Finds the passages listed for a query, else `default`. `failures` is how many calls fail first."""

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
            raise RetrieverError("the fake retriever fails as it was told to")
        return tuple(self._found.get(query, self._default))[:topk]


class FakeGenerator:
    """Answers by a function of question and passages. `failures` is how many calls fail first."""

    def __init__(self, answer: Callable[[str, str], str] | str, *, failures: int = 0) -> None:
        self.calls: list[tuple[str, tuple[Passage, ...]]] = []
        self.failures = failures
        self._answer = answer

    async def answer(self, question: str, passages: Sequence[Passage]) -> str:
        self.calls.append((question, tuple(passages)))
        if len(self.calls) <= self.failures:
            raise GeneratorError("the fake generator fails as it was told to")
        context = " ".join(passage.text for passage in passages)
        return self._answer if isinstance(self._answer, str) else self._answer(question, context)
