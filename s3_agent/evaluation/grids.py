"""A table as it is read: on the terminal and as Markdown, the same cells in both."""

from collections.abc import Sequence
from typing import NamedTuple

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from s3_agent.guard import printable


class Grid(NamedTuple):
    """A title, the columns' names, and the rows' cells. The first column is text, the others are numbers."""

    title: str
    header: list[str]
    rows: list[list[str]]


def terminal_grids(grids: Sequence[Grid], *, note: str) -> Group:
    """For the terminal."""
    shown: list[Table | Text] = []
    for grid in grids:
        drawn = Table(title=grid.title, title_justify="left", box=box.SIMPLE_HEAD)
        for number, column in enumerate(grid.header):
            drawn.add_column(Text(printable(column)), justify="right" if number else "left", overflow="fold")
        for row in grid.rows:
            drawn.add_row(*(Text(printable(cell)) for cell in row))
        shown.append(drawn)
    return Group(*shown, Text(note, style="dim"))


def markdown_grids(grids: Sequence[Grid], *, note: str) -> str:
    """As Markdown."""
    blocks = []
    for grid in grids:
        lines = [grid.header, ["---"] + ["---:"] * (len(grid.header) - 1), *grid.rows]
        drawn = (" | ".join(cell.replace("|", "\\|") for cell in line) for line in lines)
        blocks.append(f"## {grid.title}\n\n" + "\n".join(f"| {line} |" for line in drawn))
    return "\n\n".join([*blocks, note]) + "\n"
