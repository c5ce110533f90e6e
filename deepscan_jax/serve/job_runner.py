"""Works on the service's jobs: finds their files, judges them, and tells their owners when they have ended.

Every process of the service does so, in threads, over the ledger that they share (jobs.py). Files of a job's
folder are opened as confined.py does. Uploaded files that are judged later lie in a private folder of this
machine until they are: a job of theirs belongs to the node whose folder it is.
"""

import contextlib
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from deepscan_jax import media, provenance
from deepscan_jax.serve import answers, confined, jobs, webhooks
from deepscan_jax.serve.context import Context
from deepscan_jax.serve.engine import Busy, UnknownModel
from deepscan_jax.serve.jobs import Job, Lease, Ledger
from deepscan_jax.serve.judging import DEFECT, PASSING
from deepscan_jax.serve.problems import Problem
from deepscan_jax.serve.results import EXPLANATION, Question, Results
from deepscan_jax.serve.uploads import Upload

FOLDER = "deepscan-jobs"
POLL_S = 0.5
# A node that was not heard of for so long has lost its uploads.
NODE_LOST_S = 600.0
_CLEAN_EVERY_S = 60.0
# What is received now may not have its job yet.
_ORPHAN_S = 300.0
_LONGEST_BUSY_S = 5.0
_FILES_IN_STEP = 1000
# Webhooks that are told at once.
_CALLS = 3

logger = logging.getLogger(__name__)


class Spool:
  """The private folder of uploads that wait for their job.

  Args:
    temp_dir: where to make it. Processes that are given the same one are one node.
  """

  def __init__(self, temp_dir: Path):
    self.path = temp_dir / f"{FOLDER}-{os.getuid()}"
    self.path.mkdir(mode=0o700, exist_ok=True)
    state = self.path.lstat()
    if state.st_uid != os.getuid() or state.st_mode & 0o077 or self.path.is_symlink():
      raise ValueError(f"{self.path} is not a private folder of this user; remove it.")
    self.node = self._node()

  def take(self, upload: Path) -> bytes:
    """Moves a file here; returns its name."""
    name = f"{secrets.token_hex(16)}{upload.suffix}"
    upload.rename(self.path / name)
    return os.fsencode(name)

  def place(self, name: bytes) -> Path:
    """Where a file lies."""
    return self.path / os.fsdecode(os.path.basename(name))

  def remove(self, name: bytes) -> None:
    """Deletes a file; none is fine."""
    self.place(name).unlink(missing_ok=True)

  def clean(self, ledger: Ledger) -> int:
    """Deletes files that no open job needs; returns how many."""
    old = [
      os.fsencode(path.name)
      for path in self.path.iterdir()
      if path.name != "node" and path.lstat().st_mtime < time.time() - _ORPHAN_S
    ]
    gone = set(old) - ledger.uploads_of(self.node, old)
    for name in gone:
      self.remove(name)
    return len(gone)

  def _node(self) -> str:
    path = self.path / "node"
    part = path.with_name(f"{secrets.token_hex(8)}.part")
    part.write_text(secrets.token_hex(16), encoding="ascii")
    with contextlib.suppress(FileExistsError):
      os.link(part, path)
    part.unlink()
    return path.read_text(encoding="ascii")


