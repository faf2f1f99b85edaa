"""Resolves the agents of an evaluation: for each label its settings and its policy.

A policy comes from an address, a folder, a finished run, the recipe, or is the generator's model."""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from s3_agent.agents.methods import METHODS
from s3_agent.clients.connections import async_client
from s3_agent.clients.http import bearer, call_json
from s3_agent.clients.tokenizer import ChatTemplate
from s3_agent.errors import ConfigError, PolicyError
from s3_agent.evaluation.contestants import Contestant, PolicyUnderTest, SamplingName, sampling_of
from s3_agent.machine.model_files import model_identity
from s3_agent.recipe import PolicyRecipe, Recipe, load_recipe
from s3_agent.rollout.runner import AgentSettings

_ANSWERS = {"ret": "generator", "self": "policy"}


async def _served(url: str, key: str | None) -> dict[str, Any]:
    async with async_client(timeout=30.0, headers=bearer(key)) as http:
        models = await call_json(http, "GET", url + "/models", error=PolicyError, patience_s=10.0)
    try:
        return dict(models["data"][0])
    except (KeyError, IndexError, TypeError, ValueError) as cause:
        raise PolicyError(f"{url}/models names no model: {str(models)[:200]}", remedy="check the address") from cause


def _template_identity(template: ChatTemplate) -> dict[str, str]:
    """Distinguishes a template file from another with the same name; empty for the model's own template."""
    text = template.text()
    return {} if text is None else {"chat_template": hashlib.sha256(text.encode()).hexdigest()}


def require_servers_template(template: ChatTemplate, url: str) -> None:
    """Raises ConfigError for a template file with a server that gets chat messages: it applies its own template."""
    if template.chat_template is not None:
        raise ConfigError(
            f"{url} gets chat messages and applies its own chat template, not {template.chat_template}",
            remedy="start that server with --chat-template, and leave policy.chat_template out",
        )


def served_policy(url: str, policy: PolicyRecipe, *, key: str | None, name: str | None = None) -> PolicyUnderTest:
    """The model `name` of a running server, by default the first that it lists. Raises PolicyError."""
    url = url.rstrip("/")
    served = {"id": name} if name else asyncio.run(_served(url, key))
    identity = {name: served[name] for name in ("id", "root", "max_model_len") if name in served}
    return PolicyUnderTest(
        model=served["id"],
        mode=policy.mode,
        url=url,
        request=policy.request,
        template=policy.template,
        context_tokens=policy.context_tokens,
        identity={"url": url, **identity, **_template_identity(policy.template)},
    )


def hosted_policy(model: str, policy: PolicyRecipe) -> PolicyUnderTest:
    """The policy of a model folder or hub name, served by us. Raises ConfigError for a folder without a model."""
    if Path(model).is_dir() and not (Path(model) / "config.json").exists():
        raise ConfigError(f"{model} holds no model", remedy="give a folder with config.json, a hub name or an address")
    identity = {**model_identity(model), **_template_identity(policy.template)}
    return PolicyUnderTest(model=model, template=policy.template, identity=identity)


def generator_as_policy(recipe: Recipe, identity: Mapping[str, Any]) -> PolicyUnderTest:
    """The generator's model as policy, for agents that consist of prompts. Raises ConfigError for Claude."""
    if not recipe.generator.openai_compatible:
        raise ConfigError(
            f"agents without a trained policy are played by the generator's model, and {recipe.generator.kind} is not "
            "behind an OpenAI-compatible address",
            remedy="give the address of a policy server, as --policy AGENT=http://…/v1 (eval) or --policy-url (ask)",
        )
    return PolicyUnderTest(
        model=recipe.generator.model,
        mode="chat",
        request={**recipe.generator.added, **recipe.policy.request},
        at_generator=True,
        context_tokens=recipe.generator.context_tokens,
        identity={**identity},
    )


