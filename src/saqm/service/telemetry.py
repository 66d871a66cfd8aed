"""What the service tells of itself: a line of JSON for each request, and counters for Prometheus.

Neither holds a path, a query, a file's name or an address: what came from a client is told by numbers alone.
"""

from __future__ import annotations

import json
import logging
import traceback
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

LOGGER = "saqm.service"
SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
TEXT = "text/plain; version=0.0.4; charset=utf-8"


class Telemetry:
    """The counters of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("http_requests", "Requests answered.", "method", "route", "status")
        self.seconds = Histogram(
            "saqm_http_request_seconds", "From the first byte to the last.", ["route"],
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.received = self._counter("http_received_bytes", "Bytes of bodies that came.")
        self.sent = self._counter("http_sent_bytes", "Bytes of bodies that went.")
        self.refused = self._counter("refused", "Requests that were refused.", "status")
        self.files = self._counter("files", "Files that were scored, or could not be.")
        self.images = self._counter("images", "Images, frames and slices among them.", "status")
        self.group = Histogram(
            "saqm_group_files",
            "Files that went to a worker together.",
            buckets=(1, 2, 4, 8, 16),
            registry=self.registry,
        )
        self.work = Histogram(
            "saqm_work_seconds", "What a worker took for them.", buckets=SECONDS, registry=self.registry
        )
        self.waiting = Gauge("saqm_waiting_files", "Files without a worker yet.", registry=self.registry)
        self.busy = Gauge("saqm_requests_at_work", "Requests that need a worker, now.", registry=self.registry)
        self.jobs = Gauge("saqm_jobs", "Jobs that are kept.", ["state"], registry=self.registry)
        self.workers = Gauge("saqm_workers", "Scoring processes that run.", registry=self.registry)
        self.stored = Gauge("saqm_stored_bytes", "Bytes of uploads that are kept.", registry=self.registry)
        self.draining = Gauge("saqm_draining", "1 while the service comes to its end.", registry=self.registry)

    def text(self) -> bytes:
        """All of them, as Prometheus reads it."""
        return generate_latest(self.registry)

    def grouped(self, files: int, seconds: float) -> None:
        """Note a piece of work."""
        self.group.observe(files)
        self.work.observe(seconds)

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(f"saqm_{name}_total", help, labels, registry=self.registry)


def log(event: str, *, level: int = logging.INFO, error: BaseException | None = None, **fields: object) -> None:
    """One line. Of an error its kind and where it arose are told, not its message, which may hold what came."""
    if error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        fields["error"] = type(error).__name__
        fields["at"] = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames]
    logging.getLogger(LOGGER).log(level, event, extra={"fields": fields})


class JsonLines(logging.Formatter):
    """A log record as one line of JSON: time, level, event, and its fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        said = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            said["error"] = record.exc_info[0].__name__
        return json.dumps(said)
