"""Reports the limits (`s3_agent.doctor.limits`) that are below what the recipe plays at a time."""

from collections.abc import Iterator

from s3_agent.doctor.case import Case
from s3_agent.doctor.findings import Finding
from s3_agent.doctor.limits import limits


def check_limits(case: Case) -> Iterator[Finding]:
    """One finding for each row of the table whose limit is too small and can disturb a run."""
    for limit in limits(case):
        if limit.report is not None and limit.too_small:
            yield limit.report(
                limit.id,
                what=f"{limit.place} takes {limit.most} {limit.what} at a time, but the recipe needs {limit.needed}",
                why=limit.beyond,
                fix=limit.fix,
            )
