"""Measures questions per second of `s3-agent eval` at concurrency 64, and its share of a bare client's rate.

The endpoints are one server process that answers immediately with constants: two policy calls, two retrievals and one
answer per question, as in s3. Bare clients send the same requests (recorded from an evaluation) at the same concurrency
and do nothing else: no agent, no tokenizer, no files, no scores. Everything that is measured is one process. Rounds
alternate; the best of each counts.

`share_of_bare_client` compares with httpx, as one would use it; an evaluation sends through aiohttp, which is several
times faster, and `share_of_bare_aiohttp` compares with aiohttp alone. `over_before` is the rate over that of another
working tree (`--before`), which runs in the same rounds; `same_results` says whether both wrote the same texts,
answers, scores and counts. `cpu_ms` is processor time per question. `others_share` is the share of the machine that
other programs took.

With `--memory N`, the whole command is then run on N questions in a process of its own, which reports its memory at a
quarter of them and at the end (`rss_mb`), and after the table is made.

    .venv/bin/python benchmarks/evaluation.py [--questions 2000] [--rounds 3] [--before FOLDER] [--memory 20000]
"""

import argparse
import asyncio
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.gateway_ceiling import busy  # noqa: E402
from s3_agent import event_loop  # noqa: E402
from s3_agent.agl.cpu.precision import processor_name  # noqa: E402
from s3_agent.clients.connections import async_client  # noqa: E402
from s3_agent.clients.tokenizer import load_tokenizer  # noqa: E402
from s3_agent.embedded import NANO_POLICY  # noqa: E402
from s3_agent.evaluation import job  # noqa: E402
from s3_agent.evaluation.pipeline import Pipeline  # noqa: E402
from s3_agent.evaluation.players import contestants_of  # noqa: E402
from s3_agent.evaluation.run import evaluate_all, units_of  # noqa: E402
from s3_agent.evaluation.services import policy_client, services_of  # noqa: E402
from s3_agent.processes.ports import reserve_port  # noqa: E402
from s3_agent.recipe import HOST, Recipe, load_recipe  # noqa: E402
from s3_agent.types import Task  # noqa: E402

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


async def _at_once(requests: Sequence[tuple[str, str, bytes]], send: Callable[..., Awaitable[Any]]) -> float:
    """Seconds that `send` takes for the requests, 64 at a time."""
    waiting = iter(requests)

    async def work() -> None:
        for method, url, body in waiting:
            await send(method, url, body)

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(CONCURRENCY):
            group.create_task(work())
    return time.perf_counter() - started


HEADERS = {"content-type": "application/json"}


async def bare_httpx(requests: Sequence[tuple[str, str, bytes]]) -> float:
    """Seconds that httpx takes to send the requests and to decode the responses."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=CONCURRENCY * 2)
    async with httpx.AsyncClient(timeout=60.0, limits=limits) as http:

        async def send(method: str, url: str, body: bytes) -> None:
            (await http.request(method, url, content=body, headers=HEADERS)).json()

        return await _at_once(requests, send)


async def bare_aiohttp(requests: Sequence[tuple[str, str, bytes]]) -> float:
    """The same for aiohttp."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:

        async def send(method: str, url: str, body: bytes) -> None:
            async with http.request(method, url, data=body, headers=HEADERS) as response:
                json.loads(await response.read())

        return await _at_once(requests, send)


# Runs in a process of its own with the package of any working tree. Each line that it reads is a round.
ROUNDS = """
import asyncio, hashlib, json, os, sys, tempfile, time
from pathlib import Path
from benchmarks import evaluation as it
from s3_agent.clients.connections import async_client
it._client = lambda hooks=None: async_client(timeout=60.0)  # where it does not use the product's client
try:
    from s3_agent.event_loop import run
except ImportError:
    run = asyncio.run
assert it.__file__.startswith(os.getcwd()), it.__file__
recipe, tasks = it.load_recipe("cpu", json.loads(sys.argv[1])), it._tasks(int(sys.argv[2]))
for _ in sys.stdin:
    with tempfile.TemporaryDirectory() as folder:
        cpu = time.process_time()
        seconds = run(it.evaluated(recipe, Path(folder), tasks))
        cpu = time.process_time() - cpu
        rows = sorted(({**json.loads(line), "timings": None} for line in open(Path(folder) / "results.jsonl")), key=str)
        known = [[row[name] for name in ("agent", "answer", "scores", "counts", "shown")] for row in rows]
        known += [
            [row["episode"]["prompt"], [turn["response"] + turn["observation"] for turn in row["episode"]["turns"]]]
            for row in rows
        ]
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
    print(json.dumps([seconds, cpu, digest]), flush=True)
"""


