"""From an episode to its reward: the generator's answer or the policy's own, checked by span or by the judge."""

from s3_agent.agents.search_r1 import scored_responses, scored_text
from s3_agent.clients.answers.cache import asked_model
from s3_agent.clients.generator import Generator, answer_cut
from s3_agent.clients.judge import Judge
from s3_agent.clients.prompts import AnswerPrompt
from s3_agent.rewards.accuracy import Accuracy, check_answer
from s3_agent.rewards.gain_beyond_rag import RewardMode, gain_beyond_rag
from s3_agent.rewards.search_r1 import own_answer
from s3_agent.types import Episode, RewardResult, Task


async def score_generated(
    task: Task,
    episode: Episode,
    *,
    mode: RewardMode,
    generator: Generator,
    judge: Judge | None,
    prompt: AnswerPrompt | None = None,
) -> tuple[str, RewardResult]:
    """The generator's answer from the selected passages, and its reward. Raises GeneratorError and JudgeError."""
    shown = await generator.fit(task.question, episode.selected, prompt=prompt)
    asked_model.set(True)
    answer_cut.set(False)
    answer = await generator.answer(task.question, shown, prompt=prompt)
    kept = {"answer_kept": float(not asked_model.get())}
    cut = {"context_cut": float(shown != episode.selected), "answer_cut": float(answer_cut.get())}
    reward = await score_answer(task, answer, mode=mode, judge=judge)
    return answer, reward.model_copy(update={"metrics": {**reward.metrics, **cut, **kept}})


async def score_answer(task: Task, answer: str | None, *, mode: RewardMode, judge: Judge | None) -> RewardResult:
    """The reward of an answer by whether it is correct; None is a wrong one. Raises JudgeError."""
    accuracy = Accuracy(0.0, {}) if answer is None else await check_answer(task, answer, judge=judge)
    reward = gain_beyond_rag(task, accuracy.value, mode=mode)
    return reward.model_copy(update={"metrics": {**accuracy.metrics, **reward.metrics}})


def score_own(task: Task, episode: Episode, *, form: bool) -> tuple[str | None, RewardResult]:
    """The policy's own answer, None when it gave none, and Search-R1's reward for it."""
    mode = "format" if form else "exact_match"
    return episode.answer, own_answer(task, scored_text(episode), responses=scored_responses(episode), mode=mode)
