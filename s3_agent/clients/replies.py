"""Reads a generation from a server's answer: how it ended, and which of its text is meant for the reader.

Status 200 does not say that a generation succeeded. A generation that was filtered, aborted or holds only thinking is a
failure of its boundary, so that it is neither scored nor kept.
"""

import re
from collections.abc import Mapping
from typing import Any

from s3_agent.errors import BoundaryError

_WHOLE = frozenset({None, "", "stop", "eos", "eos_token", "end_turn", "stop_sequence"})
_CUT = frozenset({"length", "max_tokens", "model_context_window_exceeded"})
_NOT_SAID = ("reasoning_content", "reasoning", "refusal", "tool_calls")
_PAIR = re.compile(r"<(think(?:ing)?)>.*?(?:</\1>|\Z)|\[THINK\].*?(?:\[/THINK\]|\Z)", re.DOTALL | re.IGNORECASE)
_END = re.compile(r"</think(?:ing)?>|\[/THINK\]", re.IGNORECASE)


def was_cut(
    reason: Any, *, url: str, error: type[BoundaryError], asked: int | None = None, written: int | None = None
) -> bool:
    """Whether a generation ended at its token limit, by its `finish_reason` (Claude: `stop_reason`).

    If the server gives no reason, the generation counts as finished. Raises `error` for a generation that did not
    finish, and for one that was cut although fewer tokens were `written` than `asked` for: newer vLLM shortens a reply
    that its window can not hold, and answers 200.
    """
    name = reason.lower() if isinstance(reason, str) else reason
    if not isinstance(name, str | None) or name not in _WHOLE | _CUT:
        raise error(
            f"{url} did not finish its generation: finish_reason is {str(reason)[:100]!r}",
            remedy=f"read the log of the {error.boundary}: it filtered, aborted or failed this generation",
        )
    if name in _CUT and asked is not None and written is not None and written < asked:
        raise error(
            f"{url} cut a generation after {written} of {asked} tokens: its window, or a limit of its own, is smaller",
            remedy="set policy.context_tokens or generator.context_tokens to the server's window (--max-model-len), or "
            "ask for fewer tokens",
            status=413,
        )
    return name in _CUT


def most_tokens(body: Mapping[str, Any]) -> int | None:
    """How many tokens a request asks for, under either of the names in use; None if it leaves that to the server."""
    asked = body.get("max_completion_tokens", body.get("max_tokens"))
    return asked if isinstance(asked, int) else None


def written_tokens(usage: Any) -> int | None:
    """The number of sampled tokens in a server's `usage`, including hidden reasoning; None if it is not reported."""
    if not isinstance(usage, dict) or not isinstance(written := usage.get("completion_tokens"), int):
        return None
    read, total = usage.get("prompt_tokens"), usage.get("total_tokens")
    return max(written, total - read) if isinstance(read, int) and isinstance(total, int) else written


def content_of(message: Any, *, url: str, error: type[BoundaryError]) -> str:
    """The text of a chat message; empty where the model wrote nothing.

    Raises `error` for a message that holds something else instead of text, and TypeError or KeyError for one of an
    unknown form.
    """
    content = message["content"]
    if content is not None and not isinstance(content, str):
        raise TypeError("its content is not text")
    if not (content or "").strip() and (instead := next((name for name in _NOT_SAID if message.get(name)), None)):
        raise error(
            f"{url} gave no content, only {instead}: {str(message[instead])[:200]!r}",
            remedy=f"turn thinking off for the {error.boundary}, or raise its max_tokens so that it ends in an answer",
        )
    return content or ""


def without_thinking(text: str) -> str:
    """`text` without the text between thinking tags; the opening tag may have been written by a chat template."""
    kept = _PAIR.sub("", text)
    if kept == text and not _END.search(text):
        return text
    return _END.split(kept)[-1].strip()


def require_answer(text: str, *, url: str, error: type[BoundaryError]) -> str:
    """`text` unchanged. Raises `error` when all of it is thinking."""
    if text.strip() and not without_thinking(text).strip():
        raise error(
            f"{url} thought and gave no answer: {text[:200]!r}",
            remedy=f"turn thinking off for the {error.boundary}, or raise its max_tokens so that it ends in an answer",
        )
    return text
