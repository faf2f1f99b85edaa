"""A tiny policy whose vocabulary splits every tag and whose last token of a tag may hold the newline after it.

Real vocabularies do both (`</`, `query`, `>\\n`), the nano policy's does neither. It knows one script of each protocol,
learned in half a minute, and keeps to it whatever the passages are.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from s3_agent.agents.s3 import S3Protocol
from s3_agent.agents.search_r1 import SearchR1Protocol
from s3_agent.data.tasks import load_tasks, read_jsonl
from s3_agent.embedded import CORPUS, TRAIN
from s3_agent.embedded.nano_policy import TEMPLATE
from s3_agent.tags import observation
from s3_agent.types import Passage, Task

# As Qwen's and Llama 3's: line ends stay with the punctuation before them.
WORDS = r"""[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
QUERIES = ("capital", "currency", "language")
STEPS, BATCH, LONGEST = 240, 8, 512


def s3_script(rng: random.Random) -> tuple[str, str]:
    """What it writes before and after an observation."""
    query = f'<query>{{"query": "{rng.choice(QUERIES)}"}}</query>\n'
    return query, "<important_info>[1]</important_info>\n<search_complete>True</search_complete>\n<|im_end|>"


def search_r1_script(rng: random.Random) -> tuple[str, str]:
    """What it writes before and after an observation."""
    return f"<think>hm</think>\n<search> {rng.choice(QUERIES)} </search>\n", "<answer> Oslo </answer>\n<|im_end|>"


def _episode(rng: random.Random, tasks: list[Task], passages: list[Passage]) -> list[tuple[str, bool]]:
    """Segments (text, written by the policy) of one episode of either protocol."""
    task, shown, found = rng.choice(tasks), [rng.choice(passages)], [rng.choice(passages)][: rng.randint(0, 1)]
    if rng.random() < 0.5:
        message, (first, then) = S3Protocol("compact").message(task, shown), s3_script(rng)
    else:
        message, (first, then) = SearchR1Protocol("compact").message(task, ()), search_r1_script(rng)
    opening = f"<|im_start|>user\n{message}<|im_end|>\n<|im_start|>assistant\n"
    return [(opening, False), (first, True), (observation(found), False), (then, True)]


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which no tag is a token and `>` and a line end may be one."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(WORDS), "isolated")
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytewise])  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    fast.chat_template = TEMPLATE
    return fast


@contextmanager
def one_thread() -> Iterator[None]:
    """A model this small gains nothing by a second thread, and loses much when another program has the other core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def make(out: Path) -> None:
    """Write tokenizer and policy to `out`. Same seed, same policy."""
    torch.manual_seed(0)
    rng = random.Random(0)
    tasks = load_tasks(TRAIN)
    passages = [Passage(id=str(row["id"]), title=row["title"], text=row["text"]) for row in read_jsonl(CORPUS)]
    tokenizer = make_tokenizer(["".join(text for text, _ in _episode(rng, tasks, passages)) for _ in range(400)])

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]  # pyright: ignore[reportReturnType]

    [pad], [start], [end] = map(encode, ("<|pad|>", "<|im_start|>", "<|im_end|>"))
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=1024,
            hidden_size=64,
            intermediate_size=160,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=start,
            eos_token_id=end,
            pad_token_id=pad,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(STEPS):
        rows: list[tuple[list[int], list[int]]] = []
        for _ in range(BATCH):
            parts = [(encode(text), written) for text, written in _episode(rng, tasks, passages)]
            ids = [token for part, _ in parts for token in part][:LONGEST]
            labels = [token if written else -100 for part, written in parts for token in part][:LONGEST]
            rows.append((ids, labels))
        longest = max(len(ids) for ids, _ in rows)
        tokens = torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in rows])
        labels = torch.tensor([row + [-100] * (longest - len(row)) for _, row in rows])
        result: Any = model(tokens, labels=labels)
        optimizer.zero_grad()
        result.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
