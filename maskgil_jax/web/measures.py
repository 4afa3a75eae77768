"""Prometheus metrics of the server."""

from __future__ import annotations

from typing import Any

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Measures:
    """The metrics of one server, in a registry of its own."""

    def __init__(self):
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("maskgil_requests", "HTTP requests by route and status", ["route", "status"], **own)
        self.latency = Histogram("maskgil_request_seconds", "time from request to answer", ["route"], buckets=SECONDS, **own)
        self.images = Counter("maskgil_images", "images drawn", **own)
        self.batches = Histogram("maskgil_batch_images", "images that shared a batch", buckets=(1, 2, 4, 8, 16, 32, 64), **own)
        self.stages = Histogram("maskgil_stage_seconds", "time per batch by stage", ["stage"], buckets=SECONDS, **own)
        self.refusals = Counter("maskgil_refused", "requests that were not drawn, by reason", ["reason"], **own)
        self.queue = Gauge("maskgil_queue_images", "images that wait", **own)

    def batch(self, images: int, seconds: dict[str, float]) -> None:
        """Counts a batch that was drawn."""
        self.images.inc(images)
        self.batches.observe(images)
        for stage, value in seconds.items():
            self.stages.labels(stage).observe(value)

    def refused(self, reason: str) -> None:
        """Counts a request that was not drawn."""
        self.refusals.labels(reason).inc()

    def request(self, route: str, status: int, seconds: float) -> None:
        """Counts an answer."""
        self.requests.labels(route, str(status)).inc()
        self.latency.labels(route).observe(seconds)

    def text(self) -> tuple[bytes, str]:
        """(the metrics as Prometheus reads them, their content type)."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self.registry), CONTENT_TYPE_LATEST
