"""Makes the nano policy: a 1M-parameter Llama, cloned from a noisy scripted searcher so that GRPO has something to do.

It speaks s3's protocol with tags as single tokens. The script stops early, asks the wrong thing and marks carelessly,
by known shares, so the clone knows the moves and not when to make them. It sees training entities alone. Run as
`python -m s3_agent.embedded.nano_policy` (ten minutes on two cores); needs the extras `cpu` and `embedded-build`.
"""

import json
import math
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from retrieval_server.backends.bm25 import Bm25
from retrieval_server.config import Bm25Settings
from retrieval_server.corpus import Corpus
from s3_agent.agents.s3 import compact_prompt
from s3_agent.embedded import CORPUS, NANO_POLICY
from s3_agent.embedded.world_facts import ATTRIBUTES, Row, held_out, world
from s3_agent.tags import observation
from s3_agent.types import Passage

TAGS = [
    f"<{slash}{tag}>"
    for tag in ("query", "information", "important_info", "search_complete", "question")
    for slash in ("", "/")
]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCABULARY = 3072
STEPS = 2600
BATCH = 8
EASY_SHARE = 0.45  # the curriculum's first part shows one document, so that copying is found early
LEARNING_RATE = 3e-3
PROMPT_WEIGHT = 0.2
TOPK = 3

STOPS_EARLY, STOPS_ON_ONE_HOP = 0.40, 0.75
WRONG_NAME, WRONG_ATTRIBUTE = 0.25, 0.10
MARKS_ALL, MARKS_AT_RANDOM = 0.25, 0.15

Segment = tuple[str, bool]


class Expert:
    """Plays the protocol by script. A segment is (text, whether the policy writes it)."""

    def __init__(self, rng: random.Random) -> None:
        corpus = Corpus(CORPUS)
        self._engine = Bm25.build(corpus, Bm25Settings())
        self._passages = [Passage(id=doc.id, title=doc.title, text=doc.text) for doc in corpus]
        self._rng = rng
        self._found: dict[str, list[Passage]] = {}

    def retrieve(self, query: str) -> list[Passage]:
        """The top passages of a query, remembered."""
        if query not in self._found:
            [hits] = self._engine.search([query], topk=TOPK)
            self._found[query] = [self._passages[row] for row, _ in hits]
        return self._found[query]

    def _mark(self, passages: Sequence[Passage], titles: set[str], *, noise: bool) -> str:
        ids = [number for number, passage in enumerate(passages, 1) if passage.title in titles]
        chance = self._rng.random()
        everything = range(1, len(passages) + 1)
        if noise and chance < MARKS_ALL:
            ids = list(everything)
        elif noise and chance < MARKS_ALL + MARKS_AT_RANDOM:
            ids = sorted(self._rng.sample(everything, self._rng.choice([1, min(2, len(passages))])))
        return f"<important_info>{ids or [1]}</important_info>\n"

    def play(self, question: Row, *, easy: bool = False) -> tuple[str, list[Segment]]:
        """One episode: the user message and what follows it. `easy` shows one document and makes no mistakes."""
        shown = 1 if easy else TOPK
        rng, bridge, label = self._rng, question["bridge"], ATTRIBUTES.get(question["attribute"], "country")
        first = self.retrieve(question["question"])[:shown]
        finish = "<search_complete>True</search_complete><|im_end|>"
        gold = {question["entity"], bridge} - {None}
        head = self._mark(first, gold, noise=not easy)
        prompt = compact_prompt(question["question"], first)
        stops = not bridge if easy else rng.random() < (STOPS_EARLY if bridge else STOPS_ON_ONE_HOP)
        if stops:
            return prompt, [(head + finish, True)]
        name, chance = bridge or question["entity"], rng.random()
        if not easy and chance < WRONG_NAME:
            name = rng.choice(first).title
        elif not easy and chance < WRONG_NAME + WRONG_ATTRIBUTE:
            label = rng.choice(list(ATTRIBUTES.values()))
        query = f"{label} of {name}"
        search = f"<search_complete>False</search_complete>\n<query>{json.dumps({'query': query})}</query>"
        second = self.retrieve(query)[:shown]
        return prompt, [
            (head + search, True),
            (observation(second), False),
            (self._mark(second, gold, noise=not easy) + finish, True),
        ]


def make_tokenizer(texts: Iterator[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE with single digits; protocol tags and chat markers are tokens of their own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    markers = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(TAGS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=markers,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    fast.chat_template = TEMPLATE
    return fast


def _plain(text: str) -> str:
    for tag in TAGS:
        text = text.replace(tag, " ")
    return text.replace("<|im_end|>", " ")


def clone(out: Path, *, steps: int = STEPS) -> None:
    """Make tokenizer and policy in `out`. Same seed, same threads: same policy."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
    rng = random.Random(0)
    expert = Expert(rng)
    questions = [row for row in world()[1] if not held_out(row["entity"])]
    two_hops = [row for row in questions if row["hops"] == 2]

    def texts() -> Iterator[str]:
        for row in rng.sample(questions, 1500):
            prompt, segments = expert.play(row)
            yield _plain(prompt + "".join(text for text, _ in segments))
        yield from (f"{document.title} {document.text}" for document in Corpus(CORPUS))

    tokenizer = make_tokenizer(texts())

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]  # pyright: ignore[reportReturnType]

    def marker(text: str) -> int:
        [token] = encode(text)
        return token

    def example(easy: bool) -> tuple[list[int], list[float]]:
        row = rng.choice(two_hops if easy or rng.random() < 0.6 else questions)
        prompt, segments = expert.play(row, easy=easy)
        chat: Any = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        ids = encode(chat)
        weights = [PROMPT_WEIGHT] * len(ids)
        for text, written in segments:
            part = encode(text)
            ids += part
            weights += [1.0 if written else PROMPT_WEIGHT] * len(part)
        return ids, weights

    config = LlamaConfig(
        vocab_size=(len(tokenizer) + 63) // 64 * 64,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,  # vLLM's CPU attention takes no smaller heads
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=marker("<|im_start|>"),
        eos_token_id=marker("<|im_end|>"),
        pad_token_id=marker("<|pad|>"),
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    batches: list[list[tuple[list[int], list[float]]]] = []
    for step in range(steps):
        share = step / steps
        rate = LEARNING_RATE * min(1.0, (step + 1) / 30) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        if not batches:
            pool = sorted((example(share < EASY_SHARE) for _ in range(BATCH * 4)), key=lambda item: len(item[0]))
            batches = [pool[at : at + BATCH] for at in range(0, len(pool), BATCH)]
            rng.shuffle(batches)
        batch = batches.pop()
        longest = max(len(ids) for ids, _ in batch)
        tokens = torch.zeros(len(batch), longest, dtype=torch.long)
        weights = torch.zeros(len(batch), longest)
        for index, (ids, row) in enumerate(batch):
            tokens[index, : len(ids)] = torch.tensor(ids)
            weights[index, : len(row)] = torch.tensor(row)
        logits = model(tokens).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
        weights = weights[:, 1:]
        loss = (losses * weights).sum() / weights.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0:
            written = losses[weights == 1.0].mean().item()
            sys.stderr.write(f"step {step}/{steps} loss {loss.item():.3f} on its own words {written:.3f}\n")
    model.bfloat16().save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    clone(NANO_POLICY)
