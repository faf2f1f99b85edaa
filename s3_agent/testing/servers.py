"""The fakes behind real HTTP on 127.0.0.1, each in a thread of this process. Needs FastAPI and uvicorn (`retriever`).

A fake that fails answers 500, as a server whose model crashed would.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import uvicorn
from fastapi import Body, FastAPI, HTTPException

from s3_agent.clients.model_server import MOST_STOPS
from s3_agent.clients.policy import Completion
from s3_agent.errors import BoundaryError
from s3_agent.testing.fakes import FakeGenerator, FakePolicy, FakeRetriever
from s3_agent.types import Passage

START_WITHIN_S = 20.0
OPENAI_FIELDS = frozenset(
    {"model", "messages", "temperature", "top_p", "max_tokens", "max_completion_tokens", "stop", "seed", "n"}
    | {"presence_penalty", "frequency_penalty", "logprobs", "return_token_ids"}  # the last is Agent Lightning's
)

JsonBody = Annotated[dict[str, Any], Body()]


def policy_app(
    policy: FakePolicy, *, context_tokens: int | None = None, shortens: bool = False, vllm: bool = False
) -> FastAPI:
    """`/v1/completions` as vLLM serves it, with token ids in, token ids and log-probs out; `/v1/chat/completions` as
    hosted models are served, with the stop string removed. A fifth stop string is refused.

    With `context_tokens` it reports a window of that many tokens, counts prompts (`/tokenize`) and refuses what does
    not fit, or with `shortens` answers with fewer tokens than it was asked for, as newer vLLM does. With `vllm`,
    `/models` says that it is vLLM; without, it refuses chat requests with fields that OpenAI's API does not have.
    """
    app = FastAPI()
    template = len(policy.tokenizer.chat(""))

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        model: dict[str, Any] = {"id": "fake-policy", "object": "model", "owned_by": "vllm" if vllm else "fakes"}
        if context_tokens is not None:
            model["max_model_len"] = context_tokens
        return {"object": "list", "data": [model]}

    def size(body: dict[str, Any]) -> int:
        if "messages" in body:
            return sum(len(policy.tokenizer.encode(message["content"])) + template for message in body["messages"])
        prompt = body["prompt"]
        return len(policy.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt)

    @app.post("/tokenize")
    async def tokenize(body: JsonBody) -> dict[str, int]:
        if context_tokens is None:
            raise HTTPException(404)
        return {"count": size(body)}

    async def complete(asked: list[int], body: dict[str, Any]) -> Completion:
        most, stop = body["max_tokens"], body["stop"]
        if len(stop) > MOST_STOPS:
            raise HTTPException(400, detail=f"at most {MOST_STOPS} stop strings")
        if context_tokens is not None and size(body) + most > context_tokens:
            if not shortens or size(body) >= context_tokens:
                raise HTTPException(400, detail=f"the maximum context length is {context_tokens} tokens")
            most = context_tokens - size(body)
        with _server_errors():
            return await policy.complete(asked, max_tokens=most, stop=stop)

    @app.post("/v1/chat/completions")
    async def chat(body: JsonBody) -> dict[str, Any]:
        if not vllm and (unknown := sorted(body.keys() - OPENAI_FIELDS)):
            raise HTTPException(400, detail=f"unknown fields: {unknown}")
        completion = await complete(policy.tokenizer.encode(body["messages"][-1]["content"]), body)
        text = policy.tokenizer.decode(completion.token_ids)
        for mark in body["stop"]:
            text = text.partition(mark)[0]
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": completion.finish_reason}
        counted = {"prompt_tokens": size(body), "completion_tokens": len(completion.token_ids)}
        usage = {**counted, "total_tokens": sum(counted.values())}
        return {"object": "chat.completion", "model": body["model"], "choices": [choice], "usage": usage}

    @app.post("/v1/completions")
    async def completions(body: JsonBody) -> dict[str, Any]:
        prompt = body["prompt"]
        asked = policy.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        choices = []
        for index in range(body.get("n") or 1):
            completion = await complete(asked, body)
            ids = list(completion.token_ids)
            choices.append(
                {
                    "index": index,
                    "text": policy.tokenizer.decode(ids),
                    "finish_reason": completion.finish_reason,
                    "prompt_token_ids": asked,
                    "token_ids": ids,
                    "logprobs": {"token_logprobs": [-1.0] * len(ids)} if body.get("logprobs") else None,
                }
            )
        return {"object": "text_completion", "model": body["model"], "choices": choices}

    return app


def retriever_app(retriever: FakeRetriever) -> FastAPI:
    """`/retrieve` as the retrieval server answers it."""
    app = FastAPI()

    @app.post("/retrieve")
    async def retrieve(body: JsonBody) -> dict[str, Any]:
        with _server_errors():
            found = [await retriever.retrieve(query, topk=body["topk"]) for query in body["queries"]]
        return {"result": [[{"document": passage.model_dump(), "score": 1.0} for passage in hits] for hits in found]}

    return app


def generator_app(generator: FakeGenerator, *, context_tokens: int | None = None) -> FastAPI:
    """`/v1/chat/completions`; the fake sees all but the last message as one passage.

    With `context_tokens` it has a window of that many bytes, reports it as vLLM does, and refuses longer prompts.
    """
    app = FastAPI()

    def size(body: dict[str, Any]) -> int:
        return sum(len(message["content"].encode()) for message in body["messages"])

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        if context_tokens is None:
            raise HTTPException(404)
        return {"object": "list", "data": [{"id": "fake", "max_model_len": context_tokens}]}

    @app.post("/tokenize")
    async def tokenize(body: JsonBody) -> dict[str, int]:
        return {"count": size(body)}

    @app.post("/v1/chat/completions")
    async def chat(body: JsonBody) -> dict[str, Any]:
        if context_tokens is not None and size(body) > context_tokens:
            raise HTTPException(400, detail=f"the context holds {context_tokens} tokens")
        *before, last = (message["content"] for message in body["messages"])
        with _server_errors():
            text = await generator.answer(last, [Passage(id="", title="", text=part) for part in before])
        return {
            "object": "chat.completion",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}}],
        }

    return app


@contextmanager
def _server_errors() -> Iterator[None]:
    try:
        yield
    except BoundaryError as error:
        raise HTTPException(500, detail=str(error)) from error


@contextmanager
def serve(app: FastAPI, *, port: int = 0) -> Iterator[str]:
    """Serve `app` while the block runs; yields its address."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + START_WITHIN_S
    while not server.started:
        if time.monotonic() > deadline or not thread.is_alive():
            raise TimeoutError("the fake server did not start")
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=START_WITHIN_S)
