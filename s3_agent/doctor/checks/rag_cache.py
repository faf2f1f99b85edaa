"""Were the stored naive-RAG answers made by this corpus, index, generator, prompt and judge?"""

from collections.abc import Iterator

from s3_agent.doctor.case import Case
from s3_agent.doctor.findings import Finding, error


def check_rag_cache(case: Case) -> Iterator[Finding]:
    """The fingerprint, part by part, and whether every task is in it."""
    cache, wanted, path = case.rag_cache, case.fingerprint, case.recipe.data.rag_cache
    if cache is None:
        return
    rebuild = "s3-agent rag-cache build --recipe " + case.recipe.name
    if wanted is not None and not case.recipe.data.allow_mismatch and (different := cache.differences(wanted)):
        yield error(
            "rag-cache.fingerprint",
            what=f"{path} was made with other parts: {'; '.join(different)}",
            why="tasks would be filtered, and the gain beyond RAG reckoned, by another system's answers",
            mend=rebuild,
        )
    tasks = (*(case.train or ()), *(case.validation or ()))
    if missing := cache.missing(tasks):
        yield error(
            "rag-cache.tasks",
            what=f"{len(missing)} of {len(tasks)} tasks are not in {path}, the first is {missing[0].id!r}",
            why="a task without its naive-RAG answer can neither be filtered nor compared",
            mend=rebuild,
        )
