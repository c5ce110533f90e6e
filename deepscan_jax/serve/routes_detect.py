"""POST /api/v1/detect/video, /image and /audio: one file in, one verdict out; and feedback on it."""

import dataclasses
import json
import time
from typing import Annotated

import anyio
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse, Response

from deepscan_jax import media
from deepscan_jax.serve import idempotency, schemas
from deepscan_jax.serve.auth import require
from deepscan_jax.serve.context import Context
from deepscan_jax.serve.engine import Busy, ModelInfo, UnknownModel
from deepscan_jax.serve.idempotency import IdempotencyKey
from deepscan_jax.serve.keys import DETECT, KeyInfo
from deepscan_jax.serve.places import Places
from deepscan_jax.serve.problems import KEY_PROBLEMS, PROBLEMS, Problem, describe, request_id
from deepscan_jax.serve.results import Question, Results
from deepscan_jax.serve.settings import KINDS
from deepscan_jax.serve.uploads import Received, Upload, extensions
from deepscan_jax.serve.webhooks import LONGEST_URL

FILE_PROBLEMS = (
  "bad_multipart",
  "unsupported_media_type",
  "missing_file",
  "unexpected_field",
  "empty_file",
  "unknown_extension",
  "type_mismatch",
  "wrong_kind",
  "not_media",
  "unsupported_type",
  "unreadable",
  "no_frames",
  "no_sound",
  "over_budget",
  "timeout",
  "decoder_crash",
  "slow_upload",
  "unknown_model",
  "key_reused",
  "in_progress",
  "not_ready",
  "busy",
)
ModelName = Annotated[
  str | None,
  Query(
    pattern=r"^[A-Za-z0-9_.@+-]{1,200}$",
    description="NAME, NAME@VERSION or the beginning of a SHA-256, of /api/v1/models; none: the default.",
  ),
]
_BUSY_AGAIN_S = 5.0


def router(context: Context) -> APIRouter:
  """The routes."""
  routes = APIRouter(prefix="/api/v1", tags=["detect"])
  detection = Detection(context)
  for kind in KINDS:
    _add_detect(routes, context, detection, kind)
  _add_feedback(routes, context)
  return routes


def _add_detect(routes: APIRouter, context: Context, detection: "Detection", kind: str) -> None:
  most_frames = context.settings.max_frames
  usual_frames = min(32, most_frames)
  Frames = Annotated[int, Query(ge=1, le=most_frames, description="How many frames are looked at.")]
  Explain = Annotated[bool, Query(description="Add the report, a page of HTML.")]
  # Described where there is somebody to do it: the router of jobs is made before this one.
  has_jobs = context.later.submit is not None
  Later = Annotated[
    bool,
    Query(alias="async", include_in_schema=has_jobs, description="Answer at once with a job that judges it."),
  ]
  Webhook = Annotated[
    str | None,
    Query(
      max_length=LONGEST_URL,
      include_in_schema=has_jobs,
      description="With async=true: told when the job has ended; https, or a host that the operator lists.",
    ),
  ]
  responses = describe(*KEY_PROBLEMS, *FILE_PROBLEMS)
  responses[200] = {
    "model": schemas.DetectAnswer,
    "headers": {
      "X-Model-Version": {
        "description": "NAME@VERSION of the model that answered.",
        "schema": {"type": "string"},
      }
    },
  }
  endings = ", ".join(f".{extension}" for extension in extensions(kind))
  described = {
    "summary": f"Judge one {_NAMES[kind]}",
    "description": f"At most {context.settings.most_bytes(kind)} bytes; the name ends in {endings}.",
    "openapi_extra": {"requestBody": _form(kind)},
  }

  async def detect(
    request: Request,
    key: KeyInfo,
    idempotency_key: str | None,
    *,
    frames: int = usual_frames,
    explain: bool,
    model: str | None,
    later: bool = False,
    webhook: str | None = None,
  ) -> Response:
    asked = Asked(kind, frames, explain, model, later, webhook)
    return await detection.answer(request, asked, key, idempotency_key)

  if kind != "image":
    responses |= describe(*KEY_PROBLEMS, *FILE_PROBLEMS, "no_jobs", "bad_webhook", "too_many_jobs")
    responses[202] = {"description": "A job was begun; the header Location names it."}
  if kind == "video":

    @routes.post("/detect/video", responses=responses, response_class=JSONResponse, **described)
    async def detect_video(
      request: Request,
      key: Annotated[KeyInfo, Depends(require(DETECT))],
      frames: Frames = usual_frames,
      explain: Explain = False,
      model: ModelName = None,
      later: Later = False,
      webhook_url: Webhook = None,
      idempotency_key: IdempotencyKey = None,
    ):
      return await detect(
        request,
        key,
        idempotency_key,
        frames=frames,
        explain=explain,
        model=model,
        later=later,
        webhook=webhook_url,
      )

  elif kind == "audio":

    @routes.post("/detect/audio", responses=responses, response_class=JSONResponse, **described)
    async def detect_audio(
      request: Request,
      key: Annotated[KeyInfo, Depends(require(DETECT))],
      explain: Explain = False,
      model: ModelName = None,
      later: Later = False,
      webhook_url: Webhook = None,
      idempotency_key: IdempotencyKey = None,
    ):
      return await detect(
        request, key, idempotency_key, explain=explain, model=model, later=later, webhook=webhook_url
      )

  else:

    @routes.post("/detect/image", responses=responses, **described)
    async def detect_image(
      request: Request,
      key: Annotated[KeyInfo, Depends(require(DETECT))],
      explain: Explain = False,
      model: ModelName = None,
      idempotency_key: IdempotencyKey = None,
    ):
      return await detect(request, key, idempotency_key, explain=explain, model=model)


