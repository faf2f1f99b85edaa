"""The stages `corpus` and `index`: convert the corpus into our one format, and build the index over it.

Used by `stages`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retrieval_server.corpus import LINES_RECORD, Corpus
from retrieval_server.errors import RetrievalError
from retrieval_server.index_kinds import IndexSettings, kind_of
from retrieval_server.indexing import build_index, expected_manifest, open_corpus
from retrieval_server.indexing.build import convert_index
from retrieval_server.indexing.manifest import check, made_with, read_manifest
from s3_agent.data.corpus.corpora import check_corpus, convert_corpus
from s3_agent.data.files.stages import Ledger, Need, Stage
from s3_agent.data.files.whole import Report, join_parts
from s3_agent.data.published.downloads import Downloads
from s3_agent.errors import DataError
from s3_agent.recipe import Recipe

# For the size estimates of a dry run, rather too large: English text is about three times its gzip file.
GZIP_RATIO = 3.5


def missing(*paths: Path) -> list[Path]:
    """Those that are not there."""
    return [path for path in paths if not path.exists()]


class CorpusStages:
    """The stages `corpus` and `index` of one recipe."""

    def __init__(self, recipe: Recipe, ledger: Ledger, downloads: Downloads) -> None:
        self.recipe = recipe
        self.data = recipe.data
        self.sources = recipe.data.sources
        self.ledger = ledger
        self.downloads = downloads

    def corpus(self) -> Stage:
        """Check the corpus, and convert a published one; the server maps the file into memory and finds passages by
        line."""
        path = self.data.corpus
        if not self._searches_corpus:
            return self._nothing("corpus")
        published = self.sources.published_corpus if self.sources else None
        if published is None:
            return Stage(
                name="corpus",
                made_of=lambda: {"corpus": self.ledger.hash(path)},
                outputs=lambda: {"corpus.jsonl": path},
                work=lambda report: {"passages": check_corpus(path, report=report)},
                missing=lambda: missing(path),
            )
        assert self.sources is not None
        name = self.sources.corpus

        def made_of() -> dict[str, Any]:
            return {"corpus": name, "files": [self.ledger.hash(file) for file in self._corpus_files()]}

        def work(report: Report) -> dict[str, Any]:
            return convert_corpus(
                self._corpus_files(),
                path,
                made_of=made_of(),
                drop_blank=not published.keeps_blank,
                read=published.row,
                report=report,
            )

        def need() -> Need:
            repos = {wanted.repo for wanted in published.files}
            files, unknown = self.downloads.sizes(repos)
            sizes = [file.size * (GZIP_RATIO if file.path.endswith((".gz", ".parquet")) else 1.0) for file in files]
            return Need(disk={path.parent: int(sum(sizes))}, unknown=unknown)

        return Stage(name="corpus", made_of=made_of, outputs=lambda: {"corpus.jsonl": path}, work=work, need=need)

    @property
    def _searches_corpus(self) -> bool:
        return kind_of(self.recipe.retriever.index).searches_corpus

    def _nothing(self, name: str) -> Stage:
        """The stage of a recipe whose index needs no corpus, such as web search."""
        kind = self.recipe.retriever.index.kind
        return Stage(
            name=name, made_of=lambda: {"kind": kind}, outputs=dict, work=lambda report: {"needed": False, "kind": kind}
        )

    def _corpus_files(self) -> list[Path]:
        assert self.sources is not None and self.sources.published_corpus is not None
        published = self.sources.published_corpus
        # Selected by pattern, because the same repository may also contain questions.
        wanted = [(one.repo, pattern) for one in published.files for pattern in one.patterns]
        return [*published.here, *(path for repo, pattern in wanted for path in self.downloads.paths(repo, pattern))]

    def index(self) -> Stage:
        """Build our own index, or join the pieces of a published one."""
        if not self._searches_corpus:
            return self._nothing("index")
        recipe, path, folder = self.recipe, self.data.corpus, self.recipe.index_folder
        settings, kind = recipe.retriever.index, kind_of(recipe.retriever.index)
        published = self.sources.published_index if self.sources else None

        def made_of() -> dict[str, Any]:
            # The path of an index that others made is not one of its inputs.
            place = str(kind.foreign(settings))
            identity = {name: None if value == place else value for name, value in settings.identity().items()}
            parts = [file.oid for file in self.downloads.of({published.files.repo})] if published else []
            ours = {"corpus": self.ledger.hash(path), "kind": settings.kind, "settings": identity, "parts": parts}
            return ours | made_with(settings)

        def outputs() -> Mapping[str, Path]:
            place = kind.foreign(settings) or folder
            files = sorted(file for file in place.rglob("*") if file.is_file()) if place.is_dir() else []
            named = {f"index/{file.relative_to(place).as_posix()}": file for file in files}
            return {name: file for name, file in named.items() if file.name != LINES_RECORD} or {"index": place}

        def work(report: Report) -> dict[str, Any]:
            if published is not None:
                return self._published_index(settings, made_of(), report)
            try:
                corpus = open_corpus(path, folder, report=report)
                if not _fits(corpus, folder, settings):
                    build_index(corpus, folder, settings, report=report)
            except RetrievalError as cause:
                raise DataError(str(cause)) from cause
            return {"passages": len(corpus), "kind": settings.kind}

        def need() -> Need:
            if published is not None:
                files, unknown = self.downloads.sizes({published.files.repo})
                return Need(disk={self.ledger.folder: sum(file.size for file in files)}, unknown=unknown)
            size = path.stat().st_size if path.exists() else 0
            return Need(disk={folder: int(size * kind.disk_ratio)} if kind.disk_ratio else {})

        return Stage(
            name="index",
            made_of=made_of,
            outputs=outputs,
            work=work,
            need=need,
            missing=lambda: missing(path),
        )

    def _published_index(self, settings: IndexSettings, made_of: dict[str, Any], report: Report) -> dict[str, Any]:
        assert self.sources is not None and self.sources.published_index is not None
        name, published = self.sources.index, self.sources.published_index
        place = kind_of(settings).foreign(settings)
        if settings.kind != published.kind or (place is None and not published.in_pieces):
            raise DataError(
                f"the published index {name} needs settings in the recipe",
                remedy=f"set retriever.index.kind={published.kind} and the fields of that kind; see docs/data.md",
            )
        parts = self.downloads.paths(published.files.repo)
        if not published.in_pieces:
            assert place is not None
            for part in parts:
                join_parts(place / part.name, [part], made_of=made_of, report=report)
            return {"files": len(parts), "kind": settings.kind}
        joined = place or self.ledger.folder / f"{name}.index"
        size = join_parts(joined, parts, made_of=made_of, report=report)
        if place is None:  # what was published, in the recipe's own form
            folder = self.recipe.index_folder
            try:
                corpus = open_corpus(self.data.corpus, folder, report=report)
                if not _fits(corpus, folder, settings):
                    convert_index(corpus, joined, folder, settings, report=report)
            except RetrievalError as cause:
                raise DataError(str(cause)) from cause
        return {"bytes": size, "kind": settings.kind}


def _fits(corpus: Corpus, folder: Path, settings: Any) -> bool:
    """Whether a server or an earlier run has already built this index."""
    try:
        check(read_manifest(folder, remedy=""), folder, expected_manifest(corpus, settings), remedy="")
    except RetrievalError:
        return False
    return True
