"""Prometheus metrics of one server, in a registry of its own."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from chatglm.engine import Stats
from chatglm.generation.deltas import Delta

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"  # of what `generate_latest` gives
_WEIGHT_OF_LATEST = 0.2
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)


class ServerMetrics:
    """Counters and histograms of a server, with the engine's figures from `read_stats`."""

    def __init__(self, read_stats: Callable[[], Stats]) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._registry.register(_EngineCollector(read_stats))
        self.requests = Counter(
            "chatglm_http_requests", "HTTP requests answered.", ["path", "status"], registry=self._registry
        )
        self.answers = Counter(
            "chatglm_answers", "Answers ended, by finish reason.", ["finish_reason"], registry=self._registry
        )
        self.first_token = Histogram(
            "chatglm_time_to_first_token_seconds",
            "From admission to the first token, waiting included.",
            registry=self._registry,
            buckets=_SECONDS,
        )
        self._usual_seconds = 1.0
        self.duration = Histogram(
            "chatglm_answer_seconds", "From admission to the end.", registry=self._registry, buckets=_SECONDS
        )

    def seconds_until_room(self, num_requests: int) -> int:
        """When one of so many running and waiting requests will have ended, in whole seconds, 1 to 600.

        By Little's law: `num_requests` end within the time that one takes of late, its waiting included.
        """
        return min(600, max(1, math.ceil(self._usual_seconds / max(1, num_requests))))

    def note_duration(self, seconds: float) -> None:
        """An answer took so long, waiting included."""
        self.duration.observe(seconds)
        self._usual_seconds += (seconds - self._usual_seconds) * _WEIGHT_OF_LATEST

    def start_answer(self) -> AnswerTimer:
        return AnswerTimer(self)

    def render(self) -> bytes:
        return generate_latest(self._registry)


class AnswerTimer:
    """Measures one answer."""

    def __init__(self, metrics: ServerMetrics) -> None:
        self._metrics = metrics
        self._start = time.perf_counter()
        self._has_token = False
        self._has_ended = False

    def count(self, delta: Delta) -> None:
        if delta.completion_tokens and not self._has_token:
            self._has_token = True
            self._metrics.first_token.observe(time.perf_counter() - self._start)
        if delta.finish_reason is not None:
            self.stop(delta.finish_reason)

    def stop(self, reason: str) -> None:
        """Record the end; only the first call counts."""
        if not self._has_ended:
            self._has_ended = True
            self._metrics.answers.labels(reason).inc()
            self._metrics.note_duration(time.perf_counter() - self._start)


class _EngineCollector(Collector):
    def __init__(self, read_stats: Callable[[], Stats]) -> None:
        self._read_stats = read_stats

    def collect(self) -> Iterator[Metric]:
        stats = self._read_stats()
        for name, description, value in (
            ("running", "Requests that are being answered.", stats.running),
            ("waiting", "Requests that wait for their turn.", stats.waiting),
            ("slots", "Requests that can be answered at once.", stats.slots_total),
            ("cache_blocks", "Blocks of the KV cache in all.", stats.blocks_total),
            ("cache_blocks_free", "Blocks of the KV cache that no request holds.", stats.blocks_free),
        ):
            yield GaugeMetricFamily(f"chatglm_{name}", description, value)
        for name, description, value in (
            ("refused", "Requests refused because the queue was full.", stats.refused),
            ("prompt_tokens", "Tokens of prompts read.", stats.prompt_tokens_total),
            ("cached_tokens", "Those of them that were known from another request.", stats.cached_tokens_total),
            ("prefix_cache_hits", "Requests that began with known tokens.", stats.prefix_hits),
            ("prefix_cache_misses", "Requests that did not, of a model that can reuse them.", stats.prefix_misses),
            ("completion_tokens", "Tokens of answers made.", stats.tokens_total),
        ):
            yield CounterMetricFamily(f"chatglm_{name}", description, value)
