"""The agent `look_up`: the policy asks for what it needs, and ends with `done`; the generator answers."""

from collections.abc import Sequence

from s3_agent.agents.base import Limits, SearchAgent
from s3_agent.agents.methods import Method, Sampling
from s3_agent.clients.policy import Role
from s3_agent.guard import neutral
from s3_agent.tags import bodies
from s3_agent.types import Action, ActionKind, Passage, Task

INSTRUCTIONS = "Write <look_up> what to search for </look_up>, or <look_up> done </look_up> if you know enough.\n"


class LookUpProtocol:
    """The text that the policy reads and writes. `neutral` prevents passages and questions from forging its tags."""

    stop: tuple[str, ...] = ("</look_up>",)
    invalid_hint: str | None = f"\n{INSTRUCTIONS}"
    observation_role: Role = "assistant"

    def message(self, task: Task, passages: Sequence[Passage], control: frozenset[str]) -> str:
        asked = f"<asked>{neutral(task.question, control)}</asked>\n"
        return INSTRUCTIONS + asked + self.observation(passages, control)

    def passages_in_data(self, task: Task) -> tuple[Passage, ...] | None:
        return None

    def parse(self, response: str) -> Action:
        query = next(bodies(response, "look_up"), "").strip()
        if not query:
            return Action(kind=ActionKind.INVALID)
        return Action(kind=ActionKind.FINISH) if query == "done" else Action(kind=ActionKind.SEARCH, query=query)

    def observation(self, passages: Sequence[Passage], control: frozenset[str]) -> str:
        shown = "\n".join(f"- {neutral(f'{passage.title}: {passage.text}', control)}" for passage in passages)
        return f"\n<found>\n{shown}\n</found>\n"


METHOD = Method(
    summary="looks things up until it knows enough; a generator answers",
    source="an example",
    make=lambda **given: SearchAgent("look_up", LookUpProtocol(), **given),
    limits=Limits(initial_topk=1, topk=2, max_searches=3),
    policy="protocol",
    sampling=Sampling(temperature=1.0),
    selection="chronological",
    protocol=lambda prompt: LookUpProtocol(),
    tags=("look_up", "asked", "found"),
)
