"""Measures how much of a question's evidence an episode found, by trec_eval's own code (`pytrec_eval`).

Four lists are measured, each as a ranking of documents in the order in which they came: what the searches `retrieved`,
what of it was `shown` to the policy, what was `selected`, and what was `handed_on` to the generator. An agent has no
scores, so a list's order is its ranking. None of this reads the answer: whether a passage holds a gold answer is
`answer_recall`.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

from s3_agent.evidence import GoldDocuments, share_found
from s3_agent.types import Episode, Passage

CUTS = (5, 10, 20, 100)
LISTS = ("retrieved", "shown", "selected", "handed_on")
_NAMES = {
    "set_recall": "recall",
    "set_P": "precision",
    **{f"recall_{cut}": f"recall@{cut}" for cut in CUTS},
    "ndcg_cut_10": "ndcg@10",
    "recip_rank": "mrr",
}
"""trec_eval's names of the measures, and ours."""


@cache
def _evaluator(relevance: tuple[int, ...]) -> Any:
    """trec_eval for a question with gold documents of these grades, named 0, 1, …"""
    from pytrec_eval import RelevanceEvaluator

    cuts = ",".join(map(str, CUTS))
    measures = {"set_recall", "set_P", f"recall.{cuts}", "ndcg_cut.10", "recip_rank"}
    return RelevanceEvaluator({"q": {str(number): grade for number, grade in enumerate(relevance)}}, measures)


def measures_of(gold: GoldDocuments, ranking: Sequence[str]) -> dict[str, float]:
    """Recall, precision, recall@k, nDCG@10 and MRR of a ranking of different documents, and how many it has.

    `answer_recall` is the recall of the documents that hold the answer, if it is known which do.
    """
    numbers = {name: str(number) for number, name in enumerate(gold.names)}
    # trec_eval orders by score, and documents of equal score by name: the scores fall with the rank.
    run = {numbers.get(name, f"-{rank}"): float(-rank) for rank, name in enumerate(ranking)}
    found = _evaluator(tuple(gold.relevance.values())).evaluate({"q": run})["q"]
    measured = {ours: found[theirs] for theirs, ours in _NAMES.items()}
    if gold.answers:
        measured["answer_recall"] = share_found(gold.answers, ranking)
    return {**measured, "documents": float(len(ranking))}


def retrievals_of(episode: Episode) -> list[tuple[Passage, ...]]:
    """What each search of an episode found, the initial one first, with the passages that there was no room to show."""
    found = [(*turn.passages, *turn.left_out) for turn in episode.turns if turn.passages is not None]
    return [(*episode.initial_passages, *episode.initial_left_out), *found]


def lists_of(episode: Episode, handed_on: Sequence[Passage] | None) -> dict[str, list[Passage]]:
    """The passages of each list in their order; without `handed_on` if no generator reads them."""
    shown = [passage for turn in episode.turns for passage in turn.passages or ()]
    found = {
        "retrieved": [passage for passages in retrievals_of(episode) for passage in passages],
        "shown": [*episode.initial_passages, *shown],
        "selected": [*episode.selected],
    }
    return found if handed_on is None else {**found, "handed_on": [*handed_on]}


def evidence_at_the_end(gold: GoldDocuments, episode: Episode, handed_on: Sequence[Passage] | None) -> dict[str, float]:
    """The measures of each list, as `selected_recall` or `retrieved_ndcg@10`."""
    return {
        f"{name}_{measure}": value
        for name, passages in lists_of(episode, handed_on).items()
        for measure, value in measures_of(gold, gold.ranking(passages)).items()
    }


def evidence_by_turn(gold: GoldDocuments, episode: Episode) -> tuple[dict[str, float], ...]:
    """For each retrieval, the initial one first: the `recall` of all that was retrieved so far, and the measures of
    this search alone, as `search_precision`.
    """
    so_far: dict[str, None] = {}
    rows: list[dict[str, float]] = []
    for passages in retrievals_of(episode):
        ranking = gold.ranking(passages)
        so_far |= dict.fromkeys(ranking)
        own = measures_of(gold, ranking)
        rows.append(
            {
                "recall": share_found(gold.names, so_far),
                **{f"search_{name}": own[name] for name in ("recall", "precision", "ndcg@10", "mrr")},
            }
        )
    return tuple(rows)
