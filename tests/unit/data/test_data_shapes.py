"""The shapes of questions and passages that data sets come in, each on a made file; `docs/data.md` lists them."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval_server.backends.bm25.settings import Bm25Settings
from retrieval_server.corpus import Corpus
from retrieval_server.errors import RetrievalError
from retrieval_server.indexing import build_index
from retrieval_server.passages import contents_of, read_id, read_passage
from s3_agent.data.corpus.corpora import passages_of_files
from s3_agent.data.files.tables import read_rows
from s3_agent.data.files.whole import write_rows
from s3_agent.data.golds import golds_in
from s3_agent.data.published.rows import tasks_of
from s3_agent.data.questions import flashrag_questions, own_questions
from s3_agent.data.tasks import load_tasks
from s3_agent.errors import DataError
from s3_agent.preparation.own_data import import_own
from s3_agent.types import Evidence

DOCS = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
Row = dict[str, Any]


def written(path: Path, rows: Any) -> Path:
    """Rows in the form that the file's name asks for; a text as it is."""
    text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif path.suffix == ".json" and not isinstance(rows, str):
        path.write_text(json.dumps(rows))
    elif path.suffix in (".csv", ".tsv") and not isinstance(rows, str):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys(), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text(text, encoding="utf-8")
    return path


Q = "Who sang it?"
VERL = {
    "data_source": "searchR1_nq",
    "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Question: {Q}"}],
    "reward_model": {"style": "rule", "ground_truth": {"target": ["X", "Y"]}},
    "extra_info": {"index": 3, "question": Q, "split": "train"},
}
# What docs/data.md calls it: the file's name, its rows, the id and the golds of the first.
QUESTIONS: dict[str, tuple[str, Any, str, list[str]]] = {
    "FlashRAG": ("test.jsonl", [{"id": "test_0", "question": Q, "golden_answers": ["X", "Y"]}], "test_0", ["X", "Y"]),
    "NQ-open": ("nq.jsonl", [{"question": Q, "answer": ["X", "Y"]}], "nq/0", ["X", "Y"]),
    "TriviaQA, Hugging Face": (
        "t.parquet",
        [{"question_id": "tc_1", "question": Q, "answer": {"value": "X", "aliases": ["X", "Y"], "type": "Entity"}}],
        "tc_1",
        ["X", "Y"],
    ),
    "TriviaQA, release": (
        "t.json",
        {"Version": 1.0, "Data": [{"QuestionId": "tc_1", "Question": Q, "Answer": {"Value": "X", "Aliases": ["Y"]}}]},
        "tc_1",
        ["X", "Y"],
    ),
    "SQuAD, Hugging Face": (
        "s.parquet",
        [{"id": "57", "context": "c", "question": Q, "answers": {"text": ["X", "X", "Y"], "answer_start": [1, 1, 2]}}],
        "57",
        ["X", "Y"],
    ),
    "SQuAD, release": (
        "s.json",
        {
            "version": "1.1",
            "data": [
                {
                    "title": "t",
                    "paragraphs": [
                        {
                            "context": "c",
                            "qas": [{"id": "57", "question": Q, "answers": [{"text": "X", "answer_start": 1}]}],
                        }
                    ],
                }
            ],
        },
        "57",
        ["X"],
    ),
    "HotpotQA": ("h.json", [{"_id": "5a", "question": Q, "answer": "X", "supporting_facts": []}], "5a", ["X"]),
    "2WikiMultihopQA": ("w.json", [{"_id": "5b", "question": Q, "answer": "X", "evidences": []}], "5b", ["X"]),
    "MuSiQue": (
        "m.jsonl",
        [{"id": "2hop__1_2", "question": Q, "answer": "X", "answer_aliases": ["Y", "X"], "paragraphs": [{"idx": 0}]}],
        "2hop__1_2",
        ["X", "Y"],
    ),
    "PopQA": (
        "p.tsv",
        [{"id": 7, "question": Q, "obj": "X", "possible_answers": '["X", "Y"]'}],
        "7",
        ["X", "Y"],
    ),
    "Bamboogle": ("b.csv", [{"Question": Q, "Answer": "X"}], "b/0", ["X"]),
    "StrategyQA": ("s.json", [{"qid": "e0", "question": Q, "answer": True}], "e0", ["True", "yes"]),
    "BoolQ": ("b.jsonl", [{"question": Q, "answer": False, "passage": "p"}], "b/0", ["False", "no"]),
    "KILT": (
        "k.jsonl",
        [{"id": "k1", "input": Q, "output": [{"answer": "X", "provenance": []}, {"provenance": [{"title": "t"}]}]}],
        "k1",
        ["X"],
    ),
    "DROP": (
        "d.parquet",
        [{"query_id": "d1", "question": Q, "answers_spans": {"spans": ["X", "Y"], "types": ["span", "span"]}}],
        "d1",
        ["X", "Y"],
    ),
    "BrowseComp-Plus": ("b.jsonl", [{"query_id": "769", "query": Q, "answer": "X"}], "769", ["X"]),
    "a CSV of pandas": ("c.csv", [{"question": Q, "answers": "['X', 'Y']"}], "c/0", ["X", "Y"]),
    "verl": ("v.parquet", [VERL], "v/0", ["X", "Y"]),
}


