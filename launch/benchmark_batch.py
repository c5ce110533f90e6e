"""Whether a batch survives being killed: `deepscan benchmark batch --kills=20 --files=500`.

The files are some bytes each, and in place of the detector is one that looks at bytes; all else is what
`deepscan batch` runs. The process that hands out the files is killed (SIGKILL) at random moments, while it
starts as well as while it works, every other time with its workers, and started again by the same command
until the report is whole. Then each file has to stand in the report once, with the answer that its bytes
have, and in the ledger as done. How often files were judged a second time for a kill is counted by the judge
itself.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

# Of the kills, those while a process starts.
WHILE_STARTING = 0.25
MODEL = {"name": "bytes", "version": "1", "sha256": "00" * 32}
_PATIENCE_S = 600.0


def batch_rows(
  *, kills: int, files: int, workers: int, seed: int, row: Callable, tell: Callable[[str], None]
) -> list:
  """The rows of the benchmark, for launch.benchmark, whose rows these are.

  Args:
    kills: how often the process is killed.
    files: of the batch.
    workers: processes that judge.
    seed: of the moments.
    row: row(case, count, limit).
    tell: shows a line of what goes on.
  """
  from deepscan_jax.serve.batch import AHEAD

  with tempfile.TemporaryDirectory() as folder:
    outcome = killed_batch(
      Path(folder), kills=kills, files=files, workers=workers, rng=random.Random(seed), tell=tell
    )
  return [
    row("kills", outcome.kills, kills),
    row("files lost", outcome.lost, 0),
    row("files answered twice", outcome.twice, 0),
    row("files with a wrong answer", outcome.wrong, 0),
    # Each worker holds the file it judges, and those that are decoded beside it.
    row("files judged again for a kill", outcome.judged_again, kills * workers * AHEAD),
    row("kills before a file was answered", outcome.early, None),
  ]


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What came of it.

  Attributes:
    kills: how often the process was killed; fewer than asked for where the batch ended before.
    early: after how many of them no file more was answered than before.
    lost: files without an answer, in the report or the ledger.
    twice: files with more than one.
    wrong: files with another answer than their bytes have, or given up.
    judged_again: judgements more than files.
    runs: how often the command was started.
  """

  kills: int
  early: int
  lost: int
  twice: int
  wrong: int
  judged_again: int
  runs: int


def killed_batch(
  folder: Path, *, kills: int, files: int, workers: int, rng: random.Random, tell: Callable[[str], None]
) -> Outcome:
  """Runs a batch, kills it so often, and looks at what it has come to."""
  media = folder / "media"
  media.mkdir()
  for number in range(files):
    (media / f"{number:06}.mp4").write_bytes(b"file %d" % number)
  seen, report = folder / "seen", folder / "report.jsonl"
  killed = early = runs = before = 0
  first_s = None
  while True:
    runs += 1
    life = _Life(folder, media, seen, report, workers=workers)
    if killed == kills:
      code = life.wait(_PATIENCE_S)
      if code != 0:
        raise RuntimeError(f"The batch ended with {code}: {life.said()}")
      break
    started = time.monotonic()
    if first_s is not None and rng.random() < WHILE_STARTING:
      ended = life.wait(rng.uniform(0, first_s))
    else:
      life.wait_for_progress(_size(seen))
      first_s = first_s or time.monotonic() - started
      # So that there is something left to do for the last one.
      ended = life.wait(rng.uniform(0, files * _SLOW_S / workers / kills))
    if ended is not None:
      tell(f"the batch ended after {killed} of {kills} kills; more files take longer")
      kills = killed
      continue
    life.kill(with_workers=killed % 2 == 1)
    killed += 1
    answered = _answered(folder)
    early += answered == before
    tell(f"kill {killed}: {answered} of {files} answered, {answered - before} of them since the last")
    before = answered
  return _outcome(folder, media, seen, report, kills=killed, early=early, runs=runs)


