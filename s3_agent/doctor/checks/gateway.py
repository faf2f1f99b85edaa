"""Checks whether the gateway, the trainer and the agents use the same model and the same sampling."""

from collections.abc import Iterator

from s3_agent.doctor.case import Case
from s3_agent.doctor.findings import Finding, error


def check_gateway(case: Case) -> Iterator[Finding]:
    """The gateway sends all calls to the model of one name, and sets one temperature, whatever the agents ask for."""
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
            what=f"the gateway at {recipe.gateway.url} is yours, but no key for it is given",
            why="it answers the trainer and the workers with 401",
            fix="export AGL_KEY=…, or name a file that holds it: gateway.key_file=…",
        )
    if training is None:
        return
    if training.model != recipe.policy.model:
        yield error(
            "gateway.model-name",
            what=f"the trainer's model is {training.model!r}, but the gateway's default_proxy.model_name is "
            f"{recipe.policy.model!r}",
            why="the trainer registers its policy servers under the path of its model: the gateway finds none under "
            "another name",
            fix="set policy.model and take model.path out of trainer.verl",
        )
    if training.temperature != recipe.trainer.temperature:
        yield error(
            "gateway.temperature",
            what=f"the trainer computes log-probs at temperature {training.temperature}, but the gateway samples at "
            f"{recipe.trainer.temperature}",
            why="log-probs at another temperature are those of another policy: every importance ratio is wrong",
            fix="set trainer.temperature and take rollout.temperature out of trainer.verl",
        )
