"""Describes each process of a run: its command, the processes that must be ready first, and the GPUs that it sees."""

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from retrieval_server.index_kinds import kind_of
from retrieval_server.proxies import DIRECT
from s3_agent.agl import cpu
from s3_agent.agl.train import KEY_VARIABLE
from s3_agent.processes import commands
from s3_agent.processes.gpus import gpu_environment, shared_with
from s3_agent.processes.requirements import OTHER_PYTHON
from s3_agent.processes.run_folder import Run
from s3_agent.processes.serving import generator_on_cpu, generator_threads, has_cpu_vllm
from s3_agent.processes.stack import Part
from s3_agent.recipe import Recipe

TRAINER_MODULES = (*commands.SERVER_MODULES, "datasets", "pandas", "peft", "tensordict")
"""The modules whose imports make the processes of a CPU training slow to start. Ray, and verl, which imports Ray, are
not in the list, because Ray reads its environment once, when it is loaded."""


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
    """A process that runs one of our own subcommands with the resolved recipe."""
    return Part(
        name=name,
        command=commands.own_command(command, run.recipe, *overrides),
        log=run.logs / f"{name}.log",
        ready_url=ready,
        environment={**gpu_environment(recipe, name), **environment},
        **kwargs,
    )


def service_parts(recipe: Recipe, run: Run) -> list[Part]:
    """The retriever, and the generator when the reward uses it, unless they have an address elsewhere."""
    parts = []
    if recipe.retriever.url is None:
        ready = f"http://127.0.0.1:{recipe.retriever.port}/readyz"
        remedy = "check data.corpus; delete the index under `prepared` to rebuild it"
        within = kind_of(recipe.retriever.index).ready_within_s
        patience: dict[str, Any] = {} if within is None else {"ready_within_s": within}
        parts.append(_own(recipe, run, "retriever", "serve", ready, remedy=remedy, **patience))
    if recipe.generator.hosted and recipe.asks_generator:
        ready = f"http://127.0.0.1:{recipe.generator.port}/health"
        remedy = "check generator.model and generator.serve, and that vLLM has enough free memory"
        served: dict[str, Any] = {}
        if generator_on_cpu(recipe):
            served = commands.cpu_serving(recipe.generator, threads=generator_threads(recipe))
        if python := recipe.generator.python:
            # Repeated on the command line, so that the check of installed packages does not search our environment.
            served["overrides"] = [f"{OTHER_PYTHON}{json.dumps(str(python))}"]
        parts.append(_own(recipe, run, "generator", "generator", ready, remedy=remedy, **served))
    return parts


def training_parts(recipe: Recipe, run: Run, *, key: str, generation: int = 0) -> list[Part]:
    """The gateway, the workers and the trainer. Each generation of a run has its own gateway and pool."""
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
                # It calls only the policy's servers, at addresses of this machine or of Ray's nodes.
                environment={**secret, **DIRECT, **gpu_environment(recipe, "gateway")},
                remedy=f"its rollouts were only in memory and are lost: continue with --resume {run.folder.name}",
            )
        )
    services = tuple(part.name for part in service_parts(recipe, run))
    pool_id = f"{run.folder.name}-{generation}" if generation else run.folder.name
    if recipe.workers.external:
        needs = (*needs, *services)  # the trainer waits for no other process of ours
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
    # We can not fork the workers of a Ray cluster that we did not start.
    on_cpu = recipe.trainer.device == "cpu" and recipe.ray.address is None and has_cpu_vllm()
    # vLLM measures the free memory of its GPU when it starts, so a process that shares the GPU must be ready before.
    neighbours = tuple(name for name in shared_with(recipe, "trainer") if name in services)
    parts.append(
        Part(
            name="trainer",
            command=commands.trainer_command(run.trainer, run.train, run.validation, run.metrics, run.episodes),
            log=run.logs / "trainer.log",
            needs=(*needs, *neighbours),
            environment={**secret, **gpu_environment(recipe, "trainer"), **(cpu.ENVIRONMENT if on_cpu else {})},
            preload=TRAINER_MODULES if on_cpu else (),
            remedy=f"read its log from the first error on, then continue with --resume {run.folder.name}",
        )
    )
    return parts
