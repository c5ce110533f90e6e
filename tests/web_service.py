"""The service's page in front of an API that makes up its answers: media, verdicts, keys and refusals."""

import asyncio
import contextlib
import dataclasses
import functools
import json
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import cv2
import fastapi
import media_files
import numpy as np
import scipy.io.wavfile
import uvicorn
import voices
from fastapi.responses import JSONResponse, Response
from PIL import Image
from skimage.data import astronaut

from deepscan_jax import report, verdict
from deepscan_jax.serve import evidence, routes_web
from deepscan_jax.verdict import (
  BranchVerdict,
  Evidence,
  Faces,
  Person,
  Reason,
  Sighting,
  Sound,
  SoundWindow,
  Thresholds,
  Verdict,
)

KEY = "dfk_12345678_0123456789abcdefghijklmnopqrstuvwxyz"
OF_FACES, OF_SOUND = Thresholds(0.4, 0.7, 0.05), Thresholds(0.55, 0.85, 0.05)
MODEL = {"name": "default", "version": "1.0.0", "sha256": "ab" * 32}
CARD = (Path(report.__file__).parent / "weights" / "MODEL_CARD.md").read_text(encoding="utf-8")
WIDTH, HEIGHT, FPS, SECONDS = 640, 360, 10, 8
# The portrait (NASA, public domain) around its face, and the face in it.
_VIEW, _FACE = (slice(0, 250), slice(100, 350)), np.array([75.0, 60.0, 175.0, 175.0])


def large_box(time_s: float) -> np.ndarray:
  """Where the face of person 1 is in the film."""
  x, y = _corner(time_s)
  return 1.3 * _FACE + (x, y, x, y)


def small_box() -> np.ndarray:
  """Where that of person 2 is."""
  return 0.3 * _FACE + (540, 60, 540, 60)


def scene(time_s: float) -> np.ndarray:
  """A frame, uint8 [height, width, 3]: a large portrait that moves, and a small one."""
  wall = np.linspace(120, 70, HEIGHT)[:, None, None] * np.array([0.9, 1.0, 1.1])
  frame = np.ascontiguousarray(np.broadcast_to(wall, (HEIGHT, WIDTH, 3)), np.uint8)
  view = _portrait()
  x, y = _corner(time_s)
  for picture, scale, corner in ((view, 1.3, (x, y)), (view[:, ::-1], 0.3, (540, 60))):
    matrix = np.array([[scale, 0, corner[0]], [0, scale, corner[1]]], np.float64)
    cv2.warpAffine(
      np.ascontiguousarray(picture), matrix, (WIDTH, HEIGHT), frame, borderMode=cv2.BORDER_TRANSPARENT
    )
  return frame


@functools.cache
def _portrait() -> np.ndarray:
  return astronaut()[_VIEW]


def _corner(time_s: float) -> tuple[float, float]:
  return 110 + 50 * np.sin(2 * np.pi * time_s / SECONDS), 20.0


def write_media(folder: Path) -> dict[str, Path]:
  """Writes the files that the tests send, by name."""
  speech = voices.speech(seconds=12, seed=3)
  frames = [scene(i / FPS) for i in range(FPS * SECONDS)]
  paths = {name: folder / name for name in ("interview.mp4", "portrait.jpg", "call.wav", "empty.mp4")}
  sound = np.repeat(speech[: 16_000 * SECONDS], 3)
  fast = {"preset": "ultrafast"}
  media_files.write_video(
    paths["interview.mp4"], frames, fps=FPS, sound=sound, sound_rate_hz=48_000, options=fast
  )
  media_files.write_video(paths["empty.mp4"], media_files.numbered_frames(8), fps=4)
  Image.fromarray(frames[0]).save(paths["portrait.jpg"], quality=90)
  scipy.io.wavfile.write(paths["call.wav"], 16_000, (speech * 32_767).astype(np.int16))
  return paths


