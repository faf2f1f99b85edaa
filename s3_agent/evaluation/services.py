"""Starts the services that contestants need, and makes the clients for them: for `s3-agent eval` and `s3-agent ask`."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

from s3_agent.clients.make import make_policy
from s3_agent.clients.policy import NoPolicy, Policy
from s3_agent.clients.tokenizer import policy_tokenizer
from s3_agent.errors import ConfigError
from s3_agent.evaluation.contestants import Contestant, PolicyUnderTest
from s3_agent.evaluation.pipeline import Services
from s3_agent.processes.ports import reserve_port
from s3_agent.processes.requirements import require_vllm
from s3_agent.processes.run_folder import Run
from s3_agent.processes.services import POLICY_NAME, clients_of, policy_part, running_services
from s3_agent.processes.stack import Part, Stack
from s3_agent.recipe import HOST, Recipe

SEQUENCES = 64
Served = tuple[str, Path | None]
"""A model and its chat template: what one policy server serves."""
POLICY_PATIENCE_S = 300.0


def services_of(recipe: Recipe, http: httpx.AsyncClient, policies: Mapping[str, Policy]) -> Services:
    """The clients for the recipe's services, with the policies by contestant; the stages keep the answers."""
    clients = clients_of(recipe, http, kept=False)
    return Services(
        policies=policies,
        retriever=clients.retriever,
        generator=clients.generator,
        model=clients.generator.model,
        judge=clients.judge,
    )


def policy_client(one: Contestant, url: str, *, http: httpx.AsyncClient, recipe: Recipe) -> Policy:
    """The client for a contestant's policy at `url`."""
    policy, sampling = one.policy, one.sampling.model_dump() if one.sampling else {}
    if policy is None:
        return NoPolicy()
    name = policy.model if policy.url or policy.at_generator else POLICY_NAME
    return make_policy(
        http,
        url,
        mode=policy.mode,
        tokenizer=_tokenizer(one, policy, recipe),
        template=policy.template,
        request=policy.request,
        model=name,
        seed=one.seed(recipe.seed),
        context_tokens=policy.context_tokens,
        patience_s=POLICY_PATIENCE_S,
        **sampling,
    )


def require_tokenizers(recipe: Recipe, contestants: Iterable[Contestant]) -> None:
    """Check tokenizers and chat templates before anything starts. Raises ConfigError for one that can not be used."""
    for one in contestants:
        policy = one.policy
        if policy is not None and policy.mode == "tokens":
            if policy.url is None:
                require_vllm("serving a policy")
            policy_tokenizer(_tokenizer(one, policy, recipe), policy.template)


def require_enough_passages(recipe: Recipe, contestants: Iterable[Contestant]) -> None:
    """Raises ConfigError for an agent that asks for more passages than our own retriever returns: each of its searches
    would fail.
    """
    for one in contestants:
        topk = one.settings.most_topk
        try:
            recipe.retriever.check_topk(topk)
        except ValueError as cause:
            limits = "agent.limits" if one.name == recipe.agent.name else f"agents.{one.name}.limits"
            raise ConfigError(
                f"the agent {one.label} asks for {topk} passages at a time: {cause}",
                remedy=f"change that setting in `retriever`, or lower `topk` or `initial_topk` in `{limits}`",
            ) from cause


def _tokenizer(one: Contestant, policy: PolicyUnderTest, recipe: Recipe) -> str:
    """The tokenizer of the served model: its server's `root`, unless that is a folder on another machine."""
    if policy.url is None:
        return policy.model
    root = policy.identity.get("root")
    return root if root and (Path(root).is_dir() or not root.startswith("/")) else recipe.policy_of(one.name).model


@contextmanager
def serving(
    recipe: Recipe,
    contestants: Iterable[Contestant],
    *,
    say: Callable[[str], None],
    run_id: str | None = None,
) -> Iterator[tuple[Recipe, dict[str, str], Stack]]:
    """Yields (recipe with ports, policy addresses by label, stack) while what the contestants need runs.

    Services that have an address are not started. `say` and `run_id` are those of `running_services`.
    Raises LaunchError.
    """
    playing = {one.label: one for one in contestants}.values()
    asks_generator = any(one.asks_generator_model for one in playing) or (
        recipe.judge.rule != "span" and recipe.judge.url is None
    )
    needed = ["retriever"] * any(one.settings.method.uses for one in playing) + ["generator"] * asks_generator
    ours = (one.policy for one in playing if one.policy and not (one.policy.url or one.policy.at_generator))
    hosted = {served: reserve_port("policy", 0) for served in dict.fromkeys(map(_served, ours))}

    def policies(_: Recipe, run: Run) -> list[Part]:
        return [
            policy_part(
                model, run, port=port, part=f"policy-{number}", sequences=SEQUENCES, chat_template=chat_template
            )
            for number, ((model, chat_template), port) in enumerate(hosted.items(), 1)
        ]

    with running_services(recipe, needed, more=policies, run_id=run_id, say=say) as (served, stack):
        yield served, {one.label: _address(one.policy, served, hosted) for one in playing}, stack


def _served(policy: PolicyUnderTest) -> Served:
    return policy.model, policy.template.chat_template


def _address(policy: PolicyUnderTest | None, recipe: Recipe, hosted: Mapping[Served, int]) -> str:
    if policy is None:
        return ""
    if policy.url or policy.at_generator:
        return policy.url or str(recipe.generator_url)
    return f"http://{HOST}:{hosted[_served(policy)]}/v1"
