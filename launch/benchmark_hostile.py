"""Ten thousand broken and hostile files, sent to a service that runs: `deepscan benchmark hostile`.

A `deepscan serve` of its own, with the model of the package and with the limits that it has anywhere, is sent
the files of hostile_media by several clients at a time, then each of its bombs by itself. Counted is what a
service must never do: end, fail inside, answer without saying why, answer late, or keep anything, be it
memory, handles, files or processes. Memory is compared between two moments of rest, after the first requests
and after the last. `--first=N --requests=1` sends the file number N again. `--nojudge` leaves the networks
out, and with them most of the time; files are received and decoded as ever. Interrupted (Ctrl-C), it sends no
more and tells what it has found.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import http.client
import itertools
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from . import hostile_media
from .hostile_media import BOUNDARY, Case
from .watched_service import MEGABYTE, Figure, Sample, WatchedService

CLIENTS = 8
# That are looked at in a video.
FRAMES = 8
# Decoding may take media.Budget.wall_s; the rest is for waiting in turn and for the networks.
LIMIT_S = 360.0
MOST_MB_MORE = 50.0
# Connections that are just open.
MOST_HANDLES_MORE = CLIENTS
# Requests after which memory is looked at for the first time.
WARM_UP = 600
# Busy says so and when to come again; the rest of 5xx are failures.
_BUSY = 503


@dataclasses.dataclass(frozen=True)
class Answer:
  """What came back.

  Attributes:
    status: of HTTP; 0 where there was no answer.
    code: of the problem; "" of an answer that is none.
    seconds: it took.
    fault: what is wrong with the answer, in words; "" where nothing is.
  """

  status: int
  code: str
  seconds: float
  fault: str = ""


@dataclasses.dataclass
class Outcome:
  """What came of all of them.

  Attributes:
    answers: by status and code, how often.
    families: likewise by family and status.
    faults: cases with a wrong answer, in words.
    slowest: the longest that an answer took, with its case.
    late: answers after the limit.
    warm, last: what the service held at rest, after the first requests and after all.
    lived: whether its process was the same all the time.
    defects: errors in its log.
    interrupted: whether fewer were sent than should have been.
  """

  answers: collections.Counter[tuple[int, str]] = dataclasses.field(default_factory=collections.Counter)
  families: collections.Counter[tuple[str, int]] = dataclasses.field(default_factory=collections.Counter)
  faults: list[str] = dataclasses.field(default_factory=list)
  slowest: tuple[float, str] = (0.0, "")
  late: int = 0
  warm: Sample | None = None
  last: Sample | None = None
  lived: bool = True
  defects: list[str] = dataclasses.field(default_factory=list)
  interrupted: bool = False


def hostile_rows(
  *, requests: int, first: int, seed: int, judge: bool, tell: Callable[[str], None]
) -> list[Figure]:
  """The rows of the benchmark.

  Args:
    requests: files that are sent.
    first: number of the first one.
    seed: of the files.
    judge: whether what was decoded is judged, by the model of the package.
    tell: shows a line of what goes on.
  """
  command = None if judge else [sys.executable, "-m", f"{__package__}.decoding_service"]
  with tempfile.TemporaryDirectory() as folder, WatchedService(Path(folder), command=command) as service:
    maker = hostile_media.Maker(seed)
    cases = (maker.case(number) for number in range(first, first + requests))
    found = flood(service, cases, warm_up=min(WARM_UP, requests // 2), tell=tell)
    bombs = list(bomb_rows(service, tell=tell)) if service.lives() else []
    found.lived = service.lives() and found.lived
  return [*rows_of(found), *bombs]


def rows_of(found: Outcome) -> list[Figure]:
  """What of it was promised, and what was."""

  def row(case: str, value: float, unit: str = "", limit: float | None = None) -> Figure:
    return Figure("hostile", case, float(value), unit, limit)

  grown = (found.last.server_bytes - found.warm.server_bytes) / MEGABYTE
  busy = sum(count for (status, _), count in found.answers.items() if status == _BUSY)
  return [
    row("files sent", found.answers.total()),
    row("crashes", 0 if found.lived else 1, "", 0),
    row("wrong answers (no answer, 5xx, no reason, no remedy)", len(found.faults), "", 0),
    row("answers past the limit", found.late, "", 0),
    row(f"slowest answer ({found.slowest[1]})", found.slowest[0], "s", LIMIT_S),
    row("errors in the log", len(found.defects), "", 0),
    row("memory more", grown, "MB", MOST_MB_MORE),
    row("memory at the end", found.last.server_bytes / MEGABYTE, "MB"),
    row("handles more", found.last.handles - found.warm.handles, "", MOST_HANDLES_MORE),
    row("threads more", found.last.threads - found.warm.threads),
    row("files left", found.last.files, "", 0),
    row("processes left, beside the one that is forked", max(0, found.last.processes - 1), "", 0),
    row("told to come again (503)", busy),
    *(
      row(f"answered {status} {code}".rstrip(), count)
      for (status, code), count in sorted(found.answers.items())
    ),
  ]


def flood(
  service: WatchedService,
  cases: Iterable[Case],
  *,
  warm_up: int,
  clients: int = CLIENTS,
  limit_s: float = LIMIT_S,
  tell: Callable[[str], None],
) -> Outcome:
  """Sends cases to a service, several at a time, and says what it came to.

  Args:
    service: that is sent them.
    cases: of hostile_media.
    warm_up: of them are sent before what it holds is looked at for the first time.
    clients: that send at a time.
    limit_s: an answer may take so long.
    tell: shows a line of what goes on.
  """
  cases, outcome = iter(cases), Outcome()
  if warm_up:
    _send_all(service, itertools.islice(cases, warm_up), outcome, clients, limit_s, tell)
  outcome.warm = service.settled()
  _send_all(service, cases, outcome, clients, limit_s, tell)
  outcome.lived = service.lives()
  outcome.last = service.settled() if outcome.lived else outcome.warm
  outcome.defects = service.defects()
  for line in (*outcome.faults[:50], *outcome.defects[:20]):
    tell(line)
  return outcome


def _send_all(
  service: WatchedService,
  cases: Iterable[Case],
  outcome: Outcome,
  clients: int,
  limit_s: float,
  tell: Callable[[str], None],
) -> None:
  lock, cases, failures = threading.Lock(), iter(cases), []

  def work() -> None:
    try:
      while service.lives() and not outcome.interrupted:
        with lock:  # Cases are made by one at a time: what they are made of is shared.
          case = next(cases, None)
        if case is None:
          return
        note(case, send(service, case, limit_s=limit_s, frames=FRAMES))
    except Exception as error:
      failures.append(error)

  def note(case: Case, answer: Answer) -> None:
    named = f"{case.number}: {case.family}, {case.name[:40]!r}, {case.what[:100]}"
    with lock:
      outcome.answers[answer.status, answer.code] += 1
      outcome.families[case.family, answer.status] += 1
      outcome.slowest = max(outcome.slowest, (answer.seconds, named))
      outcome.late += answer.seconds > limit_s
      if answer.fault:
        outcome.faults.append(f"{named}: {answer.fault}")
      if outcome.answers.total() % 500 == 0:
        now = service.sample()
        tell(
          f"{outcome.answers.total()} sent, {len(outcome.faults)} wrong, {now.server_bytes / MEGABYTE:.0f} MB"
        )

  threads = [threading.Thread(target=work, daemon=True) for _ in range(clients)]
  for thread in threads:
    thread.start()
  try:
    for thread in threads:
      thread.join()
  except KeyboardInterrupt:
    tell("Interrupted; no more are sent.")
    outcome.interrupted = True
    for thread in threads:
      thread.join()
  if failures:
    raise failures[0]


def bomb_rows(
  service: WatchedService, *, tell: Callable[[str], None], limit_s: float = LIMIT_S
) -> Iterable[Figure]:
  """Sends each bomb by itself; yields a row of its time, with what it was answered in its name."""
  for name, (kind, file_name, _) in hostile_media.BOMBS.items():
    data = hostile_media.bomb(name)
    answer = send(service, Case(0, "bomb", name, kind, file_name, data), limit_s=limit_s)
    told = f"{answer.status} {answer.code}".rstrip() + (f" ({answer.fault})" if answer.fault else "")
    tell(f"bomb {name} ({len(data)} bytes): {told} in {answer.seconds:.2f} s")
    yield Figure("hostile", f"bomb {name} in {len(data) / 1000:.0f} kB: {told}", answer.seconds, "s", limit_s)


def send(service: WatchedService, case: Case, *, limit_s: float, frames: int | None = None) -> Answer:
  """Sends a case by a connection of its own, and looks at the answer.

  Args:
    service: that is sent it.
    case: of hostile_media.
    limit_s: an answer may take so long.
    frames: of a video that are looked at; None leaves it to the service.
  """
  body = case.form()
  headers = {
    "Authorization": f"Bearer {service.key}",
    "Content-Type": f"multipart/form-data; boundary={BOUNDARY.decode()}",
    "Content-Length": str(len(body) if case.length is None else case.length),
  }
  started = time.perf_counter()
  connection = http.client.HTTPConnection(service.host, service.port, timeout=limit_s + 30)
  try:
    with contextlib.closing(connection):
      query = f"?frames={frames}" if frames and case.kind == "video" else ""
      connection.putrequest("POST", f"/api/v1/detect/{case.kind}{query}")
      for name, value in headers.items():
        connection.putheader(name, value)
      connection.endheaders()
      # Who was refused by the headers alone is answered before all is sent, and the rest goes nowhere.
      with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.send(body)
      answer = connection.getresponse()
      told = answer.read()
  except (OSError, http.client.HTTPException) as error:
    fault = f"no answer ({type(error).__name__}: {error})"
    # One who says that more is to come than comes, or sends on after the answer, may see it break off.
    if case.length is not None and service.lives():
      fault = ""
    return Answer(0, "", time.perf_counter() - started, fault)
  seconds = time.perf_counter() - started
  return _looked_at(answer.status, answer.headers, told, seconds)


def _looked_at(status: int, headers, told: bytes, seconds: float) -> Answer:
  """The answer, with what is wrong with it."""
  from deepscan_jax.serve.problems import MEDIA_TYPE, PROBLEMS

  try:
    found = json.loads(told)
    found = found if isinstance(found, dict) else {}
  except ValueError:
    found = {}
  code = str(found.get("code", ""))
  fault = ""
  if status == 200:
    wanted = ("outcome", "deepfake_probability", "model_version", "request_id", "result_id")
    missing = [name for name in wanted if name not in found]
    fault = f"{', '.join(missing)} missing" if missing else ""
  elif status >= 500 and status != _BUSY:
    fault = f"failed with {status}: {told[:200]!r}"
  elif headers.get("content-type") != MEDIA_TYPE or code not in PROBLEMS:
    fault = f"{status} without a reason: {told[:200]!r}"
  elif not found.get("remedy") or not found.get("detail") or not found.get("request_id"):
    fault = f"{status} without a remedy: {told[:200]!r}"
  elif status == _BUSY and not headers.get("retry-after"):
    fault = "503 that does not say when to come again"
  return Answer(status, code, seconds, fault)
