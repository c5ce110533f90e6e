"""What the service says when it cannot answer: RFC 9457 problem details with a reason code and a remedy.

No answer ever holds a traceback, a path of this machine or what a client sent; what went wrong inside stands
in the log, under the request id that the client is told.
"""

import contextvars
import math
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

MEDIA_TYPE = "application/problem+json"
# Of the request that is being answered.
request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")

# Code: status, title, what to do. A code stays what it is from version to version.
PROBLEMS: dict[str, tuple[int, str, str]] = {
  # The request.
  "bad_request": (400, "Bad request", "Send the request as /api/v1/docs describes it."),
  "bad_multipart": (400, "Bad form", "Send one file as multipart/form-data, as a browser or curl -F does."),
  "missing_key": (401, "No key", "Send the header `Authorization: Bearer KEY`."),
  "wrong_key": (401, "Wrong key", "Check the key, or ask the operator for a new one."),
  "expired_key": (401, "Expired key", "Ask the operator for a new key."),
  "wrong_scope": (403, "Not allowed", "Use a key with this scope, or ask the operator for one."),
  "forbidden": (403, "Not allowed", "Ask the operator."),
  "not_found": (404, "Not found", "Check the address; /api/v1/docs lists all there are."),
  "unknown_result": (404, "No such result", "Send the result_id of an answer that this key got lately."),
  "unknown_job": (404, "No such job", "Send the id of a job that this key began lately."),
  "method_not_allowed": (405, "Wrong method", "Use a method that the header Allow lists."),
  "not_acceptable": (406, "Not acceptable", "Send the request as /api/v1/docs describes it."),
  "slow_upload": (408, "Upload too slow", "Send it again over a faster connection, or a smaller copy."),
  "in_progress": (409, "Still in progress", "Wait for the first request with this Idempotency-Key to end."),
  "conflict": (409, "Conflict", "Look at the present state, then try again."),
  "too_large": (413, "Too large", "Cut, shrink or compress the file first."),
  "unsupported_media_type": (415, "Wrong content type", "Send what /api/v1/docs describes."),
  "invalid": (422, "Invalid request", "Correct what `errors` names; /api/v1/docs describes all parameters."),
  "missing_file": (422, "No file", "Send the file in the form field that /api/v1/docs names."),
  "unexpected_field": (422, "Unexpected field", "Send one file in one form field and nothing else."),
  "unknown_model": (404, "No such model", "Ask /api/v1/models which there are."),
  "key_reused": (422, "Idempotency-Key reused", "Use another Idempotency-Key for another request."),
  "unknown_folder": (404, "No such folder", "Name a folder that jobs may read, without links."),
  "bad_webhook": (403, "Not allowed", "Give a public https address, or have the operator list it."),
  "too_many_jobs": (429, "Too many jobs", "Wait until one has ended, or cancel one."),
  "rate_limited": (429, "Too many requests", "Wait for the seconds that the header Retry-After tells."),
  "too_many_failures": (
    429,
    "Too many wrong keys",
    "Wait for the seconds that the header Retry-After tells.",
  ),
  # The file.
  "empty_file": (422, "Empty file", "Copy or download it again."),
  "unknown_extension": (415, "Unknown file type", "Give the file its right extension, or convert it."),
  "type_mismatch": (415, "Not what its name says", "Give the file its right extension, or convert it."),
  "wrong_kind": (415, "Wrong kind of file", "Send it to the address of its own kind."),
  "not_media": (415, "Not a media file", "Send a video, a picture or a sound file."),
  "unsupported_type": (415, "Unsupported type", "Convert it to mp4, png or wav first."),
  "unreadable": (422, "Damaged file", "Copy or download it again, or convert it."),
  "no_frames": (422, "Nothing to look at", "Send another copy."),
  "no_sound": (422, "Nothing to listen to", "Send another copy."),
  "over_budget": (413, "Too much inside", "Cut or shrink the file first."),
  "timeout": (422, "Takes too long", "Cut or shrink the file first."),
  "decoder_crash": (422, "Damaged file", "Convert it to mp4 and try again."),
  "changed_while_read": (500, "Internal error", "Send it again."),
  # The service.
  "internal_error": (500, "Internal error", "Try again; if it stays, tell the operator the request_id."),
  "not_ready": (503, "Not ready", "Wait for the seconds that the header Retry-After tells."),
  "busy": (503, "Busy", "Wait for the seconds that the header Retry-After tells."),
  "no_jobs": (422, "No jobs here", "Send it without async."),
}
_CODE_OF_STATUS = {
  400: "bad_request",
  401: "wrong_key",
  403: "forbidden",
  404: "not_found",
  405: "method_not_allowed",
  406: "not_acceptable",
  409: "conflict",
  413: "too_large",
  415: "unsupported_media_type",
  422: "invalid",
  429: "rate_limited",
  503: "busy",
}


