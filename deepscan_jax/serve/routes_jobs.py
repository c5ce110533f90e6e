"""POST /api/v1/batch/process, GET and DELETE /api/v1/batch/{id}: folders and long files, judged later.

A job is its key's: to all others it is not there. GET tells how far it is and what was found so far, a page
at a time; DELETE cancels it, which keeps what was found. A webhook (webhooks.py) tells its end. Jobs that
have ended are forgotten after a while.
"""

import contextlib
import dataclasses
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import anyio
from fastapi import APIRouter, Depends, FastAPI, Path, Query
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, create_model

from deepscan_jax.serve import batch, batch_report, confined, idempotency, jobs, webhooks
from deepscan_jax.serve.auth import require
from deepscan_jax.serve.context import Context
from deepscan_jax.serve.engine import ModelInfo
from deepscan_jax.serve.idempotency import IdempotencyKey
from deepscan_jax.serve.job_runner import JobRunner, Spool, listed
from deepscan_jax.serve.jobs import Answered, Job, Ledger
from deepscan_jax.serve.keys import BATCH, DETECT, KeyInfo
from deepscan_jax.serve.problems import KEY_PROBLEMS, Problem, describe
from deepscan_jax.serve.results import EXPLANATION
from deepscan_jax.serve.routes_detect import find_model
from deepscan_jax.serve.uploads import Upload

MOST_RESULTS, USUAL_RESULTS = 200, 50
_AGAIN_S = 5.0


_EXTENSIONS = r"^\.?[A-Za-z0-9]{1,10}(,\.?[A-Za-z0-9]{1,10})*$"


class _Strict(BaseModel):
  model_config = ConfigDict(extra="forbid")


class BatchRequest(_Strict):
  """A folder to judge."""

  directory: Annotated[str, Field(min_length=1, max_length=4096)] = Field(
    description="A folder below one of the service's roots; relative where there is one root. No links."
  )
  file_extension: Annotated[str | None, Field(pattern=_EXTENSIONS, max_length=200)] = Field(
    default=None, description="Such as .mp4, or several: .mp4,.mov. Without it all that can be judged."
  )
  recursive: bool = Field(default=True, description="Look into folders in the folder.")
  frames: int
  model: Annotated[str | None, Field(pattern=r"^[A-Za-z0-9_.@+-]{1,200}$")] = Field(
    default=None, description="As of the detect routes. All files are judged by the one that is loaded now."
  )
  webhook_url: Annotated[str | None, Field(max_length=webhooks.LONGEST_URL)] = Field(
    default=None, description="Told when the job has ended; https, or a host that the operator lists."
  )


class JobAccepted(_Strict):
  """A job that was begun."""

  id: str
  state: Literal[jobs.JOB_STATES]
  url: str = Field(description="Where to ask for its progress, and to cancel it.")
  webhook_secret: str | None = Field(
    description="What this key's webhooks are signed with, in the header X-Deepscan-Signature: "
    "t=SECONDS,v1=HMAC-SHA256 of t, a full stop and the body. Null without a webhook."
  )


class FileProblem(_Strict):
  """Why a file has no verdict."""

  code: str
  message: str


class FileResult(_Strict):
  """What was found of one file: a verdict or an error."""

  path: str = Field(description="Below the folder; of an upload its name.")
  path_base64: str | None = Field(default=None, description="The bytes of a path that is no UTF-8.")
  tries: int
  outcome: str | None
  deepfake_probability: float | None
  result_id: str | None = Field(default=None, description="What POST /api/v1/feedback names it by.")
  verdict: dict[str, Any] | None = Field(description="As of the detect routes.")
  error: FileProblem | None


class JobStatus(_Strict):
  """How far a job is, and a page of what was found."""

  id: str
  state: Literal[jobs.JOB_STATES]
  problem: FileProblem | None = Field(description="Why it failed as a whole.")
  created_at: str
  finished_at: str | None
  model_version: str
  files: int = Field(description="That are known so far; all, once the state is not `listing`.")
  waiting: int
  running: int
  judged: int
  without_verdict: int
  cancelled: int
  outcomes: dict[str, int] = Field(description="Of the answered files, or the code of what is in its place.")
  seconds_left: float | None
  webhook: Literal["waiting", "told", "gave_up"] | None
  results: list[FileResult] = Field(description="In the order of the files; more may come in between.")
  next_after: int | None = Field(description="`after` of the next page; null on the last.")


JobId = Annotated[str, Path(pattern="^[0-9a-f]{32}$", description="Of a job of this key.")]


