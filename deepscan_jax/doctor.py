"""Checks whether this installation works as it should: versions, devices, model, scores, sandbox, folders.

The golden scores tie a checkpoint to what it computed where it was made. `golden_inputs` makes two pictures
by plain arithmetic, the same on every machine, and `golden_batches` all that a model reads out of them;
golden.json beside the checkpoint holds the model's logits. A maintainer who ships a new checkpoint writes
that file with `deepscan doctor --write_golden`. Here, on whatever device JAX finds, they must come out the
same.
"""

import dataclasses
import hashlib
import importlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from deepscan_jax import compilation_cache, environment
from deepscan_jax.version import __version__

OK, WARN, FAIL = "ok", "warn", "fail"

GOLDEN_FILE = "golden.json"
# Of a logit: more is an error.
GOLDEN_DRIFT = 1e-3
# Of faces/weights/faces.npz: the networks that find faces and their points.
FACE_NETWORKS_SHA256 = "68ae76cad69392244a466fede8eb7cfcdf44308d08081c6d2257a39611fcfcb9"

LITTLE_DISK_BYTES, NO_DISK_BYTES = 2 << 30, 200 << 20


@dataclasses.dataclass(frozen=True)
class Check:
  """One line of the answer.

  Attributes:
    name: what was looked at.
    status: OK, WARN or FAIL.
    detail: what was found.
    remedy: what to do about it; empty where all is well.
  """

  name: str
  status: str
  detail: str
  remedy: str = ""


def examine(model_path: str | None = None) -> Iterator[Check]:
  """Yields one Check after the other; none of them raises.

  Args:
    model_path: a checkpoint folder; None is the model that comes with the package.
  """
  yield _guarded("python", _python)
  yield _guarded("packages", _packages)
  yield _guarded("ffmpeg", _ffmpeg)
  yield _guarded("devices", _devices)
  yield _guarded("disk", _disk)
  yield _guarded("compilation cache", _cache)
  yield _guarded("sandbox", _sandbox)
  yield _guarded("face networks", _face_networks)
  loaded = []
  yield _guarded("model", lambda: _model(model_path, loaded))
  if loaded:
    yield _guarded("golden scores", lambda: _golden(*loaded))


def golden_inputs() -> dict[str, np.ndarray]:
  """Two crops by name: "portrait", and "blended", the same with a changed copy of its face laid over it.

  Returns:
    uint8 [1, 224, 224, 3] each, equal on every machine: a cut at whole pixels, one bilinear enlargement and
    one blend, in float64. The portrait is scikit-image's astronaut (NASA, public domain).
  """
  import skimage.data

  cut = skimage.data.astronaut()[44:188, 150:294].astype(np.float64)
  portrait = _enlarge(cut, 224)
  changed = np.roll(portrait, (2, -3), axis=(0, 1))
  changed = (changed + np.roll(changed, 1, axis=0) + np.roll(changed, 1, axis=1)) / 3
  changed = changed * [1.1, 1.0, 0.9] + 6
  y, x = np.mgrid[:224, :224].astype(np.float64)
  distance = ((x - 112) / 58) ** 2 + ((y - 122) / 78) ** 2
  mask = np.clip((1.15 - distance) / 0.3, 0, 1)[..., None]
  blended = mask * changed + (1 - mask) * portrait
  return {name: _to_uint8(image)[None] for name, image in (("portrait", portrait), ("blended", blended))}


def golden_batches(detector) -> dict[str, dict[str, np.ndarray]]:
  """What a model is given to be tried, by name: each a batch of one example of all that it reads.

  "portrait" and "blended", where it looks at faces: the picture moves by a pixel from frame to frame, and all
  else (mouths, landmarks, sound, facts of the file) is a fixed pattern. "sound", where it judges sound alone.

  Args:
    detector: what `load_detector` returns.
  """
  from deepscan_jax import examples

  shapes = examples.input_shapes(detector.config.data.window)
  batches = {}
  if detector.face_inputs:
    rest = {key: _pattern(key, *shapes[key]) for key in detector.face_inputs}
    for name, crop in golden_inputs().items():
      crops = np.concatenate([np.roll(crop, frame, axis=2) for frame in range(detector.window.frames)])
      batches[name] = {key: x[None] for key, x in {**rest, "crops": crops}.items() if key in rest}
  if detector.sound_inputs and detector.sound_inputs != detector.face_inputs:
    batches["sound"] = {key: _pattern(key, *shapes[key])[None] for key in detector.sound_inputs}
  return batches