_NAMES = {"video": "video", "image": "picture", "audio": "sound file"}


def _form(kind: str) -> dict:
  schema = {
    "type": "object",
    "required": [kind],
    "properties": {kind: {"type": "string", "format": "binary", "description": "The file, with its name."}},
    "additionalProperties": False,
  }
  return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


def _add_feedback(routes: APIRouter, context: Context) -> None:
  responses = describe(*KEY_PROBLEMS, "unknown_result", "key_reused", "in_progress")

  @routes.post(
    "/feedback",
    status_code=201,
    response_model=schemas.FeedbackReceipt,
    responses=responses,
    tags=["feedback"],
    summary="Say what a judged file really is",
  )
  async def feedback(
    sent: schemas.Feedback,
    key: Annotated[KeyInfo, Depends(require(DETECT))],
    idempotency_key: IdempotencyKey = None,
  ):
    async def keep() -> Response:
      added = await anyio.to_thread.run_sync(
        lambda: context.store.add_feedback(
          sent.result_id, key_id=key.id, label=sent.label, comment=sent.comment
        )
      )
      if added is None:
        raise Problem("unknown_result", "This key has no such result, or it is forgotten.")
      return JSONResponse({"feedback_id": added, "result_id": sent.result_id, "label": sent.label}, 201)

    request = idempotency.fingerprint("feedback", sent.result_id, sent.label, sent.comment)
    return await idempotency.once(context.store, key, idempotency_key, request, keep)


@dataclasses.dataclass(frozen=True)
class Asked:
  """What a request wants to know of its file."""

  kind: str
  frames: int
  explain: bool
  model: str | None
  later: bool
  webhook: str | None = None


