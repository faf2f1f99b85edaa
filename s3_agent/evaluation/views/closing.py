"""The closing table of a run."""

from rich.console import Group
from rich.table import Table
from rich.text import Text

from s3_agent.evaluation.summary import Summary

TESTS = {"mcnemar": "exact McNemar", "wilcoxon": "Wilcoxon signed rank"}


def closing_table(summary: Summary) -> Group:
    """Accuracy of naive RAG, and of the policy before and after, in total and by hops; paired tests' p-values."""
    missing = f" ({summary.val_missing} left out: no answer)" if summary.val_missing else ""
    table = Table(title=f"Validation accuracy, {summary.val_n} held-out questions{missing}")
    for column in ("", "questions", "naive RAG", "before", "after", "gain"):
        table.add_column(column, justify="left" if not column else "right")

    def row(name: str, n: float, naive: float | None, before: float, after: float) -> None:
        rag = "-" if naive is None else f"{naive:.3f}"
        table.add_row(name, f"{n:.0f}", rag, f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}")

    row("all", summary.val_n, summary.naive_rag, summary.val_before, summary.val_after)
    for hops, part in summary.by_hops.items():
        name = "hops unknown" if hops == "None" else f"{hops} hop" + ("s" if hops != "1" else "")
        row(name, part["n"], part.get("naive_rag"), part["before"], part["after"])
    tests = [f"after against before p = {summary.p_value:.2g} ({TESTS[summary.test]})"]
    if summary.p_value_naive_rag is not None:
        tests.append(f"against naive RAG p = {summary.p_value_naive_rag:.2g}")
    unfinished = f"{summary.unfinished_rollouts} in play at the end, " if summary.unfinished_rollouts else ""
    verdict = (
        f"{summary.steps} steps, {summary.rollouts} rollouts, {summary.lost_rollouts} lost, {unfinished}"
        f"{summary.rows_per_rollout:.2f} rows a rollout; {', '.join(tests)}; {summary.wall_seconds / 60:.1f} minutes"
    )
    lines = [table, Text(verdict)]
    if (guard := summary.guard) is not None:
        kept = f"; the policy of step {guard.best_step} is kept" if guard.stopped else ""
        lines.append(Text(f"guard, after step {guard.step}: {guard.reason}{kept}", style="yellow"))
    best, last = summary.best_validation, summary.kept_validation
    if best is not None and last is not None and best > last:
        when = f"after step {summary.best_step}" if summary.best_step else "before the first step"
        export = "; if it was kept, export-policy --best exports that policy" if summary.best_step else ""
        lines.append(Text(f"validation was best {when}: {best:.3f}; of the kept policy {last:.3f}{export}"))
    return Group(*lines)
