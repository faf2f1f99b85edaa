"""`python -m s3_agent.agl.cpu.vllm_server OPTION…`: vLLM's OpenAI server on a CPU, with the engine's worker inside it.

It serves the generator, and policies outside the trainer. The options are those of vLLM's own server.
"""

import runpy

from s3_agent.agl.cpu import one_process


def main() -> None:
    """Serve until the process is ended."""
    one_process.apply()
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
