"""One rollout, one training row: real gateway and vLLM, our workers, Agent Lightning's own manager and adapter."""

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from agentlightning.verl.agl_rollout_manager import AglRolloutManager, CompletedRollout
from agentlightning.verl.rollout_adapter import RolloutAdapter

from s3_agent.clients.tokenizer import HuggingFaceTokenizer, load_tokenizer
from s3_agent.data.tasks import read_jsonl
from s3_agent.embedded import NANO_POLICY, TRAIN
from s3_agent.processes.parts import training_parts
from s3_agent.processes.ports import reserve_port
from s3_agent.processes.run_folder import Run
from s3_agent.processes.services import policy_part, resolve_ports
from s3_agent.processes.stack import Stack
from s3_agent.recipe import HOST, Recipe, load_recipe
from s3_agent.rollout.episode_log import EpisodeRecord
from s3_agent.rollout.runner import AgentSettings
from tests.e2e import split_tags
from tests.e2e.conftest import Services

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

QUESTIONS, SIBLINGS = 25, 2
PROMPT, RESPONSE = 512, 1024
PAST = {"s3": ("</query>\n",), "search_r1": ("</search>\n", "</answer>\n")}
LENGTHS = (f"trainer.prompt_tokens={PROMPT}", f"trainer.response_tokens={RESPONSE}")
_LIMITS = {"max_new_tokens": 48, "max_observation_tokens": 300, "max_context_tokens": RESPONSE, "topk": 1}
AGENTS = {
    "s3": AgentSettings.model_validate({"prompt": "compact", "limits": {**_LIMITS, "initial_topk": 1}}),
    "search_r1": AgentSettings.model_validate({"name": "search_r1", "prompt": "compact", "limits": _LIMITS}),
}


@pytest.fixture(scope="module")
def split_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("split") / "policy"
    split_tags.make(folder)
    return folder


@dataclass(frozen=True)
class Endpoint:
    """A gateway and the policy server behind it."""

    recipe: Recipe
    key: str
    policy_url: str


@dataclass(frozen=True)
class Played:
    """What the manager saw, what the workers wrote down, and which tokenizer was used."""

    completed: list[CompletedRollout]
    records: dict[str, EpisodeRecord]
    tokenizer: HuggingFaceTokenizer


@pytest.fixture(scope="module", params=["nano", "split"])
def endpoint(
    request: pytest.FixtureRequest, services: Services, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Endpoint]:
    policy = NANO_POLICY if request.param == "nano" else request.getfixturevalue("split_policy")
    recipe = resolve_ports(load_recipe("cpu", [*services.overrides, *LENGTHS, f"policy.model={policy}"]))
    run = Run(tmp_path_factory.mktemp(request.param) / "run")
    run.create()
    key, port = secrets.token_hex(8), reserve_port("policy", 0)
    gateway = next(part for part in training_parts(recipe, run, key=key) if part.name == "gateway")
    with Stack([gateway, policy_part(policy, run, port=port, name=str(policy))], run_id=f"rows-{key}") as stack:
        stack.run()
        yield Endpoint(recipe=recipe, key=key, policy_url=f"http://{HOST}:{port}/v1")


@pytest.fixture(scope="module", params=["s3", "search_r1"])
def played(request: pytest.FixtureRequest, endpoint: Endpoint, tmp_path_factory: pytest.TempPathFactory) -> Played:
    """Fifty rollouts of one agent by a worker pool of its own."""
    recipe = endpoint.recipe.model_copy(update={"agent": AGENTS[request.param]})
    run = Run(tmp_path_factory.mktemp(request.param) / "run")
    run.create()
    run.write_recipe(recipe)
    workers = next(part for part in training_parts(recipe, run, key=endpoint.key) if part.name == "workers")
    rows = read_jsonl(TRAIN)[:QUESTIONS]
    data = {name: [row[name] for row in rows] for name in ("id", "question", "golden_answers")}
    with Stack([replace(workers, needs=())], run_id=f"workers-{endpoint.key}") as stack:
        stack.run()
        manager = AglRolloutManager(
            agl_base_url=recipe.gateway_url,
            agl_key=endpoint.key,
            model=recipe.policy.model,
            step=0,
            train_rollout_n=SIBLINGS,
        )
        manager.register_model([endpoint.policy_url])
        completed = manager.enqueue_and_wait_until_completed(data, is_train=True)
    records = [EpisodeRecord.model_validate(row) for row in read_jsonl(run.episodes)]
    return Played(completed, {record.rollout_id: record for record in records}, load_tokenizer(recipe.policy.model))


def test_every_rollout_is_one_row_and_the_row_is_the_episode(played: Played) -> None:
    adapter = RolloutAdapter(
        max_prompt_length=PROMPT,
        max_response_length=RESPONSE,
        device=torch.device("cpu"),
        pad_token_id=0,
        trace_aggregator_level="trajectory",
    )
    batch, metrics = adapter.get_train_data_batch(played.completed)
    rollouts = QUESTIONS * SIBLINGS
    print(json.dumps({"rows/rollout": len(batch) / rollouts}))
    assert len(batch) == rollouts
    assert {rollout.rollout_state for rollout in played.completed} == {"succeeded"}
    assert metrics["training/n_truncated_sample"] == metrics["training/n_unmerged_rollouts"] == 0
    assert not batch.batch["is_drop_mask"].any()
    turns = 0
    for row, rollout_id in enumerate(batch.non_tensor_batch["rollout_id_list"]):
        episode = played.records[rollout_id].episode
        assert episode is not None
        ids = batch.batch["input_ids"][row]
        kept = batch.batch["attention_mask"][row].bool()
        assert ids[:PROMPT][kept[:PROMPT]].tolist() == played.tokenizer.chat(episode.prompt)
        assert played.tokenizer.decode(ids[PROMPT:][kept[PROMPT:]].tolist()) == episode.text
        trained = sum(turn.response_tokens for turn in episode.turns)
        assert batch.batch["response_mask"][row].sum().item() == trained
        turns += len(episode.turns)
    assert turns > rollouts, "no episode of several turns was merged"


def test_text_past_the_stop_is_in_the_response_and_its_query_was_searched(played: Played) -> None:
    episodes = [record.episode for record in played.records.values() if record.episode]
    past = PAST[episodes[0].agent]
    last = [turn for episode in episodes for turn in episode.turns if turn.response.endswith(past)]
    if played.tokenizer.encode("</query>") == played.tokenizer.encode("</query>\n")[:1]:
        assert not last, "tags that are tokens of their own end a response"
        return
    assert len(last) > QUESTIONS
    assert all(turn.passages for turn in last if turn.action and turn.action.kind == "search" and turn.observation)
    ends = {"s3": "finished", "search_r1": "answered"}
    assert ends[episodes[0].agent] in {episode.stop_reason for episode in episodes}
