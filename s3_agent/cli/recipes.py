"""The output of `s3-agent recipes`: the shipped recipes, each with its purpose, machine, agent and size."""

from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from s3_agent.recipe import Recipe, load_recipe
from s3_agent.shipped import EXAMPLES, shipped_recipes


@dataclass(frozen=True, slots=True)
class ShippedRecipe:
    """A recipe in one line. `machine` counts the GPUs that its processes use."""

    name: str
    what: str
    machine: str
    agent: str
    policy: str
    steps: int
    path: str


def summary_line(path: Path) -> str:
    """The first sentence of the comment at the start of a recipe."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").strip())
    return " ".join(lines).partition(". ")[0].rstrip(".")


def _machine(recipe: Recipe) -> str:
    if recipe.trainer.device == "cpu":
        return "CPU"
    gpus = recipe.gpus
    used = len({*gpus.trainer, *gpus.retriever, *gpus.generator}) or recipe.trainer.gpus
    each = f"{used} GPU{'s' * (used > 1)}"
    return each if recipe.trainer.nodes == 1 else f"{recipe.trainer.nodes} x {each}"


def described() -> list[ShippedRecipe]:
    """Every shipped recipe."""
    found = []
    for name, path in shipped_recipes().items():
        recipe = load_recipe(name)
        found.append(
            ShippedRecipe(
                name=name,
                what=summary_line(path),
                machine=_machine(recipe),
                agent=recipe.agent.name,
                policy=Path(recipe.policy.model).name,
                steps=recipe.trainer.steps,
                path=str(path),
            )
        )
    return found


def list_recipes(*, as_json: bool = False) -> None:
    """Print the shipped recipes: a table, or a JSON list."""
    recipes, console = described(), Console()
    if as_json:
        console.print_json(data=[asdict(recipe) for recipe in recipes])
        return
    table = Table(box=None, pad_edge=False)
    for name in ("recipe", "machine", "agent", "steps"):
        table.add_column(name, no_wrap=True, justify="right" if name == "steps" else "left")
    table.add_column("what it is")
    for recipe in recipes:
        table.add_row(recipe.name, recipe.machine, recipe.agent, str(recipe.steps), recipe.what)
    console.print(table)
    console.print(f"\nThe files, and the other examples: {EXAMPLES}", highlight=False, soft_wrap=True)
    console.print("To see what a recipe would start: s3-agent train --recipe NAME --dry-run", highlight=False)
