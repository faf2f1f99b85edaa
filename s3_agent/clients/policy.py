"""The policy's client side: token ids in, token ids out, so that each prompt exactly extends the previous one.

The text endpoint (`/completions`) is used with token ids, because chat templates and re-tokenised text would change
what was sampled. With ids, Agent Lightning can merge a rollout's calls into one training row (docs/originals.md#f5).
Agents see only a conversation of texts, so an endpoint that takes no token ids (`chat_policy`) serves the same agents.
"""

import hashlib
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn, Protocol

import httpx

from s3_agent.clients.http import call_json
from s3_agent.clients.model_server import MOST_STOPS, NEUTRAL, ModelServer
from s3_agent.clients.replies import was_cut
from s3_agent.clients.tokenizer import Tokenizer
from s3_agent.errors import ContextFull, PolicyError

Role = Literal["assistant", "user"]
CONTEXT_TOKENS = 8


def seed_of(seed: int | None, prompt: object) -> dict[str, int]:
    """The request's `seed` field: a different one for every prompt, so that the order of calls does not matter; empty
    without a seed.
    """
    if seed is None:
        return {}
    digest = hashlib.sha256(repr((seed, prompt)).encode(errors="surrogatepass")).digest()
    return {"seed": int.from_bytes(digest[:4], "big") >> 1}


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled continuation. `token_ids` holds every sampled token, including those of the stop string."""

    token_ids: tuple[int, ...]
    finish_reason: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What the policy wrote, and how many tokens that took."""

    text: str
    tokens: int


class Conversation(Protocol):
    """One episode's exchange with a policy. Token counts are in policy tokens, or estimates where they are unknown."""

    @property
    def used(self) -> int:
        """How many tokens the context holds: prompt, responses and observations."""
        ...

    def count(self, text: str) -> int:
        """How many tokens `text` takes."""
        ...

    async def generate(self, *, max_tokens: int, stop: Sequence[str]) -> Reply:
        """The policy's next response, which ends with a stop string if one was written.

        It is shorter than `max_tokens` if the policy's window has room for fewer. Raises ContextFull if it has room for
        none, and PolicyError.
        """
        ...

    def observe(self, text: str, *, role: Role = "assistant") -> str:
        """Add `text` to what the policy reads next: inside its own turn, or as a user's message. Returns the text as
        the policy reads it.
        """
        ...


class Policy(Protocol):
    """A policy as agents use it."""

    @property
    def control(self) -> frozenset[str]:
        """Texts that must not reach the policy from a passage or a question (`s3_agent.guard.neutral` breaks them)."""
        ...

    def converse(self, message: str, *, template: bool = True) -> Conversation:
        """A new conversation that opens with one user message; with `template` false the text is continued as it is."""
        ...

    async def window(self) -> int | None:
        """How many tokens the context may hold; None if that is not known. Raises PolicyError."""
        ...


class NoPolicy:
    """The policy of an agent that calls no policy; a call raises AssertionError."""

    control: frozenset[str] = frozenset()

    def converse(self, message: str, *, template: bool = True) -> NoReturn:
        """Raises AssertionError, because there is no policy."""
        raise AssertionError("an agent without a policy asked one")

    async def window(self) -> None:
        """None, because there is no policy."""


class TokenPolicy(ABC):
    """A policy that continues token ids of its own tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.control = tokenizer.control

    @abstractmethod
    async def complete(self, prompt_ids: Sequence[int], *, max_tokens: int, stop: Sequence[str]) -> Completion:
        """Continue `prompt_ids` by at most `max_tokens` tokens. Raises PolicyError."""

    def converse(self, message: str, *, template: bool = True) -> "TokenConversation":
        """A conversation of exact token prefixes."""
        return TokenConversation(self, self.tokenizer.chat(message) if template else self.tokenizer.encode(message))

    async def window(self) -> int | None:
        """How many tokens prompt and response may have together; None if that is not known. Raises PolicyError."""
        return None


class TokenConversation:
    """A list of token ids that only grows: every prompt is the previous prompt, the response, and the observation."""

    def __init__(self, policy: TokenPolicy, prompt_ids: Sequence[int]) -> None:
        self._policy = policy
        self._tokenizer = policy.tokenizer
        self._ids = list(prompt_ids)
        self._start = len(self._ids)
        self._counted: dict[str, list[int]] = {}

    @property
    def used(self) -> int:
        return len(self._ids)

    def count(self, text: str) -> int:
        return len(self._encode(text))

    def _encode(self, text: str) -> list[int]:
        """The ids of `text`; kept until the conversation grows: a text that was counted is usually appended next."""
        if text not in self._counted:
            self._counted[text] = self._tokenizer.encode(text)
        return self._counted[text]

    async def generate(self, *, max_tokens: int, stop: Sequence[str]) -> Reply:
        if (window := await self._policy.window()) is not None:
            max_tokens = min(max_tokens, window - len(self._ids))
        if max_tokens <= 0:
            raise ContextFull(f"the prompt has {len(self._ids)} tokens, the policy's window is {window}")
        completion = await self._policy.complete(self._ids, max_tokens=max_tokens, stop=stop)
        return Reply(text=self._grow(completion.token_ids), tokens=len(completion.token_ids))

    def observe(self, text: str, *, role: Role = "assistant") -> str:
        if role == "user":
            text = self._tokenizer.next_user_turn(text)
            # A policy that ended its own turn has already written the first token of the text between two turns.
            last = self._tokenizer.decode(self._ids[-1:])
            if last in self._tokenizer.control:
                text = text.removeprefix(last)
        return self._grow(self._encode(text))

    def _grow(self, ids: Sequence[int]) -> str:
        """Append ids; returns the text that they add, read in context: a token's text can depend on those before it."""
        context = self._ids[max(self._start, len(self._ids) - CONTEXT_TOKENS) :]
        before, after = self._tokenizer.decode(context), self._tokenizer.decode([*context, *ids])
        self._ids += ids
        self._counted.clear()
        return after[len(before) :] if after.startswith(before) else self._tokenizer.decode(ids)


