"""Every error that this project raises on purpose, named by the boundary at which it happened.

One base class holds what went wrong and what to do about it, so that the command line, the launcher and a failed
rollout all report the same. A boundary error fails the attempt: it never becomes a reward (docs/promises.md, 1).
"""

import difflib
from collections.abc import Iterable


def nearest(wrong: str, known: Iterable[str]) -> str:
    """A remedy that names the known dotted key most similar to `wrong`, by its whole path or by its last word."""
    known = list(dict.fromkeys(known))
    close = difflib.get_close_matches(wrong, known, n=1, cutoff=0.8)
    if not close:
        by_end = {path.rpartition(".")[2]: path for path in reversed(known)}
        close = [by_end[end] for end in difflib.get_close_matches(wrong.rpartition(".")[2], by_end, n=1)]
    return f"do you mean {close[0]}?" if close else "correct the field."


class S3AgentError(Exception):
    """Base of all errors raised here on purpose. `remedy` says what the reader can do."""

    boundary = "s3-agent"

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  What to do: {self.remedy}" if self.remedy else self.message


class ConfigError(S3AgentError):
    """A recipe, an override or an input file is wrong."""

    boundary = "config"


class LaunchError(S3AgentError):
    """A process of the run did not start, or ended when it should not have."""

    boundary = "launch"


class BoundaryError(S3AgentError):
    """A service that the rollout depends on could not be reached or gave an invalid answer.

    `status` is the HTTP status with which it refused the request; None if it did not refuse it.
    """

    def __init__(self, message: str, *, remedy: str = "", status: int | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.status = status


class PolicyError(BoundaryError):
    """The policy endpoint failed."""

    boundary = "policy"


class ContextFull(PolicyError):
    """The policy's window has no room for another token: the episode ends with what was read and written so far."""

    def __init__(self, message: str) -> None:
        remedy = "raise the window of the policy server (--max-model-len), or read less: agent.limits"
        super().__init__(message, remedy=remedy, status=413)


class RetrieverError(BoundaryError):
    """The retrieval server failed."""

    boundary = "retriever"


class GeneratorError(BoundaryError):
    """The frozen generator failed."""

    boundary = "generator"


class JudgeError(BoundaryError):
    """The judge failed."""

    boundary = "judge"


class GatewayError(BoundaryError):
    """The Agent Lightning gateway failed. `after_retry`: an earlier, unanswered try may have been carried out."""

    boundary = "gateway"

    def __init__(self, message: str, *, remedy: str = "", status: int | None = None, after_retry: bool = False) -> None:
        super().__init__(message, remedy=remedy, status=status)
        self.after_retry = after_retry


class DataError(S3AgentError):
    """Data could not be fetched, is not as expected, or does not fit on the disk."""

    boundary = "data"


class RagCacheError(S3AgentError):
    """The stored naive-RAG answers do not belong to this corpus, index, generator or prompt."""

    boundary = "rag-cache"