def _evidence(time_s: float, probability: float, rng: np.random.Generator) -> Evidence:
  left, top, right, bottom = large_box(time_s)
  side = 1.3 * max(right - left, bottom - top)
  scale = side / 224
  place = np.array([[scale, 0, (left + right - side) / 2], [0, scale, (top + bottom - side) / 2]])
  crop = cv2.warpAffine(scene(time_s), place, (224, 224), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
  y, x = np.mgrid[:14, :14] + 0.5
  blob = np.exp(-(((x - 7) / 2.6) ** 2 + ((y - 9.3) / 1.7) ** 2)) + 0.05 * rng.random((14, 14))
  return Evidence(1, time_s, crop, (probability * blob).clip(0, 1).astype(np.float32), probability, place)


def _person(times: np.ndarray, probabilities: list[float | None]) -> tuple[Person, tuple[Evidence, ...]]:
  rng = np.random.default_rng(0)
  sightings, seen = [], []
  for t, p in zip(times.tolist(), probabilities, strict=True):
    box = tuple(large_box(t).round(1).tolist())
    sightings.append(Sighting(t, box, p, () if p is not None else ("extreme_pose",)))
    if p is not None:
      seen.append(_evidence(t, p, rng))
  judged = [p for p in probabilities if p is not None]
  quality = {"size_px": 149.0, "sharpness": 0.21, "yaw": 6.0, "brightness": 121.0}
  return Person(1, float(np.quantile(judged, 0.7)), tuple(sightings), quality), tuple(seen)


def _bystander(times: np.ndarray) -> Person:
  box = tuple(small_box().round(1).tolist())
  return Person(
    2, None, tuple(Sighting(t, box, None, ("face_too_small",)) for t in times.tolist()), {"size_px": 34.0}
  )


def _verdict(kind: str, name: str, **changes) -> Verdict:
  facts = {
    "outcome": verdict.NOT_APPLICABLE,
    "deepfake_probability": None,
    "frame_consistency_score": None,
    "reasons": (),
    "branches": {},
    "people": (),
    "thresholds": OF_FACES,
    "model": MODEL,
    "file": {
      "name": name,
      "bytes": 123_456,
      "sha256": "cd" * 32,
      "kind": kind,
      "media": {
        "container": "mov,mp4",
        "codec": "h264",
        "duration_s": float(SECONDS),
        "width": WIDTH,
        "height": HEIGHT,
        "fps": 10.0,
        "tags": {"encoder": "Lavf62.3.100"},
      },
    },
    "timings": {"decode_s": 0.41, "faces_s": 0.87, "model_s": 0.52},
  }
  return Verdict(**facts | changes)


def of_video(name: str = "interview.mp4") -> Verdict:
  """A film with a forged passage: two people, one of them too small, and a voice between the thresholds."""
  times = np.arange(0, SECONDS, 0.5) + 0.2
  low, high = [0.18, 0.22, 0.15, None, 0.31, 0.45], [0.78, 0.9, 0.94, 0.91, 0.83]
  person, seen = _person(times, [*low, *high, 0.52, 0.3, 0.24, 0.2, 0.17])
  windows = (SoundWindow(0, 4, 0.34), SoundWindow(4, 8, 0.71))
  moments = tuple(SoundWindow(t, t + 1, 0.5 + 0.4 * np.sin(t - 3)) for t in np.arange(0, 7.01, 0.5).tolist())
  return _verdict(
    "video",
    name,
    outcome=verdict.LIKELY_MANIPULATED,
    deepfake_probability=0.83,
    frame_consistency_score=0.64,
    reasons=(Reason("blending_traces", "Person 1 shows traces of blending in 5 of 15 judged frames."),),
    branches={
      "spatial": BranchVerdict(0.83, 0.7, "ok", 1.6, 0.41),
      "audio": BranchVerdict(0.52, 0.3, "ok", 0.2, 0.79),
    },
    people=(person, _bystander(times)),
    evidence=seen,
    sound=Sound(verdict.INCONCLUSIVE, 0.58, (), OF_SOUND, windows, moments),
  )


def of_image(name: str = "portrait.jpg") -> Verdict:
  """A picture without signs."""
  person, seen = _person(np.array([0.0]), [0.12])
  answer = _verdict(
    "image",
    name,
    outcome=verdict.LIKELY_AUTHENTIC,
    deepfake_probability=0.12,
    branches={"spatial": BranchVerdict(0.12, 1.0)},
    people=(person,),
    evidence=seen,
  )
  facts = {"container": "jpeg", "codec": "mjpeg", "width": WIDTH, "height": HEIGHT, "jpeg_quality": 90}
  return dataclasses.replace(answer, file={**answer.file, "media": facts})


def of_audio(name: str = "call.wav") -> Verdict:
  """A recording with one stretch of a synthetic voice."""
  windows = tuple(SoundWindow(4.0 * i, 4.0 * i + 4, p) for i, p in enumerate((0.2, 0.97, 0.66)))
  values = np.interp(np.arange(0, 11.01, 0.5), (0, 3.5, 4, 7.5, 8, 11), (0.1, 0.3, 0.93, 0.96, 0.6, 0.5))
  moments = tuple(SoundWindow(i / 2, i / 2 + 1, p) for i, p in enumerate(values.tolist()))
  answer = _verdict(
    "audio",
    name,
    outcome=verdict.LIKELY_MANIPULATED,
    deepfake_probability=0.89,
    thresholds=OF_SOUND,
    decided_by=verdict.SOUND,
    reasons=(
      Reason("synthetic_voice_traces", "The voice shows traces of synthesis, most from 3.5 to 9.0 s."),
    ),
    branches={"audio": BranchVerdict(0.89, 1.0)},
    sound=Sound(verdict.LIKELY_MANIPULATED, 0.89, (), OF_SOUND, windows, moments),
  )
  facts = {"container": "wav", "audio_codec": "pcm_s16le", "duration_s": 12.0, "audio_sample_rate_hz": 16_000}
  return dataclasses.replace(answer, file={**answer.file, "media": facts})


def of_nothing(name: str = "empty.mp4") -> Verdict:
  """A film in which nothing can be judged."""
  remedy = "Give one that shows a face from the front, 48 px across or more."
  return _verdict(
    "video",
    name,
    reasons=(
      Reason("no_face", "No face was found.", remedy),
      Reason("no_sound", "The file has no sound.", "Use a copy that has its sound."),
    ),
    decided_by=None,
    faces=Faces(verdict.NOT_APPLICABLE, None, ("no_face",), OF_FACES),
    sound=Sound(verdict.NOT_APPLICABLE, None, ("no_sound",), OF_SOUND),
  )


ANSWERS = {"interview": of_video, "portrait": of_image, "call": of_audio, "empty": of_nothing}
ANSWERS["jobless"] = of_audio
JOB = "0123456789abcdef" * 2


def answer_json(answer: Verdict) -> dict:
  """What the API answers with explain=true."""
  return {
    **report.to_json(answer),
    "report_html": report.render_html(answer),
    "evidence": evidence.evidence_json(answer),
    "model_version": f"{MODEL['name']}@{MODEL['version']}",
    "request_id": "0f3a9c1e",
    "result_id": "r" * 22,
  }


def problem(status: int, title: str, detail: str, remedy: str, code: str, **headers: str) -> Response:
  told = {"type": f"urn:x:{code}", "status": status, "code": code, "title": title, "detail": detail}
  return Response(
    json.dumps({**told, "remedy": remedy, "request_id": "0f3a9c1e"}),
    status,
    {"X-Request-ID": "0f3a9c1e"} | {name.replace("_", "-"): value for name, value in headers.items()},
    "application/problem+json",
  )


def make_app(*, keep: bool = False) -> fastapi.FastAPI:
  """The page, and an API that answers by the name of the file it gets.

  Names that begin as one of ANSWERS give that verdict; limited, damaged, between and slow give a full
  account, a refusal, an answer of something in between, and none for a minute. A job is asked for three
  times until it ends; of one that is called lost nothing is found.

  Attributes of its state: received, feedback and cancelled, what was sent and which jobs were given up.
  """
  app = fastapi.FastAPI(docs_url=None, openapi_url=None)
  app.include_router(routes_web.router(types.SimpleNamespace(settings=types.SimpleNamespace(keep=keep))))
  app.state.received, app.state.feedback, app.state.cancelled, app.state.asked = [], [], [], 0
  names = []

  def known(request: fastapi.Request) -> bool:
    return request.headers.get("Authorization") == f"Bearer {KEY}"

  refused = problem(
    401, "The key was not accepted", "There is no such key.", "Ask for a new one.", "unknown_key"
  )

  @app.post("/api/v1/detect/{kind}")
  async def detect(
    request: fastapi.Request,
    kind: str,
    explain: bool = False,
    later: Annotated[bool, fastapi.Query(alias="async")] = False,
  ) -> Response:
    if not known(request):
      return refused
    form = await request.form()
    name, size = form[kind].filename, form[kind].size
    app.state.received.append((kind, name, size, explain))
    stem = name.split(".")[0]
    if later and stem == "jobless":
      return problem(422, "No jobs here", "This service runs no jobs.", "Send it without async.", "no_jobs")
    if later:
      names.append(name)
      app.state.asked = 0
      url = f"/api/v1/batch/{JOB}"
      return JSONResponse({"id": JOB, "url": url}, 202, headers={"Location": url})
    if stem == "limited":
      detail = "This key may have 100 files judged in an hour."
      return problem(429, "Too many requests", detail, "Wait, then go on.", "rate_limited", Retry_After="2")
    if stem == "damaged":
      return problem(422, "The file cannot be read", "It ends early.", "Copy it again.", "truncated")
    if stem == "between":
      return Response("<html><h1>502 Bad Gateway</h1></html>", 502, media_type="text/html")
    if stem == "slow":
      await asyncio.sleep(60)
    return JSONResponse(answer_json(ANSWERS[stem](name)), headers={"RateLimit": '"key";r=97;t=1800'})

  @app.get(f"/api/v1/batch/{JOB}")
  def job(request: fastapi.Request) -> Response:
    if not known(request):
      return refused
    app.state.asked += 1
    told = {"state": "running", "running": int(app.state.asked > 1), "problem": None, "results": []}
    if app.state.asked == 2:
      return Response("", 502)
    if app.state.asked > 2 and names[-1] != "waits.wav":
      answer = {"verdict": answer_json(of_audio(names[-1])), "result_id": "r" * 22, "error": None}
      if names[-1] == "lost.wav":
        answer = {"verdict": None, "error": {"code": "unreadable", "message": "lost.wav is damaged."}}
      told |= {"state": "done", "running": 0, "results": [answer]}
    return JSONResponse(told)

  @app.delete(f"/api/v1/batch/{JOB}")
  def cancel(request: fastapi.Request) -> Response:
    if not known(request):
      return refused
    app.state.cancelled.append(JOB)
    return JSONResponse({})

  @app.post("/api/v1/feedback")
  async def feedback(request: fastapi.Request) -> Response:
    if not known(request):
      return refused
    sent = await request.json()
    app.state.feedback.append(sent)
    if sent["comment"] == "too late":
      return problem(404, "No such result", "It is forgotten.", "Send the file again.", "unknown_result")
    return JSONResponse({"feedback_id": "f", **sent}, 201)

  @app.get("/api/v1/models")
  def models(request: fastapi.Request) -> Response:
    if not known(request):
      return refused
    return JSONResponse({"models": [{**MODEL, "default": True, "card": CARD}]})

  return app


@contextlib.contextmanager
def serving(app: fastapi.FastAPI) -> Iterator[str]:
  """Serves an app from a thread; gives its address, which ends with a slash."""
  config = uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=1)
  server = uvicorn.Server(config)
  thread = threading.Thread(target=server.run, daemon=True)
  thread.start()
  while not server.started:
    if not thread.is_alive():
      raise RuntimeError("The server did not start.")
    thread.join(0.02)
  try:
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
  finally:
    server.should_exit = True
    thread.join(10)
