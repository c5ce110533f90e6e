"""Makes synthetic pictures look like recordings of the same kind as real ones, but for what made them.

A generator puts out sharp pictures of one size and framing, never compressed; real pictures come small, soft
and as JPEG. A detector that is trained on both as they are learns the camera and the archive. Here each
synthetic picture takes after one real picture: its face gets the place, size and lean that the real face has,
in a picture of the same size, is made no sharper than that one, and is compressed with the same JPEG quality
and chroma subsampling. What is left for a detector is what the generator did.
"""

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from deepscan_jax import faces, media
from deepscan_jax.faces.align import apply, invert, resize
from deepscan_jax.files import whole_file, write_whole

# Real pictures that are tried for each synthetic one: its own picture must fill the other's frame, but for
# this part of its side, which its mirror image fills.
ATTEMPTS = 12
OVERHANG = 0.08
# Sides that a sharp picture is shrunk to and enlarged from, until it is as soft as the real one.
SOFTENING = (1.0, 0.85, 0.7, 0.6, 0.5, 0.42, 0.35, 0.3, 0.25)
# Pictures whose faces are looked for at once.
_AT_ONCE = 64
_SAMPLING = {
  "4:4:4": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
  "4:2:2": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
  "4:2:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Seen:
  """A picture and its largest face.

  Attributes:
    path: of the picture.
    picture: uint8 RGB [height, width, 3].
    landmarks: float32 [468, 3], pixels of the picture.
    sharpness: of the face, see faces.FaceQuality.
    facts: of the file, see deepscan_jax.provenance.
  """

  path: Path
  picture: np.ndarray
  landmarks: np.ndarray
  sharpness: float
  facts: dict


def match_folder(
  synthetic: Sequence[Path],
  real: Sequence[Sequence[Path]],
  output: Path,
  *,
  seed: int = 0,
  say: Callable[[str], None] = lambda line: None,
) -> dict[str, int]:
  """Writes a matched copy of each synthetic picture, and matches.jsonl, which says after what it takes.

  The same files and seed give the same copies.

  Args:
    synthetic: pictures.
    real: pictures of each kind of source; each kind is taken after equally often.
    output: folder for the copies, which are called after the synthetic ones.
    seed: of who takes after whom.
    say: called with a line of progress at a time.

  Returns:
    How many were "written", had "no_face", and how many fit "no_frame" of the real pictures that were tried.

  Raises:
    ValueError: there is no synthetic picture, or no real one.
  """
  if not synthetic:
    raise ValueError("There is no synthetic picture to match; say which folder holds them.")
  output.mkdir(parents=True, exist_ok=True)
  rng = np.random.default_rng(seed)
  counts, lines = {"written": 0, "no_face": 0, "no_frame": 0}, []
  for start in range(0, len(synthetic), _AT_ONCE):
    paths = synthetic[start : start + _AT_ONCE]
    wanted = [_draw(real, rng) for _ in range(2 * len(paths))]
    models = _see(dict.fromkeys(wanted))
    for path, seen in _see(paths).items():
      if seen is None:
        counts["no_face"] += 1
        continue
      own = np.random.default_rng([seed, start, len(lines)])
      tried = own.permutation(len(wanted))[:ATTEMPTS]
      likely = [models[wanted[i]] for i in tried if models[wanted[i]] is not None]
      copy = next((c for c in ((m, match(seen, m)) for m in likely) if c[1] is not None), None)
      if copy is None:
        counts["no_frame"] += 1
        continue
      model, (data, suffix, softened) = copy
      name = f"{path.stem}{suffix}"
      with whole_file(output / name, durable=False) as file:
        file.write(data)
      counts["written"] += 1
      facts = {"name": name, "synthetic": path.name, "takes_after": model.path.name, "softened": softened}
      lines.append(json.dumps(facts))
    say(f"{min(start + _AT_ONCE, len(synthetic))} of {len(synthetic)} pictures looked at")
  write_whole(output / "matches.jsonl", "".join(f"{line}\n" for line in lines))
  return counts


def match(synthetic: Seen, real: Seen) -> tuple[bytes, str, float] | None:
  """A synthetic picture as if it had been taken, cut and stored like a real one.

  Returns:
    The file's bytes, its suffix (.jpg, or .png where the real picture is no JPEG), and the factor by which
    the picture was shrunk and enlarged again to be as soft; None where it does not fill the real one's frame.
  """
  height, width = real.picture.shape[:2]
  # Where the synthetic picture's pixels go, by way of the square that all faces are cut to.
  there = np.vstack([invert(faces.face_transform(real.landmarks)), [0, 0, 1]])
  matrix = (there @ np.vstack([faces.face_transform(synthetic.landmarks), [0, 0, 1]]))[:2]
  corners = np.array([[0, 0], [width, 0], [0, height], [width, height]], np.float64)
  reach = apply(invert(matrix), corners)
  source_height, source_width = synthetic.picture.shape[:2]
  size = np.array([source_width, source_height])
  if (reach < -OVERHANG * size).any() or (reach > (1 + OVERHANG) * size).any():
    return None
  laid = _warp(synthetic.picture, matrix, (width, height))
  landmarks = apply(matrix, synthetic.landmarks[:, :2])
  softened, picture = 1.0, laid
  if _sharpness(laid, landmarks) > real.sharpness:
    tried = [(factor, _soften(laid, factor)) for factor in SOFTENING]
    distances = [
      abs(math.log(max(_sharpness(p, landmarks), 1e-6) / max(real.sharpness, 1e-6))) for _, p in tried
    ]
    softened, picture = tried[int(np.argmin(distances))]
  return *stored_like(picture, real.facts), softened


def stored_like(picture: np.ndarray, facts: dict) -> tuple[bytes, str]:
  """The file of a picture, compressed as another one's was.

  Args:
    picture: uint8 RGB [height, width, 3].
    facts: of the other one, see deepscan_jax.provenance.

  Returns:
    The file's bytes, and its suffix: .jpg, or .png where the other one is no JPEG.
  """
  stored = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
  quality = facts.get("jpeg_quality")
  if quality is None:
    return cv2.imencode(".png", stored)[1].tobytes(), ".png"
  options = [cv2.IMWRITE_JPEG_QUALITY, int(quality)]
  options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, _SAMPLING.get(facts.get("chroma_subsampling"), 0x221111)]
  return cv2.imencode(".jpg", stored, options)[1].tobytes(), ".jpg"


