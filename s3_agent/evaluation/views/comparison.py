"""Shows a comparison of training runs as tables."""

from collections.abc import Sequence

from rich.console import Group

from s3_agent.evaluation.comparison import NAIVE_RAG, AgentRow, Comparison
from s3_agent.evaluation.statistics.intervals import Difference, Estimate
from s3_agent.evaluation.views.grids import Grid, markdown_grids, terminal_grids

_NOTE = (
    "Greedy answers to the same held-out questions before and after training. An accuracy is a mean over questions of "
    "the mean over seeds, with its 95 % bootstrap interval over questions; a gain is paired by question, its p of the "
    "exact McNemar test (one seed) or Wilcoxon's signed-rank test of the means (several). Accuracy is that of each "
    "agent's own reward: span match of the generator's answer for s3, exact match of its own answer for Search-R1, the "
    "reward itself for a class of your own."
)


def _mean(estimate: Estimate | None) -> str:
    return "-" if estimate is None else f"{estimate.mean:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _gain(difference: Difference | None) -> list[str]:
    if difference is None:
        return ["-", "-"]
    gain = f"{difference.gain:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"
    return [gain, f"{difference.p_value:.2g}"]


def _searches(row: AgentRow) -> str:
    if row.searches_before is None or row.searches_after is None:
        return "-"
    return f"{row.searches_before:.2f} to {row.searches_after:.2f}"


def _results(comparison: Comparison) -> Grid:
    header = ["agent", "seeds", "n", "before", "after", "each seed", "gain", "p", f"over {NAIVE_RAG}", "p", "searches"]
    rows = []
    if (rag := comparison.naive_rag) is not None:
        rows.append([NAIVE_RAG, "-", str(rag.n), "-", _mean(rag), *["-"] * (len(header) - 5)])
    for row in [*comparison.agents, *comparison.controls]:
        each = ", ".join(f"{mean:.3f}" for mean in row.after_by_seed)
        counts = [str(len(row.seeds)), str(row.after.n)]
        gains = [*_gain(row.gain), *_gain(row.beyond_rag)]
        rows.append([row.label, *counts, _mean(row.before), _mean(row.after), each, *gains, _searches(row)])
    return Grid("Before and after training", header, rows)


def _by_hops(comparison: Comparison) -> Grid | None:
    rows = [
        [
            row.label,
            part.hops,
            str(part.n),
            "-" if part.naive_rag is None else f"{part.naive_rag:.3f}",
            f"{part.before:.3f}",
            f"{part.after:.3f}",
        ]
        for row in comparison.agents
        for part in row.by_hops
        if part.hops != "None"
    ]
    return Grid("By hops", ["agent", "hops", "n", NAIVE_RAG, "before", "after"], rows) if rows else None


def _pairs(comparison: Comparison) -> Grid | None:
    rows = [[f"{one.second} - {one.first}", str(one.n), *_gain(one), f"{one.p_holm:.2g}"] for one in comparison.pairs]
    return Grid("After training, agent by agent", ["pair", "n", "difference", "p", "p (Holm)"], rows) if rows else None


def _stopped(comparison: Comparison) -> Grid | None:
    """The choice among validations makes these runs' accuracy a little too good, so they must be seen."""
    rows = [
        [run.label, str(run.seed), str(guard.step), f"step {guard.best_step}, by these questions", guard.reason]
        for run in comparison.runs
        if (guard := run.guard) is not None and guard.stopped
    ]
    header = ["agent", "seed", "after step", "policy that is kept", "reason"]
    return Grid("Runs that the guard stopped", header, rows) if rows else None


def _checks(comparison: Comparison) -> Grid:
    rows = [[check.name, "holds" if check.holds else "DOES NOT HOLD", check.measured] for check in comparison.checks]
    return Grid("Checks", ["check", "", "measured"], rows)


def _grids(comparison: Comparison) -> Sequence[Grid]:
    grids = [part(comparison) for part in (_results, _by_hops, _pairs, _stopped, _checks)]
    return [grid for grid in grids if grid is not None]


def terminal_comparison(comparison: Comparison) -> Group:
    """For the terminal."""
    return terminal_grids(_grids(comparison), note=_NOTE)


def comparison_markdown(comparison: Comparison) -> str:
    """As Markdown."""
    return markdown_grids(_grids(comparison), note=_NOTE)
