"""Collects what `/metrics` reports, in Prometheus's text format. Each application has its own registry."""

from collections.abc import Callable
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
QUERIES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """Counters and histograms of one server."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "retrieval_requests", "Answered requests, without health checks", ["route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "retrieval_request_seconds",
            "Time from a request's head to its answer",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self._cache = Counter(
            "retrieval_cache_queries",
            "Queries answered from the cache (hit), by a running search (wait), by a new search (miss)",
            ["outcome"],
            registry=registry,
        )
        self._outcomes = {outcome: self._cache.labels(outcome) for outcome in ("hit", "wait", "miss")}
        self._batch = Histogram("retrieval_batch_queries", "Queries a search", buckets=QUERIES, registry=registry)
        self._search = Histogram("retrieval_search_seconds", "Time of a search", buckets=SECONDS, registry=registry)
        self._stages = Histogram(
            "retrieval_stage_seconds", "Time of a stage of a search", ["stage"], buckets=SECONDS, registry=registry
        )
        self._cut = Counter("retrieval_queries_cut", "Queries that were cut to the maximum length", registry=registry)
        self._refused = Counter(
            "retrieval_queries_refused", "Queries that could not be searched because of their text", registry=registry
        )
        self._gone = Counter("retrieval_disconnected", "Requests whose client disconnected early", registry=registry)

    def watch(self, name: str, about: str, value: Callable[[], float]) -> None:
        """Add a gauge whose value is read when `/metrics` is requested."""
        Gauge(name, about, registry=self._registry).set_function(value)

    def answered(self, *, route: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def cache(self, outcome: Literal["hit", "wait", "miss"]) -> None:
        """Count how a query found its hits."""
        self._outcomes[outcome].inc()

    def searched(self, *, queries: int, seconds: float) -> None:
        """A batch was searched."""
        self._batch.observe(queries)
        self._search.observe(seconds)

    def stage(self, name: str, seconds: float) -> None:
        """A stage of a search ended."""
        self._stages.labels(name).observe(seconds)

    def cut(self, queries: int) -> None:
        """Count queries that were longer than the maximum."""
        self._cut.inc(queries)

    def refused(self, queries: int) -> None:
        """Count queries that could not be searched."""
        self._refused.inc(queries)

    def disconnected(self) -> None:
        """Count a client that disconnected before its answer."""
        self._gone.inc()

    def text(self) -> bytes:
        """All metrics, in Prometheus's text format."""
        return generate_latest(self._registry)
