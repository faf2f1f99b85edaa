"""Corpora and questions that people bring: every form read, every mistake named with its line."""

import csv
import gzip
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3_agent.data.corpus.corpora import check_corpus, passages_of, passages_of_files
from s3_agent.data.corpus.documents import passages_of_folder, read_document
from s3_agent.data.corpus.pdf_text import Line, text_of
from s3_agent.data.corpus.splitting import Splitter, count_words
from s3_agent.data.files.tables import read_rows
from s3_agent.data.questions import Dropped, own_questions, usable
from s3_agent.data.tasks import load_tasks
from s3_agent.errors import DataError
from s3_agent.preparation.own_data import import_own
from s3_agent.recipe import load_recipe

ROWS = [{"id": "a", "title": "Oslo", "text": "A city,\nin Norway."}, {"id": "b", "title": "Bergen", "text": "Rain."}]


def written(folder: Path, suffix: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / f"rows{suffix}"
    text = "".join(json.dumps(row) + "\n" for row in rows)
    match suffix:
        case ".jsonl":
            path.write_text("\n" + text)
        case ".jsonl.gz":
            path.write_bytes(gzip.compress(text.encode()))
        case ".json":
            path.write_text(json.dumps(rows))
        case ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        case _:
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, rows[0].keys(), delimiter="\t" if suffix == ".tsv" else ",")
                writer.writeheader()
                writer.writerows(rows)
    return path


SUFFIXES = [".jsonl", ".jsonl.gz", ".json", ".csv", ".tsv", ".parquet"]


def read(*paths: Path) -> list[dict[str, Any]]:
    return [row for _, row in passages_of_files(paths)]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_kind_of_file_gives_the_same_passages(tmp_path: Path, suffix: str) -> None:
    passages = read(written(tmp_path, suffix, ROWS))
    assert [row["id"] for row in passages] == ["a", "b"]
    assert passages[0]["contents"] == '"Oslo"\nA city,\nin Norway.'


@pytest.mark.parametrize(
    ("row", "title", "text"),
    [
        ({"id": 1, "contents": '"Oslo"\nA city.'}, "Oslo", "A city."),
        ({"id": 1, "title": "Oslo", "text": "A city."}, "Oslo", "A city."),
        ({"id": 1, "title": "Oslo", "content": "A city.", "contents": "Oslo. A city."}, "Oslo", "A city."),
    ],
    ids=["wiki-18", "cube", "MedRAG"],
)
def test_every_schema_in_use_becomes_one(row: dict[str, Any], title: str, text: str) -> None:
    [(_, passage)] = passages_of([("x:1", row)])
    assert passage == {"id": "1", "title": title, "text": text, "contents": f'"{title}"\n{text}'}


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        (['{"id": "0", "body": "x"}'], r":1 is not a passage: it has the fields 'id', 'body'; a passage needs"),
        (['{"title": "a", "text": "x"}', "", '{"title": "a"}'], r":3 is not a passage: it has the fields 'title'"),
        (['{"id": {}, "text": "x"}'], r":1 is not a passage: `id` is no id but dict"),
        (['{"title": "a", "text": "x"}', '{"title": "a", "text": 3}'], r":2 is not a passage: `text` is not a text"),
        (['{"title": "a", "text": "x"}', '{"title": "a", "te'], r":2 is not JSON"),
        (["[1]"], r":1 is not a JSON object"),
    ],
)
def test_what_is_wrong_with_a_corpus_is_told_with_its_line(tmp_path: Path, lines: list[str], error: str) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"corpus\.jsonl" + error):
        check_corpus(path)


def test_a_csv_row_of_another_length_is_named(tmp_path: Path) -> None:
    path = tmp_path / "corpus.csv"
    path.write_text('id,title,text\n1,"a\nb",x\n2,b\n')
    with pytest.raises(DataError, match=r"corpus\.csv:4 has not as many fields"):
        list(read_rows(path))


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".parquet"])
def test_a_file_that_was_cut_short_is_told(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path, suffix, ROWS)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"can not be read|not a whole Parquet"):
        list(read_rows(path))


