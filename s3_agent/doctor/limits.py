"""One table of how many rollouts, calls, files or threads each service and process of a run takes at a time.

If a limit is below the number of rollouts that a recipe plays at a time, nothing fails at the start of a run: the
excess waits in a queue, and may time out there. `train --dry-run` prints the table, and the doctor reports the rows
whose limit is too small (`checks.limits`). The numbers are those of services that the recipe starts; among a user's
own services, only the gateway's limit is known.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from retrieval_server.config import HttpSettings
from s3_agent.clients.gateway import CONNECTIONS
from s3_agent.clients.gateway_limit import STOCK_CALL_S, GatewayLimit, gateway_limit
from s3_agent.doctor.case import Case
from s3_agent.doctor.findings import Finding, error, warning
from s3_agent.doctor.serving_memory import read_options
from s3_agent.machine.description import Host

FILES_AT_REST, FILES_A_ROLLOUT = 512, 4
THREADS_AT_REST, THREADS_A_WORKER = 2048, 16
BACKLOG = 2048  # uvicorn's default, for the gateway, the policy servers, the retriever and the generator
STOCK_CONTROLLER = 50  # Agent Lightning's local controller lists no more rollouts, and no setting changes this
ROUNDS = 8  # full batches of the generator that a call can wait for before it reaches our clients' limit of 300 s
RAY_TASK_RUNNER, RAY_PER_GPU = 1, 3  # CPU slots of Agent Lightning's task, and of each GPU in verl's pool
FEWER = "fewer workers.processes x workers.concurrency"


@dataclass(frozen=True, slots=True)
class Limit:
    """`place` takes at most `most` of `what` at a time (None: no limit, or unknown); the recipe needs `needed`.

    `beyond` describes what happens to the excess. If the limit is too small, `report` makes a finding, with `fix`. A
    limit without `report` is only shown in the table, because its excess only waits for its turn.
    """

    id: str
    place: str
    what: str
    most: int | None
    needed: int
    beyond: str
    fix: str = ""
    report: Callable[..., Finding] | None = None

    @property
    def too_small(self) -> bool:
        """Whether the recipe needs more."""
        return self.most is not None and self.most < self.needed


def rollouts_at_once(case: Case) -> int:
    """How many rollouts are played at a time: as many as the trainer queues, or as the workers have room for."""
    recipe = case.recipe
    validation = recipe.data.validation_size or 0 if case.validation is None else len(case.validation)
    trainer = recipe.trainer
    # Validation rollouts are queued behind those that an asynchronous trainer has left in play.
    behind = trainer.async_questions * trainer.rollouts_per_question
    queued = max(trainer.rollouts_in_play, validation + behind)
    return queued if recipe.workers.external else min(queued, recipe.workers.processes * recipe.workers.concurrency)


def gateway_of(case: Case) -> GatewayLimit:
    """The limit of the recipe's gateway."""
    settings = case.recipe.gateway
    if settings.url is None:
        return GatewayLimit(settings.policy_calls, "gateway.policy_calls")
    return gateway_limit(case.gateway_answer, stated=settings.policy_calls)


def limits(case: Case) -> list[Limit]:
    """The table: services and processes in the order in which a rollout uses them, then the limits of the system."""
    at_once = rollouts_at_once(case)
    found = [*_players(case, at_once), *_gateway(case, at_once), *_services(case, at_once), *_ray(case)]
    return found if case.machine.host is None else [*found, *_host(case, case.machine.host, at_once)]


def _players(case: Case, at_once: int) -> Iterator[Limit]:
    if case.recipe.workers.external:
        yield Limit(
            "limits.controller",
            "Agent Lightning's local controller",
            "rollouts",
            STOCK_CONTROLLER,
            at_once,
            "the others stay queued; a controller in Kubernetes has no such limit",
        )
        return
    yield Limit("limits.clients", "clients of our workers", "calls", None, at_once, "")
    yield Limit(
        "limits.supervisor",
        "the pool's own calls to the gateway",
        "claims, rewards and ends",
        CONNECTIONS,
        at_once,
        "they wait for milliseconds",
    )


