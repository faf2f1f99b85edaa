"""A fake of OpenAI's embeddings contract behind real HTTP: the vector of a text is a plain function of it."""

import base64
import hashlib
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.rerank_services import Answer, RerankService, serving_reranker

DIMENSION = 8


def plain_vector(text: str) -> list[float]:
    """Eight numbers from a hash of the text, as float32 holds them."""
    numbers = [byte / 64 - 2 for byte in hashlib.sha256(text.encode()).digest()[:DIMENSION]]
    return list(struct.unpack(f"<{DIMENSION}f", struct.pack(f"<{DIMENSION}f", *numbers)))


def embeddings(body: Any) -> Answer:
    """In any order, as base64 of little-endian float32 or as numbers; an empty text is refused."""
    if not all(body["input"]):
        return 400, {"error": {"message": "input can not be an empty string"}}
    data = []
    for number, text in enumerate(body["input"]):
        vector: Any = plain_vector(text)
        if body["encoding_format"] == "base64":
            vector = base64.b64encode(struct.pack(f"<{DIMENSION}f", *vector)).decode()
        data.append({"object": "embedding", "index": number, "embedding": vector})
    return 200, {"object": "list", "data": data[::-1], "model": body["model"], "usage": {"total_tokens": 0}}


@contextmanager
def serving_embeddings() -> Iterator[RerankService]:
    """A fake on a free port; its `url` is that of the base."""
    with serving_reranker(embeddings) as running:
        running.url = running.url.removesuffix("/rerank") + "/v1"
        yield running
