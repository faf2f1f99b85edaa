"""How much of a LoRA update reaches the policy server, whose weights are the rounded sum of weight and adapter.

    python benchmarks/lora_rounding.py

Prints JSON. The weight is 2,048 x 2,048 normal numbers with deviation 0.03 in bfloat16; A is as PEFT starts it, and B
as Adam makes it if gradients keep their sign for a random share of the updates. `kept`: the share of the output's
change that is left after rounding, by number of updates, for inputs that the adapter reads well. 1 is all of it.
"""

import json
import math

import typer

SIZE, RANK, DEVIATION, INPUTS = 2048, 32, 0.03, 64
UPDATES = (1, 8, 40)


def kept(*, rate: float, scale: float, updates: int) -> float:
    """The share for one learning rate, alpha / rank, and number of updates."""
    import torch

    from s3_agent.agl.lora_weights import with_adapter

    drawn = torch.Generator().manual_seed(0)
    weight = (torch.randn(SIZE, SIZE, generator=drawn) * DEVIATION).bfloat16()
    a = (torch.rand(RANK, SIZE, generator=drawn) * 2 - 1) / math.sqrt(SIZE)
    b = torch.randn(SIZE, RANK, generator=drawn).sign() * torch.rand(SIZE, RANK, generator=drawn) * rate * updates
    rows = torch.randn(INPUTS, SIZE, generator=drawn) + 1.5 * torch.randn(INPUTS, RANK, generator=drawn) @ a
    wanted = rows @ (scale * (b @ a)).T
    found = rows @ (with_adapter(weight, a, b, scale).float() - weight.float()).T
    return round(float((found * wanted).sum() / (wanted * wanted).sum()), 3)


def main() -> None:
    """Compute and print."""
    settings = [{"rate": rate, "scale": scale} for rate, scale in ((1e-5, 1.0), (3e-5, 2.0), (1e-4, 2.0))]
    found = [{**each, "kept": {updates: kept(**each, updates=updates) for updates in UPDATES}} for each in settings]
    typer.echo(json.dumps({"variants": found}, indent=1))


if __name__ == "__main__":
    typer.run(main)
