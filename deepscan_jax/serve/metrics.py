"""What /metrics tells Prometheus. All names begin with deepscan_; labels never hold what a client sent."""

from collections.abc import Callable, Iterator

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_BYTES = tuple(10.0**power for power in range(3, 10))


class Metrics:
  """The numbers of one service.

  Attributes:
    requests: by route, method and status; request_seconds: by route.
    results: answers with a verdict, by kind, outcome and model; cached: those that were known already.
    problems: by reason code.
    upload_bytes: sizes of received files, by kind.
    rate_limited: requests over a limit, by its name.
    redis_fallbacks: how often Redis did not answer.
    detect_seconds: time that the engine took for a file, by kind.
    in_progress: requests under way.
    files: files that are received, waiting or judged.
    job_files: files of jobs that were answered, by outcome or the code of what is in its place.
    live_connections: streams that are watched; live_windows: their windows, by outcome; live_dropped: windows
      that were left out.
  """

  def __init__(self):
    self.registry = CollectorRegistry()

    def counter(name: str, text: str, *labels: str) -> Counter:
      return Counter(f"deepscan_{name}", text, labels, registry=self.registry)

    def histogram(name: str, text: str, *labels: str, buckets=_SECONDS) -> Histogram:
      return Histogram(f"deepscan_{name}", text, labels, registry=self.registry, buckets=buckets)

    self.requests = counter("requests", "Requests that were answered.", "route", "method", "status")
    self.request_seconds = histogram("request_seconds", "From the request to its answer.", "route")
    self.results = counter("results", "Files that were answered with a verdict.", "kind", "outcome", "model")
    self.cached = counter("cached_results", "Of these, those whose answer was known already.", "kind")
    self.problems = counter("problems", "Requests that were refused or failed.", "code")
    self.upload_bytes = histogram("upload_bytes", "Sizes of received files.", "kind", buckets=_BYTES)
    self.rate_limited = counter("rate_limited", "Requests over a limit.", "limit")
    self.redis_fallbacks = counter("redis_fallbacks", "How often Redis did not answer.")
    self.detect_seconds = histogram("detect_seconds", "Time that the engine took for a file.", "kind")
    self.in_progress = Gauge("deepscan_in_progress", "Requests under way.", registry=self.registry)
    self.job_files = counter("job_files", "Files of jobs that were answered.", "outcome")
    self.live_windows = counter("live_windows_told", "Windows of streams that were judged.", "outcome")
    self.live_dropped = counter("live_windows_dropped", "Windows of streams that were left out.")
    self.live_connections = Gauge(
      "deepscan_live_connections", "Streams that are watched.", registry=self.registry
    )
    self.files = Gauge("deepscan_files", "Files received, waiting or judged.", registry=self.registry)

  def watch(self, read: Callable[[], dict]) -> None:
    """Tells with each reading what `read` returns: numbers, or dicts of them, by name."""
    self.registry.register(_Readings(read))

  def text(self) -> bytes:
    """All of it in Prometheus' text format."""
    return generate_latest(self.registry)


class _Readings:
  """Gauges that are read when somebody asks for them."""

  def __init__(self, read: Callable[[], dict]):
    self._read, self._process = read, psutil.Process()

  def describe(self) -> list:
    """Nothing: names are known when they are read."""
    return []

  def collect(self) -> Iterator[GaugeMetricFamily]:
    """Called by the registry."""
    with self._process.oneshot():
      yield GaugeMetricFamily(
        "deepscan_resident_bytes", "Memory of the process.", self._process.memory_info().rss
      )
      yield GaugeMetricFamily("deepscan_open_files", "Open file handles.", self._process.num_fds())
    for name, value in self._read().items():
      if isinstance(value, dict):
        family = GaugeMetricFamily(
          f"deepscan_{name}", f"{name.replace('_', ' ').capitalize()}.", labels=["of"]
        )
        for label, number in value.items():
          if isinstance(number, int | float):
            family.add_metric([str(label)], number)
        yield family
      elif isinstance(value, int | float):
        yield GaugeMetricFamily(f"deepscan_{name}", f"{name.replace('_', ' ').capitalize()}.", value)
