"""Published formats in and out: equal field by field, whatever the columns; samples are pandas' own."""

import json
from pathlib import Path
from typing import Any

import numpy
import pandas
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3_agent.data.naive_rag.cache import RagAnswer, RagCache
from s3_agent.data.published.browsecomp_plus import BROWSECOMP_PLUS
from s3_agent.data.published.exchange import read_published, write_published
from s3_agent.data.published.json_files import import_sequences, render_contexts, split_contexts
from s3_agent.data.published.rows import Form, form_of, to_published, to_task, write_parquet
from s3_agent.data.questions import Dropped, mirage_questions, sampled, usable
from s3_agent.data.tasks import load_tasks
from s3_agent.errors import DataError
from s3_agent.types import Passage, Task
from tests.published_files import flashrag, mirage, parquet, s3_row, search_r1_row

ROWS = flashrag("popqa", "test", 7)
FORMS = {
    "s3": [s3_row("popqa", row, index) for index, row in enumerate(ROWS)],
    "s3, no prompt": [s3_row("popqa", row, index, prompt=False) for index, row in enumerate(ROWS)],
    "search-r1": [search_r1_row("popqa", row, index) for index, row in enumerate(ROWS)],
    "no id": [{**search_r1_row("nq", row, index), "id": None} for index, row in enumerate(ROWS)],
}


def read(kind: str, source: Path, target: Path, *tasks: Path, data_source: str = "") -> list[str]:
    return list(read_published(kind, source, target, task_files=tasks, data_source=data_source))


def with_texts(kind: Any) -> Any:
    """The type that is written: where pyarrow knows of nothing but null, a text."""
    if pyarrow.types.is_null(kind):
        return pyarrow.string()
    if pyarrow.types.is_list(kind):
        return pyarrow.list_(with_texts(kind.value_type))
    if pyarrow.types.is_struct(kind):
        return pyarrow.struct([(field.name, with_texts(field.type)) for field in kind])
    return kind


