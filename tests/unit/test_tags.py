"""The protocol's text: what is shown, what is read, and that hostile text stays text (docs/protocol.md#s3)."""

import json
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3_agent.agents.s3 import S3Protocol, compact_prompt
from s3_agent.agents.search_r1 import SearchR1Protocol
from s3_agent.tags import (
    INVALID_HINT,
    bodies,
    cut_after_query,
    initial_block,
    marks,
    neutral,
    observation,
    parse,
    parse_query,
    read_initial_block,
)
from s3_agent.types import ActionKind, Passage, Task

TAG_NAMES = ("question", "information", "query", "important_info", "search_complete", "think", "search", "answer")
TAG = re.compile(r"<\s*/?\s*(?:" + "|".join(TAG_NAMES) + r")\b[^>]*>?|<\|", re.IGNORECASE)
PIECES = (
    *(f"<{slash}{name}>" for name in TAG_NAMES for slash in ("", "/")),
    *(
        "<",
        ">",
        "/",
        "|",
        "<|im_end|>",
        "<|im_start|>",
        "< query>",
        "< / QUERY >",
        "<\n/information>",
        "<query",
        "[1, 2]",
    ),
    *(
        "True",
        "false",
        '{"query": "x"}',
        '{"query": "\\ud800"}',
        "Doc 1(Title: x)",
        " ",
        "\n",
        "\x00",
        "9" * 30,
        "é漢🜁",
    ),
)
hostile = st.lists(st.sampled_from(PIECES) | st.text(max_size=8), max_size=25).map("".join)
LONG = 200_000


def task(question: str) -> Task:
    return Task(id="t", question=question, golden_answers=("a",))


def passage(text: str = "text", title: str = "title") -> Passage:
    return Passage(id="0", title=title, text=text)


def test_initial_block_has_a_space_before_the_bracket_and_lines_of_its_own() -> None:
    block = initial_block([passage("t1", '"A"'), passage("t2", "B")])
    assert block == '<information>\nDoc 1 (Title: "A") t1\nDoc 2 (Title: B) t2\n</information>\n'


def test_observation_has_no_space_before_the_bracket_and_no_newline_inside_the_tags() -> None:
    shown = observation([passage("t1", '"A"'), passage("t2", "B")])
    assert shown == '\n\n<information>Doc 1(Title: "A") t1\nDoc 2(Title: B) t2</information>\n\n'
    assert observation([]) == "\n\n<information></information>\n\n"


def test_the_hint_is_the_literal_that_checkpoints_have_seen() -> None:
    assert INVALID_HINT == (
        "\n\nThe information is not enough to answer the question. Let me dive deeper by generating a brand new search "
        "query between <query> and </query> tags in JSON format:\n<query>\n"
    )


@pytest.mark.parametrize(
    ("response", "kept"),
    [
        ("no tag", "no tag"),
        ("<query>a</query> dropped </query>", "<query>a</query>"),
        ("a</query>b", "<query>\na</query>"),
        ("<information>made up</information>", "<information>made up</information>"),
        ("</query><query>late</query>", "<query>\n</query>"),
    ],
)
def test_cut_after_query(response: str, kept: str) -> None:
    assert cut_after_query(response) == kept


@pytest.mark.parametrize(
    ("body", "query"),
    [
        ('{"query": "currency of Norway"}', "currency of Norway"),
        ('\n {\n "query": " kept as it is "}\n', " kept as it is "),
        ('{"query": ["first", "second"]}', "first"),
        ('{"query": []}', '{"query": []}'),
        ('{"query": [1]}', '{"query": [1]}'),
        ('{"query": 3}', '{"query": 3}'),
        ('{"query": null}', '{"query": null}'),
        ('{"query": {"query": "x"}}', '{"query": {"query": "x"}}'),
        ('{"question": "x"}', '{"question": "x"}'),
        ('["x"]', '["x"]'),
        ('"x"', '"x"'),
        ("norway currency", "norway currency"),
        ('{"query": "open', '{"query": "open'),
        ("", ""),
        ("  ", ""),
    ],
)
def test_query_table(body: str, query: str) -> None:
    assert parse_query(body) == query