def questions(path: Path) -> list[Row]:
    return [row for _, row in own_questions(read_rows(path), data_source="mine", numbered=f"{path.stem}/")]


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_questions_of_every_listed_data_set_are_read(tmp_path: Path, name: str) -> None:
    file, rows, name_of_row, golds = QUESTIONS[name]
    [row] = questions(written(tmp_path / file, rows))
    assert (row["id"], row["question"], row["golden_answers"]) == (name_of_row, Q, golds)
    assert name in DOCS


CHOICES = {
    "FlashRAG, `choices`": {"choices": ["Quen", "Orvale"], "golden_answers": [1]},
    "FlashRAG, numbers as texts": {"choices": ["Quen", "Orvale"], "golden_answers": ["1"]},
    "MMLU": {"choices": ["Quen", "Orvale"], "answer": 1},
    "ARC": {"choices": {"text": ["Quen", "Orvale"], "label": ["A", "B"]}, "answerKey": "B"},
    "MedQA": {"options": {"A": "Quen", "B": "Orvale"}, "answer_idx": "B", "answer": "Orvale"},
    "a letter": {"options": ["Quen", "Orvale"], "answer": "b."},
    "a list of objects": {"options": [{"label": "A", "text": "Quen"}, {"label": "B", "text": "Orvale"}], "answer": "B"},
    "a CSV": {"choices": "['Quen', 'Orvale']", "answer": "Orvale"},
}


@pytest.mark.parametrize("row", CHOICES.values(), ids=CHOICES)
def test_choices_become_options_and_the_gold_is_the_text_of_one(row: Row) -> None:
    [(_, task)] = own_questions([("x:1", {"question": Q, **row})], data_source="m")
    assert task["golden_answers"] == ["Orvale", "B: Orvale"]
    assert task["question"] == f"{Q}\nOptions:\nA: Quen\nB: Orvale\n"
    [(_, task)] = flashrag_questions([("x:1", {"id": "0", "question": Q, **row})], data_source="mmlu")
    assert task["id"] == "mmlu/0" and task["golden_answers"][0] == "Orvale"


def test_a_number_that_is_a_choice_is_a_text_and_another_an_index() -> None:
    for golds, text in ((["4"], "4"), ([0], "4"), (["5"], "5")):
        [(_, task)] = own_questions(
            [("x:1", {"question": Q, "choices": ["4", "5"], "golden_answers": golds})], data_source="m"
        )
        assert task["golden_answers"][0] == text


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ({"answer": {"x": 1}}, "a gold answer is an object with the fields 'x'"),
        ({"answer": '{"x": 1}'}, "a gold answer is an object with the fields 'x'"),
        ({"answers": [None]}, "a gold answer is null"),
        ({"answer": "['X', nan]"}, "a gold answer looks like a list or an object, and can not be read: ['X', nan]"),
        ({"answer": "[{'x': y}]"}, "can not be read: [{'x': y}]"),
        ({"answers": ["X", float("nan")]}, "a gold answer is null"),
        ({"answers": [float("inf")]}, "a gold answer is inf"),
        ({"answer": None}, "it lacks golds; it has the fields 'question', 'answer'"),
        ({"answer": float("nan")}, "it lacks golds"),
        ({"question": None}, "it lacks a question and golds"),
        ({"answer": "X", "_id": {"$oid": "5"}}, "`_id` is no id but dict"),
        ({"choices": ["a", "b"], "answer": 2}, "the gold 2 is the number of none of the 2 options"),
        ({"choices": ["a", "b"], "answer": "c c"}, "the gold 'c c' is none of the options 'a', 'b'"),
        ({"answers": [r"Crazy\s?Horse"]}, "the golds are regular expressions"),
        ({"answers": ["New.*York"]}, "the golds are regular expressions"),
    ],
)
def test_what_is_not_known_is_refused_with_its_place(row: Row, error: str) -> None:
    with pytest.raises(DataError) as caught:
        list(own_questions([("q.jsonl:4", {"question": Q, **row})], data_source="m"))
    assert str(caught.value).find("q.jsonl:4") >= 0 and error in str(caught.value)


