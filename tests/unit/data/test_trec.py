"""TREC's topics and qrels in all their forms, and back; what can not be read names its line."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3_agent.data.trec import (
    holds_topics,
    qrel_lines,
    read_qrels,
    read_topics,
    token,
    topic_lines,
    topic_rows,
    with_qrels,
)
from s3_agent.errors import DataError
from s3_agent.types import Evidence, Task

TOPICS = [("301", "What is the capital?"), ("q-2", "a second one")]


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("topics.tsv", "301\tWhat is the capital?\r\nq-2\ta second  one\n\n"),
        ("queries.jsonl", '{"_id": "301", "text": "What is the capital?"}\n{"_id": "q-2", "text": "a second one"}\n'),
        (
            "topics.txt",
            "<top>\n<num> Number: 301\n<title> What is the\n capital?\n\n<desc> Description:\nmore\n</top>\n"
            "<top><num>q-2</num><title>a second one</title></top>",
        ),
        (
            "topics.xml",
            '<topics><topic number="301"><query>What is the capital?</query><question>longer</question></topic>\n'
            "<topic number='q-2'><title>a second one</title></topic></topics>",
        ),
    ],
)
def test_topics_of_every_form(tmp_path: Path, name: str, text: str) -> None:
    assert read_topics(written(tmp_path, name, text)) == TOPICS


@pytest.mark.parametrize(
    "text",
    [
        "1 0 d1 2\n1 0 d2 0\n1 0 d3 -1\n2 Q0 d1 1\n",
        "query-id\tcorpus-id\tscore\n1\td1\t2\n1\td2\t0\n2\td1\t1\n1\td1\t2\n",
    ],
)
def test_qrels_of_trec_and_of_beir(tmp_path: Path, text: str) -> None:
    assert read_qrels(written(tmp_path, "qrels", text)) == {"1": {"d1": 2}, "2": {"d1": 1}}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("1 0 d1 1\n1 0 d1 2\n", "qrels:2"),
        ("1 0 d1\n", "qrels:1 is no qrel"),
        ("1 0 d 1 1\n", "qrels:1 is no qrel"),
        ("\n1 0 d1 high\n", "qrels:2"),
        ("1 0 d1 0\n", "no relevant document"),
        ("", "no relevant document"),
    ],
)
def test_broken_qrels_name_their_line(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        read_qrels(written(tmp_path, "qrels", text))


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("t.tsv", "301 no tab\n", "t.tsv:1"),
        ("t.tsv", "1\ta\n1\tb\n", "t.tsv:2: the topic '1' occurs twice"),
        ("t.tsv", "\n", "no topic"),
        ("t.txt", "<top><title>no number</title></top>", "topic 1"),
        ("t.jsonl", '{"_id": "1"}\n', "t.jsonl"),
        ("none.tsv", "", "none.tsv has no topic"),
    ],
)
def test_broken_topics_name_their_place(tmp_path: Path, name: str, text: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        read_topics(written(tmp_path, name, text))


def test_a_table_with_named_questions_holds_no_topics(tmp_path: Path) -> None:
    assert holds_topics(written(tmp_path, "a.tsv", "1\tWho?\n"))
    assert not holds_topics(written(tmp_path, "b.tsv", "id\tQuestion\tanswers\n1\tWho?\tAnn\n"))
    assert not holds_topics(tmp_path / "c.jsonl")


def test_topics_and_qrels_become_tasks_without_answers() -> None:
    [row] = topic_rows(TOPICS, {"301": {"d1": 2, "d2": 1}, "other": {"d1": 1}}, "own")
    task = Task.from_row(row)
    assert (task.id, task.answerable, task.data_source) == ("301", False, "own")
    assert task.evidence == (Evidence(id="d1", relevance=2), Evidence(id="d2"))
    assert with_qrels([{"id": "a"}, {"id": "b", "evidence": [{"id": "x"}]}], {"a": {"d": 1}}) == [
        {"id": "a", "evidence": [{"id": "d"}]},
        {"id": "b", "evidence": [{"id": "x"}]},
    ]


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1).filter(str.strip)


@given(st.dictionaries(NAMES.map(token), st.dictionaries(NAMES.map(token), st.integers(1, 5), min_size=1), min_size=1))
def test_what_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, qrels: dict[str, dict[str, int]]
) -> None:
    folder = tmp_path_factory.mktemp("trec")
    tasks = [
        Task(
            id=name,
            question=f"about {name}",
            golden_answers=(),
            evidence=tuple(Evidence(id=document, relevance=grade) for document, grade in grades.items()),
        )
        for name, grades in qrels.items()
    ]
    path = written(folder, "qrels", "".join(line + "\n" for line in qrel_lines(tasks)))
    assert read_qrels(path) == qrels
    topics = written(folder, "topics.tsv", "".join(line + "\n" for line in topic_lines(tasks)))
    if "<top" not in topics.read_text(encoding="utf-8").lower():
        assert [name for name, _ in read_topics(topics)] == [*qrels]


def test_ids_that_a_file_can_not_tell_apart_are_refused() -> None:
    tasks = [Task(id=name, question="q", golden_answers=("a",)) for name in ("a b", "a_b")]
    with pytest.raises(DataError, match="are the same in a TREC file"):
        topic_lines(tasks)


def test_narrow_qrels_hold_only_what_has_the_answer() -> None:
    task = Task(
        id="1",
        question="q",
        golden_answers=("a",),
        evidence=(Evidence(title="Two words"), Evidence(id="d", answer=True)),
    )
    assert qrel_lines([task]) == ["1 0 Two_words 1", "1 0 d 1"]
    assert qrel_lines([task], answers=True) == ["1 0 d 1"]
