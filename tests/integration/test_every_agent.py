"""Every agent by name, played and scored over real HTTP against the fakes; `ask` and `agents` on the command line."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest
from typer.testing import CliRunner

from s3_agent.agents.methods import METHODS
from s3_agent.cli.main import app
from s3_agent.clients.chat_policy import ChatPolicy
from s3_agent.clients.generator import GeneratorSettings, make_generator
from s3_agent.clients.policy import CompletionsPolicy, NoPolicy, Policy
from s3_agent.clients.retriever import HttpRetriever
from s3_agent.clients.tokenizer import load_tokenizer
from s3_agent.embedded import NANO_POLICY
from s3_agent.errors import ConfigError
from s3_agent.rollout.runner import AgentSettings, run_task
from s3_agent.testing.fakes import FakeGenerator, FakePolicy, FakeRetriever
from s3_agent.testing.servers import generator_app, policy_app, retriever_app, serve
from s3_agent.types import Episode, Evidence, Passage, Task

DOC = Passage(id="1", title="Norway", text="The currency of Norway is the krone.")
QUESTION = "What is the currency of Norway?"
TASK = Task(id="t", question=QUESTION, golden_answers=("krone",))


def respond(read: str) -> str:
    """Plays whichever method's prompt it reads."""
    if "Boolean operators" in read and "Assistant:" in read:
        return 'short</think><answer>{"query": "Norway AND currency"}</answer>'
    if "Earlier steps of reasoning" in read:
        done = "None yet" not in read
        return f"Norway has money. <search_complete>{'Yes' if done else 'No'}</search_complete>"
    if "Web pages:" in read:
        return "**Final Information** the krone"
    if "begin_search_query" in read:
        return "The krone." if "Final Information" in read else "<|begin_search_query|>Norway<|end_search_query|>"
    if "krone.</information>" in read:
        return "<important_info>[1]</important_info><search_complete>True</search_complete><answer>krone</answer>"
    return '<query>{"query": "Norway"}</query>' if "<question>" in read else "<search>Norway</search>"


SEARCHES = {"s3": 1, "search_r1": 1, "search_r1_agl_chat": 1, "rag": 0, "deep_retrieval": 1, "ircot": 1, "search_o1": 1}
PASSAGES = {"ircot": 2, "cot": 0, "direct": 0}


@dataclass
class Services:
    """The fakes and their addresses."""

    policy_url: str
    retriever_url: str
    generator_url: str
    policy: FakePolicy
    generator: FakeGenerator


@pytest.fixture(scope="module")
def running() -> Iterator[Services]:
    policy = FakePolicy(respond, load_tokenizer(str(NANO_POLICY)))
    # As a generator it reads the question alone, as a policy a method's prompt.
    generator = FakeGenerator(lambda asked, context: "the krone" if asked == QUESTION else respond(asked))
    with (
        serve(policy_app(policy)) as policy_url,
        serve(retriever_app(FakeRetriever(default=(DOC,)))) as retriever_url,
        serve(generator_app(generator)) as generator_url,
    ):
        yield Services(policy_url + "/v1", retriever_url, generator_url + "/v1", policy, generator)


@pytest.fixture
def services(running: Services) -> Services:
    """Services that were not asked anything yet."""
    running.policy.prompts.clear()
    running.generator.calls.clear()
    return running


@pytest.mark.parametrize("mode", ["tokens", "chat"])
@pytest.mark.parametrize("name", METHODS.own)
async def test_every_agent_plays_and_is_scored(services: Services, name: str, mode: str) -> None:
    method = METHODS[name]
    for answers in method.answers:
        services.policy.prompts.clear()
        services.generator.calls.clear()
        async with httpx.AsyncClient() as http:
            policy: Policy
            if method.policy == "none":
                policy = NoPolicy()
            elif mode == "chat":
                policy = ChatPolicy(http, services.policy_url, model="m")
            else:
                policy = CompletionsPolicy(http, services.policy_url, load_tokenizer(str(NANO_POLICY)))
            outcome = await run_task(
                TASK,
                AgentSettings.model_validate({"name": name, "answers": answers, "reward": "accuracy"}),
                policy=policy,
                retriever=HttpRetriever(http, services.retriever_url),
                generator=make_generator(http, services.generator_url, GeneratorSettings(model="g")),
            )
        episode = outcome.episode
        assert episode.agent == name
        assert episode.searches == SEARCHES.get(name, 0)
        assert episode.selected == (DOC,) * PASSAGES.get(name, 1)
        assert bool(services.policy.prompts) == (method.policy != "none") == bool(episode.turns)
        assert len(services.generator.calls) == (answers == "generator")
        if answers == "generator":
            assert (outcome.answer, outcome.reward.value) == ("the krone", 1.0)
            [(_, [system])] = services.generator.calls
            lines = 'Doc 1 (Title: "Norway") The currency' in system.text
            blocks = "Doc 1 (Title: Norway)\nThe currency" in system.text
            assert (lines, blocks) == (
                bool(episode.selected) and method.policy != "protocol",
                method.policy == "protocol",
            )
            assert ("step by step" in system.text) == (name == "cot")
        elif answers == "nobody":
            assert (outcome.answer, outcome.reward.value) == (None, 0.0)
        elif name != "ircot":
            assert (outcome.answer, outcome.reward.value) == ("krone", 1.0)
        assert outcome.reward.metrics["accuracy"] == outcome.reward.value


