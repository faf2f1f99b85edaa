"""The policy's own tokenizer: chat template, raw continuation text, and which of its tokens text must not forge."""

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any, Protocol

from s3_agent.errors import ConfigError
from s3_agent.guard import TAGS

BYTES_PER_TOKEN = 3  # an estimate, where no tokenizer is at hand
_ANSWER = "an-answer-stands-here"


class Tokenizer(Protocol):
    """What a token-in, token-out conversation needs of a tokenizer."""

    @property
    def control(self) -> frozenset[str]:
        """The texts of its control tokens: found in ordinary text, they would become the token itself."""
        ...

    def chat(self, message: str) -> list[int]:
        """Ids of one user message in the chat template, ready for the assistant's turn."""
        ...

    def next_user_turn(self, message: str) -> str:
        """What stands between an assistant's text and the next one's, with `message` from the user in between."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of raw continuation text, without special tokens added."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included."""
        ...


def _tokenizer_class(path: str) -> Any:
    """The class that loads `tokenizer.json` where there is one: AutoTokenizer imports torch, 5 s and 600 MB."""
    from transformers.utils.hub import cached_file

    if cached_file(path, "tokenizer.json", _raise_exceptions_for_missing_entries=False):
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer


def _is_mark(text: str) -> bool:
    """Whether a token that is not declared special acts as one (Qwen's `<tool_call>`): no word and no tag of ours."""
    return text[:1] in ("<", "[") and text.strip("</>") not in TAGS


class HuggingFaceTokenizer:
    """A tokenizer from a model folder or hub name, through transformers."""

    def __init__(self, path: str) -> None:
        try:
            import_module("jinja2")  # which transformers imports with the first chat template, and does not require
            self._tokenizer: Any = _tokenizer_class(path).from_pretrained(path)
        except ImportError as cause:
            raise ConfigError(
                f"the policy's tokenizer needs a package that is not installed: {cause}",
                remedy='pip install "s3-agent[tokenizer]"',
            ) from cause
        except (OSError, ValueError) as cause:
            raise ConfigError(
                f"there is no tokenizer at {path}: {cause}", remedy="give a model folder or the name of a hub model"
            ) from cause
        if not self._tokenizer.chat_template:
            raise ConfigError(f"the tokenizer of {path} has no chat template", remedy="use an instruct model")
        added = self._tokenizer.added_tokens_decoder.values()
        special = {token.content for token in added if token.special or _is_mark(token.content)}
        self.control = frozenset(filter(str.strip, special | set(self._tokenizer.all_special_tokens)))

    def _templated(self, *messages: dict[str, str]) -> str:
        return self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)

    def chat(self, message: str) -> list[int]:
        return self.encode(self._templated({"role": "user", "content": message}))

    def next_user_turn(self, message: str) -> str:
        roles = ("user", "assistant", "user")
        text = self._templated(
            *({"role": role, "content": part} for role, part in zip(roles, ("-", _ANSWER, message), strict=True))
        )
        return text.partition(_ANSWER)[2]

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
