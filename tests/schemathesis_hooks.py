"""How schemathesis makes requests for the service: what its schema cannot say is added here.

Random bytes are hardly ever a picture, so a file that is sent as it should be gets the beginning and the name
of one of its kind. Nor is a random text a folder, so some jobs are given the one that is there. The same
Idempotency-Key is drawn for several requests, and refused but for the first. DELETE cancels a job and forgets
nothing: what was found can be read afterwards.
"""

import schemathesis
from schemathesis.transport.requests import REQUESTS_TRANSPORT, multipart_serializer

FILES = {
  "image": ("a.png", b"\x89PNG\r\n\x1a\n".ljust(32, b"\0")),
  "audio": ("a.wav", b"RIFF\x24\x00\x00\x00WAVEfmt ".ljust(32, b"\0")),
  "video": ("a.mp4", b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isomiso2".ljust(32, b"\0")),
}


@REQUESTS_TRANSPORT.serializer("multipart/form-data")
def send_form(context, value):
  """The form of a request."""
  kind = context.case.path.rsplit("/", 1)[-1]
  if isinstance(value, dict) and set(value) == {kind} and isinstance(value[kind], str | bytes):
    name, beginning = FILES[kind]
    data = value[kind].encode(errors="surrogatepass") if isinstance(value[kind], str) else value[kind]
    return {"files": [(kind, (name, beginning + data))]}
  return multipart_serializer(context, value)


@schemathesis.hook
def before_call(context, case, kwargs):
  """Called before each request; a valid one for a job gets the folder that there is, every other time."""
  del context, kwargs
  is_valid = case.meta is None or case.meta.generation.mode.is_positive
  is_job = case.path == "/api/v1/batch/process" and isinstance(case.body, dict)
  if is_valid and is_job and len(str(case.body.get("directory", ""))) % 2:
    case.body["directory"] = "."


@schemathesis.hook
def filter_failure(context, failure, case, response):
  """Called with each failure; False says that it is none."""
  del context
  name = type(failure).__name__
  reused = name == "RejectedPositiveData" and b'"code":"key_reused"' in response.content
  is_job = case.path == "/api/v1/batch/{job_id}" and b'"state":' in response.content
  cancelled = name == "UseAfterFree" and is_job
  return not (reused or cancelled)
