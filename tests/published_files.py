"""Small files of the layout in which wiki-18, its indexes, FlashRAG, s3's rows, MedRAG and MIRAGE are published."""

import gzip
import io
import json
from typing import Any

import faiss
import numpy
import pyarrow
import pyarrow.parquet

from s3_agent.data.published.flashrag import FLASHRAG
from s3_agent.data.published.mirage import MIRAGE_FILE
from s3_agent.data.published.released_rows import S3_ROWS, SEARCH_R1_ROWS
from s3_agent.testing.fake_hub import FakeHub

Row = dict[str, Any]
CITIES = ["Oslo", "Lima", "Quito", "Accra", "Sofia", "Riga", "Doha", "Hanoi", "Tunis", "Minsk", "Dakar", "Seoul"]
PASSAGES = 240
QUESTIONS = 60


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    """Lines of JSON."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    """A Parquet file."""
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


def city(number: int) -> str:
    """A name that one passage has."""
    return f"{CITIES[number % len(CITIES)]} {number}"


def wiki() -> list[dict[str, Any]]:
    """Passages as wiki-18 has them: a quoted title line and the text."""
    return [
        {"id": str(number), "contents": f'"{city(number)}"\nThe mayor of {city(number)} is M{number}. Ünï\u2028code.'}
        for number in range(PASSAGES)
    ]


def flashrag(name: str, split: str, count: int) -> list[dict[str, Any]]:
    """Rows as FlashRAG has them; every third has an answer that no passage holds."""
    return [
        {
            "id": f"{split}_{number}",
            "question": f"who is the mayor of {city(number)} ({name} {split})",
            "golden_answers": ["nobody at all"] if number % 3 == 0 else [f"M{number}"],
            "metadata": {"type": "bridge"},
        }
        for number in range(count)
    ]


def s3_row(source: str, row: Row, index: int, *, split: str = "train", prompt: bool = True) -> Row:
    """A row as s3 publishes it."""
    text = f'<question>\n{row["question"]}\n</question>\n<information>\nDoc 1 (Title: "x") y\n</information>'
    return {
        "id": row["id"],
        "question": row["question"],
        "golden_answers": row["golden_answers"],
        "metadata": row["metadata"],
        "data_source": source,
        **({"prompt": [{"role": "user", "content": text}]} if prompt else {}),
        "ability": "fact-reasoning",
        "reward_model": {
            "style": "rule",
            "ground_truth": {"question": row["question"] + "?", "target": row["golden_answers"], "gt_docs": []},
        },
        "extra_info": {"split": split, "index": index},
    }


def search_r1_row(source: str, row: dict[str, Any], index: int) -> dict[str, Any]:
    """A row as Search-R1 publishes it: only the target in the ground truth."""
    full = s3_row(source, row, index)
    return {**full, "reward_model": {"style": "rule", "ground_truth": {"target": row["golden_answers"]}}}


def mirage() -> dict[str, Any]:
    """MIRAGE's benchmark file."""
    return {
        name: {
            f"{number:04d}": {
                "question": f"Which city has the mayor M{number}",
                "options": {"A": city(number), "B": city(number + 1)},
                "answer": "AB"[number % 2],
            }
            for number in range(8)
        }
        for name in ("medqa", "medmcqa", "pubmedqa", "bioasq", "mmlu")
    }


def medrag(name: str, count: int) -> bytes:
    """A chunk file as MedRAG has them; `contents` there has no title line."""
    rows = [
        {"id": f"{name}_{number}", "title": f"{name} {number}", "content": "" if number == 1 else f"Cells {number}."}
        for number in range(count)
    ]
    return jsonl([{**row, "contents": f"{row['title']}. {row['content']}"} for row in rows])


def flat_index() -> bytes:
    """A FAISS flat inner-product index over the passages."""
    vectors = numpy.random.default_rng(0).standard_normal((PASSAGES, 8), dtype="float32")
    index = faiss.IndexFlatIP(8)
    index.add(vectors)  # pyright: ignore[reportCallIssue]
    return faiss.serialize_index(index).tobytes()


def fake_hub(**settings: Any) -> FakeHub:
    """The hub with all of it."""
    index, corpus = flat_index(), gzip.compress(jsonl(wiki()), mtime=0)
    nq, hotpotqa = flashrag("nq", "train", QUESTIONS), flashrag("hotpotqa", "train", 20)
    train = [s3_row("nq", row, index) for index, row in enumerate(nq)]
    test = [s3_row("nq", row, index, split="test") for index, row in enumerate(flashrag("nq", "test", 12))]
    return FakeHub(
        {
            "PeterJinGo/wiki-18-corpus": {
                "README.md": b"wiki",
                "wiki-18.jsonl.gz": corpus,
            },
            "PeterJinGo/wiki-18-e5-index": {"part_aa": index[:5000], "part_ab": index[5000:]},
            "PeterJinGo/wiki-18-bm25-index": {"bm25/segments_1": b"lucene", "bm25/_0.cfs": b"\0" * 64},
            FLASHRAG: {
                "nq/train.jsonl": jsonl(nq),
                "nq/test.jsonl": jsonl(flashrag("nq", "test", 40)),
                "hotpotqa/train.jsonl": jsonl(hotpotqa),
                "hotpotqa/dev.jsonl": jsonl(flashrag("hotpotqa", "dev", 10)),
                "bamboogle/test.jsonl": jsonl(flashrag("bamboogle", "test", 5)),
            },
            S3_ROWS: {"train_e5_s3.parquet": parquet(train), "test_e5_s3.parquet": parquet(test)},
            SEARCH_R1_ROWS: {
                "train.parquet": parquet([search_r1_row("nq", row, index) for index, row in enumerate(nq)]),
                "test.parquet": parquet([search_r1_row("hotpotqa", row, index) for index, row in enumerate(hotpotqa)]),
            },
            "MedRAG/wikipedia": {"chunk/wiki0.jsonl": medrag("wiki0", 5)},
            "MedRAG/pubmed": {f"chunk/pubmed{number}.jsonl": medrag(f"pubmed{number}", 4) for number in (1, 2)},
            "MedRAG/textbooks": {"chunk/Anatomy_Gray.jsonl": medrag("Anatomy_Gray", 3), "README.md": b"books"},
        },
        raw={MIRAGE_FILE: json.dumps(mirage()).encode()},
        **settings,
    )
