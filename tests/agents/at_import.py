"""A module that reads its rollout's variables when it is imported: it can not be kept loaded."""

import os

from tests.agents.plain import post

QUESTION = os.environ["QUESTION"]


class ReadsAtImport:
    def run(self) -> None:
        post("seen", question=QUESTION)
        post("reward", value=1.0)
