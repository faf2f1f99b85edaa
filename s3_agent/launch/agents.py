"""What `s3-agent agents` prints: every agent, what it is, its limits, who answers, and which policy plays it."""

from typing import Any

from rich.console import Console
from rich.table import Table

from s3_agent.agents.methods import METHODS, Method

_POLICY = {
    "protocol": "trained on its protocol",
    "rewriter": "DeepRetrieval's, or the generator's model",
    "instruct": "any instruct model; by default the generator's",
    "none": "none",
}
_ANSWERS = {"generator": "generator (Ret)", "policy": "policy (self)"}


def _described(name: str, method: Method) -> dict[str, Any]:
    return {
        "name": name,
        "what": method.summary,
        "source": method.source,
        "policy": method.policy,
        "trainable": method.trainable,
        "answers": list(method.answers),
        "prompts": list(method.prompts),
        "selection": method.selection,
        "layout": method.answer_prompt.layout,
        "limits": method.limits.model_dump(include=set(method.uses)),
        "sampling": method.sampling and method.sampling.model_dump(),
    }


def _limits(limits: dict[str, Any]) -> str:
    first, topk, searches = limits.get("initial_topk"), limits.get("topk"), limits.get("max_searches")
    parts = [f"first {first}"] * bool(first) + [f"top {topk}"] * bool(topk)
    parts += [f"{searches} searches"] * bool(searches)
    parts += [f"{limits['max_new_tokens']} new tokens"] if "max_new_tokens" in limits else []
    return ", ".join(parts) or "-"


def list_agents(*, as_json: bool = False) -> None:
    """Print all agents: a table, or a JSON list."""
    described = [_described(name, method) for name, method in METHODS.items()]
    if as_json:
        Console().print_json(data=described)
        return
    table = Table("agent", "what it does", "limits", "who answers", "policy", "sampled", "trained", box=None)
    for row in described:
        sampling = row["sampling"]
        table.add_row(
            row["name"],
            f"{row['what']} ({row['source']})",
            _limits(row["limits"]),
            ", ".join(_ANSWERS[who] for who in row["answers"]),
            _POLICY[row["policy"]],
            f"{sampling['temperature']} / {sampling['top_p']}" if sampling else "-",
            "yes" if row["trainable"] else "no",
        )
    Console().print(table)
