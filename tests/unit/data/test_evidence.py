"""Evidence is read from every published layout, and stays in a task through files, rows and JSON."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3_agent.data.evidence import evidence_in
from s3_agent.data.files.tables import read_rows
from s3_agent.data.published.rows import tasks_of, to_published, to_task, write_parquet
from s3_agent.data.questions import flashrag_questions, own_questions
from s3_agent.data.tasks import load_tasks, task_rows
from s3_agent.errors import ConfigError
from s3_agent.types import Evidence, Task

GOLDS = ["Chief of Protocol"]
BOTH = [{"title": "Kiss and Tell"}, {"title": "Shirley Temple", "answer": True}]
SENTENCES = {
    "Kiss and Tell": ["A film of 1945.", "Shirley Temple acts in it."],
    "Shirley Temple": ["She was an actress.", "She was Chief of Protocol later."],
    "Other": ["Chief of Protocol is an office."],
}
FACTS = [["Kiss and Tell", 0], ["Shirley Temple", 1], ["Shirley Temple", 0]]
HUB_FACTS = {"title": [title for title, _ in FACTS], "sent_id": [number for _, number in FACTS]}
MUSIQUE = [
    {"idx": 0, "title": "Other", "paragraph_text": "Chief of Protocol", "is_supporting": False},
    {"idx": 1, "title": "Kiss and Tell", "paragraph_text": "Shirley Temple acts in it.", "is_supporting": True},
    {"idx": 2, "title": "Shirley Temple", "paragraph_text": "She was Chief of Protocol.", "is_supporting": True},
]


def hub_context(name: str) -> dict[str, Any]:
    return {"title": [*SENTENCES], name: [*SENTENCES.values()]}


LAYOUTS: dict[str, dict[str, Any]] = {
    "HotpotQA's release": {"supporting_facts": FACTS, "context": [[*item] for item in SENTENCES.items()]},
    "HotpotQA in the hub": {"supporting_facts": HUB_FACTS, "context": hub_context("sentences")},
    "2Wiki in the hub": {
        "supporting_facts": HUB_FACTS,
        "context": hub_context("content"),
        "evidences": [["a", "b", "c"]],
    },
    "HotpotQA in FlashRAG": {"metadata": {"supporting_facts": HUB_FACTS, "context": hub_context("sentences")}},
    "read by pandas": {
        "metadata": {
            "supporting_facts": {"title": np.array(HUB_FACTS["title"]), "sent_id": np.array(HUB_FACTS["sent_id"])},
            "context": {
                "title": np.array([*SENTENCES]),
                "sentences": np.array([np.array(lines) for lines in SENTENCES.values()], dtype=object),
            },
        }
    },
    "MuSiQue's release": {"paragraphs": MUSIQUE},
    "MuSiQue in FlashRAG": {
        "metadata": {"question_decomposition": [{"support_paragraph": paragraph} for paragraph in MUSIQUE[1:]]}
    },
    "ours": {"evidence": BOTH},
    "ours in Parquet": {"evidence": [{"id": None, "answer": None, "pieces": None, **one} for one in BOTH]},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_gives_the_same_evidence(name: str) -> None:
    row = LAYOUTS[name]
    assert evidence_in(row, GOLDS) == BOTH
    question = {"question": "Which office?", "golden_answers": GOLDS, "id": "1", "data_source": "x"}
    for read in (flashrag_questions, own_questions):
        [(_, task)] = read([("file:1", {**question, **row})], data_source="x")
        assert Task.from_row(task).evidence == tuple(Evidence.model_validate(one) for one in BOTH)
    assert to_task({**question, **row}, "file:1")["evidence"] == BOTH


@pytest.mark.parametrize(
    ("row", "evidence"),
    [
        ({"evidence": ["d1", 7]}, [{"id": "d1"}, {"id": "7"}]),
        ({"evidence": [{"docid": 7, "answer": True}]}, [{"id": "7", "answer": True}]),
        ({"evidence": ["A sentence that supports it."]}, None),
        ({"evidence": "a text"}, None),
        ({"evidence": [{"text": "no name"}]}, None),
        ({"evidence": []}, None),
        ({"supporting_facts": {"title": [], "sent_id": []}, "context": {}}, None),
        ({"supporting_facts": FACTS[:1]}, [{"title": "Kiss and Tell"}]),
        ({"metadata": {"type": "bridge"}}, None),
        ({"metadata": None}, None),
        ({}, None),
    ],
)
def test_what_says_nothing_is_unknown_evidence(row: dict[str, Any], evidence: Any) -> None:
    assert evidence_in(row, GOLDS) == evidence


def test_a_yes_in_a_text_is_no_answer() -> None:
    row = {"supporting_facts": [["T", 0]], "context": [["T", ["yes, it is so"]]]}
    assert evidence_in(row, ["yes"]) == [{"title": "T"}]


FIELDS = st.sampled_from(["title", "sent_id", "context", "sentences", "support_paragraph", "is_supporting", "id"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(FIELDS, inner),
)


@given(
    st.dictionaries(
        st.sampled_from(
            ["evidence", "supporting_facts", "context", "paragraphs", "question_decomposition", "metadata"]
        ),
        JSON,
    )
)
def test_no_row_breaks_the_reader_and_what_it_reads_is_a_task_row(row: dict[str, Any]) -> None:
    found = evidence_in(row, GOLDS)
    task = Task.from_row({"id": "1", "question": "q", "golden_answers": GOLDS, "evidence": found})
    assert (task.evidence is None) == (found is None)


def test_a_parquet_file_keeps_evidence_with_and_without_the_published_fields(tmp_path: Path) -> None:
    common = {"question": "q", "golden_answers": GOLDS, "data_source": "hotpotqa"}
    ours = {"id": "hotpotqa/1", **common, "evidence": BOTH}
    without = {"id": "hotpotqa/2", **common}
    write_parquet(tmp_path / "a.parquet", [to_published(one, split="train", index=0) for one in (ours, without)])
    first, second = (task for _, task in tasks_of(read_rows(tmp_path / "a.parquet")))
    assert first["evidence"] == BOTH and "evidence" not in second

    published = {**common, "id": "3", "metadata": LAYOUTS["HotpotQA in FlashRAG"]["metadata"]}
    task = to_task(published, "x")
    assert task["evidence"] == BOTH
    assert to_published(task, split="train", index=0) == published


def test_a_task_file_keeps_it_and_a_task_with_evidence_needs_no_answer(tmp_path: Path) -> None:
    rows = [
        {"id": "1", "question": "q", "golden_answers": ["a"], "evidence": BOTH},
        {"id": "2", "question": "q", "golden_answers": [], "evidence": [{"id": "d1"}]},
        {"id": "3", "question": "q", "golden_answers": ["a"], "evidence": None},
    ]
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = load_tasks(path)
    assert [task.answerable for task in tasks] == [True, False, True]
    assert tasks[0].evidence == tuple(Evidence.model_validate(one) for one in BOTH) and tasks[2].evidence is None
    assert [Task.from_row(task.model_dump(mode="json")) for task in tasks] == tasks
    assert [row["id"] for row in task_rows(path)] == ["1", "2", "3"]


@pytest.mark.parametrize("evidence", [[{"answer": True}], [{"id": " "}], "d1", [3]])
def test_evidence_without_a_name_is_refused_with_its_field(evidence: Any) -> None:
    with pytest.raises(ConfigError, match="evidence"):
        Task.from_row({"id": "1", "question": "q", "golden_answers": ["a"], "evidence": evidence})
