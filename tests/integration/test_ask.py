"""`s3-agent ask` over running services: both agents, token ids and chat messages, and what it refuses."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from s3_agent.cli.main import app
from s3_agent.clients.tokenizer import load_tokenizer
from s3_agent.embedded import NANO_POLICY, NANO_SEARCH_R1
from s3_agent.errors import ConfigError
from s3_agent.testing.fakes import FakeGenerator, FakePolicy, FakeRetriever
from s3_agent.testing.servers import generator_app, policy_app, retriever_app, serve
from s3_agent.types import Episode, Passage

DOC = Passage(id="1", title="Norway", text="The currency of Norway is the krone.")
QUESTION = "What is the currency of Norway?"


def respond(read: str) -> str:
    """Plays whichever protocol it is asked in."""
    if "krone.</information>" in read:
        return "<important_info>[1]</important_info><search_complete>True</search_complete>" + "<answer>krone</answer>"
    return '<query>{"query": "Norway"}</query>' if "<question>" in read else "<search>Norway</search>"


@dataclass
class Running:
    """The services' fakes and where they are."""

    policy_url: str
    overrides: list[str]
    policy: FakePolicy
    retriever: FakeRetriever
    generator: FakeGenerator

    def ask(self, *options: str) -> Result:
        return CliRunner().invoke(app, ["ask", QUESTION, "--policy-url", self.policy_url, *options, *self.overrides])


@pytest.fixture
def running() -> Iterator[Running]:
    policy = FakePolicy(respond, load_tokenizer(str(NANO_POLICY)))
    retriever, generator = FakeRetriever(default=(DOC,)), FakeGenerator("the krone")
    with (
        serve(policy_app(policy)) as policy_url,
        serve(retriever_app(retriever)) as retriever_url,
        serve(generator_app(generator)) as generator_url,
    ):
        overrides = [f"retriever.url={retriever_url}", f"generator.url={generator_url}/v1", "gateway.port=0"]
        overrides.append(f"policies.search_r1.model={NANO_POLICY}")  # the server does not say whose tokenizer it has
        yield Running(policy_url + "/v1", overrides, policy, retriever, generator)


@pytest.mark.parametrize("mode", ["tokens", "chat"])
def test_s3_searches_marks_and_the_generator_answers(running: Running, mode: str) -> None:
    done = running.ask("--json", f"policy.mode={mode}")
    assert done.exit_code == 0, done.output
    shown = json.loads(done.stdout)
    episode = Episode.model_validate(shown["episode"])
    assert (shown["question"], shown["answer"]) == (QUESTION, "the krone")
    assert (episode.agent, episode.selected, episode.searches) == ("s3", (DOC,), 1)
    assert [query for query, _ in running.retriever.queries] == [QUESTION, "Norway"]


@pytest.mark.parametrize("mode", ["tokens", "chat"])
def test_search_r1_answers_by_itself(running: Running, mode: str) -> None:
    done = running.ask("--agent", "search_r1", "--json", f"policy.mode={mode}")
    assert done.exit_code == 0, done.output
    shown = json.loads(done.stdout)
    assert (shown["answer"], shown["episode"]["stop_reason"]) == ("krone", "answered")
    assert running.generator.calls == []
    assert running.retriever.queries == [("Norway", 3)]


@pytest.mark.parametrize("agent", ["s3", "search_r1"])
def test_the_trajectory_is_readable(running: Running, agent: str) -> None:
    done = running.ask("--agent", agent)
    assert done.exit_code == 0, done.output
    for part in (QUESTION, "turn 1: search", "Norway", "The currency of Norway is the krone.", "answer", "krone"):
        assert part in done.stdout


def test_what_can_not_be_asked_says_what_to_do(running: Running, tmp_path: Path) -> None:
    blank = CliRunner().invoke(app, ["ask", " "])
    assert "the question is empty" in str(blank.exception)
    chat = CliRunner().invoke(app, ["ask", QUESTION, "policy.mode=chat"])
    assert "--policy-url" in str(chat.exception)
    missing = running.ask("--run", str(tmp_path))
    assert "has no trained policy" in str(missing.exception)
    running.overrides.append("agent.name=search_r1")
    first = running.ask()
    assert "initial_topk must be 0" in str(first.exception)


def test_a_server_that_names_no_tokenizer_gets_the_agents_own(running: Running) -> None:
    running.overrides.pop()
    done = running.ask("--agent", "search_r1")
    assert done.exit_code == 0, done.output
    assert QUESTION in load_tokenizer(str(NANO_SEARCH_R1)).decode(running.policy.prompts[0])


def test_a_policy_that_is_not_there_is_a_policy_error(running: Running) -> None:
    running.policy_url = running.policy_url.replace("/v1", "/nothing")
    done = running.ask()
    assert done.exception is not None
    assert getattr(done.exception, "boundary", "") == "policy"


def test_more_passages_than_the_retriever_returns_are_refused_before_anything_starts(running: Running) -> None:
    own = [one for one in running.overrides if not one.startswith("retriever.")]
    reranked = ["retriever.port=0", "retriever.rerank.style=cohere", "retriever.rerank.model=m"]
    reranked.append("retriever.rerank.url=http://127.0.0.1:1")
    done = CliRunner().invoke(app, ["ask", QUESTION, "--agent", "retriever", *own, *reranked])
    assert isinstance(done.exception, ConfigError) and not done.output
    assert "the agent retriever asks for 100 passages at a time: `rerank.candidates` is 50" in done.exception.message
    assert "`agents.retriever.limits`" in str(done.exception.remedy)
