"""The result of a check: one form for the text, for `--json` and for the tests."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from s3_agent.guard import printable


class Severity(StrEnum):
    """`error`: the run would fail or train on something else. `warning`: it may fail, or is slower than it could be."""

    error = "error"
    warning = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem: `what` is wrong, `why` it matters, and a `fix`: a command or setting to type as it is written."""

    id: str
    what: str
    why: str
    fix: str
    severity: Severity = Severity.error


def warning(id: str, *, what: str, why: str, fix: str) -> Finding:
    """A finding that does not prevent a run from starting."""
    return Finding(id=id, what=what, why=why, fix=fix, severity=Severity.warning)


def error(id: str, *, what: str, why: str, fix: str) -> Finding:
    """A finding that prevents a run from starting."""
    return Finding(id=id, what=what, why=why, fix=fix)


def errors(findings: Sequence[Finding]) -> list[Finding]:
    """The findings that prevent a run from starting."""
    return [finding for finding in findings if finding.severity is Severity.error]


def as_text(findings: Sequence[Finding]) -> str:
    """The findings as text, three lines each; errors come first."""
    ordered = sorted(findings, key=lambda finding: finding.severity is not Severity.error)
    text = "\n".join(
        f"{finding.severity}: {finding.what}  [{finding.id}]\n  why:  {finding.why}\n  fix:  {finding.fix}"
        for finding in ordered
    )
    return printable(text)  # it can contain names from files


def as_rows(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """The findings for JSON. `mend` is the older name of `fix`, kept for one version."""
    return [{**asdict(finding), "mend": finding.fix} for finding in findings]
