"""Judges the files of a folder: one process that hands them out, and worker processes that judge.

The first process alone talks to the ledger (jobs.py). It takes leases, renews them, hands each worker
(judging.py) the file to judge and the one after it, and writes what comes back. While a worker judges a file,
the next is being decoded. When one dies, by a crash in a library or because memory ran out, the file that
it judged is charged with the try, the other goes back as if nothing had been, and another worker takes its
place.
Where the first process dies, the workers end by themselves, and the same command goes on by the ledger.
"""

import dataclasses
import hashlib
import json
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from multiprocessing import connection

from deepscan_jax import media, provenance
from deepscan_jax.serve import answers, jobs
from deepscan_jax.serve.jobs import Answered, Job, Lease, Ledger
from deepscan_jax.serve.judging import GAVE_UP, ITEM_S, MOST_TRIES, Judge, NoModelError, Worker, death
from deepscan_jax.stopping import StopRequest
from deepscan_jax.verdict import LIKELY_MANIPULATED
from deepscan_jax.version import __version__

# What `detect` opens (README.md).
VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".mpg")
PICTURES = (".jpg", ".jpeg", ".png", ".webp")
SOUNDS = (".wav", ".mp3", ".flac", ".m4a", ".ogg")
# A worker has the file that it judges, and the next.
AHEAD = 2
# Of workers that die before they can begin: so many in a row end the batch.
_FAILED_STARTS = 3
_LOOK_EVERY_S = 0.5


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
  found = {f".{word.removeprefix('.')}" for word in wanted}
  for word in wanted:
    if not word.removeprefix(".").isalnum() or not word.isascii() or len(word) > 11:
      raise ValueError(f"{word!r} is no file extension; give one such as .mp4, or several: .mp4,.mov.")
  return tuple(sorted(found or (*VIDEOS, *PICTURES, *SOUNDS)))


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
  """Yields each file's path, and whether a run would judge it, as far as dates tell. Changes nothing."""
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
    self._crew: list[Worker] = []
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
        self._crew.append(Worker(self._load))
      if not todo:
        self._look_again_later()

  def _give(self, worker: "Worker") -> None:
    while worker.metadata is not None and len(worker.items) < AHEAD and not self._is_exhausted():
      held = sum(len(other.items) for other in self._crew)
      if self._limit is not None and self.progress.done_here + held >= self._limit:
        return
      lease = self._ledger.claim(self._job.id, self._owner, lease_s=self._lease_s)
      if lease is None:
        self._look_again_later()
        return
      worker.give(lease.item, os.fsdecode(os.path.join(self._directory, lease.path)), lease)

  def _is_exhausted(self) -> bool:
    return time.monotonic() < self._exhausted_until_s

  def _look_again_later(self) -> None:
    # Others hold the rest, or we do.
    self._exhausted_until_s = time.monotonic() + _LOOK_EVERY_S

  def _listen(self, worker: "Worker") -> None:
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

  def _bury(self, worker: "Worker") -> None:
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
      message = death(how, lease.tries)
      name = answers.path_text(lease.path)
      last = lease.tries >= MOST_TRIES
      self._tell(f"{name}: {message} {'It is given up.' if last else 'It will be tried again.'}")
      self._write(lease, answers.unread(lease.path, code=GAVE_UP, message=message), is_last_word=False)
    self._exhausted_until_s = 0.0

  def _beat(self) -> None:
    """Renews our leases until the end."""
    while not self._ended.wait(self._lease_s / 3):
      try:
        self._ledger.heartbeat(self._owner, lease_s=self._lease_s)
      except Exception as error:  # the database may be back in time; if not, the next answer shows it
        self._tell(f"The leases could not be renewed ({type(error).__name__}).")


def _hash(path: bytes) -> str | None:
  try:
    return provenance.file_sha256(os.fsdecode(path))
  except media.MediaError:
    return None
