"""Compiles functions over arrays to machine code with numba, and keeps the result on disk for the next process."""

from collections.abc import Callable
from typing import Any

from retrieval_server.errors import RetrievalError


def compiled[F: Callable[..., Any]](function: F) -> F:
    """The function, compiled at its first call. It releases the interpreter's lock, so threads run it in parallel."""
    try:
        from numba import njit
    except ImportError as cause:
        raise RetrievalError(
            f"BM25 with `engine: block_max` needs numba: {cause}",
            remedy='install it: pip install "s3-agent[retriever]"; or set `engine: bm25s`, which takes more memory',
        ) from cause
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        made: Any = njit(cache=True, **options)(function)
    except RuntimeError:  # numba finds no folder that it may write to
        made = njit(**options)(function)
    return made
