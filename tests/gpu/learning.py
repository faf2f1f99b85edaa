"""The trainer's step on a card beside the same step on a CPU: the same loss, gradients and weights after it.

    python -m tests.gpu.learning [--small] [--seconds 70]

In plain torch: GRPO's clipped loss with the clips and the learning rate of the recipe `cpu`, AdamW, rows of unlike
lengths; the embedded nano policy, and one of 135M parameters with random weights. The reference is the CPU in float32.
`error` is |found - reference| / |reference| over all gradients. bfloat16's own error is that of the CPU in bfloat16: a
card may have twice that in bfloat16, and a thousandth in float32.
"""

import copy
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from s3_agent.embedded import NANO_POLICY
from s3_agent.recipe import load_recipe
from tests.gpu.measuring import Measuring, begin

TRAINER = load_recipe("cpu").trainer
CHANGED = 0.01  # how far the policy has come from the one that wrote the rows: the deviation of old log-probs
F32_LIMIT, BF16_FACTOR = 1e-3, 2.0


def nano() -> Any:
    """The embedded policy, float32."""
    return AutoModelForCausalLM.from_pretrained(NANO_POLICY, dtype=torch.float32, attn_implementation="sdpa")


def middle(*, small: bool) -> Any:
    """The shape of SmolLM2-135M, with random weights; in the rehearsal with two of its layers, narrowed."""
    shape: dict[str, Any] = {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "vocab_size": 49152,
    }
    heads: dict[str, Any] = {"num_attention_heads": 9, "num_key_value_heads": 3}
    if small:
        shape = {"hidden_size": 72, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 512}
    config = LlamaConfig(**shape, **heads, tie_word_embeddings=True, max_position_embeddings=2048)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


class Rows:
    """Padded rows of one group: ids, where the policy wrote, the log-probs it had and the advantages."""

    def __init__(self, model: Any, *, rows: int, longest: int) -> None:
        lengths = torch.linspace(longest // 2, longest, rows).long()
        self.ids = torch.randint(3, model.config.vocab_size, (rows, longest))
        places = torch.arange(longest).expand(rows, longest)
        self.there = places < lengths[:, None]
        self.written = self.there & (places % 64 >= 40)  # observations are between what is written
        rewards = torch.linspace(0, 1, rows)
        self.advantages = (rewards - rewards.mean()) / rewards.std()
        with torch.no_grad():
            self.old = self.log_probs(model) + CHANGED * torch.randn(rows, longest - 1)

    def to(self, device: str) -> "Rows":
        """The same rows on a device."""
        moved = copy.copy(self)
        for name, value in vars(self).items():
            setattr(moved, name, value.to(device))
        return moved

    def log_probs(self, model: Any) -> torch.Tensor:
        """float32 (rows, longest - 1)."""
        logits = model(input_ids=self.ids, attention_mask=self.there.long(), use_cache=False).logits[:, :-1]
        return logits.float().log_softmax(dim=-1).gather(-1, self.ids[:, 1:, None]).squeeze(-1)

    def loss(self, model: Any) -> torch.Tensor:
        """The clipped loss, the mean over the tokens that the policy wrote."""
        ratio = (self.log_probs(model) - self.old).exp()
        clipped = ratio.clamp(1 - TRAINER.clip_low, 1 + TRAINER.clip_high)
        advantages = self.advantages[:, None]
        written = self.written[:, 1:]
        return -(torch.minimum(ratio * advantages, clipped * advantages) * written).sum() / written.sum()


def step(measuring: Measuring, model: Any, rows: Rows, device: str, *, half: bool) -> dict[str, Any]:
    """One update of a copy of the model: its loss, gradients, weights and time."""
    twin, there = copy.deepcopy(model).to(device).train(), rows.to(device)
    optimizer = torch.optim.AdamW(twin.parameters(), lr=TRAINER.learning_rate)

    def run() -> torch.Tensor:
        optimizer.zero_grad()
        with torch.autocast(device, dtype=torch.bfloat16, enabled=half):
            loss = there.loss(twin)
        loss.backward()
        return loss

    begin = time.perf_counter()
    loss = float(run().detach())
    seconds = time.perf_counter() - begin  # a CPU needs no warming up, and has no time for it
    gradients = torch.cat([parameter.grad.flatten().cpu() for parameter in twin.parameters()])
    if device == "cuda":
        seconds = measuring.seconds(run, repeats=5)
    torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
    optimizer.step()
    weights = torch.cat([parameter.detach().flatten().cpu() for parameter in twin.parameters()])
    return {"loss": loss, "gradients": gradients, "weights": weights, "seconds": seconds}


def error(found: torch.Tensor, reference: torch.Tensor) -> float:
    """|found - reference| / |reference|."""
    return float((found - reference).norm() / reference.norm())


def compare(measuring: Measuring, name: str, model: Any, rows: Rows) -> None:
    """All ways beside the reference."""
    reference = step(measuring, model, rows, "cpu", half=False)
    own = step(measuring, model, rows, "cpu", half=True)
    limit = BF16_FACTOR * error(own["gradients"], reference["gradients"])
    for half, bound in ((False, F32_LIMIT), (True, limit)):
        found = step(measuring, model, rows, measuring.device, half=half)
        differs = error(found["gradients"], reference["gradients"])
        loss = abs(found["loss"] - reference["loss"])
        pair = found["gradients"].double(), reference["gradients"].double()
        measuring.say(
            "step",
            policy=name,
            parameters=len(reference["gradients"]),
            tokens=int(rows.there.sum()),
            dtype="bfloat16" if half else "float32",
            loss=found["loss"],
            loss_of_reference=reference["loss"],
            loss_difference=loss,
            error=differs,
            limit=bound,
            within=differs <= bound,
            cosine=float(torch.nn.functional.cosine_similarity(*pair, dim=0)),
            weights_error=error(found["weights"], reference["weights"]),
            seconds=found["seconds"],
            cpu_seconds=reference["seconds"],
        )


def main() -> None:
    """Measure and print."""
    measuring, _ = begin("learning")
    sizes = {"rows": 2, "longest": 128} if measuring.small else {"rows": 4, "longest": 512}
    model = nano()
    compare(measuring, "nano", model, Rows(model, **sizes))
    if measuring.enough(40, "135M"):
        model = middle(small=measuring.small)
        compare(measuring, "135M", model, Rows(model, **sizes))


if __name__ == "__main__":
    main()
