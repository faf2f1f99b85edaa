"""Selection of passages: outputs of s3's own function, MIRAGE's variant, and that every rule keeps what it says."""

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3_agent.selection import SelectionRule, select_passages
from s3_agent.types import Passage, Turn

END = "<search_complete>True</search_complete>"
SEARCH = '<search_complete>False</search_complete>\n<query>{"query": "q"}</query>'


def doc(name: str, text: str | None = None, *, id: str | None = None) -> Passage:
    return Passage(id=name if id is None else id, title=name, text=text or f"text of {name}")


def mark(body: str) -> str:
    return f"<important_info>{body}</important_info>\n"


def searched(*names: str, before: str = "") -> Turn:
    """A turn that wrote `before` (about the block above it), searched, and was shown `names`."""
    return Turn(response=before + SEARCH, passages=tuple(map(doc, names)))


def said(text: str) -> Turn:
    return Turn(response=text)


AB = (doc("A"), doc("B"))


def titles(initial: tuple[Passage, ...], turns: list[Turn], rule: Any = "marked-first") -> list[str]:
    return [passage.title for passage in select_passages(initial, turns, rule=rule)]


@pytest.mark.parametrize(
    ("turns", "selected"),
    [
        pytest.param([said(END)], ["A", "B"], id="I, complete"),
        pytest.param([searched("B1", "B2"), said(mark("[2]") + END)], ["B2", "A", "B"], id="I, Q, [2], complete"),
        pytest.param([searched("B1", "B2", before=mark("[1]")), said(mark("[2]"))], ["A", "B2"], id="I, [1], Q, [2]"),
        pytest.param([searched("B1"), said(mark("[]"))], ["A", "B"], id="I, Q, []"),
        pytest.param(
            [searched("B1", "B2"), said(mark("[2]") + mark("[1]") + END)],
            ["B2", "A", "B"],
            id="a second mark of a block is ignored",
        ),
        pytest.param(
            [searched("B1", "B2"), said(mark("[2]")), said(mark("[1]") + END)],
            ["B2", "A", "B"],
            id="also in a later turn",
        ),
        pytest.param([searched("B1", "B2"), said(mark("[9, 10]"))], ["A", "B"], id="numbers that were not shown"),
        pytest.param([searched(), said(mark("[1]") + END)], ["A", "B"], id="a search that found nothing"),
        pytest.param([searched("B1", "B2"), said(END)], ["A", "B", "B1", "B2"], id="no mark keeps everything"),
        pytest.param(
            [searched("B1", "B2", "B3"), said(mark("[3, 1]"))],
            ["B1", "B3", "A", "B"],
            id="document order, not id order",
        ),
        pytest.param([said(mark("[]") + END)], [], id="everything rejected"),
        pytest.param(
            [searched("B1", "B2"), searched("C1", before=mark("[2]")), said(mark("[1]"))],
            ["B2", "C1", "A", "B"],
            id="marked blocks in order, unmarked last",
        ),
    ],
)
def test_vectors_of_the_original(turns: list[Turn], selected: list[str]) -> None:
    assert titles(AB, turns) == selected


def test_a_mark_after_the_query_was_cut_off_and_does_not_count() -> None:
    turns = [Turn(response=SEARCH + mark("[1]"), passages=(doc("B1"),)), said(END)]
    assert titles(AB, turns) == ["A", "B", "B1"]


@pytest.mark.parametrize("title", ['"Avatar (2009 film)"', '"""Heroes"" (album)"', "a ) b : ("])
def test_no_title_loses_its_passage(title: str) -> None:
    turns = [Turn(response=SEARCH, passages=(doc(title), doc("x"))), said(mark("[1]"))]
    assert titles((), turns) == [title]


