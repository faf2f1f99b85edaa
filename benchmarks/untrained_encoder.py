"""A BERT with random weights and a given vocabulary: an encoder for tests and benchmarks without a download."""

from collections.abc import Sequence
from pathlib import Path

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def save_untrained_bert(
    folder: Path,
    words: Sequence[str],
    *,
    dimension: int,
    layers: int,
    heads: int,
    intermediate: int = 64,
    spread: float = 0.02,
) -> None:
    """Write model and tokenizer to `folder`. `spread`: the weights' standard deviation. They follow torch's seed."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocabulary = [*SPECIAL, *words]
    pieces = BertWordPieceTokenizer({word: number for number, word in enumerate(vocabulary)})
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    # BertTokenizer takes a given vocabulary from transformers 5 on, and a file before.
    PreTrainedTokenizerFast(
        tokenizer_object=pieces._tokenizer, **dict(zip(names, SPECIAL, strict=True))
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=dimension,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        initializer_range=spread,
    )
    BertModel(config).save_pretrained(folder)