def golden_scores(detector) -> dict[str, float]:
  """The logits that a detector gives to `golden_batches`, by name.

  Args:
    detector: what `load_detector` returns.
  """
  return {name: float(detector.judge(batch).logits[0]) for name, batch in golden_batches(detector).items()}


def write_golden(folder: str | Path) -> Path:
  """Stores this machine's scores with a checkpoint, brings its manifest up to date, and returns the file.

  Args:
    folder: of the checkpoint.

  Raises:
    CheckpointError: there is no sound checkpoint.
  """
  from deepscan_jax import checkpoints, inference

  folder = Path(folder)
  scores = golden_scores(inference.load_detector(folder))
  path = folder / GOLDEN_FILE
  cases = {name: round(score, 4) for name, score in scores.items()}
  path.write_text(json.dumps({"cases": cases}, indent=2) + "\n", encoding="utf-8")
  checkpoints.write_model_json(
    folder, json.loads((folder / checkpoints.MODEL_FILE).read_text(encoding="utf-8"))
  )
  return path


def compare_golden(scores: dict[str, float], expected: dict[str, float]) -> Check:
  """Judges scores against the stored ones."""
  if scores.keys() != expected.keys():
    return Check(
      "golden scores",
      FAIL,
      f"stored for {', '.join(sorted(expected))}, computed for {', '.join(sorted(scores))}",
      "The checkpoint and the code are of different versions; install both from one release.",
    )
  worst = np.max([abs(scores[name] - expected[name]) for name in expected])  # unlike max(), never loses a NaN
  device = environment.device()
  detail = f"largest difference {worst:.6f} in the logit of {len(scores)}, on {device['device']}"
  if worst <= GOLDEN_DRIFT:
    return Check("golden scores", OK, detail)
  remedy = "Do not trust scores of this installation; reinstall it and report this."
  if device["device"] != "cpu" and device["matmul_precision"] == "default":
    remedy = (
      "This device shortens factors by default; set JAX_DEFAULT_MATMUL_PRECISION=highest, and look again. If "
      "the difference stays, do not trust scores of this installation, and report this."
    )
  return Check("golden scores", FAIL, f"{detail}; {GOLDEN_DRIFT:g} is allowed", remedy)


def _guarded(name: str, look: Callable[[], Check]) -> Check:
  try:
    return look()
  except Exception as error:
    sentence = str(error) or "no message"
    return Check(
      name, FAIL, f"{type(error).__name__}: {sentence}", "Reinstall deepscan_jax in a new environment."
    )


def _python() -> Check:
  detail = f"deepscan_jax {__version__}, Python {platform.python_version()}, {platform.platform()}"
  return Check("python", OK, detail)


def _packages() -> Check:
  versions = environment.package_versions()
  for module in ("jax", "flax", "cv2", "grain"):
    importlib.import_module(module)
  detail = ", ".join(f"{name} {version}" for name, version in versions.items())
  if environment.MISSING in versions.values():
    return Check("packages", FAIL, detail, "pip install deepscan_jax")
  return Check("packages", OK, detail)


def _ffmpeg() -> Check:
  import av

  libraries = ", ".join(
    f"{name} {'.'.join(map(str, version))}" for name, version in av.library_versions.items()
  )
  missing = [name for name in ("h264", "hevc", "vp9", "aac", "mp3") if name not in av.codecs_available]
  if missing:
    remedy = "Install the av wheel from the package index, which brings its own FFmpeg."
    return Check("ffmpeg", WARN, f"{libraries}; cannot decode {', '.join(missing)}", remedy)
  return Check("ffmpeg", OK, libraries)


def _devices() -> Check:
  import jax

  kinds = ", ".join(f"{device.platform}:{device.id} {device.device_kind}" for device in jax.devices())
  threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
  return Check("devices", OK, f"{kinds}; {threads} processor threads")


def _disk() -> Check:
  folder = tempfile.gettempdir()
  free = shutil.disk_usage(folder).free
  detail = f"{free / (1 << 30):.1f} GiB free in {folder}"
  remedy = "Free some space, or set TMPDIR to a folder on a larger disk."
  if free < LITTLE_DISK_BYTES:
    return Check("disk", FAIL if free < NO_DISK_BYTES else WARN, detail, remedy)
  return Check("disk", OK, detail)


