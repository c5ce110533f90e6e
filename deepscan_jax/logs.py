"""What a run says of itself: scalars as JSON lines, how fast it goes, and one line of progress for people.

How fast a run goes differs from one time to the next, so everything of that kind stands under TIMING or
"time_s", and `untimed` leaves it out where two runs are compared.
"""

import contextlib
import json
import queue
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TextIO

import jax

from deepscan_jax.files import write_whole

TIMING = "time/"
# Nothing is said of the speed from less than this: two marks a moment apart say little.
_LEAST_S = 1e-3


class ScalarLog:
  """Appends {"step", "time_s", name: value} rows to a JSONL file; a resumed run goes on in the same file."""

  def __init__(self, path: Path):
    path.parent.mkdir(parents=True, exist_ok=True)
    self._file = path.open("a", encoding="utf-8")

  def write(self, step: int, values: Mapping[str, float | list]) -> None:
    """Writes one row and flushes it; a value is a number, or a list of numbers or of such lists."""
    values = {key: value if isinstance(value, list) else float(value) for key, value in values.items()}
    self._file.write(json.dumps({"step": step, "time_s": round(time.time(), 3)} | values) + "\n")
    self._file.flush()

  def close(self) -> None:
    """Closes the file."""
    self._file.close()


def read_scalars(path: Path) -> list[dict]:
  """The rows of a run in the order of their steps; of those that a resumed run repeated, the later ones.

  A last line that was cut short, because the run was killed while it was written, is left out; so is a file
  that is not there.

  Raises:
    ValueError: another line is not JSON.
  """
  if not path.exists():
    return []
  rows: dict[tuple[int, bool], dict] = {}
  lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
  for number, line in enumerate(lines, start=1):
    if not line.endswith("\n"):
      break
    try:
      row = json.loads(line)
    except json.JSONDecodeError as error:
      raise ValueError(f"Line {number} of {path} is not JSON ({error}); remove it.") from error
    rows[row["step"], is_validation(row)] = row
  return [row for _, row in sorted(rows.items(), key=lambda item: item[0])]


def is_validation(row: Mapping) -> bool:
  """Whether a row holds what a validation found; else it is one of training."""
  return any(key.startswith("validation/") for key in row)


def untimed(row: Mapping) -> dict:
  """A row without what differs between two runs of one configuration: when, and how fast."""
  return {key: value for key, value in row.items() if key != "time_s" and not key.startswith(TIMING)}


class FinishTimes:
  """When each step was done, as a thread of its own sees it: JAX returns from a step that has only begun.

  Attributes:
    begun: steps handed over.
    count: of them, how many are done.
    first_s, last_s: when the first and the last of those was done, by `clock`.
  """

  def __init__(self, clock: Callable[[], float] = time.monotonic):
    self.begun = self.count = 0
    self.first_s = self.last_s = -float("inf")
    self._clock = clock
    self._done = threading.Condition()
    self._waiting: queue.SimpleQueue = queue.SimpleQueue()
    # It must not keep a process alive whose loop has ended with an error.
    self._thread = threading.Thread(target=self._follow, daemon=True, name="step finish times")
    self._thread.start()

  def add(self, result) -> None:
    """Hands over the result of a step that has begun; an array that no later step takes as its own buffer."""
    self.begun += 1
    self._waiting.put(result)

  def wait(self) -> None:
    """Waits until all that was begun is done, and seen to be."""
    with self._done:
      self._done.wait_for(lambda: self.count == self.begun)

  def close(self) -> None:
    """Waits likewise, and ends the thread."""
    self._waiting.put(None)
    self._thread.join()

  def _follow(self) -> None:
    while (result := self._waiting.get()) is not None:
      # A step that failed is over as well; the loop raises the error when it looks at the values.
      with contextlib.suppress(jax.errors.JaxRuntimeError):
        jax.block_until_ready(result)
      with self._done:
        self.last_s = self._clock()
        self.first_s = self.first_s if self.count else self.last_s
        self.count += 1
        self._done.notify_all()


