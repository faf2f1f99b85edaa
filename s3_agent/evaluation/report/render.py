"""Writes the report as a self-contained HTML page, as JSON, or as Markdown."""

import base64
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from s3_agent.data.files.whole import written_whole
from s3_agent.errors import ConfigError
from s3_agent.evaluation.report.gather import gather
from s3_agent.evaluation.report.packed import PART, Packed, pack, unpack
from s3_agent.evaluation.report.signs import markdown_of
from s3_agent.evaluation.table import EvaluationTable
from s3_agent.evaluation.views.closing import TESTS
from s3_agent.evaluation.views.table import markdown

_ASSETS = ("page.css", "d3.min.js", "plot.umd.min.js", "figures.js", "viewer.js", "page.js")
_MOST_BYTES = 64 << 20
"""Packed episodes, and as many packed passages, that a page holds in full; a browser opens twice that in seconds."""
_DETAILS = ("turns", "initial", "selected", "shown")


def page(report: dict[str, Any]) -> str:
    """One HTML document. Its data are compressed and encoded, so that text from a model can not close a tag.

    What the tables, the figures and the list of episodes need comes first. Episodes and passages follow behind the
    scripts in parts, which the browser unpacks when they are shown or searched.
    """
    assets = files("s3_agent.evaluation.report").joinpath("assets")
    html = assets.joinpath("page.html").read_text(encoding="utf-8")
    for name in _ASSETS:
        html = html.replace(f"/*{name}*/", assets.joinpath(name).read_text(encoding="utf-8"), 1)
    episodes, passages = report["episodes"], report["passages"]
    first = {**report, "passages": None, "episodes": _columns(episodes), "part": PART}
    html = html.replace("/*data*/", base64.b64encode(pack(first)).decode("ascii"), 1)
    parts = [*_parts("episodes", episodes, _without_details), *_parts("passages", passages, _without_text)]
    return html.replace("<!--parts-->", "\n".join(parts), 1)


def _columns(episodes: Iterable[dict[str, Any]]) -> dict[str, list[Any]]:
    """What the page needs of every episode at once: its row in the list, and its share in the figures."""
    columns: dict[str, list[Any]] = defaultdict(list)
    for row in episodes:
        counts = row.get("counts", {})
        columns["group"].append(row["group"])
        columns["task"].append(row["task"])
        columns["outcome"].append(row["outcome"])
        columns["recall"].append("".join(map(str, row.get("recall", ()))))
        columns["searches"].append(counts.get("searches"))
        columns["policy_response_tokens"].append(counts.get("policy_response_tokens"))
        columns["reward"].append(row.get("reward"))
        columns["failed_at"].append(row["failure"][0] if "failure" in row else None)
    return columns


def _parts(name: str, items: Packed, lighten: Callable[[Any], Any]) -> Iterator[str]:
    """The elements that hold the parts; items beyond _MOST_BYTES are lightened."""
    held = 0
    for number, part in enumerate(items.parts()):
        if (held := held + len(part)) > _MOST_BYTES:
            part = pack([lighten(item) for item in unpack(part)])
        text = base64.b64encode(part).decode("ascii")
        yield f'<script type="text/plain" id="{name}-{number}">{text}</script>'


def _without_details(row: dict[str, Any]) -> dict[str, Any]:
    return {**{name: value for name, value in row.items() if name not in _DETAILS}, "cut": 1}


def _without_text(passage: Sequence[str]) -> tuple[str, None]:
    return passage[0], None


def text(report: dict[str, Any]) -> str:
    """The tables of the report as Markdown."""
    blocks = [f"> {report['withheld']}"] if report["withheld"] else []
    for evaluation in report["evaluations"]:
        blocks.append(f"# {evaluation['name']}\n\n{markdown(EvaluationTable.model_validate(evaluation['table']))}")
        anchors = [
            f"| {agent} | {anchor['method']} ({anchor['generator']}) | "
            + ", ".join(f"{source} {accuracy} ({exact})" for source, (accuracy, exact) in anchor["scores"].items())
            + " |"
            if anchor["scores"]
            else f"| {agent} | - | {anchor['reason']} |"
            for agent, anchor in evaluation["anchors"].items()
        ]
        head = "## Published, GenAcc (EM) in %\n\n| agent | row | numbers |\n| --- | --- | --- |"
        blocks.append("\n".join([head, *anchors]))
    for run in report["runs"]:
        blocks.append(f"# {run['name']}\n\n{_run_text(run['summary'])}")
        blocks.append(markdown_of(run["signs"]))
    return "\n\n".join(filter(None, blocks)) + "\n"


def _run_text(summary: dict[str, Any] | None) -> str:
    if summary is None:
        return "The run has no summary: it did not end, or did not validate before and after training."
    rows = [
        ("all", summary["val_n"], summary["naive_rag"], summary["val_before"], summary["val_after"]),
        *(
            (f"{hops} hops", part["n"], part.get("naive_rag"), part["before"], part["after"])
            for hops, part in summary["by_hops"].items()
        ),
    ]
    lines = [
        f"| {name} | {n:.0f} | {'-' if rag is None else f'{rag:.3f}'} | {before:.3f} | {after:.3f} |"
        for name, n, rag, before, after in rows
    ]
    return (
        "| questions | n | naive RAG | before | after |\n| --- | ---: | ---: | ---: | ---: |\n"
        + "\n".join(lines)
        + f"\n\nGain p = {summary['p_value']:.2g} ({TESTS[summary['test']]}); {summary['steps']} steps, "
        f"{summary['rollouts']} rollouts, {summary['lost_rollouts']} lost."
    )


def _json(report: dict[str, Any]) -> str:
    unpacked = {name: list(value) if isinstance(value, Packed) else value for name, value in report.items()}
    return json.dumps(unpacked, indent=1, ensure_ascii=False)


def write_report(folders: Sequence[Path], out: Path, *, show_protected: bool = False) -> None:
    """Write the report of the folders in the form of `out`'s extension: .html, .json or .md. Raises ConfigError.

    Texts of protected tasks are left out unless `show_protected`; then only you can read the file.
    """
    forms = {".html": page, ".json": _json, ".md": text}
    if out.suffix not in forms:
        raise ConfigError(f"{out} has no known extension", remedy="let it end in .html, .json or .md")
    written = forms[out.suffix](gather(folders, show_protected=show_protected))
    with written_whole(out, private=show_protected) as write:
        write(written.encode(errors="replace"))
