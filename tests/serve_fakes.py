"""A detector that looks at bytes instead of faces, so that the service around it can be tested in no time."""

import contextlib
import hashlib
import shutil
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from starlette.testclient import TestClient

from deepscan_jax import media, verdict
from deepscan_jax.live import Wanted
from deepscan_jax.serve.app import ROUTERS, make_app
from deepscan_jax.serve.engine import Busy, ModelInfo, UnknownModel
from deepscan_jax.serve.settings import Settings
from deepscan_jax.verdict import BranchVerdict, Evidence, Person, Reason, Sighting, Thresholds, Verdict

THRESHOLDS = Thresholds(0.4, 0.7, 0.02)
MODELS = (
  ModelInfo("fake", "1.0.0", "ab" * 32, None, True, ("crops", "crop_mask"), THRESHOLDS, "# A fake\n"),
  ModelInfo("fake", "2.0.0", "cd" * 32, Path("/models/fake2"), False, ("crops", "crop_mask"), THRESHOLDS),
)
KINDS = {".png": "image", ".jpg": "image", ".jpeg": "image", ".webp": "image"} | {
  suffix: "audio" for suffix in (".wav", ".mp3", ".flac", ".ogg", ".m4a", ".aac")
}
# The least that passes for a file of its kind by its first bytes; what follows is up to the test.
PNG = b"\x89PNG\r\n\x1a\n"
WAV = b"RIFF\x24\x00\x00\x00WAVEfmt "
MP4 = b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isomiso2"
SLOW_S = 0.5
BEGINNINGS = {PNG: ".png", WAV: ".wav", MP4: ".mp4"}


class FakeEngine:
  """In place of engine.Engine. What it says of a file depends on the file's bytes alone.

  The bytes behind the first 32 may begin with a word, as may the file itself: BAD is refused as damaged, BUSY
  finds the queue full, SLOW takes `slow_s`, NONE has no face, DEFECT fails as a program does.

  Attributes:
    calls: path, frames and model of each call of `detect`, in order.
    running, most_running: calls of `detect` that are under way, and how many there ever were at once.
    reloads, closed: how often `reload` and `close` were called.
    clips, clip_s: how often `detect_clip` was called, and seconds that it takes.
  """

  def __init__(self, *, slow_s: float = SLOW_S, ready: bool = True):
    self.ready, self.problem, self.models = ready, None, list(MODELS)
    self.slow_s = slow_s
    self.calls: list[tuple[str, int, str | None]] = []
    self.running = self.most_running = self.reloads = self.closed = self.clips = 0
    self.clip_s = 0.0

  def start(self) -> None:
    self.ready = True

  def reload(self) -> None:
    self.reloads += 1

  def close(self, *, drain_s: float) -> None:
    del drain_s
    self.closed += 1

  def stats(self) -> dict:
    return {"queue": self.running, "detections": len(self.calls)}

  def model(self, asked: str | None) -> ModelInfo:
    for model in self.models:
      names = (f"{model.name}@{model.version}", model.name)
      if (asked is None and model.default) or asked in names or (asked and model.sha256.startswith(asked)):
        return model
    known = ", ".join(f"{m.name}@{m.version}" for m in self.models)
    raise UnknownModel(f"There is no model {asked!r}; there are {known}.")

  def detect(self, path, *, frames: int = 32, model: str | None = None) -> Verdict:
    used, path = self.model(model), Path(path)
    self.calls.append((str(path), frames, model))
    self.running += 1
    self.most_running = max(self.most_running, self.running)
    try:
      return self._detect(path, path.read_bytes(), frames, used)
    finally:
      self.running -= 1

  def detect_clip(self, clip: media.Clip, *, model: str | None = None) -> Verdict:
    """What it says of a clip depends on the clip's first frame; waits for `clip_s` before."""
    used = self.model(model)
    time.sleep(self.clip_s)
    self.clips += 1
    probability = float(clip.frames[0].mean() / 255) if len(clip.frames) else None
    return Verdict(
      outcome=verdict.NOT_APPLICABLE if probability is None else THRESHOLDS.outcome(probability),
      deepfake_probability=probability,
      frame_consistency_score=None,
      reasons=() if probability is not None else (Reason("no_face", "No face was found.", "Give one."),),
      branches={},
      people=() if probability is None else (_person(probability),),
      thresholds=THRESHOLDS,
      model={"name": used.name, "version": used.version, "sha256": used.sha256},
      file={},
      timings={},
    )

  def wanted(self, model: str | None = None, *, window_s: float, frames: int, longest_side: int) -> Wanted:
    self.model(model)
    if not self.ready:
      raise Busy(1.0)
    return Wanted(rate_hz=frames / window_s, sound=False, longest_side=longest_side)

  def _detect(self, path: Path, data: bytes, frames: int, model: ModelInfo) -> Verdict:
    def says(word: bytes) -> bool:
      return data.startswith(word) or data[32:].startswith(word)

    if says(b"BAD"):
      raise media.MediaError("unreadable", f"{path.name} is damaged; copy or download it again.")
    if says(b"BUSY"):
      raise Busy(3.0)
    if says(b"DEFECT"):
      raise RuntimeError("secret details of a defect in /srv/deepscan/engine.py")
    if says(b"SLOW"):
      time.sleep(self.slow_s)
    digest = hashlib.sha256(data).digest()
    # Jobs hand on an open file, which has no name that would say it.
    suffix = path.suffix or next((end for begin, end in BEGINNINGS.items() if data.startswith(begin)), "")
    kind = KINDS.get(suffix, "video")
    probability = None if says(b"NONE") else digest[0] / 255
    return Verdict(
      outcome=verdict.NOT_APPLICABLE if probability is None else THRESHOLDS.outcome(probability),
      deepfake_probability=probability,
      frame_consistency_score=None if probability is None or kind != "video" else digest[1] / 255,
      reasons=(Reason("no_face", "No face was found.", "Give one."),) if probability is None else (),
      branches={"spatial": BranchVerdict(probability, 1.0)},
      people=() if probability is None else (_person(probability),),
      thresholds=THRESHOLDS,
      model={"name": model.name, "version": model.version, "sha256": model.sha256},
      file={
        "name": path.name,
        "bytes": len(data),
        "sha256": digest.hex(),
        "kind": kind,
        "media": {"container": _container(suffix), "duration_s": 2.0, "width": 64, "height": 48},
      },
      timings={"decode_s": 0.01, "model_s": 0.02},
      evidence=() if probability is None else (_evidence(probability),),
      run={"path": str(path), "frames": frames, "model_path": None},
    )


