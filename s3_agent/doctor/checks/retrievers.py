"""Do all the retrieval servers that share the requests answer, and have they one index?"""

from collections.abc import Iterator

from s3_agent.clients.servers import SAME_INDEX, addresses, difference
from s3_agent.doctor.case import Case
from s3_agent.doctor.findings import Finding, error


def check_retrievers(case: Case) -> Iterator[Finding]:
    """Several addresses in `retriever.url`: each must answer, all with the same index."""
    if case.retrievers is None:
        return
    if away := [url for url in addresses(case.recipe.retriever_url) if url not in case.retrievers]:
        yield error(
            "retrievers.away",
            what=f"no retriever answers at {', '.join(away)}",
            why="a run does not start while a server that it names is down or loading",
            fix="start it, or leave its address out of retriever.url",
        )
    if different := difference(case.retrievers):
        yield error(
            "retrievers.differ",
            what=different,
            why="the same query would find other passages, depending on which server answers",
            fix=SAME_INDEX,
        )
