"""Measures the CPU milliseconds per turn that an agent itself takes, without the endpoints that it waits for.

The real agents and the real tokenizer play scripted episodes of s3's published size (8 documents of 100 words per
search, 4 searches) against endpoints in this process that answer immediately, so all time is the agent's. The limit for
comparison is the necessary work: tokenising each observation once and decoding each response once.

    .venv/bin/python benchmarks/agent_overhead.py [--tokenizer FOLDER] [--episodes 200]
"""

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import Sequence

from s3_agent.agents.base import Agent, Limits
from s3_agent.agents.s3 import S3Agent
from s3_agent.agents.search_r1 import SearchR1Agent
from s3_agent.clients.policy import Completion, TokenPolicy
from s3_agent.clients.tokenizer import load_tokenizer
from s3_agent.data.tasks import read_jsonl
from s3_agent.embedded import CORPUS, NANO_POLICY
from s3_agent.testing.fakes import FakeRetriever
from s3_agent.types import Episode, Passage, Task

RESPONSES = {
    "s3": '<important_info>[1, 4]</important_info>\n<search_complete>False</search_complete>\n<query>{"query": "x y z"}'
    "</query>",
    "search_r1": "<think>I have to look this up, since no document says it.</think>\n<search> x y z </search>",
}


class InstantPolicy(TokenPolicy):
    """Gives a fixed response immediately; it is encoded beforehand."""

    def __init__(self, tokenizer_path: str, response: str) -> None:
        super().__init__(load_tokenizer(tokenizer_path))
        self._ids = tuple(self.tokenizer.encode(response))

    async def complete(self, prompt_ids: Sequence[int], *, max_tokens: int, stop: Sequence[str]) -> Completion:
        return Completion(token_ids=self._ids, finish_reason="stop")


def passages(rng: random.Random) -> list[Passage]:
    """Eight documents of about 100 words, like wiki-18's."""
    words = " ".join(row["text"] for row in read_jsonl(CORPUS)).split()
    starts = [rng.randrange(len(words) - 100) for _ in range(8)]
    return [
        Passage(id=str(number), title='"Title"', text=" ".join(words[start : start + 100]))
        for number, start in enumerate(starts)
    ]


async def episodes(agent: Agent, policy: TokenPolicy, found: list[Passage], count: int) -> tuple[float, list[Episode]]:
    """CPU seconds of `count` episodes, and the episodes."""
    task = Task(id="t", question="Which one", golden_answers=("a",), initial_passages=tuple(found[:3]))
    retriever = FakeRetriever(default=found)
    started = time.process_time()
    played = [await agent.run(task, policy=policy, retriever=retriever) for _ in range(count)]
    return time.process_time() - started, played


def limit(policy: TokenPolicy, played: list[Episode]) -> float:
    """CPU seconds of encoding every observation and prompt once and decoding every response once."""
    responses = {turn.response: policy.tokenizer.encode(turn.response) for turn in played[0].turns}
    started = time.process_time()
    for episode in played:
        policy.tokenizer.chat(episode.prompt)
        for turn in episode.turns:
            policy.tokenizer.encode(turn.observation)
            policy.tokenizer.decode(responses[turn.response])
    return time.process_time() - started


def measure(name: str, tokenizer: str, count: int, *, cut: bool) -> dict[str, float | int]:
    """Milliseconds per turn of one agent, the least possible, and the ratio; with or without observations cut."""
    policy = InstantPolicy(tokenizer, RESPONSES[name])
    limits = Limits(
        max_context_tokens=100_000,
        initial_topk=3 if name == "s3" else 0,
        max_observation_tokens=1400 if cut else None,
    )
    agent = S3Agent(limits=limits) if name == "s3" else SearchR1Agent(limits=limits)
    found = passages(random.Random(0))
    asyncio.run(episodes(agent, policy, found, 3))
    ours, least, turns = [], [], 0
    for _ in range(5):
        seconds, played = asyncio.run(episodes(agent, policy, found, count))
        turns = sum(len(episode.turns) for episode in played)
        ours.append(1000 * seconds / turns)
        least.append(1000 * limit(policy, played) / turns)
    own, floor = statistics.median(ours), statistics.median(least)
    return {
        "ms_per_turn": round(own, 3),
        "limit_ms_per_turn": round(floor, 3),
        "over_limit": round(own / floor, 2),
        "turns": turns,
        "tokens_per_observation": len(policy.tokenizer.encode(played[0].turns[0].observation)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", default=str(NANO_POLICY), help="a model folder or hub name")
    parser.add_argument("--episodes", type=int, default=40, help="episodes per repetition; five repetitions")
    options = parser.parse_args()
    measured = {
        f"{name}, observations {'cut' if cut else 'whole'}": measure(name, options.tokenizer, options.episodes, cut=cut)
        for name in RESPONSES
        for cut in (True, False)
    }
    print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
