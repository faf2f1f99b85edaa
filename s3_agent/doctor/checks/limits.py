"""Does every service and process take as many at a time as the recipe plays?"""

from collections.abc import Iterator

from s3_agent.doctor.case import Case
from s3_agent.doctor.findings import Finding
from s3_agent.doctor.limits import limits


def check_limits(case: Case) -> Iterator[Finding]:
    """The rows of the table of limits that are too small."""
    for limit in limits(case):
        if limit.report is not None and limit.too_small:
            yield limit.report(
                limit.id,
                what=f"{limit.place} takes {limit.most} {limit.what} at a time, the recipe needs {limit.needed}",
                why=limit.beyond,
                fix=limit.fix,
            )
