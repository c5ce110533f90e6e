"""A `deepscan serve` of a benchmark's own, and what it holds: memory, handles, threads, files, processes.

Shared by the benchmarks that ask whether a service stays well: `benchmark hostile` and `benchmark soak`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

MEGABYTE = 1e6
# What the service marks its own folders with; all else in its temporary folder is a file that was sent.
MARKS = ("lock", "node")
_READY_S = 900.0
_ENDING_S = 90.0
_UNLIMITED = str(10**9)


@dataclasses.dataclass(frozen=True)
class Sample:
  """What the service holds at one moment.

  Attributes:
    at_s: seconds since the service was started.
    server_bytes: resident memory of its process.
    all_bytes: likewise, with the processes that it started; pages that two of them see count twice.
    handles: open descriptors of its process, and of its first child, which is forked to decode.
    threads: of its process.
    processes: that it started, and those that they started.
    files: in its temporary folder, but for what it marks its folders with.
  """

  at_s: float
  server_bytes: int
  all_bytes: int
  handles: int
  threads: int
  processes: int
  files: int


@dataclasses.dataclass(frozen=True)
class Figure:
  """One row of what was found.

  Attributes:
    benchmark, case: what was looked at.
    value: how much or how many.
    unit: of `value` and `limit`; "" for counts.
    limit: what was promised, at most; None where nothing is.
  """

  benchmark: str
  case: str
  value: float
  unit: str = ""
  limit: float | None = None

  @property
  def kept(self) -> bool:
    """Whether it is within its limit."""
    return self.limit is None or self.value <= self.limit


def table(rows: Sequence[Figure]) -> str:
  """The rows for people."""
  width = max(len(row.case) for row in rows)

  def shown(value: float | None, unit: str) -> str:
    if value is None:
      return f"{'-':>12}"
    return f"{f'{value:.0f}' if not unit else f'{value:.2f} {unit}':>12}"

  return "\n".join(
    f"{row.case:<{width}}  {shown(row.value, row.unit)}  {shown(row.limit, row.unit)}"
    f"{'' if row.kept else '  NOT KEPT'}"
    for row in rows
  )


class WatchedService:
  """A service in a process of its own, with keys of its own and without limits; a context manager.

  Args:
    folder: of all its files.
    command: starts it; None is `deepscan serve` with the model of the package.
    environment: more of its environment.

  Attributes:
    host, port: where it listens.
    key, metrics_key: open it.
    pid: of its process.
    temp: its temporary folder.
    root: the folder that its jobs may read.

  Raises:
    RuntimeError: it did not start, or was not ready in time.
  """

  def __init__(
    self,
    folder: Path,
    *,
    command: Sequence[str] | None = None,
    environment: Mapping[str, str] | None = None,
  ):
    self.temp, self.root, self._log = folder / "temp", folder / "root", folder / "service.log"
    for made in (self.temp, self.root):
      made.mkdir(parents=True)
    self.key, self.metrics_key = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    self._started_s = time.monotonic()
    settings = {
      "HOST": "127.0.0.1",
      "PORT": "0",
      "SECRET_KEY": secrets.token_urlsafe(32),
      "API_KEY": self.key,
      "METRICS_KEY": self.metrics_key,
      "TMPDIR": str(self.temp),
      "DEEPSCAN_DATA_DIR": str(folder / "data"),
      "DEEPSCAN_ROOTS": str(self.root),
      "DEEPSCAN_REQUESTS_PER_HOUR": _UNLIMITED,
      "DEEPSCAN_READS_PER_HOUR": _UNLIMITED,
      "DEEPSCAN_FAILED_AUTH_PER_HOUR": _UNLIMITED,
      **(environment or {}),
    }
    # Whatever else the environment says of a service, of a database or Redis say, is of another one.
    inherited = {
      name: value
      for name, value in os.environ.items()
      if not name.startswith("DEEPSCAN_") and name not in ("DATABASE_URL", "REDIS_URL", "MODEL_PATH")
    }
    with self._log.open("wb") as log:
      self._process = subprocess.Popen(
        list(command or [sys.executable, "-m", __package__, "serve"]),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=inherited | settings,
      )
    self.pid = self._process.pid
    self._watched = psutil.Process(self.pid)
    self._first_child: psutil.Process | None = None
    try:
      self.host, self.port = self._address()
      self._wait_until_ready()
    except BaseException:
      self.end()
      raise

  def __enter__(self) -> WatchedService:
    return self

  def __exit__(self, *_) -> None:
    self.end()

  def end(self) -> int:
    """Ends it as an operator would, and returns its exit code; kills it where it does not end."""
    if self._process.poll() is None:
      self._process.send_signal(signal.SIGTERM)
      try:
        self._process.wait(_ENDING_S)
      except subprocess.TimeoutExpired:
        self._process.kill()
    return self._process.wait()

  def lives(self) -> bool:
    """Whether the process that was started is still there."""
    return self._process.poll() is None

  def sample(self) -> Sample:
    """What it holds now."""
    with self._watched.oneshot():
      server, threads = self._watched.memory_info().rss, self._watched.num_threads()
      handles = self._watched.num_fds()
    children = self._watched.children(recursive=True)
    total = server
    for child in children:
      with contextlib.suppress(psutil.Error):
        total += child.memory_info().rss
    if self._first_child is None and children:
      self._first_child = min(children, key=psutil.Process.create_time)
    if self._first_child is not None:
      # Where it may not be looked into, its own are not counted; then they never are.
      with contextlib.suppress(psutil.Error):
        handles += self._first_child.num_fds()
    return Sample(
      at_s=time.monotonic() - self._started_s,
      server_bytes=server,
      all_bytes=total,
      handles=handles,
      threads=threads,
      processes=len(children),
      files=len(self.files()),
    )

  def settled(self, *, patience_s: float = 30.0) -> Sample:
    """What it holds once it does nothing: no decoder runs, and what it received is gone, if it ever is."""
    until = time.monotonic() + patience_s
    while time.monotonic() < until and (len(self._watched.children(recursive=True)) > 1 or self.files()):
      time.sleep(0.2)
    time.sleep(0.5)
    return min((self.sample() for _ in range(3)), key=lambda sample: sample.server_bytes)

  def files(self) -> list[Path]:
    """What lies in its temporary folder, but for marks."""
    return [path for path in self.temp.rglob("*") if path.is_file() and path.name not in MARKS]

  def defects(self) -> list[str]:
    """What it has logged of errors, and tracebacks that went past the log."""
    plain = [line for line in self._log.read_text("utf-8", "replace").splitlines() if "Traceback (" in line]
    logged = [line["message"] for line in self._lines() if line.get("level") in ("error", "critical")]
    return logged + [line for line in plain if not line.startswith("{")]

  def ask(self, method: str, path: str, *, key: str | None = None) -> tuple[int, bytes]:
    """The status and body of a request without a body."""
    connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
    with contextlib.closing(connection):
      connection.request(method, path, headers={"Authorization": f"Bearer {key}"} if key else {})
      answer = connection.getresponse()
      return answer.status, answer.read()

  def _lines(self) -> list[dict]:
    found = []
    for line in self._log.read_bytes().splitlines():
      with contextlib.suppress(ValueError):
        found.append(json.loads(line))
    return [line for line in found if isinstance(line, dict)]

  def _address(self) -> tuple[str, int]:
    while self.lives():
      for line in self._lines():
        if line.get("message") == "Listening.":
          host, port = line["url"].removeprefix("http://").rsplit(":", 1)
          return host, int(port)
      time.sleep(0.05)
    raise RuntimeError(f"The service did not start: {self._said()}")

  def _wait_until_ready(self) -> None:
    until = time.monotonic() + _READY_S
    while self.lives() and time.monotonic() < until:
      if self.ask("GET", "/readyz")[0] == 200:
        return
      time.sleep(0.1)
    raise RuntimeError(f"The service was not ready in time: {self._said()}")

  def _said(self) -> str:
    return self._log.read_text(encoding="utf-8", errors="replace")[-2000:]
