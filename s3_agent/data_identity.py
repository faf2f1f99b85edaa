"""The identity of a recipe's data: the fingerprint of its naive RAG, and the tasks that it trains and tests on.

Used by the main job, the evaluation, the doctor and the data stages to find a RAG cache that has other inputs.
"""

import json
from collections.abc import Mapping
from typing import Any

import httpx

from retrieval_server.errors import RetrievalError
from retrieval_server.index_kinds import kind_of
from retrieval_server.indexing import manifest_without_corpus, open_corpus, served_manifest
from s3_agent.clients.connections import get
from s3_agent.clients.model_server import window_of
from s3_agent.clients.servers import SAME_INDEX, difference, served_identities
from s3_agent.data.naive_rag.fingerprint import Fingerprint
from s3_agent.errors import ConfigError
from s3_agent.recipe import Recipe


def index_identity(recipe: Recipe) -> dict[str, Any]:
    """The identity of the corpus and index: our own server reports it, another server is identified by its address."""
    if recipe.retriever.url is None:
        settings = recipe.retriever.index
        if not recipe.serves_corpus:
            try:
                return manifest_without_corpus(settings, kind_of(settings).source(recipe.index_folder, settings))
            except RetrievalError as cause:
                raise ConfigError(str(cause)) from cause
        try:
            corpus = open_corpus(recipe.data.corpus, recipe.index_folder)
        except RetrievalError as cause:
            raise ConfigError(str(cause), remedy="prepare it: s3-agent data all --recipe …") from cause
        rerank = recipe.retriever.rerank
        reranked = {} if rerank is None else {"rerank": rerank.answers()}
        try:
            return served_manifest(corpus, settings) | reranked
        except RetrievalError as cause:
            raise ConfigError(str(cause)) from cause
    identities = served_identities(recipe.retriever.url)
    if different := difference(identities):
        raise ConfigError(different, remedy=SAME_INDEX)
    manifest = next(iter(identities.values()), None)
    return manifest or {"corpus": "unknown", "backend": recipe.retriever.url, "settings": {}}


def retriever_text(index: Mapping[str, Any]) -> str:
    """The index, its search and its reranker in one line, including format numbers and a stemmer's release, also of the
    parts of a hybrid index: they change its answers."""
    made = {"backend": index["backend"], "format": index.get("format"), **index["settings"]}
    names = {"stemmer_release": "stemmer", "parts_made_with": "parts_made_with", "rerank": "rerank"}
    more = {name: index.get(key) for name, key in names.items()}
    return json.dumps(made | {name: value for name, value in more.items() if value is not None})


def generator_window(recipe: Recipe) -> int | None:
    """The context of the generator in tokens, from the recipe or from a running server; None when it is unknown."""
    settings = recipe.generator
    if settings.context_tokens is not None or settings.hosted or not settings.openai_compatible:
        return settings.context_tokens or settings.served_window
    try:
        response = get(f"{settings.url}/models", timeout=10.0)
        return window_of(response.json(), settings.model) if response.status_code == 200 else None
    except (httpx.HTTPError, ValueError):  # the value is not needed for questions that are already answered
        return None


def rag_fingerprint(recipe: Recipe) -> Fingerprint:
    """The inputs of this recipe's naive-RAG answers."""
    index = index_identity(recipe)
    return Fingerprint.of(
        corpus=index["corpus"],
        retriever=retriever_text(index),
        topk=recipe.data.rag_topk,
        generator=recipe.generator.client,
        layout=recipe.data.rag_layout,
        judge=recipe.judge,
        window=generator_window(recipe),
    )
