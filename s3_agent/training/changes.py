"""The conditions of a run, kept in its folder, so that a resumed run can report which of them changed.

The main job calls it. Every field of a recipe counts, except those that are known not to change what is learned:
addresses, file locations, and how much work runs at once. If a policy or generator is in a folder, its weights count in
addition to its name. Of an index without a corpus, such as web search, its recorded answers count. A change stops the
resumed run unless the user allows it. What a checkpoint holds can not be changed once there is one.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from s3_agent.data.files.whole import sha256_of, write_whole
from s3_agent.data_identity import index_identity
from s3_agent.errors import ConfigError
from s3_agent.machine.model_files import model_identity
from s3_agent.processes.run_folder import Run
from s3_agent.recipe import Recipe
from s3_agent.training.resume import has_whole_actor, latest_step, step_folder

FREE = (
    *("name", "runs", "prepared", "workers", "gpus", "ray", "gateway", "evaluation", "agents", "policies"),
    *(f"data.{field}" for field in ("allow_mismatch", "folder", "sources", "retrieved_topk")),
    *(f"retriever.{field}" for field in ("url", "port", "folder")),
    *(f"generator.{field}" for field in ("url", "port", "cache", "cache_bytes", "patience_s", "identity")),
    *(f"judge.{field}" for field in ("url", "cache", "cache_bytes", "patience_s", "identity")),
    "policy.parameters",
    *(f"trainer.{field}" for field in ("steps", "checkpoint_every", "checkpoints_kept", "checkpoint_policy")),
    *(f"trainer.{field}" for field in ("validate_every", "trackers", "wandb_mode", "rollout_timeout_s")),
    *(f"trainer.{field}" for field in ("gpus", "nodes", "micro_batch", "tokens_per_gpu", "threads", "offload")),
    *(f"trainer.{field}" for field in ("fused_log_probs", "rollout_memory", "tensor_parallel")),
)
"""Fields and sections of a recipe that may change when a run is resumed, without permission."""

_ACTOR = "trainer.verl.actor_rollout_ref.actor"
_OPTIMIZER = "its optimizer can not take the state of another"
_SHARDS = "its shards fit no other engine"
IN_CHECKPOINT = {
    "policy.model": "the policy that a resumed run trains is the one in its checkpoint",
    "trainer.lora": "it holds a model with these adapters, or without any",
    "trainer.device": "it was written for this device",
    **{f"{_ACTOR}.optim.{name}": _OPTIMIZER for name in ("optimizer", "optimizer_impl", "override_optimizer_config")},
    **{f"{_ACTOR}.{name}": _SHARDS for name in ("strategy", "fsdp_config.strategy", "fsdp_config.fsdp_size")},
}
"""Fields and sections that a checkpoint decides, and why: another value has no effect, or verl can not load it."""
IN_CHECKPOINT_OF_OTHERS = dict.fromkeys(
    ("trainer.learning_rate", f"{_ACTOR}.optim"), "only verl's FSDP engines take another setting of the optimizer"
)
"""What else a checkpoint of another of verl's engines decides (`s3_agent.agl.resumed_optimizer`)."""


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        path = f"{prefix}{key}"
        if path in FREE:
            continue
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}.")
        else:
            yield path, value


def _defaults() -> dict[str, Any]:
    """The default of every field that has one: what a run of an earlier version did that did not have the field yet."""
    fields = {name: field.get_default(call_default_factory=True) for name, field in Recipe.model_fields.items()}
    return dict(
        _leaves({name: made.model_dump(mode="json") for name, made in fields.items() if isinstance(made, BaseModel)})
    )


def conditions_of(recipe: Recipe) -> dict[str, Any]:
    """What the recipe's training depends on, by dotted path; JSON values only."""
    template = recipe.policy.chat_template
    weights: dict[str, Any] = {} if template is None else {"policy.chat_template": sha256_of(template)}
    weights |= {f"{name}.weights": model_identity(getattr(recipe, name).model) for name in ("policy", "generator")}
    if recipe.retriever.url is None and not recipe.serves_corpus:
        weights |= {"retriever.source": index_identity(recipe)["corpus"]}
    return dict(_leaves(recipe.model_dump(mode="json"))) | weights


