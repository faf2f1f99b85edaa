"""Recipes: every shipped one parses; what is wrong is refused by its name before anything starts."""

import re
from pathlib import Path

import pytest

from retrieval_server.backends.dense.settings import DenseSettings
from s3_agent.errors import ConfigError
from s3_agent.recipe import EXAMPLES, load_recipe

SHIPPED = sorted(EXAMPLES.glob("*/recipes/*.yaml"))
SMALLEST = """
name: small
data: {corpus: c.jsonl, train: t.jsonl, validation: v.jsonl, rag_cache: r.json}
policy: {model: some/model}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALLEST, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parents[1].name}/{path.stem}")
def test_every_shipped_recipe_parses_by_path_and_by_name(path: Path) -> None:
    recipe = load_recipe(str(path))
    assert recipe == load_recipe(path.stem)
    assert recipe.name == path.stem
    assert recipe.agent.make()
    for part in (recipe.data.corpus, recipe.data.train, recipe.data.validation, recipe.data.rag_cache):
        assert "${" not in str(part)


def test_there_are_shipped_recipes() -> None:
    assert SHIPPED


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("trainer.step=3", "trainer.steps"),
        ("agent.limits.top_k=3", "agent.limits.topk"),
        ("learning_rate=1e-5", "trainer.learning_rate"),
        ("trainer.question_per_step=3", "trainer.questions_per_step"),
        ("retriever.index.boolan=true", "retriever.index.boolean"),
        ("generator.modle=x", "generator.model"),
        ("gpu.trainer=[0]", "gpus"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_one(recipe: Path, override: str, meant: str) -> None:
    with pytest.raises(ConfigError, match="there is no such field") as caught:
        load_recipe(str(recipe), [override])
    assert f"do you mean {meant}?" in caught.value.remedy


def test_a_key_like_no_other_is_refused_without_a_guess(recipe: Path) -> None:
    with pytest.raises(ConfigError, match="zzqx: there is no such field") as caught:
        load_recipe(str(recipe), ["zzqx=1"])
    assert "do you mean" not in caught.value.remedy


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["questions_per_step=6", "questions_per_update=4"], r"\(6\) can not be divided by questions_per_update"),
        (["tokens_per_gpu=300"], r"tokens_per_gpu \(300\) is less than prompt_tokens"),
        (["device=cuda", "gpus=3", "tensor_parallel=2", "micro_batch=1", "questions_per_step=3"], "tensor_parallel"),
        (["checkpoints_kept=1"], "checkpoints_kept"),
        (["trackers=[mlflow]"], "trackers"),
    ],
)
def test_a_trainer_that_could_not_work_is_refused(recipe: Path, overrides: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_recipe(str(recipe), [f"trainer.{override}" for override in overrides])


def test_gpus_are_counted_and_numbered_once(recipe: Path) -> None:
    placed = ["trainer.device=cuda", "trainer.gpus=2", "trainer.micro_batch=1"]
    with pytest.raises(ConfigError, match=r"gpus.trainer names 3 GPUs \[0, 1, 2\], trainer.gpus is 2"):
        load_recipe(str(recipe), [*placed, "gpus.trainer=[0,1,2]"])
    with pytest.raises(ConfigError, match="must be different numbers"):
        load_recipe(str(recipe), [*placed, "gpus.trainer=[0,0]"])
    gpus = load_recipe(str(recipe), [*placed, "gpus.trainer=[0,1]", "gpus.generator=[2]"]).gpus
    assert (gpus.of("trainer"), gpus.of("generator"), gpus.of("retriever"), gpus.of("workers")) == ([0, 1], [2], [], [])
    assert load_recipe(str(recipe), placed).gpus.of("trainer") is None


def test_a_baseline_is_needed_only_by_rewards_that_use_it(recipe: Path) -> None:
    assert load_recipe(str(recipe), ["data.rag_cache=null"]).data.rag_cache is None
    with pytest.raises(ConfigError, match=r"needs the naive-RAG scores of data.rag_cache"):
        load_recipe(str(recipe), ["data.rag_cache=null", "agent.reward=gbr"])


def test_the_smallest_recipe_takes_s3s_defaults(recipe: Path) -> None:
    loaded = load_recipe(str(recipe))
    assert (loaded.retriever.port, loaded.generator.port) == (3000, 8000)
    assert loaded.agent.limits.max_searches == 4
    assert loaded.generator.hosted
    assert loaded.generator.client.model == loaded.generator.model


def test_other_agents_are_set_by_name(recipe: Path) -> None:
    loaded = load_recipe(
        str(recipe),
        [
            "agent.limits.max_new_tokens=48",
            "agents.ircot.limits.max_new_tokens=64",
            "agents.search_r1.answers=generator",
            "agents.deep_retrieval.prompt=double_template",
        ],
    )
    assert loaded.playing("s3") == loaded.agent
    ircot, search_r1 = loaded.playing("ircot"), loaded.playing("search_r1")
    assert (ircot.limits.max_new_tokens, ircot.limits.topk) == (64, 3)
    assert (search_r1.limits.max_new_tokens, search_r1.answers, search_r1.reward) == (48, "generator", "accuracy")
    assert loaded.playing("deep_retrieval").prompt == "double_template"
    assert loaded.playing("rag") == loaded.agent.played_by("rag")


@pytest.mark.parametrize(
    "override", ["agents.ircots.layout=lines", "agents.ircot.limits.top_k=3", "agents.rag.limits=5", "agents.rag=5"]
)
def test_another_agent_that_does_not_fit_is_named(recipe: Path, override: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(".".join(override.split(".")[:2]).partition("=")[0])):
        load_recipe(str(recipe), [override])


def test_overrides_reach_every_depth(recipe: Path) -> None:
    overrides = [
        "agent.limits.topk=5",
        "generator.url=http://g/v1/",
        "seed=7",
        "trainer.verl={a.b: 1}",
        "workers.processes=128",
    ]
    loaded = load_recipe(str(recipe), overrides)
    assert (loaded.agent.limits.topk, loaded.seed, loaded.workers.processes) == (5, 7, 128)
    assert loaded.generator.url == "http://g/v1" and not loaded.generator.hosted
    assert loaded.trainer.verl == {"a.b": 1}


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("trainer.step=3", "trainer.step"),
        ("agent.limits.top_k=3", "agent.limits.top_k"),
        ("colour=red", "colour"),
        ("trainer.steps=many", "trainer.steps"),
        ("trainer.steps=0", "trainer.steps"),
        ("agent.selection=best", "agent.selection"),
        ("agent.reward=joy", "agent.reward"),
        ("agent.prompt=long", "agent.prompt"),
        ("retriever.url=localhost:3000", "retriever.url"),
        ("retriever.port=70000", "retriever.port"),
        ("workers.processes=0", "workers.processes"),
        ("name=a/b", "name"),
        ("trainer=3", "trainer"),
        ("data.corpus=null", "data.corpus"),
    ],
)
def test_a_field_that_does_not_fit_is_named(recipe: Path, override: str, named: str) -> None:
    with pytest.raises(ConfigError, match=rf"is not valid: {re.escape(named)}:") as caught:
        load_recipe(str(recipe), [override])
    assert str(recipe) in caught.value.message


@pytest.mark.parametrize("override", ["trainer.steps", "--steps=3", "-x", ""])
def test_what_is_not_an_override_is_refused(recipe: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="is not an override") as caught:
        load_recipe(str(recipe), [override])
    assert "section.field=value" in caught.value.remedy


@pytest.mark.parametrize("override", ["seed=[1", "seed=${nothing}", "data.corpus=${embedded:NOTHING}", "seed={a: "])
def test_an_override_that_can_not_be_read_is_a_config_error(recipe: Path, override: str) -> None:
    with pytest.raises(ConfigError):
        load_recipe(str(recipe), [override])


def test_rows_that_would_be_cut_are_refused(recipe: Path) -> None:
    lengths = ["trainer.prompt_tokens=1000", "trainer.response_tokens=1000", "agent.limits.max_context_tokens=1001"]
    with pytest.raises(ConfigError, match=r"max_context_tokens \(1001\).*response_tokens.*would be cut"):
        load_recipe(str(recipe), lengths)
    assert load_recipe(str(recipe), [*lengths[:2], "agent.limits.max_context_tokens=1000"])


def test_a_batch_that_micro_batches_do_not_divide_is_refused(recipe: Path) -> None:
    sizes = ["trainer.questions_per_step=2", "trainer.rollouts_per_question=4"]
    with pytest.raises(ConfigError, match=r"= 8\) can not be divided.*\(16\).*change one"):
        load_recipe(str(recipe), [*sizes, "trainer.micro_batch=16"])
    assert load_recipe(str(recipe), [*sizes, "trainer.micro_batch=8"])


@pytest.mark.parametrize("content", ["", "[]", "name: [", "just text", "- a: 1", "name: x\nname: y", "\x00"], ids=repr)
def test_a_broken_file_is_a_config_error(recipe: Path, content: str) -> None:
    recipe.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError):
        load_recipe(str(recipe))


def test_a_file_that_is_not_text_is_a_config_error(recipe: Path) -> None:
    recipe.write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(ConfigError):
        load_recipe(str(recipe))


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="no recipe 'gpu9'") as caught:
        load_recipe("gpu9")
    assert "cpu" in caught.value.remedy


def test_the_published_data_of_the_documentation_are_a_recipe(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    block = (root / "docs/data.md").read_text(encoding="utf-8").partition("```yaml\n")[2].partition("```")[0]
    path = tmp_path / "wiki18.yaml"
    path.write_text("name: wiki18\npolicy: {model: m}\ngenerator: {model: g}\n" + block)
    recipe = load_recipe(str(path))
    assert recipe.data.sources is not None
    assert [wanted.repo for wanted in recipe.data.sources.wanted] == [
        "PeterJinGo/wiki-18-corpus",
        "PeterJinGo/wiki-18-e5-index",
        "RUC-NLPIR/FlashRAG_datasets",
    ]
    settings = recipe.retriever.index
    assert isinstance(settings, DenseSettings) and settings.encoder.query_prefix == "query: "
    assert settings.file == recipe.data_folder / "e5_Flat.index"


def test_a_published_index_of_another_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the published index e5-flat is of wiki-18"):
        load_recipe("cpu", ["data.sources.corpus=medcorp", "data.sources.index=e5-flat"])


@pytest.mark.parametrize("field", ["n=2", "stream=true"])
def test_a_policy_is_asked_for_one_whole_answer_a_call(field: str) -> None:
    with pytest.raises(ConfigError, match="n and stream can not be set"):
        load_recipe("cpu", [f"policy.request.{field}"])
    assert load_recipe("cpu", ["policy.request.n=1", "policy.request.top_k=5"]).policy.request == {"n": 1, "top_k": 5}


def test_a_reward_by_evidence_needs_no_generator() -> None:
    assert load_recipe("cpu", []).asks_generator
    assert not load_recipe("cpu", ["agent.reward=evidence_recall"]).asks_generator


def test_an_agent_asks_for_at_most_the_larger_of_the_limits_that_it_uses() -> None:
    recipe = load_recipe("cpu", ["agent.limits.topk=5", "agent.limits.initial_topk=9"])
    asked = {name: recipe.playing(name).most_topk for name in ("s3", "rag", "retriever", "direct")}
    assert asked == {"s3": 9, "rag": 3, "retriever": 100, "direct": 0}
    web = ["retriever.index.kind=web", "retriever.index.provider=serper", "retriever.index.results=12"]
    with pytest.raises(ConfigError, match="15 passages a query are more than the 12 `results`"):
        load_recipe("cpu", [*web, "agent.limits.topk=15"])
    assert load_recipe("cpu", [*web, "agent.limits.topk=15", "retriever.url=http://127.0.0.1:1"])
