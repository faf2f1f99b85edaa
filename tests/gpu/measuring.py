"""What the parts share: the device, the clock, the time that a part has left, and a JSON line for each finding.

A line is printed as soon as it is known, so that a part that is stopped in the middle has said what it had found.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog
import torch


@dataclass(frozen=True)
class Measuring:
    """One part's run. `small`: the rehearsal on a CPU, which shows that the part works and measures nothing."""

    part: str
    small: bool
    end: float

    @property
    def device(self) -> str:
        """Where it is measured."""
        return "cpu" if self.small else "cuda"

    def say(self, name: str, **figures: Any) -> None:
        """Print one finding."""
        line = {"part": self.part, "name": name, "device": self.device, **figures}
        print(json.dumps(line, default=float), flush=True)

    def left(self) -> float:
        """Seconds until the part must have ended."""
        return self.end - time.monotonic()

    def enough(self, seconds: float, what: str) -> bool:
        """Whether `what` may be begun; where it may not, that is said."""
        if self.left() >= seconds or self.small:
            return True
        self.say(what, skipped=f"{self.left():.0f} s left, {seconds:.0f} needed")
        return False

    def seconds(self, work: Callable[[], Any], *, repeats: int = 7) -> float:
        """The median time of `work`, after one turn that warms up; what it starts on the device is waited for."""
        spans: list[float] = []
        for turn in range(1 + (1 if self.small else repeats)):
            self.wait()
            begin = time.perf_counter()
            work()
            self.wait()
            spans += [time.perf_counter() - begin] if turn else []
        return statistics.median(spans)

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def begin(part: str, *more: str) -> tuple[Measuring, argparse.Namespace]:
    """The part's run by the command line, and `more` string options."""
    parser = argparse.ArgumentParser(prog=f"python -m tests.gpu.{part}")
    parser.add_argument("--small", action="store_true", help="the rehearsal on a CPU")
    parser.add_argument("--seconds", type=float, default=120.0, help="the part's time")
    for option in more:
        parser.add_argument(option)
    options = parser.parse_args()
    measuring = Measuring(part, options.small, time.monotonic() + options.seconds)
    if not options.small and not torch.cuda.is_available():
        sys.exit(f"tests.gpu.{part}: torch finds no CUDA device; --small rehearses on a CPU")
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # stdout is for the findings
    torch.manual_seed(0)
    return measuring, options
