"""Logs of the service: a line of JSON each, with the id of the request, and no key in it whatever happens."""

import datetime
import json
import logging
import re
import sys
from collections.abc import Iterable
from typing import TextIO

from deepscan_jax.serve.problems import request_id

REDACTED = "[redacted]"
# Keys of ours wherever they turn up, and whatever stands behind the word Bearer; signs of JSON end it.
_SECRETS = re.compile(
  r"dfk_[\w-]{8,}|(?<=bearer )[^\s\"'\\&]+|(?<=bearer%20)[^\s\"'\\&]+", re.IGNORECASE | re.ASCII
)
# What every log record has; anything else was given as `extra`.
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}


class JsonFormatter(logging.Formatter):
  """Formats records as JSON objects {time, level, logger, message, request_id, ...}.

  Args:
    secrets: texts that never show.
  """

  def __init__(self, secrets: Iterable[str] = ()):
    super().__init__()
    parts = [re.escape(secret) for secret in secrets if secret]
    self._secrets = re.compile("|".join(parts)) if parts else None

  def format(self, record: logging.LogRecord) -> str:
    """One line."""
    moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
    line = {
      "time": moment.isoformat(timespec="milliseconds"),
      "level": record.levelname.lower(),
      "logger": record.name,
      "message": record.getMessage(),
    }
    if request_id.get():
      line["request_id"] = request_id.get()
    line |= {key: value for key, value in vars(record).items() if key not in _OWN}
    if record.exc_info:
      line["traceback"] = self.formatException(record.exc_info)
    return self.redacted(json.dumps(line, default=str, ensure_ascii=True))

  def redacted(self, text: str) -> str:
    """The text without keys."""
    text = _SECRETS.sub(REDACTED, text)
    return self._secrets.sub(REDACTED, text) if self._secrets else text


def set_up(*, secrets: Iterable[str] = (), stream: TextIO | None = None, level: int = logging.INFO) -> None:
  """Sends all logs of this process to a stream, stderr if none is given, as lines of JSON."""
  handler = logging.StreamHandler(stream or sys.stderr)
  handler.setFormatter(JsonFormatter(secrets))
  logging.basicConfig(handlers=[handler], level=level, force=True)
  for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
    logger = logging.getLogger(name)
    logger.handlers, logger.propagate = [], True
  # One line of ours for each request says more than theirs.
  logging.getLogger("uvicorn.access").disabled = True
  for name in ("jax", "absl", "python_multipart", "httpx"):
    logging.getLogger(name).setLevel(logging.WARNING)
