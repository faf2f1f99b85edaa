"""Fake rerank services behind real HTTP: a score for each text by a plain function, in each contract that we speak."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, Any]


def plain_score(query: str, text: str) -> float:
    """Words of the query that the text holds, minus a hundredth for each word of the text."""
    words = text.lower().split()
    return float(len(set(query.lower().split()) & set(words))) - 0.01 * len(words)


def cohere(body: Any) -> Answer:
    """The best first, without the texts, as Cohere answers."""
    scored = [(plain_score(body["query"], text), number) for number, text in enumerate(body["documents"])]
    best = sorted(scored, key=lambda one: -one[0])[: body["top_n"]]
    return 200, {"id": "x", "results": [{"index": number, "relevance_score": score} for score, number in best]}


def tei(body: Any) -> Answer:
    """A bare list. More texts than its limit are refused, as Text Embeddings Inference does."""
    if len(body["texts"]) > 32:
        return 422, {"error": "batch size 33 > maximum allowed batch size 32", "error_type": "Validation"}
    scores = [plain_score(body["query"], text) for text in body["texts"]]
    order = sorted(range(len(scores)), key=lambda number: -scores[number])
    return 200, [{"index": number, "score": scores[number]} for number in order]


def search_r1(body: Any) -> Answer:
    """As Search-R1's server: the texts themselves, as its model reads them."""
    [query], [documents] = body["queries"], body["documents"]
    texts = []
    for document in documents:
        title, _, text = document["contents"].partition("\n")
        texts.append(f"(Title: {title}) {text}")
    scored = sorted(((text, plain_score(query, text)) for text in texts), key=lambda one: -one[1])
    return 200, {"result": [[{"document": text, "score": score} for text, score in scored[: body["rerank_topk"]]]]}


class RerankService:
    """What a running fake was asked; `answer` may be replaced, and `delay_s` waits before each answer."""

    def __init__(self, answer: Callable[[Any], Answer]) -> None:
        self.answer = answer
        self.asked: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.delay_s = 0.0
        self.url = ""


@contextmanager
def serving_reranker(answer: Callable[[Any], Answer]) -> Iterator[RerankService]:
    """A fake on a free port of this machine."""
    service = RerankService(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            service.asked.append(body)
            service.headers.append({name.lower(): value for name, value in self.headers.items()})
            time.sleep(service.delay_s)
            status, answer = service.answer(body)
            content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    service.url = f"http://127.0.0.1:{server.server_address[1]}/rerank"
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
