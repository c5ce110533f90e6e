"""Scalars of a run as JSON lines, and one line of progress for people."""

import json
import sys
import time
from pathlib import Path
from typing import TextIO


class ScalarLog:
  """Appends {"step", "time_s", name: value} rows to a JSONL file; a resumed run goes on in the same file."""

  def __init__(self, path: Path):
    path.parent.mkdir(parents=True, exist_ok=True)
    self._file = path.open("a", encoding="utf-8")

  def write(self, step: int, scalars: dict[str, float]) -> None:
    """Writes one row and flushes it."""
    row = {"step": step, "time_s": round(time.time(), 3)} | {k: float(v) for k, v in scalars.items()}
    self._file.write(json.dumps(row) + "\n")
    self._file.flush()

  def close(self) -> None:
    """Closes the file."""
    self._file.close()


def drop_rows_after(path: Path, step: int) -> None:
  """Drops the rows of a JSONL file that a run writes again when it goes on after a step, and a row cut off.

  Args:
    path: what a `ScalarLog` wrote; where there is none, nothing is done.
    step: the last one whose rows stay.
  """
  if not path.exists():
    return
  lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
  kept = [line for line in lines if _step_of(line) <= step]
  # Whole or not at all: the process may be killed here, too.
  part = path.with_name(f"{path.name}.part")
  part.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
  part.replace(path)


class Progress:
  """One line on stderr: rewritten in place on a terminal, now and then a new one elsewhere."""

  def __init__(self, total: int, *, stream: TextIO | None = None, every_s: float = 30.0):
    self._total = total
    self._stream = stream or sys.stderr
    self._every_s = 0.5 if self._stream.isatty() else every_s
    self._started = self._shown = time.monotonic()
    self._first: int | None = None

  def show(self, step: int, text: str) -> None:
    """Shows step, text and the time left, unless the last line is too fresh."""
    now = time.monotonic()
    if self._first is None:
      self._first, self._started = step, now
    if now - self._shown < self._every_s and step < self._total:
      return
    self._shown = now
    done = step - self._first
    left = (now - self._started) / done * (self._total - step) if done else float("nan")
    line = f"step {step}/{self._total}  {text}  {_clock(left)} left"
    self._stream.write(f"\r\033[K{line}" if self._stream.isatty() else f"{line}\n")
    self._stream.flush()


def _step_of(line: str) -> float:
  """The step of a row; later than any where the row was cut off."""
  try:
    return json.loads(line)["step"]
  except (ValueError, KeyError, TypeError):
    return float("inf")


def _clock(seconds: float) -> str:
  if seconds != seconds:
    return "--:--"
  minutes, rest = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"