class Detection:
  """Answers files, by the engine or from what was answered before."""

  def __init__(self, context: Context):
    self._context, self._results = context, Results(context)
    self._places = Places(
      context.settings.queue,
      context.settings.queue_per_key,
      full="All places are taken.",
      full_of_key="This key has {} files under way.",
      again_s=_BUSY_AGAIN_S,
      gauge=context.metrics.files,
    )
    # Waiting for the engine costs a thread; nobody else's threads are taken for it.
    self._threads = anyio.CapacityLimiter(context.settings.queue)

  async def answer(
    self, request: Request, asked: Asked, key: KeyInfo, idempotency_key: str | None
  ) -> Response:
    """Receives the file of a request and answers it."""
    context = self._context
    if not context.engine.ready:
      raise Problem("not_ready", "The models are being loaded.", retry_after_s=_BUSY_AGAIN_S)
    model = find_model(context.engine.models, asked.model)
    await self._check_later(asked, key, idempotency_key)
    with self._places.take(key.id):
      most = context.settings.most_bytes(asked.kind)
      async with context.uploads.receive(request, kind=asked.kind, most_bytes=most) as received:
        if idempotency_key is None and not asked.later:
          # All of it in one thread: each change of threads costs as much as looking an answer up.
          return await self._in_thread(self._answer_received, received, asked, model, key)
        upload = await self._in_thread(received.upload)
        return await idempotency.once(
          context.store,
          key,
          idempotency_key,
          idempotency.fingerprint(dataclasses.astuple(asked), upload.sha256, upload.name),
          lambda: self._answer(upload, asked, model, key),
        )

  async def _check_later(self, asked: Asked, key: KeyInfo, idempotency_key: str | None) -> None:
    """Refuses a job that cannot be begun before its file is received."""
    if asked.webhook is not None and not asked.later:
      raise Problem("bad_webhook", "A webhook tells the end of a job.", remedy="Send async=true with it.")
    if not asked.later:
      return
    if self._context.later.submit is None:
      raise Problem("no_jobs", "This service runs no jobs.")
    # One that was answered before is answered again, however many jobs there are now.
    if self._context.later.check is not None and idempotency_key is None:
      await anyio.to_thread.run_sync(self._context.later.check, key, asked.model, asked.webhook)

  async def _in_thread(self, function, *arguments):
    return await anyio.to_thread.run_sync(function, *arguments, limiter=self._threads)

  def _answer_received(self, received: Received, asked: Asked, model: ModelInfo, key: KeyInfo) -> Response:
    try:
      return self._answer_now(received.upload(), asked, model, key)
    finally:
      received.remove()

  async def _answer(self, upload: Upload, asked: Asked, model: ModelInfo, key: KeyInfo) -> Response:
    if not asked.later:
      return await self._in_thread(self._answer_now, upload, asked, model, key)
    return await self._context.later.submit(
      upload,
      key=key,
      frames=asked.frames,
      model=asked.model,
      explain=asked.explain,
      webhook=asked.webhook,
    )

  def _answer_now(self, upload: Upload, asked: Asked, model: ModelInfo, key: KeyInfo) -> Response:
    metrics = self._context.metrics
    metrics.upload_bytes.labels(asked.kind).observe(upload.size)
    question = Question(upload.name, upload.extension, asked.frames, asked.explain, key.id)
    found = self._results.find(question, sha256=upload.sha256, model=model.sha256)
    if found is not None:
      upload.check_answer(found[1])
    result_id, answer = found or self._judged(upload, asked, question)
    version = answer["model_version"]
    metrics.results.labels(asked.kind, answer["outcome"], version).inc()
    answer |= {"request_id": request_id.get(), "result_id": result_id, "cached": found is not None}
    body = json.dumps(answer, allow_nan=False).encode()
    return Response(body, media_type="application/json", headers={"X-Model-Version": version})

  def _judged(self, upload: Upload, asked: Asked, question: Question) -> tuple[str, dict]:
    context, started_s = self._context, time.perf_counter()
    try:
      verdict = context.engine.detect(upload.path, frames=asked.frames, model=asked.model)
    except media.MediaError as error:
      raise media_problem(error, upload) from error
    except Busy as error:
      raise Problem("busy", "The models have too much to do.", retry_after_s=error.retry_after_s) from error
    except UnknownModel as error:
      raise _unknown_model(error) from error
    context.metrics.detect_seconds.labels(asked.kind).observe(time.perf_counter() - started_s)
    upload.check_decoded(kind=verdict.file["kind"], container=(verdict.file["media"] or {}).get("container"))
    return self._results.add(question, verdict)


def find_model(models: list[ModelInfo], asked: str | None) -> ModelInfo:
  """The model that a request names.

  Raises:
    Problem: there is none.
  """
  for model in models:
    if asked is None:
      if model.default:
        return model
    elif asked in (model.name, f"{model.name}@{model.version}"):
      return model
  for model in models:
    if asked is not None and len(asked) >= _SHORTEST_HASH and model.sha256.startswith(asked):
      return model
  known = ", ".join(f"{m.name}@{m.version}" for m in models)
  raise _unknown_model(UnknownModel(f"There is no model {asked}; there are {known}."))


_SHORTEST_HASH = 6


def media_problem(error: media.MediaError, upload: Upload) -> Problem:
  """What to say of a file that could not be read; under the name that its sender knows."""
  code = error.reason if error.reason in PROBLEMS else "unreadable"
  return Problem(code, str(error).replace(upload.path.name, upload.name))


def _unknown_model(error: UnknownModel) -> Problem:
  return Problem("unknown_model", str(error))
