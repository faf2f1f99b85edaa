"""What tests ask of any retrieval server: its metrics, and whether a route ever answers what OpenAPI does not say."""

from collections import Counter
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import checks
from schemathesis.specs.openapi import checks as openapi_checks

WITHIN_S = 60.0  # a test machine may be busy
MODES = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
_SLOW = (HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large)
_CHECKS = [
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
    openapi_checks.unsupported_method,
]


def metric(url: str, name: str) -> float:
    """The sum of a metric of the server at `url`."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.rsplit(" ", 1)[0] == name)


def fuzzed(
    url: str, mode: schemathesis.GenerationMode, *, examples: int, only: str | None = None
) -> Counter[tuple[str, int]]:
    """The number of answers by route and status to `examples` requests of each route, or of the route `only`; an answer
    that the server's OpenAPI document does not allow, or that is its own error, fails."""
    seen: Counter[tuple[str, int]] = Counter()
    for found in schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations():
        operation: Any = found.ok()  # pyright: ignore[reportAttributeAccessIssue]

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=_SLOW)
        def ask(case: Any) -> None:
            response = case.call(timeout=WITHIN_S)
            seen[case.path, response.status_code] += 1
            case.validate_response(response, checks=_CHECKS)

        chosen = only in (None, operation.path)
        if chosen and (mode is schemathesis.GenerationMode.POSITIVE or operation.method == "post"):
            ask()
    return seen
