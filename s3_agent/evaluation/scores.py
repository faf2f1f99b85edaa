"""Computes the scores and counts of one question from the results of its stages. Pure functions."""

from collections.abc import Mapping, Sequence

from s3_agent.recipe import Price
from s3_agent.rewards.answer_match import span_match
from s3_agent.types import Episode, Passage


def holds_answer(passages: Sequence[Passage], golds: Sequence[str]) -> bool:
    """Whether the tokens of a gold answer occur in sequence in the title or text of one of the passages."""
    return any(span_match(f"{passage.title}\n{passage.text}", golds) for passage in passages)


def recall_by_turn(episode: Episode, golds: Sequence[str]) -> tuple[bool, ...]:
    """For each retrieval, the initial one first: whether a gold answer occurs in what was retrieved so far."""
    retrieved = [episode.initial_passages, *(turn.passages for turn in episode.turns if turn.passages is not None)]
    found, recalls = False, []
    for passages in retrieved:
        found = found or holds_answer(passages, golds)
        recalls.append(found)
    return tuple(recalls)


def counts_of(episode: Episode, answered: Mapping[str, int | None]) -> dict[str, int]:
    """Searches, turns, tokens, and whether the generator's answer was cut at its token limit.

    Tokens that no server counted are left out; the prompt of every call counts in full.
    """
    counts = {
        "searches": episode.searches,
        "turns": len(episode.turns),
        "policy_prompt_tokens": sum(turn.prompt_tokens for turn in episode.turns),
        "policy_response_tokens": sum(turn.response_tokens for turn in episode.turns),
    }
    for name in ("prompt_tokens", "response_tokens"):
        if (tokens := answered.get(name)) is not None:
            counts[f"generator_{name}"] = tokens
    if (cut := answered.get("cut")) is not None:
        counts["answer_cut"] = int(cut)
    return counts


def cost_of(counts: Mapping[str, int], *, models: Mapping[str, str], prices: Mapping[str, Price]) -> float | None:
    """US dollars for one question, None if a price or a count is missing. `models` maps policy and generator."""
    total = 0.0
    for who, model in models.items():
        price = prices.get(model)
        read, wrote = counts.get(f"{who}_prompt_tokens"), counts.get(f"{who}_response_tokens")
        if price is None or read is None or wrote is None:
            return None
        total += (read * price.prompt + wrote * price.response) / 1e6
    return total