def _outcome(folder: Path, media: Path, seen: Path, report: Path, **counts) -> Outcome:
  """Compares the report and the ledger with the files."""
  rows = [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]
  times = collections.Counter(row["path"] for row in rows)
  names = {path.name for path in media.iterdir()}
  by_name = {row["path"]: row for row in rows}
  wrong = sum(
    by_name[name].get("file", {}).get("sha256") != hashlib.sha256((media / name).read_bytes()).hexdigest()
    for name in names & times.keys()
  )
  judged = collections.Counter(seen.read_text(encoding="utf-8").split())
  return Outcome(
    lost=max(len(names - times.keys()), len(names) - _answered(folder)),
    twice=sum(count > 1 for count in times.values()) + len(times.keys() - names),
    wrong=wrong,
    judged_again=sum(judged.values()) - len(names),
    **counts,
  )


def _answered(folder: Path) -> int:
  """Files that have an answer in the ledger."""
  import sqlite3

  try:
    with sqlite3.connect(f"file:{folder / 'ledger.sqlite'}?mode=ro", uri=True, timeout=30) as database:
      (count,) = database.execute("SELECT count(*) FROM batch_items WHERE state = 'done'").fetchone()
      return count
  except sqlite3.OperationalError:
    return 0  # It was killed before it had made the table.


def _size(path: Path) -> int:
  return path.stat().st_size if path.exists() else 0


class _Life:
  """One process of the batch, in a session of its own with its workers."""

  def __init__(self, folder: Path, media: Path, seen: Path, report: Path, *, workers: int):
    self._seen, self._log = seen, folder / "log"
    order = [str(path) for path in (folder / "ledger.sqlite", media, seen, report)]
    with self._log.open("ab") as log:
      self._process = subprocess.Popen(
        [sys.executable, "-m", __name__, *order, str(workers)],
        stdout=log,
        stderr=log,
        start_new_session=True,
      )

  def wait_for_progress(self, size: int) -> None:
    """Until a file more is judged, or the process has ended."""
    until = time.monotonic() + _PATIENCE_S
    while _size(self._seen) == size and self._process.poll() is None and time.monotonic() < until:
      time.sleep(0.02)

  def wait(self, seconds: float) -> int | None:
    """Its exit code, None where it does not end in that time."""
    try:
      return self._process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
      return None

  def kill(self, *, with_workers: bool) -> None:
    """Kills it; workers that are left alone are to end by themselves."""
    if with_workers:
      os.killpg(self._process.pid, signal.SIGKILL)
    else:
      self._process.kill()
    self._process.wait()

  def said(self) -> str:
    """The end of what it has told."""
    return self._log.read_text(encoding="utf-8", errors="replace")[-2000:]


_SLOW_S = 0.02


class ByteJudge:
  """In place of a detector: it takes a moment, and says the first byte of the file's SHA-256.

  Args:
    seen: a file to which the name of each file that is judged is added.
  """

  metadata = MODEL

  def __init__(self, seen: str):
    self._seen = os.open(seen, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

  def begin(self, path: str) -> bytes:
    """Its bytes."""
    return Path(path).read_bytes()

  def judge(self, path: str, begun: bytes):
    """A verdict."""
    from deepscan_jax.verdict import Thresholds, Verdict

    os.write(self._seen, f"{Path(path).name}\n".encode())
    time.sleep(_SLOW_S)
    digest, thresholds = hashlib.sha256(begun), Thresholds(0.4, 0.7, 0.02)
    probability = digest.digest()[0] / 255
    return Verdict(
      outcome=thresholds.outcome(probability),
      deepfake_probability=probability,
      frame_consistency_score=None,
      reasons=(),
      branches={},
      people=(),
      thresholds=thresholds,
      model=MODEL,
      file={"name": Path(path).name, "bytes": len(begun), "sha256": digest.hexdigest(), "kind": "video"},
      timings={},
    )


def _main(arguments: Sequence[str]) -> int:
  from deepscan_jax.serve import batch

  from . import batch as command

  # Not this module as it runs: workers look for the class by its module's name.
  from .benchmark_batch import ByteJudge as Judge

  ledger, media, seen, report, workers = arguments
  return command.judge(
    ledger,
    Path(media),
    batch.Settings(model=MODEL, frames=1, extensions=(".mp4",)),
    functools.partial(Judge, seen),
    command.Options(workers=int(workers), reports=(Path(report),), quiet=True),
  )


if __name__ == "__main__":
  sys.exit(_main(sys.argv[1:]))
