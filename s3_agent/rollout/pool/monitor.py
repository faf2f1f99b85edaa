"""What a pool counts while it runs; the terminal view, the log lines and Prometheus all read it here."""

import time
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

WINDOW = 2000
RATE_OVER_S = 30.0


def quantile(values: Sequence[float], share: float) -> float:
    """The nearest-rank quantile of sorted values."""
    return values[min(len(values) - 1, int(share * len(values)))]


@dataclass
class Monitor:
    """Counts since the start, and the last rollouts' times by phase, in seconds."""

    queued: int = 0
    queue_is_longer: bool = False
    running: int = 0
    claimed: int = 0
    adopted: int = 0
    conflicts: int = 0
    gone: int = 0
    succeeded: int = 0
    rewards: int = 0
    reward_sum: float = 0.0
    workers: int = 0
    workers_lost: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    failed_attempts: Counter[str] = field(default_factory=Counter)
    phases: dict[str, deque[float]] = field(default_factory=lambda: defaultdict(lambda: deque(maxlen=WINDOW)))
    phase_sums: Counter[str] = field(default_factory=Counter)
    phase_counts: Counter[str] = field(default_factory=Counter)
    started: float = field(default_factory=time.monotonic)
    _ends: deque[float] = field(default_factory=lambda: deque(maxlen=20_000))

    @property
    def done(self) -> int:
        """Rollouts that ended, either way."""
        return self.succeeded + self.failed.total()

    def ended(self, timings: dict[str, float], *, reward: float | None, boundary: str | None) -> None:
        """Count a rollout that ended: succeeded, or failed at a boundary."""
        self._ends.append(time.monotonic())
        if boundary is None:
            self.succeeded += 1
        else:
            self.failed[boundary] += 1
        if reward is not None:
            self.rewards += 1
            self.reward_sum += reward
        for phase, seconds in timings.items():
            name = phase.removesuffix("_s")
            self.phases[name].append(seconds)
            self.phase_sums[name] += seconds  # pyright: ignore[reportArgumentType]
            self.phase_counts[name] += 1

    @property
    def reward_mean(self) -> float | None:
        """The mean reward of the rollouts that have one."""
        return self.reward_sum / self.rewards if self.rewards else None

    @property
    def rate(self) -> float:
        """Rollouts a second over the last half minute."""
        now = time.monotonic()
        while self._ends and now - self._ends[0] > RATE_OVER_S:
            self._ends.popleft()
        return len(self._ends) / max(1.0, min(RATE_OVER_S, now - self.started))

    def quantiles(self) -> dict[str, tuple[float, float]]:
        """p50 and p95 of each phase over the last rollouts, in seconds."""
        found = {}
        for phase, values in list(self.phases.items()):
            if ordered := sorted(values):
                found[phase] = (quantile(ordered, 0.5), quantile(ordered, 0.95))
        return found

    @property
    def queued_text(self) -> str:
        """How many rollouts wait, as far as it is known."""
        return f"{self.queued}{'+' if self.queue_is_longer else ''}"
