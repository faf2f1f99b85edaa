"""The stages that turn published files, or a user's, into a training set (docs/data.md). Called by `s3-agent data`.

`download` → `corpus` → `index` → `questions` → `retrieve` → `rag-cache` → `tasks`.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from s3_agent.data.files.stages import Ledger, Stage
from s3_agent.data.files.whole import Report, keep_private, write_rows
from s3_agent.data.published.downloads import Downloads
from s3_agent.data.published.question_files import PublishedQuestions
from s3_agent.data.questions import Dropped
from s3_agent.data.tasks import load_tasks
from s3_agent.errors import DataError
from s3_agent.preparation.answer_stages import AnswerStages
from s3_agent.preparation.corpus_stages import CorpusStages, missing
from s3_agent.recipe import Recipe
from s3_agent.types import Task


class DataStages:
    """The stages of one recipe; for `concurrency` and `fresh` see AnswerStages."""

    def __init__(self, recipe: Recipe, ledger: Ledger, *, concurrency: int = 16, fresh: bool = False) -> None:
        self.data = recipe.data
        self.sources = recipe.data.sources
        self.ledger = ledger
        self.downloads = Downloads(
            ledger,
            wanted=self.sources.wanted if self.sources else [],
            raw=self.sources.raw if self.sources else {},
        )
        self._corpus = CorpusStages(recipe, ledger, self.downloads)
        files = {"train": self.data.train, "validation": self.data.validation}
        if self.sources:
            files["test"] = ledger.folder / "questions" / "test.jsonl"
        self._answers = AnswerStages(recipe, ledger, files, concurrency=concurrency, fresh=fresh)

    def all(self) -> list[Stage]:
        """Every stage that the recipe has, in order."""
        return [
            *([self._download()] if self.sources else []),
            *(self._corpus.corpus(), self._corpus.index(), self.questions()),
            *(self._answers.all() if self.data.rag_cache is not None else []),
        ]

    def _download(self) -> Stage:
        stage, sources = self.downloads.stage(), self.sources
        assert sources is not None

        def work(report: Report) -> dict[str, Any]:
            sources.require_keys()  # before hours of downloading
            return stage.work(report)

        return replace(stage, work=work)

    def questions(self) -> Stage:
        """The stage `questions`: make the recipe's task files from published questions, or check those of the user."""
        train, validation, test = self.data.train, self.data.validation, self.ledger.folder / "questions" / "test.jsonl"
        if self.sources is None:

            def check(_: Report) -> dict[str, Any]:
                found = {"train": load_tasks(train), "validation": load_tasks(validation)}
                _refuse_shared(found["train"], found["validation"])
                if any(task.protected for tasks in found.values() for task in tasks):
                    keep_private(self.ledger.folder)
                return {name: len(tasks) for name, tasks in found.items()}

            return Stage(
                name="questions",
                made_of=lambda: {"train": self.ledger.hash(train), "validation": self.ledger.hash(validation)},
                outputs=lambda: {"train.jsonl": train, "validation.jsonl": validation},
                work=check,
                missing=lambda: missing(train, validation),
            )
        sources = self.sources

        def made_of() -> dict[str, Any]:
            settings = sources.model_dump(mode="json", exclude={"corpus", "index", "github_raw", "key_file"})
            raw = {name: self.ledger.hash(self.downloads.raw_path(name)) for name in sources.raw}
            corpus = sources.published_corpus
            repos = {wanted.repo for wanted in sources.wanted} - {
                wanted.repo for wanted in (corpus.files if corpus else ())
            }
            return {**settings, **raw, "files": {file.name: file.oid for file in self.downloads.of(repos)}}

        def work(report: Report) -> dict[str, Any]:
            published, dropped, asked_before = PublishedQuestions(sources, self.downloads), Dropped(), Dropped()
            report("reading questions", 0, 0)
            private = sources.protected
            if private:
                keep_private(self.ledger.folder)
            rows = published.train(dropped)
            write_rows(train, rows, private=private)
            tested = published.test(dropped)
            write_rows(test, tested, private=private)
            sample = published.sample(tested, asked_before)
            write_rows(validation, sample, private=private)
            return {
                "train": len(rows),
                "test": len(tested),
                "validation": len(sample),
                "dropped": dropped.text(),
                "reasons": dropped.report(),
                "not_in_the_sample": asked_before.report(),
            }

        def unfetched() -> list[Path]:
            return [] if self.ledger.read("download") else [self.ledger.path("download")]

        return Stage(
            name="questions",
            made_of=made_of,
            outputs=lambda: {"train.jsonl": train, "validation.jsonl": validation, "test.jsonl": test},
            work=work,
            missing=unfetched,
        )


def _refuse_shared(train: list[Task], validation: list[Task]) -> None:
    if shared := sorted({task.id for task in train} & {task.id for task in validation}):
        raise DataError(
            f"{len(shared)} ids are in training and in validation, the first is {shared[0]!r}",
            remedy="give every task a unique id",
        )
