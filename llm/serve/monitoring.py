# SPDX-License-Identifier: Apache-2.0
"""What a server counts, for Prometheus. No prompt, answer or key is ever recorded."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The counters of one server, in a registry of their own.

    Args:
        waiting, running: return the jobs that wait and run at this moment.
    """

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, waiting: Callable[[], int], running: Callable[[], int]):
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "llm_requests", "Requests answered.", ["path", "status"], registry=self.registry
        )
        self.prompt_tokens = Counter(
            "llm_prompt_tokens", "Tokens of prompts read.", registry=self.registry
        )
        self.generated_tokens = Counter(
            "llm_generated_tokens", "Tokens generated.", registry=self.registry
        )
        self.cancelled = Counter(
            "llm_cancelled", "Requests whose client left early.", registry=self.registry
        )
        self.first_token = Histogram(
            "llm_time_to_first_token_seconds",
            "From the request to its first token.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.duration = Histogram(
            "llm_generation_seconds",
            "From the request to its last token.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        for name, value in (("waiting", waiting), ("running", running)):
            gauge = Gauge(f"llm_jobs_{name}", f"Generations {name}.", registry=self.registry)
            gauge.set_function(value)

    def render(self) -> bytes:
        """Return the numbers in Prometheus' text format."""
        return generate_latest(self.registry)
