"""Judges the files of a folder: one process that hands them out, and worker processes that judge.

The first process alone talks to the ledger (jobs.py). It takes leases, renews them, hands each worker the file
to judge and the one after it, and writes what comes back. A worker holds one detector; while it judges a file,
the next is being decoded. It says which file it begins with before it does, so when it dies, by a crash in a
library or because memory ran out, that file alone is charged with the try, the other goes back as if nothing
had been, and another worker takes its place. Where the first process dies, the workers end by themselves, and
the same command goes on by the ledger.
"""

import contextlib
import dataclasses
import gc
import hashlib
import json
import multiprocessing
import os
import queue
import signal
import stat
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from multiprocessing import connection
from pathlib import Path
from typing import Protocol

from deepscan_jax import media, provenance
from deepscan_jax.serve import jobs
from deepscan_jax.serve.jobs import Answered, Job, Lease, Ledger
from deepscan_jax.stopping import StopRequest
from deepscan_jax.verdict import LIKELY_MANIPULATED, Verdict
from deepscan_jax.version import __version__

# What `detect` opens (README.md).
EXTENSIONS = tuple(".mp4 .mov .avi .mkv .webm .mpg .jpg .jpeg .png .webp .wav .mp3 .flac .m4a .ogg".split())
# The code of the answer for a file on which this program failed.
DEFECT = "internal_error"
# A file that may be whole in a moment.
PASSING = ("changed_while_read",)
# A worker has the file that it judges, and the next.
AHEAD = 2
# A worker that needs longer for a file, compiling included, is taken to hang.
ITEM_S = 900.0
# Of workers that die before they can begin: so many in a row end the batch.
_FAILED_STARTS = 3
_LOOK_EVERY_S = 0.5


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
  """A worker has no model to judge with; the message says why. What `load` raises comes out of `run` as it."""


@dataclasses.dataclass(frozen=True)
class Settings:
  """What decides what is said of a file, beside the file. Answers of other settings are another batch's.

  Attributes:
    model: name, version and sha256.
    frames: of a video that are looked at.
    extensions: of the files.
    recursive: whether folders in the folder are looked into.
    program: version of this package.
  """

  model: Mapping
  frames: int
  extensions: tuple[str, ...]
  recursive: bool = True
  program: str = __version__

  def to_dict(self) -> dict:
    """Plain values."""
    return {**dataclasses.asdict(self), "extensions": list(self.extensions)}

  def key(self, name: str) -> str:
    """What a batch is found again by.

    Args:
      name: of the batch, or the real path of its folder.
    """
    facts = json.dumps([name, self.to_dict()], sort_keys=True)
    return hashlib.sha256(facts.encode("utf-8", "surrogateescape")).hexdigest()


@dataclasses.dataclass
class Progress:
  """How far a batch is, as `run` tells it.

  Attributes:
    total: files of the batch.
    answered: those that have an answer, by this run, an earlier one or another machine.
    flagged: likely manipulated ones among them.
    failed: those without a verdict among them.
    done_here: answered by this run.
    seconds: since its first worker was ready; 0 before.
  """

  total: int = 0
  answered: int = 0
  flagged: int = 0
  failed: int = 0
  done_here: int = 0
  seconds: float = 0.0

  @property
  def per_second(self) -> float:
    """Files a second, by this run."""
    return self.done_here / self.seconds if self.seconds else 0.0


def extensions(given: Sequence[str]) -> tuple[str, ...]:
  """Returns file extensions as they are compared: lower case, with their dot, sorted; none given: all known.

  Args:
    given: such as ".mp4", "MOV" or ".mp4,.mov".

  Raises:
    ValueError: one that can be none.
  """
  wanted = {word.strip().lower() for words in given for word in words.split(",") if word.strip()}
  found = {word if word.startswith(".") else f".{word}" for word in wanted}
  for word in found:
    if not word[1:].isalnum() or not word.isascii() or len(word) > 11:
      raise ValueError(f"{word!r} is no file extension; give one such as .mp4, or several: .mp4,.mov.")
  return tuple(sorted(found or EXTENSIONS))


def find_files(
  directory: bytes, wanted: Sequence[str], *, recursive: bool, trouble: Callable[[bytes, OSError], None]
) -> Iterator[tuple[bytes, str]]:
  """Yields path, relative to the directory, and state of each file with one of the extensions, in order.

  Links to files are followed, links to folders are not. What is neither file nor folder is left out.

  Args:
    directory: to look in.
    wanted: extensions, see `extensions`.
    recursive: whether to look into folders.
    trouble: called with what cannot be looked at.
  """
  ends = tuple(word.encode() for word in wanted)
  folders = [b""]
  while folders:
    folder = folders.pop()
    try:
      with os.scandir(os.path.join(directory, folder)) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
      trouble(folder, error)
      continue
    inside = []
    for entry in entries:
      path = os.path.join(folder, entry.name)
      try:
        if entry.is_dir(follow_symlinks=False):
          inside.append(path)
        elif entry.name.lower().endswith(ends) and stat.S_ISREG((facts := entry.stat()).st_mode):
          yield path, jobs.file_state(facts)
      except OSError as error:
        trouble(path, error)
    if recursive:
      folders += reversed(inside)


