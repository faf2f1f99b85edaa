"""Checks whether GPU memory and RAM suffice for a run. `plans` builds the memory plan, which the dry run prints too."""

from collections.abc import Iterator
from dataclasses import replace

from retrieval_server.index_kinds import kind_of
from s3_agent.doctor.case import Case
from s3_agent.doctor.findings import Finding, error, warning
from s3_agent.doctor.memory import DRIVER, Item, Phase, Plan, gib
from s3_agent.doctor.serving_memory import (
    GENERATOR_CHANGE,
    Served,
    cache_tokens,
    engine_items,
    generator_phases,
    read_options,
    retriever_phases,
)
from s3_agent.doctor.trainer_memory import cpu_bytes, host_bytes, training_phases
from s3_agent.doctor.training import Training

PASSAGE_TOKENS = 200  # a high estimate for a passage of 100 words with its title
INSTRUCTION_TOKENS = 700  # a first prompt without its passages


def expected_length(case: Case) -> int:
    """The tokens of the longest row of an episode whose passages all have ordinary length."""
    assert case.training is not None
    limits = case.recipe.agent.limits
    observation = min(limits.max_observation_tokens or limits.topk * PASSAGE_TOKENS, limits.topk * PASSAGE_TOKENS)
    turns = limits.generations * limits.max_new_tokens + limits.max_searches * observation
    prompt = case.first_prompt or INSTRUCTION_TOKENS + limits.initial_topk * PASSAGE_TOKENS
    return min(case.training.length, prompt + turns)


def plans(case: Case, *, longest: bool = False) -> list[Plan]:
    """One plan for the GPUs of the trainer, the generator and the retriever each.

    With `longest`, rows are as long as the trainer keeps them, instead of as long as expected.
    """
    found: list[Plan] = []
    for part in ("trainer", "generator", "retriever") if case.cuda else ():
        cards = [gpu for gpu in case.machine.gpus if gpu.index in case.placed(part)]
        if part == "retriever" and not _sharded(case):
            cards = cards[:1]
        if not cards:
            continue
        phases, note = _phases(case, part, longest=longest, total=min(gpu.total for gpu in cards), cards=len(cards))
        if phases:
            usable = min(min(gpu.free, gpu.total - DRIVER) for gpu in cards)
            found.append(Plan(part, tuple(gpu.index for gpu in cards), usable, phases, note))
    return _shared(found)


def _sharded(case: Case) -> bool:
    return getattr(case.recipe.retriever.index, "engine", "") == "faiss_gpu"


def _phases(case: Case, part: str, *, longest: bool, total: int, cards: int) -> tuple[tuple[Phase, ...], str]:
    """What the process `part` holds on each of its cards of `total` bytes, and a note on the source of the sizes."""
    recipe, training, shape = case.recipe, case.training, case.shape(part if part == "generator" else "policy")
    if part == "trainer" and training is not None and shape is not None:
        rows = training if longest else _with_length(training, expected_length(case))
        return training_phases(shape, rows, total=total), f"policy by {shape.source}"
    if part == "generator" and recipe.generator.hosted and recipe.agent.asks_generator and shape is not None:
        return generator_phases(shape, read_options(recipe.generator.serve), total=total), f"model by {shape.source}"
    if part == "retriever" and recipe.retriever.url is None and (index := case.index) is not None:
        note = "assuming wiki-18's 21.0M passages, because the corpus is not here" if index.supposed else ""
        sizes = {"passages": index.passages, "dimension": index.dimension, "cards": cards}
        return retriever_phases(recipe.retriever.index, **sizes), note
    return (), ""


def _with_length(training: Training, length: int) -> Training:
    """The training with rows of at most `length` tokens, if micro batches count rows and not tokens."""
    if training.dynamic:
        return training
    return replace(training, kept_prompt=0, kept_response=length)


def _shared(found: list[Plan]) -> list[Plan]:
    """The plans with the other processes on the same card: each phase also gets the peak of each of them."""
    result = []
    for plan in found:
        others = [other for other in found if other is not plan and set(other.indexes) & set(plan.indexes)]
        beside = tuple(Item(f"the {other.part}", other.peak.size) for other in others)
        phases = tuple(replace(phase, items=(*phase.items, *beside)) for phase in plan.phases)
        note = "; ".join(filter(None, (plan.note, *(f"shared with the {other.part}" for other in others))))
        result.append(replace(plan, phases=phases, note=note))
    return result


