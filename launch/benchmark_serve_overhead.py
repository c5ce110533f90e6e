"""What the service adds to a detector that takes no time: one of made-up verdicts behind the whole API.

The service runs in a process of its own. Requests come at fixed times, whether the last ones were answered or
not, and each counts from when it was due: one that waits for a late one is late too.

A third process does the same small piece of work again and again meanwhile. Where that takes much longer than
usual, the machine gave its processors to others, and what was late says nothing of the service: what was due
outside such times is counted by itself too.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil

PER_SECOND, P99_S = 200, 0.020
_CONNECTIONS = 64
# A piece of work (about a millisecond), the pause after it, how many times its usual length is slow, and how
# long after a slow one what waited meanwhile may still be late.
_PIECE, _PAUSE_S, _SLOW, _AFTER_S = 100_000, 0.01, 2.0, 0.15
SECRET, _KEY = "benchmark-secret-0123456789abcdef", "benchmark-key-0123456789abcdef-xyz"


def overhead_rows(
  folder: Path, *, row: Callable, seconds: float = 20.0, per_second: int = PER_SECOND, size: int = 20_000
) -> list:
  """Half and 99 % of the requests are answered within these times; the machine's own share of that; and the
  processor's time for one.

  Args:
    folder: of the service's own files.
    row: makes a row of a case and seconds, with limit_s by name.
    seconds: how long requests are sent, after some to begin with.
    per_second: how many are.
    size: bytes of each picture.

  Raises:
    RuntimeError: the service did not start, or did not answer one of them as it should.
  """
  log = folder / "service.log"
  with (
    log.open("wb") as stderr,
    subprocess.Popen([sys.executable, "-m", __name__, str(folder)], stderr=stderr) as process,
  ):
    try:
      host, port = address(process, log)
      asyncio.run(_ask(host, port, per_second, per_second, size))
      before = psutil.Process(process.pid).cpu_times()
      with _watched_machine() as slow_times:
        asked = asyncio.run(_ask(host, port, round(seconds * per_second), per_second, size))
      after = psutil.Process(process.pid).cpu_times()
    finally:
      process.kill()
  used = (after.user + after.system - before.user - before.system) / len(asked)
  limit_s = P99_S if per_second >= PER_SECOND else None
  return [
    *late_rows(asked, slow_times, f"API alone, {per_second} pictures/s", row=row, limit_s=limit_s),
    row("API alone: processor time for one picture", used),
  ]


def late_rows(
  asked: Sequence[tuple[float, float]],
  slow_times: Sequence[tuple[float, float]],
  words: str,
  *,
  row: Callable,
  limit_s: float | None,
) -> list:
  """Half and 99 % of all requests, and 99 % of those that were due while the machine held still.

  The limit is that of the last one of these; where the machine was never slow, or always, there is none of
  them, and it is that of all.

  Args:
    asked: of `_ask`.
    slow_times: of `_watched_machine`.
    words: before each row's.
    row, limit_s: as of `overhead_rows`.
  """
  late = sorted(seconds_late for _, seconds_late in asked)
  steady = sorted(
    seconds_late for due, seconds_late in asked if not any(start <= due <= end for start, end in slow_times)
  )
  share = 1 - len(steady) / len(late)
  half = row(f"{words}: half of them", late[len(late) // 2])
  most = late[len(late) * 99 // 100]
  if not steady or not share:
    slow = ", when the machine was slow" if share else ""
    return [half, row(f"{words}{slow}: 99 of 100", most, limit_s=limit_s)]
  return [
    half,
    row(f"{words}: 99 of 100", most),
    row(
      f"{words}, but {share:.0%} when the machine was slow: 99 of 100",
      steady[len(steady) * 99 // 100],
      limit_s=limit_s,
    ),
  ]


def address(process: subprocess.Popen, log: Path) -> tuple[str, int]:
  """Where a service listens, as its log says once it does; RuntimeError where it has ended."""
  while process.poll() is None:
    time.sleep(0.05)
    for line in log.read_bytes().splitlines(keepends=True):
      if b'"Listening."' in line and line.endswith(b"\n"):
        host, port = json.loads(line)["url"].removeprefix("http://").rsplit(":", 1)
        return host, int(port)
  raise RuntimeError(f"The service did not start: {log.read_text()[-2000:]}")


@contextlib.contextmanager
def _watched_machine() -> Iterator[list[tuple[float, float]]]:
  """From when to when (time.perf_counter) the machine was slow; the list is filled when the block ends."""
  slow_times: list[tuple[float, float]] = []
  code = f"from {__name__} import _work; _work()"
  with subprocess.Popen(
    [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
  ) as process:
    process.stdout.readline()  # it has begun
    yield slow_times
    lines, _ = process.communicate("end\n")
  pieces = [tuple(map(float, line.split())) for line in lines.splitlines()]
  usual = statistics.median(end - start for start, end in pieces)
  for start, end in pieces:
    if end - start > _SLOW * usual:
      slow_times.append((start - _PAUSE_S, end + _AFTER_S))


def _work() -> None:
  """Prints an empty line, and from when to when each piece of work took, until there is a line to read."""
  pieces = []
  print(flush=True)
  while not pieces or not select.select([sys.stdin], [], [], _PAUSE_S)[0]:
    start = time.perf_counter()
    sum(range(_PIECE))
    pieces.append((start, time.perf_counter()))
  print("\n".join(f"{start} {end}" for start, end in pieces))


async def _ask(host: str, port: int, count: int, per_second: int, size: int) -> list[tuple[float, float]]:
  """When each request was due (time.perf_counter), and seconds from then to its answer."""
  idle: asyncio.Queue = asyncio.Queue()
  for _ in range(_CONNECTIONS):
    idle.put_nowait(await asyncio.open_connection(host, port))
  start = time.perf_counter() + 0.1
  run = os.urandom(8)

  async def one(number: int) -> tuple[float, float]:
    due = start + number / per_second
    await asyncio.sleep(due - time.perf_counter())
    reader, writer = await idle.get()
    writer.write(_request(run + number.to_bytes(4, "big"), size))
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
      int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")
    )
    body = await reader.readexactly(length)
    late = time.perf_counter() - due
    if b" 200 " not in head.partition(b"\r\n")[0] or b'"cached": false' not in body:
      raise RuntimeError(f"The service answered {head!r} {body[:300]!r}")
    idle.put_nowait((reader, writer))
    return due, late

  asked = await asyncio.gather(*(one(number) for number in range(count)))
  while not idle.empty():
    idle.get_nowait()[1].close()
  return asked


def _request(note: bytes, size: int) -> bytes:
  """A request with a picture that was never sent before."""
  picture = (b"\x89PNG\r\n\x1a\n" + note).ljust(size, b"\0")
  body = (
    b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    + picture
    + b"\r\n--x--\r\n"
  )
  head = (
    "POST /api/v1/detect/image HTTP/1.1\r\nHost: localhost\r\n"
    f"Authorization: Bearer {_KEY}\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    f"Content-Length: {len(body)}\r\n\r\n"
  )
  return head.encode() + body


class _Instant:
  """In place of an engine: says the same of every file, at once."""

  ready, problem = True, None

  def __init__(self):
    from deepscan_jax import verdict
    from deepscan_jax.serve.engine import ModelInfo

    thresholds = verdict.Thresholds(0.4, 0.7, 0.05)
    self.models = [ModelInfo("instant", "1", "0" * 64, None, True, (), thresholds)]
    self._verdict = verdict.Verdict(
      outcome=verdict.LIKELY_AUTHENTIC,
      deepfake_probability=0.1,
      frame_consistency_score=None,
      reasons=(),
      branches={"spatial": verdict.BranchVerdict(0.1, 1.0)},
      people=(verdict.Person(1, 0.1, (verdict.Sighting(0.0, (0.0, 0.0, 9.0, 9.0), 0.1),), {}),),
      thresholds=thresholds,
      model={"name": "instant", "version": "1", "sha256": "0" * 64},
      file={"name": "", "bytes": 0, "sha256": "0" * 64, "kind": "image", "media": {"container": "png"}},
      timings={},
    )

  def start(self) -> None:
    """Nothing to load."""

  def close(self, *, drain_s: float) -> None:
    """Nothing to close."""

  def stats(self) -> dict:
    """Nothing to tell."""
    return {}

  def detect(self, path, *, frames: int = 32, model: str | None = None):
    """The verdict."""
    del frames, model
    return dataclasses.replace(self._verdict, file={**self._verdict.file, "name": path.name})


def _main(argv: Sequence[str]) -> int:
  """Serves in the folder argv[1]."""
  from deepscan_jax.serve import json_logs, server
  from deepscan_jax.serve.app import make_app
  from deepscan_jax.serve.settings import Settings

  folder = Path(argv[1])
  json_logs.set_up()
  settings = Settings(
    port=0,
    secret_key=SECRET,
    api_key=_KEY,
    data_dir=folder,
    temp_dir=folder,
    requests_per_hour=10**9,
    reads_per_hour=10**9,
    failed_auth_per_hour=10**9,
    # A machine that is busy with something else is late, and turns nobody away.
    queue=2 * _CONNECTIONS,
    queue_per_key=2 * _CONNECTIONS,
  )
  return server.serve(make_app(settings, _Instant()))


if __name__ == "__main__":
  sys.exit(_main(sys.argv))
