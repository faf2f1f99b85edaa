"""Small files of the layout in which wiki-18, its indexes, FlashRAG, s3's rows, MedRAG, MIRAGE and BrowseComp-Plus are
published."""

import base64
import gzip
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import faiss
import numpy
import pyarrow
import pyarrow.parquet
import pytest

from s3_agent.data.published import browsecomp_plus
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


KEY = "MADE-UP DATA OF TESTS, NOT A BENCHMARK. canary 00000000"
"""The key of the encrypted set, of our own."""
SECRET = "zanzibarquux"
"""Part of each encrypted question. Answers are `kingfisher` and a number."""
ENCRYPTED = 12


def encrypted_text(text: str) -> str:
    """The encryption of BrowseComp-Plus, computed another way than by the code under test: with large integers."""
    data, digest = text.encode(), hashlib.sha256(KEY.encode()).digest()
    stream = (digest * (len(data) // len(digest) + 1))[: len(data)]
    mixed = int.from_bytes(data, "big") ^ int.from_bytes(stream, "big")
    return base64.b64encode(mixed.to_bytes(len(data), "big")).decode()


def secret_question(number: int) -> str:
    """A question of the encrypted set."""
    return f"Which bird, {SECRET}, did the keeper of lighthouse number {number} paint?"


def secret_answer(number: int) -> str:
    """Its answer."""
    return f"kingfisher {number}"


def web_document(number: int) -> dict[str, Any]:
    """A document of the plain corpus. Two for each question: the lighthouse (evidence), and the painting (gold)."""
    about, kind = divmod(number, 2)
    told = f"It shows a {secret_answer(about)}." if kind else "Its keeper painted."
    text = (
        f"---\ntitle: {'Painting' if kind else 'Lighthouse'} {about}\nauthor: me\n---\nThe lighthouse {about}. {told}"
    )
    return {"docid": str(1000 + number), "text": text, "url": f"http://web/{number}"}


def encrypted_row(number: int) -> dict[str, Any]:
    """A row of the encrypted set: every text but the id is encrypted."""

    def documents(*numbers: int) -> list[dict[str, str]]:
        return [{name: encrypted_text(text) for name, text in web_document(each).items()} for each in numbers]

    return {
        "query_id": str(number),
        "query": encrypted_text(secret_question(number)),
        "answer": encrypted_text(secret_answer(number)),
        "gold_docs": documents(2 * number + 1),
        "evidence_docs": documents(2 * number, 2 * number + 1),
        "negative_docs": documents(2 * number + 2),
    }


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
            browsecomp_plus.QUESTIONS: {
                "README.md": b"encrypted",
                "data/test-00000-of-00001.parquet": parquet([encrypted_row(number) for number in range(ENCRYPTED)]),
            },
            browsecomp_plus.CORPUS: {
                "data/train-00000-of-00001.parquet": parquet([web_document(each) for each in range(2 * ENCRYPTED + 2)])
            },
            "MedRAG/wikipedia": {"chunk/wiki0.jsonl": medrag("wiki0", 5)},
            "MedRAG/pubmed": {f"chunk/pubmed{number}.jsonl": medrag(f"pubmed{number}", 4) for number in (1, 2)},
            "MedRAG/textbooks": {"chunk/Anatomy_Gray.jsonl": medrag("Anatomy_Gray", 3), "README.md": b"books"},
        },
        raw={MIRAGE_FILE: json.dumps(mirage()).encode()},
        **settings,
    )


def hub_at(url: str) -> dict[str, str]:
    """What huggingface_hub takes from HF_ENDPOINT when it is imported, by where it keeps it."""
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    return {
        "constants.ENDPOINT": url,
        "constants.HUGGINGFACE_CO_URL_TEMPLATE": template,
        "file_download.HUGGINGFACE_CO_URL_TEMPLATE": template,  # which releases before 1.0 read
    }


def use_hub(monkeypatch: pytest.MonkeyPatch, url: str, folder: Path) -> None:
    """From now on, huggingface_hub asks the hub at `url`, with an empty cache below `folder`, and nothing waits."""
    for name, value in hub_at(url).items():
        monkeypatch.setattr(f"huggingface_hub.{name}", value, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hf" / "hub"))
    monkeypatch.setattr("s3_agent.data.published.fetching.WAIT_S", 0.0)
