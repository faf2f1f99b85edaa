"""What `s3-agent agents` prints: every agent, what it is, its limits, who answers, and which policy plays it."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

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
    return ", ".join(parts) or "none"


def list_agents(*, as_json: bool = False) -> None:
    """Print all agents: a table, or a JSON list."""
    described = [_described(name, method) for name, method in METHODS.items()]
    if as_json:
        Console().print_json(data=described)
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for row in described:
        sampling = row["sampling"]
        answers = " or ".join(_ANSWERS[who] for who in row["answers"])
        policy = f"policy: {_POLICY[row['policy']]}" + (", can be trained here" if row["trainable"] else "")
        if sampling:
            policy += f"; temperature {sampling['temperature']}, top-p {sampling['top_p']}"
        table.add_row(row["name"], f"{row['what']} ({row['source']})")
        table.add_row("", Text(f"limits: {_limits(row['limits'])}; answer by the {answers}\n{policy}", style="dim"))
    Console().print(table)
