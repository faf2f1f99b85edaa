"""The output of `s3-agent agents`, `rewards`, `backends` and `datasets`: the registered variants and their packages."""

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from retrieval_server.index_kinds import INDEX_KINDS, IndexKind
from retrieval_server.registry import OURS, Registry
from s3_agent.agents.methods import METHODS, Method
from s3_agent.data.published.datasets import DATA_SETS, DataSet
from s3_agent.rewards.registry import REWARDS, Reward

Describe = Callable[[Any], dict[str, Any]]

_POLICY = {
    "protocol": "trained on its protocol",
    "rewriter": "DeepRetrieval's, or the generator's model",
    "instruct": "any instruct model; by default the generator's",
    "none": "none",
}
_ANSWERS = {"generator": "generator (Ret)", "policy": "policy (self)", "nobody": "nobody"}


def _method(method: Method) -> dict[str, Any]:
    return {
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
        "own_rewards": list(method.own_rewards),
        "tags": list(method.tags),
    }


def _reward(reward: Reward) -> dict[str, Any]:
    scored = "an answer, the generator's or the policy's own" if reward.checks_answer else "the policy's own text"
    if reward.needs_evidence and not reward.checks_answer:
        scored = "the passages that were selected"
    needs = ["the score of naive RAG (data.rag_cache)"] if reward.needs_rag_score else []
    needs += ["the documents that the answer needs (evidence)"] if reward.needs_evidence else []
    return {"what": reward.summary, "scores": scored, "needs": needs}


def _index_kind(kind: IndexKind) -> dict[str, Any]:
    built = "when a server starts, or before" if kind.built_at_start else "before"
    return {
        "what": (type(kind).__doc__ or "").partition("\n")[0],
        "built": built if kind.searches_corpus else "never: it searches no corpus",
        "fields": sorted(kind.settings.model_fields.keys() - {"kind"}),
    }


def _data_set(data_set: DataSet) -> dict[str, Any]:
    has = ["questions"] * (data_set.rows is not None) + ["corpus"] * (data_set.corpus is not None)
    files = [*data_set.files, *(data_set.corpus.files if data_set.corpus else ())]
    return {
        "what": data_set.summary,
        "has": has,
        "from": [*dict.fromkeys(wanted.repo for wanted in files), *data_set.raw.values()],
        "key": data_set.key_variable,
    }


def _limits(limits: dict[str, Any]) -> str:
    first, topk, searches = limits.get("initial_topk"), limits.get("topk"), limits.get("max_searches")
    parts = [f"first {first}"] * bool(first) + [f"top {topk}"] * bool(topk)
    parts += [f"{searches} searches"] * bool(searches)
    parts += [f"{limits['max_new_tokens']} new tokens"] if "max_new_tokens" in limits else []
    return ", ".join(parts) or "no search"


def _agent_lines(row: dict[str, Any]) -> list[str]:
    sampling = row["sampling"]
    sampled = f", temperature {sampling['temperature']}, top-p {sampling['top_p']}" if sampling else ""
    return [
        f"{row['what']} ({row['source']})",
        f"limits: {_limits(row['limits'])}",
        f"answers: {', '.join(_ANSWERS[who] for who in row['answers'])}",
        f"policy: {_POLICY[row['policy']]}{sampled}; {'can' if row['trainable'] else 'can not'} be trained here",
    ]


def _reward_lines(row: dict[str, Any]) -> list[str]:
    return [row["what"], f"scores: {row['scores']}", *(f"needs: {need}" for need in row["needs"])]


def _index_kind_lines(row: dict[str, Any]) -> list[str]:
    return [row["what"], f"built: {row['built']}", f"fields: {', '.join(row['fields'])}"]


def _data_set_lines(row: dict[str, Any]) -> list[str]:
    encrypted = [f"encrypted: the key is read from {row['key']}"] if row["key"] else []
    return [row["what"], f"{' and '.join(row['has'])} from {', '.join(row['from']) or 'the package'}", *encrypted]


_SORTS: Mapping[str, tuple[Registry[Any], Describe, Callable[[dict[str, Any]], list[str]]]] = {
    "agents": (METHODS, _method, _agent_lines),
    "rewards": (REWARDS, _reward, _reward_lines),
    "backends": (INDEX_KINDS, _index_kind, _index_kind_lines),
    "datasets": (DATA_SETS, _data_set, _data_set_lines),
}


def describe(sort: str) -> list[dict[str, Any]]:
    """Every variant of `agents`, `rewards`, `backends` or `datasets`; a variant that can not be used has `error`."""
    registry, described, _ = _SORTS[sort]
    rows = []
    for variant in registry.variants():
        row = {"name": variant.name, "package": variant.package, "target": variant.target}
        try:
            row |= described(registry[variant.name])
        except Exception as cause:  # another author's package can raise anything
            row["error"] = str(cause)
        rows.append(row)
    return rows


def list_variants(sort: str, *, as_json: bool = False) -> int:
    """Print the registered variants; returns 1 when one of them can not be used."""
    rows, lines = describe(sort), _SORTS[sort][2]
    if as_json:
        Console().print_json(data=rows)
    else:
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for row in rows:
            told = [row["error"]] if "error" in row else lines(row)
            brought = [] if row["package"] == OURS else [f"from {row['package']} ({row['target']})"]
            table.add_row(row["name"], "\n".join([*told, *brought]))
        Console(highlight=False, markup=False).print(table)
    return int(any("error" in row for row in rows))
