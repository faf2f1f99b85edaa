"""Finds the s3 paper's numbers for our settings, or the reason why none are comparable."""

import json
import re
from functools import cache
from importlib.resources import files
from typing import Any

from pydantic import BaseModel

_METHODS = {"s3": "s3", "direct": "Direct", "cot": "CoT", "deep_retrieval": "DeepRetrieval-BM25 3B"}
_SIZED = {"ircot": "IRCoT", "search_o1": "Search-o1"}


class Anchor(BaseModel):
    """A published row: GenAcc and EM in percent by data source. `reason` explains why there is no row."""

    method: str = ""
    generator: str = ""
    source: str = ""
    scores: dict[str, tuple[float, float]] = {}
    reason: str = ""


@cache
def _published() -> dict[str, Any]:
    text = files("s3_agent.evaluation.report").joinpath("assets/published.json").read_text(encoding="utf-8")
    return json.loads(text)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9.]", "", name.lower())


def _size(model: str) -> str:
    found = re.search(r"(\d+(?:\.\d+)?)b(?![a-z])", model.lower())
    return f"{found[1]}B" if found else "of unknown size"


def _method(agent: dict[str, Any], retriever: dict[str, Any]) -> str:
    """The paper's name for the method that ran; in `(self)` rows the policy itself answers."""
    name, own = agent["settings"]["name"], agent.get("answers") == "self"
    size = _size(str(agent["policy"].get("model", "")))
    if name == "rag":
        return "RAG-BM25" if retriever.get("backend") == "bm25" else "RAG-E5"
    if name in _METHODS:
        return _METHODS[name]
    if name in _SIZED:
        return f"{_SIZED[name]} {size}" + (" (self)" if own else "")
    if name == "search_r1":
        return f"Search-R1-{size}" + (" (self)" if own else " (Ret)")
    return name


def anchor_of(agent: dict[str, Any], services: dict[str, Any]) -> Anchor:
    """The published row for one entry of `EvaluationSetting.agents`.

    A row is comparable if the corpus is wiki-18 (by its number of passages), the paper used the generator, and the
    paper reports the method with that generator.
    """
    published, retriever = _published(), services.get("retriever", {})
    if retriever.get("passages") != published["passages"]:
        return Anchor(reason="no comparable published number: the corpus is not wiki-18")
    method, model = _method(agent, retriever), str(services.get("generator", {}).get("model", ""))
    if method.startswith("Search-R1") and method.endswith("(self)"):
        table = "end-to-end"
    else:
        table = next((name for name in published["tables"] if _plain(name) in _plain(model)), "")
    rows = published["tables"].get(table, {})
    # The paper's tables mark a policy that is the generator itself with (self).
    row = rows.get(method) or rows.get(f"{method} (self)")
    if row is None:
        reason = f"no comparable published number: {method} with the generator {model or 'unknown'} is not in the table"
        return Anchor(reason=reason)
    return Anchor(method=method, generator=table, source=published["source"], scores=row)
