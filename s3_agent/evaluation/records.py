"""The files of an evaluation folder: one line per agent and question, and the settings behind the numbers.

`evaluation.json` holds an EvaluationSetting, `results.jsonl` one EvaluatedTask per line in any order. Tables, reports
and exports are computed from only these two files.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from s3_agent.errors import ConfigError
from s3_agent.types import Episode, Passage, Task

SCORES = ("gen_acc", "exact_match", "f1", "answer_recall")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Failure(_Record):
    """Why a question has no result: the boundary that failed (`policy`, `retriever`, `generator`, `judge`, …)."""

    boundary: str
    message: str


class EvaluatedTask(_Record):
    """The result of one agent on one question. A failed one has a `failure` and no scores: it is missing, never wrong.

    `shown` are the passages that the generator read; empty if the policy's own answer counts. `confidence` is how sure
    the answer says that it is, in percent, if the judge reads that. `scores` has the keys of SCORES, each between 0 and
    1; a task without gold answers has none of them, an agent without an answer only `answer_recall`. `counts` holds
    searches, turns, and tokens by reader or writer
    (`policy_prompt_tokens`, `policy_response_tokens`, `generator_prompt_tokens`, `generator_response_tokens`), and
    `answer_cut`, 1 if the generator's answer ended at its token limit. `recall_by_turn[i]` is true if a gold answer
    occurs in what was retrieved up to the i-th retrieval (0 is the initial one). `evidence` and `evidence_by_turn` hold
    the measures of `s3_agent.evaluation.evidence`; both are empty for a task without evidence that the corpus could
    have. `sample` numbers the samples of one agent on one question from 0. `timings` are seconds by stage;
    `cost_usd` is None if no price is known.
    """

    agent: str
    task: Task
    state: Literal["done", "failed"]
    episode: Episode | None = None
    sample: int = 0
    shown: tuple[Passage, ...] = ()
    answer: str | None = None
    confidence: float | None = None
    scores: dict[str, float] = {}
    counts: dict[str, int] = {}
    recall_by_turn: tuple[bool, ...] = ()
    evidence: dict[str, float] = {}
    evidence_by_turn: tuple[dict[str, float], ...] = ()
    timings: dict[str, float] = {}
    cost_usd: float | None = None
    failure: Failure | None = None


def results_of(path: Path) -> Iterator[EvaluatedTask]:
    """Yield the results of an evaluation one at a time. Raises ConfigError with the wrong line."""
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    yield EvaluatedTask.model_validate_json(line)
                except ValueError as cause:
                    raise ConfigError(
                        f"{path}:{number} is not a result of an evaluation: {str(cause).splitlines()[0]}",
                        remedy="run the evaluation again: it keeps what is finished and computes only the rest",
                    ) from cause
    except OSError as cause:
        raise ConfigError(
            f"{path} holds no results: {cause}", remedy="give the folder of a finished evaluation (s3-agent eval)"
        ) from cause


class EvaluationSetting(_Record):
    """What the numbers of an evaluation depend on.

    `agents` maps an agent's label to its resolved settings, policy model and sampling; `services` describes corpus,
    index, generator and judge; `data` describes the questions (path, hash, count, sampling seed).
    """

    agents: dict[str, dict[str, Any]]
    services: dict[str, Any]
    data: dict[str, Any]
    seed: int
    versions: dict[str, str]
    started_at: float


def read_json(path: Path) -> dict:
    """The JSON object in a file; an empty one if the file is missing or can not be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
