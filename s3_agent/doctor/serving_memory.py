"""The memory of the services beside the trainer: the frozen generator behind vLLM, and the retriever's index.

Also vLLM's own arithmetic, for the generator as for the policy: what is left for the KV cache of the share that it may
take, and how many sequences of full length that holds.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from retrieval_server.backends.dense.settings import DenseSettings
from retrieval_server.backends.dense.torch_exact import search_bytes
from retrieval_server.config import IndexSettings
from retrieval_server.indexing.plan import needs
from s3_agent.doctor.memory import CONTEXT, GRAPHS, Item, Phase
from s3_agent.machine.model_files import ModelShape

WIKI_18 = 21_015_324
DIMENSION, ENCODER_PARAMETERS = 768, 109_482_240  # E5-base
QUERIES_AT_ONCE = 512  # `max_batch_queries` of the retrieval server
GENERATOR_CHANGE = (
    "change --gpu-memory-utilization or --max-model-len in generator.serve, take a quantized model, or give it two "
    "GPUs: gpus.generator and --tensor-parallel-size 2"
)
INDEX_CHANGE = (
    "set retriever.index.torch_dtype=int8 (half of it), or search on the CPU: retriever.index.engine=faiss with a "
    "compressed layout (`s3-agent index plan --passages N` compares them)"
)


@dataclass(frozen=True, slots=True)
class Served:
    """What vLLM is told by its options; its own defaults where they are silent."""

    utilization: float = 0.92
    max_model_len: int | None = None
    tensor_parallel: int = 1
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192


def read_options(options: Sequence[str]) -> Served:
    """vLLM's options among `options`; others are left alone."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--gpu-memory-utilization", dest="utilization", type=float)
    parser.add_argument("--max-model-len", dest="max_model_len", type=int)
    parser.add_argument("--tensor-parallel-size", "-tp", dest="tensor_parallel", type=int)
    parser.add_argument("--max-num-seqs", dest="max_num_seqs", type=int)
    parser.add_argument("--max-num-batched-tokens", dest="max_num_batched_tokens", type=int)
    try:
        known, _ = parser.parse_known_args(list(options))
    except argparse.ArgumentError:  # vLLM itself reads them in more forms, and refuses what it can not read
        return Served()
    return Served(**{name: value for name, value in vars(known).items() if value is not None})


def engine_items(shape: ModelShape, served: Served) -> tuple[Item, ...]:
    """What one vLLM engine holds on a card, but for its KV cache."""
    forward = served.max_num_batched_tokens * 2 * (2 * shape.intermediate + 4 * shape.hidden)
    sampler = 3 * 4 * min(served.max_num_seqs, served.max_num_batched_tokens) * shape.vocab
    return (
        Item("weights", shape.weight_bytes() // served.tensor_parallel),
        Item("a forward pass and the sampler", max(forward // served.tensor_parallel, sampler)),
        Item("context and graphs", CONTEXT + GRAPHS, "assumed"),
    )


def cache_tokens(shape: ModelShape, served: Served, *, total: int) -> int:
    """Tokens of KV cache in the share that vLLM takes of a card of `total` bytes; negative: none, by so many."""
    left = int(served.utilization * total) - sum(item.size for item in engine_items(shape, served))
    return left * served.tensor_parallel // shape.kv_bytes()


def generator_phases(shape: ModelShape, served: Served, *, total: int) -> tuple[Phase, ...]:
    """vLLM takes its whole share at the start."""
    items = engine_items(shape, served)
    share = int(served.utilization * total)
    cache = max(0, share - sum(item.size for item in items))
    return (Phase("serving", (*items, Item("KV cache (the rest of its share)", cache)), GENERATOR_CHANGE),)


def index_bytes(settings: DenseSettings, *, passages: int, dimension: int, cards: int) -> int:
    """Bytes of the vectors on one card: all of them with torch, a shard with FAISS."""
    if settings.engine == "faiss_gpu":
        return -(-passages * dimension * 2 // max(1, cards))
    width = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}[settings.torch_dtype]
    return passages * (dimension * width + (4 if settings.torch_dtype == "int8" else 0))


def retriever_phases(settings: IndexSettings, *, passages: int, dimension: int, cards: int) -> tuple[Phase, ...]:
    """What the retriever holds on its card; nothing where neither index nor encoder are on one."""
    if not isinstance(settings, DenseSettings):
        return ()
    items = []
    if settings.engine == "faiss_gpu" or (settings.engine == "torch" and settings.torch_device.startswith("cuda")):
        items.append(Item("index", index_bytes(settings, passages=passages, dimension=dimension, cards=cards)))
        batch = search_bytes(settings, queries=QUERIES_AT_ONCE, passages=passages, dimension=dimension)
        items.append(Item("scores of a batch", batch))
    if settings.encoder.device.startswith("cuda"):
        width = 4 if settings.encoder.dtype == "float32" else 2
        items.append(Item("encoder", ENCODER_PARAMETERS * width))
        items.append(Item("encoding a batch", 16384 * DIMENSION * (8 * width + 4)))
    if not items:
        return ()
    return (Phase("searching", (*items, Item("CUDA context", CONTEXT, "assumed")), INDEX_CHANGE),)


def index_host_bytes(settings: IndexSettings, *, passages: int, dimension: int) -> tuple[int, int]:
    """RAM and disk of an index; a BM25 index is memory-mapped and its size is not foreseen: (0, 0)."""
    if not isinstance(settings, DenseSettings):
        return 0, 0
    if settings.engine == "torch":
        stored = passages * dimension * (2 if settings.vectors == "float16" else 4)
        on_host = index_bytes(settings, passages=passages, dimension=dimension, cards=1)
        return (on_host if settings.torch_device == "cpu" else 0), stored
    kinds = {need.kind: need for need in needs(passages=passages, dimension=dimension)}
    if (need := kinds.get(settings.layout)) is None:
        return 0, passages * dimension * 2
    return (0 if settings.engine == "faiss_gpu" else int(need.resident)), int(need.disk)
