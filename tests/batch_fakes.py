"""Judges that look at bytes, for worker processes of batches; what a file does to them stands in it."""

import functools
import hashlib
import os
import signal
import time
from pathlib import Path

from deepscan_jax import media, verdict
from deepscan_jax.serve import batch, judging
from deepscan_jax.verdict import Reason, Thresholds, Verdict

MODEL = {"name": "fake", "version": "1", "sha256": "ab" * 32}
THRESHOLDS = Thresholds(0.4, 0.7, 0.02)


class ByteJudge:
  """Says the first byte of a file's SHA-256.

  BAD is refused as damaged, CRASH kills the process, CRASHONCE does so the first time, DEFECT raises, HANG
  waits for an hour, CHANGING is still being written, SLOW takes `slow_s`, NONE has no face.

  Args:
    model: what it calls itself.
    seen: a file to which the name of each file is written when its judging begins.
    slow_s: of a SLOW file.
  """

  def __init__(self, *, model: dict = MODEL, seen: str | None = None, slow_s: float = 0.2):
    self.metadata, self._seen, self._slow_s = model, seen, slow_s

  def begin(self, path: str) -> bytes:
    try:
      return Path(path).read_bytes()
    except OSError as error:
      raise media.MediaError(
        "missing_file", f"There is no file {Path(path).name}; check the path."
      ) from error

  def judge(self, path: str, begun: bytes) -> Verdict:
    if self._seen:
      with open(self._seen, "ab") as file:
        file.write(os.fsencode(os.path.basename(path)) + b"\n")
    if begun.startswith(b"CRASHONCE"):
      mark = Path(f"{path}.seen")
      if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGSEGV)
    elif begun.startswith(b"CRASH"):
      os.kill(os.getpid(), signal.SIGSEGV)
    if begun.startswith(b"BAD"):
      raise media.MediaError("truncated", f"{Path(path).name} ends too early.")
    if begun.startswith(b"CHANGING"):
      raise media.MediaError("changed_while_read", f"{Path(path).name} was changed while it was read.")
    if begun.startswith(b"DEFECT"):
      raise RuntimeError("secret details")
    if begun.startswith(b"HANG"):
      time.sleep(3600)
    if begun.startswith(b"SLOW"):
      time.sleep(self._slow_s)
    return answer(path, begun, model=self.metadata)


def answer(path: str, data: bytes, *, model: dict = MODEL) -> Verdict:
  digest = hashlib.sha256(data)
  probability = None if data.startswith(b"NONE") else digest.digest()[0] / 255
  return Verdict(
    outcome=verdict.NOT_APPLICABLE if probability is None else THRESHOLDS.outcome(probability),
    deepfake_probability=probability,
    frame_consistency_score=None,
    reasons=(Reason("no_face", "No face was found."),) if probability is None else (),
    branches={},
    people=(),
    thresholds=THRESHOLDS,
    model=dict(model),
    file={"name": os.path.basename(path), "bytes": len(data), "sha256": digest.hexdigest(), "kind": "video"},
    timings={"total_s": 0.01},
    run={"path": path, "frames": 4},
  )


def load(**settings) -> ByteJudge:
  return ByteJudge(**settings)


def loading(**settings):
  """What `batch.run` takes."""
  return functools.partial(load, **settings)


def no_model() -> ByteJudge:
  raise judging.NoModelError("The model is damaged; fetch it again.")


def die() -> ByteJudge:
  os.kill(os.getpid(), signal.SIGKILL)


def settings(**changes) -> batch.Settings:
  return batch.Settings(**{"model": MODEL, "frames": 4, "extensions": (".mp4",), **changes})