def _cache() -> Check:
  try:
    folder = compilation_cache.private_folder(compilation_cache.default_folder())
  except (OSError, ValueError) as error:
    return Check("compilation cache", WARN, str(error), "Each start compiles anew until this is mended.")
  size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
  return Check("compilation cache", OK, f"{folder}, private, {size / (1 << 20):.0f} MiB")


def _sandbox() -> Check:
  from deepscan_jax import media

  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "clip.mp4"
    frames = 12
    _write_clip(path, frames)
    clip = media.decode_clip(path, plan=media.SamplingPlan(frame_count=4))
  if clip.kind != "video" or len(clip.frames) != 4:
    return Check("sandbox", FAIL, f"took {len(clip.frames)} frames of 4 from a {clip.kind}", "Reinstall av.")
  return Check("sandbox", OK, "a clip was made, and decoded in a limited child process")


def _write_clip(path: Path, frames: int) -> None:
  import av

  with av.open(str(path), "w") as container:
    stream = container.add_stream("mpeg4", rate=12)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
    for i in range(frames):
      picture = np.full((48, 64, 3), 20 * i, np.uint8)
      container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
    container.mux(stream.encode(None))


def _face_networks() -> Check:
  from deepscan_jax.faces.network import WEIGHTS_PATH

  with open(WEIGHTS_PATH, "rb") as file:
    found = hashlib.file_digest(file, "sha256").hexdigest()
  if found != FACE_NETWORKS_SHA256:
    detail = f"{WEIGHTS_PATH.name} has sha256 {found}, not {FACE_NETWORKS_SHA256}"
    return Check("face networks", FAIL, detail, "Reinstall deepscan_jax.")
  return Check("face networks", OK, f"sha256 {found} verified")


def _model(model_path: str | None, loaded: list) -> Check:
  """Appends the detector and its folder to `loaded`, for the next check to use."""
  from deepscan_jax import checkpoints, inference

  folder = Path(model_path or inference.DEFAULT_MODEL)
  try:
    detector = inference.load_detector(folder)
  except checkpoints.CheckpointError as error:
    return Check(
      "model", FAIL, str(error), "Reinstall deepscan_jax, or give another folder with --model_path."
    )
  loaded += [detector, folder]
  about = detector.metadata
  return Check("model", OK, f"{about['name']} {about['version']}, sha256 {about['sha256']} verified")


def _golden(detector, folder: Path) -> Check:
  path = folder / GOLDEN_FILE
  if not path.is_file():
    return Check(
      "golden scores", WARN, f"none are stored with {folder}", "deepscan doctor --write_golden stores them."
    )
  return compare_golden(golden_scores(detector), json.loads(path.read_text(encoding="utf-8"))["cases"])


def _pattern(key: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """A fixed input of a model: by whole numbers, so that it is the same on every machine."""
  if dtype == np.bool_:
    return np.ones(shape, bool)
  if key == "frame_times_s":
    return (np.arange(shape[0]) / 12.5).astype(dtype)
  steps = np.arange(int(np.prod(shape)), dtype=np.int64)
  # A tone that rises and falls, by a triangle; or numbers without a pattern that a network would know.
  if key == "waveform":
    phase = steps * (40 + steps // 400 % 200) % 16_000
    values = 0.3 * (np.abs(phase - 8_000) / 4_000 - 1)
  else:
    values = (steps * 7_919 % 1_009) / 1_009
    low, high = {"landmarks": (0, 224), "file_facts": (-1, 1)}.get(key, (0, 255))
    values = low + (high - low) * values
  return values.reshape(shape).astype(dtype)


def _enlarge(image: np.ndarray, size: int) -> np.ndarray:
  """Bilinear enlargement of [side, side, channel] to [size, size, channel], pixel centres aligned."""
  side = image.shape[0]
  at = np.clip((np.arange(size) + 0.5) * side / size - 0.5, 0, side - 1)
  low = np.minimum(np.floor(at).astype(int), side - 2)
  part = at - low
  rows = image[low] * (1 - part)[:, None, None] + image[low + 1] * part[:, None, None]
  return rows[:, low] * (1 - part)[None, :, None] + rows[:, low + 1] * part[None, :, None]


def _to_uint8(image: np.ndarray) -> np.ndarray:
  return np.clip(np.floor(image + 0.5), 0, 255).astype(np.uint8)
