"""Prints lines that may be longer than a terminal is wide, such as a memory plan or a finding."""

import textwrap
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

_HANGING = 4


def print_lines(console: Console, lines: Iterable[str | Table]) -> None:
    """Print lines, and tables between them.

    On a terminal, lines are wrapped between words and indented. Elsewhere they stay whole, so that they can be
    searched.
    """
    for line in lines:
        if isinstance(line, Table):
            console.print(line)
            continue
        indent = " " * (len(line) - len(line.lstrip()) + _HANGING)
        wrapped = textwrap.fill(
            line, console.width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )
        shown = wrapped if console.is_terminal else line
        console.print(shown, highlight=False, markup=False, soft_wrap=True)
