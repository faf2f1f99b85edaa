"""The live terminal view of a pool, and the log lines that replace it elsewhere."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from rich.console import Console
from rich.live import Live
from rich.table import Table

from s3_agent.rollout.pool.monitor import Monitor

log = structlog.get_logger()

PLAIN_EVERY_S = 15.0


def table(monitor: Monitor, *, title: str) -> Table:
    """What the pool does now."""
    shown = Table(title=title, show_header=False, title_justify="left", min_width=60)
    shown.add_column(style="bold")
    shown.add_column()
    mean = monitor.reward_mean
    failed = ", ".join(f"{boundary} {count}" for boundary, count in monitor.failed.most_common()) or "none"
    again = ", ".join(f"{boundary} {count}" for boundary, count in monitor.failed_attempts.most_common()) or "none"
    shown.add_row("queued", monitor.queued_text)
    shown.add_row("running", str(monitor.running))
    shown.add_row("succeeded", str(monitor.succeeded))
    shown.add_row("failed, by boundary", failed)
    shown.add_row("failed attempts", again)
    shown.add_row("workers", f"{monitor.workers} ({monitor.workers_lost} lost so far)")
    shown.add_row("rollouts/s", f"{monitor.rate:.1f}")
    shown.add_row("reward mean", "-" if mean is None else f"{mean:.3f}")
    for phase, (middle, late) in sorted(monitor.quantiles().items()):
        shown.add_row(f"{phase}  p50 / p95", f"{middle:.2f} s / {late:.2f} s")
    return shown


def line(monitor: Monitor) -> dict[str, object]:
    """The same as the fields of one log line."""
    fields: dict[str, object] = {
        "queued": monitor.queued_text,
        "running": monitor.running,
        "succeeded": monitor.succeeded,
        "failed": dict(monitor.failed),
        "failed_attempts": dict(monitor.failed_attempts),
        "rollouts_per_s": round(monitor.rate, 2),
    }
    if (mean := monitor.reward_mean) is not None:
        fields["reward_mean"] = round(mean, 4)
    for phase, (middle, late) in sorted(monitor.quantiles().items()):
        fields[f"{phase}_s"] = f"{middle:.2f}/{late:.2f}"
    return fields


@contextmanager
def _plain(monitor: Monitor) -> Iterator[None]:
    ended = threading.Event()

    def tell() -> None:
        last: dict[str, object] = {}
        while not ended.wait(PLAIN_EVERY_S):
            if (now := line(monitor)) != last:
                log.info("pool", **now)
                last = now

    thread = threading.Thread(target=tell, name="pool-log", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        log.info("pool ends", **line(monitor))


@contextmanager
def show(monitor: Monitor, *, title: str, plain: bool, console: Console | None = None) -> Iterator[None]:
    """Show the pool while the block runs: live on a terminal, as log lines when `plain` or elsewhere."""
    console = console or Console(stderr=True)
    if plain or not console.is_terminal:
        with _plain(monitor):
            yield
        return
    with Live(console=console, get_renderable=lambda: table(monitor, title=title), refresh_per_second=2):
        yield
