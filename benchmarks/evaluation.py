"""Measures questions per second of `s3-agent eval` at concurrency 64, and its share of a bare client's rate.

The endpoints are one server process that answers immediately with constants: two policy calls, two retrievals and one
answer per question, as in s3. The bare client sends the same requests (recorded from an evaluation) with httpx, at the
same concurrency, and does nothing else: no agent, no tokenizer, no files, no scores. Rounds alternate; the best of each
counts.

    .venv/bin/python benchmarks/evaluation.py [--questions 2000] [--rounds 3]
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx

from s3_agent.clients.connections import async_client
from s3_agent.clients.tokenizer import load_tokenizer
from s3_agent.embedded import NANO_POLICY
from s3_agent.evaluation import job
from s3_agent.evaluation.pipeline import Pipeline
from s3_agent.evaluation.players import contestants_of
from s3_agent.evaluation.run import evaluate_all, units_of
from s3_agent.evaluation.services import policy_client, services_of
from s3_agent.processes.ports import reserve_port
from s3_agent.recipe import HOST, Recipe, load_recipe
from s3_agent.types import Task

CONCURRENCY = 64
TEXT = "The currency of the country is the krone, which is divided into a hundred parts. " * 3


class Instant:
    """The policy, the retriever and the generator as one ASGI application."""

    def __init__(self) -> None:
        tokenizer = load_tokenizer(str(NANO_POLICY))
        search = tokenizer.encode('<search_complete>False</search_complete>\n<query>{"query": "krone"}</query>')
        finish = tokenizer.encode("<important_info>[1]</important_info>\n<search_complete>True</search_complete>")
        self._searched = ",".join(map(str, search)).encode()  # as it occurs in the next prompt
        self._turns = [
            json.dumps({"choices": [{"token_ids": ids, "finish_reason": "stop"}]}).encode() for ids in (search, finish)
        ]
        document = {"id": "1", "title": "Norway", "text": TEXT}
        hits = [{"document": {**document, "id": str(number)}, "score": 1.0} for number in range(3)]
        self._found = json.dumps({"result": [hits]}).encode()
        usage = {"prompt_tokens": 200, "completion_tokens": 4}
        message = {"message": {"role": "assistant", "content": "the krone"}, "finish_reason": "stop"}
        self._answer = json.dumps({"choices": [message], "usage": usage}).encode()
        self._models = json.dumps({"data": [{"id": "instant", "max_model_len": 4096}]}).encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        path = scope["path"]
        if path.endswith("/retrieve"):
            reply = self._found
        elif path.endswith("/chat/completions"):
            reply = self._answer
        elif path.endswith("/completions"):
            reply = self._turns[self._searched in body]
        else:
            reply = self._models
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(reply)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": reply})


def _client(event_hooks: dict[str, list[Any]] | None = None) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=CONCURRENCY * 2)
    return httpx.AsyncClient(timeout=60.0, limits=limits, event_hooks=event_hooks or {})


def _tasks(count: int) -> list[Task]:
    return [
        Task(id=f"q{number}", question=f"What is the currency of country {number}?", golden_answers=("krone",))
        for number in range(count)
    ]


async def evaluated(recipe: Recipe, folder: Path, tasks: Sequence[Task], sent: list[Any] | None = None) -> float:
    """Seconds of an evaluation of s3 on the tasks, into an empty folder; its requests are added to `sent`."""

    async def note(request: httpx.Request) -> None:
        if sent is not None:
            sent.append((request.method, str(request.url), request.content))

    url = str(recipe.generator.url)
    generator = {"kind": "openai", "model": "instant"}
    [contestant] = await asyncio.to_thread(
        contestants_of,
        recipe,
        ["s3"],
        given={"s3": url},
        runs=(),
        sampling="published",
        generator=generator,
        key=None,
    )
    conditions = job.conditions_of(recipe, generator)
    async with async_client(timeout=60.0) as http:
        http.event_hooks = {"request": [note] if sent is not None else []}
        policy = policy_client(contestant, url, http=http, recipe=recipe)
        services = services_of(recipe, http, {"s3": policy})
        with closing(Pipeline(folder, conditions)) as pipeline, (folder / "results.jsonl").open("w") as file:
            started = time.perf_counter()
            await evaluate_all(
                pipeline,
                units_of([contestant], tasks),
                services,
                concurrency=CONCURRENCY,
                done=lambda result: print(result.model_dump_json(), file=file),
            )
            return time.perf_counter() - started


async def bare(requests: Sequence[tuple[str, str, bytes]]) -> float:
    """Seconds that httpx takes to send the requests, 64 at a time, and to decode the responses."""
    waiting = iter(requests)
    headers = {"content-type": "application/json"}
    async with _client() as http:

        async def work() -> None:
            for method, url, body in waiting:
                (await http.request(method, url, content=body, headers=headers)).json()

        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(CONCURRENCY):
                group.create_task(work())
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        import uvicorn

        return uvicorn.run(Instant(), host=HOST, port=options.serve, log_level="error", access_log=False)
    port = reserve_port("endpoints", 0)
    server = subprocess.Popen([sys.executable, __file__, "--serve", str(port)])
    try:
        with httpx.Client(transport=httpx.HTTPTransport(retries=0)) as http:
            deadline = time.monotonic() + 60
            while True:
                try:
                    http.get(f"http://{HOST}:{port}/v1/models")
                    break
                except httpx.ConnectError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.1)
        print(json.dumps(_measure(port, options.questions, options.rounds), indent=1))
    finally:
        server.terminate()
        server.wait()


def _measure(port: int, questions: int, rounds: int) -> dict[str, Any]:
    url = f"http://{HOST}:{port}"
    recipe = load_recipe("cpu", [f"retriever.url={url}", f"generator.url={url}/v1", "generator.model=instant"])
    tasks, ours, theirs = _tasks(questions), [], []
    requests: list[Any] = []
    for number in range(rounds + 1):  # the first round warms up; the bare client sends its requests
        with tempfile.TemporaryDirectory() as folder:
            seconds = asyncio.run(evaluated(recipe, Path(folder), tasks, requests if number == 0 else None))
        if number:
            ours.append(seconds)
            theirs.append(asyncio.run(bare(requests)))
    best, limit = questions / min(ours), questions / min(theirs)
    return {
        "concurrency": CONCURRENCY,
        "questions": questions,
        "requests_a_question": round(len(requests) / questions, 2),
        "questions_per_s": round(best, 1),
        "bare_client_questions_per_s": round(limit, 1),
        "share_of_bare_client": round(best / limit, 3),
        "all_rounds_s": {"evaluation": [round(one, 2) for one in ours], "bare": [round(one, 2) for one in theirs]},
    }


if __name__ == "__main__":
    main()
