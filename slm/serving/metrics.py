"""Metrics in Prometheus's text format."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from slm.serving.scheduler import Job, Scheduler

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counts of requests and tokens, and the scheduler's present state."""

    media_type = CONTENT_TYPE_LATEST

    def __init__(self, scheduler: Scheduler) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "slm_requests", "Requests answered.", ["path", "status"], registry=registry
        )
        self._request_seconds = Histogram(
            "slm_completion_seconds",
            "Time to answer a request for completions.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._story_seconds = Histogram(
            "slm_story_seconds",
            "Time of a story, in the queue and until its end.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.prompt_tokens = Counter("slm_prompt_tokens", "Tokens of prompts.", registry=registry)
        for name, text, value in (
            ("slm_stories_running", "Stories being generated.", lambda: scheduler.running),
            ("slm_stories_waiting", "Stories in the queue.", lambda: scheduler.waiting),
            ("slm_rows", "Stories generated at once, at most.", lambda: scheduler.batch_size),
            ("slm_generated_tokens", "Tokens generated.", lambda: scheduler.generated),
        ):
            Gauge(name, text, registry=registry).set_function(value)

    def observe_request(self, path: str, status: int, seconds: float) -> None:
        """Counts a request."""
        known = path in ("/v1/completions", "/v1/models", "/health", "/metrics")
        self._requests.labels(path if known else "other", str(status)).inc()
        if path == "/v1/completions" and status == 200:
            self._request_seconds.observe(seconds)

    def observe_story(self, job: Job) -> None:
        """Measures a story that is complete."""
        self._story_seconds.observe(time.perf_counter() - job.submitted)

    def text(self) -> bytes:
        """All of them."""
        return generate_latest(self._registry)