def add_files(ledger: Ledger, job: str, directory: bytes, files: Iterable[tuple[bytes, str]]) -> int:
  """Adds files to a job; one that was answered and has changed since is judged again. Returns how many are.

  A file of another date with the same bytes keeps its answer.
  """
  again = 0
  for known in ledger.add(job, files):
    if known.sha256 and _hash(os.path.join(directory, known.path)) == known.sha256:
      ledger.same_file(known)
    else:
      ledger.judge_again(known)
      again += 1
  return again


def unanswered(
  ledger: Ledger | None, job: Job | None, files: Iterable[tuple[bytes, str]]
) -> Iterator[tuple[bytes, bool]]:
  """Yields the path of each file, and whether a run would judge it (as far as dates tell). Changes nothing."""
  chunk: list[tuple[bytes, str]] = []

  def look() -> Iterator[tuple[bytes, bool]]:
    known = ledger.known(job.id, [path for path, _ in chunk]) if ledger and job else {}
    for path, state in chunk:
      item_state, before = known.get(path, (jobs.QUEUED, state))
      yield path, item_state not in jobs.ANSWERED or before != state

  for file in files:
    chunk.append(file)
    if len(chunk) == 500:
      yield from look()
      chunk.clear()
  yield from look()


def run(
  ledger: Ledger,
  job: Job,
  load: Callable[[], Judge],
  *,
  workers: int = 1,
  limit: int | None = None,
  item_s: float = ITEM_S,
  lease_s: float = jobs.LEASE_S,
  stop: StopRequest | None = None,
  on_answer: Callable[[Answered], None] = lambda answered: None,
  on_progress: Callable[[Progress], None] = lambda progress: None,
  tell: Callable[[str], None] = lambda sentence: None,
) -> Progress:
  """Judges what is queued of a job until all is answered, here or by others, or it is told to stop.

  Args:
    ledger: where the job is.
    job: of the command line, with its files added.
    load: makes a worker's Judge; it is pickled, and called in the worker's process.
    workers: processes that judge.
    limit: ends after so many answers; None: no limit.
    item_s: seconds after which a worker that judges one file is killed, which is a failed try.
    lease_s: of the leases, see jobs.
    stop: once it is true, what is being judged goes back, and this returns.
    on_answer: called with each answer that was found here.
    on_progress: called twice a second or so.
    tell: shows a sentence about what goes wrong.

  Raises:
    NoModelError: a worker cannot load its model.
    ValueError: workers die before they can begin.
    sqlalchemy.exc.DBAPIError: the database is gone; the leases run out by themselves.
  """
  foreman = _Foreman(
    ledger,
    job,
    load,
    workers=workers,
    limit=limit,
    item_s=item_s,
    lease_s=lease_s,
    on_answer=on_answer,
    tell=tell,
  )
  with foreman:
    while not (stop or foreman.is_over()):
      foreman.step()
      on_progress(foreman.progress)
  foreman.count()
  on_progress(foreman.progress)
  return foreman.progress


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
    self._worker: _Worker | None = None
    self._lock = threading.Lock()

  def answer(self, directory: bytes, path: bytes) -> Answered:
    """Answers a file of a folder, after MOST_TRIES at most; threads wait for each other.

    Raises:
      NoModelError: the process cannot load its model.
      ValueError: it dies before it can begin.
    """
    with self._lock:
      for tries in range(1, jobs.MOST_TRIES + 1):
        lease = Lease(item=0, job="", path=path, owner="", claim=tries, tries=tries)
        answer, is_last_word = self._try(lease, os.fsdecode(os.path.join(directory, path)))
        if is_last_word:
          break
      return Answered(0, path, jobs.FAILED if "error" in answer else jobs.DONE, tries, answer)

  def close(self) -> None:
    """Ends the process."""
    if self._worker is not None:
      self._worker.kill()
      self._worker.end()
      self._worker = None

  def _try(self, lease: Lease, path: str) -> tuple[dict, bool]:
    worker = self._worker = self._worker or _Worker(self._load)
    worker.give(lease, path)
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
        return jobs.unread(lease.path, code=jobs.GAVE_UP, message=_death(how, lease.tries)), False
      if kind == "refused":
        raise NoModelError(news[0])
      if kind == "ready":
        (worker.metadata,) = news
      elif kind == "answer":
        item, answer, is_last_word = news
        del worker.items[item]
        return json.loads(answer), is_last_word


