"""Shows the result table of an evaluation: means, data sources, and the differences of agents."""

from collections.abc import Sequence

from rich.console import Group

from s3_agent.evaluation.evidence import LISTS
from s3_agent.evaluation.statistics.intervals import OF_SAMPLES
from s3_agent.evaluation.table import EVIDENCE, AgentResult, EvaluationTable
from s3_agent.evaluation.views.grids import Grid, markdown_grids, terminal_grids

_MEASURES = {
    "gen_acc": ("GenAcc", "{:.3f}"),
    "exact_match": ("EM", "{:.3f}"),
    "f1": ("F1", "{:.3f}"),
    "answer_recall": ("answer recall", "{:.3f}"),
    "evidence_retrieved_recall": ("ev. found", "{:.3f}"),
    "evidence_selected_recall": ("ev. selected", "{:.3f}"),
    "evidence_selected_precision": ("ev. precision", "{:.3f}"),
    "evidence_retrieved_ndcg@10": ("ev. nDCG@10", "{:.3f}"),
    "evidence_retrieved_mrr": ("ev. MRR", "{:.3f}"),
    "searches": ("searches", "{:.2f}"),
    "turns": ("turns", "{:.2f}"),
    "tokens": ("tokens", "{:.0f}"),
    "seconds": ("seconds", "{:.2f}"),
    "cost_usd": ("US$ a 1000", "{:.3f}"),
    "answer_cut": ("answers cut", "{:.3f}"),
}
_IF_ANY = frozenset({"answer_cut"})
_SCALE = {"cost_usd": 1000.0}
_WITH_INTERVAL = frozenset({"gen_acc", "evidence_retrieved_recall"})
_OF_LISTS = {"recall": "R", "precision": "P", "ndcg@10": "nDCG@10", "mrr": "MRR"}
_SEARCHES_SHOWN = 6
_NOTE = (
    "Means over the questions that have a result, 95 % bootstrap intervals. GenAcc: the answer holds a gold answer (or "
    "the judge says so); answer recall: what was read holds one; tokens: all that policy and generator read and wrote; "
    "seconds: from question to answer under this load; answers cut: the share that ended at the generator's token "
    "limit. ev.: the gold documents, of all that was found and of what was selected, whatever the answer is. "
    "p: exact McNemar test on the questions of both agents (of means over samples: signed-rank test), corrected for "
    "all pairs (Holm)."
)


def _cell(agent: AgentResult, measure: str) -> str:
    estimate = agent.overall.get(measure)
    if estimate is None:
        return "-"
    scale, shape = _SCALE.get(measure, 1.0), _MEASURES[measure][1]
    shown = shape.format(estimate.mean * scale)
    if measure in _WITH_INTERVAL:
        return f"{shown} [{estimate.low:.3f}, {estimate.high:.3f}]"
    return shown


def _coverage(agent: AgentResult) -> str:
    """How many questions have a result, and which boundaries failed for the others."""
    reasons = ", ".join(f"{count} {boundary}" for boundary, count in sorted(agent.failed.items()))
    played = f"{agent.questions}x{agent.samples}" if agent.samples > 1 else str(agent.questions)
    return f"{agent.evaluated}/{played}" + (f" ({reasons})" if reasons else "")


def _means(table: EvaluationTable) -> Grid:
    measures = [
        name
        for name in _MEASURES
        if any(name in agent.overall and (name not in _IF_ANY or agent.overall[name].mean) for agent in table.agents)
    ]
    header = ["agent", "questions", *(_MEASURES[name][0] for name in measures)]
    rows = [[agent.agent, _coverage(agent), *(_cell(agent, name) for name in measures)] for agent in table.agents]
    return Grid("Evaluation", header, rows)


def _evidence(table: EvaluationTable) -> Grid | None:
    """Recall and precision of each list, and the recall after each search; None if no question has evidence."""
    agents = [agent for agent in table.agents if any(name.startswith(EVIDENCE) for name in agent.overall)]
    if not agents:
        return None
    measures = [(f"{one} {short}", f"{EVIDENCE}{one}_{name}") for one in LISTS for name, short in _OF_LISTS.items()]
    shown = [one for one in measures if any(one[1] in agent.overall for agent in agents)]
    searches = range(max(len(agent.evidence_after) for agent in agents))

    def cell(agent: AgentResult, measure: str) -> str:
        return f"{agent.overall[measure].mean:.3f}" if measure in agent.overall else "-"

    def after(agent: AgentResult, search: int) -> str:
        return f"{agent.evidence_after[search].mean:.3f}" if search < len(agent.evidence_after) else "-"

    rows = [
        [
            agent.agent,
            str(agent.overall["evidence_retrieved_recall"].n),
            *(cell(agent, measure) for _, measure in shown),
            *(after(agent, search) for search in searches[:_SEARCHES_SHOWN]),
        ]
        for agent in agents
    ]
    names = [title.replace("_", " ") for title, _ in shown]
    after_names = [f"R after {search}" for search in searches[:_SEARCHES_SHOWN]]
    return Grid(_evidence_title(table), ["agent", "n", *names, *after_names], rows)


