"""Shows a table on the terminal and as Markdown, with the same cells in both."""

from collections.abc import Sequence
from typing import NamedTuple

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text

from s3_agent.guard import printable

_EDGE, _PADDING = 1, 3  # the width that rich adds: an edge, and two spaces and a line for each column
_FOLDED = 30  # a column with longer cells is wrapped if the terminal is narrow


class Grid(NamedTuple):
    """A title, the names of the columns, and the cells of the rows. The first column is text, the others numbers."""

    title: str
    header: list[str]
    rows: list[list[str]]


class _Fitting:
    """A grid for a terminal, split into as many tables as the width requires, each with the first column."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        columns = zip(grid.header, *grid.rows, strict=True)
        self._widths = [max(map(cell_len, map(printable, column))) for column in columns]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        left = [*range(1, len(self._grid.header))]
        title: str | None = self._grid.title
        while left or title is not None:
            count = max(1, self._fitting(left, options.max_width))
            yield self._table([0, *left[:count]], title=title)
            left, title = left[count:], None

    def _fitting(self, columns: Sequence[int], width: int) -> int:
        """The number of columns that fit next to the first one; a text column is wrapped and needs no more width."""
        used = _EDGE + min(self._widths[0], _FOLDED) + _PADDING
        for number, column in enumerate(columns):
            used += min(self._widths[column], _FOLDED) + _PADDING
            if used > width:
                return number
        return len(columns)

    def _table(self, columns: Sequence[int], *, title: str | None) -> Table:
        drawn = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        for column in columns:
            drawn.add_column(
                Text(printable(self._grid.header[column])),
                justify="right" if column else "left",
                overflow="fold",
                no_wrap=self._widths[column] <= _FOLDED,
            )
        for row in self._grid.rows:
            drawn.add_row(*(Text(printable(row[column])) for column in columns))
        return drawn


def terminal_grids(grids: Sequence[Grid], *, note: str) -> Group:
    """For the terminal."""
    return Group(*map(_Fitting, grids), Text(note, style="dim"))


def markdown_grids(grids: Sequence[Grid], *, note: str) -> str:
    """As Markdown."""
    blocks = []
    for grid in grids:
        lines = [grid.header, ["---"] + ["---:"] * (len(grid.header) - 1), *grid.rows]
        drawn = (" | ".join(cell.replace("|", "\\|") for cell in line) for line in lines)
        blocks.append(f"## {grid.title}\n\n" + "\n".join(f"| {line} |" for line in drawn))
    return "\n\n".join([*blocks, note]) + "\n"