def _death(how: str, tries: int) -> str:
  return f"The process that judged this file {how}, {tries} of {jobs.MOST_TRIES} times."


class _Foreman:
  """Hands out the items of one job, and writes what comes back."""

  def __init__(
    self,
    ledger: Ledger,
    job: Job,
    load: Callable[[], Judge],
    *,
    workers: int,
    limit: int | None,
    item_s: float,
    lease_s: float,
    on_answer: Callable[[Answered], None],
    tell: Callable[[str], None],
  ):
    self.progress = Progress()
    self._ledger, self._job, self._load = ledger, job, load
    self._workers, self._limit, self._item_s, self._lease_s = workers, limit, item_s, lease_s
    self._on_answer, self._tell = on_answer, tell
    self._owner = jobs.new_owner()
    self._directory = job.directory
    self._crew: list[_Worker] = []
    self._failed_starts = 0
    self._started_s: float | None = None
    self._counted_s, self._count_every_s = -1e9, 1.0
    self._exhausted_until_s = 0.0
    self._ended = threading.Event()
    self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

  def __enter__(self) -> "_Foreman":
    self._ledger.take_back_dead(self._job.id)
    self.count()
    self._heart.start()
    return self

  def __exit__(self, kind, error, _) -> None:
    self._ended.set()
    for worker in self._crew:
      worker.kill()
    self._heart.join()
    try:
      self._ledger.release_all(self._owner)
    except Exception:
      # Where the database is what failed, the leases run out by themselves.
      if error is None:
        raise

  def is_over(self) -> bool:
    """Whether there is nothing left to do, for us or for anybody."""
    if any(worker.items for worker in self._crew):
      return False
    if self._limit is not None and self.progress.done_here >= self._limit:
      return True
    # What others hold may come back to us.
    return self._ledger.complete(self._job.id) or self._ledger.job(self._job.id) is None or self._is_done()

  def step(self) -> None:
    """Hands out what is queued, waits a moment for news, and writes them."""
    self._staff()
    for worker in self._crew:
      self._give(worker)
    pipes = {worker.pipe: worker for worker in self._crew}
    if not pipes:
      time.sleep(_LOOK_EVERY_S)
    for pipe in connection.wait(list(pipes), timeout=_LOOK_EVERY_S) if pipes else ():
      self._listen(pipes[pipe])
    for worker in list(self._crew):
      if worker.judging and time.monotonic() - worker.since_s > self._item_s:
        worker.hung = True
        worker.kill()
        self._bury(worker)
    if time.monotonic() - self._counted_s > self._count_every_s:
      self._ledger.take_back_expired(self._job.id)
      self._ledger.take_back_dead(self._job.id)
      self.count()

  def count(self) -> None:
    """Reads how far the batch is, others' work included."""
    began = time.monotonic()
    counts, outcomes = self._ledger.counts(self._job.id), self._ledger.outcomes(self._job.id)
    self.progress.total = sum(counts.values())
    self.progress.answered = sum(counts[state] for state in jobs.ANSWERED)
    self.progress.failed = counts[jobs.FAILED]
    self.progress.flagged = outcomes.get(LIKELY_MANIPULATED, 0)
    self._counted_s = time.monotonic()
    # Counting a million rows takes its time; a twentieth of ours is enough.
    self._count_every_s = max(1.0, 20 * (self._counted_s - began))

  def _is_done(self) -> bool:
    counts = self._ledger.counts(self._job.id)
    return not counts[jobs.QUEUED] + counts[jobs.RUNNING]

  def _staff(self) -> None:
    """There are as many workers as are wanted, and work for."""
    if len(self._crew) < self._workers and not self._is_exhausted():
      todo = self._ledger.counts(self._job.id)[jobs.QUEUED]
      if self._limit is not None:
        todo = min(todo, self._limit - self.progress.done_here)
      for _ in range(min(self._workers - len(self._crew), todo)):
        self._crew.append(_Worker(self._load))
      if not todo:
        self._look_again_later()

  def _give(self, worker: "_Worker") -> None:
    while worker.metadata is not None and len(worker.items) < AHEAD and not self._is_exhausted():
      held = sum(len(other.items) for other in self._crew)
      if self._limit is not None and self.progress.done_here + held >= self._limit:
        return
      lease = self._ledger.claim(self._job.id, self._owner, lease_s=self._lease_s)
      if lease is None:
        self._look_again_later()
        return
      worker.give(lease, os.fsdecode(os.path.join(self._directory, lease.path)))

  def _is_exhausted(self) -> bool:
    return time.monotonic() < self._exhausted_until_s

  def _look_again_later(self) -> None:
    # Others hold the rest, or we do.
    self._exhausted_until_s = time.monotonic() + _LOOK_EVERY_S

  def _listen(self, worker: "_Worker") -> None:
    try:
      kind, *news = worker.pipe.recv()
    except (EOFError, OSError):
      self._bury(worker)
      return
    if kind == "ready":
      (worker.metadata,) = news
      self._failed_starts = 0
      self._started_s = self._started_s or time.monotonic()
      expected = self._job.settings["model"]["sha256"]
      if worker.metadata["sha256"] != expected:
        raise NoModelError("The model was changed while the batch ran; start it again.")
    elif kind == "refused":
      raise NoModelError(news[0])
    elif kind == "judging":
      worker.judging, worker.since_s = news[0], time.monotonic()
    else:
      item, answer, is_last_word = news
      worker.judging = None
      self._write(worker.items.pop(item), json.loads(answer), is_last_word=is_last_word)

  def _write(self, lease: Lease, answer: Mapping, *, is_last_word: bool) -> None:
    if is_last_word:
      written = self._ledger.finish(lease, answer)
    else:
      written = self._ledger.fail(lease, answer) == jobs.FAILED
    if not written:
      # Queued once more, or answered by somebody else meanwhile.
      self._exhausted_until_s = 0.0
      return
    self.progress.done_here += 1
    self.progress.answered += 1
    self.progress.failed += "error" in answer
    self.progress.flagged += answer.get("outcome") == LIKELY_MANIPULATED
    self.progress.seconds = time.monotonic() - self._started_s
    state = jobs.FAILED if "error" in answer else jobs.DONE
    self._on_answer(Answered(lease.item, lease.path, state, lease.tries, dict(answer)))

  def _bury(self, worker: "_Worker") -> None:
    """A worker has died: what it judged is charged with a try, what it had besides is not."""
    how = worker.end()
    self._crew.remove(worker)
    if worker.metadata is None:
      self._failed_starts += 1
      if self._failed_starts >= _FAILED_STARTS:
        raise ValueError(f"Worker processes {how} before they could begin; fewer --workers take less memory.")
      return
    culprit = worker.judging if worker.judging in worker.items else next(iter(worker.items), None)
    for item, lease in worker.items.items():
      if item != culprit:
        self._ledger.release(lease)
        continue
      message = _death(how, lease.tries)
      name = jobs.path_text(lease.path)
      last = lease.tries >= jobs.MOST_TRIES
      self._tell(f"{name}: {message} {'It is given up.' if last else 'It will be tried again.'}")
      self._write(
        lease, jobs.unread(lease.path, code=jobs.GAVE_UP, message=message), is_last_word=False
      )
    self._exhausted_until_s = 0.0

  def _beat(self) -> None:
    """Renews our leases until the end."""
    while not self._ended.wait(self._lease_s / 3):
      try:
        self._ledger.heartbeat(self._owner, lease_s=self._lease_s)
      except Exception as error:  # the database may be back in time; if not, the next answer shows it
        self._tell(f"The leases could not be renewed ({type(error).__name__}).")