def trained_policy(run: Path) -> tuple[Recipe, PolicyUnderTest]:
    """The recipe and the trained policy of a run. Raises ConfigError."""
    if not (run / "policy").is_dir():
        raise ConfigError(f"{run} has no trained policy", remedy="give the folder of a finished run")
    recipe = load_recipe(str(run / "recipe.yaml"))
    return recipe, hosted_policy(str(run / "policy"), recipe.policy)


def _settings(label: str, settings: AgentSettings) -> AgentSettings:
    """The settings with an evaluation's scoring and the source of answers that the label names."""
    name, _, source = label.partition(":")
    if source and source not in _ANSWERS:
        raise ConfigError(f"{label!r} is not an agent", remedy=f"write {name}, {name}:ret or {name}:self")
    answers = _ANSWERS.get(source, settings.answers)
    try:
        return AgentSettings.model_validate({**settings.model_dump(), "answers": answers, "reward": "accuracy"})
    except ValueError as cause:
        raise ConfigError(f"{label}: {cause}", remedy=f"leave :{source} out") from cause


def contestant_of(
    recipe: Recipe,
    label: str,
    settings: AgentSettings,
    *,
    address: str | None,
    trained: PolicyUnderTest | None,
    sampling: SamplingName,
    generator: Mapping[str, Any],
    key: str | None,
    model: str | None = None,
) -> Contestant:
    """One agent with its policy: at `address` (or that folder or hub name), else `trained`, else what its method plays
    with by default.

    `generator` is the generator's identity; `model` is the policy's name at an address, by default the first that the
    server lists. Raises ConfigError and PolicyError.
    """
    name = label.partition(":")[0]
    asked, kind, policy = recipe.policy_of(name), settings.method.policy, trained
    if address and address.startswith(("http://", "https://")):
        policy = served_policy(address, asked, key=key, name=model)
    elif address or (policy is None and kind == "protocol"):
        policy = hosted_policy(address or asked.model, asked)
    elif policy is None and kind != "none":
        policy = generator_as_policy(recipe, generator)
    if policy is not None and kind != "protocol":  # its prompts are texts; none of its tokens are trained on
        policy = policy.model_copy(update={"mode": "chat"})
    if policy is not None and policy.mode == "chat" and policy.url:
        require_servers_template(policy.template, policy.url)
    return Contestant(
        label=label,
        settings=_settings(label, settings),
        sampling=sampling_of(settings.method, sampling),
        policy=policy if kind != "none" else None,
    )


def contestants_of(
    recipe: Recipe,
    labels: Sequence[str],
    *,
    given: Mapping[str, str],
    runs: Sequence[Path],
    sampling: SamplingName,
    generator: Mapping[str, Any],
    key: str | None,
) -> list[Contestant]:
    """The agents by label: NAME, NAME:ret (the generator answers from what was selected) or NAME:self.

    `given` holds addresses, folders or hub names by label or name. `runs` are folders of finished runs; their agents
    keep the settings of their runs. `generator` is the generator's identity. Raises ConfigError and PolicyError.
    """
    trained = {run_recipe.agent.name: (run_recipe.agent, policy) for run_recipe, policy in map(trained_policy, runs)}
    if unknown := sorted(label for label in given if label.partition(":")[0] not in METHODS):
        raise ConfigError(f"--policy names {unknown}: no such agent", remedy=f"name one of {', '.join(METHODS)}")
    found: list[Contestant] = []
    for label in labels:
        name = label.partition(":")[0]
        if any(label == one.label for one in found):
            raise ConfigError(f"the agent {label!r} is named twice", remedy="correct --agents")
        settings, policy = trained.get(name) or (recipe.playing(name), None)
        found.append(
            contestant_of(
                recipe,
                label,
                settings,
                address=given.get(label) or given.get(name),
                trained=policy,
                sampling=sampling,
                generator=generator,
                key=key,
            )
        )
    return found