def _container(suffix: str) -> str:
  return {".png": "png", ".wav": "wav", ".mp4": "mov,mp4,m4a,3gp,3g2,mj2"}.get(suffix, suffix[1:])


def _person(probability: float) -> Person:
  return Person(1, probability, (Sighting(0.5, (4.0, 4.0, 40.0, 40.0), probability),), {"size_px": 36.0})


def _evidence(probability: float) -> Evidence:
  crop = np.full((224, 224, 3), 128, np.uint8)
  return Evidence(1, 0.5, crop, np.full((14, 14), 0.5, np.float32), probability)


def png(*, note: bytes = b"") -> bytes:
  """What passes for a picture; note stands behind its first 32 bytes."""
  return PNG.ljust(32, b"\0") + note


def wav(*, note: bytes = b"") -> bytes:
  """What passes for sound, likewise."""
  return WAV.ljust(32, b"\0") + note


def mp4(*, note: bytes = b"") -> bytes:
  """What passes for a video, likewise."""
  return MP4.ljust(32, b"\0") + note


SECRET_KEY = "secret-" + "0123456789abcdef" * 2
API_KEY = "apikey-" + "0123456789abcdef" * 2
METRICS_KEY = "metric-" + "0123456789abcdef" * 2
AUTH = {"Authorization": f"Bearer {API_KEY}"}


def make_settings(folder: Path, **changes) -> Settings:
  """Settings of a service whose files all lie in a folder of the test."""
  temp_dir = folder / "temp"
  temp_dir.mkdir(exist_ok=True)
  facts = {
    "secret_key": SECRET_KEY,
    "api_key": API_KEY,
    "metrics_key": METRICS_KEY,
    "data_dir": folder / "data",
    "temp_dir": temp_dir,
    "requests_per_hour": 10_000,
    "drain_s": 5.0,
  }
  return Settings(**facts | changes)


@contextlib.contextmanager
def service(folder: Path, *, engine: FakeEngine | None = None, routers=ROUTERS, **changes):
  """A client of a service that runs in this process: `client.app.state.context` has its parts."""
  app = make_app(make_settings(folder, **changes), engine or FakeEngine(), routers=routers)
  with TestClient(app, raise_server_exceptions=False, headers=AUTH) as client:
    yield client


def received_files(folder: Path) -> list[Path]:
  """What lies in the service's temporary folder, but for what it marks its folders with."""
  marks = ("lock", "node")
  return [path for path in (folder / "temp").rglob("*") if path.is_file() and path.name not in marks]


@contextlib.contextmanager
def real_server(app):
  """The address of a server in a thread."""
  server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="on"))
  thread = threading.Thread(target=server.run, daemon=True)
  thread.start()
  while not server.started:
    thread.join(0.02)
  try:
    yield server.servers[0].sockets[0].getsockname()[:2]
  finally:
    server.should_exit = True
    thread.join(20)


def self_signed(folder: Path, *options: str) -> tuple[Path, Path]:
  """A certificate and its key, by openssl with these options too; the test is skipped where there is none."""
  openssl = shutil.which("openssl")
  if openssl is None:
    pytest.skip("openssl is not installed.")
  certificate, key = folder / "cert.pem", folder / "key.pem"
  subprocess.run(
    [
      *(openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
      *("-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=media.example.org"),
      *options,
    ],
    check=True,
    capture_output=True,
  )
  return certificate, key
