"""The encoder on a card: queries of unlike lengths as they come, and the passages of an index.

    python -m tests.gpu.encoder [--small] [--seconds 100]

A model of E5-base's shape with random weights and a vocabulary of made-up words, a token each: the work does not depend
on the values. A query has 4 to 40 tokens, a passage about 130, as wiki-18's have.
"""

import random
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.untrained_encoder import save_untrained_bert
from retrieval_server.backends.dense.encoder import Encoder
from retrieval_server.backends.dense.settings import EncoderSettings
from retrieval_server.backends.dense.vectors import SHARD, fill
from tests.gpu.measuring import Measuring, begin

WIKI_18 = 21_015_324
BATCHES = 128, 512  # queries that the server has together
ALONE = 64, 256, 1024  # texts of like length in a batch: the best is the limit


class Material:
    """The model's folder and the texts."""

    def __init__(self, folder: Path, *, small: bool) -> None:
        self.model = folder
        words = [f"w{number}" for number in range(500 if small else 30_000)]
        shape = {"dimension": 32, "layers": 2, "heads": 2, "intermediate": 64}
        if not small:
            shape = {"dimension": 768, "layers": 12, "heads": 12, "intermediate": 3072}
        save_untrained_bert(folder, ["query", "passage", ":", *words], **shape)
        draw = random.Random(0)

        def text(fewest: int, most: int) -> str:
            return " ".join(draw.choices(words, k=draw.randint(fewest, most)))

        self.queries = [text(2, 36) for _ in range(64 if small else 4096)]
        self.passages = [text(90, 165) for _ in range(32 if small else 2 * SHARD)]


def rate(measuring: Measuring, work: Any, count: int) -> float:
    """Texts a second, the median of three passes."""
    return count / measuring.seconds(work, repeats=3)


def limit(measuring: Measuring, encoder: Encoder, texts: list[str]) -> float:
    """The model alone: all texts known beforehand, sorted, on the device as tokens, in batches of the best size."""
    ids: Any = sorted(encoder._tokenizer(texts, truncation=True, max_length=256)["input_ids"], key=len)
    best = 0.0
    for size in ALONE[:1] if measuring.small else ALONE:
        parts = [
            encoder._tokenizer.pad({"input_ids": ids[start : start + size]}, return_tensors="pt").to(measuring.device)
            for start in range(0, len(ids), size)
        ]

        def run(parts: list[Any] = parts) -> None:
            with torch.inference_mode():
                for part in parts:
                    encoder._model.states(part["input_ids"], part["attention_mask"])

        best = max(best, rate(measuring, run, len(texts)))
    return best


def queries(measuring: Measuring, encoder: Encoder, dtype: str, texts: list[str]) -> None:
    """As the server encodes them, with other amounts of padding than the constant, and the limit."""
    alone = limit(measuring, encoder, texts)
    chosen = encoder._padding
    for batch in BATCHES[:1] if measuring.small else BATCHES:
        for padding in (chosen, 4096) if measuring.small else dict.fromkeys((chosen, 32, 512, 4096, 16384)):
            encoder._padding = padding

            def run(batch: int = batch) -> None:
                for start in range(0, len(texts), batch):
                    encoder.queries(texts[start : start + batch])

            found = rate(measuring, run, len(texts))
            measuring.say(
                "queries",
                dtype=dtype,
                batch=batch,
                padding=padding,
                chosen=padding == chosen,
                queries_per_s=found,
                sorted_alone_per_s=alone,
                share_of_limit=found / alone,
            )
    encoder._padding = chosen


def passages(measuring: Measuring, encoder: Encoder, dtype: str, texts: list[str]) -> None:
    """A shard at a time, as a build encodes them: alone, and with hashing and writing to a disk."""
    alone = limit(measuring, encoder, texts)
    begin = time.perf_counter()
    encoder._tokenizer(texts, truncation=True, max_length=256)
    tokenizing = time.perf_counter() - begin

    def shards() -> None:
        for start in range(0, len(texts), SHARD):
            encoder.passages(texts[start : start + SHARD])

    found = rate(measuring, shards, len(texts))
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        fill(
            Path(folder),
            passages=len(texts),
            dimension=encoder.dimension,
            dtype="float16",
            rows=lambda start, end: encoder.passages(texts[start:end]),
            report=lambda *_: None,
        )
        built = len(texts) / (time.perf_counter() - begin)
    measuring.say(
        "passages",
        dtype=dtype,
        passages_per_s=found,
        sorted_alone_per_s=alone,
        share_of_limit=found / alone,
        tokenizing_share=tokenizing * found / len(texts),
        built_per_s=built,
        hours_for_wiki_18=WIKI_18 / built / 3600,
        devices=1 if measuring.small else torch.cuda.device_count(),
    )


def main() -> None:
    """Measure and print."""
    measuring, _ = begin("encoder")
    with tempfile.TemporaryDirectory() as folder:
        material = Material(Path(folder), small=measuring.small)
        exact: Any = None
        dtypes: list[Any] = ["float32", "bfloat16"] if measuring.small else ["float32", "float16", "bfloat16"]
        for dtype in dtypes:
            encoder = Encoder(EncoderSettings.e5(str(material.model), device=measuring.device, dtype=dtype))
            vectors = encoder.queries(material.queries[:64])
            if exact is None:
                exact = vectors
                continue
            cosines = (vectors * exact).sum(axis=1)
            measuring.say("vectors", dtype=dtype, least_cosine=float(np.min(cosines)))
            if measuring.enough(30, f"{dtype} passages"):
                passages(measuring, encoder, dtype, material.passages)
            if measuring.enough(25, f"{dtype} queries"):
                queries(measuring, encoder, dtype, material.queries)


if __name__ == "__main__":
    main()