def test_a_query_never_holds_half_a_surrogate_pair() -> None:
    assert parse_query('{"query": "a\\ud800b"}') == "a?b"
    assert parse_query('{"query": "\\ud83d\\ude00"}') == "\N{GRINNING FACE}"


@pytest.mark.parametrize("deep", ["[" * LONG, '{"query":' * LONG, "1" * LONG], ids=["lists", "objects", "digits"])
def test_a_query_that_json_can_not_take_is_searched_as_it_is(deep: str) -> None:
    assert parse_query(deep) == deep


@pytest.mark.parametrize("value", ["True", " true\n", "YES", "1", "y"])
def test_complete_values(value: str) -> None:
    assert parse(f"<search_complete>{value}</search_complete>").kind is ActionKind.FINISH


SEARCH, FINISH, INVALID = ActionKind.SEARCH, ActionKind.FINISH, ActionKind.INVALID
QUERY, YES, NO = (
    "<query>q</query>",
    "<search_complete>True</search_complete>",
    "<search_complete>False</search_complete>",
)


@pytest.mark.parametrize(
    ("response", "kind", "query"),
    [
        (YES, FINISH, None),
        (YES + QUERY, FINISH, None),
        (QUERY + YES, SEARCH, "q"),
        (NO + QUERY, SEARCH, "q"),
        (NO + YES + QUERY, SEARCH, "q"),
        (YES + NO, FINISH, None),
        (NO + YES, INVALID, None),
        (NO, INVALID, None),
        ("", INVALID, None),
        ("<search_complete>true", INVALID, None),
        ("<search_complete>perhaps</search_complete>" + QUERY, SEARCH, "q"),
        ("<query>never closed", INVALID, None),
        ('{"query": "after the hint"}\n</query>', SEARCH, "after the hint"),
        ('<query>\n{"query": "both tags"}</query>', SEARCH, "both tags"),
        ("<QUERY>q</QUERY>", INVALID, None),
        ("<think>" + QUERY, SEARCH, "q"),
    ],
)
def test_precedence(response: str, kind: ActionKind, query: str | None) -> None:
    action = parse(response)
    assert (action.kind, action.query) == (kind, query)


@pytest.mark.parametrize(
    ("body", "ids"),
    [
        ("[1, 4]", (1, 4)),
        ("1,2", (1, 2)),
        ("Doc1, Doc 2", (1, 2)),
        ("[3, 1, 3]", (3, 1)),
        ("[]", ()),
        ("none", ()),
        ("9" * 5000, ()),
        ("\u0661\u0662", ()),
    ],
)
def test_marks(body: str, ids: tuple[int, ...]) -> None:
    response = f"<important_info>{body}</important_info>{NO}"
    assert list(marks(response)) == [ids]
    assert parse(response).marked == ids


def test_a_response_without_marks_differs_from_one_that_marks_nothing() -> None:
    assert parse(YES).marked is None
    assert parse("<important_info></important_info>" + YES).marked == ()


@pytest.mark.parametrize(
    "forged",
    [
        "</information>",
        "<query>",
        "< query >",
        "</ QUERY>",
        "<\n/\nimportant_info>",
        "<|im_end|>",
        "<search_complete x=1>",
    ],
)
def test_neutral_breaks_every_form_of_a_tag(forged: str) -> None:
    assert not TAG.search(neutral(forged))
    assert neutral(forged)[1:] == forged[1:]


@pytest.mark.parametrize("plain", ["a < b", "<b>bold</b>", "x<y|z", "<questionnaire>", "2 <3", "<https://a.b>"])
def test_neutral_leaves_other_text_alone(plain: str) -> None:
    assert neutral(plain) == plain


@given(st.lists(st.tuples(hostile, hostile), max_size=4), hostile)
def test_only_the_protocol_writes_tags(documents: list[tuple[str, str]], question: str) -> None:
    passages = [passage(text, title) for title, text in documents]
    assert TAG.findall(observation(passages)) == ["<information>", "</information>"]
    own = ["<question>", "</question>", "<information>", "</information>"]
    assert TAG.findall(compact_prompt(question, passages)) == own
    for protocol, tags in ((S3Protocol("instruct"), own), (SearchR1Protocol("instruct"), [])):
        shown = TAG.findall(protocol.message(task(f"q{question}"), passages))
        assert shown == TAG.findall(protocol.message(task("q"), []))
        assert shown[len(shown) - len(tags) :] == tags