class _Worker:
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
    self.items: dict[int, Lease] = {}
    self.judging: int | None = None
    self.since_s = 0.0
    self.hung = False
    self._process = context.Process(target=_work, args=(theirs, load), name="deepscan-worker", daemon=True)
    self._process.start()
    theirs.close()

  def give(self, lease: Lease, path: str) -> None:
    """Sends one more file."""
    self.items[lease.item] = lease
    # A process that has died shows it when it is listened to.
    with contextlib.suppress(BrokenPipeError, ConnectionError):
      self.pipe.send((lease.item, path))

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
    return legible(judge.judge(path, begun).to_dict()), True
  except media.MediaError as error:
    answer = jobs.unread(os.fsencode(path), code=error.reason, message=legible(str(error)))
    return answer, error.reason not in PASSING
  except Exception as error:  # ours, whatever it is: the other files are judged all the same
    traceback.print_exc()
    sys.stderr.flush()
    message = f"A defect of this program ({type(error).__name__}) kept the file from being judged."
    return jobs.unread(os.fsencode(path), code=DEFECT, message=message), False


def legible(value):
  """Plain values without what is no text: bytes of file names that are no UTF-8 become escapes such as \\xff."""
  if isinstance(value, str):
    return "".join(_spelled(c) if "\ud800" <= c <= "\udfff" else c for c in value)
  if isinstance(value, Mapping):
    return {legible(key): legible(item) for key, item in value.items()}
  return [legible(item) for item in value] if isinstance(value, list | tuple) else value


def _spelled(surrogate: str) -> str:
  code = ord(surrogate)
  return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def _hash(path: bytes) -> str | None:
  try:
    return provenance.file_sha256(os.fsdecode(path))
  except media.MediaError:
    return None
