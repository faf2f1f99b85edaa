"""A pool's counts for Prometheus, on 127.0.0.1 and only on request."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from s3_agent.errors import ConfigError
from s3_agent.rollout.pool.monitor import Monitor

HOST = "127.0.0.1"


@contextmanager
def serve_metrics(monitor: Monitor, *, port: int) -> Iterator[int]:
    """Serve `/metrics` while the block runs; yields its port. Raises ConfigError without prometheus-client or a free
    port.
    """
    try:
        from prometheus_client import CollectorRegistry, start_http_server
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily
    except ImportError as cause:
        raise ConfigError(
            "--metrics-port needs prometheus-client", remedy="install it: pip install 's3-agent[metrics]'"
        ) from cause

    class Collector:
        def collect(self) -> Iterator[Any]:
            yield GaugeMetricFamily("s3_agent_rollouts_queued", "Rollouts seen waiting.", value=monitor.queued)
            yield GaugeMetricFamily("s3_agent_rollouts_running", "Rollouts claimed.", value=monitor.running)
            ended = CounterMetricFamily(
                "s3_agent_rollouts", "Rollouts that ended; boundary is empty for successes.", labels=["boundary"]
            )
            ended.add_metric([""], monitor.succeeded)
            for boundary, count in list(monitor.failed.items()):
                ended.add_metric([boundary], count)
            yield ended
            attempts = CounterMetricFamily("s3_agent_failed_attempts", "Attempts that failed.", labels=["boundary"])
            for boundary, count in list(monitor.failed_attempts.items()):
                attempts.add_metric([boundary], count)
            yield attempts
            yield GaugeMetricFamily("s3_agent_workers", "Worker processes.", value=monitor.workers)
            yield CounterMetricFamily(
                "s3_agent_workers_lost", "Worker processes that died.", value=monitor.workers_lost
            )
            yield CounterMetricFamily("s3_agent_claim_conflicts", "Claims another pool won.", value=monitor.conflicts)
            yield SummaryMetricFamily(
                "s3_agent_reward", "Rewards.", count_value=monitor.rewards, sum_value=monitor.reward_sum
            )
            phases = SummaryMetricFamily("s3_agent_phase_seconds", "Time by phase.", labels=["phase"])
            for phase, count in list(monitor.phase_counts.items()):
                phases.add_metric([phase], count_value=count, sum_value=monitor.phase_sums[phase])
            yield phases

    registry = CollectorRegistry()
    registry.register(Collector())  # pyright: ignore[reportArgumentType]
    try:
        server, thread = start_http_server(port, addr=HOST, registry=registry)
    except OSError as cause:
        raise ConfigError(f"port {port} for the metrics: {cause}", remedy="give another --metrics-port") from cause
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