def router(context: Context) -> APIRouter:
  """The routes; what works on the jobs starts and ends with the app."""
  service = Jobs(context)
  most = context.settings.max_frames
  frames = Annotated[int, Field(ge=1, le=most, description="How many frames of a video are looked at.")]
  Asked = create_model(
    "BatchRequest", __base__=BatchRequest, __doc__=BatchRequest.__doc__, frames=(frames, min(32, most))
  )
  routes = APIRouter(prefix="/api/v1", tags=["batch"], lifespan=service.lifespan)
  context.later.submit, context.later.check = service.submit, service.check
  accepted = {202: {"model": JobAccepted, "headers": {"Location": _LOCATION}}}

  @routes.post(
    "/batch/process",
    status_code=202,
    response_model=JobAccepted,
    responses=describe(*KEY_PROBLEMS, *_PROBLEMS, "key_reused", "in_progress") | accepted,
    summary="Judge the files of a folder",
  )
  async def process(
    asked: Asked,
    key: Annotated[KeyInfo, Depends(require(BATCH))],
    idempotency_key: IdempotencyKey = None,
  ):
    async def begin() -> Response:
      return await anyio.to_thread.run_sync(service.begin, asked, key)

    request = idempotency.fingerprint("batch", asked.model_dump_json())
    return await idempotency.once(context.store, key, idempotency_key, request, begin)

  # Before the address of a job, which would take "process" for a wrong id.
  _refuse_others(routes, "/batch/process", allowed=("POST",))

  @routes.get(
    "/batch/{job_id}",
    response_model=JobStatus,
    responses=describe(*KEY_PROBLEMS, "unknown_job"),
    summary="How far a job is, and what was found",
  )
  def status(
    job_id: JobId,
    key: Annotated[KeyInfo, Depends(require(BATCH, DETECT, counted=False))],
    after: Annotated[int, Query(ge=0, le=2**53, description="`next_after` of the page before.")] = 0,
    limit: Annotated[int, Query(ge=0, le=MOST_RESULTS, description="Most results.")] = USUAL_RESULTS,
  ):
    return service.status(job_id, key, after=after, limit=limit)

  @routes.delete(
    "/batch/{job_id}",
    response_model=JobStatus,
    responses=describe(*KEY_PROBLEMS, "unknown_job"),
    summary="Cancel a job",
  )
  def cancel(job_id: JobId, key: Annotated[KeyInfo, Depends(require(BATCH, DETECT, counted=False))]):
    service.cancel(job_id, key)
    return service.status(job_id, key, after=0, limit=0)

  _refuse_others(routes, "/batch/{job_id}", allowed=("DELETE", "GET"))
  return routes


_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE")


def _refuse_others(routes: APIRouter, path: str, *, allowed: tuple[str, ...]) -> None:
  """Answers all other methods of an address, and says which there are: of two routes, each knows its own."""
  others = [method for method in _METHODS if method not in allowed]

  @routes.api_route(path, methods=others, include_in_schema=False)
  def refuse():
    raise Problem(
      "method_not_allowed",
      "This address does not answer this method.",
      headers={"Allow": ", ".join(allowed)},
    )


_PROBLEMS = ("unknown_folder", "bad_webhook", "too_many_jobs", "unknown_model", "not_ready")
_LOCATION = {"description": "Where to ask for its progress.", "schema": {"type": "string"}}