@given(st.lists(st.tuples(hostile, hostile), max_size=4))
def test_only_the_protocol_numbers_documents(documents: list[tuple[str, str]]) -> None:
    passages = [passage(text, title) for title, text in documents]
    numbers = [str(number) for number in range(1, len(documents) + 1)]
    assert re.findall(r"Doc\s*([0-9]+)\s*\(\s*Title\s*:", observation(passages), re.IGNORECASE) == numbers


@given(hostile)
def test_neutral_changes_nothing_but_brackets_and_is_stable(text: str) -> None:
    once = neutral(text)
    assert len(once) == len(text)
    assert {(a, b) for a, b in zip(text, once, strict=True) if a != b} <= {
        *((mark, "\u2039") for mark in "<\ufe64\uff1c"),
        ("(", "\u2768"),
    }
    assert neutral(once) == once


CONTROL = frozenset({"</s>", "<s>", "[INST]", "[/INST]", "\u2581pad"})


@given(st.lists(st.sampled_from([*CONTROL, "<", "s>", "[", "INST]", "x"]), max_size=12).map("".join))
def test_no_control_token_of_the_tokenizer_is_left(text: str) -> None:
    assert not any(token in neutral(text, CONTROL) for token in CONTROL)
    assert not any(token in observation([passage(text, text)], CONTROL) for token in CONTROL)


@pytest.mark.parametrize(
    "documents",
    [
        [],
        [('"A"', "text (with a bracket) and more")],
        [('"Avatar (2009 film)"', "a"), ('"""Heroes"" (album)"', "Doc 9 (Title: no) b"), ("plain", "c\nd")],
        [("no text", "")],
    ],
    ids=len,
)
def test_a_published_block_is_read_as_it_was_written(documents: list[tuple[str, str]]) -> None:
    lines = "\n".join(f"Doc {number} (Title: {title}) {text}" for number, (title, text) in enumerate(documents, 1))
    read = read_initial_block(f"<information> <question>\n<information>\n{lines.strip()}\n</information>\n")
    assert [(found.title, found.text) for found in read] == documents


@given(st.lists(st.tuples(st.text(max_size=12), st.text(max_size=30)), max_size=5))
def test_reading_a_block_never_raises_and_is_written_again(documents: list[tuple[str, str]]) -> None:
    block = initial_block([passage(text, title) for title, text in documents])
    again = initial_block(read_initial_block(block))
    assert again.split() == block.split() or len(read_initial_block(block)) < len(documents)


@given(hostile)
def test_reading_never_raises(text: str) -> None:
    action = parse(text)
    assert (action.query is not None) == (action.kind is ActionKind.SEARCH)
    json.dumps(action.query).encode()
    (action.query or "").encode()
    kept = cut_after_query(text)
    assert kept.count("</query>") == min(1, text.count("</query>"))
    assert cut_after_query(kept) == kept
    assert all(number <= 9999 for ids in marks(text) for number in ids)


@given(hostile, st.sampled_from(TAG_NAMES))
def test_bodies_agree_with_the_regular_expression_of_the_original(text: str, tag: str) -> None:
    assert list(bodies(text, tag)) == re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)


UNITS = [
    "<query>",
    "</query>",
    "<query>{",
    "<important_info>",
    "<important_info>1",
    "</important_info>",
    "<important_info>1</important_info>",
    "<search_complete>",
    "< ",
    " ",
    "</ ",
    "1",
    "[",
    "<" * 9,
]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.timeout(20)
def test_reading_and_showing_are_linear(unit: str) -> None:
    """Quadratic work on 200 000 characters takes minutes; linear work takes milliseconds."""
    text = "<" + unit * (LONG // len(unit))
    started = time.process_time()
    parse(text)
    parse(f"<query>{text}</query>")
    list(marks(text))
    cut_after_query(text)
    observation([passage(text, text)])
    assert time.process_time() - started < 5.0
