"""Checks whether this processor computes the precision that a recipe asks for; only if models run on the CPU."""

from collections.abc import Iterator

from s3_agent.doctor.case import Case
from s3_agent.doctor.findings import Finding, error, warning

EMULATED = 1.25  # times as long as in float32: more than a measurement varies by
NEEDED = frozenset({"avx2", "fma"})  # the instructions that every build of vLLM's kernels needs


def check_precision(case: Case) -> Iterator[Finding]:
    """The generator's precision and the policy server's, and whether vLLM has kernels for the processor."""
    host = case.machine.host
    if host is not None and not case.cuda and host.instructions and not host.instructions >= NEEDED:
        lacking = ", ".join(sorted(NEEDED - host.instructions))
        yield error(
            "precision.processor",
            what=f"the processor has no {lacking}",
            why="the CPU build of vLLM fails on it with an illegal instruction",
            fix="train on another machine, or set generator.url=… and train on a GPU",
        )
    if (measured := case.precision) is None:
        return
    for field, dtype, fix in _asked(case):
        if dtype in measured.seconds and (factor := measured.factor(dtype)) > EMULATED:
            yield warning(
                "precision.emulated",
                what=f"{field} asks for {dtype}, which this processor ({measured.processor}) emulates",
                why=f"a layer takes {factor:.1f} times as long as in float32 (measured here)",
                fix=fix,
            )


def _asked(case: Case) -> Iterator[tuple[str, str, str]]:
    generator, trainer = case.recipe.generator, case.recipe.trainer
    if generator.hosted and (served := generator.served_dtype):
        yield "generator.serve", served, "take --dtype out of generator.serve"
    elif generator.hosted and generator.dtype != "auto":
        yield "generator.dtype", generator.dtype, "generator.dtype=auto"
    path = "actor_rollout_ref.rollout.dtype"
    node = trainer.verl
    for name in path.split("."):
        node = node.get(name) if isinstance(node, dict) else None
    if isinstance(node, str):
        yield f"trainer.verl.{path}", node, f"take {path} out of trainer.verl"
