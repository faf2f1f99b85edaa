"""The stages of a recipe's data, from published files or from one's own, to a training set (spec §5.4).

`download` → `corpus` → `index` → `questions` → `retrieve` → `rag-cache` → `tasks`. A stage that needs a service starts
it at a free port and stops it; services with a `url` are used.
"""

import asyncio
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from retrieval_server.config import DenseSettings, LuceneSettings
from retrieval_server.corpus import LINES_RECORD
from retrieval_server.errors import RetrievalError
from retrieval_server.indexing import build_index, open_corpus
from s3_agent.clients.generator import make_generator
from s3_agent.clients.judge import make_judge
from s3_agent.clients.retriever import HttpRetriever
from s3_agent.data.corpora import check_corpus, convert_corpus
from s3_agent.data.downloads import Downloads
from s3_agent.data.files import Report, join_parts, write_rows
from s3_agent.data.naive_retrieval import Retrieved, retrieve_all
from s3_agent.data.prepared import index_identity, index_settings, rag_fingerprint, retriever_text
from s3_agent.data.question_files import PublishedQuestions
from s3_agent.data.questions import Dropped
from s3_agent.data.rag_cache import Fingerprint, RagCache, complete_cache
from s3_agent.data.sources import CORPORA, INDEXES
from s3_agent.data.stages import Ledger, Need, Stage
from s3_agent.data.tasks import load_tasks
from s3_agent.data.training_set import write_task_sets
from s3_agent.errors import DataError
from s3_agent.launch.commands import generator_url, retriever_url
from s3_agent.launch.job import require_external, resolve_ports, scratch_run, service_parts
from s3_agent.launch.stack import Stack
from s3_agent.recipe import GatewayRecipe, Recipe
from s3_agent.types import Task

# For the sizes that a dry run tells beforehand, on the safe side: English text is about three times its gzip file, and
# a BM25 index 0.46 of the embedded corpus.
GZIP_RATIO = 3.5
BM25_RATIO = 0.5
AT_A_TIME = 8


@contextmanager
def services(recipe: Recipe, *names: str) -> Iterator[Recipe]:
    """The recipe with these services running, those that are ours at free ports. Raises LaunchError."""
    own = {name: getattr(recipe, name).model_copy(update={"port": 0}) for name in ("retriever", "generator")}
    recipe = resolve_ports(recipe.model_copy(update={**own, "gateway": GatewayRecipe(port=0)}))
    require_external(recipe)
    ours = {"retriever": recipe.retriever.url is None, "generator": recipe.generator.hosted}
    if not any(ours[name] for name in names):
        yield recipe
        return
    with scratch_run(recipe) as run:
        parts = [part for part in service_parts(recipe, run) if part.name in names]
        with Stack(parts, run_id=secrets.token_hex(8)) as stack:
            stack.run()
            yield recipe


