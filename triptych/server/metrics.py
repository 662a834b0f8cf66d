"""What /metrics says, in the format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
ITEMS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        """Begin at zero."""
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "triptych_requests",
            "Requests by route and HTTP status",
            ["route", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "triptych_request_seconds",
            "From the head of a request to the end of its answer",
            ["route"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self._items = Histogram(
            "triptych_batch_items",
            "Items that were computed together",
            ["verb"],
            buckets=ITEMS,
            registry=self._registry,
        )

    def watch(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """Add a number that is read when somebody asks."""
        Gauge(name, help_text, registry=self._registry).set_function(read)

    def count(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def count_batch(self, verb: str, items: int) -> None:
        """Count a batch."""
        self._items.labels(verb).observe(items)

    def text(self) -> bytes:
        """Return all of them."""
        return generate_latest(self._registry)
