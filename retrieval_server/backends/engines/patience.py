"""Repeats a call to an engine while the engine is away, for a limited time."""

from collections.abc import Callable

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from retrieval_server.errors import Unavailable

FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 5.0


def patiently[T](call: Callable[[], T], *, patience_s: float) -> T:
    """The call's result. Raises the last Unavailable once the patience is over."""
    retrying = Retrying(
        retry=retry_if_exception_type(Unavailable),
        wait=wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
        stop=stop_after_delay(patience_s),
        reraise=True,
    )
    return retrying(call)
