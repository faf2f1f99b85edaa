"""Chat templates as a recipe says them: a template file, its variables, and which templates are refused."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from s3_agent.agl.one_task import OneTaskSettings
from s3_agent.clients.answers.cache import content_address
from s3_agent.clients.chat_model import ModelSettings
from s3_agent.clients.chat_policy import ChatPolicy, chat_body
from s3_agent.clients.generator import GeneratorSettings, make_generator
from s3_agent.clients.judge import JudgeSettings
from s3_agent.clients.tokenizer import ChatTemplate, load_tokenizer, lost_message, policy_tokenizer
from s3_agent.data.naive_rag.fingerprint import Fingerprint
from s3_agent.embedded import NANO_POLICY
from s3_agent.errors import ConfigError
from s3_agent.evaluation.players import hosted_policy
from s3_agent.processes.run_folder import Run
from s3_agent.recipe import load_recipe
from s3_agent.training.agent_environment import env_map_of
from s3_agent.training.changes import conditions_of
from s3_agent.training.job import trainer_settings
from s3_agent.types import Passage

QUESTION = "Which currency?"
BASE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
THINKING = BASE + "{% if enable_thinking is defined and enable_thinking is false %} <think></think>{% endif %}"
DATED = "Today is {{ date_string or strftime_now('%d %b %Y') }}.\n" + BASE
LISTS = (
    "{% for m in messages %}{{ m.role }}: {% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}\n{% endfor %}"
)
"""As those of models that see images: content is a list of parts."""
STRICT = "{% for m in messages %}{{ raise_exception('content must be a list') if m.content is string }}{% endfor %}"


def written(folder: Path, text: str) -> Path:
    path = folder / "template.jinja"
    path.write_text(text, encoding="utf-8")
    return path


def read(template: ChatTemplate) -> str:
    """What a policy reads of the question."""
    tokenizer = load_tokenizer(str(NANO_POLICY), template)
    return tokenizer.decode(tokenizer.chat(QUESTION))


@pytest.fixture
def base_model(tmp_path: Path) -> Path:
    """A tokenizer without a chat template, as base models have."""
    folder = tmp_path / "base"
    shutil.copytree(NANO_POLICY, folder)
    (folder / "chat_template.jinja").unlink()
    return folder


def test_a_base_model_gets_its_template_from_the_recipe(base_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no chat template") as caught:
        policy_tokenizer(str(base_model))
    assert "policy.chat_template" in caught.value.remedy
    tokenizer = policy_tokenizer(str(base_model), ChatTemplate(chat_template=written(tmp_path, BASE)))
    assert tokenizer.decode(tokenizer.chat(QUESTION)) == f"user: {QUESTION}\nassistant:"
    assert tokenizer.next_user_turn("found") == "\nuser: found\nassistant:"


def test_a_template_of_the_recipe_takes_the_place_of_the_models(tmp_path: Path) -> None:
    assert "<|im_start|>" in read(ChatTemplate())
    assert read(ChatTemplate(chat_template=written(tmp_path, BASE))) == f"user: {QUESTION}\nassistant:"
    assert "<|im_start|>" in read(ChatTemplate()), "each has a tokenizer of its own"


def test_variables_reach_the_template(tmp_path: Path) -> None:
    thinking = written(tmp_path, THINKING)
    assert not read(ChatTemplate(chat_template=thinking)).endswith("<think></think>")
    quiet = ChatTemplate(chat_template=thinking, chat_template_kwargs={"enable_thinking": False})
    assert read(quiet).endswith("<think></think>")
    dated = ChatTemplate(chat_template=written(tmp_path, DATED), chat_template_kwargs={"date_string": "26 Jul 2024"})
    assert read(dated).startswith("Today is 26 Jul 2024.\n"), "the same prompt on every day"


@given(st.text(alphabet="ab {}%<|>'\"\\\n", min_size=1, max_size=40))
def test_a_variable_is_a_value_and_no_template(value: str) -> None:
    template = "{{ date_string }}" + BASE
    tokenizer = _tokenizer_of(template, {"date_string": value})
    assert tokenizer.decode(tokenizer.chat(QUESTION)).startswith(f"{value}user: ")


def _tokenizer_of(text: str, kwargs: dict[str, Any]) -> Any:
    class Given(ChatTemplate):
        """A template without a file."""

        def text(self) -> str:
            return text

    from s3_agent.clients.tokenizer import HuggingFaceTokenizer

    return HuggingFaceTokenizer(str(NANO_POLICY), Given(chat_template_kwargs=kwargs))


def test_a_variable_that_the_template_does_not_read_is_refused(tmp_path: Path) -> None:
    template = ChatTemplate(
        chat_template=written(tmp_path, THINKING), chat_template_kwargs={"enable_thinkng": False, "add": 1}
    )
    with pytest.raises(ConfigError, match="does not read enable_thinkng, add"):
        load_tokenizer(str(NANO_POLICY), template)


@pytest.mark.parametrize("name", ["messages", "tokenize", "add_generation_prompt"])
def test_how_messages_are_handed_over_is_no_variable(name: str) -> None:
    with pytest.raises(ValidationError, match=f"{name} can not be set"):
        ChatTemplate(chat_template_kwargs={name: 1})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (LISTS, "shows a user's message 0 times"),
        (STRICT, "content must be a list"),
        ("{% for m in messages %}{{ m.content + m.content }}{% endfor %}", "shows a user's message 2 times"),
        ("{{ messages[0]['content'].upper() }}", "0 times"),
        ("{{ messages[7].content }}", "can not be applied|0 times"),
        ("{% if %}", "can not be applied"),
    ],
    ids=["lists", "strict", "twice", "changed", "another", "broken"],
)
def test_a_template_that_loses_the_message_is_refused_and_says_why(tmp_path: Path, text: str, why: str) -> None:
    template = ChatTemplate(chat_template=written(tmp_path, text))
    with pytest.raises(ConfigError, match=why) as caught:
        policy_tokenizer(str(NANO_POLICY), template)
    assert "policy.chat_template" in caught.value.remedy
    assert lost_message(load_tokenizer(str(NANO_POLICY), template)) is not None, "the doctor says it as a finding"


def test_a_template_for_one_turn_serves_agents_that_have_one(tmp_path: Path) -> None:
    template = ChatTemplate(chat_template=written(tmp_path, "Q: {{ messages[0].content }}\nA:"))
    tokenizer = policy_tokenizer(str(NANO_POLICY), template)
    assert tokenizer.decode(tokenizer.chat(QUESTION)) == f"Q: {QUESTION}\nA:"
    with pytest.raises(ConfigError, match="second message"):
        tokenizer.next_user_turn("found")


def test_a_file_that_is_not_there_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.jinja can not be read"):
        load_tokenizer(str(NANO_POLICY), ChatTemplate(chat_template=tmp_path / "nothing.jinja"))


# Where the server applies the template


def answering(sent: list[Any], *, counts: int | None = None) -> httpx.AsyncClient:
    def handle(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"data": [{"id": "m", "max_model_len": 400}]})
        sent.append((request.url.path, json.loads(request.content)))
        if request.url.path == "/tokenize":
            return httpx.Response(200, json={"count": counts or 10})
        return httpx.Response(200, json={"choices": [{"message": {"content": "x"}}]})

    return httpx.AsyncClient(transport=httpx.MockTransport(handle))


QUIET = {"enable_thinking": False}


async def test_variables_go_with_each_chat_request_and_with_what_is_counted() -> None:
    sent: list[Any] = []
    body = chat_body(ChatTemplate(chat_template_kwargs=QUIET), {"user": "me"})
    policy = ChatPolicy(answering(sent), "http://p/v1", model="m", body=body)
    await policy.converse("w" * 300).generate(max_tokens=200, stop=())
    assert [path for path, _ in sent] == ["/tokenize", "/v1/chat/completions"]
    assert all(body["chat_template_kwargs"] == QUIET for _, body in sent)
    assert sent[1][1]["user"] == "me"
    assert chat_body(ChatTemplate(), {}) == {}
    assert chat_body(ChatTemplate(chat_template_kwargs=QUIET), {"chat_template_kwargs": None}) == {
        "chat_template_kwargs": None
    }, "the request has the last word"


async def test_the_generators_variables_and_request_go_with_each_question() -> None:
    sent: list[Any] = []
    settings = GeneratorSettings(
        model="m", max_tokens=20, chat_template_kwargs=QUIET, request={"presence_penalty": None, "user": "me"}
    )
    generator = make_generator(answering(sent), "http://g/v1", settings)
    passages: Sequence[Passage] = await generator.fit("q", [Passage(id="1", title="t", text="w" * 300)])
    await generator.answer("q", passages)
    assert [path for path, _ in sent] == ["/tokenize", "/v1/chat/completions"]
    assert all(body["chat_template_kwargs"] == QUIET for _, body in sent)
    assert sent[1][1]["user"] == "me" and "presence_penalty" not in sent[1][1]


def test_claude_has_no_template() -> None:
    with pytest.raises(ValidationError, match="takes no chat_template_kwargs"):
        ModelSettings(kind="anthropic", model="claude", chat_template_kwargs=QUIET)


# What is kept under which name


def test_replies_of_another_template_are_kept_apart_and_those_of_none_where_they_were() -> None:
    asked = [{"role": "user", "content": "q"}]
    plain = ModelSettings(model="m", max_tokens=9, identity="i")
    others = [
        plain.model_copy(update={"chat_template_kwargs": QUIET}),
        plain.model_copy(update={"chat_template_kwargs": {"enable_thinking": True}}),
        plain.model_copy(update={"request": {"top_k": 1}}),
    ]
    addresses = [content_address(settings, asked) for settings in (plain, *others)]
    assert len(set(addresses)) == 4
    kept = "92bf062aa1292e25d7bfccc11fc55fc6214d43f4ba2225e2d9000c18e4836ecc"
    assert addresses[0] == kept, "what was kept before there were templates is still found"


def test_naive_rag_of_another_template_is_another() -> None:
    def fingerprint(generator: GeneratorSettings, judge: JudgeSettings) -> Fingerprint:
        return Fingerprint.of(corpus="c", retriever="r", topk=3, generator=generator, judge=judge)

    generator, judge = GeneratorSettings(model="m"), JudgeSettings(rule="judge", model="j")
    plain = fingerprint(generator, judge)
    assert plain.generator == "openai:m" and plain.judge.startswith("judge:openai:j:10:")
    quiet = fingerprint(GeneratorSettings(model="m", chat_template_kwargs=QUIET), judge)
    [difference] = quiet.differences(plain)
    assert 'generator is \'openai:m {"chat_template_kwargs"' in difference
    assert fingerprint(generator, judge.model_copy(update={"request": {"seed": 1}})).differences(plain)


# What a recipe's template reaches


def recipe_with(path: Path) -> Any:
    return load_recipe("cpu", [f"policy.chat_template={path}", "policy.chat_template_kwargs.enable_thinking=false"])


def test_other_controllers_agents_read_the_same_template(tmp_path: Path) -> None:
    recipe = recipe_with(written(tmp_path, THINKING))
    environment = env_map_of(recipe, Run(tmp_path / "run"))
    settings = OneTaskSettings.from_environment(environment | {"S3_AGENT_TASK": "{}"}, agent="s3")
    assert settings.policy_template == recipe.policy.template
    assert settings.policy_context_tokens == recipe.trained_window
    assert settings.patience_s == recipe.trainer.rollout_timeout_s, "as long as the rollout lives"
    assert "S3_AGENT_POLICY_TEMPLATE" not in env_map_of(load_recipe("cpu"), Run(tmp_path / "run"))


def test_the_trained_policy_keeps_the_template(tmp_path: Path) -> None:
    from s3_agent.agl.verl_config import settings_alone

    text = THINKING + "{# ${oc.env:HOME} \\${x} #}"
    settings = trainer_settings(recipe_with(written(tmp_path, text)), Run(tmp_path / "run"), validation_size=1)
    assert settings_alone(settings).actor_rollout_ref.model.custom_chat_template == text
    plain = trainer_settings(load_recipe("cpu"), Run(tmp_path / "run"), validation_size=1)
    assert "custom_chat_template" not in settings_alone(plain).actor_rollout_ref.model


def test_an_edited_template_is_another_run_and_another_evaluation(tmp_path: Path) -> None:
    path = written(tmp_path, THINKING)
    recipe = recipe_with(path)
    before, policy = conditions_of(recipe), hosted_policy(str(NANO_POLICY), recipe.policy)
    path.write_text(THINKING + " ", encoding="utf-8")
    after, edited = conditions_of(recipe), hosted_policy(str(NANO_POLICY), recipe.policy)
    assert [name for name in after if after[name] != before[name]] == ["policy.chat_template"]
    assert policy.identity != edited.identity
    assert "policy.chat_template_kwargs.enable_thinking" in before


def test_verl_saves_the_recipes_template_with_the_policy(tmp_path: Path) -> None:
    """So that a policy trained from a base model can be asked by whoever gets its folder."""
    config = pytest.importorskip("verl.workers.config")
    model = config.HFModelConfig(path=str(NANO_POLICY), custom_chat_template=BASE)
    assert model.tokenizer is not None
    model.tokenizer.save_pretrained(tmp_path / "policy")
    tokenizer = policy_tokenizer(str(tmp_path / "policy"))
    assert tokenizer.decode(tokenizer.chat(QUESTION)) == f"user: {QUESTION}\nassistant:"


@settings(deadline=None)
@given(st.text(max_size=80) | st.lists(st.sampled_from(["<query>", "<|im_end|>", " ", "town", "\u0301"])).map("".join))
def test_a_text_has_the_ids_that_transformers_gives_it(text: str) -> None:
    tokenizer = load_tokenizer(str(NANO_POLICY))
    assert tokenizer.encode(text) == tokenizer._tokenizer(text, add_special_tokens=False)["input_ids"]