def test_an_id_that_occurs_twice_is_named_with_both_lines(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:4 has the id 'a' of .*rows\.jsonl:2"):
        check_corpus(written(tmp_path, ".jsonl", [*ROWS, ROWS[0]]))


def test_an_empty_corpus_and_an_unknown_kind_are_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    with pytest.raises(DataError, match="holds no passage"):
        check_corpus(empty)
    with pytest.raises(DataError, match="not a readable kind of file"):
        list(read_rows(tmp_path / "corpus.xml"))
    with pytest.raises(DataError, match="is missing"):
        list(read_rows(tmp_path / "none.jsonl"))


LONG = "\n\n".join(f"Paragraph {number} says this. " + "And it goes on. " * 12 for number in range(12))


def test_long_documents_are_cut_at_paragraphs_and_keep_their_id() -> None:
    placed = passages_of([("x:1", {"id": "d", "title": "T", "text": LONG})], splitter=Splitter(60))
    rows = [row for _, row in placed]
    assert [row["id"] for row in rows] == [f"d#{number}" for number in range(1, len(rows) + 1)]
    assert all(len(row["text"].split()) <= 60 and row["text"].startswith("Paragraph") for row in rows)
    assert " ".join(" ".join(row["text"] for row in rows).split()) == " ".join(LONG.split()), "no word is lost"


@given(st.text(max_size=400))
def test_cutting_loses_no_word(text: str) -> None:
    pieces = Splitter(20).pieces(text)
    assert "".join("".join(pieces).split()) == "".join(text.split())


def minimal_pdf(text: str) -> bytes:
    """A PDF with one page that shows `text`; blank for no text."""
    stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode() if text else b""
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R"
        b" /Resources << /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
    ]
    body, offsets = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        offsets.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    size = len(objects) + 1
    return (
        body
        + b"xref\n0 %d\n0000000000 65535 f \n%s" % (size, table)
        + b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (size, len(body))
    )