@pytest.mark.parametrize("rows", FORMS.values(), ids=FORMS)
def test_parquet_to_tasks_to_parquet_is_equal_field_by_field(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    source, tasks, target = tmp_path / "in.parquet", tmp_path / "tasks.jsonl", tmp_path / "out.parquet"
    source.write_bytes(parquet(rows))
    read("rows", source, tasks)
    assert len(load_tasks(tasks)) == len(rows)
    list(write_published("rows", tasks, target, task_files=[], form=None))
    before, after = pyarrow.parquet.read_table(source), pyarrow.parquet.read_table(target)
    assert after.schema == pyarrow.schema([(field.name, with_texts(field.type)) for field in before.schema])
    assert after.to_pylist() == before.to_pylist()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(
    row=st.fixed_dictionaries(
        {"id": st.text(max_size=5), "question": st.text(max_size=9), "golden_answers": st.lists(st.text(max_size=5))},
        optional={
            "prompt": VALUES,
            "ability": VALUES,
            "reward_model": VALUES,
            "extra_info": VALUES,
            "data_source": st.text(max_size=5),
            "more": VALUES,
        },
    )
)
def test_any_row_with_the_three_fields_comes_back(row: dict[str, Any]) -> None:
    try:
        task = to_task(row, "x")
    except DataError:
        return  # a ground truth whose target is no list
    assert to_published(json.loads(json.dumps(task)), split="x", index=0) == row


def test_numpy_lists_of_pandas_are_lists(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    path.write_bytes(parquet(FORMS["s3"]))
    row = pandas.read_parquet(path).to_dict("records")[0]
    assert isinstance(row["golden_answers"], numpy.ndarray)
    assert to_task(row, "x") == to_task(FORMS["s3"][0], "x")


def test_a_task_that_was_never_published_is_written_in_the_form_asked_for() -> None:
    task = {"id": "nq/test_3", "question": "q", "golden_answers": ["a"], "data_source": "nq"}
    row = to_published(task, form=Form.SEARCH_R1, split="test", index=3)
    assert row["id"] == "test_3" and row["extra_info"] == {"split": "test", "index": 3}
    assert form_of(row) is Form.SEARCH_R1 and form_of(to_published(task, split="test", index=3)) is Form.S3
    del task["data_source"]
    assert to_published(task, split="test", index=3)["data_source"] == "unknown"


def test_a_row_that_is_none_says_what_it_has() -> None:
    with pytest.raises(
        DataError, match=r"x:3 is no published row: it lacks a question and golds and an id; it has the fields 'text'"
    ):
        to_task({"text": "x"}, "x:3")


def test_questions_that_occur_twice_are_kept_apart_by_id() -> None:
    rows = [
        {"id": "0", "question": "who", "golden_answers": ["a"], "data_source": "popqa"},
        {"id": "1", "question": "who", "golden_answers": ["b"], "data_source": "popqa"},
        {"id": "1", "question": "who", "golden_answers": ["b"], "data_source": "popqa"},
        {"id": "2", "question": "who", "golden_answers": [""], "data_source": "popqa"},
    ]
    dropped = Dropped()
    kept = list(usable(((f"x:{number}", to_task(row, "x")) for number, row in enumerate(rows)), dropped))
    assert [row["id"] for row in kept] == ["popqa/0", "popqa/1"]
    assert dropped.counts == {"repeated": 1, "with empty golds": 1}
    assert dropped.report()["repeated"] == {"count": 1, "first": ["popqa/1"]}


def test_the_sample_is_that_of_pandas() -> None:
    rows = [{"id": str(n), "question": f"q{n}", "data_source": "a"} for n in range(500)]
    rows += [{"id": f"b{n}", "question": f"q{n}", "data_source": "b"} for n in range(20)]
    dropped = Dropped()
    kept = sampled(rows, most=100, seed=42, dropped=dropped)
    frame = pandas.DataFrame(rows)
    wanted = frame[frame.data_source == "a"].sample(n=100, random_state=42).id.tolist()
    assert [row["id"] for row in kept[:100]] == wanted
    assert len(kept) + dropped.counts["asked before"] == 120


def test_mirage_questions_have_options_and_the_gold_letter_with_its_text() -> None:
    [(_, first), *_] = list(mirage_questions(mirage(), "x"))
    assert first["question"].endswith("M0\nOptions:\nA: Oslo 0\nB: Lima 1\n")
    assert first["golden_answers"] == ["A: Oslo 0"]
    with pytest.raises(DataError, match="medqa/1 is not a question with options"):
        list(mirage_questions({"medqa": {"1": {"question": "q", "options": {}, "answer": "A"}}}, "x"))


CACHE = {
    "nq": {"who?": {"answer": "a", "score": 1, "em_score": 0}, "failed?": {"answer": None, "score": 0, "em_score": 0}},
    "popqa": {"who?": {"answer": "b ü", "score": 0, "em_score": 0}},
}


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    path = tmp_path / "tasks.jsonl"
    rows = [("popqa/0", "popqa"), ("popqa/1", "popqa"), ("nq/0", "nq")]
    path.write_text(
        "".join(
            Task(id=name, question="who", golden_answers=("a",), data_source=source).model_dump_json() + "\n"
            for name, source in rows
        )
    )
    return path


def test_a_published_rag_cache_comes_back_as_it_was(tmp_path: Path, tasks: Path) -> None:
    source, ours, target = tmp_path / "in.json", tmp_path / "ours.json", tmp_path / "out.json"
    source.write_text(json.dumps(CACHE))
    for given_tasks in ((), (tasks,)):
        read("rag-cache", source, ours, *given_tasks)
        list(write_published("rag-cache", ours, target, task_files=[], form=None))
        assert list(json.loads(target.read_text()).items()) == list(CACHE.items())
    cache = RagCache.read(ours)
    # Two tasks of PopQA ask the same; both get the entry. It does not say what made it.
    assert cache.answers["popqa/0"] == cache.answers["popqa/1"] and cache.fingerprint is None
    assert [task.rag_score for task in cache.scored(load_tasks(tasks))] == [0.0, 0.0, 1.0]


SEQUENCES = {
    "who?": {
        "golden_answers": ["a"],
        "context_with_info": 'Doc 1 (Title: "A (b)") one\nDoc 2 (Title: "C") two\nlines\n',
        "response_str": "<query>…",
    },
    "odd?": {"golden_answers": [], "context_with_info": "Doc 7 (Title: x) no beginning"},
    "none?": {"golden_answers": ["b"], "context_with_info": ""},
}


def test_published_contexts_come_back_as_they_were(tmp_path: Path, tasks: Path) -> None:
    source, ours, target = tmp_path / "in.json", tmp_path / "ours.jsonl", tmp_path / "out.json"
    source.write_text(json.dumps(SEQUENCES))
    for given_tasks in ((), (tasks,)):
        read("sequences", source, ours, *given_tasks, data_source="popqa")
        list(write_published("sequences", ours, target, task_files=[], form=None))
        assert json.loads(target.read_text()) == SEQUENCES
    rows = list(import_sequences(source, load_tasks(tasks), data_source="popqa"))
    assert [row["id"] for row in rows] == ["popqa/0", "popqa/1", "popqa/odd?", "popqa/none?"]
    assert rows[0]["passages"][1] == {"id": "", "title": '"C"', "text": "two\nlines"}


TEXTS = st.text('abD oc123(Title:)"\n', max_size=30)


@given(st.lists(st.builds(Passage, id=st.just(""), title=TEXTS, text=TEXTS), max_size=4))
def test_contexts_are_taken_apart_only_where_that_can_be_undone(passages: list[Passage]) -> None:
    text = render_contexts(passages)
    found = split_contexts(text)
    assert found is None or render_contexts(found) == text


def test_files_that_are_written_are_read_in_any_order(tmp_path: Path) -> None:
    task = {"id": "nq/1", "question": "q", "golden_answers": ["a"], "data_source": "nq"}
    empty = {**to_published(task, split="train", index=0), "extra_info": {}, "metadata": [{}], "more": None}
    filled = {**empty, "extra_info": {"index": 1}, "more": "x"}
    for name, row in (("a", empty), ("b", filled)):
        write_parquet(tmp_path / f"{name}.parquet", [row])
    schema = pyarrow.parquet.read_schema(tmp_path / "a.parquet")
    assert "null" not in str(schema.remove_metadata()).replace("not null", "")
    truth = schema.field("reward_model").type.field("ground_truth").type
    assert truth.field("gt_docs").type == pyarrow.list_(pyarrow.string())
    [row] = pyarrow.parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert row["extra_info"] is None and row["reward_model"]["ground_truth"]["gt_docs"] == []
    with pytest.raises(DataError, match="a column mixes types"):
        write_parquet(tmp_path / "c.parquet", [{"x": 1}, {"x": "a"}])


PROTECTED = {"id": "1", "question": "who?", "golden_answers": ["me"], "data_source": "x", "protected": "the canary"}
CACHED = {"question": "who?", "answer": "me", "score": 1, "em_score": 1, "protected": "the canary"}


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("rows", json.dumps(PROTECTED)),
        ("sequences", json.dumps({**PROTECTED, "passages": []})),
        ("rag-cache", json.dumps({"fingerprint": None, "answers": {"1": CACHED}})),
    ],
)
def test_texts_that_may_not_be_published_are_written_only_when_asked(tmp_path: Path, kind: str, content: str) -> None:
    source, target = tmp_path / "ours", tmp_path / "published"
    source.write_text(content)
    with pytest.raises(DataError, match=r"1 questions in .* may not be published in plain text") as caught:
        list(write_published(kind, source, target, task_files=[], form=None))
    assert not target.exists() and "who" not in str(caught.value)
    list(write_published(kind, source, target, task_files=[], form=None, show_protected=True))
    assert b"who?" in target.read_bytes()


