"""Several runs as one comparison: means over seeds, intervals over questions, controls that can fail."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import wilcoxon

from s3_agent.agl.guard import GuardReport
from s3_agent.errors import ConfigError
from s3_agent.evaluation.comparison import Comparison, TrainedRun, compare, unseen
from s3_agent.evaluation.views.comparison import comparison_markdown, terminal_comparison

QUESTIONS = 60
NAIVE = {f"q{number}": float(number % 3 == 0) for number in range(QUESTIONS)}


@pytest.fixture
def validation(tmp_path: Path) -> Path:
    path = tmp_path / "validation.jsonl"
    rows = [
        {"id": key, "question": f"what is {key}?", "golden_answers": ["a"], "hops": 1 + (rag == 0.0), "rag_score": rag}
        for key, rag in NAIVE.items()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(label: str, seed: int, *, after: float, moved: float = 0.1) -> TrainedRun:
    """Right on the naive questions before; afterwards on a share `after` of all, drawn by the seed."""
    rng = random.Random(seed)
    return TrainedRun(
        name=f"{label}-{seed}",
        label=label,
        seed=seed,
        before=dict(NAIVE),
        after={key: float(rng.random() < after) for key in NAIVE},
        searches_before=0.0,
        searches_after=1.5 if label == "s3" else None,
        reward_curve=[0.1, 0.5],
        moved=moved,
        rollouts=100,
        lost_rollouts=0,
        wall_seconds=60.0,
    )


def compared(validation: Path, *, shuffled_after: float = 0.3, frozen_moved: float = 0.0) -> Comparison:
    runs = [run(label, seed, after=0.9) for seed in (0, 1, 2) for label in ("s3", "search_r1")]
    runs += [run("shuffled", 0, after=shuffled_after), run("frozen", 0, after=0.0, moved=frozen_moved)]
    split = unseen([{"question": "another?", "entity": "Oslo"}], [{"question": "what?", "entity": "Graz"}])
    return compare(runs, validation=validation, shuffled="shuffled", frozen="frozen", split=split)


def test_an_agents_score_is_the_mean_of_its_seeds_question_by_question(validation: Path) -> None:
    found = compared(validation)
    [s3, _] = found.agents
    runs = [one for one in found.runs if one.label == "s3"]
    means = {key: sum(one.after[key] for one in runs) / 3 for key in NAIVE}
    assert s3.seeds == [0, 1, 2]
    assert s3.after.n == QUESTIONS == found.naive_rag.n if found.naive_rag else False
    assert s3.after.mean == pytest.approx(sum(means.values()) / QUESTIONS)
    assert s3.after_by_seed == pytest.approx([sum(one.after.values()) / QUESTIONS for one in runs])
    tested: Any = wilcoxon([round(3 * (means[key] - NAIVE[key])) for key in NAIVE])
    assert s3.gain.p_value == pytest.approx(float(tested.pvalue))
    assert s3.gain.low < s3.gain.gain < s3.gain.high
    assert [(part.hops, part.n) for part in s3.by_hops] == [("1", 20), ("2", 40)]
    assert [part.naive_rag for part in s3.by_hops] == [1.0, 0.0]


def test_runs_that_the_guard_stopped_are_named(validation: Path) -> None:
    guard = GuardReport(reason="validation fell", step=8, stopped=True, best_step=2, best_validation=0.6)
    found = compared(validation)
    assert "guard" not in comparison_markdown(found)
    runs = [run.model_copy(update={"guard": guard}) if run.name == "s3-1" else run for run in found.runs]
    text = comparison_markdown(found.model_copy(update={"runs": runs}))
    assert "## Runs that the guard stopped" in text
    assert "| s3 | 1 | 8 | step 2, by these questions | validation fell |" in text


def steps(label: str, *, before: list[int], after: list[int]) -> list[TrainedRun]:
    """Runs of three seeds that are right on a question as often as told."""
    return [
        run(label, seed, after=0.0).model_copy(
            update={
                side: {key: float(seed < count) for key, count in zip(NAIVE, counts, strict=True)}
                for side, counts in (("before", before), ("after", after))
            }
        )
        for seed in range(3)
    ]


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("down", [1, 2, 3])
def test_steps_of_one_seed_are_ties_wherever_they_begin(validation: Path, at: int, down: int) -> None:
    still = [1] * (QUESTIONS - 32)
    before = [at] * 20 + [down] * 12 + still
    after = [at + 1] * 20 + [down - 1] * 12 + still
    [row] = compare(
        steps("s3", before=before, after=after), validation=validation, shuffled=None, frozen=None, split=unseen([], [])
    ).agents
    assert (row.gain.test, row.gain.p_value) == ("wilcoxon", pytest.approx(0.1573, abs=5e-5))
    assert row.gain.gain == pytest.approx(8 / 3 / QUESTIONS)


def test_as_many_steps_up_as_down_are_no_gain_at_all(validation: Path) -> None:
    counts = [0, 1, 2, 3] * (QUESTIONS // 4)
    found = compare(
        steps("s3", before=counts, after=counts[::-1]),
        validation=validation,
        shuffled=None,
        frozen=None,
        split=unseen([], []),
    )
    assert (found.agents[0].gain.gain, found.agents[0].gain.p_value) == (0.0, 1.0)


def test_the_same_agent_twice_is_no_difference(validation: Path) -> None:
    [pair] = compared(validation).pairs
    assert (pair.first, pair.second, pair.gain, pair.p_holm) == ("s3", "search_r1", 0.0, 1.0)


def test_a_sound_comparison_says_so(validation: Path) -> None:
    found = compared(validation)
    assert found.sound
    assert all(check.holds for check in found.checks)
    assert len(found.checks) == 1 + 2 * 2 + 2


@pytest.mark.parametrize(
    ("fault", "named"), [({"shuffled_after": 0.95}, "shuffled"), ({"frozen_moved": 1e-7}, "rate 0")]
)
def test_a_control_that_fails_makes_it_unsound(validation: Path, fault: dict[str, float], named: str) -> None:
    found = compared(validation, **fault)
    [broken] = [check for check in found.checks if not check.holds]
    assert named in broken.name
    assert not found.sound
    assert "DOES NOT HOLD" in comparison_markdown(found)


def test_questions_and_entities_of_training_are_found_in_validation() -> None:
    train = [{"question": "Where is Graz?", "entity": "Graz"}, {"question": "no entity"}]
    assert unseen(train, [{"question": "where is graz? ", "entity": "Linz"}]).measured.startswith("1 of 1 questions")
    assert not unseen(train, [{"question": "What of Graz?", "entity": "Graz"}]).holds
    assert unseen(train, [{"question": "What of Linz?", "entity": "Linz"}, {"question": "nothing"}]).holds


def test_runs_without_a_common_question_are_refused(validation: Path) -> None:
    one = run("s3", 0, after=0.5)
    lost = one.model_copy(update={"after": {}})
    split = unseen([], [])
    with pytest.raises(ConfigError, match="no question was scored in every run of s3"):
        compare([one, lost], validation=validation, shuffled=None, frozen=None, split=split)


def test_both_views_show_every_row(validation: Path) -> None:
    found = compared(validation)
    text = comparison_markdown(found)
    for label in ("naive RAG", "s3", "search_r1", "shuffled", "frozen"):
        assert f"| {label} |" in text
    assert "0.00 to 1.50" in text
    assert terminal_comparison(found).renderables
