"""Checks whether verl's fused forward finds the whole output layer (see `s3_agent.agl.fused_head`)."""

from collections.abc import Iterator

from s3_agent.agl import cpu
from s3_agent.agl.run_files import MODULES_VARIABLE
from s3_agent.agl.verl_config import FUSED_HEAD, WITH_MODEL
from s3_agent.doctor.case import Case
from s3_agent.doctor.findings import Finding, error


def check_output_layer(case: Case) -> Iterator[Finding]:
    """Reports an untied output layer that FSDP2 shards separately, if log-probs are fused without our module."""
    training, shape, host = case.training, case.shape("policy"), case.machine.host
    if training is None or shape is None or shape.tied or not training.fused or training.strategy != "fsdp2":
        return
    loaded = host.environment.get(MODULES_VARIABLE, "").split(",") if host is not None else []
    if training.external_lib == (WITH_MODEL if case.cuda else cpu.ENGINE) or {FUSED_HEAD, WITH_MODEL} & {*loaded}:
        return
    yield error(
        "policy.fused-head",
        what=f"model.external_lib is {training.external_lib} instead of {WITH_MODEL}, log-probs are fused, and the "
        "policy's output layer is not tied to its embedding",
        why="FSDP2 shards such a layer as a separate unit, and verl's fused forward reads its weight without calling "
        "it: the first log-probs would fail (got mixed torch.Tensor and DTensor)",
        fix=f"export {MODULES_VARIABLE}={FUSED_HEAD}, or take external_lib out of trainer.verl",
    )