def _gateway(case: Case, at_once: int) -> Iterator[Limit]:
    recipe, limit = case.recipe, gateway_of(case)
    ours, theirs = recipe.gateway.url is None, f"the gateway at {recipe.gateway.url}"
    if recipe.workers.external:
        beyond = "calls wait in the gateway, and this time counts as time of the policy server"
    else:
        beyond = f"the pool claims {limit.calls} rollouts at a time, the others stay queued"
    yield Limit(
        "gateway.policy-calls",
        "our gateway" if ours else f"{theirs} ({limit.basis})",
        "policy calls",
        limit.calls,
        at_once,
        beyond if limit.bounds(at_once) else "",
        "leave gateway.policy_calls out"
        if ours
        else "start it as `python -m s3_agent.agl.gateway` with the options of agl-server; if it passes more, "
        f"set gateway.policy_calls={at_once}",
        warning,
    )
    if not ours:
        yield Limit(
            "gateway.call-seconds",
            f"{theirs}, if it is a stock one",
            "seconds of a policy call",
            STOCK_CALL_S,
            recipe.trainer.rollout_timeout_s,
            "the gateway repeats the call, six tries in all",
        )


def _services(case: Case, at_once: int) -> Iterator[Limit]:
    recipe, training = case.recipe, case.training
    if training is not None:
        servers = max(1, training.gpus * training.nodes // training.tensor_parallel)
        yield Limit(
            "limits.policy-server",
            f"{servers} policy server{'s' * (servers > 1)} (max_num_seqs)",
            "sequences",
            servers * training.max_num_seqs,
            at_once,
            "calls wait in vLLM's queue while the time of their rollouts passes",
            f"trainer.verl.actor_rollout_ref.rollout.max_num_seqs={-(-at_once // servers)}, or {FEWER}",
            warning,
        )
    if recipe.generator.hosted and recipe.asks_generator:
        sequences = read_options(recipe.generator.serve).max_num_seqs
        yield Limit(
            "limits.generator",
            f"the generator (--max-num-seqs {sequences}, {ROUNDS} full batches)",
            "answers",
            sequences * ROUNDS,
            at_once,
            "calls wait in vLLM's queue; after 300 s they fail",
            f"raise --max-num-seqs in generator.serve, or {FEWER}",
            warning,
        )
    if recipe.retriever.url is None:
        yield Limit(
            "limits.retriever",
            "the retriever's queue",
            "queries",
            HttpSettings().max_queued,
            at_once,
            "429 with the time to wait; our clients wait",
        )


def _ray(case: Case) -> Iterator[Limit]:
    training, host = case.training, case.machine.host
    if training is None or host is None or case.recipe.ray.address is not None or training.nodes > 1:
        return
    yield Limit(
        "limits.ray-cpus",
        "our Ray (trainer.verl.ray_kwargs.ray_init.num_cpus)"
        if training.ray_cpus
        else "our Ray, by this machine's cores",
        "CPUs",
        training.ray_cpus or host.cores,
        RAY_TASK_RUNNER + RAY_PER_GPU * training.gpus,
        "the trainer waits forever for its placement group, without an error",
        "trainer.verl.ray_kwargs.ray_init.num_cpus="
        f"{RAY_TASK_RUNNER + RAY_PER_GPU * training.gpus}: they are slots, not cores",
        error,
    )


def _host(case: Case, host: Host, at_once: int) -> Iterator[Limit]:
    files = FILES_AT_REST + FILES_A_ROLLOUT * at_once
    yield Limit(
        "host.open-files",
        "a process",
        "open files",
        host.open_files,
        files,
        "gateway and workers hold several connections for each rollout; beyond the limit all of them fail",
        f"ulimit -n {max(65536, files)}",
        error,
    )
    threads = THREADS_AT_REST + THREADS_A_WORKER * case.recipe.workers.processes + 16 * host.cores
    yield Limit(
        "host.processes",
        "this user",
        "processes and threads",
        host.processes,
        threads,
        "Ray, torch and vLLM each start one thread for each core, and end without a reason when they can not",
        f"ulimit -u {max(32768, threads)}",
        error,
    )
    yield Limit(
        "host.backlog",
        "a listening port (uvicorn's backlog, net.core.somaxconn)",
        "connections not yet accepted",
        BACKLOG if host.backlog is None else min(BACKLOG, host.backlog),
        at_once,
        "the kernel drops them; our clients give up after 10 s",
        f"sysctl -w net.core.somaxconn={BACKLOG}, or {FEWER}",
        warning,
    )
    low, high = host.ephemeral_ports or (0, -1)
    yield Limit(
        "host.outgoing-ports",
        "the kernel, to each port that is called",
        "outgoing connections",
        high - low + 1 or None,
        at_once,
        "a connection fails with `Cannot assign requested address`",
        f"sysctl -w net.ipv4.ip_local_port_range='10240 65000', or {FEWER}",
        warning,
    )
