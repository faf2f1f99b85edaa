"""What makes an engine a kind of index: it is filled by `build`, checked by `load`, and compared by `verify`."""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

from retrieval_server.backends.base import Backend
from retrieval_server.backends.bm25.analysis import EnglishAnalyzer, stemmer_identity
from retrieval_server.backends.dense.building import Rows, existing_vectors
from retrieval_server.backends.dense.encoders import ENCODERS, open_encoder
from retrieval_server.backends.dense.index import QueryEncoder
from retrieval_server.backends.engines.filling import RECORD, Contents, compare, fill, read_contents
from retrieval_server.backends.engines.searching import MOST, EngineBackend
from retrieval_server.backends.engines.settings import EngineSettings
from retrieval_server.backends.engines.store import Batch, Shape, Store
from retrieval_server.backends.engines.vocabulary import FILE, Vocabulary
from retrieval_server.corpus import Corpus, Report
from retrieval_server.errors import RetrievalError
from retrieval_server.index_kinds import IndexKind

_STEP = 10_000


class EngineKind(IndexKind):
    """A kind of index that is kept by an engine. The folder holds the manifest, the vocabulary and the hashes.

    A module of an engine gives its settings and `connect`:

        class MyEngine(EngineKind):
            settings, format = MySettings, 1

            def connect(self, settings, shape):
                return MyStore(settings, shape)

        KIND = MyEngine()
    """

    progress = (RECORD,)
    weighs_terms: ClassVar[bool] = False
    """Whether the store needs a vocabulary, because the engine takes sparse vectors in place of terms."""

    @abstractmethod
    def connect(self, settings: Any, shape: Shape) -> Store:
        """The index of this shape in the engine. Raises RetrievalError if a package is missing."""

    def most(self, settings: Any) -> int:
        """The largest number of hits that the engine returns for a query."""
        return MOST

    def made_with(self, settings: EngineSettings) -> dict[str, Any]:
        return stemmer_identity(settings.stemmer) if settings.lexical else {}

    def models(self, settings: EngineSettings) -> Mapping[str, str]:
        model = settings.encoder and ENCODERS[settings.encoder.kind].model(settings.encoder)
        return {"encoder": model} if model else {}

    def build(self, corpus: Corpus, settings: EngineSettings, folder: Path, *, report: Report) -> dict[str, Any]:
        if settings.encoder is None:
            return self._fill(corpus, settings, folder, rows=None, dimension=None, report=report)
        encoder = open_encoder(settings.encoder)

        def encode(start: int, end: int) -> Any:
            return encoder.passages([corpus[row].contents for row in range(start, end)])

        return self._fill(corpus, settings, folder, rows=encode, dimension=encoder.dimension, report=report)

    def convert(
        self, corpus: Corpus, source: Path, settings: EngineSettings, folder: Path, *, report: Report
    ) -> dict[str, Any]:
        """Fill the engine with vectors that exist already."""
        if settings.encoder is None:
            raise RetrievalError(f"`search: {settings.search}` has no vectors", remedy="build it from the corpus")
        rows, dimension = existing_vectors(corpus, source, report=report)
        return self._fill(corpus, settings, folder, rows=rows, dimension=dimension, report=report)

    def load(self, corpus: Corpus, folder: Path, settings: EngineSettings, *, report: Report) -> Backend:
        written = read_contents(folder)
        store = self.connect(settings, self._shape(corpus, settings, folder, written.dimension))
        try:
            compare(store, corpus, written, sample=True, report=report)
            encoder = _encoder(settings, written.dimension, report)
        except BaseException:
            store.close()
            raise
        return EngineBackend(store, settings, passages=len(corpus), encoder=encoder, most=self.most(settings))

    def verify(self, corpus: Corpus, folder: Path, settings: EngineSettings, *, report: Report) -> None:
        """Compare all that the engine holds with what was written."""
        written = read_contents(folder)
        with closing(self.connect(settings, self._shape(corpus, settings, folder, written.dimension))) as store:
            compare(store, corpus, written, sample=False, report=report)

    def _fill(
        self,
        corpus: Corpus,
        settings: EngineSettings,
        folder: Path,
        *,
        rows: Rows | None,
        dimension: int | None,
        report: Report,
    ) -> dict[str, Any]:
        analyzer = EnglishAnalyzer(stemmer=settings.stemmer, stopwords=settings.stopwords) if settings.lexical else None
        if analyzer is not None and self.weighs_terms and not (folder / FILE).exists():
            _vocabulary(corpus, analyzer, report).save(folder)

        def batch_of(start: int, end: int) -> Batch:
            passages = [corpus[row] for row in range(start, end)]
            return Batch(
                start=start,
                ids=[passage.id for passage in passages],
                vectors=rows and rows(start, end),
                terms=analyzer and analyzer.batch([passage.contents for passage in passages]),
            )

        shape = self._shape(corpus, settings, folder, dimension)
        with closing(self.connect(settings, shape)) as store:
            written = Contents(dimension=dimension, batch=settings.batch)
            fill(store, batch_of, written, name=shape.name, passages=len(corpus), folder=folder, report=report)
            described = {"engine": store.version()}
        return described | ({"dimension": dimension, "metric": "inner_product"} if dimension else {})

    def _shape(self, corpus: Corpus, settings: EngineSettings, folder: Path, dimension: int | None) -> Shape:
        filled_with = {
            "kind": settings.kind,
            "format": self.format,
            "corpus": corpus.sha256(),
            "passages": len(corpus),
            "settings": settings.identity(),
            "made_with": self.made_with(settings),
        }
        digest = hashlib.sha256(json.dumps(filled_with, sort_keys=True).encode()).hexdigest()
        return Shape(
            name=f"{settings.name}_{digest[:12]}",
            passages=len(corpus),
            dimension=dimension,
            vocabulary=Vocabulary.load(folder) if settings.lexical and self.weighs_terms else None,
        )


def _vocabulary(corpus: Corpus, analyzer: EnglishAnalyzer, report: Report) -> Vocabulary:
    def terms() -> Iterator[list[str]]:
        for row, passage in enumerate(corpus):
            if row % _STEP == 0:
                report("counting terms", row, len(corpus))
            yield analyzer.terms(passage.contents)

    vocabulary = Vocabulary.of(terms())
    if not len(vocabulary):
        raise RetrievalError("the corpus has no word to search for", remedy="give passages with text in `contents`")
    return vocabulary


def _encoder(settings: EngineSettings, dimension: int | None, report: Report) -> QueryEncoder | None:
    if settings.encoder is None:
        return None
    report("loading the encoder", 0, 0)
    encoder = open_encoder(settings.encoder)
    if encoder.dimension != dimension:
        raise RetrievalError(
            f"the encoder {settings.encoder.model} makes vectors of {encoder.dimension} numbers, the index holds "
            f"{dimension}",
            remedy="give the encoder that the index was built with",
        )
    return encoder