class Fault(BaseModel):
  """What is wrong with one part of a request."""

  place: str = Field(description="Where, such as query.frames.")
  message: str


class ProblemDetails(BaseModel):
  """RFC 9457 problem details."""

  type: str = Field(description="urn:deepscan:problem:CODE")
  title: str
  status: int
  detail: str = Field(description="What went wrong, in a sentence.")
  code: str = Field(description="Stable, for programs.")
  remedy: str = Field(description="What to do about it.")
  request_id: str = Field(description="Tell it to the operator.")
  errors: list[Fault] | None = None


class Problem(HTTPException):
  """Ends a request with problem details.

  Args:
    code: one of PROBLEMS.
    detail: what went wrong, in a sentence.
    remedy: what to do about it; None takes the code's.
    status: None takes the code's.
    headers: to send along.
    retry_after_s: seconds for the header Retry-After, rounded up, at least 1.
    errors: what is wrong with single parts of the request.
  """

  def __init__(
    self,
    code: str,
    detail: str,
    *,
    remedy: str | None = None,
    status: int | None = None,
    headers: Mapping[str, str] | None = None,
    retry_after_s: float | None = None,
    errors: list[dict] | None = None,
  ):
    known_status, self.title, known_remedy = PROBLEMS[code]
    headers = dict(headers or {})
    if retry_after_s is not None:
      headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))
    super().__init__(status or known_status, detail=detail, headers=headers)
    self.code, self.errors = code, errors
    self.remedy = known_remedy if remedy is None else remedy

  def body(self) -> dict:
    """The members of the answer."""
    members = {
      "type": f"urn:deepscan:problem:{self.code}",
      "title": self.title,
      "status": self.status_code,
      "detail": self.detail,
      "code": self.code,
      "remedy": self.remedy,
      "request_id": request_id.get(),
    }
    return members if self.errors is None else {**members, "errors": self.errors}

  def response(self) -> Response:
    """The answer."""
    return JSONResponse(
      self.body(), status_code=self.status_code, headers=self.headers, media_type=MEDIA_TYPE
    )


def internal_error() -> Problem:
  """What a client is told of a defect: nothing but where the operator finds it."""
  return Problem("internal_error", "Something failed inside of the service.")


def describe(*codes: str) -> dict[int | str, dict]:
  """`responses` of a route for OpenAPI: the statuses of these codes, and those that every route may give."""
  by_status: dict[int, list[str]] = {}
  for code in (*codes, "bad_request", "invalid", "too_large", "internal_error"):
    by_status.setdefault(PROBLEMS[code][0], []).append(code)
  schema = {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}
  return {
    status: {
      "description": f"{PROBLEMS[same[0]][1]}: {', '.join(dict.fromkeys(same))}",
      "content": {MEDIA_TYPE: schema},
    }
    for status, same in sorted(by_status.items())
  }


# Of routes behind a key.
KEY_PROBLEMS = ("missing_key", "wrong_key", "expired_key", "wrong_scope", "rate_limited", "too_many_failures")


def install(app: FastAPI) -> None:
  """Answers all errors of an app with problem details."""

  async def on_problem(request: Request, error: Problem) -> Response:
    # For the log and the metrics.
    request.state.problem = error.code
    return error.response()

  async def on_http(request: Request, error: HTTPException) -> Response:
    code = _CODE_OF_STATUS.get(error.status_code)
    if code is None:
      code = "internal_error" if error.status_code >= 500 else "bad_request"
    details = {
      404: "There is nothing at this address.",
      405: "This address does not answer this method.",
      400: "The request could not be read.",
    }
    detail = details.get(error.status_code, PROBLEMS[code][1] + ".")
    problem = Problem(code, detail, status=error.status_code, headers=error.headers)
    return await on_problem(request, problem)

  async def on_invalid(request: Request, error: RequestValidationError) -> Response:
    # What was sent is not repeated: it may be a secret.
    faults = [
      {"place": ".".join(str(part) for part in fault["loc"]), "message": str(fault["msg"])}
      for fault in error.errors()
    ]
    places = ", ".join(dict.fromkeys(fault["place"] for fault in faults))
    problem = Problem("invalid", f"The request is not valid at {places}.", errors=faults)
    return await on_problem(request, problem)

  app.add_exception_handler(Problem, on_problem)
  app.add_exception_handler(HTTPException, on_http)
  app.add_exception_handler(RequestValidationError, on_invalid)