@pytest.mark.parametrize("name", ["s3", "search_r1", "ircot", "retriever"])
async def test_a_reward_by_evidence_asks_no_generator(services: Services, name: str) -> None:
    task = TASK.model_copy(update={"evidence": (Evidence(title=DOC.title, answer=True), Evidence(title="Atlantis"))})
    async with httpx.AsyncClient() as http:
        outcome = await run_task(
            task,
            AgentSettings.model_validate({"name": name, "reward": "evidence_recall"}),
            policy=ChatPolicy(http, services.policy_url, model="m"),
            retriever=HttpRetriever(http, services.retriever_url),
            generator=make_generator(http, services.generator_url, GeneratorSettings(model="g")),
        )
    asked_as_generator = [call for call in services.generator.calls if call[0] == QUESTION]
    assert outcome.reward.value == 0.5 and not asked_as_generator
    assert outcome.record["accuracy"] is None
    assert outcome.record["metrics"]["evidence_answer_recall"] == 1.0


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.policy != "protocol"])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_asking_an_agent_needs_no_trained_policy(services: Services, name: str, elsewhere: bool) -> None:
    overrides = [f"retriever.url={services.retriever_url}", f"generator.url={services.generator_url}", "gateway.port=0"]
    overrides.append(f"policies.search_r1.model={NANO_POLICY}")  # the server does not say whose tokenizer it has
    overrides.append("agents.deep_retrieval.prompt=double_template")  # the fake generator takes chat messages alone
    options = ["--policy-url", services.policy_url] if elsewhere else []
    done = CliRunner().invoke(app, ["ask", QUESTION, "--agent", name, "--json", *options, *overrides])
    assert done.exit_code == 0, (done.output, done.exception)
    shown = json.loads(done.stdout)
    episode = Episode.model_validate(shown["episode"])
    assert (episode.agent, episode.searches) == (name, SEARCHES.get(name, 0))
    assert bool(services.policy.prompts) == (elsewhere and METHODS[name].policy != "none")


def test_the_agents_are_listed() -> None:
    listed = json.loads(CliRunner().invoke(app, ["agents", "--json"]).stdout)
    assert [agent["name"] for agent in listed] == list(METHODS)
    by_name = {agent["name"]: agent for agent in listed}
    assert by_name["search_r1"]["answers"] == ["policy", "generator"]
    assert by_name["rag"]["limits"] == {"topk": 3}
    assert by_name["ircot"]["sampling"] == {"temperature": 0.7, "top_p": 0.95}
    assert [name for name, agent in by_name.items() if agent["trainable"]] == ["s3", "search_r1", "search_r1_agl_chat"]
    table = CliRunner().invoke(app, ["agents"], env={"COLUMNS": "240"}).stdout
    for name, method in METHODS.items():
        assert name in table and method.summary in table


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not method.trainable])
def test_what_can_not_be_trained_is_refused_before_anything_starts(name: str) -> None:
    limits = "{" + ", ".join(f"{key}: {json.dumps(value)}" for key, value in METHODS[name].limits) + "}"
    overrides = [f"agent.name={name}", f"agent.limits={limits}", "agent.prompt=instruct", "agent.selection=every"]
    for command in (["train"], ["workers", "--gateway", "http://127.0.0.1:1"]):
        done = CliRunner().invoke(app, [*command, *overrides])
        assert isinstance(done.exception, ConfigError)
        assert f"{name} can not be trained" in str(done.exception)
