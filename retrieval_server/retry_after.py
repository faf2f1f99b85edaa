"""How long a service asks its clients to wait. All clients of services use it, those of `s3_agent` too."""

import math
import time
from email.utils import parsedate_to_datetime


def retry_after_s(value: str | None) -> float | None:
    """The seconds that a `Retry-After` header asks for, as a number or a date; None if it asks for no wait."""
    try:
        seconds = float(value or "")
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value or "").timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return seconds if 0 < seconds < math.inf else None
