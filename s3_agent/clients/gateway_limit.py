"""How many policy calls a gateway passes at a time, as far as that can be known from outside.

Our gateway (`s3_agent.agl.gateway`) says it at `LIMIT_PATH`. A stock one does not: it shows how many calls it holds
(`GET /proxy/state`), and counts those that wait for a connection among them, so watching it does not tell how many
pass. A gateway that is silent is therefore taken for a stock one of Agent Lightning 1.0.x, whose client has httpx's
default of 100 connections. Called by the pool before it claims anything, and by the doctor.
"""

import json
from dataclasses import dataclass

LIMIT_PATH = "/s3-agent/gateway"
POLICY_CALLS = "policy_calls"
STOCK_POLICY_CALLS = 100
STOCK_CALL_S = 300
"""After so many seconds a stock gateway gives up a call, waiting included, and makes it again: six times in all."""


@dataclass(frozen=True, slots=True)
class GatewayLimit:
    """At most `calls` policy calls pass at a time, None: any number. `basis` is a clause that says who said so."""

    calls: int | None
    basis: str

    def bounds(self, rollouts: int) -> bool:
        """Whether fewer calls pass than `rollouts` make, one each."""
        return self.calls is not None and self.calls < rollouts


def gateway_limit(answer: bytes | str | None, *, stated: int | None) -> GatewayLimit:
    """The limit of a gateway that gave `answer` at `LIMIT_PATH` (None: it has no such page).

    `stated` is the recipe's `gateway.policy_calls`; it can lower what a gateway says of itself, and says it for a
    silent one.
    """
    said = _said(answer)
    if said is None:
        if stated is None:
            return GatewayLimit(STOCK_POLICY_CALLS, "it does not say how many, and a stock gateway passes so many")
        return GatewayLimit(stated, "gateway.policy_calls says so")
    [own] = said
    if stated is not None and (own is None or stated < own):
        return GatewayLimit(stated, "gateway.policy_calls says so")
    return GatewayLimit(own, "it says so itself")


def _said(answer: bytes | str | None) -> tuple[int | None] | None:
    """What a gateway says of itself, in a tuple because None is an answer; None for one that says nothing of it."""
    try:
        calls = json.loads(answer or "")[POLICY_CALLS]
    except (ValueError, TypeError, KeyError, IndexError):
        return None
    if calls is None:
        return (None,)
    return (calls,) if isinstance(calls, int) and not isinstance(calls, bool) and calls >= 1 else None