def check_gpu_memory(case: Case) -> Iterator[Finding]:
    """The largest phase of each GPU that does not fit, with its largest item and the settings to change."""
    fitting = set()
    for plan in plans(case):
        if plan.fits:
            fitting.add(plan.part)
            continue
        yield error(f"memory.{plan.part}", **_too_much(plan, plan.peak))
    for plan in plans(case, longest=True):
        if plan.part in fitting and not plan.fits:
            yield warning("memory.longest-row", **_too_much(plan, plan.peak, "when rows have their largest length, "))


def _too_much(plan: Plan, phase: Phase, when: str = "") -> dict[str, str]:
    numbers = ",".join(map(str, plan.indexes))
    return {
        "what": f"{when}{phase.name} on GPU {numbers} ({plan.part}) needs {gib(phase.size)} of {gib(plan.free)}",
        "why": f"the largest item is {phase.largest.name} with {gib(phase.largest.size)}; the run would end with CUDA "
        "out of memory",
        "fix": phase.change,
    }


def check_caches(case: Case) -> Iterator[Finding]:
    """Whether vLLM's share of a GPU holds one sequence of full length; otherwise vLLM refuses to start."""
    for part, served, change in _engines(case):
        shape, card = case.shape(part), min(case.machine.gpus, key=lambda gpu: gpu.total)
        assert shape is not None
        length = served.max_model_len or shape.positions
        if (tokens := cache_tokens(shape, served, total=card.total)) >= length:
            continue
        needed = sum(item.size for item in engine_items(shape, served)) + length * shape.kv_bytes()
        yield error(
            f"memory.{part}-cache",
            what=f"the {part}'s share of a GPU, {served.utilization:.2f} x {gib(card.total)}, leaves room for "
            f"{max(0, tokens)} tokens of KV cache, but one sequence has {length}",
            why="vLLM refuses to start if its cache does not hold one sequence of full length",
            fix=f"{gib(needed)} are needed: {change}",
        )


def _engines(case: Case) -> Iterator[tuple[str, Served, str]]:
    if not case.cuda or not case.machine.gpus:
        return
    if (training := case.training) and case.shape("policy"):
        yield (
            "policy",
            Served(
                utilization=training.utilization,
                max_model_len=training.max_model_len,
                tensor_parallel=training.tensor_parallel,
                max_num_seqs=training.max_num_seqs,
                max_num_batched_tokens=training.max_num_batched_tokens,
            ),
            "raise trainer.rollout_memory, or set trainer.tensor_parallel=2",
        )
    if case.recipe.generator.hosted and case.recipe.agent.asks_generator and case.shape("generator"):
        yield "generator", read_options(case.recipe.generator.serve), GENERATOR_CHANGE


def check_ram(case: Case) -> Iterator[Finding]:
    """Whether the RAM suffices for offloaded state, models while they are loaded, and the index."""
    if (host := case.machine.host) is None:
        return
    items = ram_items(case)
    needed, largest = sum(items.values()), max(items, key=lambda name: items[name], default="")
    if needed > host.ram_free:
        yield error(
            "memory.ram",
            what=f"{gib(needed)} of RAM are needed, but {gib(host.ram_free)} of {gib(host.ram)} are free",
            why=f"the largest item is {largest} with {gib(items[largest])}; the kernel would kill a process of the run",
            fix="free memory; or set trainer.offload=false if the GPUs have room, use a compressed index, or add RAM",
        )


def ram_items(case: Case) -> dict[str, int]:
    """Bytes of RAM by what needs them, without what can not be computed (Python processes, page cache)."""
    items: dict[str, int] = {}
    if case.training is not None and (shape := case.shape("policy")):
        items |= host_bytes(shape, case.training) if case.cuda else cpu_bytes(shape, case.training)
    if case.index is not None and case.recipe.retriever.url is None:
        index = case.index
        settings = case.recipe.retriever.index
        need = kind_of(settings).need(settings, passages=index.passages, dimension=index.dimension, cards=1)
        items["index"] = need.ram
    return {name: size for name, size in items.items() if size}
