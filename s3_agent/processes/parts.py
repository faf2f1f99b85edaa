"""The parts of a run as processes: their commands, what each needs to be ready, and the GPUs it sees."""

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from retrieval_server.index_kinds import kind_of
from s3_agent.agl import cpu
from s3_agent.agl.train import KEY_VARIABLE
from s3_agent.clients.connections import DIRECT
from s3_agent.processes import commands
from s3_agent.processes.gpus import gpu_environment, shared_with
from s3_agent.processes.requirements import OTHER_PYTHON
from s3_agent.processes.run_folder import Run
from s3_agent.processes.serving import generator_on_cpu, generator_threads, has_cpu_vllm
from s3_agent.processes.stack import Part
from s3_agent.recipe import Recipe

TRAINER_MODULES = (*commands.SERVER_MODULES, "datasets", "pandas", "peft", "tensordict")
"""What the processes of a training on the CPU spend their start with. Ray and verl, which imports it, are left out: Ray
reads its environment once, when it is loaded."""


def _own(
    recipe: Recipe,
    run: Run,
    name: str,
    command: str,
    ready: str,
    environment: Mapping[str, str] = MappingProxyType({}),
    overrides: Sequence[str] = (),
    **kwargs: Any,
) -> Part:
    """A part that is one of our own subcommands over the resolved recipe."""
    return Part(
        name=name,
        command=commands.own_command(command, run.recipe, *overrides),
        log=run.logs / f"{name}.log",
        ready_url=ready,
        environment={**gpu_environment(recipe, name), **environment},
        **kwargs,
    )


def service_parts(recipe: Recipe, run: Run) -> list[Part]:
    """The retriever, and the generator where the reward asks it, as far as they are ours."""
    parts = []
    if recipe.retriever.url is None:
        ready = f"http://127.0.0.1:{recipe.retriever.port}/readyz"
        remedy = "check data.corpus; delete the index under `prepared` to have it built again"
        within = kind_of(recipe.retriever.index).ready_within_s
        patience: dict[str, Any] = {} if within is None else {"ready_within_s": within}
        parts.append(_own(recipe, run, "retriever", "serve", ready, remedy=remedy, **patience))
    if recipe.generator.hosted and recipe.asks_generator:
        ready = f"http://127.0.0.1:{recipe.generator.port}/health"
        remedy = "check generator.model and generator.serve, and that memory is left for vLLM"
        served: dict[str, Any] = {}
        if generator_on_cpu(recipe):
            served = commands.cpu_serving(recipe.generator, threads=generator_threads(recipe))
        if python := recipe.generator.python:
            # Said on the command line as well: what this process needs is then not looked for in our environment.
            served["overrides"] = [f"{OTHER_PYTHON}{json.dumps(str(python))}"]
        parts.append(_own(recipe, run, "generator", "generator", ready, remedy=remedy, **served))
    return parts


def training_parts(recipe: Recipe, run: Run, *, key: str, generation: int = 0) -> list[Part]:
    """The gateway, the workers and the trainer. Each generation of a run has a gateway and a pool of its own."""
    parts, secret = [], {KEY_VARIABLE: key}
    gateway_url = recipe.gateway_url
    needs: tuple[str, ...] = ()
    if recipe.gateway.url is None:
        needs = ("gateway",)
        parts.append(
            Part(
                name="gateway",
                command=commands.gateway_command(recipe, port=recipe.gateway.port, folder=run.logs),
                log=run.logs / "gateway.log",
                ready_url=f"{gateway_url}/healthz",
                # It calls the policy's servers alone, by the addresses of this machine or of the Ray's nodes.
                environment={**secret, **DIRECT, **gpu_environment(recipe, "gateway")},
                remedy=f"its rollouts are in memory and lost: go on with --resume {run.folder.name}",
            )
        )
    services = tuple(part.name for part in service_parts(recipe, run))
    pool_id = f"{run.folder.name}-{generation}" if generation else run.folder.name
    if recipe.workers.external:
        needs = (*needs, *services)  # the trainer has nobody else of ours to wait for
    else:
        parts.append(
            Part(
                name="workers",
                command=commands.workers_command(recipe, run, gateway=gateway_url, pool_id=pool_id),
                log=run.logs / "workers.log",
                needs=(*needs, *services),
                environment={**secret, **gpu_environment(recipe, "workers")},
                remedy="the log names the boundary that failed",
            )
        )
    # Workers of somebody else's Ray are not ours to fork.
    on_cpu = recipe.trainer.device == "cpu" and recipe.ray.address is None and has_cpu_vllm()
    # vLLM measures what is free on its GPU when it starts: a neighbour must have taken its share by then.
    neighbours = tuple(name for name in shared_with(recipe, "trainer") if name in services)
    parts.append(
        Part(
            name="trainer",
            command=commands.trainer_command(run.trainer, run.train, run.validation, run.metrics, run.episodes),
            log=run.logs / "trainer.log",
            needs=(*needs, *neighbours),
            environment={**secret, **gpu_environment(recipe, "trainer"), **(cpu.ENVIRONMENT if on_cpu else {})},
            preload=TRAINER_MODULES if on_cpu else (),
            remedy=f"read its log from the first error on, then go on with --resume {run.folder.name}",
        )
    )
    return parts
