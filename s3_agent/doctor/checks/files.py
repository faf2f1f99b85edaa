"""Checks whether models, corpus, tasks and index are where the recipe says, and complete. It downloads nothing."""

from collections.abc import Iterator

from s3_agent.doctor.case import Case, ModelFiles
from s3_agent.doctor.checks.environment import offline
from s3_agent.doctor.findings import Finding, error, warning


def check_files(case: Case) -> Iterator[Finding]:
    """Inputs that are missing or damaged, and a configuration that verl refuses."""
    if case.machine.host is not None:
        forbidden = offline(case.machine.host.environment)
        for part, files in case.models.items():
            yield from _model(part, files, forbidden)
    for name, (problem, remedy) in case.unreadable.items():
        yield error(
            f"files.{name}",
            what=f"data.{name}: {problem}",
            why="the run reads this file before its first step",
            fix=remedy or f"set data.{name} to the file",
        )
    if case.index is not None and case.index.problem:
        yield error(
            "files.index",
            what=case.index.problem,
            why="the retriever does not start without its index",
            fix=case.index.remedy,
        )
    if case.refused is not None:
        what, fix = case.refused
        yield error("files.trainer-config", what=what, why="verl's configuration can not be composed", fix=fix)


def _model(part: str, files: ModelFiles, forbidden: str | None) -> Iterator[Finding]:
    place, short = f"{part}.model", part.rpartition(".")[2]
    if files.folder is None:
        report = error if forbidden else warning
        yield report(
            f"files.{short}-missing",
            what=f"{place}: {files.name} is neither a folder nor in the Hugging Face cache",
            why=f"{forbidden} forbids the download"
            if forbidden
            else "every process that needs it downloads it when the run starts; without network the run fails",
            fix=f"{'env -u ' + forbidden + ' ' if forbidden else ''}hf download {files.name}",
        )
    elif files.missing:
        yield error(
            f"files.{short}-incomplete",
            what=f"{place}: {files.folder} lacks {', '.join(files.missing)}",
            why="a download is incomplete: loading the model fails, after the other processes are ready",
            fix=f"hf download {files.name}",
        )


def check_tasks(case: Case) -> Iterator[Finding]:
    """Whether there are enough training tasks, all tasks have answers, and validation questions are not trained on."""
    if case.train is None:
        return
    needed = case.recipe.trainer.questions_played
    if len(case.train) < needed:
        filtered = " that naive RAG does not answer" if case.rag_cache is not None else ""
        yield error(
            "data.too-few",
            what=f"{len(case.train)} training tasks{filtered}, but a step needs {needed}",
            why="not even one step has all its questions",
            fix="give more tasks in data.train, or lower trainer.questions_per_step",
        )
    if case.validation is None:
        return
    asked = {task.question for task in case.train}
    if leaked := sum(task.question in asked for task in case.validation):
        yield warning(
            "data.leak",
            what=f"{leaked} of {len(case.validation)} validation questions are training questions",
            why="the accuracy on these says nothing about new questions",
            fix="take them out of data.train",
        )
    tasks = (*case.train, *case.validation)
    scoring = case.recipe.agent.scoring
    if scoring.needs_evidence and (without := sum(task.evidence is None for task in tasks)):
        yield error(
            "data.no-evidence",
            what=f"{without} of {len(tasks)} tasks have no evidence, which the reward {case.recipe.agent.reward} needs",
            why="their rollouts can not be scored and would be lost",
            fix="take them out of data.train and data.validation, or use another agent.reward",
        )
    empty = sum(not task.answerable for task in tasks)
    if empty and (scoring.checks_answer or not scoring.needs_evidence):
        yield error(
            "data.no-answers",
            what=f"{empty} tasks have no golden answer",
            why="no answer to them can be correct: all rollouts of such a group get the same reward and teach nothing",
            fix="take them out of data.train and data.validation",
        )


def check_rag_cache(case: Case) -> Iterator[Finding]:
    """Whether the cache has the expected fingerprint, compared field by field, and an answer for every task."""
    cache, wanted, path = case.rag_cache, case.fingerprint, case.recipe.data.rag_cache
    if cache is None:
        return
    rebuild = "s3-agent rag-cache build --recipe " + case.recipe.name
    if wanted is not None and not case.recipe.data.allow_mismatch and (different := cache.differences(wanted)):
        yield error(
            "rag-cache.fingerprint",
            what=f"{path} was made with other inputs: {'; '.join(different)}",
            why="the filter of tasks and the gain beyond RAG would be computed from another system's answers",
            fix=rebuild,
        )
    tasks = (*(case.train or ()), *(case.validation or ()))
    if missing := cache.missing(tasks):
        yield error(
            "rag-cache.tasks",
            what=f"{len(missing)} of {len(tasks)} tasks are not in {path}; the first is {missing[0].id!r}",
            why="a task without a naive-RAG answer can neither be filtered nor compared",
            fix=rebuild,
        )
