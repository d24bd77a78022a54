"""Prometheus metrics: counted where requests end, gauged when they are read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from fastapi import APIRouter
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from visiongate.engine.processes import process_rss_bytes
from visiongate.gateway.logs import Note

if TYPE_CHECKING:
    from visiongate.gateway.service import Service

router = APIRouter(tags=["health"])

SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The counters of one application, in a registry of their own."""

    def __init__(self, service: Service) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "visiongate_requests",
            "Finished HTTP requests",
            ["route", "method", "code"],
            registry=self.registry,
        )
        self._seconds = self._histogram("visiongate_request_seconds", "HTTP requests, whole time")
        self._first_token = self._histogram(
            "visiongate_time_to_first_token_seconds", "From arrival to the first text"
        )
        self._per_token = self._histogram(
            "visiongate_time_per_output_token_seconds", "Between tokens of one answer"
        )
        self._queue = self._histogram("visiongate_queue_seconds", "Waiting for a place")
        self._vision = self._histogram("visiongate_vision_encode_seconds", "Vision tower")
        self._prefill = self._histogram("visiongate_prefill_seconds", "Prompt processing")
        self._finished = Counter(
            "visiongate_answers",
            "Answers by the reason of their end",
            ["reason"],
            registry=self.registry,
        )
        self.registry.register(_Gauges(service))

    def observe(self, note: Note) -> None:
        """Counts a finished request."""
        route = note.route or "(none)"
        method = note.method if note.method in _METHODS else "other"
        self._requests.labels(route, method, str(note.status or 499)).inc()
        self._seconds.observe(note.seconds)
        for answer in note.answers:
            self._queue.observe(answer.queue_seconds)
            if answer.first_token_seconds is not None:
                self._first_token.observe(answer.first_token_seconds)
            for draft in answer.drafts:
                self._finished.labels(draft.reason or "error").inc()
                usage = draft.usage
                if draft.reason is None:
                    continue
                self._prefill.observe(usage.prefill_seconds)
                if answer.images:
                    self._vision.observe(usage.encode_seconds)
                if usage.completion_tokens > 1:
                    after_first = usage.total_seconds - usage.first_token_seconds
                    self._per_token.observe(after_first / (usage.completion_tokens - 1))

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, buckets=SECONDS, registry=self.registry)


class _Gauges(Collector):
    """What is read at the moment of asking."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def describe(self) -> Iterator[Metric]:
        """Nothing beforehand: the names are unique by their prefix."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """The present values."""
        service = self._service
        admission = service.admission
        state, _ = service.state()
        yield _gauge("visiongate_ready", "1 when a request would be answered", state in _ANSWERING)
        yield _gauge("visiongate_requests_running", "Requests with a place", admission.num_running)
        yield _gauge("visiongate_requests_waiting", "Requests in the queue", admission.num_waiting)
        yield _gauge(
            "visiongate_requests_capacity", "Places (MAX_CONCURRENCY)", admission.num_places
        )
        yield _gauge(
            "visiongate_process_resident_bytes", "The gateway's memory", process_rss_bytes()
        )
        workers = service.backend.status().workers
        for name, text, field in _WORKER_GAUGES:
            family = GaugeMetricFamily(name, text, labels=["worker"])
            for worker in workers:
                family.add_metric([str(worker.index)], getattr(worker.stats, field))
            yield family
        for name, text, field in _WORKER_COUNTERS:
            counter = CounterMetricFamily(name, text, labels=["worker"])
            for worker in workers:
                counter.add_metric([str(worker.index)], getattr(worker.stats, field))
            yield counter
        restarts = CounterMetricFamily(
            "visiongate_worker_restarts", "Worker restarts", labels=["worker"]
        )
        for worker in workers:
            restarts.add_metric([str(worker.index)], worker.restarts)
        yield restarts


@router.get("/metrics", summary="Prometheus metrics")
async def metrics(request: Request) -> Response:
    """The exposition format, for a scraper."""
    service: Service = request.app.state.service
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=float(value))


_ANSWERING: Final = frozenset({"ready", "degraded"})
_METHODS: Final = frozenset({"GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH"})

_WORKER_GAUGES: Final = (
    ("visiongate_worker_sequences_running", "Sequences that hold cache blocks", "num_running"),
    ("visiongate_worker_sequences_waiting", "Sequences that wait", "num_waiting"),
    ("visiongate_worker_cache_blocks", "Blocks of the key-value cache", "num_blocks"),
    ("visiongate_worker_cache_free_blocks", "Free blocks", "num_free_blocks"),
    ("visiongate_worker_resident_bytes", "A worker's memory", "rss_bytes"),
    ("visiongate_worker_device_bytes", "A worker's device memory", "device_memory_bytes"),
)
_WORKER_COUNTERS: Final = (
    ("visiongate_prompt_tokens", "Prompt tokens", "prompt_tokens"),
    ("visiongate_image_tokens", "Visual tokens", "image_tokens"),
    ("visiongate_completion_tokens", "Generated tokens", "completion_tokens"),
    ("visiongate_prefix_cache_hit_tokens", "Prompt tokens found in the cache", "cache_hit_tokens"),
    ("visiongate_feature_cache_hits", "Pictures whose features were kept", "feature_hits"),
    ("visiongate_feature_cache_misses", "Pictures that were encoded", "feature_misses"),
    ("visiongate_preemptions", "Sequences that gave their blocks back", "preemptions"),
)
