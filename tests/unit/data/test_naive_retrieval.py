"""The passages of all questions, when the retrieval server refuses some of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from s3_agent.data.naive_rag.passages import BATCH, retrieve_all
from s3_agent.errors import RetrieverError
from s3_agent.types import Passage, Task

FOUND = Passage(id="1", title="Norway", text="Krone.")


class FakeRefusing:
    """A fake of our server, which refuses a request of refused queries only, or of a `strict` one, which refuses a
    request with any of them.
    """

    def __init__(self, *, strict: bool, status: int = 422) -> None:
        self.strict, self.status, self.requests = strict, status, 0

    async def retrieve_batch(self, queries: Sequence[str], *, topk: int) -> list[tuple[Passage, ...]]:
        self.requests += 1
        refused = ["bad" in query for query in queries]
        if all(refused) or (self.strict and any(refused)):
            raise RetrieverError("the query can not be searched", status=self.status)
        return [() if bad else (FOUND,) * topk for bad in refused]


async def retrieved(path: Path, names: Sequence[str], retriever: Any) -> dict[str, int]:
    """The number of passages of each question."""
    tasks = [Task(id=name, question=f"{name}?", golden_answers=("krone",)) for name in names]
    said: list[tuple[int, int]] = []
    options: dict[str, Any] = {"made_of": {}, "concurrency": 4, "done": lambda *progress: said.append(progress)}
    await retrieve_all(tasks, retriever=retriever, topk=2, path=path, **options)
    assert said[-1] == (len(tasks), len(tasks))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["id"] for row in rows] == list(names)
    return {row["id"]: len(row["passages"]) for row in rows}


@pytest.mark.parametrize("strict", [False, True])
async def test_a_question_that_the_server_refuses_finds_nothing_and_spoils_no_other(
    strict: bool, tmp_path: Path
) -> None:
    # The last question is a request of its own, and so is the refused half of the first one.
    names = [*(f"{'bad' if n in (3, 40) else 'good'}{n}" for n in range(BATCH)), "bad"]
    found = await retrieved(tmp_path / "retrieved.jsonl", names, FakeRefusing(strict=strict))
    assert found == {name: 0 if "bad" in name else 2 for name in names}


MANY = [f"bad{n}" for n in range(20 * BATCH)]


@pytest.mark.parametrize(("names", "status"), [(["bad1", "bad2"], 422), (MANY, 422), (["good", "bad"], 403)])
async def test_a_server_that_refuses_every_question_or_the_key_is_an_error(
    names: list[str], status: int, tmp_path: Path
) -> None:
    server = FakeRefusing(strict=True, status=status)
    with pytest.raises(RetrieverError, match="can not be searched"):
        await retrieved(tmp_path / "retrieved.jsonl", names, server)
    assert not (tmp_path / "retrieved.jsonl").exists()
    assert server.requests <= 5 * BATCH
