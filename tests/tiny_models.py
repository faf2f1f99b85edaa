"""Small models with seeded random weights: real architectures and tokenizers, whose scores mean nothing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

WORDS = ["river", "bank", "city", "norway", "krone", "castle", "bridge", "music", "water", "stone", "old", "new"]
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
END = "<end>"


def _bert_tokenizer(folder: Path, words: Sequence[str]) -> int:
    """Save a tokenizer of whole words; the size of its vocabulary."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import PreTrainedTokenizerFast

    vocabulary = [*_SPECIAL, *words]
    pieces = BertWordPieceTokenizer({word: number for number, word in enumerate(vocabulary)})
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    PreTrainedTokenizerFast(
        tokenizer_object=pieces._tokenizer, **dict(zip(names, _SPECIAL, strict=True))
    ).save_pretrained(folder)
    return len(vocabulary)


def _bert(folder: Path, words: Sequence[str]) -> Any:
    """The configuration of a BERT of 2 layers and 32 dimensions for the tokenizer of these words, saved in `folder`."""
    from transformers import BertConfig

    return BertConfig(
        vocab_size=_bert_tokenizer(folder, words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        initializer_range=0.5,
    )


def save_cross_encoder(folder: Path, *, words: Sequence[str] = WORDS, labels: int = 1) -> None:
    """A BERT classifier of 2 layers and 32 dimensions. It reads `[CLS] query [SEP] passage [SEP]`."""
    from transformers import BertForSequenceClassification

    torch.manual_seed(0)
    config = _bert(folder, words)
    config.num_labels = labels
    BertForSequenceClassification(config).save_pretrained(folder)


def save_colbert(folder: Path, *, words: Sequence[str] = WORDS) -> None:
    """A BERT of 2 layers and 32 dimensions with a projection to 16, saved by sentence-transformers."""
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules.dense import Dense
    from sentence_transformers.base.modules.transformer import Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
    from sentence_transformers.sentence_transformer.modules import Normalize
    from transformers import BertModel

    torch.manual_seed(0)
    base = folder / "base"
    base.mkdir(parents=True)
    config = _bert(base, words)
    BertModel(config).save_pretrained(base)
    projection = Dense(
        in_features=32,
        out_features=16,
        bias=False,
        activation_function=torch.nn.Identity(),
        module_input_name="token_embeddings",
    )
    modules = [Transformer(str(base)), projection, MultiVectorMask(), Normalize(module_input_name="token_embeddings")]
    MultiVectorEncoder(modules=modules, device="cpu").save_pretrained(str(folder))


def save_last_token(folder: Path, *, words: Sequence[str] = WORDS, ends: bool) -> None:
    """A Qwen3 of 2 layers and 32 dimensions, padded on the left. `ends`: whether its tokenizer appends `<end>`."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

    torch.manual_seed(0)
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<unk>", END, *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    if ends:
        tokenizer.post_processor = TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
            single=f"$A {END}", special_tokens=[(END, vocabulary[END])]
        )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token=END, padding_side="left"
    ).save_pretrained(folder)
    config = Qwen3Config(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=64,
        initializer_range=0.5,
        max_position_embeddings=512,
    )
    Qwen3Model(config).save_pretrained(folder)
