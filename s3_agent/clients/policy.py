"""The policy's client side: token ids in, token ids out, so that each prompt extends the one before exactly.

The text endpoint (`/completions`) is used with token ids because chat templates and re-tokenised text change what was
sampled; then Agent Lightning can merge a rollout's calls into one training row (design §4).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import httpx

from s3_agent.clients.http import call_json
from s3_agent.errors import ConfigError, PolicyError


class Tokenizer(Protocol):
    """The policy's own tokenizer."""

    def chat(self, message: str) -> list[int]:
        """Ids of one user message in the chat template, ready for the assistant's turn."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of raw continuation text, without special tokens added."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included."""
        ...


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled continuation. `token_ids` holds every sampled token, the stop's included."""

    token_ids: tuple[int, ...]
    finish_reason: str


class Policy(Protocol):
    """What an agent needs of a policy."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The policy's own tokenizer."""
        ...

    async def complete(self, prompt_ids: Sequence[int], *, max_tokens: int, stop: Sequence[str]) -> Completion:
        """Continue `prompt_ids` by at most `max_tokens` tokens. Raises PolicyError."""
        ...


def _tokenizer_class(path: str) -> Any:
    """The class that loads `tokenizer.json` where there is one: AutoTokenizer imports torch, 5 s and 600 MB."""
    from transformers.utils.hub import cached_file

    if cached_file(path, "tokenizer.json", _raise_exceptions_for_missing_entries=False):
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer


class HuggingFaceTokenizer:
    """A tokenizer from a model folder or hub name, through transformers."""

    def __init__(self, path: str) -> None:
        try:
            self._tokenizer: Any = _tokenizer_class(path).from_pretrained(path)
        except (OSError, ValueError) as cause:
            raise ConfigError(
                f"there is no tokenizer at {path}: {cause}", remedy="give a model folder or the name of a hub model"
            ) from cause
        if not self._tokenizer.chat_template:
            raise ConfigError(f"the tokenizer of {path} has no chat template", remedy="use an instruct model")

    def chat(self, message: str) -> list[int]:
        text = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True
        )
        return self.encode(text)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(
            list(ids),
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
            spaces_between_special_tokens=False,
        )


@cache
def load_tokenizer(path: str) -> HuggingFaceTokenizer:
    """The tokenizer of `path`, loaded once a process."""
    return HuggingFaceTokenizer(path)


class CompletionsPolicy:
    """A policy behind an OpenAI-compatible `/completions` that takes and returns token ids (vLLM, AGL's gateway)."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        url: str,
        tokenizer: Tokenizer,
        *,
        model: str = "auto",
        temperature: float = 1.0,
        top_p: float = 1.0,
        patience_s: float = 300.0,
    ) -> None:
        self.tokenizer = tokenizer
        self._client = client
        self._url = url.rstrip("/") + "/completions"
        self._sampling = {"model": model, "temperature": temperature, "top_p": top_p}
        self._patience_s = patience_s

    async def complete(self, prompt_ids: Sequence[int], *, max_tokens: int, stop: Sequence[str]) -> Completion:
        answer = await call_json(
            self._client,
            "POST",
            self._url,
            error=PolicyError,
            patience_s=self._patience_s,
            body={
                **self._sampling,
                "prompt": list(prompt_ids),
                "max_tokens": max_tokens,
                "stop": list(stop),
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
                remedy="serve the policy with vLLM 0.10.2 or newer, which returns them on `return_token_ids`",
            ) from cause
        if not token_ids:
            raise PolicyError(f"{self._url} sampled no token", remedy="check max_model_len of the policy server")
        return Completion(token_ids=token_ids, finish_reason=str(choice.get("finish_reason")))
