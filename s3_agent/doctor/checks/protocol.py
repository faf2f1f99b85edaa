"""Checks whether the tokenizer, its chat template and the protocol's tags fit together.

The policy gets token ids, stops at strings, and its response is read as decoded text. Every episode breaks if decoding
changes a tag, if the chat template loses the message, or if a tag is a control token.
"""

from collections.abc import Iterator

from s3_agent.clients.tokenizer import Tokenizer, lost_message
from s3_agent.doctor.case import Case
from s3_agent.doctor.findings import Finding, error
from s3_agent.types import Passage

_PROBE = "What is the capital of France?"


def check_protocol(case: Case) -> Iterator[Finding]:
    """Encodes and decodes tags, stop strings, an observation and the chat template with the policy's own tokenizer."""
    if (tokenizer := case.tokenizer) is None:
        return
    method, agent = case.recipe.agent.method, case.recipe.agent
    if method.protocol is None:
        return
    protocol = method.protocol(agent.prompt)
    written = [mark for tag in method.tags for mark in (f"<{tag}>", f"</{tag}>")]
    broken = [text for text in written if tokenizer.decode(tokenizer.encode(text)) != text]
    if broken:
        yield error(
            "protocol.tags",
            what=f"the policy's tokenizer changes {', '.join(broken)} when it encodes and decodes them",
            why="tags are read from decoded tokens: these tags are never found, and every response is invalid",
            fix="use a model whose tokenizer keeps text as it is",
        )
    if forged := [text for text in written if any(control in text for control in tokenizer.control)]:
        yield error(
            "protocol.control-tags",
            what=f"{', '.join(forged)} contain control tokens of the tokenizer",
            why="control tokens are removed from passages, and would be removed from the protocol's text as well",
            fix="use a model without these control tokens",
        )
    yield from _stops(tokenizer, protocol.stop)
    yield from _template(tokenizer)
    passage = Passage(id="1", title='"A (b)"', text="Text: 1, 2 \u00e9.")
    shown = protocol.observation([passage], frozenset()) + (protocol.invalid_hint or "")
    if not broken and tokenizer.decode(tokenizer.encode(shown)) != shown:
        yield error(
            "protocol.observation",
            what="the policy's tokenizer changes an observation when it encodes and decodes it",
            why="the policy would read other whitespace or characters than the protocol has, and training rows differ",
            fix="use a model whose tokenizer keeps text as it is",
        )
    model = case.shape("policy")
    if case.vocabulary is not None and model is not None and case.vocabulary > model.vocab:
        yield error(
            "protocol.vocabulary",
            what=f"the tokenizer has {case.vocabulary} tokens, but the model's embedding has {model.vocab}",
            why="a token beyond the embedding is an index out of range on the GPU",
            fix="put the tokenizer that belongs to the model into its folder",
        )


def _stops(tokenizer: Tokenizer, stops: tuple[str, ...]) -> Iterator[Finding]:
    lost = [stop for stop in stops if stop not in tokenizer.decode(tokenizer.encode(f'{{"query": "x"}}{stop}\n\n'))]
    if lost:
        yield error(
            "protocol.stop",
            what=f"the policy's tokenizer changes the stop strings {', '.join(lost)} when it encodes and decodes them",
            why="the policy server never stops at them: every response runs to its limit",
            fix="use a model whose tokenizer keeps text as it is",
        )


def _template(tokenizer: Tokenizer) -> Iterator[Finding]:
    if lost := lost_message(tokenizer):
        yield error(
            "protocol.template",
            what=lost,
            why="the policy must read the question exactly once",
            fix="put the model's own chat_template.jinja into its folder, or set policy.chat_template=FILE.jinja",
        )
    elif not tokenizer.decode(tokenizer.chat(_PROBE)).partition(_PROBE)[2].strip():
        yield error(
            "protocol.generation-prompt",
            what="the chat template ends with the user's message",
            why="without the assistant's header the policy continues the question instead of answering it",
            fix="use a template that supports `add_generation_prompt`",
        )
