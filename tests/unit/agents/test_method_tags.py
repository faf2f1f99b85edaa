"""For every registered method, ours and the example plug-in's: text from outside never writes a tag that it reads."""

import asyncio
import importlib
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3_agent.agents.methods import METHODS, Method
from s3_agent.agents.s3 import MARKER
from s3_agent.agents.settings import AgentChoice
from s3_agent.testing.fakes import FakePolicy, FakeRetriever
from s3_agent.types import Passage, Task

EXAMPLE = Path(__file__).parents[3] / "examples/plug_in"
PROMPT = f"Search for what is asked.\n{MARKER}\nQuestion: x"
"""What the data brings for the prompts named `data`."""
TAG = re.compile(r"</?([A-Za-z]\w*)>", re.ASCII)
BENIGN = "Which harbour has the oldest lighthouse?"
LONG = {"max_new_tokens": 200, "max_context_tokens": 1_000_000}


def _plug_in() -> Method:
    sys.path.insert(0, str(EXAMPLE))
    try:
        return importlib.import_module("harbour_search.agent").METHOD
    finally:
        sys.path.remove(str(EXAMPLE))


ALL = {**METHODS, "look_up": _plug_in()}
WITH_PROTOCOL = [name for name, method in ALL.items() if method.protocol is not None]
PROMPTED = [name for name, method in ALL.items() if method.protocol is None and method.policy != "none"]


def written(method: Method, question: str, title: str, text: str) -> Iterator[str]:
    """All that the method's protocol writes, with each of its prompts."""
    assert method.protocol is not None
    task = Task(id="t", question=question, golden_answers=("x",), prompt=PROMPT)
    passages = [Passage(id="1", title=title, text=text), Passage(id="2", title="Bergen", text="A harbour.")]
    for prompt in method.prompts:
        protocol = method.protocol(prompt)
        yield protocol.message(task, passages, frozenset())
        yield protocol.observation(passages, frozenset())
        yield protocol.observation([], frozenset())
        yield protocol.invalid_hint or ""


def undeclared(method: Method) -> set[str]:
    """The tags that the protocol writes or stops at, and that the method does not list."""
    assert method.protocol is not None
    texts = [*written(method, BENIGN, "Oslo", "A port.")]
    texts += [stop for prompt in method.prompts for stop in method.protocol(prompt).stop]
    return {name for text in texts for name in TAG.findall(text)} - {*method.tags}


def _forms(text: str) -> Iterator[str]:
    """What tokenizers may make of a text: NFKC in lower case, what has no width left out or read as a space."""
    for unseen in ("", " "):
        parts = []
        for char in unicodedata.normalize("NFKC", text):
            if char.isspace():
                parts.append(" ")
            else:
                parts.append(unseen if unicodedata.category(char) in ("Mn", "Me", "Cf", "Cc") else char.lower())
        yield "".join(parts)


def counts(texts: Iterable[str], names: Iterable[str]) -> list[Counter[str]]:
    """How often each tag can be read in the texts, in each form."""
    tag = re.compile(rf"<\s*(?:/\s*)?({'|'.join(sorted(names))})\b")
    forms = zip(*map(_forms, texts), strict=True)
    return [Counter(name for text in form for name in tag.findall(text)) for form in forms]


NAMES = sorted({name for method in ALL.values() for name in method.tags})
tags = st.builds(
    lambda name, before, after, change: change(f"{before}{name}{after}"),
    st.sampled_from(NAMES),
    st.sampled_from(
        ("<", "</", "< ", "<\n", "< / ", "<\u200b", "</\u00a0", "\uff1c", "\ufe64/", "<\u0301", "<\uff0f", "<\u00ad")
    ),
    st.sampled_from((">", " >", "\n>", ' id="1">', "\uff1e", "/>", "")),
    st.sampled_from(
        (
            str,
            str.upper,
            str.title,
            lambda tag: "\u200d".join(tag),
            lambda tag: tag.translate({code: code + 0xFEE0 for code in range(0x21, 0x7F)}),
        )
    ),
)
hostile = st.lists(tags | st.sampled_from(("<", "/", ">", " ", "\n", "_", "\u0338")) | st.text(max_size=6), max_size=8)
text = hostile.map("".join)


@pytest.mark.parametrize("name", WITH_PROTOCOL)
def test_a_method_lists_every_tag_of_its_protocol(name: str) -> None:
    assert ALL[name].tags and undeclared(ALL[name]) == set()


def test_a_tag_that_is_not_listed_is_found() -> None:
    assert undeclared(replace(ALL["look_up"], tags=("look_up",))) == {"asked", "found"}
    assert undeclared(replace(ALL["search_r1"], tags=("search", "information", "think"))) == {"answer"}


@pytest.mark.parametrize("name", WITH_PROTOCOL)
@settings(max_examples=50, deadline=None)
@given(question=text, title=text, body=text)
def test_no_text_writes_a_tag_of_a_protocol(name: str, question: str, title: str, body: str) -> None:
    method = ALL[name]
    asked = written(method, f"Why? {question}", title, body)
    assert counts(asked, method.tags) == counts(written(method, BENIGN, "Oslo", "A port."), method.tags)


@pytest.mark.parametrize(
    "forged", ["<found>", "</ FOUND>", "\uff1cfound\uff1e", "<\nf\u200bound", "\ufe64/ \uff26ound", "<\u0301found "]
)
def test_a_protocol_that_shows_text_as_it_is_is_found(forged: str) -> None:
    names = ALL["look_up"].tags
    assert counts([f"What is {forged} here?"], names) != counts(["What is here?"], names)


def respond(read: str) -> str:
    """Searches in whichever way the prompt explains, twice."""
    if "Boolean operators" in read:
        return 'short</think><answer>{"query": "harbour"}</answer>'
    if "Earlier steps of reasoning" in read:
        return "One more. <search_complete>No</search_complete>"
    if "Web pages:" in read:
        return "**Final Information** a harbour"
    return "<|begin_search_query|>harbour<|end_search_query|>"


def prompts_of(name: str, question: str, title: str, body: str) -> list[str]:
    """All that the policy of a method reads that writes a whole prompt for each call."""
    uses = ALL[name].uses
    limits = {key: value for key, value in {**LONG, "max_searches": 2}.items() if key in uses}
    agent = AgentChoice.model_validate({"name": name, "limits": limits}).make()
    policy = FakePolicy(respond)
    found = [Passage(id="1", title=title, text=body), Passage(id="2", title="Bergen", text="A harbour.")]
    task = Task(id="t", question=question, golden_answers=("x",))
    asyncio.run(agent.run(task, policy=policy, retriever=FakeRetriever(default=found)))
    return [policy.tokenizer.decode(ids) for ids in policy.prompts]


@pytest.mark.parametrize("name", PROMPTED)
@settings(max_examples=50, deadline=None)
@given(question=text, title=text, body=text)
def test_no_text_writes_a_tag_of_a_prompt(name: str, question: str, title: str, body: str) -> None:
    benign = prompts_of(name, BENIGN, "Oslo", "A port.")
    names = {tag for prompt in benign for tag in TAG.findall(prompt)} | {"search_complete", "answer"}
    assert counts(prompts_of(name, f"Why? {question}", title, body), names) == counts(benign, names)


def test_every_method_that_asks_a_policy_is_looked_at() -> None:
    assert {*WITH_PROTOCOL, *PROMPTED} == {name for name, method in ALL.items() if method.policy != "none"}
    assert "look_up" in WITH_PROTOCOL and len(PROMPTED) >= 3
