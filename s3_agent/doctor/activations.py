"""Computes the bytes that one micro batch needs, from the operations of transformers' decoder layers and of verl's
loss.

Used by the memory plan (`trainer_memory`). Each term names the tensor that autograd keeps.
`tests/unit/doctor/test_doctor_memory.py` compares the sums with the peaks that torch's own memory tracker sees for the
same operations.
"""

from dataclasses import dataclass

from s3_agent.doctor.training import Training
from s3_agent.machine.model_files import ModelShape

WIDTH = {"fp32": 4, "float32": 4, "bf16": 2, "bfloat16": 2, "fp16": 2, "float16": 2}
FUSED_CHUNK = 512  # tokens: verl/utils/experimental/torch_functional.py


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes on one GPU: what the forward pass keeps, and what one layer or the output layer needs while it computes."""

    kept: int
    layer: int
    logits: int

    @property
    def peak(self) -> int:
        """All that is kept, plus the larger of two: the logits at the loss, or one layer in the backward pass."""
        return self.kept + max(self.layer, self.logits)


def layer_bytes(shape: ModelShape, tokens: int, *, width: int) -> int:
    """What autograd keeps of one decoder layer without checkpointing."""
    hidden, query, kv = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    norms = 2 * (4 * hidden + 2 * width * hidden)  # the input in fp32, then the normalized and the scaled one
    attention = width * (2 * query + 2 * kv) + 4 * shape.heads  # query, output, key, value; log-sum-exp
    mlp = width * 4 * shape.intermediate  # gate, its activation, up, their product
    return tokens * (norms + attention + mlp)


def layer_adapters(shape: ModelShape, rank: int) -> int:
    """The parameters of LoRA's adapters at every matrix of one decoder layer."""
    query, kv, hidden = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.hidden
    return rank * (2 * (hidden + query) + 2 * (hidden + kv) + 3 * (hidden + shape.intermediate))


def backward_bytes(shape: ModelShape, tokens: int, *, width: int) -> int:
    """The gradients that exist at the same time in the backward pass of one layer; those of the MLP are the largest."""
    return tokens * width * (3 * shape.intermediate + 2 * shape.hidden)


def logits_bytes(shape: ModelShape, tokens: int, training: Training, *, width: int, backward: bool) -> int:
    """The output layer: logits, their gradients, and what the entropy of the distribution adds.

    Agent Lightning computes the entropy by default, and verl subtracts it from the loss even with coefficient 0, so its
    gradient is computed as well.
    """
    vocab = shape.vocab
    if training.fused:
        # In fp32. Forward: logits, probabilities, and their product or logarithm. Backward: also the one-hot targets,
        # the gradient and its factors.
        copies = 3 if not backward else 7 if training.entropy else 5
        chunk = FUSED_CHUNK * vocab * 4 * copies
        # The sum of the output layer's gradients, and that of one chunk; LoRA has no sum, but verl computes the other.
        return chunk + ((1 if training.lora_rank else 2) * shape.embedding * width if backward else 0)
    one = tokens * vocab
    if not backward:
        return one * width + (_entropy(one, training, backward=False) if training.entropy else 0)
    if not training.remove_padding:  # padded logits, a copy without the padding, and the gradients of both
        return one * width * (7 if training.entropy else 5)
    # Flash-attention's loss writes the gradient over the logits, unless the entropy still needs them.
    loss = one * width * (2 if training.entropy else 1)
    return loss + (_entropy(one, training, backward=True) if training.entropy else 0)


def _entropy(one: int, training: Training, *, backward: bool) -> int:
    """Extra bytes for the entropy of `one` logits, in fp32, because autocast computes it in fp32."""
    if training.compiled:  # one kernel writes only the gradient
        return one * WIDTH[training.compute_dtype] if backward else 0
    if training.entropy_in_chunks and not backward:
        return 2048 * 3 * 4
    return one * 4 * (3 if backward else 2)


def activations(shape: ModelShape, training: Training) -> Activations:
    """The bytes that the largest training micro batch needs."""
    tokens, width = training.micro_batch_tokens(), WIDTH[training.compute_dtype]
    one_layer = layer_bytes(shape, tokens, width=width)
    backward = backward_bytes(shape, tokens, width=width)
    if training.checkpointing:
        inputs = 0 if training.activation_offload else shape.layers * tokens * shape.hidden * width
        kept, layer = inputs, one_layer + backward
    else:
        kept, layer = shape.layers * one_layer, backward
    last = tokens * shape.hidden * (4 + 2 * width)  # the last norm
    # With tied weights the output layer's gradient is kept until the embedding's, which comes last, is added to it.
    waiting = width * shape.embedding if shape.tied and not training.lora_rank else 0
    return Activations(
        kept=kept + last + waiting,
        layer=layer,
        logits=logits_bytes(shape, tokens, training, width=width, backward=True),
    )
