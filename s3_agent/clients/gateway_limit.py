"""How many policy calls a gateway passes at a time, as far as that can be known from outside.

Our gateway (`s3_agent.agl.gateway`) reports it at `LIMIT_PATH`. A stock one reports only how many calls it holds
(`GET /proxy/state`), including those that wait for a connection, so its limit can not be measured by watching it. A
gateway without `LIMIT_PATH` is therefore assumed to be a stock one of Agent Lightning 1.0.x, whose client has httpx's
default of 100 connections. Used by the pool before it claims anything, and by the doctor.
"""

import json
from dataclasses import dataclass

LIMIT_PATH = "/s3-agent/gateway"
POLICY_CALLS = "policy_calls"
STOCK_POLICY_CALLS = 100
STOCK_CALL_S = 300
"""After so many seconds, including the wait for a connection, a stock gateway repeats a call: six tries in all."""


@dataclass(frozen=True, slots=True)
class GatewayLimit:
    """At most `calls` policy calls pass at a time, None: no limit. `basis` is a clause that says how this is known."""

    calls: int | None
    basis: str

    def bounds(self, rollouts: int) -> bool:
        """Whether fewer calls pass than `rollouts` make, one each."""
        return self.calls is not None and self.calls < rollouts


def gateway_limit(answer: bytes | str | None, *, stated: int | None) -> GatewayLimit:
    """The limit of a gateway that answered `answer` at `LIMIT_PATH` (None: it has no such page).

    `stated` is the recipe's `gateway.policy_calls`. It can lower the limit that a gateway reports, and replaces the
    assumption about one that reports none.
    """
    reported = _reported(answer)
    if reported is None:
        if stated is None:
            return GatewayLimit(STOCK_POLICY_CALLS, "it reports no limit: assumed to be a stock gateway")
        return GatewayLimit(stated, "set by gateway.policy_calls")
    [own] = reported
    if stated is not None and (own is None or stated < own):
        return GatewayLimit(stated, "set by gateway.policy_calls")
    return GatewayLimit(own, "reported by the gateway")


def _reported(answer: bytes | str | None) -> tuple[int | None] | None:
    """The limit in the answer, in a tuple because None means no limit; None where the answer holds no limit."""
    try:
        calls = json.loads(answer or "")[POLICY_CALLS]
    except (ValueError, TypeError, KeyError, IndexError):
        return None
    if calls is None:
        return (None,)
    return (calls,) if isinstance(calls, int) and not isinstance(calls, bool) and calls >= 1 else None