def test_a_cache_holds_the_mark_only_where_there_is_one() -> None:
    answers = {"1": RagAnswer(**CACHED), "2": RagAnswer(**{**CACHED, "protected": None})}
    written = json.loads(RagCache(fingerprint=None, answers=answers).model_dump_json())["answers"]
    assert written["1"]["protected"] == "the canary" and "protected" not in written["2"]
    assert RagCache.model_validate({"fingerprint": None, "answers": written}).answers == answers


@pytest.mark.parametrize(
    ("text", "title", "rest"),
    [
        ("---\ntitle: A page\nauthor: me\n---\nText", "A page", "---\nauthor: me\n---\nText"),
        ("---\r\ntitle: 'Its: name'\r\n---\r\nText", "Its: name", "---\n---\r\nText"),
        ("---\ntitle: 'Tis so\n---\nText", "'Tis so", "---\n---\nText"),
        ("---\ntitle:\n---\nText", "", "---\ntitle:\n---\nText"),
        ("No head\ntitle: x", "", "No head\ntitle: x"),
    ],
)
def test_a_web_documents_title_is_taken_from_its_head(text: str, title: str, rest: str) -> None:
    assert BROWSECOMP_PLUS.corpus is not None and BROWSECOMP_PLUS.corpus.row is not None
    row = BROWSECOMP_PLUS.corpus.row({"docid": "7", "text": text, "url": "u"})
    assert (row.get("title", ""), row["text"], row["docid"]) == (title, rest, "7")
