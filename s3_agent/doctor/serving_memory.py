"""Computes the memory of the services beside the trainer: the frozen generator in vLLM, and the retriever's index.

Used by the memory plan. It repeats vLLM's own calculation, for the generator and for the policy: how much of vLLM's
share of a GPU is left for the KV cache, and how many tokens that cache holds.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from retrieval_server.index_kinds import IndexSettings, kind_of
from s3_agent.doctor.memory import CONTEXT, GRAPHS, Item, Phase
from s3_agent.machine.model_files import ModelShape

WIKI_18 = 21_015_324
DIMENSION = 768  # E5-base
GENERATOR_CHANGE = (
    "change --gpu-memory-utilization or --max-model-len in generator.serve, use a quantized model, or give it two "
    "GPUs: gpus.generator and --tensor-parallel-size 2"
)


@dataclass(frozen=True, slots=True)
class Served:
    """Options of vLLM that decide its memory, with vLLM's own defaults."""

    utilization: float = 0.92
    max_model_len: int | None = None
    tensor_parallel: int = 1
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192


def read_options(options: Sequence[str]) -> Served:
    """Reads vLLM's options for memory from `options`, and ignores all others."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--gpu-memory-utilization", dest="utilization", type=float)
    parser.add_argument("--max-model-len", dest="max_model_len", type=int)
    parser.add_argument("--tensor-parallel-size", "-tp", dest="tensor_parallel", type=int)
    parser.add_argument("--max-num-seqs", dest="max_num_seqs", type=int)
    parser.add_argument("--max-num-batched-tokens", dest="max_num_batched_tokens", type=int)
    try:
        known, _ = parser.parse_known_args(list(options))
    except argparse.ArgumentError:  # vLLM itself accepts more forms, and refuses what it can not read
        return Served()
    return Served(**{name: value for name, value in vars(known).items() if value is not None})


def engine_items(shape: ModelShape, served: Served) -> tuple[Item, ...]:
    """What one vLLM engine holds on a card, except its KV cache."""
    forward = served.max_num_batched_tokens * 2 * (2 * shape.intermediate + 4 * shape.hidden)
    sampler = 3 * 4 * min(served.max_num_seqs, served.max_num_batched_tokens) * shape.vocab
    return (
        Item("weights", shape.weight_bytes() // served.tensor_parallel),
        Item("a forward pass and the sampler", max(forward // served.tensor_parallel, sampler)),
        Item("context and graphs", CONTEXT + GRAPHS, "assumed"),
    )


def cache_tokens(shape: ModelShape, served: Served, *, total: int) -> int:
    """How many tokens the KV cache holds in vLLM's share of a card of `total` bytes; negative: so many are missing."""
    left = int(served.utilization * total) - sum(item.size for item in engine_items(shape, served))
    return left * served.tensor_parallel // shape.kv_bytes()


def generator_phases(shape: ModelShape, served: Served, *, total: int) -> tuple[Phase, ...]:
    """The one phase of the generator: vLLM takes its whole share of a card of `total` bytes at the start."""
    items = engine_items(shape, served)
    share = int(served.utilization * total)
    cache = max(0, share - sum(item.size for item in items))
    return (Phase("serving", (*items, Item("KV cache (the rest of its share)", cache)), GENERATOR_CHANGE),)


def retriever_phases(settings: IndexSettings, *, passages: int, dimension: int, cards: int) -> tuple[Phase, ...]:
    """What the retriever holds on its card; empty when neither the index nor the encoder is on a GPU."""
    kind = kind_of(settings)
    held = kind.need(settings, passages=passages, dimension=dimension, cards=cards).cards
    if not held:
        return ()
    items = [Item(name, size) for name, size in held.items()]
    return (Phase("searching", (*items, Item("CUDA context", CONTEXT, "assumed")), kind.to_make_smaller),)
