"""Creates the clients of a rollout's services, in one place for workers, other controllers,
`ask`, `eval` and the stages of the data."""

from dataclasses import dataclass
from typing import Any, Literal

import httpx

from s3_agent.clients.chat_policy import ChatPolicy, chat_body
from s3_agent.clients.generator import FrozenGenerator, GeneratorSettings, make_generator
from s3_agent.clients.judge import JudgeSettings, ModelJudge, make_judge
from s3_agent.clients.policy import CompletionsPolicy, Policy
from s3_agent.clients.prompts import CONTEXT, AnswerPrompt
from s3_agent.clients.retriever import HttpRetriever
from s3_agent.clients.tokenizer import ChatTemplate, policy_tokenizer


@dataclass(frozen=True, slots=True)
class ServiceClients:
    """What an episode searches with, what answers and what checks. `judge` None: only the span check decides."""

    retriever: HttpRetriever
    generator: FrozenGenerator
    judge: ModelJudge | None


def make_services(
    http: httpx.AsyncClient,
    *,
    retriever_url: str,
    generator_url: str | None,
    generator: GeneratorSettings,
    judge: JudgeSettings,
    prompt: AnswerPrompt = CONTEXT,
    patience_s: float | None = None,
) -> ServiceClients:
    """The clients of the services at these addresses.

    `prompt` is how the generator is asked by default. `patience_s` bounds the retries of a search, in seconds.
    """
    return ServiceClients(
        HttpRetriever(http, retriever_url, patience_s=patience_s),
        make_generator(http, generator_url, generator, prompt=prompt),
        make_judge(http, generator_url, judge),
    )


def make_policy(
    http: httpx.AsyncClient,
    url: str,
    *,
    mode: Literal["tokens", "chat"],
    tokenizer: str,
    template: ChatTemplate,
    request: dict[str, Any],
    **options: Any,
) -> Policy:
    """A policy that is asked but not trained: a call whose answer was lost can therefore be repeated.

    `tokenizer` is the folder or hub name of the policy's tokenizer, which only `tokens` needs; `request` is merged into
    chat requests. `options` are those that both kinds of policy accept: model, seed, temperature, context_tokens,
    patience_s, …
    """
    if mode == "chat":
        return ChatPolicy(http, url, body=chat_body(template, request), **options)
    ids = policy_tokenizer(tokenizer, template)
    return CompletionsPolicy(http, url, ids, repeatable=True, asks_window=True, **options)