class Rounds:
    """The evaluation of a working tree, one round at a time."""

    def __init__(self, tree: Path, overrides: Sequence[str], questions: int) -> None:
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        command = [sys.executable, "-c", ROUNDS, json.dumps(overrides), str(questions)]
        self.process = subprocess.Popen(
            command, cwd=tree, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.seconds: list[float] = []
        self.cpu: list[float] = []
        self.results = ""

    def play(self, *, counts: bool) -> None:
        """One round."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        seconds, cpu, self.results = json.loads(self.process.stdout.readline())
        if counts:
            self.seconds.append(seconds)
            self.cpu.append(cpu)


def _memory(overrides: Sequence[str], url: str, questions: int) -> dict[str, Any]:
    """The memory of the whole command, in MB by what was finished; runs in a process of its own."""
    me, found = psutil.Process(), dict[str, float]()
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "questions.jsonl"
        data.write_text("".join(task.model_dump_json() + "\n" for task in _tasks(questions)), encoding="utf-8")
        finished = itertools.count(1)
        numbers_of = job.numbers_of

        def noted(result: Any) -> Any:
            if (number := next(finished)) in (questions // 20, questions // 4, questions // 2, questions):
                found[str(number)] = round(me.memory_info().rss / 1e6, 1)
            return numbers_of(result)

        job.numbers_of = noted
        request = job.EvaluationRequest(
            agents=["s3"], data=data, policies={"s3": f"{url}/v1"}, out=Path(name) / "out", plain=True
        )
        started = time.perf_counter()
        with redirect_stdout(StringIO()):
            assert job.evaluate_job(load_recipe("cpu", overrides), request) == 0
        seconds = time.perf_counter() - started
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        stages = sum(path.stat().st_size for path in (Path(name) / "out" / "stages").iterdir())
    return {
        "rss_mb": found,
        "most_mb": round(most, 1),
        "command_s": round(seconds, 1),
        "stages_mb": round(stages / 1e6),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", type=Path, help="another working tree, to compare with")
    parser.add_argument("--memory", type=int, default=0, help="questions of the measurement of memory")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        import uvicorn

        return uvicorn.run(Instant(), host=HOST, port=options.serve, log_level="error", access_log=False)
    if options.memory_of:
        url = options.memory_of
        return print(json.dumps(_memory(_overrides(url), url, options.memory)))
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
        print(json.dumps(_measure(f"http://{HOST}:{port}", options), indent=1))
    finally:
        server.terminate()
        server.wait()


def _overrides(url: str) -> list[str]:
    return [f"retriever.url={url}", f"generator.url={url}/v1", "generator.model=instant"]


def _measure(url: str, options: argparse.Namespace) -> dict[str, Any]:
    questions, requests = options.questions, list[Any]()
    with tempfile.TemporaryDirectory() as folder:  # the bare clients send its requests
        recipe = load_recipe("cpu", _overrides(url))
        event_loop.run(evaluated(recipe, Path(folder), _tasks(questions), requests))
    trees = [ROOT, *([options.before.resolve()] if options.before else [])]
    builds = [Rounds(tree, _overrides(url), questions) for tree in trees]
    for build in builds:
        build.play(counts=False)
    bare: dict[str, list[float]] = {"httpx": [], "aiohttp": []}
    ours, everything, began = *busy(), time.monotonic()
    for _ in range(options.rounds):
        for build in builds:
            build.play(counts=True)
        bare["httpx"].append(asyncio.run(bare_httpx(requests)))
        bare["aiohttp"].append(event_loop.run(bare_aiohttp(requests)))
    whole = (time.monotonic() - began) * (os.cpu_count() or 1)
    ours_after, everything_after = busy()
    others = max(0.0, everything_after - everything - (ours_after - ours))
    rates = {name: questions / min(seconds) for name, seconds in bare.items()}
    now, *before = (questions / min(build.seconds) for build in builds)
    found = {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "others_share": round(others / whole, 3),
        "concurrency": CONCURRENCY,
        "questions": questions,
        "requests_a_question": round(len(requests) / questions, 2),
        "questions_per_s": round(now, 1),
        "cpu_ms": round(1e3 * min(builds[0].cpu) / questions, 2),
        "bare_client_questions_per_s": round(rates["httpx"], 1),
        "share_of_bare_client": round(now / rates["httpx"], 3),
        "bare_aiohttp_questions_per_s": round(rates["aiohttp"], 1),
        "share_of_bare_aiohttp": round(now / rates["aiohttp"], 3),
    }
    if before:
        found |= {
            "before_questions_per_s": round(before[0], 1),
            "before_cpu_ms": round(1e3 * min(builds[1].cpu) / questions, 2),
            "before_share_of_bare_client": round(before[0] / rates["httpx"], 3),
            "over_before": round(now / before[0], 2),
            "same_results": builds[0].results == builds[1].results,
        }
    for build in builds:
        build.process.stdin.close()  # pyright: ignore[reportOptionalMemberAccess]
        build.process.wait()
    names = ("evaluation", "before")
    seconds = {name: build.seconds for name, build in zip(names, builds, strict=False)} | bare
    found["all_rounds_s"] = {name: [round(one, 2) for one in each] for name, each in seconds.items()}
    if options.memory:
        command = [sys.executable, __file__, "--memory", str(options.memory), "--memory-of", url]
        told = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
        found["memory"] = {"questions": options.memory, **json.loads(told)}
    return found


if __name__ == "__main__":
    main()
