"""Runs a nano policy on the validation questions in this process, with plain transformers and no server.

It checks a new clone in a minute, before a training run: does it follow the protocol, when does it search, does it copy
the right country into its query, and can GRPO still improve it? It uses the real agent, tags and retrieval, so only
sampling differs from a run. Run as `python -m s3_agent.embedded.check_policy`.
"""

import asyncio
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import typer
from transformers import LlamaForCausalLM

from s3_agent.agents.base import Agent, Limits
from s3_agent.agents.s3 import S3Agent
from s3_agent.agents.search_r1 import SearchR1Agent
from s3_agent.clients.policy import Completion, TokenPolicy
from s3_agent.clients.tokenizer import load_tokenizer
from s3_agent.embedded import NANO_POLICIES, VALIDATION
from s3_agent.embedded.scripted import TOPK, PassageFinder
from s3_agent.rewards.answer_match import exact_match, span_match
from s3_agent.types import ActionKind, Episode, Passage, Task

_LIMITS = Limits(
    initial_topk=TOPK,
    topk=TOPK,
    max_searches=2,
    max_new_tokens=48,
    max_observation_tokens=224,
    max_context_tokens=640,
)
# The limits of the recipe `cpu`.
LIMITS = {"s3": _LIMITS, "search_r1": _LIMITS.model_copy(update={"initial_topk": 0})}
AGENTS: dict[str, Agent] = {
    "s3": S3Agent(limits=LIMITS["s3"], prompt="compact"),
    "search_r1": SearchR1Agent(limits=LIMITS["search_r1"], prompt="compact"),
}


class LocalPolicy(TokenPolicy):
    """A policy in this process; temperature 0 is greedy."""

    def __init__(self, folder: Path, *, temperature: float) -> None:
        super().__init__(load_tokenizer(str(folder)))
        self._model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._eos = int(self._model.config.eos_token_id)  # pyright: ignore[reportArgumentType]
        self._temperature = temperature

    @torch.inference_mode()
    async def complete(self, prompt_ids: Sequence[int], *, max_tokens: int, stop: Sequence[str]) -> Completion:
        """Every stop must be one token; stop and EOS stay in the response."""
        ends = {token for text in stop for token in self.tokenizer.encode(text)} | {self._eos}
        written: list[int] = []
        ids, past = torch.tensor([list(prompt_ids)]), None
        while len(written) < max_tokens and not ends.intersection(written[-1:]):
            step: Any = self._model(ids, past_key_values=past, use_cache=True)
            logits, past = step.logits[0, -1], step.past_key_values
            if self._temperature:
                ids = torch.multinomial((logits / self._temperature).softmax(-1), 1)[None]
            else:
                ids = logits.argmax()[None, None]
            written.append(int(ids))
        return Completion(token_ids=tuple(written), finish_reason="stop" if ends & set(written[-1:]) else "length")


class LocalRetriever:
    """The server's BM25 over the embedded corpus, in this process."""

    def __init__(self) -> None:
        self._finder = PassageFinder()

    async def retrieve(self, query: str, *, topk: int) -> tuple[Passage, ...]:
        """At most `TOPK` passages, as the clone saw in training."""
        return tuple(self._finder.retrieve(query)[:topk])


def _share(flags: Iterable[bool]) -> float | None:
    found = list(flags)
    return round(sum(found) / len(found), 3) if found else None


def _valid(episode: Episode) -> Iterable[bool]:
    """For each response: whether an action was parsed and its marks name documents that were shown."""
    shown: Sequence[Passage] = episode.initial_passages
    for turn in episode.turns:
        action = turn.action
        yield (
            action is not None
            and action.kind is not ActionKind.INVALID
            and all(1 <= mark <= len(shown) for mark in action.marked or ())
        )
        shown = turn.passages or ()


def _right(row: dict[str, Any], episode: Episode) -> bool:
    return episode.answer is not None and exact_match(episode.answer, row["golden_answers"])


def measure(played: Sequence[tuple[dict[str, Any], Episode]]) -> dict[str, Any]:
    """Shares, 0 to 1; None if nothing was counted. `gold_selected`: the answer's passage reaches the generator."""
    two = [pair for pair in played if pair[0]["hops"] == 2]
    one = [pair for pair in played if pair[0]["hops"] == 1]
    first = [
        (row, turn.action.query or "")
        for row, episode in two
        if (turn := episode.turns[0]).action is not None and turn.action.kind is ActionKind.SEARCH
    ]

    def gold(pairs: Sequence[tuple[dict[str, Any], Episode]]) -> float | None:
        return _share(
            any(
                passage.title == (row["bridge"] or row["entity"]) and span_match(passage.text, row["golden_answers"])
                for passage in episode.selected
            )
            for row, episode in pairs
        )

    return {
        "questions": len(played),
        "valid_actions": _share(flag for _, episode in played for flag in _valid(episode)),
        "finished": _share(episode.stop_reason.value in ("finished", "answered") for _, episode in played),
        "search_2hop": _share(episode.searches > 0 for _, episode in two),
        "search_1hop": _share(episode.searches > 0 for _, episode in one),
        "copies_bridge": _share(row["bridge"] in query for row, query in first),
        "gold_selected_2hop": gold(two),
        "gold_selected_1hop": gold(one),
        "own_answer_right_2hop": _share(_right(row, episode) for row, episode in two),
        "own_answer_right_1hop": _share(_right(row, episode) for row, episode in one),
        "searches_mean": round(sum(episode.searches for _, episode in played) / max(1, len(played)), 2),
        "selected_mean": round(sum(len(episode.selected) for _, episode in played) / max(1, len(played)), 2),
    }


async def play_all(agent: str, folder: Path, rows: Sequence[dict[str, Any]], *, temperature: float) -> dict[str, Any]:
    """Play each question once and measure."""
    policy, retriever = LocalPolicy(folder, temperature=temperature), LocalRetriever()
    played = []
    for row in rows:
        played.append((row, await AGENTS[agent].run(Task.from_row(row), policy=policy, retriever=retriever)))
    return measure(played)


def main(agent: str = "s3", folder: Path | None = None, temperature: float = 0.0, seed: int = 0) -> None:
    """Play the validation questions with an agent's policy, or the one in FOLDER, and write its measures as JSON."""
    torch.manual_seed(seed)
    rows = [json.loads(line) for line in VALIDATION.read_text(encoding="utf-8").splitlines()]
    folder = folder or NANO_POLICIES[agent]
    typer.echo(json.dumps(asyncio.run(play_all(agent, folder, rows, temperature=temperature)), indent=1))


if __name__ == "__main__":
    typer.run(main)
