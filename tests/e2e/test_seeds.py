"""The vLLM servers that we start on a CPU: a request's seed decides its tokens, in any company."""

import asyncio
import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from s3_agent.embedded import NANO_POLICY
from s3_agent.processes.ports import reserve_port
from s3_agent.processes.run_folder import Run
from s3_agent.processes.services import POLICY_NAME, policy_part
from s3_agent.processes.stack import Stack
from s3_agent.recipe import HOST

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

PIECE = 64  # tokens of prompt that the server reads at a time
SEEDED: list[dict[str, object]] = [
    {"prompt": [100 + number] * (PIECE + 40 * number), "seed": number} for number in range(8)
]
OTHERS: list[dict[str, object]] = [{"prompt": [200 + number] * 90} for number in range(4)]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    run = Run(tmp_path_factory.mktemp("seeds") / "run")
    run.create()
    port = reserve_port("policy", 0)
    part = policy_part(Path(NANO_POLICY), run, port=port)
    pieces = ("--max-num-batched-tokens", str(PIECE), "--no-enable-prefix-caching")
    part = replace(part, command=[*part.command, *pieces])
    with Stack([part], run_id=f"seeds-{secrets.token_hex(4)}") as stack:
        stack.run()
        yield f"http://{HOST}:{port}/v1/completions"
        stack.ended_well()


async def _texts(url: str, requests: list[dict[str, object]]) -> list[str]:
    async with httpx.AsyncClient(timeout=120.0) as http:
        body = {"model": POLICY_NAME, "max_tokens": 24, "temperature": 1.0, "top_p": 0.95, "ignore_eos": True}
        answers = await asyncio.gather(*(http.post(url, json={**body, **request}) for request in requests))
    return [answer.raise_for_status().json()["choices"][0]["text"] for answer in answers]


async def test_a_seed_gives_the_same_tokens_alone_and_among_requests_without_one(url: str) -> None:
    alone = [(await _texts(url, [request]))[0] for request in SEEDED]
    together = await _texts(url, [*OTHERS, *SEEDED, *OTHERS])
    assert together[len(OTHERS) : -len(OTHERS)] == alone
    assert len(set(alone)) == len(alone)
    assert together[: len(OTHERS)] != together[-len(OTHERS) :]  # without a seed the same prompt is sampled anew