def test_curatedtrec_is_refused_by_its_name() -> None:
    with pytest.raises(DataError, match="curatedtrec: the golds are regular expressions"):
        list(
            flashrag_questions(
                [("x:1", {"id": "1", "question": Q, "golden_answers": ["X|Y"]})], data_source="curatedtrec"
            )
        )


@pytest.mark.parametrize(
    ("value", "golds"),
    [
        ("X", ["X"]),
        ("", [""]),
        (None, []),
        (float("nan"), []),
        ([], []),
        ([["X", "Y"], "X"], ["X", "Y"]),
        ('["X", "Y"]', ["X", "Y"]),
        ("['X', 'Y']", ["X", "Y"]),
        ("['X' 'Y']", ["X", "Y"]),
        ("['X'\n 'Y']", ["X", "Y"]),
        ("array(['X', 'Y'], dtype=object)", ["X", "Y"]),
        (["['X', 'Y']"], ["X", "Y"]),
        ("[1990, 1991]", ["1990", "1991"]),
        (["[0, 1]"], ["[0, 1]"]),
        ("[sic]", ["[sic]"]),
        ("[Cu(NH3)4]", ["[Cu(NH3)4]"]),
        ("{1, 2}", ["{1, 2}"]),
        ("(1, 2)", ["(1, 2)"]),
        ("{'text': array(['X', 'Y'], dtype=object), 'answer_start': array([1, 2], dtype=int32)}", ["X", "Y"]),
        ("{'value': 'X', 'aliases': ['Y']}", ["X", "Y"]),
        ("1990.0", ["1990", "1990.0"]),
        (["1990.0"], ["1990.0"]),
        (1500.0, ["1500"]),
        (1500, ["1500"]),
        (0.5, ["0.5"]),
        (1e-7, ["0.0000001"]),
        (True, ["True", "yes"]),
        ([{"answer": "X"}, {"answer": ["Y"]}, {"provenance": []}], ["X", "Y"]),
        ({"Value": "X", "Aliases": ["Y"], "NormalizedValue": "x"}, ["X", "Y"]),
        ("half \ud83d", ["half ?"]),
    ],
)
def test_golds_are_unfolded(value: Any, golds: list[str]) -> None:
    assert golds_in(value) == golds


def test_an_empty_field_does_not_hide_a_filled_one() -> None:
    for empty in ([], None, "", [""], "[]", float("nan")):
        [(_, task)] = own_questions([("x", {"question": Q, "golden_answers": empty, "answer": "X"})], data_source="m")
        assert task["golden_answers"] == ["X"]


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


@given(st.lists(TEXTS, min_size=1, max_size=4, unique=True))
def test_texts_come_back_from_every_form_of_a_list(texts: list[str]) -> None:
    if not any(text.strip()[:1] in ("[", "{", "a") for text in texts):
        assert golds_in(texts) == golds_in(json.dumps(texts)) == golds_in(repr(texts)) == texts


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=9), lambda inner: st.lists(inner)))
def test_anything_is_a_list_of_texts_or_refused(value: Any) -> None:
    try:
        golds = golds_in(value)
    except ValueError:
        return
    assert all(isinstance(gold, str) and gold not in ("None", "nan") for gold in golds) or "None" in str(value)


def test_rows_of_verl_are_published_rows() -> None:
    for truth in ({"target": ["X", "Y"]}, ["X", "Y"], "X"):
        row = {**VERL, "reward_model": {"style": "rule", "ground_truth": truth}}
        [(_, task)] = tasks_of([("x:1", row)])
        assert task["id"] == "searchR1_nq/3" and task["question"] == Q and task["golden_answers"][0] == "X"
        assert task["prompt"] == f"Be brief.\n\nQuestion: {Q}", "the system message is kept"
    with pytest.raises(DataError, match="x:2 is no published row: it lacks a question and an id;"):
        list(tasks_of([("x:2", {"reward_model": {"ground_truth": "X"}, "extra_info": {}})]))