class Pace:
  """How fast steps follow each other, and for how much of that time the devices lacked a batch.

  A loop runs ahead of its devices, so the time that it spends in waiting for a batch says little: as long as
  a step is still being computed, nobody is held up. What counts as waiting for data is the part of such a
  wait after the last step that was begun is done. Its share is of the time of training; what is paused
  (validation) has no part in either. Nothing before the first step is done is counted, compiling above all.

  Args:
    examples: in a step.
    finishes: when steps were done; None follows them in a thread.
    clock: in seconds.
    recent_s: how far `recent` looks back, though at least over `_FEWEST` steps.
  """

  _FEWEST, _MOST = 10, 1000

  def __init__(
    self,
    examples: int,
    *,
    finishes: FinishTimes | None = None,
    clock: Callable[[], float] = time.monotonic,
    recent_s: float = 60.0,
  ):
    self._examples, self._clock, self._recent_s = examples, clock, recent_s
    self._finishes = finishes or FinishTimes(clock)
    self._paused_s = self._idle_s = 0.0
    # (time without pauses, steps done, time without a batch)
    self._marks: deque[tuple[float, int, float]] = deque(maxlen=self._MOST)
    self._lap = (0.0, 0, 0.0)
    self.last_pause_s: float | None = None

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Around the call that gives the next batch."""
    start = self._clock()
    yield
    end = self._clock()
    if 0 < self._finishes.begun == self._finishes.count:
      self._idle_s += max(0.0, end - max(start, self._finishes.last_s))

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Around what is not training."""
    start = self._clock()
    try:
      yield
    finally:
      self.last_pause_s = self._clock() - start
      self._paused_s += self.last_pause_s

  def began(self, result) -> None:
    """After each step; see `FinishTimes.add`."""
    self._finishes.add(result)
    if not self._started():
      return
    mark = self._now()
    self._marks.append(mark)
    while len(self._marks) > self._FEWEST and mark[0] - self._marks[1][0] >= self._recent_s:
      self._marks.popleft()

  def recent(self) -> tuple[float, float, float] | None:
    """(seconds a step, examples a second, share of the time without a batch) of late; None: not yet known."""
    return self._since(self._marks[0]) if self._started() else None

  def lap(self) -> dict[str, float]:
    """The same since the last call as scalars, once all that was begun is done; empty where no step was."""
    self._finishes.wait()
    if not self._started() or (figures := self._since(self._lap)) is None:
      return {}
    self._lap = self._now()
    return {f"{TIMING}examples_per_s": figures[1], f"{TIMING}data_wait": figures[2]}

  def close(self) -> None:
    """Ends the thread."""
    self._finishes.close()

  def _started(self) -> bool:
    """Whether a step is done; time is counted from when the first one was, however late that is seen."""
    if not self._marks and self._finishes.count:
      self._lap = (self._finishes.first_s, 1, 0.0)
      self._marks.append(self._lap)
    return bool(self._marks)

  def _now(self) -> tuple[float, int, float]:
    return self._clock() - self._paused_s, self._finishes.count, self._idle_s

  def _since(self, mark: tuple[float, int, float]) -> tuple[float, float, float] | None:
    seconds, steps, idle = (now - then for now, then in zip(self._now(), mark, strict=True))
    if not steps or seconds < _LEAST_S:
      return None
    return seconds / steps, self._examples * steps / seconds, min(idle / seconds, 1.0)


def drop_rows_after(path: Path, step: int, *, validated: bool = True) -> None:
  """Drops the rows of a JSONL file that a run writes again when it goes on after a step, and a row cut off.

  Args:
    path: what a `ScalarLog` wrote; where there is none, nothing is done.
    step: the last one whose rows stay.
    validated: False: the run goes on with the validation of this very step, whose row goes too.
  """
  if not path.exists():
    return
  lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
  kept = [line for line in lines if _stays(line, step, validated=validated)]
  # Whole or not at all: the process may be killed here, too.
  write_whole(path, "".join(f"{line}\n" for line in kept), durable=False)


class Progress:
  """One line on stderr: rewritten in place on a terminal, now and then a new one elsewhere."""

  def __init__(self, total: int, *, stream: TextIO | None = None, every_s: float = 30.0):
    self._total = total
    self._stream = stream or sys.stderr
    self._terminal = self._stream.isatty()
    self._every_s = 0.5 if self._terminal else every_s
    self._shown_s = time.monotonic()
    self._open = False

  def show(self, step: int, text: str) -> None:
    """Shows step and text, unless the last line is too fresh."""
    now = time.monotonic()
    if now - self._shown_s < self._every_s and step < self._total:
      return
    self._shown_s = now
    line = f"step {step}/{self._total}  {text}"
    if self._terminal:
      # A line that wraps cannot be rewritten.
      line = f"\r\033[K{line[: shutil.get_terminal_size().columns - 1]}"
    self._stream.write(line if self._terminal else f"{line}\n")
    self._stream.flush()
    self._open = self._terminal

  def close(self) -> None:
    """Ends the line, so that what comes next begins a new one."""
    if self._open:
      self._stream.write("\n")
      self._stream.flush()
    self._open = False


def _stays(line: str, last: int, *, validated: bool) -> bool:
  """Whether a row is whole, and of what is not done again after a step."""
  try:
    row = json.loads(line)
    step = row["step"]
  except (ValueError, KeyError, TypeError):
    return False
  return step < last or (step == last and (validated or not is_validation(row)))


def clock(seconds: float | None) -> str:
  """A duration as "01:10" or "2:03:04"; "--:--" where it is not known."""
  if seconds is None:
    return "--:--"
  minutes, rest = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"
