"""Makes a nano policy: a 1M-parameter Llama, cloned from an imperfect scripted searcher, so GRPO can improve it.

It follows one protocol, s3's or Search-R1's, with tags as single tokens, and sees only training entities. Run as
`python -m s3_agent.embedded.nano_policy s3|search_r1` (ten minutes on two cores); needs the extras `cpu` and
`embedded-build`.
"""

import math
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from retrieval_server.corpus import Corpus
from s3_agent.embedded import CORPUS, NANO_POLICIES
from s3_agent.embedded.scripted import S3Script, Script, SearchR1Script
from s3_agent.embedded.world_facts import held_out, world

Stage = Literal["copying", "easy", "whole"]
SCRIPTS: dict[str, type[Script]] = {"s3": S3Script, "search_r1": SearchR1Script}
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STEPS = 2600
BATCH = 8
COPYING_BATCH = 64
EASY_SHARE = 0.45  # the first stage of the curriculum shows one document, so that copying is learned early
LEARNING_RATE = 3e-3
PROMPT_WEIGHT = 0.2


def make_tokenizer(texts: Iterator[str], tags: Sequence[str], *, vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with single digits; each protocol tag and chat marker is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    markers = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(tags),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=markers,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in tags])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    fast.chat_template = TEMPLATE
    return fast


def _plain(text: str, tags: Sequence[str]) -> str:
    for tag in tags:
        text = text.replace(tag, " ")
    return text.replace("<|im_end|>", " ")


def clone(protocol: str, out: Path, *, steps: int = STEPS) -> None:
    """Make tokenizer and policy for a protocol in `out`. The same seed and threads give the same policy."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
    rng = random.Random(0)
    expert = SCRIPTS[protocol](rng)
    tags = expert.tags()
    questions = [row for row in world()[1] if not held_out(row["entity"])]
    two_hops = [row for row in questions if row["hops"] == 2]

    def texts() -> Iterator[str]:
        yield from (_plain(expert.words(row), tags) for row in rng.sample(questions, 1500))
        if not expert.copying_steps:  # without them names have to be spelled
            yield from (f"{document.title} {document.text}" for document in Corpus(CORPUS))

    tokenizer = make_tokenizer(texts(), tags, vocabulary=expert.vocabulary)

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]  # pyright: ignore[reportReturnType]

    def marker(text: str) -> int:
        [token] = encode(text)
        return token

    def example(stage: Stage) -> tuple[list[int], list[float]]:
        easy = stage != "whole"
        row = rng.choice(two_hops if easy or rng.random() < 0.6 else questions)
        prompt, segments = expert.copying(row) if stage == "copying" else expert.play(row, easy=easy)
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
        num_hidden_layers=expert.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,  # vLLM's CPU attention supports no smaller heads
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=marker("<|im_start|>"),
        eos_token_id=marker("<|im_end|>"),
        pad_token_id=marker("<|pad|>"),
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    batches: list[list[tuple[list[int], list[float]]]] = []
    for step in range(-expert.copying_steps, steps):
        share = max(step, 0) / steps
        stage: Stage = "copying" if step < 0 else "easy" if share < EASY_SHARE else "whole"
        warmed = min(1.0, (step + expert.copying_steps + 1) / 30)
        rate = LEARNING_RATE * warmed * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        if not batches:
            size = COPYING_BATCH if stage == "copying" else BATCH
            pool = sorted((example(stage) for _ in range(size * 4)), key=lambda item: len(item[0]))
            batches = [pool[at : at + size] for at in range(0, len(pool), size)]
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
    clone(sys.argv[1], NANO_POLICIES[sys.argv[1]])
