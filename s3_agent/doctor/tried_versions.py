"""Sets of versions that were tried beside the pinned one, and what broke.

The doctor gives their reasons, and the table of docs/install.md is tested against this module. A set is tried with
`scripts/try_versions.py`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

STAGES = ("resolve", "imports", "compose", "tests")
"""What `scripts/try_versions.py` tries, in this order."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One set: the versions that differ from the pins, the stages that failed, and the reason in a sentence.

    It also counts for later versions of `package`, from `since` on.
    """

    package: str
    since: str
    versions: tuple[str, ...]
    failed: tuple[str, ...]
    why: str


TRIED = (
    Tried(
        package="verl",
        since="0.9",
        versions=("verl==0.9.1",),
        failed=("resolve", "imports", "tests"),
        why="Agent Lightning 1.0.2 imports TaskRunner and create_rl_sampler from verl.trainer.main_ppo, where verl 0.9 "
        "does not have them, and fails once Ray has started; verl 0.9 has a new trainer (trainer.use_v1, the default) "
        "and deprecates the one that Agent Lightning extends; it refuses transformers from 5.11 on; "
        "vllm_rollout has no get_device_uuid, which our CPU backend replaces, and the loss gspo averages over tokens",
    ),
    Tried(
        package="verl",
        since="0.9",
        versions=("verl==0.9.1", "transformers==5.9.0"),
        failed=("imports", "tests"),
        why="as before, but the versions resolve (tokenizers 0.22.2 and huggingface-hub 1.33.0 with them)",
    ),
)


def known_to_break(name: str, installed: str, pinned: Mapping[str, str]) -> Tried | None:
    """The first tried set that says why this version of a package does not work; None if none does or it is pinned."""
    if installed.partition("+")[0] == pinned.get(name):
        return None
    return next((one for one in TRIED if one.package == name and _numbers(installed) >= _numbers(one.since)), None)


def _numbers(version: str) -> tuple[int, ...]:
    """The release's numbers; a development version counts as its release."""
    release = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, release[0].split("."))) if release else ()