def _draw(real: Sequence[Sequence[Path]], rng: np.random.Generator) -> Path:
  kinds = [paths for paths in real if len(paths)]
  if not kinds:
    raise ValueError("There is no real picture to take after; say which folders hold them.")
  paths = kinds[int(rng.integers(len(kinds)))]
  return paths[int(rng.integers(len(paths)))]


def _see(paths) -> dict[Path, Seen | None]:
  """What is to be seen on each picture; None where there is no face, or that cannot be read."""
  seen: dict[Path, Seen | None] = dict.fromkeys(paths)
  clips = {}
  for path in seen:
    with contextlib.suppress(media.MediaError):
      clips[path] = media.decode_image_bytes(path.read_bytes())
  found = faces.find_faces([clip.frames[0] for clip in clips.values()], max_faces=1)
  for (path, clip), own in zip(clips.items(), found, strict=True):
    if own:
      seen[path] = _seen(path, clip, own[0].landmarks)
  return seen


def _seen(path: Path, clip: media.Clip, landmarks: np.ndarray) -> Seen:
  picture = clip.frames[0]
  return Seen(path, picture, landmarks, _sharpness(picture, landmarks), clip.facts)


def _sharpness(picture: np.ndarray, landmarks: np.ndarray) -> float:
  crop, _ = faces.crop_face(picture, landmarks)
  points = np.zeros((len(landmarks), 3))
  points[:, : landmarks.shape[1]] = landmarks
  return faces.measure_quality(crop, points).sharpness


def _soften(picture: np.ndarray, factor: float) -> np.ndarray:
  if factor == 1.0:
    return picture
  height, width = picture.shape[:2]
  small = cv2.resize(
    picture, (max(round(width * factor), 8), max(round(height * factor), 8)), interpolation=cv2.INTER_AREA
  )
  return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def _warp(picture: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """An affine warp to a picture of another size; where it shrinks, areas are averaged first."""
  scale = math.sqrt(abs(np.linalg.det(matrix[:, :2])))
  if scale < 1:
    height, width = picture.shape[:2]
    small_width, small_height = max(round(width * scale), 8), max(round(height * scale), 8)
    picture = resize(picture, width=small_width, height=small_height)
    matrix = np.column_stack(
      [matrix[:, :2] @ np.diag([width / small_width, height / small_height]), matrix[:, 2]]
    )
  # OpenCV puts the centre of the first pixel at (0, 0).
  shift = matrix[:, :2] @ (0.5, 0.5) - 0.5
  matrix = np.column_stack([matrix[:, :2], matrix[:, 2] + shift])
  return cv2.warpAffine(picture, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