def _evidence_title(table: EvaluationTable) -> str:
    coverage = table.coverage
    if not coverage or (found := coverage.get("in_corpus")) is None:
        return "Evidence (the corpus was not searched for the gold documents)" if coverage else "Evidence"
    share = found / max(1, coverage["documents"] or 0)
    left_out = f"; {coverage['left_out']} questions without any are left out" if coverage["left_out"] else ""
    return f"Evidence ({found} of {coverage['documents']} gold documents, {share:.1%}, are in the corpus{left_out})"


def _samples(table: EvaluationTable) -> Grid | None:
    """avg@n, pass@k and majority@n of the agents with several samples."""
    agents = [agent for agent in table.agents if agent.samples > 1]
    if not agents:
        return None
    names = list(dict.fromkeys(name for agent in agents for name in agent.overall if name.startswith(OF_SAMPLES)))

    def cell(agent: AgentResult, name: str) -> str:
        if (estimate := agent.overall.get(name)) is None:
            return "-"
        shown = f"{estimate.mean:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
        return shown if estimate.n == agent.questions else f"{shown} n {estimate.n}"

    rows = [[agent.agent, str(agent.samples), *(cell(agent, name) for name in names)] for agent in agents]
    return Grid("Samples of each question", ["agent", "samples", *names], rows)


def _by_source(table: EvaluationTable) -> Grid | None:
    """GenAcc (EM) in percent by data source and their unweighted mean, as in the papers; None for one source."""
    sources = sorted({source for agent in table.agents for source in agent.sources})
    if len(sources) < 2:
        return None

    def cell(estimates: dict) -> str:
        if "gen_acc" not in estimates:
            return "-"
        return f"{estimates['gen_acc'].mean * 100:.1f} ({estimates['exact_match'].mean * 100:.1f})"

    rows = []
    for agent in table.agents:
        macro = cell(agent.macro)
        if (estimate := agent.macro.get("gen_acc")) is not None:
            macro += f" [{estimate.low * 100:.1f}, {estimate.high * 100:.1f}]"
        # A mean over fewer sources than other agents have is not comparable.
        missing = len(agent.sources) < len(sources)
        rows.append([agent.agent, *(cell(agent.sources.get(one, {})) for one in sources), "-" if missing else macro])
    return Grid("GenAcc (EM) in % by data source", ["agent", *sources, "macro average"], rows)


def _differences(table: EvaluationTable, *, reference: str | None) -> Grid | None:
    """GenAcc differences of all pairs, or only of pairs with the reference."""
    found = [one for one in table.differences if one.measure == "gen_acc" and reference in (None, one.first)]
    if not found:
        return None
    rows = [
        [
            f"{one.second} - {one.first}",
            str(one.n),
            f"{one.gain:+.3f} [{one.low:+.3f}, {one.high:+.3f}]",
            f"{one.p_value:.2g}",
            f"{one.p_holm:.2g}",
        ]
        for one in found
    ]
    title = f"GenAcc compared with {reference}" if reference else "GenAcc compared"
    return Grid(title, ["pair", "n", "difference", "p", "p (Holm)"], rows)


def _grids(table: EvaluationTable, *, reference: str | None) -> Sequence[Grid]:
    grids = (
        _means(table),
        _samples(table),
        _evidence(table),
        _by_source(table),
        _differences(table, reference=reference),
    )
    return [grid for grid in grids if grid is not None]


def terminal_tables(table: EvaluationTable) -> Group:
    """Means, data sources, and the differences of the other agents from the first one."""
    return terminal_grids(_grids(table, reference=table.agents[0].agent if table.agents else None), note=_NOTE)


def markdown(table: EvaluationTable) -> str:
    """The same tables with all pairs, as Markdown."""
    return markdown_grids(_grids(table, reference=None), note=_NOTE)