class DataStages:
    """The stages of one recipe. `fresh` answers every question anew in `rag-cache`; `concurrency` at a time."""

    def __init__(self, recipe: Recipe, ledger: Ledger, *, concurrency: int = 16, fresh: bool = False) -> None:
        self.recipe = recipe
        self.data = recipe.data
        self.sources = recipe.data.sources
        self.folder = recipe.data_folder
        self.ledger = ledger
        self._concurrency = concurrency
        self._fresh = fresh
        self.retrieved = self.folder / "retrieved.jsonl"
        wanted, raw = (self.sources.wanted, self.sources.raw) if self.sources else ([], {})
        self.downloads = Downloads(ledger, wanted=wanted, raw=raw)

    def all(self) -> list[Stage]:
        """Every stage that the recipe has, in order."""
        published = [self.downloads.stage()] if self.sources else []
        return [
            *published,
            self.corpus(),
            self.index(),
            self.questions(),
            self.retrieve(),
            self.rag_cache(),
            self.tasks(),
        ]

    def _hash(self, path: Path) -> str:
        return self.ledger.hash(path)

    def _missing(self, *paths: Path) -> list[Path]:
        return [path for path in paths if not path.exists()]

    def corpus(self) -> Stage:
        """Checked, and converted where it is published; the server maps it into memory by its lines."""
        path = self.data.corpus
        if self.sources is None:
            return Stage(
                name="corpus",
                made_of=lambda: {"corpus": "the recipe's own"},
                outputs=lambda: {"corpus.jsonl": path},
                work=lambda report: {"passages": check_corpus(path, report=report)},
                missing=lambda: self._missing(path),
            )
        name = self.sources.corpus

        def made_of() -> dict[str, Any]:
            return {"corpus": name, "files": [self._hash(file) for file in self._corpus_files()]}

        def work(report: Report) -> dict[str, Any]:
            # An index that others made counts every row of wiki-18.
            return convert_corpus(
                self._corpus_files(), path, made_of=made_of(), drop_blank=name != "wiki-18", report=report
            )

        def need() -> Need:
            repos = {wanted.repo for wanted in CORPORA[name]}
            sizes = [file.size * (GZIP_RATIO if file.path.endswith(".gz") else 1.0) for file in self._files(repos)]
            return Need(disk={path.parent: int(sum(sizes))})

        return Stage(name="corpus", made_of=made_of, outputs=lambda: {"corpus.jsonl": path}, work=work, need=need)

    def _files(self, repos: set[str]) -> list[Any]:
        return [file for file in self.downloads.files() if file.repo in repos]

    def _corpus_files(self) -> list[Path]:
        assert self.sources is not None
        return [path for wanted in CORPORA[self.sources.corpus] for path in self.downloads.paths(wanted.repo)]

    def index(self) -> Stage:
        """Ours built, or the published one joined from its parts."""
        recipe, path, folder = self.recipe, self.data.corpus, self.recipe.index_folder
        settings = index_settings(recipe)
        published = self.sources.index if self.sources else None

        def made_of() -> dict[str, Any]:
            identity = {**settings.identity(), "path": None} if settings.kind == "lucene" else settings.identity()
            parts = [file.oid for file in self._files({INDEXES[published].repo})] if published else []
            return {"corpus": self._hash(path), "kind": settings.kind, "settings": identity, "parts": parts}

        def outputs() -> Mapping[str, Path]:
            if isinstance(settings, DenseSettings) and settings.file is not None:
                return {"index": settings.file}
            place = settings.path if isinstance(settings, LuceneSettings) else folder
            files = sorted(file for file in place.glob("*") if file.is_file()) if place.is_dir() else []
            return {f"index/{file.name}": file for file in files if file.name != LINES_RECORD} or {"index": place}

        def work(report: Report) -> dict[str, Any]:
            if published is not None:
                return self._published_index(settings, made_of(), report)
            try:
                corpus = open_corpus(path, folder, report=report)
                build_index(corpus, folder, settings, report=report)
            except RetrievalError as cause:
                raise DataError(str(cause)) from cause
            return {"passages": len(corpus), "kind": settings.kind}

        def need() -> Need:
            if published is not None:
                return Need(disk={self.folder: sum(file.size for file in self._files({INDEXES[published].repo}))})
            size = path.stat().st_size if path.exists() else 0
            return Need(disk={folder: int(size * BM25_RATIO)} if settings.kind == "bm25" else {})

        return Stage(
            name="index",
            made_of=made_of,
            outputs=outputs,
            work=work,
            need=need,
            missing=lambda: self._missing(path),
        )

    def _published_index(self, settings: Any, made_of: dict[str, Any], report: Report) -> dict[str, Any]:
        assert self.sources is not None and self.sources.index is not None
        parts = self.downloads.paths(INDEXES[self.sources.index].repo)
        if isinstance(settings, DenseSettings) and settings.file is not None:
            return {"bytes": join_parts(settings.file, parts, made_of=made_of, report=report), "kind": "dense"}
        if isinstance(settings, LuceneSettings):
            for part in parts:
                join_parts(settings.path / part.name, [part], made_of=made_of, report=report)
            return {"files": len(parts), "kind": "lucene"}
        raise DataError(
            f"the published index {self.sources.index} needs a place",
            remedy="name it in retriever.backend: `file` of kind dense, `path` of kind lucene; see docs/data.md",
        )

    def questions(self) -> Stage:
        """The recipe's task files: made of published questions, or checked where they are one's own."""
        train, validation, test = self.data.train, self.data.validation, self.folder / "questions" / "test.jsonl"
        if self.sources is None:

            def check(_: Report) -> dict[str, Any]:
                found = {"train": load_tasks(train), "validation": load_tasks(validation)}
                _refuse_shared(found["train"], found["validation"])
                return {name: len(tasks) for name, tasks in found.items()}

            return Stage(
                name="questions",
                made_of=lambda: {"questions": "the recipe's own"},
                outputs=lambda: {"train.jsonl": train, "validation.jsonl": validation},
                work=check,
                missing=lambda: self._missing(train, validation),
            )
        sources = self.sources

        def made_of() -> dict[str, Any]:
            settings = sources.model_dump(mode="json", exclude={"corpus", "index", "github_raw"})
            raw = {name: self._hash(self.downloads.raw_path(name)) for name in sources.raw}
            repos = {wanted.repo for wanted in sources.wanted} - {wanted.repo for wanted in CORPORA[sources.corpus]}
            return {**settings, **raw, "files": {file.name: file.oid for file in self._files(repos)}}

        def work(report: Report) -> dict[str, Any]:
            published, dropped, asked_before = PublishedQuestions(sources, self.downloads), Dropped(), Dropped()
            report("reading questions", 0, 0)
            rows = published.train(dropped)
            write_rows(train, rows)
            tested = published.test(dropped)
            write_rows(test, tested)
            sample = published.sample(tested, asked_before)
            write_rows(validation, sample)
            return {
                "train": len(rows),
                "test": len(tested),
                "validation": len(sample),
                "dropped": dropped.text(),
                "reasons": dropped.report(),
                "not_in_the_sample": asked_before.report(),
            }

        def missing() -> list[Path]:
            return [] if self.ledger.read("download") else [self.ledger.path("download")]

        return Stage(
            name="questions",
            made_of=made_of,
            outputs=lambda: {"train.jsonl": train, "validation.jsonl": validation, "test.jsonl": test},
            work=work,
            missing=missing,
        )

    def _task_files(self) -> dict[str, Path]:
        files = {"train": self.data.train, "validation": self.data.validation}
        if self.sources is not None:
            files["test"] = self.folder / "questions" / "test.jsonl"
        return files

    def _questions_hash(self) -> dict[str, str]:
        return {name: self._hash(path) for name, path in self._task_files().items()}

    def _tasks(self, *names: str) -> list[Task]:
        """Each task once: the validation sample is a part of the test sets."""
        found = {
            task.id: task for name, path in self._task_files().items() if name in names for task in load_tasks(path)
        }
        return [*found.values()]

    def _before(self, *stages: str) -> list[Path]:
        """Manifests of stages that must have been finished."""
        return [self.ledger.path(stage) for stage in stages if self.ledger.read(stage) is None]

    def retrieve(self) -> Stage:
        """The top passages of every question."""

        def made_of() -> dict[str, Any]:
            index = index_identity(self.recipe)
            return {
                "corpus": index["corpus"],
                "retriever": retriever_text(index),
                "topk": self.data.retrieved_topk,
                "questions": self._questions_hash(),
            }

        async def ask(recipe: Recipe, report: Report) -> dict[str, Any]:
            tasks = self._tasks("train", "validation", "test")
            async with httpx.AsyncClient(timeout=300.0) as http:
                await retrieve_all(
                    tasks,
                    retriever=HttpRetriever(http, retriever_url(recipe)),
                    topk=self.data.retrieved_topk,
                    path=self.retrieved,
                    made_of=made_of(),
                    concurrency=AT_A_TIME,
                    done=lambda done, total: report("retrieving", done, total),
                )
            return {"questions": len(tasks), "topk": self.data.retrieved_topk}

        def work(report: Report) -> dict[str, Any]:
            report("starting the retriever", 0, 0)
            with services(self.recipe, "retriever") as recipe:
                return asyncio.run(ask(recipe, report))

        return Stage(
            name="retrieve",
            made_of=made_of,
            outputs=lambda: {"retrieved.jsonl": self.retrieved},
            work=work,
            missing=lambda: self._before("corpus", "index", "questions"),
        )

    def rag_cache(self) -> Stage:
        """Naive RAG's answers to the training and validation questions."""

        def made_of() -> dict[str, Any]:
            questions = {name: digest for name, digest in self._questions_hash().items() if name != "test"}
            return {
                "fingerprint": rag_fingerprint(self.recipe).model_dump(),
                "questions": questions,
                "retrieved": self._hash(self.retrieved),
            }

        async def ask(recipe: Recipe, fingerprint: Fingerprint, tasks: list[Task], report: Report) -> RagCache:
            async with httpx.AsyncClient(timeout=300.0) as http:
                return await complete_cache(
                    tasks,
                    self.data.rag_cache,
                    fingerprint,
                    retriever=Retrieved(self.retrieved, topk=fingerprint.topk),
                    generator=make_generator(
                        http, generator_url(recipe), recipe.generator.client, layout=self.data.rag_layout
                    ),
                    judge=make_judge(http, generator_url(recipe), recipe.judge),
                    concurrency=self._concurrency,
                    done=lambda done, total: report("naive RAG", done, total),
                    fresh=self._fresh,
                )

        def work(report: Report) -> dict[str, Any]:
            tasks, fingerprint = self._tasks("train", "validation"), rag_fingerprint(self.recipe)
            cache = RagCache.there(self.data.rag_cache, fingerprint)
            if self._fresh or cache is None or cache.missing(tasks):
                report("starting the generator", 0, 0)
                with services(self.recipe, "generator") as recipe:
                    cache = asyncio.run(ask(recipe, fingerprint, tasks, report))
            right = sum(cache.answers[task.id].score for task in tasks)
            return {
                "questions": len(tasks),
                "naive_rag_accuracy": round(right / len(tasks), 4),
                "fingerprint": fingerprint.digest,
            }

        return Stage(
            name="rag-cache",
            made_of=made_of,
            outputs=lambda: {"rag_cache.json": self.data.rag_cache},
            work=work,
            missing=lambda: self._before("retrieve"),
        )

    def tasks(self) -> Stage:
        """The filtered training set and the test sets, with scores and first passages, also as published rows."""
        folder = self.folder / "tasks"

        def made_of() -> dict[str, Any]:
            return {
                "questions": self._questions_hash(),
                "retrieved": self._hash(self.retrieved),
                "rag_cache": self._hash(self.data.rag_cache),
                "topk": self.data.rag_topk,
            }

        def work(report: Report) -> dict[str, Any]:
            report("writing task sets", 0, 0)
            cache = RagCache.load(self.data.rag_cache, expected=rag_fingerprint(self.recipe))
            return write_task_sets(
                folder, self._task_files(), cache=cache, retrieved=self.retrieved, topk=self.data.rag_topk
            )

        def outputs() -> dict[str, Path]:
            names = [f"{name}{suffix}" for name in self._task_files() for suffix in (".jsonl", ".parquet")]
            return {f"tasks/{name}": folder / name for name in names}

        return Stage(
            name="tasks",
            made_of=made_of,
            outputs=outputs,
            work=work,
            missing=lambda: self._before("rag-cache"),
        )


def _refuse_shared(train: list[Task], validation: list[Task]) -> None:
    if shared := sorted({task.id for task in train} & {task.id for task in validation}):
        raise DataError(
            f"{len(shared)} ids are in training and in validation, the first is {shared[0]!r}",
            remedy="give every task its own id",
        )
