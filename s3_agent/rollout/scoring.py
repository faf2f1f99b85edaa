"""From an episode to its reward: the generator's answer or the policy's own, checked by span or by the judge."""

from s3_agent.clients.answers.cache import asked_model
from s3_agent.clients.generator import Generator, answer_cut
from s3_agent.clients.judge import Judge
from s3_agent.clients.prompts import AnswerPrompt
from s3_agent.rewards.accuracy import Accuracy, check_answer
from s3_agent.rewards.registry import Reward, Scored
from s3_agent.types import Episode, RewardResult, Task


async def score_generated(
    task: Task,
    episode: Episode,
    *,
    reward: Reward,
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
    result = await score_answer(task, episode, answer, reward=reward, judge=judge)
    return answer, result.model_copy(update={"metrics": {**result.metrics, **cut, **kept}})


async def score_answer(
    task: Task, episode: Episode, answer: str | None, *, reward: Reward, judge: Judge | None
) -> RewardResult:
    """The reward of an answer that is correct or wrong; None counts as wrong. Raises JudgeError."""
    accuracy = Accuracy(0.0, {}) if answer is None else await check_answer(task, answer, judge=judge)
    result = reward.score(Scored(task, episode, answer, accuracy.value))
    metrics = {**accuracy.metrics, "accuracy": accuracy.value, **result.metrics}
    return result.model_copy(update={"metrics": metrics})