class JobRunner:
  """The threads of one process of the service.

  Args:
    context: of the service.
    spool: of this machine.
    lease_s: of the leases, see jobs.
    pauses_s: between tries of a webhook.
    poll_s: how often to look for work.
  """

  def __init__(
    self,
    context: Context,
    spool: Spool,
    *,
    lease_s: float = jobs.LEASE_S,
    pauses_s: tuple[float, ...] = webhooks.PAUSES_S,
    poll_s: float = POLL_S,
  ):
    self._context, self._spool = context, spool
    self._lease_s, self._pauses_s, self._poll_s = lease_s, pauses_s, poll_s
    self._ledger, self._results = Ledger(context.database), Results(context)
    self._ledger.create_tables()
    self._owner = jobs.new_owner()
    self._stopping = threading.Event()
    self._threads: list[threading.Thread] = []
    self._turn = ""

  def start(self) -> None:
    """Starts the threads."""
    work = [self._judge_next] * self._context.settings.batch_workers
    # One receiver that is slow to answer holds up no other.
    calls = [self._call_next] * _CALLS
    for number, step in enumerate((*work, self._list_next, *calls, self._clean)):
      every = _CLEAN_EVERY_S if step == self._clean else self._poll_s
      self._threads.append(threading.Thread(target=self._repeat, args=(step, every), name=f"jobs-{number}"))
    self._threads.append(threading.Thread(target=self._repeat, args=(self._beat, self._lease_s / 3)))
    for thread in self._threads:
      # A file that is being judged is no reason to stay.
      thread.daemon = True
      thread.start()

  def close(self, *, wait_s: float = 2.0) -> int:
    """Takes no more work, and gives back what is not done in so many seconds; returns how many files."""
    self._stopping.set()
    until = time.monotonic() + wait_s
    for thread in self._threads:
      thread.join(max(0.0, until - time.monotonic()))
    return self._ledger.release_all(self._owner)

  def _repeat(self, step, every_s: float) -> None:
    """Calls a step until the end: at once again where it returns true, else after a while."""
    while not self._stopping.is_set():
      try:
        if step():
          continue
      except Exception:
        # The database may be back in a moment; a thread that ends would never be missed.
        logger.exception("A step of the jobs failed.")
      self._stopping.wait(every_s)

  # Judging

  def _judge_next(self) -> bool:
    if not self._context.engine.ready:
      return False
    running = self._ledger.jobs(jobs.RUNNING, node=self._spool.node)
    # In turn, so that a job of one file does not wait for one of a million.
    later = [job for job in running if job.id > self._turn]
    for job in sorted(later, key=lambda job: job.id) + sorted(
      (job for job in running if job.id <= self._turn), key=lambda job: job.id
    ):
      lease = self._ledger.claim(job.id, self._owner, lease_s=self._lease_s)
      if lease is not None:
        self._turn = job.id
        self._judge(job, lease)
        return True
      self._end(job)
    return False

  def _judge(self, job: Job, lease: Lease) -> None:
    try:
      with self._opened(job, lease.path) as (path, name):
        answer = answers.legible(self._found_or_judged(job, lease, path, name))
    except Busy as error:
      self._ledger.release(lease)
      self._stopping.wait(min(error.retry_after_s, _LONGEST_BUSY_S))
      return
    except media.MediaError as error:
      name = job.settings["upload"]["name"] if "upload" in job.settings else _base(lease.path)
      # The decoder knows the file by the name under which it was opened.
      answer = _error(name, error.reason, _renamed(str(error), os.path.basename(path), name))
      if error.reason in PASSING:
        self._failed(job, lease, answer)
        return
    except confined.OutsideError:
      answer = _error(
        _base(lease.path), "missing_file", "There is no such file any more, or a link is in its place."
      )
    except UnknownModel:
      answer = _error(
        _base(lease.path), "unknown_model", "The model that the job began with is not loaded here."
      )
    except Problem as problem:
      answer = _error(job.settings["upload"]["name"], problem.code, str(problem.detail))
    except Exception:
      logger.exception("A file of a job could not be judged.")
      message = "A defect of the service kept the file from being judged."
      self._failed(job, lease, _error(_base(lease.path), DEFECT, message))
      return
    if self._ledger.finish(lease, answer):
      self._count(answer)
      self._end(job)

  def _found_or_judged(self, job: Job, lease: Lease, path: str, name: str) -> dict:
    """The answer for a file, which may have been judged before, for this job's owner or whoever shares."""
    upload, model = job.settings.get("upload"), job.settings["model"]["sha256"]
    question = Question(
      name,
      os.path.splitext(answers.path_text(lease.path))[1].removeprefix(".").lower(),
      job.settings["frames"],
      job.settings.get("explain", False),
      job.owner,
    )
    found = None
    if self._results.are_kept:
      sha256 = upload["sha256"] if upload else provenance.file_sha256(path)
      found = self._results.find(question, sha256=sha256, model=model)
    if found is not None:
      if upload:
        _as_sent(upload).check_answer(found[1])
    else:
      verdict = self._context.engine.detect(path, frames=question.frames, model=model)
      if upload:
        _as_sent(upload).check_decoded(
          kind=verdict.file["kind"], container=(verdict.file.get("media") or {}).get("container")
        )
      found = self._results.add(question, verdict)
    result_id, answer = found
    if self._results.are_kept:
      # They are large, and kept once: whoever asks for the job gets them from there.
      answer = {**answer, **dict.fromkeys(EXPLANATION)}
    return {**answer, "result_id": result_id}

  def _failed(self, job: Job, lease: Lease, answer: dict) -> None:
    if self._ledger.fail(lease, answer) == jobs.FAILED:
      self._count(answer)
      self._end(job)

  def _count(self, answer: dict) -> None:
    outcome = answer["error"]["code"] if answer.get("error") else answer["outcome"]
    self._context.metrics.job_files.labels(outcome).inc()

  @contextlib.contextmanager
  def _opened(self, job: Job, path: bytes) -> Iterator[tuple[str, str]]:
    """A path to open a file by, and the name that its owner knows it by."""
    if "upload" in job.settings:
      yield str(self._spool.place(path)), job.settings["upload"]["name"]
      return
    with (
      confined.opened_folder(self._context.settings.roots, job.directory) as folder,
      folder.opened_file(path) as opened,
    ):
      yield opened, _base(path)

  def _end(self, job: Job) -> None:
    """Ends a job where nothing is left of it; what was uploaded for it goes."""
    if self._ledger.complete(job.id):
      logger.info("A job has ended.", extra={"job": job.id})
      if "upload" in job.settings:
        for path in self._ledger.paths(job.id):
          self._spool.remove(path)

  # Listing

  def _list_next(self) -> bool:
    job = self._ledger.claim_listing(lease_s=self._lease_s)
    if job is None:
      return False
    most, total = self._context.settings.batch_files, 0
    settings = job.settings
    step: list[tuple[bytes, str]] = []
    if "upload" in settings:
      message = "The server that received this file stopped before it had its place; send it again."
      self._ledger.refuse(job.id, code="upload_lost", message=message)
      return True
    try:
      with confined.opened_folder(self._context.settings.roots, job.directory) as folder:
        for file in folder.files(settings["extensions"], recursive=settings["recursive"]):
          if total == most:
            message = f"The folder holds more than {most} such files; name folders in it."
            self._ledger.refuse(job.id, code="too_many_files", message=message)
            return True
          total += 1
          step.append(file)
          if len(step) == _FILES_IN_STEP and not self._add(job, step):
            return True
        if not self._add(job, step):
          return True
    except confined.OutsideError:
      self._ledger.refuse(job.id, code="unknown_folder", message="The folder is not there any more.")
      return True
    if self._ledger.listed(job.id):
      logger.info("The files of a job are known.", extra={"job": job.id, "files": total})
      self._end(job)
    return True

  def _add(self, job: Job, step: list[tuple[bytes, str]]) -> bool:
    """Adds files; False where the job has ended, or this process is about to."""
    for _ in self._ledger.add(job.id, step):
      pass  # Of a listing that was broken off; nothing is answered before a job runs.
    step.clear()
    goes_on = self._ledger.renew_listing(job.id, lease_s=self._lease_s)
    if not goes_on:
      self._ledger.cancel_items(job.id)
    return goes_on and not self._stopping.is_set()

  # Webhooks

  def _call_next(self) -> bool:
    job = self._ledger.claim_webhook()
    if job is None:
      return False
    settings = self._context.settings
    try:
      webhooks.deliver(
        job.webhook,
        message(job, self._ledger.counts(job.id)),
        secret=webhooks.secret_of(settings.secret_key, job.owner),
        delivery=job.id,
        allowed=listed(settings.webhook_hosts),
      )
    except (webhooks.RefusedError, webhooks.UndeliveredError) as error:
      last = job.webhook_tries > len(self._pauses_s) or getattr(error, "for_good", True)
      logger.warning("A webhook was not delivered.", extra={"job": job.id, "reason": str(error)})
      if last:
        self._ledger.webhook_told(job.id, state="gave_up")
      else:
        pause = self._pauses_s[job.webhook_tries - 1]
        # Not all at the same moment, when a receiver is back.
        self._ledger.webhook_told(
          job.id, state="waiting", again_s=pause * (0.75 + secrets.randbelow(500) / 1000)
        )
    else:
      self._ledger.webhook_told(job.id, state="told")
    return True

  # Keeping

  def _beat(self) -> bool:
    self._ledger.heartbeat(self._owner, lease_s=self._lease_s)
    self._ledger.seen_alive(self._spool.node)
    return False

  def _clean(self) -> bool:
    for job in self._ledger.jobs(jobs.RUNNING, node=self._spool.node):
      self._ledger.take_back_dead(job.id)
    self._ledger.give_up_lost_nodes(NODE_LOST_S)
    self._ledger.forget_older(self._context.settings.jobs_kept_h * 3600)
    self._spool.clean(self._ledger)
    return False


def message(job: Job, counts: dict[str, int]) -> dict:
  """What a webhook tells."""
  return {
    "event": "job.ended",
    "id": job.id,
    "state": job.state,
    "problem": job.problem,
    "files": sum(counts.values()),
    "judged": counts[jobs.DONE],
    "without_verdict": counts[jobs.FAILED],
    "url": f"/api/v1/batch/{job.id}",
  }


def listed(hosts: str) -> tuple[str, ...]:
  """Names of a comma list."""
  return tuple(host.strip().lower() for host in hosts.split(",") if host.strip())


def _as_sent(facts: dict) -> Upload:
  return Upload(**{**facts, "path": Path(facts["name"])})


def _renamed(told: str, opened: str, name: str) -> str:
  """A message about a file by the name that its owner knows."""
  if len(opened) > 16:
    return told.replace(opened, name)
  # The number of an open file: elsewhere in the sentence it may be another number.
  return name + told.removeprefix(opened) if told.startswith(opened) else told


def _base(path: bytes) -> str:
  return answers.path_text(path.rpartition(b"/")[2])


def _error(name: str, code: str, told: str) -> dict:
  return answers.unread(name.encode("utf-8", "replace"), code=code, message=told)