def test_a_folder_of_documents_is_a_corpus(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more/two_words.txt").write_text("Plain text.")
    (tmp_path / "notes.md").write_text("# The heading\n\nWhat follows.\n")
    (tmp_path / "page.pdf").write_bytes(minimal_pdf("Ferries sail at nine."))
    (tmp_path / "scan.pdf").write_bytes(minimal_pdf(""))
    (tmp_path / "picture.png").write_bytes(b"x")
    left_out: list[str] = []
    rows = {row["id"]: row for _, row in passages_of_folder(tmp_path, left_out=left_out.append)}
    assert list(rows) == ["more/two_words.txt", "notes.md", "page.pdf"]
    assert rows["notes.md"]["contents"] == '"The heading"\nWhat follows.'
    assert rows["more/two_words.txt"]["title"] == "two words"
    assert rows["page.pdf"]["text"] == "Ferries sail at nine."
    assert left_out == ["scan.pdf"]


def test_a_document_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    for name, content in (("bad.pdf", b"%PDF-1.4 nothing"), ("bad.txt", b"\xff\xfe\x00")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name} can not be read"):
            read_document(tmp_path / name)
    with pytest.raises(DataError, match="holds no document"):
        list(passages_of_folder(tmp_path / "none", left_out=print))


QUESTIONS = [
    {"question": "Where does it rain?", "answer": "Bergen"},
    {"question": "What is in Norway?", "gold_ans": ["Oslo", "Bergen"]},
    {"question": "Nothing?", "answer": " "},
    {"id": "own", "question": "Which?", "golden_answers": ["Oslo"]},
]


def test_questions_in_every_form_and_what_is_dropped() -> None:
    dropped = Dropped()
    placed = [(f"x:{number}", row) for number, row in enumerate([*QUESTIONS, QUESTIONS[3]], 1)]
    rows = list(usable(own_questions(placed, data_source="mine", numbered="x/"), dropped))
    assert [(row["id"], row["golden_answers"]) for row in rows] == [
        ("x/0", ["Bergen"]),
        ("x/1", ["Oslo", "Bergen"]),
        ("own", ["Oslo"]),
    ]
    assert dropped.text() == "1 with empty golds, 1 repeated"
    with pytest.raises(DataError, match=r"x:1 is not a question: it lacks a question and golds; it has the fields 'q'"):
        list(own_questions([("x:1", {"q": "?"})], data_source="mine"))
    with pytest.raises(DataError, match=r"x:2: the id 'own' has another question or other answers in x:4"):
        list(usable(own_questions([placed[3], ("x:2", {**QUESTIONS[3], "question": "?"})], data_source="m"), Dropped()))


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_import_makes_a_recipe_of_ones_own_files(tmp_path: Path, suffix: str) -> None:
    corpus = written(tmp_path, ".csv", ROWS)
    questions = written(tmp_path, suffix, QUESTIONS)
    into = tmp_path / "mine"
    options: dict[str, Any] = {
        "validation": None,
        "validation_share": 0.3,
        "words": 180,
        "base": "cpu",
        "overrides": [],
    }
    said = list(import_own(corpus, questions, into, **options))
    assert said[0].startswith("2 passages, 2 questions to train on, 1 to validate on") and "next: " in said[-1]
    recipe = load_recipe(str(into / "recipe.yaml"))
    assert recipe.data.corpus == into / "corpus.jsonl" and recipe.data_folder == into
    assert len(load_tasks(recipe.data.train)) == 2
    before = (into / "corpus.jsonl").read_bytes()
    (tmp_path / "rows.csv").write_text("id,title\n1,x\n")
    with pytest.raises(DataError, match="is not a passage"):
        list(import_own(corpus, questions, into, **options))
    assert (into / "corpus.jsonl").read_bytes() == before, "what was there stays"


def test_protected_questions_keep_their_mark_in_a_private_folder(tmp_path: Path) -> None:
    corpus = written(tmp_path, ".csv", ROWS)
    options: dict[str, Any] = {"validation": None, "validation_share": 0.3, "words": 180, "base": "cpu"}
    for name, rows in (("open", QUESTIONS), ("private", [{**QUESTIONS[0], "protected": "canary"}, *QUESTIONS[1:]])):
        into = tmp_path / name
        list(import_own(corpus, written(tmp_path, ".jsonl", rows), into, overrides=[], **options))
        files = [into / "train.jsonl", into / "validation.jsonl"]
        marks = [task.protected for path in files for task in load_tasks(path) if task.protected]
        assert marks == (["canary"] if name == "private" else [])
        modes = {path.stat().st_mode & 0o077 for path in (into, *files)}
        assert (modes == {0}) == (into / ".gitignore").exists() == (name == "private")


def test_a_heading_stays_with_its_text() -> None:
    body = "Alpha beta gamma delta. " * 30
    sections = [
        "# T",
        "## One",
        body,
        "## Two",
        "More words here. " * 5,
        "### Deep",
        body,
        "Setext\n---",
        body,
        "## End",
    ]
    text = "\n\n".join(sections)
    pieces = Splitter(60, form="markdown").pieces(text)
    assert pieces[0].startswith("# T\n\n## One\n\nAlpha beta")
    assert [piece.split("\n")[0] for piece in pieces if piece.startswith(("#", "Setext"))] == [
        *("# T", "## Two", "### Deep", "Setext", "## End")
    ]
    assert all(count_words(piece) <= 60 for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join(text.split()), "no word is lost"
    plain = Splitter(60).pieces(f"Rules on board\n\n{body}")
    assert plain[0].startswith("Rules on board\n\nAlpha beta") and all(count_words(piece) <= 60 for piece in plain)


@given(st.lists(st.sampled_from(["# A", "## B b", "one two three.", "x " * 30, "c d", "漢字" * 30]), max_size=12))
def test_cutting_markdown_loses_no_word_and_keeps_the_limit(parts: list[str]) -> None:
    text = "\n\n".join(parts)
    pieces = Splitter(20, form="markdown").pieces(text)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(count_words(piece) <= 20 for piece in pieces)


@pytest.mark.parametrize(
    ("text", "words"),
    [("漢字かな交じり文", 8), ("ภาษาไทย", 2), ("two words", 2), ("x" * 41, 3), ("GPT-4 の答え", 4), ("", 0)],
)
def test_words_are_counted_in_scripts_without_spaces(text: str, words: int) -> None:
    assert count_words(text) == words


def test_a_text_without_spaces_is_cut() -> None:
    text = "北京是中华人民共和国的首都。" * 1000
    pieces = Splitter(180).pieces(text)
    assert len(pieces) > 70 and "".join(pieces) == text
    assert all(piece.endswith("。") for piece in pieces), "at the end of a sentence"


def pdf_of(lines: list[tuple[str, int]]) -> bytes:
    """A PDF of one page with lines of text, each with the distance to the next."""
    return minimal_pdf(") Tj 0 -{} Td (".join(text for text, _ in lines).format(*(gap for _, gap in lines[:-1])))


def test_a_pdf_has_paragraphs_and_whole_words(tmp_path: Path) -> None:
    path = tmp_path / "x.pdf"
    lines = [
        ("The first line of the exam-", 14),
        ("ple paragraph ends here.", 28),
        ("A second one is long-", 14),
        ("term and well-", 14),
        ("known; long-term is said of Jean-", 14),
        ("Paul.", 14),
        ("Behind a short line that ends a sentence is another.", 14),
    ]
    path.write_bytes(pdf_of(lines))
    assert read_document(path)[1].split("\n\n") == [
        "The first line of the example paragraph ends here.",
        "A second one is long-term and well-known; long-term is said of Jean-Paul.",
        "Behind a short line that ends a sentence is another.",
    ]


def test_a_place_that_is_reported_twice_gives_its_text_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pypdf import PageObject

    path, extract = tmp_path / "x.pdf", PageObject.extract_text
    path.write_bytes(pdf_of([("One line of", 14), ("a form.", 14)]))

    def twice(page: PageObject, visitor_text: Any) -> str:
        extract(page, visitor_text=visitor_text)
        return extract(page, visitor_text=visitor_text)

    monkeypatch.setattr(PageObject, "extract_text", twice)
    assert read_document(path)[1] == "One line of a form."


def test_a_paragraph_goes_on_over_a_page() -> None:
    pages = [[Line("It goes"), Line("on over the exam-")], [Line("ple page."), Line(""), Line("New.")], [Line("Last.")]]
    assert text_of(pages) == "It goes on over the example page.\n\nNew.\n\nLast."


@given(
    st.lists(
        st.lists(st.builds(Line, st.text("ab-. ", max_size=9).map(str.strip), st.floats(0, 800), st.floats(0, 20)))
    )
)
def test_no_letter_of_a_pdf_is_lost(pages: list[list[Line]]) -> None:
    letters = "".join(line.text for page in pages for line in page)
    assert text_of(pages).translate(str.maketrans("", "", "- \n")) == letters.translate(str.maketrans("", "", "- "))


def test_an_encrypted_pdf_says_what_to_do(tmp_path: Path) -> None:
    from pypdf import PdfReader, PdfWriter

    path = tmp_path / "locked.pdf"
    (tmp_path / "open.pdf").write_bytes(minimal_pdf("Text."))
    for password in ("", "secret"):
        writer = PdfWriter(clone_from=PdfReader(tmp_path / "open.pdf"))
        writer.encrypt(password, owner_password="owner", algorithm="AES-256")
        writer.write(path)
        if password:
            with pytest.raises(DataError, match=r"locked\.pdf can not be read: it is encrypted with a password"):
                read_document(path)
        else:
            assert read_document(path) == ("locked", "Text.")
            ended = subprocess.run([sys.executable, "-c", WITHOUT_CRYPTOGRAPHY, path], capture_output=True, text=True)
            assert "locked.pdf is encrypted, and reading it needs another package" in ended.stdout, ended.stderr


WITHOUT_CRYPTOGRAPHY = """
import sys
from pathlib import Path
sys.modules |= {"cryptography": None, "Crypto": None}
from s3_agent.data.corpus.documents import read_document
from s3_agent.errors import DataError
try:
    read_document(Path(sys.argv[1]))
except DataError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("text", "title", "rest"),
    [
        ("# The heading #\n\nText", "The heading", "Text"),
        ("The heading\n===\n\nText", "The heading", "Text"),
        ("#hashtag and more", "x", "#hashtag and more"),
        ("Text\n\n# Later", "x", "Text\n\n# Later"),
    ],
)
def test_a_heading_that_opens_a_document_is_its_title(tmp_path: Path, text: str, title: str, rest: str) -> None:
    (tmp_path / "x.md").write_text(text)
    assert read_document(tmp_path / "x.md") == (title, rest)


def test_half_a_surrogate_pair_in_a_passage_is_imported_as_a_question_mark(tmp_path: Path) -> None:
    rows = [{"id": "x\ud800", "title": "A\udfff", "text": "b\ud83d"}, {"id": "y", "contents": "C\ud800\nd\ud800"}]
    for row in rows:
        path = written(tmp_path, ".jsonl", [row])
        [(_, passage)] = passages_of(read_rows(path))
        assert json.dumps(passage, ensure_ascii=False).encode() and "?" in passage["text"] and "?" in passage["title"]
        assert check_corpus(path) == 1


def test_an_explicit_null_stays_one(tmp_path: Path) -> None:
    corpus, questions = tmp_path / "corpus.jsonl", tmp_path / "questions.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    questions.write_text("".join(json.dumps({"question": f"{n}?", "answer": "x"}) + "\n" for n in range(5)))
    nulls = ["agent.limits.max_observation_tokens=null", "judge.max_tokens=null", "trainer.guard.below_best=null"]
    assert load_recipe("cpu").judge.max_tokens is not None
    *_, told = import_own(
        corpus,
        questions,
        tmp_path / "it's mine",
        validation=None,
        validation_share=0.2,
        words=180,
        base="cpu",
        overrides=nulls,
    )
    recipe = load_recipe(str(tmp_path / "it's mine" / "recipe.yaml"))
    assert recipe.agent.limits.max_observation_tokens is None
    assert recipe.judge.max_tokens is None and recipe.trainer.guard.below_best is None
    assert shlex.split(told)[-1] == str(tmp_path / "it's mine" / "recipe.yaml")