class CompletionsPolicy(TokenPolicy):
    """A policy behind an OpenAI-compatible `/completions` that takes and returns token ids (vLLM, AGL's gateway).

    By default (`repeatable` false), a call that fails and may have been carried out is not repeated: the gateway would
    have recorded it, and the repeated call would make a second training row. The attempt fails instead, and a new one
    starts. Set `repeatable` when no gateway records the calls, or when nobody starts a new attempt.

    Every value that changes the sampling is sent: for a missing field, a server takes the value of the model's
    `generation_config.json`. `context_tokens` is the server's window; with `asks_window` the server is asked for it,
    and the smaller one counts. Agent Lightning's gateway does not report it. The server gets at most MOST_STOPS stop
    strings; the client cuts a response at the others, after the token in which one ends. Such a response is not a
    prefix of what follows, so the rollout is trained as several rows.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        url: str,
        tokenizer: Tokenizer,
        *,
        model: str = "auto",
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int | None = None,
        patience_s: float | None = None,
        repeatable: bool = False,
        context_tokens: int | None = None,
        asks_window: bool = False,
    ) -> None:
        super().__init__(tokenizer)
        self._client = client
        self._seed = seed
        self._url = url.rstrip("/") + "/completions"
        self._sampling = {"model": model, "temperature": temperature, "top_p": top_p, **NEUTRAL}
        self._patience_s = patience_s
        self._repeatable = repeatable
        self._context_tokens = context_tokens
        self._server = None
        if asks_window:
            self._server = ModelServer(client, url, model, error=PolicyError, patience_s=patience_s)

    async def window(self) -> int | None:
        told = await self._server.window() if self._server else None
        return min((size for size in (told, self._context_tokens) if size is not None), default=None)

    async def complete(self, prompt_ids: Sequence[int], *, max_tokens: int, stop: Sequence[str]) -> Completion:
        answer = await call_json(
            self._client,
            "POST",
            self._url,
            error=PolicyError,
            patience_s=self._patience_s,
            repeatable=self._repeatable,
            body={
                **self._sampling,
                **seed_of(self._seed, prompt_ids),
                "prompt": list(prompt_ids),
                "max_tokens": max_tokens,
                "stop": list(stop[:MOST_STOPS]),
                "include_stop_str_in_output": True,
                "skip_special_tokens": False,
                "spaces_between_special_tokens": False,
                "return_token_ids": True,
            },
        )
        try:
            choice = answer["choices"][0]
            token_ids = tuple(choice["token_ids"])
        except (KeyError, IndexError, TypeError) as cause:
            raise PolicyError(
                f"{self._url} answered without token ids: {str(answer)[:300]}",
                remedy="serve the policy with vLLM 0.10.2 or newer, which returns them on `return_token_ids`, "
                "or talk to it by chat messages (`policy.mode=chat`)",
            ) from cause
        reason = choice.get("finish_reason")
        was_cut(reason, url=self._url, error=PolicyError, asked=max_tokens, written=len(token_ids))
        if not token_ids:
            raise PolicyError(f"{self._url} sampled no token", remedy="check max_model_len of the policy server")
        kept = self._stopped(token_ids, stop[MOST_STOPS:])
        return Completion(token_ids=kept, finish_reason=str(reason) if kept == token_ids else "stop")

    def _stopped(self, token_ids: tuple[int, ...], stop: Sequence[str]) -> tuple[int, ...]:
        """The ids up to and including the one in which the first of these stop strings ends."""
        if not any(mark in self.tokenizer.decode(token_ids) for mark in stop):
            return token_ids
        ended = bisect_left(
            range(len(token_ids)),
            True,
            key=lambda last: any(mark in self.tokenizer.decode(token_ids[: last + 1]) for mark in stop),
        )
        return token_ids[: ended + 1]
