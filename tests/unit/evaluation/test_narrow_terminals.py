"""What the commands print reads well in 80 columns: no line is wider, no cell is cut, no number is broken."""

import io
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console, RenderableType
from typer.testing import CliRunner

from s3_agent.agents.methods import METHODS
from s3_agent.cli.main import app
from s3_agent.evaluation.table import numbers_of, table_of
from s3_agent.evaluation.views.comparison import terminal_comparison
from s3_agent.evaluation.views.grids import Grid, terminal_grids
from s3_agent.evaluation.views.table import terminal_tables
from s3_agent.printing import print_lines
from s3_agent.rollout.pool.monitor import Monitor
from s3_agent.rollout.pool.view import table as pool_table
from s3_agent.shipped import shipped_recipes
from tests.evaluated import results
from tests.unit.evaluation.test_comparison import compared, validation

__all__ = ["validation"]  # a fixture
AGENTS = ["s3", "search_r1", "search_r1:ret", "deep_retrieval", "ircot", "search_o1", "rag"]


def drawn(view: RenderableType, *, width: int = 80) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(view)
    return file.getvalue()


def widest(text: str) -> int:
    return max(map(len, text.splitlines()))


@pytest.mark.parametrize(
    "command", [["agents"], ["recipes"], ["index", "plan", "--passages", "21015324"], ["rollout", "--help"]]
)
def test_lists_and_plans(command: list[str]) -> None:
    done = CliRunner().invoke(app, command, env={"COLUMNS": "80"})
    assert done.exit_code == 0 and widest(done.stdout) <= 80 and "…" not in done.stdout
    names = {"agents": [*METHODS], "recipes": [*shipped_recipes()]}.get(command[0], [])
    assert all(re.search(rf"^{name} ", done.stdout, re.MULTILINE) for name in names)


def test_the_tables_of_an_evaluation() -> None:
    table = table_of([numbers_of(result) for result in results(AGENTS, 30)], AGENTS)
    text = drawn(terminal_tables(table))
    assert widest(text) <= 80
    for agent in table.agents:
        estimate = agent.overall["gen_acc"]
        assert f"{estimate.mean:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]" in text
    for whole in ("search_r1:ret - s3", "macro average", "p (Holm)", "searches", "seconds"):
        assert whole in text


def test_the_tables_of_a_comparison(validation: object) -> None:
    found = compared(validation)  # pyright: ignore[reportArgumentType]
    text = drawn(terminal_comparison(found))
    assert widest(text) <= 80
    for row in found.agents:
        assert f"{row.after.mean:.3f} [{row.after.low:.3f}, {row.after.high:.3f}]" in text
        assert f"{row.gain.gain:+.3f} [{row.gain.low:+.3f}, {row.gain.high:+.3f}]" in text
    assert "0.00 to 1.50" in text


def test_the_view_of_a_pool() -> None:
    monitor = Monitor(queued=7, running=3)
    for boundary in ("policy", "retriever", "generator", "judge", "worker", "timeout", "cancelled"):
        monitor.failed[boundary] = monitor.failed_attempts[boundary] = 123_456
    text = drawn(pool_table(monitor, title="pool p"))
    assert widest(text) <= 80 and "cancelled" in text and "…" not in text


# Longer cells may be folded; a character of some scripts is two columns wide.
CELLS = st.text(st.characters(categories=("L", "N")), min_size=1, max_size=24).filter(lambda cell: cell_len(cell) <= 30)


@given(data=st.data(), width=st.integers(min_value=64, max_value=160))
def test_any_grid_has_every_cell_whole_and_fits(data: st.DataObject, width: int) -> None:
    columns = data.draw(st.integers(min_value=1, max_value=9))
    row = st.lists(CELLS, min_size=columns, max_size=columns)
    header, rows = data.draw(row), data.draw(st.lists(row, max_size=3))
    text = drawn(terminal_grids([Grid("title", header, rows)], note=""), width=width)
    for cell in (*header, *(cell for cells in rows for cell in cells)):
        assert cell in text
    assert text.startswith("title")


def test_a_wide_terminal_has_one_table() -> None:
    grid = Grid("title", ["agent", *"abcdefgh"], [["s3", *("0.123 [0.100, 0.200]",) * 8]])
    assert drawn(terminal_grids([grid], note=""), width=250).count("s3") == 1
    assert drawn(terminal_grids([grid], note=""), width=80).count("s3") == 3


LONG = "  why:  " + "a word and another " * 20


@pytest.mark.parametrize(("terminal", "check"), [(True, lambda n: n > 4), (False, lambda n: n == 1)])
def test_long_lines_hang_on_a_terminal_and_stay_whole_in_a_file(terminal: bool, check: Callable[[int], bool]) -> None:
    file = io.StringIO()
    print_lines(Console(file=file, width=80, force_terminal=terminal, color_system=None), [LONG])
    lines = file.getvalue().splitlines()
    assert check(len(lines)) and all(line.startswith("      ") for line in lines[1:])
    assert " ".join(file.getvalue().split()) == " ".join(LONG.split())
