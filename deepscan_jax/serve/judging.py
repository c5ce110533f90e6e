"""Processes that judge files, seen from both sides.

A worker holds one Judge. It is sent files, begins to read each as it comes, and judges one after the other.
It says which file it begins with before it does, so whoever sees it die knows which file it died of.
"""

import contextlib
import gc
import json
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing import connection
from typing import Protocol

from deepscan_jax import media
from deepscan_jax.serve import answers
from deepscan_jax.verdict import Verdict

# A file that kills its process, or fails otherwise, so often is given up.
MOST_TRIES = 3
# The code of the answer for a file on which this program failed, and for one that killed its process.
DEFECT, GAVE_UP = "internal_error", "worker_crash"
# A file that may be whole in a moment.
PASSING = ("changed_while_read",)
# A worker that needs longer for a file, compiling included, is taken to hang.
ITEM_S = 900.0


class Judge(Protocol):
  """What a worker judges with.

  Attributes:
    metadata: name, version and sha256 of the model.
  """

  metadata: Mapping

  def begin(self, path: str) -> object:
    """Begins to read a file, and returns at once what `judge` takes."""

  def judge(self, path: str, begun: object) -> Verdict:
    """Judges the file; MediaError where it cannot be read."""


class DetectorJudge:
  """A Judge with a detector.

  Args:
    detector: what load_detector returns.
    frames: of a video that are looked at.
  """

  def __init__(self, detector, *, frames: int):
    self.metadata = detector.metadata
    self._detector, self._frames = detector, frames

  def begin(self, path: str) -> media.Decoding:
    """Starts the child process that decodes."""
    from deepscan_jax import examples

    return media.Decoding(path, plan=examples.sampling_plan(self._detector.window, frames=self._frames))

  def judge(self, path: str, begun: media.Decoding) -> Verdict:
    """What Detector.detect says."""
    return self._detector.detect(path, frames=self._frames, decoding=begun)


class NoModelError(ValueError):
  """A worker has no model to judge with; the message says why. Any ValueError of `load` ends as one."""


def load_detector_judge(model_path: str | None, *, frames: int, cache: str | None) -> DetectorJudge:
  """A Judge with the model of a folder, for `run`; None is the one in the package.

  Args:
    model_path: its folder.
    frames: of a video that are looked at.
    cache: where compiled programs are kept, see compilation_cache.

  Raises:
    NoModelError: it is missing or damaged.
  """
  # Objects of JAX that stay are not looked through for garbage again and again.
  gc.set_threshold(100_000, 50, 100)
  from deepscan_jax import checkpoints, compilation_cache, inference

  warning = compilation_cache.keep_programs(cache)
  if warning:
    print(f"deepscan: {warning}", file=sys.stderr)
  try:
    return DetectorJudge(inference.load_detector(model_path), frames=frames)
  except checkpoints.CheckpointError as error:
    raise NoModelError(str(error)) from error


class Careful:
  """Judges one file at a time in a process of its own, whatever the file does to it.

  Args:
    load: makes the process's Judge; it is pickled.
    item_s: seconds after which the process is killed.
  """

  def __init__(self, load: Callable[[], Judge], *, item_s: float = ITEM_S):
    self._load, self._item_s = load, item_s
    self._worker: Worker | None = None
    self._lock = threading.Lock()

  def answer(self, directory: bytes, path: bytes) -> tuple[dict, int]:
    """The answer for a file of a folder, and how many tries it took; threads wait for each other.

    Raises:
      NoModelError: the process cannot load its model.
      ValueError: it dies before it can begin.
    """
    with self._lock:
      for tries in range(1, MOST_TRIES + 1):
        answer, is_last_word = self._try(os.path.join(directory, path), tries)
        if is_last_word:
          break
      return answer, tries

  def close(self) -> None:
    """Ends the process."""
    if self._worker is not None:
      self._worker.kill()
      self._worker.end()
      self._worker = None

  def _try(self, path: bytes, tries: int) -> tuple[dict, bool]:
    worker = self._worker = self._worker or Worker(self._load)
    worker.give(tries, os.fsdecode(path), None)
    # The first file waits for the model too.
    until = time.monotonic() + self._item_s * (1 if worker.metadata else 2)
    while True:
      try:
        if not worker.pipe.poll(max(0.0, until - time.monotonic())):
          worker.hung = True
          worker.kill()
          raise EOFError
        kind, *news = worker.pipe.recv()
      except (EOFError, OSError):
        self._worker, how = None, worker.end()
        if worker.metadata is None:
          raise ValueError(f"A worker process {how} before it could begin; it may lack memory.") from None
        return answers.unread(path, code=GAVE_UP, message=death(how, tries)), False
      if kind == "refused":
        raise NoModelError(news[0])
      if kind == "ready":
        (worker.metadata,) = news
      elif kind == "answer":
        item, answer, is_last_word = news
        del worker.items[item]
        return json.loads(answer), is_last_word


