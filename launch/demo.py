"""Makes two short clips of one portrait, one of them forged, and runs `deepscan detect` on both.

    make demo
    deepscan demo --output_dir=demo_output

The portrait is scikit-image's astronaut (Eileen Collins, NASA, public domain). The real clip is the portrait
under a slowly moving camera. For the forged one the face is blended with a changed copy of itself first, as
training makes its forgeries; camera, light and encoder are the same. What the detector says of the two is
printed and written beside the clips.

Exit codes: 0 the forged clip scored higher, 1 it did not, otherwise those of `deepscan detect`.
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import app, flags

_OUTPUT_DIR = flags.DEFINE_string(
  "output_dir", "demo_output", "Folder for the clips and reports; made if missing.", allow_override=True
)
_MODEL_PATH = flags.DEFINE_string(
  "model_path", None, "A checkpoint folder; without it the model of the package.", allow_override=True
)

REAL, FORGED = "astronaut_real", "astronaut_forged"
SEED = 1
SIDE, FRAMES_PER_SECOND, SECONDS = 480, 25, 3
# Enlarged, the portrait's face has about as many pixels as that of a stored crop: blending loses nothing.
ENLARGE = 1.6


def main(argv: Sequence[str]) -> int:
  """Makes the clips, detects, compares; returns the exit code."""
  if argv[1:]:
    raise app.UsageError(f"demo takes no files, got {argv[1]!r}.")
  folder = Path(_OUTPUT_DIR.value)
  folder.mkdir(parents=True, exist_ok=True)
  print("Making two clips of the same portrait, one real and one forged ...", flush=True)
  make_clips(folder)
  for name in (REAL, FORGED):
    code = _detect(folder, name, model_path=_MODEL_PATH.value)
    if code:
      return code
  scores = {name: _score(folder / f"{name}.json") for name in (REAL, FORGED)}
  print("\nClips, and reports to open in a browser:")
  for name in (REAL, FORGED):
    print("  " + "  ".join(str(folder / f"{name}.{ending}") for ending in ("mp4", "html", "json")))
  print("\nNow a file of your own:")
  print(f"  {_shown('detect', '--output_html=report.html', 'your_video.mp4')}\n")
  return judge(scores[REAL], scores[FORGED])


def judge(real: float | None, forged: float | None) -> int:
  """Says whether the detector told the two apart; returns 0 if it did, 1 if not."""
  if real is None or forged is None:
    print("deepscan: The detector found nothing to judge in the demo's own clips.", file=sys.stderr)
    return 1
  if forged <= real:
    line = f"The forged clip did not score higher ({forged:.3f}) than the real one ({real:.3f})."
    print(f"deepscan: {line} `deepscan doctor` may say why.", file=sys.stderr)
    return 1
  print(f"The forged clip scored higher: {forged:.3f} against {real:.3f} for the real one.")
  return 0


def make_clips(folder: Path) -> tuple[Path, Path]:
  """Writes the real and the forged clip, H.264 of 480 x 480 pixels, and returns their paths."""
  from deepscan_jax import compilation_cache

  warning = compilation_cache.switch_on()
  if warning:
    print(f"deepscan: {warning}", file=sys.stderr)
  portrait = sample_portrait()
  paths = folder / f"{REAL}.mp4", folder / f"{FORGED}.mp4"
  for path, picture in zip(paths, (portrait, forge_face(portrait, seed=SEED)), strict=True):
    write_clip(path, move_camera(picture))
  return paths


def sample_portrait() -> np.ndarray:
  """The astronaut, enlarged: uint8 [height, width, 3]."""
  import cv2
  import skimage.data

  return cv2.resize(skimage.data.astronaut(), None, fx=ENLARGE, fy=ENLARGE, interpolation=cv2.INTER_CUBIC)


def forge_face(picture: np.ndarray, *, seed: int) -> np.ndarray:
  """Returns the picture with its one face blended with a changed copy of itself.

  The blend is made in the crop, as in training; only its difference from the untouched crop is carried back,
  so that all pixels outside of the blend stay as they are.

  Args:
    picture: uint8 [height, width, 3].
    seed: draws the blend.

  Raises:
    ValueError: there is not exactly one face.
  """
  import cv2

  from deepscan_jax import faces
  from deepscan_jax.pseudofakes import image

  found = faces.find_faces(picture[None])[0]
  if len(found) != 1:
    raise ValueError(f"The picture must show one face, found {len(found)}.")
  landmarks = found[0].landmarks
  crop, crop_landmarks = faces.crop_face(picture, landmarks)
  # The whole face at full strength: a demonstration, not a hard case.
  config = image.BlendConfig(
    face=1.0, face_below_brows=0.0, inner_face=0.0, mouth_and_chin=0.0, parts=0.0, ratios=(1.0,)
  )
  pair = image.self_blend(crop, crop_landmarks, rng=np.random.default_rng(seed), config=config)
  difference = pair.fake.astype(np.float32) - pair.real
  height, width = picture.shape[:2]
  carried = cv2.warpAffine(
    difference,
    _between_pixel_centres(faces.face_transform(landmarks)),
    (width, height),
    flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
  )
  return np.clip(np.rint(picture + carried), 0, 255).astype(np.uint8)


def move_camera(picture: np.ndarray) -> list[np.ndarray]:
  """The frames of a slow pan, zoom and turn over a picture under slightly changing light.

  Args:
    picture: uint8 [height, width, 3], taller and wider than a frame.

  Returns:
    uint8 [480, 480, 3] each, three seconds of them.
  """
  import cv2

  height, width = picture.shape[:2]
  frames = []
  for phase in np.linspace(0, 2 * np.pi, FRAMES_PER_SECOND * SECONDS):
    # Frame pixel -> picture pixel: the view swings around the upper middle, where the face is.
    middle = (width * 0.43 + 14 * np.sin(phase), height * 0.28 + 8 * np.sin(2 * phase))
    matrix = cv2.getRotationMatrix2D(middle, 2.5 * np.sin(phase), 1 + 0.05 * np.sin(phase / 2))
    matrix[:, 2] += (SIDE / 2 - middle[0], SIDE / 2 - middle[1])
    frame = cv2.warpAffine(
      picture, matrix, (SIDE, SIDE), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT
    )
    light = 1 + 0.04 * np.sin(phase + 1)
    frames.append(cv2.convertScaleAbs(frame, alpha=light))
  return frames


def write_clip(path: Path, frames: Sequence[np.ndarray]) -> None:
  """Encodes frames, uint8 [height, width, 3], as H.264 in an mp4 of 25 frames per second."""
  import av

  with av.open(str(path), "w") as container:
    options = {"crf": "20", "preset": "fast"}
    stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=options)
    stream.height, stream.width = frames[0].shape[:2]
    stream.pix_fmt = "yuv420p"
    for frame in frames:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
    container.mux(stream.encode(None))


def _detect(folder: Path, name: str, *, model_path: str | None) -> int:
  """Runs the command line on one clip, as a user would, and returns its exit code."""
  stem = folder / name
  arguments = [
    "detect", f"--video_path={stem}.mp4", f"--output_json={stem}.json", f"--output_html={stem}.html"
  ]  # fmt: skip
  if model_path:
    arguments.append(f"--model_path={model_path}")
  print(f"\n$ {_shown(*arguments)}", flush=True)
  return subprocess.run([sys.executable, "-m", __package__, *arguments], check=False).returncode


def _shown(*arguments: str) -> str:
  """The command as a user would type it: with the environment's own program where there is one."""
  script = Path(sys.executable).with_name("deepscan")
  inside = Path.cwd() in script.parents
  program = str(script.relative_to(Path.cwd())) if inside else "deepscan"
  return " ".join([program, *map(shlex.quote, arguments)])


def _score(path: Path) -> float | None:
  return json.loads(path.read_text(encoding="utf-8"))["deepfake_probability"]


def _between_pixel_centres(matrix: np.ndarray) -> np.ndarray:
  """The same map for OpenCV, which counts from the centre of the first pixel and not from its corner."""
  moved = np.array(matrix, np.float64)
  moved[:, 2] += moved[:, :2] @ [0.5, 0.5] - 0.5
  return moved


if __name__ == "__main__":
  from .__main__ import run_module

  run_module(__name__)
