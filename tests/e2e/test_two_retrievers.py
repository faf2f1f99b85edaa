"""A training over two of our retrieval servers, one of which is killed in the middle and started again."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from s3_agent.data.tasks import read_jsonl
from s3_agent.evaluation.summary import Summary
from s3_agent.processes.commands import retriever_command, write_retriever_files
from s3_agent.recipe import load_recipe
from s3_agent.rollout.episode_log import EpisodeRecord
from tests.e2e.conftest import QUESTIONS, ROLLOUTS, ROOT, Services, train
from tests.served_corpus import Restartable, free_port

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

VALIDATION = 4
STEPS = 2
WITHIN_S = 300.0


def retriever(services: Services) -> Restartable:
    """A server over the corpus and the index that `services` has built."""
    recipe = load_recipe("cpu", [f"prepared={ROOT / 'prepared'}"])
    write_retriever_files(recipe)
    port = free_port()
    return Restartable(retriever_command(recipe, port=port), port)


@contextmanager
def killed_in_the_middle(first: Restartable, second: Restartable) -> Iterator[list[str]]:
    """While the block runs, `second` is killed and started again; yields what has happened, in order."""
    ended = threading.Event()
    happened: list[str] = []

    def more(server: Restartable, count: float) -> bool:
        wanted = server.requests() + count
        while server.requests() < wanted:
            if ended.wait(0.1):
                return False
        return True

    def work() -> None:
        if more(second, 8):
            second.kill()
            happened.append("killed")
            if more(first, 8):
                happened.append("the other one answers")
                second.start()
                second.ready()
                if more(second, 1):
                    happened.append("used again")

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield happened
    finally:
        ended.set()
        thread.join(WITHIN_S)
        assert not thread.is_alive()


@pytest.mark.slow
def test_a_retriever_that_is_killed_beside_another_costs_no_rollout_and_no_attempt(
    services: Services, tasks: Path, tmp_path: Path
) -> None:
    servers = [retriever(services) for _ in range(2)]
    try:
        for server in servers:
            server.ready()
        urls = ",".join(server.url for server in servers)
        sizes = [f"trainer.steps={STEPS}", f"data.validation_size={VALIDATION}"]
        with killed_in_the_middle(*servers) as happened:
            run = train(services, tasks, tmp_path, f"retriever.url={urls}", *sizes)
    finally:
        for server in servers:
            server.kill()
    assert happened == ["killed", "the other one answers", "used again"]
    summary = Summary.model_validate_json(run.summary.read_text())
    assert (summary.steps, summary.lost_rollouts, summary.rows_per_rollout) == (STEPS, 0, 1.0)
    records = [EpisodeRecord.model_validate(row) for row in read_jsonl(run.episodes)]
    played = sum(record.is_train for record in records)
    assert played == STEPS * QUESTIONS * ROLLOUTS
    assert [record.failures for record in records if record.failures or record.state != "succeeded"] == []
    assert "a retriever is left out" in (run.logs / "workers.log").read_text()
