"""A service under mixed load for half an hour: does it go on holding more? `deepscan benchmark soak`.

Clients send pictures, films, sound and files that are broken, some of them again; ask for reports, models,
health, metrics and the page; come with wrong keys; begin jobs, ask for them and cancel some; say what a file
really was; and go away in the middle of an upload or before their answer. Meanwhile it is watched what the
service holds. How much faster memory grows than not at all is told by the median of the slopes between all
pairs of samples (Sen, "Estimates of the regression coefficient based on Kendall's tau", 1968), which a few
large films that happen to be decoded at a sample do not move.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import http.client
import json
import queue
import random
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from . import hostile_media
from .watched_service import MEGABYTE, Figure, Sample, WatchedService

MOST_MB_PER_MINUTE = 1.0
# More handles at the end than at the beginning: connections that are just open.
MOST_HANDLES_MORE = 8
# Of the time, before growth counts: caches fill, threads and decoders are made.
WARM_UP = 0.25
_CLIENTS = 6
_PATIENCE_S = 120.0
# How often what is asked.
_WEIGHTS = {
  "picture": 20,
  "known picture": 8,
  "report": 3,
  "film": 12,
  "sound": 10,
  "bad file": 20,
  "form twice": 3,
  "wrong key": 6,
  "no key": 3,
  "health": 6,
  "metrics": 4,
  "models": 3,
  "page": 3,
  "feedback": 6,
  "job": 2,
  "film later": 2,
  "job state": 5,
  "job's end": 1,
  "gone in the upload": 4,
  "gone before the answer": 3,
}


@dataclasses.dataclass
class Soaked:
  """What came of it.

  Attributes:
    samples: in order.
    last: when all was answered.
    asked: by what, how often.
    statuses: by what and status, how often.
    wrong: answers that should not have been, in words.
    lived: whether the process that was started is the one that ended when it was told to.
    defects: errors in the service's log.
  """

  samples: list[Sample]
  last: Sample
  asked: collections.Counter[str]
  statuses: collections.Counter[tuple[str, int]]
  wrong: list[str]
  lived: bool
  defects: list[str]


def soak_rows(
  *, minutes: float, per_second: float, seed: int, every_s: float = 10.0, tell: Callable[[str], None]
) -> list[Figure]:
  """The rows of the benchmark.

  Args:
    minutes: how long.
    per_second: requests.
    seed: of what is asked when.
    every_s: between two samples.
    tell: shows a line of what goes on.
  """
  with tempfile.TemporaryDirectory() as folder, WatchedService(Path(folder)) as service:
    found = soak(service, minutes=minutes, per_second=per_second, seed=seed, every_s=every_s, tell=tell)
    found.lived = service.end() == 0 and found.lived
  return rows_of(found, minutes=minutes)


def rows_of(found: Soaked, *, minutes: float) -> list[Figure]:
  """What of it was promised, and what was."""

  def row(case: str, value: float, unit: str = "", limit: float | None = None) -> Figure:
    return Figure("soak", case, float(value), unit, limit)

  warm = [s for s in found.samples if s.at_s - found.samples[0].at_s >= WARM_UP * minutes * 60]
  first, last = warm[: len(warm) // 3 or 1], warm[-(len(warm) // 3 or 1) :]

  def more(name: str) -> float:
    middle = [statistics.median(getattr(sample, name) for sample in part) for part in (first, last)]
    return middle[1] - middle[0]

  return [
    row("minutes", minutes, "min"),
    row("requests", sum(found.asked.values())),
    row(
      "memory of the server, a minute",
      slope_per_minute(warm, "server_bytes") / MEGABYTE,
      "MB",
      MOST_MB_PER_MINUTE,
    ),
    row(
      "memory with its processes, a minute",
      slope_per_minute(warm, "all_bytes") / MEGABYTE,
      "MB",
      MOST_MB_PER_MINUTE,
    ),
    row("memory of the server at the end", found.samples[-1].server_bytes / MEGABYTE, "MB"),
    row("handles more", more("handles"), "", MOST_HANDLES_MORE),
    row("threads more", more("threads")),
    row("files left", found.last.files, "", 0),
    row("processes left, beside the one that is forked", max(0, found.last.processes - 1), "", 0),
    row("wrong answers", len(found.wrong), "", 0),
    row("errors in the log", len(found.defects), "", 0),
    row("crashes", 0 if found.lived else 1, "", 0),
    *(row(f"answered {status}: {what}", count) for (what, status), count in sorted(found.statuses.items())),
  ]


def slope_per_minute(samples: Sequence[Sample], name: str) -> float:
  """The median of the slopes between all pairs of samples; 0 where there are fewer than two."""
  times = np.array([sample.at_s for sample in samples]) / 60
  values = np.array([getattr(sample, name) for sample in samples], np.float64)
  later, earlier = np.tril_indices(len(samples), -1)
  slopes = (values[later] - values[earlier]) / (times[later] - times[earlier])
  return float(np.median(slopes)) if len(slopes) else 0.0


def soak(
  service: WatchedService,
  *,
  minutes: float,
  per_second: float,
  seed: int,
  every_s: float,
  tell: Callable[[str], None],
) -> Soaked:
  """Asks a service for so long, and says what it came to."""
  for name in ("face.jpg", "plain.png", "plain.mp4", "plain.wav"):
    (service.root / name).write_bytes(hostile_media.whole(name))
  load = Load(service, seed=seed)
  due: queue.Queue[int | None] = queue.Queue()
  clients = [threading.Thread(target=load.work, args=(due,), daemon=True) for _ in range(_CLIENTS)]
  for client in clients:
    client.start()
  started, samples, number = time.monotonic(), [service.sample()], 0
  while (elapsed := time.monotonic() - started) < minutes * 60 and service.lives():
    # Where the service cannot keep up, it is asked less often.
    while number < elapsed * per_second:
      if due.qsize() < 4 * _CLIENTS:
        due.put(number)
      number += 1
    if elapsed >= len(samples) * every_s:
      samples.append(service.sample())
      if len(samples) % 6 == 0:
        now = samples[-1]
        tell(
          f"{elapsed / 60:4.1f} min: {sum(load.asked.values())} requests, "
          f"server {now.server_bytes / MEGABYTE:.0f} MB, all {now.all_bytes / MEGABYTE:.0f} MB, "
          f"{now.handles} handles, {now.threads} threads, {now.files} files, {len(load.wrong)} wrong"
        )
    time.sleep(0.05)
  for _ in clients:
    due.put(None)
  for client in clients:
    client.join(_PATIENCE_S)
  load.end_jobs()
  lived = service.lives()
  last = service.settled(patience_s=90.0) if lived else samples[-1]
  defects = service.defects()
  for line in (*load.wrong[:20], *defects[:20]):
    tell(line)
  return Soaked(samples, last, load.asked, load.statuses, load.wrong, lived, defects)


class Load:
  """What clients ask.

  Args:
    service: that is asked.
    seed: of what is asked when.

  Attributes:
    asked, statuses, wrong: as of Soaked.
  """

  def __init__(self, service: WatchedService, *, seed: int):
    self._service, self._seed, self._maker = service, seed, hostile_media.Maker(seed)
    self.asked: collections.Counter[str] = collections.Counter()
    self.statuses: collections.Counter[tuple[str, int]] = collections.Counter()
    self.wrong: list[str] = []
    self._lock = threading.Lock()
    self._results: collections.deque[str] = collections.deque(maxlen=50)
    self._jobs: collections.deque[str] = collections.deque(maxlen=50)

  def work(self, due: queue.Queue) -> None:
    """Asks for what is due until it is None."""
    while (number := due.get()) is not None:
      rng = random.Random(f"soak/{self._seed}/{number}")
      what = rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
      try:
        self._ask(what, number, rng)
      except Exception as error:  # whatever it is, it is told at the end
        self._say(f"{what}: {type(error).__name__}: {error}")
      with self._lock:
        self.asked[what] += 1

  def end_jobs(self) -> None:
    """Cancels what was begun and may not have ended."""
    for job in self._jobs:
      self._send("job's end", "DELETE", job, expect=(200,))

  def _ask(self, what: str, number: int, rng: random.Random) -> None:
    note = rng.randbytes(6)
    match what:
      case "picture" | "report":
        name = rng.choice(["face.jpg", "plain.jpg", "clear.png", "plain.webp", "face.jpg"])
        query = "?explain=true" if what == "report" else ""
        self._file(what, "image", name, hostile_media.whole(name) + note, query=query)
      case "known picture":
        self._file(what, "image", "face.jpg", hostile_media.whole("face.jpg"))
      case "film":
        name = rng.choice(["face.mp4", "plain.mp4", "plain.webm", "plain.mkv", "plain.avi"])
        self._file(what, "video", name, hostile_media.whole(name) + note, query="?frames=8")
      case "sound":
        name = rng.choice(["plain.wav", "plain.mp3", "plain.flac", "plain.ogg"])
        self._file(what, "audio", name, hostile_media.whole(name) + note)
      case "bad file":
        case = self._maker.case(number)
        if case.family in ("form", "bomb"):
          case = dataclasses.replace(
            case, body=None, length=None, name="a.mp4", kind="video", data=b"\0" * 99
          )
        self._file(what, case.kind, case.name, case.data, expect=(200, 400, 413, 415, 422))
      case "form twice":
        headers = {"Idempotency-Key": f"soak-{number}"}
        for _ in range(2):
          self._file(what, "image", "plain.png", hostile_media.whole("plain.png") + note, headers=headers)
      case "wrong key" | "no key":
        key = "dfk_aaaaaaaa_" + "b" * 43 if what == "wrong key" else None
        path = rng.choice(["/api/v1/models", "/metrics", "/api/v1/batch/" + "0" * 32])
        self._send(what, "GET", path, key=key, expect=(401,))
      case "health":
        self._send(what, "GET", rng.choice(["/healthz", "/readyz"]), key=None, expect=(200,))
      case "metrics":
        self._send(what, "GET", "/metrics", key=self._service.metrics_key, expect=(200,))
      case "models":
        self._send(what, "GET", "/api/v1/models", expect=(200,))
      case "page":
        path = rng.choice(["/", "/api/v1/docs", "/api/v1/openapi.json"])
        self._send(what, "GET", path, key=None, expect=(200,))
      case "feedback":
        if self._results:
          said = {"result_id": rng.choice(list(self._results)), "label": "authentic", "comment": "soak"}
          self._json(what, "/api/v1/feedback", said, expect=(201,))
      case "job":
        told = self._json(what, "/api/v1/batch/process", {"directory": "."}, expect=(202, 429))
        self._jobs.extend([told["url"]] if "url" in told else [])
      case "film later":
        told = self._file(
          what,
          "video",
          "face.mp4",
          hostile_media.whole("face.mp4") + note,
          query="?async=true",
          expect=(202, 429),
        )
        self._jobs.extend([told["url"]] if "url" in told else [])
      case "job state":
        if self._jobs:
          self._send(what, "GET", rng.choice(list(self._jobs)), expect=(200,))
      case "job's end":
        if self._jobs:
          self._send(what, "DELETE", self._jobs.popleft(), expect=(200,))
      case "gone in the upload" | "gone before the answer":
        self._leave(what, rng, hostile_media.whole("face.mp4") + note)

  def _file(
    self,
    what: str,
    kind: str,
    name: str,
    data: bytes,
    *,
    query: str = "",
    headers: dict | None = None,
    expect: tuple[int, ...] = (200,),
  ) -> dict:
    body = hostile_media.one_file(kind, name, data)
    form = f"multipart/form-data; boundary={hostile_media.BOUNDARY.decode()}"
    told = self._send(
      what,
      "POST",
      f"/api/v1/detect/{kind}{query}",
      body=body,
      headers={"Content-Type": form, **(headers or {})},
      expect=expect,
    )
    if "result_id" in told:
      self._results.append(told["result_id"])
    return told

  def _json(self, what: str, path: str, said: dict, *, expect: tuple[int, ...]) -> dict:
    headers = {"Content-Type": "application/json"}
    return self._send(what, "POST", path, body=json.dumps(said).encode(), headers=headers, expect=expect)

  def _send(
    self,
    what: str,
    method: str,
    path: str,
    *,
    body: bytes | None = None,
    headers: dict | None = None,
    key: str | None = "",
    expect: tuple[int, ...],
  ) -> dict:
    """The answer's JSON, {} where it is none; key "" is the right one, None none."""
    key = self._service.key if key == "" else key
    sent = {"Authorization": f"Bearer {key}"} if key else {}
    connection = http.client.HTTPConnection(self._service.host, self._service.port, timeout=_PATIENCE_S)
    with contextlib.closing(connection):
      connection.request(method, path, body, {**sent, **(headers or {})})
      answer = connection.getresponse()
      told = answer.read()
    with self._lock:
      self.statuses[what, answer.status] += 1
    if answer.status not in (*expect, 503):
      self._say(f"{what}: {method} {path}: {answer.status} {told[:300]!r}")
    is_json = "json" in answer.headers.get("content-type", "")
    found = json.loads(told) if is_json else {}
    return found if isinstance(found, dict) else {}

  def _leave(self, what: str, rng: random.Random, data: bytes) -> None:
    body = hostile_media.one_file("video", "a.mp4", data)
    head = (
      "POST /api/v1/detect/video HTTP/1.1\r\nHost: a\r\n"
      f"Authorization: Bearer {self._service.key}\r\nContent-Length: {len(body)}\r\n"
      f"Content-Type: multipart/form-data; boundary={hostile_media.BOUNDARY.decode()}\r\n\r\n"
    )
    with socket.create_connection((self._service.host, self._service.port), _PATIENCE_S) as line:
      line.sendall(head.encode() + (body if what == "gone before the answer" else body[: len(body) // 2]))
      time.sleep(rng.uniform(0, 0.2))

  def _say(self, line: str) -> None:
    with self._lock:
      self.wrong.append(line)