# What docs/data.md calls it: the file's name, its rows, and the id, title and text of the first.
CORPORA: dict[str, tuple[str, Any, tuple[str, str, str]]] = {
    "wiki-18": ("w.jsonl.gz", [{"id": "0", "contents": '"Oslo"\nA city.'}], ("0", "Oslo", "A city.")),
    "DPR's psgs_w100": (
        "psgs_w100.tsv",
        'id\ttext\ttitle\n1\t"A ""big"" city."\t"""Oslo"""\n2\tRain.\tBergen\n',
        ("1", '"Oslo"', 'A "big" city.'),
    ),
    "MedRAG": (
        "m.jsonl",
        [{"id": "b_0", "title": "Oslo", "content": "A city.", "contents": "Oslo. A city."}],
        ("b_0", "Oslo", "A city."),
    ),
    "BEIR": ("corpus.jsonl", [{"_id": "4", "title": "", "text": "A city."}], ("4", "", "A city.")),
    "pyserini": ("p.jsonl", [{"id": "d1", "contents": "Oslo\n\nA city."}], ("d1", "Oslo", "A city.")),
    "one line of `contents`": ("o.jsonl", [{"id": "d1", "contents": "A city."}], ("d1", "", "A city.")),
    "BrowseComp-Plus": ("b.parquet", [{"docid": "12", "text": "A city.", "url": "u"}], ("12", "", "A city.")),
    "`title: null`": ("n.jsonl", [{"id": None, "title": None, "text": "A city."}], ("0", "", "A city.")),
    "NaN of pandas": ("n.jsonl", [{"id": float("nan"), "title": float("nan"), "text": "x"}], ("0", "", "x")),
    "numbers of pandas": ("f.jsonl", [{"id": 3.0, "title": "T", "text": "x"}], ("3", "T", "x")),
    "half a surrogate": ("h.jsonl", [{"id": "1", "title": "a\ud83d", "text": "b\ude00 c"}], ("1", "a?", "b? c")),
}


@pytest.mark.parametrize("name", CORPORA)
def test_the_passages_of_every_listed_corpus_are_read_and_served_alike(tmp_path: Path, name: str) -> None:
    file, rows, expected = CORPORA[name]
    path = written(tmp_path / file, rows)
    passages = [row for _, row in passages_of_files([path])]
    assert tuple(passages[0][field] for field in ("id", "title", "text")) == expected
    write_rows(tmp_path / "corpus.jsonl", passages)
    for served in (tmp_path / "corpus.jsonl", *([path] if path.suffix == ".jsonl" else [])):
        assert [document.model_dump() for document in Corpus(served)] == passages
    if not name.startswith(("NaN", "numbers", "half")):
        assert name in DOCS


@given(st.text('ab"\n '), st.text('ab"\n ', min_size=1))
def test_a_passage_comes_back_from_its_contents(title: str, text: str) -> None:
    title = title.replace("\n", " ")
    passage = read_passage({"contents": contents_of(title, text)})
    assert (passage.title, passage.text) == (title, text)


def test_a_file_whose_rows_have_several_forms_loses_none(tmp_path: Path) -> None:
    rows = [{"contents": "one line"}, {"contents": "T\ntext"}, {"title": None, "text": "x"}, {"_id": 7, "text": "y"}]
    passages = [row for _, row in passages_of_files([written(tmp_path / "c.jsonl", rows)], left_out=pytest.fail)]
    assert [(row["id"], row["title"], row["text"]) for row in passages] == [
        ("0", "", "one line"),
        ("1", "T", "text"),
        ("2", "", "x"),
        ("7", "", "y"),
    ]


def test_an_index_is_not_built_over_an_id_that_occurs_twice(tmp_path: Path) -> None:
    rows = [{"id": "a", "text": "x"}, {"id": "b", "text": "y"}, {"id": "a", "text": "z"}]
    path = written(tmp_path / "c.jsonl", rows)
    with pytest.raises(RetrievalError, match=r"c\.jsonl:3 has the id 'a' of .*c\.jsonl:1"):
        build_index(Corpus(path), tmp_path / "index", Bm25Settings())
    assert not (tmp_path / "index").exists()
    assert read_id({"id": None, "_id": "", "docid": 7}) == "7" and read_id({"id": None}) is None


SIX = ["1\tT1\tplain", '2\tT2\t"opens', "3\tT3\tplain", "4\tT4\tplain", '5\tT5\tends"', "6\tT6\tplain"]


def tsv(path: Path, *lines: str) -> list[Row]:
    path.write_text("id\ttitle\ttext\n" + "".join(f"{line}\n" for line in lines), encoding="utf-8")
    return [row for _, row in read_rows(path)]


