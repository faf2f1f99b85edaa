"""Checks LoRA's settings: whether the policy has the modules, and whether the policy server gets what is trained."""

from collections.abc import Iterator

from s3_agent.agl import cpu
from s3_agent.agl.verl_config import WITH_MODEL
from s3_agent.doctor.case import Case
from s3_agent.doctor.findings import Finding, error, warning

MODULES = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"})
"""The linear layers of the kinds of model whose shape is known."""
SMALLEST_RATE = 1e-5
"""Below it, most of what 40 updates change in a weight of ordinary size is less than a step of bfloat16."""


def check_lora(case: Case) -> Iterator[Finding]:
    """Nothing without LoRA."""
    if (lora := case.recipe.trainer.lora) is None:
        return
    unknown = sorted({name.rpartition(".")[2] for name in lora.targets or ()} - MODULES)
    if unknown and (shape := case.shape("policy")):
        yield error(
            "lora.targets",
            what=f"the policy ({shape.source}) has no modules {', '.join(unknown)}, which trainer.lora.targets names",
            why="PEFT ignores names that no module has, and fails only if none has any",
            fix=f"name some of {', '.join(sorted(MODULES))}, or leave trainer.lora.targets out for all of them",
        )
    if (training := case.training) and training.external_lib != (WITH_MODEL if case.cuda else cpu.ENGINE):
        yield error(
            "lora.exchange",
            what=f"trainer.lora is set, and model.external_lib is {training.external_lib} instead of {WITH_MODEL}",
            why="verl 0.8 alone sends the policy server the untrained weights, at every step and without an error",
            fix="take external_lib out of trainer.verl",
        )
    rate = case.recipe.trainer.learning_rate * lora.alpha / lora.rank
    if rate < SMALLEST_RATE:
        yield warning(
            "lora.learning-rate",
            what=f"learning_rate x alpha / rank is {rate:.1e}",
            why="the policy server gets the sum of weights and adapters in bfloat16: smaller changes are rounded away, "
            "and the policy that plays stays nearly the untrained one",
            fix="set trainer.learning_rate to about 30 times that of all weights (3e-5)",
        )