class Jobs:
  """What the routes do.

  Args:
    context: of the service.
  """

  def __init__(self, context: Context):
    self._context = context
    self._ledger = Ledger(context.database)
    self._ledger.create_tables()
    context.metrics.watch(self._ledger.stats)
    self._spool = Spool(context.settings.temp_dir)

  @contextlib.asynccontextmanager
  async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
    """Works on the jobs while the app runs; its leases are given back at the end."""
    del app
    runner = await anyio.to_thread.run_sync(JobRunner, self._context, self._spool)
    runner.start()
    try:
      yield
    finally:
      await anyio.to_thread.run_sync(runner.close)

  def begin(self, asked: BatchRequest, key: KeyInfo) -> Response:
    """Begins a job of a folder."""
    settings = self._context.settings
    model = self._check(key, asked.model)
    wanted = batch.extensions([asked.file_extension or ""])
    try:
      with confined.opened_folder(settings.roots, asked.directory) as folder:
        directory = folder.path
    except confined.OutsideError:
      raise Problem("unknown_folder", "There is no such folder that jobs may read.") from None
    job = self._ledger.open_job(
      settings={
        **_judged_by(model, asked.frames),
        "extensions": list(wanted),
        "recursive": asked.recursive,
      },
      directory=directory,
      owner=key.id,
      state=jobs.LISTING,
      webhook=self._webhook(asked.webhook_url),
    )
    return self._accepted(job)

  def check(self, key: KeyInfo, model: str | None, webhook: str | None) -> None:
    """Raises what `submit` would, of what does not depend on the file."""
    self._check(key, model)
    self._webhook(webhook)

  async def submit(
    self,
    upload: Upload,
    *,
    key: KeyInfo,
    frames: int,
    model: str | None,
    explain: bool = False,
    webhook: str | None = None,
  ) -> Response:
    """Begins a job of a received file, which is moved to where it waits for it."""
    return await anyio.to_thread.run_sync(self._submit, upload, key, frames, model, explain, webhook)

  def _submit(
    self, upload: Upload, key: KeyInfo, frames: int, model: str | None, explain: bool, webhook: str | None
  ) -> Response:
    found, webhook = self._check(key, model), self._webhook(webhook)
    name = self._spool.take(upload.path)
    sent = {
      "name": upload.name,
      "extension": upload.extension,
      "kind": upload.kind,
      "size": upload.size,
      "sha256": upload.sha256,
    }
    try:
      job = self._ledger.open_job(
        settings={**_judged_by(found, frames), "upload": sent, "explain": explain},
        directory=None,
        owner=key.id,
        state=jobs.LISTING,
        node=self._spool.node,
        webhook=webhook,
        # Its one file is added here; until then nobody else looks for any.
        leased_s=jobs.LEASE_S,
      )
      for _ in self._ledger.add(job.id, [(name, str(upload.size))]):
        pass
      self._ledger.listed(job.id)
    except BaseException:
      self._spool.remove(name)
      raise
    return self._accepted(self._ledger.job(job.id))

  def status(self, job_id: str, key: KeyInfo, *, after: int, limit: int) -> JobStatus:
    """How far a job is."""
    job = self._job(job_id, key)
    counts = self._ledger.counts(job.id)
    found = list(self._ledger.answers(job.id, after=after, limit=limit + 1)) if limit else []
    page, more = found[:limit], len(found) > limit
    answered = sum(counts[state] for state in jobs.ANSWERED)
    left = counts[jobs.QUEUED] + counts[jobs.RUNNING]
    seconds = self._ledger.now() - job.created_at
    running = job.state == jobs.RUNNING and answered
    model = job.settings["model"]
    return JobStatus(
      id=job.id,
      state=job.state,
      problem=job.problem,
      created_at=batch_report.stamp(job.created_at),
      finished_at=None if job.finished_at is None else batch_report.stamp(job.finished_at),
      model_version=f"{model['name']}@{model['version']}",
      files=sum(counts.values()),
      waiting=counts[jobs.QUEUED],
      running=counts[jobs.RUNNING],
      judged=counts[jobs.DONE],
      without_verdict=counts[jobs.FAILED],
      cancelled=counts[jobs.CANCELLED],
      outcomes=self._ledger.outcomes(job.id),
      seconds_left=round(left * seconds / answered, 1) if running else None,
      webhook=job.webhook_state,
      results=[_result(job, self._explained(job, answered)) for answered in page],
      next_after=page[-1].item if page and more else None,
    )

  def _explained(self, job: Job, answered: Answered) -> Answered:
    """An answer with its report and evidence, as long as these are kept."""
    result_id = answered.answer.get("result_id")
    if not job.settings.get("explain") or not result_id:
      return answered
    kept = self._context.store.result(result_id) or {}
    explanation = {name: kept.get(name) or answered.answer.get(name) for name in EXPLANATION}
    return dataclasses.replace(answered, answer={**answered.answer, **explanation})

  def cancel(self, job_id: str, key: KeyInfo) -> None:
    """Cancels a job; one that has ended stays as it is."""
    job = self._job(job_id, key)
    if self._ledger.cancel(job.id) and "upload" in job.settings:
      for path in self._ledger.paths(job.id):
        self._spool.remove(path)

  def _job(self, job_id: str, key: KeyInfo) -> Job:
    job = self._ledger.job(job_id, owner=key.id)
    if job is None:
      raise Problem("unknown_job", "This key has no such job, or it is forgotten.")
    return job

  def _check(self, key: KeyInfo, model: str | None) -> ModelInfo:
    context = self._context
    if context.phase.draining:
      raise Problem("not_ready", "This service is ending.", retry_after_s=_AGAIN_S)
    if not context.engine.ready:
      raise Problem("not_ready", "The models are being loaded.", retry_after_s=_AGAIN_S)
    if self._ledger.open_jobs_of(key.id) >= context.settings.jobs_per_key:
      raise Problem("too_many_jobs", f"This key has {context.settings.jobs_per_key} jobs under way.")
    return find_model(context.engine.models, model)

  def _webhook(self, url: str | None) -> str | None:
    if url is None:
      return None
    try:
      webhooks.target(url, allowed=listed(self._context.settings.webhook_hosts))
    except webhooks.RefusedError as error:
      raise Problem("bad_webhook", str(error)) from error
    return url

  def _accepted(self, job: Job) -> Response:
    url = f"/api/v1/batch/{job.id}"
    secret = webhooks.secret_of(self._context.settings.secret_key, job.owner) if job.webhook else None
    body = JobAccepted(id=job.id, state=job.state, url=url, webhook_secret=secret)
    return JSONResponse(body.model_dump(), status_code=202, headers={"Location": url})


def _judged_by(model: ModelInfo, frames: int) -> dict:
  return {
    "model": {"name": model.name, "version": model.version, "sha256": model.sha256},
    "frames": frames,
  }


def _result(job: Job, answered: Answered) -> FileResult:
  answer, upload = dict(answered.answer), job.settings.get("upload")
  error, result_id = answer.get("error"), answer.pop("result_id", None)
  return FileResult(
    **({"path": upload["name"]} if upload else batch_report.names(answered.path)),
    tries=answered.tries,
    outcome=answer.get("outcome"),
    deepfake_probability=answer.get("deepfake_probability"),
    result_id=result_id,
    verdict=None if error else answer,
    error=error,
  )
