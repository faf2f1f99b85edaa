"""Do the gateway, the trainer and the agents mean the same model and the same sampling?"""

from collections.abc import Iterator

from s3_agent.doctor.case import Case
from s3_agent.doctor.findings import Finding, error


def check_gateway(case: Case) -> Iterator[Finding]:
    """The gateway sends calls to the model of one name, and forces one temperature."""
    recipe, training = case.recipe, case.training
    if recipe.policy.mode != "tokens":
        yield error(
            "gateway.chat-mode",
            what="policy.mode is chat",
            why="chat messages carry no token ids to train on",
            fix="leave policy.mode=tokens",
        )
    if recipe.gateway.url and not recipe.gateway.key:
        yield error(
            "gateway.key",
            what=f"the gateway at {recipe.gateway.url} is not ours, and no key is given",
            why="it refuses the trainer and the workers with 401",
            fix="export AGL_KEY=…, or name a file that holds it: gateway.key_file=…",
        )
    if training is None:
        return
    if training.model != recipe.policy.model:
        yield error(
            "gateway.model-name",
            what=f"the trainer's model is {training.model!r}, the gateway's default_proxy.model_name is "
            f"{recipe.policy.model!r}",
            why="the trainer registers its policy servers under its own path: the gateway finds none for another",
            fix="set policy.model and take model.path out of trainer.verl",
        )
    if training.temperature != recipe.trainer.temperature:
        yield error(
            "gateway.temperature",
            what=f"the trainer reckons with temperature {training.temperature}, the gateway samples with "
            f"{recipe.trainer.temperature}",
            why="log-probs at another temperature are those of another policy: every importance ratio is off",
            fix="set trainer.temperature and take rollout.temperature out of trainer.verl",
        )