def write_conditions(run: Run, recipe: Recipe) -> None:
    """Record the conditions of this generation of the run."""
    write_whole(run.conditions, json.dumps(conditions_of(recipe), indent=1))


def _differences(run: Run, recorded: Recipe, recipe: Recipe) -> dict[str, tuple[Any, Any]]:
    """The conditions in which `recipe` differs from the run: what they were, and what they are."""
    try:
        text = run.conditions.read_text(encoding="utf-8") if run.conditions.exists() else None
        before = conditions_of(recorded) if text is None else dict(json.loads(text))
    except (OSError, TypeError, ValueError) as cause:
        raise ConfigError(
            f"{run.conditions} can not be read: {cause}",
            remedy="remove it to continue; changes that were made to the recipe by hand are then not noticed",
        ) from cause
    now = conditions_of(recipe)
    was = {**{path: default for path, default in _defaults().items() if path in now}, **before}
    return {path: (was.get(path), now.get(path)) for path in {**was, **now} if was.get(path) != now.get(path)}


def _told(path: str, values: tuple[Any, Any]) -> str:
    return f"{path} was {values[0]!r}, is {values[1]!r}"


def changes(run: Run, recorded: Recipe, recipe: Recipe) -> list[str]:
    """What `recipe` changes in the conditions of the run, as text for a user; `recorded` is the recipe in its folder.

    Raises ConfigError when the record can not be read, and for a change that can have no effect, because the run's
    newest complete checkpoint decides it.
    """
    found = _differences(run, recorded, recipe)
    _refuse_what_the_checkpoint_decides(run, found)
    return [_told(path, values) for path, values in found.items()]


def _refuse_what_the_checkpoint_decides(run: Run, found: Mapping[str, tuple[Any, Any]]) -> None:
    if not (step := latest_step(run)):
        return
    decided = dict(IN_CHECKPOINT)
    if has_whole_actor(step_folder(run, step)) is None:
        decided |= IN_CHECKPOINT_OF_OTHERS
    if "policy.weights" not in found:  # its folder was moved
        del decided["policy.model"]
    refused = []
    for path, values in found.items():
        # In `trainer.verl`, a + before a key says that verl does not list it.
        inside = f"{path.replace('.+', '.')}."
        reasons = [reason for name, reason in decided.items() if inside.startswith(f"{name}.")]
        refused += [f"{_told(path, values)} ({reason})" for reason in reasons[:1]]
    if refused:
        raise ConfigError(
            f"the run continues from the checkpoint of step {step}, with which these can not change: "
            f"{'; '.join(refused)}",
            remedy="undo the change, or start a new run; it can begin with the policy of this one: "
            f"`s3-agent export-policy {run.folder} -o FOLDER`, then policy.model=FOLDER",
        )


def require_same(run: Run, found: Sequence[str], *, allowed: bool) -> None:
    """Raises ConfigError that names the changes, unless they are `allowed`."""
    if found and not allowed:
        raise ConfigError(
            f"the run {run.folder} was played with other settings: {'; '.join(found)}",
            remedy="undo the change, or allow it with --allow-changes (the run's summary then lists it)",
        )


def record_changes(run: Run, found: Sequence[str], *, after_step: int) -> None:
    """Record what was changed, and after which step."""
    if found:
        told = [f"after step {after_step}: {change}" for change in found]
        write_whole(run.changes, json.dumps([*changes_of(run), *told], indent=1, ensure_ascii=False))


def changes_of(run: Run) -> list[str]:
    """What was changed between the generations of the run, in order."""
    return list(json.loads(run.changes.read_text(encoding="utf-8"))) if run.changes.exists() else []