def death(how: str, tries: int) -> str:
  """What is said of a file whose process has died, in the words of Worker.end."""
  return f"The process that judged this file {how}, {tries} of {MOST_TRIES} times."


class Worker:
  """A worker process, seen from the first one.

  Attributes:
    pipe: what it says comes here.
    metadata: of its model; None until it is ready.
    items: what it has, in order.
    judging: the item that it judges; None between two.
    since_s: when it began with that.
    hung: whether it was killed for taking too long.
  """

  def __init__(self, load: Callable[[], Judge]):
    context = multiprocessing.get_context("spawn")
    self.pipe, theirs = context.Pipe()
    self.metadata: Mapping | None = None
    self.items: dict[int, object] = {}
    self.judging: int | None = None
    self.since_s = 0.0
    self.hung = False
    self._process = context.Process(target=_work, args=(theirs, load), name="deepscan-worker", daemon=True)
    self._process.start()
    theirs.close()

  def give(self, item: int, path: str, held: object) -> None:
    """Sends one more file; `held` is kept in `items`."""
    self.items[item] = held
    # A process that has died shows it when it is listened to.
    with contextlib.suppress(BrokenPipeError, ConnectionError):
      self.pipe.send((item, path))

  def kill(self) -> None:
    """Ends the process, whatever it does."""
    self._process.kill()
    self._process.join()

  def end(self) -> str:
    """Waits for a process that dies; returns in words how it did."""
    self._process.join()
    self.pipe.close()
    code = self._process.exitcode
    if self.hung:
      return "took too long and was stopped"
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _work(pipe: connection.Connection, load: Callable[[], Judge]) -> None:
  """The life of a worker process."""
  # Signals to all processes of a terminal are for the first one, which ends us.
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
  # What libraries print is no result.
  os.dup2(2, 1)
  try:
    judge = load()
  except ValueError as error:
    pipe.send(("refused", str(error)))
    return
  todo: queue.SimpleQueue = queue.SimpleQueue()
  pipe.send(("ready", dict(judge.metadata)))
  threading.Thread(target=_receive, args=(pipe, judge, todo), daemon=True).start()
  while True:
    item, path, begun = todo.get()
    pipe.send(("judging", item))
    answer, is_last_word = _answer(judge, path, begun)
    pipe.send(("answer", item, json.dumps(answer, allow_nan=False), is_last_word))


def _receive(pipe: connection.Connection, judge: Judge, todo: queue.SimpleQueue) -> None:
  """Begins to read each file as it comes, while another is judged."""
  while True:
    try:
      item, path = pipe.recv()
    except (EOFError, OSError):
      # The first process is gone.
      os._exit(1)
    try:
      begun = judge.begin(path)
    except Exception as error:
      begun = error
    todo.put((item, path, begun))


def _answer(judge: Judge, path: str, begun: object) -> tuple[dict, bool]:
  """The answer for a file, and whether it would be the same another time."""
  try:
    if isinstance(begun, Exception):
      raise begun
    return answers.legible(judge.judge(path, begun).to_dict()), True
  except media.MediaError as error:
    answer = answers.unread(os.fsencode(path), code=error.reason, message=answers.legible(str(error)))
    return answer, error.reason not in PASSING
  except Exception as error:  # ours, whatever it is: the other files are judged all the same
    traceback.print_exc()
    sys.stderr.flush()
    message = f"A defect of this program ({type(error).__name__}) kept the file from being judged."
    return answers.unread(os.fsencode(path), code=DEFECT, message=message), False