def test_a_quote_swallows_no_row_of_a_tsv_file(tmp_path: Path) -> None:
    path = tmp_path / "c.tsv"
    with pytest.raises(DataError, match=r"c\.tsv:3: a quote opens a field here and closes one 3 lines below"):
        tsv(path, *SIX)
    assert [row["text"] for row in tsv(path, *SIX[:4])] == ["plain", '"opens', "plain", "plain"]
    assert [row["text"] for row in tsv(path, '1\tT\t"Heroes" is a song', '2\tT\t"x ""y"" z"', '3\tT\ta "b" c')] == [
        '"Heroes" is a song',
        'x "y" z',
        'a "b" c',
    ]
    assert tsv(path, '1\tT\t"two\nlines\tand a tab"', "2\tT\tx")[0]["text"] == "two\nlines\tand a tab"
    with pytest.raises(DataError, match=r"c\.tsv:3 has not as many fields"):
        tsv(path, "1\tT\tx", "2\tT")


def test_a_quote_swallows_no_row_of_a_csv_file(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_text("id,title,text\n" + "".join(line.replace("\t", ",") + "\n" for line in SIX))
    with pytest.raises(DataError, match=r"c\.csv:3: a quote opens a field here and closes one 3 lines below"):
        list(read_rows(path))
    rows = [{"id": "1", "title": "T", "text": "a\nb, c, d\n7, 8, 9"}, {"id": "2", "title": 'a "b"', "text": "x"}]
    assert [row for _, row in read_rows(written(path, rows))] == rows, "a text of several lines is none of it"


@given(st.lists(st.tuples(st.text("ab\"' ,", max_size=5), st.text("ab\"' ,", max_size=5)), min_size=1, max_size=6))
def test_a_tsv_file_gives_every_row_or_is_refused(tmp_path_factory: Any, rows: list[tuple[str, str]]) -> None:
    path = tmp_path_factory.mktemp("tsv") / "c.tsv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerows([("id", "title", "text"), *((number, *row) for number, row in enumerate(rows))])
    assert [(row["title"], row["text"]) for _, row in read_rows(path)] == rows, "DPR's convention"
    lines = [f"{number}\t{title}\t{text}" for number, (title, text) in enumerate(rows)]
    try:
        assert [row["id"] for row in tsv(path, *lines)] == [str(number) for number in range(len(rows))]
    except DataError as error:
        assert "c.tsv:" in str(error)


PASSAGES = [{"title": "Oslo", "text": "A city."}, {"title": "Bergen", "text": "Rain."}]
OPTIONS: Row = {"validation": None, "validation_share": 0.5, "words": 180, "base": "cpu", "overrides": []}
ASKED = [{"question": "a?", "answer": "A"}, {"question": "b?", "answer": "B"}]


def test_a_folder_of_shards_is_a_corpus(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    (shards / "data" / ".cache").mkdir(parents=True)
    for name in ("data/00.jsonl", "data/01.jsonl"):
        written(shards / name, PASSAGES)
    (shards / "README.md").write_text("# A card\n")
    written(shards / "dataset_infos.json", [])
    written(shards / "data/.cache/x.jsonl", PASSAGES)
    asked = written(tmp_path / "q.jsonl", ASKED)
    said = list(import_own(shards, asked, tmp_path / "mine", **OPTIONS))
    assert said[0].startswith("4 passages, 1 questions to train on, 1 to validate on")
    assert [document.id for document in Corpus(tmp_path / "mine/corpus.jsonl")] == ["00/0", "00/1", "01/0", "01/1"]
    (shards / "notes.md").write_text("text")
    with pytest.raises(DataError, match=r"holds files of rows \(00\.jsonl\) and documents \(notes\.md\)"):
        list(import_own(shards, asked, tmp_path / "mine", **OPTIONS))


def test_json_lines_may_be_called_json_and_one_object_is_one_row(tmp_path: Path) -> None:
    lines = "\n" + "".join(json.dumps(row) + "\n" for row in PASSAGES)
    assert [row for _, row in read_rows(written(tmp_path / "c.json", lines))] == PASSAGES
    assert [row for _, row in read_rows(written(tmp_path / "c.json", json.dumps(PASSAGES[0], indent=1)))] == PASSAGES[
        :1
    ]
    assert [row for _, row in read_rows(written(tmp_path / "c.ndjson", lines))] == PASSAGES


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz"])
def test_a_pointer_of_git_lfs_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"corpus{suffix}"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(DataError, match=r"is a git-lfs pointer, not the file(.|\n)*git lfs pull"):
        list(read_rows(path))
    with pytest.raises(RetrievalError, match="is a git-lfs pointer"):
        Corpus(path)


def test_ids_that_are_given_do_not_collide_and_double_ones_are_named(tmp_path: Path) -> None:
    corpus = written(tmp_path / "c.jsonl", PASSAGES)
    train, held_out = written(tmp_path / "q.jsonl", ASKED), written(tmp_path / "dev.jsonl", ASKED)
    into = tmp_path / "mine"
    list(import_own(corpus, train, into, **{**OPTIONS, "validation": held_out}))
    ids = [[json.loads(line)["id"] for line in (into / name).open()] for name in ("train.jsonl", "validation.jsonl")]
    assert ids == [["q/0", "q/1"], ["dev/0", "dev/1"]]
    (tmp_path / "other").mkdir()
    same_name = written(tmp_path / "other" / "q.jsonl", ASKED)
    list(import_own(corpus, train, into, **{**OPTIONS, "validation": same_name}))

    written(train, [{"_id": 1, **ASKED[0]}, {"_id": 2, **ASKED[1]}])
    written(held_out, [{"_id": 3, **ASKED[0]}, {"_id": 1, **ASKED[1]}])
    with pytest.raises(DataError, match=r"dev\.jsonl:2 has the id '1' of .*q\.jsonl:1: 1 ids are in both"):
        list(import_own(corpus, train, into, **{**OPTIONS, "validation": held_out}))
    twice = written(tmp_path / "twice.jsonl", [{"id": 5, **PASSAGES[0]}, {"id": "5", **PASSAGES[1]}])
    with pytest.raises(DataError, match=r"twice\.jsonl:2 has the id '5' of .*twice\.jsonl:1"):
        list(import_own(twice, train, into, **OPTIONS))


def test_import_reports_golds_that_no_answer_can_match(tmp_path: Path) -> None:
    rows = [{"question": "a?", "answers": ["A", "\u200b"]}, {"question": "b?", "answer": "\u200b"}, *ASKED]
    said = list(
        import_own(
            written(tmp_path / "c.jsonl", PASSAGES), written(tmp_path / "q.jsonl", rows), tmp_path / "m", **OPTIONS
        )
    )
    assert "dropped questions: 1 with golds that no answer can match" in said
    assert "1 questions also have a gold answer that no answer can match, the first: q/0" in said


def test_import_reads_topics_and_qrels_and_knows_the_pieces_of_split_documents(tmp_path: Path) -> None:
    long = " ".join(f"Sentence number {number} is about towns." for number in range(60))
    rows = [{"id": "d_1", "text": long}, {"id": "d_2", "text": "short"}, {"id": "d", "text": "another"}]
    corpus = written(tmp_path / "c.jsonl", rows)
    topics = tmp_path / "topics.tsv"
    topics.write_text("1\tWhich towns?\n2\tWhat is short?\n3\tNobody judged this\n")
    qrels = tmp_path / "qrels"
    qrels.write_text("1 0 d_1 2\n1 0 d 1\n2 0 d_2 1\n")
    said = list(import_own(corpus, topics, tmp_path / "m", **{**OPTIONS, "words": 60}, qrels=qrels))
    assert "2 questions name the documents that they need" in said and "dropped questions: 1 with empty golds" in said
    tasks = {task.id: task for name in ("train", "validation") for task in load_tasks(tmp_path / f"m/{name}.jsonl")}
    passages = [document.id for document in Corpus(tmp_path / "m/corpus.jsonl")]
    pieces = tuple(name for name in passages if name.startswith("d_1#"))
    assert len(pieces) > 2
    assert tasks["1"].evidence == (Evidence(id="d_1", relevance=2, pieces=pieces), Evidence(id="d"))
    assert tasks["2"].evidence == (Evidence(id="d_2"),)
    # Questions with answers keep their own evidence, with its pieces.
    asked = written(tmp_path / "q.jsonl", [{**ASKED[0], "id": "x", "evidence": ["d_1"]}, {**ASKED[1], "id": "y"}])
    list(import_own(corpus, asked, tmp_path / "n", **{**OPTIONS, "words": 60}))
    tasks = {task.id: task for name in ("train", "validation") for task in load_tasks(tmp_path / f"n/{name}.jsonl")}
    assert tasks["x"].evidence == (Evidence(id="d_1", pieces=pieces),) and tasks["y"].evidence is None