def test_the_first_of_equal_passages_keeps_its_place() -> None:
    assert titles((doc("A"), doc("B"), doc("A")), [said(END)]) == ["A", "B"]
    assert titles(AB, [searched("B", "C"), said(mark("[1, 2]"))]) == ["B", "C", "A"]
    assert titles((doc("A"),), [searched("B", "A"), said(END)]) == ["A", "B"]


def test_passages_without_ids_are_equal_by_title_and_text() -> None:
    turns = [
        Turn(response=SEARCH, passages=(doc("A", "one", id=""), doc("A", "two", id=""), doc("A", "one", id=""))),
    ]
    assert [passage.text for passage in select_passages((), turns)] == ["one", "two"]


def test_a_passage_of_the_data_without_an_id_is_the_one_that_the_server_gives_an_id() -> None:
    known, found = doc("A", id=""), doc("A")
    other = doc("A", id="of the same text")
    for first, second in ((known, found), (found, known)):
        turns = [Turn(response=SEARCH, passages=(second,)), said(END)]
        assert select_passages((first,), turns, rule="chronological") == (first,)
    assert len(select_passages((found, other), [said(END)])) == 2, "two ids are two passages"


@pytest.mark.parametrize(
    ("turns", "selected"),
    [
        pytest.param([said(END)], ["A", "B"], id="the initial block is always in"),
        pytest.param([said(mark("[1]") + END)], ["A", "B"], id="and no mark takes it"),
        pytest.param([searched("B1", "B2"), said(END)], ["A", "B"], id="an unmarked block gives nothing"),
        pytest.param([searched("B1", "B2"), said(mark("[2]"))], ["A", "B", "B2"], id="initial first, marked after"),
        pytest.param(
            [searched("B1"), searched("C1", "C2"), said(mark("[2]") + mark("[1]"))],
            ["A", "B", "C2", "B1"],
            id="a second mark reaches back to the closest unmarked block",
        ),
        pytest.param(
            [searched("B1"), searched("C1", before=mark("[1]")), said(mark("[1]") + mark("[1]"))],
            ["A", "B", "B1", "C1"],
            id="marks without a block left are ignored",
        ),
    ],
)
def test_mirage(turns: list[Turn], selected: list[str]) -> None:
    assert titles(AB, turns, "mirage") == selected


def test_chronological_ignores_marks() -> None:
    turns = [searched("B1", "A", before=mark("[]")), said(mark("[1]") + END)]
    assert titles(AB, turns, "chronological") == ["A", "B", "B1"]


def test_an_unknown_rule_is_named() -> None:
    with pytest.raises(ValueError, match="best"):
        titles(AB, [], "best")


bodies = st.lists(st.integers(0, 12)).map(str) | st.text(max_size=5)
turns_of = st.lists(
    st.builds(
        lambda body, names: Turn(
            response=("" if body is None else mark(body)) + SEARCH,
            passages=None if names is None else tuple(map(doc, names)),
        ),
        st.none() | bodies,
        st.none() | st.lists(st.sampled_from("ABCDEF"), max_size=4),
    ),
    max_size=6,
)


@given(turns_of, st.sampled_from(get_args(SelectionRule)))
def test_every_rule_selects_shown_passages_once(turns: list[Turn], rule: SelectionRule) -> None:
    shown = {passage for turn in turns for passage in turn.passages or ()} | set(AB)  # pyright: ignore[reportUnhashable]
    selected = select_passages(AB, turns, rule=rule)
    assert set(selected) <= shown  # pyright: ignore[reportUnhashable]
    assert rule == "every" or len({passage.id for passage in selected}) == len(selected)
    if rule == "chronological":
        assert set(selected) == shown
    if rule == "mirage":
        assert selected[:2] == AB


@pytest.mark.timeout(20)
def test_hostile_responses_are_selected_from_in_linear_time() -> None:
    turns = [Turn(response=mark("1 " * 20_000) * 5, passages=AB) for _ in range(50)]
    assert titles(AB, [*turns, said(mark("[1]"))]) == ["A"]
