"""The policy's own tokenizer: its chat template, raw continuation text, and the tokens that no text may imitate."""

import re
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, field_validator

from s3_agent.errors import ConfigError
from s3_agent.guard import TAGS

BYTES_PER_TOKEN = 3  # an estimate for when there is no tokenizer
_ANSWER = "an-answer-stands-here"
_PROBE = "What is the capital of France?"
_OURS = frozenset({"messages", "tools", "documents", "tokenize", "add_generation_prompt", "continue_final_message"})


class ChatTemplate(BaseModel):
    """How messages become a prompt: with the model's own template, or with that of the Jinja file `chat_template`.

    `chat_template_kwargs` are variables that the template reads, such as `enable_thinking` or `date_string`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    chat_template: Path | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)

    @field_validator("chat_template_kwargs")
    @classmethod
    def _not_ours(cls, given: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(_OURS & given.keys()):
            raise ValueError(f"{', '.join(taken)} can not be set: these variables hand the messages to the template")
        return given

    def text(self) -> str | None:
        """The file's text; None for the model's own template. Raises ConfigError for a file that can not be read."""
        if self.chat_template is None:
            return None
        try:
            return self.chat_template.read_text(encoding="utf-8")
        except (OSError, ValueError) as cause:
            raise ConfigError(
                f"the chat template {self.chat_template} can not be read: {cause}",
                remedy="set policy.chat_template to a Jinja file",
            ) from cause


class Tokenizer(Protocol):
    """What a token-in, token-out conversation needs of a tokenizer."""

    @property
    def control(self) -> frozenset[str]:
        """The texts of its control tokens: in ordinary text, they would be encoded as the token itself."""
        ...

    def chat(self, message: str) -> list[int]:
        """Ids of one user message in the chat template, ready for the assistant's turn."""
        ...

    def next_user_turn(self, message: str) -> str:
        """The text between one assistant turn and the next, with the user's `message` in it."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of raw continuation text, without special tokens added."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included."""
        ...


def _tokenizer_class(path: str) -> Any:
    """The class that loads `tokenizer.json` if the model has it: AutoTokenizer imports torch (5 s, 600 MB)."""
    from transformers.utils.hub import cached_file

    if cached_file(path, "tokenizer.json", _raise_exceptions_for_missing_entries=False):
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer


def _is_mark(text: str) -> bool:
    """Whether a token acts as special though not declared so (Qwen's `<tool_call>`): no word and no tag of ours."""
    return text[:1] in ("<", "[") and text.strip("</>") not in TAGS


class HuggingFaceTokenizer:
    """A tokenizer from a model folder or hub name, through transformers."""

    def __init__(self, path: str, template: ChatTemplate | None = None) -> None:
        template = template or ChatTemplate()
        self._path = path
        try:
            jinja2 = import_module("jinja2")  # transformers imports it without need, with the first chat template
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
        # What transformers itself asks; asked directly it takes a third less time, since nobody reads offsets.
        self._fast: Any = self._tokenizer.backend_tokenizer if self._tokenizer.is_fast else None
        self._template_errors = (jinja2.TemplateError, TypeError, ValueError)
        self._template: Any = template.text() or self._tokenizer.chat_template
        self._kwargs = template.chat_template_kwargs
        if not self._template:
            raise ConfigError(
                f"the tokenizer of {path} has no chat template",
                remedy="use an instruct model, or give a base model one: policy.chat_template=FILE.jinja",
            )
        if unread := [name for name in self._kwargs if not re.search(rf"\b{re.escape(name)}\b", str(self._template))]:
            raise ConfigError(
                f"the chat template of {path} does not read {', '.join(unread)}",
                remedy="correct policy.chat_template_kwargs: this variable would change nothing",
            )
        added = self._tokenizer.added_tokens_decoder.values()
        special = {token.content for token in added if token.special or _is_mark(token.content)}
        self.control = frozenset(filter(str.strip, special | set(self._tokenizer.all_special_tokens)))

    def _templated(self, *messages: dict[str, str]) -> str:
        try:
            return self._tokenizer.apply_chat_template(
                list(messages),
                chat_template=self._template if isinstance(self._template, str) else None,
                tokenize=False,
                add_generation_prompt=True,
                **self._kwargs,
            )
        except self._template_errors as cause:
            raise ConfigError(
                f"the chat template of {self._path} can not be applied: {cause}",
                remedy="use another one: policy.chat_template=FILE.jinja",
            ) from cause

    def chat(self, message: str) -> list[int]:
        return self.encode(self._templated({"role": "user", "content": message}))

    def next_user_turn(self, message: str) -> str:
        roles = ("user", "assistant", "user")
        text = self._templated(
            *({"role": role, "content": part} for role, part in zip(roles, ("-", _ANSWER, message), strict=True))
        )
        between = text.partition(_ANSWER)[2]
        if message.strip() not in between:
            raise ConfigError(
                f"the chat template of {self._path} loses a user's second message",
                remedy="use another one: policy.chat_template=FILE.jinja",
            )
        return between

    def encode(self, text: str) -> list[int]:
        if self._fast is not None:
            return self._fast.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(
            list(ids),
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
            spaces_between_special_tokens=False,
        )


@cache
def _loaded(path: str, template: str) -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer(path, ChatTemplate.model_validate_json(template))


def load_tokenizer(path: str, template: ChatTemplate | None = None) -> HuggingFaceTokenizer:
    """The tokenizer of `path` with its own chat template or another, loaded once per process. Raises ConfigError."""
    return _loaded(path, (template or ChatTemplate()).model_dump_json())


def lost_message(tokenizer: Tokenizer) -> str | None:
    """What is wrong with how the chat template shows a user's message; None when it shows it exactly once.

    Templates of models that read images expect a list of content items, and lose a message that is a plain text.
    """
    try:
        times = tokenizer.decode(tokenizer.chat(_PROBE)).count(_PROBE)
    except ConfigError as cause:
        return cause.message
    return None if times == 1 else f"the chat template shows a user's message {times} times"


def policy_tokenizer(path: str, template: ChatTemplate | None = None) -> HuggingFaceTokenizer:
    """The tokenizer of a policy. Raises ConfigError for one whose chat template loses the message."""
    tokenizer = load_tokenizer(path, template)
    if lost := lost_message(tokenizer):
        raise ConfigError(
            f"the policy of {path} can not be asked: {lost}",
            remedy="its template may want content as a list: give another one, policy.chat_template=FILE.jinja",
        )
    return tokenizer
