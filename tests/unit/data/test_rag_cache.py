"""The naive-RAG cache: refused when it belongs to other inputs, by name; the filter of the training set."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
import respx
from structlog.testing import capture_logs

from s3_agent.clients.generator import GeneratorSettings
from s3_agent.clients.judge import JudgeSettings
from s3_agent.data.files.checkpoint import Checkpoint
from s3_agent.data.naive_rag import fingerprint as fingerprints
from s3_agent.data.naive_rag.answers import complete_cache, naive_rag
from s3_agent.data.naive_rag.cache import RagAnswer, RagCache, beyond_rag
from s3_agent.data.naive_rag.fingerprint import Fingerprint
from s3_agent.data_identity import generator_window
from s3_agent.embedded import RAG_CACHE, TRAIN, VALIDATION
from s3_agent.errors import GeneratorError, RagCacheError, RetrieverError
from s3_agent.recipe import load_recipe
from s3_agent.testing.fakes import FakeGenerator, FakeRetriever
from s3_agent.types import Passage, Task

GENERATOR = GeneratorSettings(model="m", max_tokens=24)


def fingerprint(**changes: Any) -> Fingerprint:
    parts: dict[str, Any] = {"corpus": "c1", "retriever": "bm25 k1=0.9", "topk": 3, "generator": GENERATOR}
    return Fingerprint.of(**parts | changes)


def task(name: str, *golds: str, rag_score: float | None = None) -> Task:
    return Task(id=name, question=f"{name}?", golden_answers=golds or ("krone",), rag_score=rag_score)


def answer(question: str, score: int) -> RagAnswer:
    return RagAnswer(question=question, answer="x", score=score, em_score=0, golden_answers=("krone",))


CACHE = RagCache(fingerprint=fingerprint(), answers={"a": answer("a?", 1), "b": answer("b?", 0)})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "cache.json"
    CACHE.save(path)
    return path


def test_a_cache_of_the_same_parts_is_read_back(path: Path) -> None:
    assert RagCache.load(path, expected=fingerprint()) == CACHE
    assert [entry.name for entry in path.parent.iterdir()] == ["cache.json"], "no partial file stays"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"corpus": "c2"}, "corpus is 'c1', not 'c2'"),
        ({"retriever": "dense"}, "retriever is 'bm25 k1=0.9', not 'dense'"),
        ({"topk": 8}, "topk is 3, not 8"),
        ({"generator": GENERATOR.model_copy(update={"model": "n"})}, "generator is 'openai:m', not 'openai:n'"),
        ({"generator": GENERATOR.model_copy(update={"max_tokens": None})}, "max_tokens is 24, not None"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_each_part_that_differs_is_named(path: Path, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(RagCacheError) as caught:
        RagCache.load(path, expected=fingerprint(**changes))
    problems = caught.value.message.partition("other inputs: ")[2]
    assert problems == field
    assert "s3-agent rag-cache build" in caught.value.remedy


def test_another_prompt_is_another_fingerprint(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "answer_messages", lambda *_, **__: [{"role": "user", "content": "x"}])
    with pytest.raises(RagCacheError, match="prompt is"):
        RagCache.load(path, expected=fingerprint())


def test_claude_reads_another_prompt() -> None:
    claude = GENERATOR.model_copy(update={"kind": "anthropic"})
    assert fingerprint(generator=claude).prompt != fingerprint().prompt


def test_all_differences_are_told_at_once(path: Path) -> None:
    with pytest.raises(RagCacheError, match=r"corpus is .*; topk is "):
        RagCache.load(path, expected=fingerprint(corpus="c2", topk=1))


@pytest.mark.parametrize("content", [b"", b"{", b'{"answers": {}}', b"\xff\xfe", b"[]"], ids=repr)
def test_a_broken_cache_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(RagCacheError, match="can not be read"):
        RagCache.load(path, expected=fingerprint())


def test_a_missing_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RagCacheError, match="can not be read"):
        RagCache.load(tmp_path / "none.json", expected=fingerprint())


def test_tasks_get_their_scores() -> None:
    assert [task.rag_score for task in CACHE.scored([task("b"), task("a")])] == [0.0, 1.0]


def test_a_task_that_is_missing_or_was_reworded_is_refused() -> None:
    with pytest.raises(RagCacheError, match=r"1 of 2 tasks .* 'c'"):
        CACHE.scored([task("a"), task("c")])
    with pytest.raises(RagCacheError, match="'a'"):
        CACHE.scored([task("a").model_copy(update={"question": "another?"})])


def test_the_filter_drops_yes_no_questions_and_what_naive_rag_answers() -> None:
    tasks = [
        task("kept", "krone", rag_score=0),
        task("answered", "krone", rag_score=1),
        *(
            task(gold, "krone", gold, rag_score=0)
            for gold in ("yes", "no", "true", "false", "Yes", "No", "True", "False")
        ),
        task("YES", "YES", rag_score=0),
        task("within", "yes sir", rag_score=0),
    ]
    assert [task.id for task in beyond_rag(tasks)] == ["kept", "YES", "within"]


NORWAY = Passage(id="1", title="Norway", text="krone")


async def naive(tasks: list[Task], **fakes: Any) -> dict[str, RagAnswer]:
    answers: dict[str, RagAnswer] = {}
    parts: dict[str, Any] = {"retriever": FakeRetriever(default=[NORWAY]), "generator": FakeGenerator("The krone")}
    await naive_rag(tasks, topk=3, concurrency=2, keep=answers.__setitem__, **parts | fakes)
    return answers


async def test_naive_rag_asks_for_the_question_itself_and_scores() -> None:
    retriever = FakeRetriever(default=[NORWAY])
    tasks = [task("a"), task("b", "euro")]
    answers = await naive(tasks, retriever=retriever)
    assert [(each.score, each.em_score) for each in answers.values()] == [(1, 1), (0, 0)]
    assert sorted(retriever.queries) == [("a?", 3), ("b?", 3)]


async def test_naive_rag_keeps_to_its_concurrency() -> None:
    running = most = 0

    class Slow(FakeGenerator):
        async def answer(self, question: str, passages: Any) -> str:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
            running -= 1
            return await super().answer(question, passages)

    await naive([task(str(number)) for number in range(8)], generator=Slow("x"))
    assert most == 2


async def test_a_service_that_fails_ends_it_with_its_own_error() -> None:
    with pytest.raises(GeneratorError):
        await naive([task("a"), task("b")], generator=FakeGenerator("x", failures=1))
    with pytest.raises(RetrieverError):
        await naive([task("a")], retriever=FakeRetriever(failures=1))


async def complete(tasks: list[Task], path: Path, generator: FakeGenerator, **options: Any) -> RagCache:
    parts: dict[str, Any] = {"retriever": FakeRetriever(default=[NORWAY]), "done": lambda *_: None, "concurrency": 2}
    return await complete_cache(tasks, path, fingerprint(), generator=generator, **parts | options)


async def test_an_interrupted_build_asks_only_for_what_is_missing(tmp_path: Path) -> None:
    class Tired(FakeGenerator):
        async def answer(self, question: str, passages: Any) -> str:
            self.failures = 100 if len(self.calls) >= 3 else 0
            return await super().answer(question, passages)

    tasks, path = [task(str(number)) for number in range(8)], tmp_path / "cache.json"
    with pytest.raises(GeneratorError):
        await complete(tasks, path, Tired("krone"))
    assert not path.exists()
    generator = FakeGenerator("krone")
    cache = await complete(tasks, path, generator)
    assert len(generator.calls) == 5
    assert list(cache.answers) == [task.id for task in tasks], "in the order of the tasks, whatever came first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["cache.json"]


async def test_a_torn_line_of_a_killed_build_is_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "cache.json"
    with Checkpoint(path, made_of=fingerprint().model_dump()) as checkpoint:
        checkpoint.add("a", answer("a?", 1).model_dump())
    [partial] = tmp_path.iterdir()
    partial.write_bytes(partial.read_bytes() + b'{"id": "b", "quest')
    generator = FakeGenerator("krone")
    await complete([task("a"), task("b")], path, generator)
    assert [question for question, _ in generator.calls] == ["b?"]


async def test_answers_of_other_parts_are_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "cache.json"
    with Checkpoint(path, made_of=fingerprint(topk=8).model_dump()) as checkpoint:
        checkpoint.add("a", answer("a?", 1).model_dump())
    RagCache(fingerprint=fingerprint(corpus="c2"), answers={"b": answer("b?", 0)}).save(path)
    generator = FakeGenerator("krone")
    await complete([task("a"), task("b")], path, generator)
    assert len(generator.calls) == 2


async def test_new_and_reworded_questions_are_answered_the_rest_is_kept(path: Path) -> None:
    generator = FakeGenerator("krone")
    tasks = [task("a"), task("b").model_copy(update={"question": "another?"}), task("c")]
    cache = await complete(tasks, path, generator)
    assert sorted(question for question, _ in generator.calls) == ["another?", "c?"]
    assert cache.answers["a"] == CACHE.answers["a"]
    await complete(tasks, path, generator, fresh=True)
    assert len(generator.calls) == 5


def test_a_published_answer_that_failed_is_missing() -> None:
    failed = RagAnswer(question="a?", answer=None, score=0, em_score=0)
    with pytest.raises(RagCacheError, match="1 of 1"):
        RagCache(fingerprint=None, answers={"a": failed}).scored([task("a")])


def test_the_embedded_cache_covers_the_embedded_tasks() -> None:
    from s3_agent.data.tasks import load_tasks

    cache = RagCache.model_validate_json(RAG_CACHE.read_text(encoding="utf-8"))
    tasks = cache.scored(load_tasks(TRAIN) + load_tasks(VALIDATION))
    assert 0 < len(beyond_rag(tasks)) < len(tasks)


async def test_scores_of_golds_that_were_corrected_are_not_kept(path: Path) -> None:
    corrected = task("b", "The krone")
    with pytest.raises(RagCacheError, match=r"1 of 2 tasks .* these golden answers, the first is 'b'"):
        CACHE.scored([task("a"), corrected])
    generator = FakeGenerator("The krone")
    cache = await complete([task("a"), corrected], path, generator)
    assert [question for question, _ in generator.calls] == ["b?"]
    assert cache.answers["b"].score == 1 and cache.answers["a"] == CACHE.answers["a"]
    assert cache.scored([task("a"), corrected])[1].rag_score == 1.0


def test_the_order_of_the_golds_does_not_matter() -> None:
    both = answer("a?", 1).model_copy(update={"golden_answers": ("x", "y")})
    assert both.scores(task("a", "y", "x")) and not both.scores(task("a", "y"))


def test_our_own_answers_without_golds_are_asked_again() -> None:
    unsaid = RagAnswer(question="a?", answer="x", score=1, em_score=0)
    assert RagCache(fingerprint=fingerprint(), answers={"a": unsaid}).missing([task("a")])
    published = RagCache(fingerprint=None, answers={"a": unsaid})
    assert published.missing([task("a")]) == [], "a published file never says them"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"window": 1024}, "window is 2048, not 1024"),
        ({"generator": GENERATOR.model_copy(update={"context_tokens": 512})}, "window is 2048, not 512"),
        ({"generator": GENERATOR.model_copy(update={"tokenizer": "t"})}, "tokenizer is None, not 't'"),
    ],
    ids=["served", "told", "tokenizer"],
)
def test_what_cuts_the_passages_belongs_to_the_key(tmp_path: Path, changes: dict[str, Any], field: str) -> None:
    path = tmp_path / "cache.json"
    RagCache(fingerprint=fingerprint(window=2048), answers={}).save(path)
    parts = {"window": 2048, **changes}
    with pytest.raises(RagCacheError) as caught:
        RagCache.load(path, expected=fingerprint(**parts))
    assert caught.value.message.endswith(f"other inputs: {field}")


def test_a_window_that_nobody_knows_is_not_held_against_a_cache(path: Path) -> None:
    assert RagCache.load(path, expected=fingerprint(window=2048)) == CACHE
    RagCache(fingerprint=fingerprint(window=2048), answers={}).save(path)
    assert RagCache.load(path, expected=fingerprint()).answers == {}


@pytest.mark.parametrize("windows", [(None, 2048), (2048, None)], ids=str)
async def test_answers_of_a_window_that_is_not_known_get_no_other_windows_name(
    tmp_path: Path, windows: tuple[int | None, int | None]
) -> None:
    path, generator = tmp_path / "cache.json", FakeGenerator("krone")
    for window in windows:
        with capture_logs() as logs:
            cache = await complete_cache(
                [task("a")],
                path,
                fingerprint(window=window),
                retriever=FakeRetriever(default=[NORWAY]),
                generator=generator,
                concurrency=1,
                done=lambda *_: None,
            )
    assert len(generator.calls) == 2 and cache.fingerprint == fingerprint(window=windows[1])
    assert [entry["log_level"] for entry in logs] == ["warning"]


def test_the_bounds_of_the_judge_belong_to_the_key() -> None:
    judge = JudgeSettings(model="j", rule="judge")
    longer = judge.model_copy(update={"max_tokens": 99})
    assert fingerprint(judge=judge).judge != fingerprint(judge=longer).judge


@pytest.mark.parametrize(
    ("overrides", "window"),
    [
        ([], 2048),
        (["generator.context_tokens=512"], 512),
        (["generator.serve=[--max-model-len=777]"], 777),
        (["generator.serve=[]"], None),
    ],
    ids=str,
)
def test_the_window_is_the_recipes_or_the_servers(overrides: list[str], window: int | None) -> None:
    assert generator_window(load_recipe("cpu", overrides)) == window


@respx.mock
def test_the_window_of_a_running_server_is_asked() -> None:
    recipe = load_recipe("cpu", ["generator.url=http://generator:1/v1"])
    served = {"data": [{"id": recipe.generator.model, "max_model_len": 999}]}
    asked = respx.get("http://generator:1/v1/models")
    asked.mock(return_value=httpx.Response(200, json=served))
    assert generator_window(recipe) == 999
    for answer_of in (httpx.Response(404), httpx.Response(200, text="no JSON"), httpx.Response(200, json=[])):
        asked.mock(return_value=answer_of)
        assert generator_window(recipe) is None
    asked.mock(side_effect=httpx.ConnectError("down"))
    assert generator_window(recipe) is None
