"""Documents are found by id or title, each once; rewards by evidence ask nobody and agree with plain counting."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3_agent.evidence import GoldDocuments, plain_title
from s3_agent.rewards.evidence import F2, RECALL, f2
from s3_agent.rewards.registry import REWARDS, Scored
from s3_agent.rollout.runner import AgentSettings
from s3_agent.types import Episode, Evidence, Passage, StopReason, Task, Turn


def passage(name: str = "", title: str = "") -> Passage:
    return Passage(id=name, title=title, text="text")


def scored(
    evidence: tuple[Evidence, ...] | None, selected: list[Passage], shown: list[Passage] | None = None
) -> Scored:
    task = Task(id="t", question="q", golden_answers=("a",), evidence=evidence)
    turns = (Turn(response="", passages=tuple(shown or ())), Turn(response="", passages=None))
    episode = Episode(
        agent="s3",
        prompt="",
        initial_passages=(),
        turns=turns,
        selected=tuple(selected),
        stop_reason=StopReason.FINISHED,
    )
    return Scored(task, episode, None, None)


@pytest.mark.parametrize(
    ("written", "other"),
    [
        ('"Shirley Temple"', "Shirley Temple"),
        ("Shirley  Temple\u00a0", "Shirley Temple"),
        ('""Heroes" (album)"', '"Heroes" (album)'),
        ("Ame\u0301lie", "Am\u00e9lie"),
    ],
)
def test_titles_are_compared_without_quotes_spaces_and_composition(written: str, other: str) -> None:
    assert plain_title(written) == plain_title(other)


def test_case_counts_only_for_a_title_that_the_corpus_has_as_it_is() -> None:
    evidence = [Evidence(title="US")]
    assert GoldDocuments(evidence).ranking([passage(title="Us")]) == ["US"]
    exact = GoldDocuments(evidence, exact={"US"})
    assert exact.ranking([passage(title="Us"), passage(title='"US"')]) == ["Us", "US"]


def test_an_id_is_never_cut_and_pieces_count_as_their_document() -> None:
    gold = GoldDocuments([Evidence(id="d1", title="Same"), Evidence(id="d2", pieces=("d2#1", "d2#2"))])
    found = [passage("d1_1", "Same"), passage("d2#2"), passage("d2#1"), passage("d1")]
    assert gold.ranking(found) == ["d1_1", "d2", "d1"]


def test_two_passages_of_one_title_are_one_document() -> None:
    gold = GoldDocuments([Evidence(title="A", answer=False), Evidence(title='"A"', answer=True), Evidence(title="B")])
    assert (gold.names, gold.answers) == (("A", "B"), ("A",))
    assert gold.ranking([passage("1", "C"), passage("2", "A"), passage("3", "A"), passage("4", "C")]) == ["C", "A"]


IDS = st.lists(st.sampled_from([f"d{number}" for number in range(8)]), max_size=12)


@given(st.sets(st.sampled_from([f"d{number}" for number in range(8)]), min_size=1), IDS, IDS, st.data())
def test_rewards_agree_with_counting(
    gold: set[str], selected: list[str], shown: list[str], data: st.DataObject
) -> None:
    answers = data.draw(st.sets(st.sampled_from(sorted(gold))))
    evidence = tuple(Evidence(id=name, answer=name in answers) for name in sorted(gold))
    one = scored(evidence, [*map(passage, selected)], [*map(passage, shown)])
    hits = len(gold & set(selected))
    recall, precision = hits / len(gold), hits / len(set(selected)) if selected else 0.0
    got = RECALL.score(one)
    assert got.value == recall
    assert got.metrics["evidence_precision"] == pytest.approx(precision)
    assert got.metrics["evidence_found"] == len(gold & set(shown)) / len(gold)
    assert ("evidence_answer_recall" in got.metrics) == bool(answers)
    expected = 5 * precision * recall / (4 * precision + recall) if hits else 0.0
    assert F2.score(one).value == pytest.approx(expected) == pytest.approx(f2(precision, recall))


def test_a_task_without_evidence_is_no_zero() -> None:
    with pytest.raises(ValueError, match="evidence"):
        RECALL.score(scored(None, []))


@pytest.mark.parametrize("name", ["evidence_recall", "evidence_f2"])
@pytest.mark.parametrize("agent", ["s3", "search_r1", "ircot"])
def test_every_searcher_can_have_them_and_no_generator_is_asked(name: str, agent: str) -> None:
    settings = AgentSettings.model_validate({"name": agent, "reward": name})
    assert settings.scoring is REWARDS[name] and not settings.asks_generator
    assert replace(settings.scoring, checks_answer=True).needs_evidence
