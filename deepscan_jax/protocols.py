"""Evaluation protocols: what a figure depends on beside the model, and how published ones cut and count.

A figure means something only together with how it was made. A `Protocol` holds all of that and has a hash,
which stands in every evaluation card; figures of different protocols are not compared unawares.

A `Preset` is the preprocessing of a published protocol: which frames, which faces of a frame, how a face is
cut, how faces and frames become one score. The face finder and the size in pixels that the network reads stay
those of this package; `Preset.departures` says so in sentences.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from deepscan_jax.faces.align import warp
from deepscan_jax.faces.regions import LEFT_EYE, RIGHT_EYE

LEVELS = ("frame", "window", "track", "video")
OWN = "own"
# What becomes of files without a score. They are never given 0.5 in a figure of the card: a score that says
# nothing would stand in the middle of the ranking, and a detector that refuses would look better or worse for
# it. Protocols that do so get a figure of their own beside the others.
LEFT_OUT = "left out of every figure; their share is the coverage"

# Five points (eyes, nose, corners of the mouth) of a 112 x 112 face: the template of ArcFace (Deng et al.
# 2019), whose 96 columns are moved by 8.
_TEMPLATE_SIZE = 112.0
_TEMPLATE = np.array(
  [[30.29 + 8, 51.70], [65.53 + 8, 51.50], [48.03 + 8, 71.74], [33.55 + 8, 92.37], [62.73 + 8, 92.20]]
)
_NOSE_TIP, _MOUTH_CORNERS = 1, (61, 291)
# What a folder of files goes by that is nobody's dataset.
OWN_FILES = "own_files"
# The confident rule of the winner of the DFDC.
_SURE_FAKE, _SURE_REAL = 0.8, 0.2


@dataclasses.dataclass(frozen=True)
class Preset:
  """The preprocessing of a published protocol.

  Attributes:
    name: for --preprocessing.
    source: whose it is.
    frames: of a video that are looked at.
    ends: spread them from the first frame to the last (True), or over the middles of equal parts.
    faces: which faces of a frame count: "largest", "half_of_largest" (in area, at least) or "all".
    crop: "square", "box" or "template"; see `cut_face`.
    enlargement: "square": side of the crop over the longer side of the box; "template": how much the template
      is shrunk towards the middle; "box": what is added to each side, as a share of the box's.
    padded: whether a crop that is no square is scaled evenly and padded with black.
    size_px: side of the crop that the published networks read.
    frame_score: "max" or "mean" over the faces of a frame, or "each": faces count one by one.
    video_score: "mean" or "confident" (`confident_mean`).
    level: of the published headline.
    missing: the published score of a video that gives none: of one without a face, or that cannot be read;
      None: such videos are left out.
    notes: what about it is not certain or cannot be repeated, in sentences.
  """

  name: str
  source: str
  frames: int
  ends: bool
  faces: str
  crop: str
  enlargement: float
  padded: bool
  size_px: int
  frame_score: str
  video_score: str
  level: str
  missing: float | None
  notes: tuple[str, ...] = ()

  def departures(self, *, size_px: int) -> tuple[str, ...]:
    """What is not as published when a model that reads crops of size_px pixels is evaluated under it."""
    said = [
      "Faces are found by this package's own detector and mesh, and boxes are those of the mesh; boxes of "
      "other detectors differ by a few percent."
    ]
    if size_px != self.size_px:
      said.append(f"Crops are cut at {size_px} px, which the model reads, not at {self.size_px} px.")
    return (*said, *self.notes)


PRESETS = {
  preset.name: preset
  for preset in (
    Preset(
      name="ffpp",
      source="FaceForensics++ (Rössler et al., ICCV 2019): dlib box, square of 1.3 times its longer side",
      frames=100,
      ends=False,
      faces="largest",
      crop="square",
      enlargement=1.3,
      padded=False,
      size_px=299,
      frame_score="max",
      video_score="mean",
      level="frame",
      missing=None,
      notes=("100 frames of each video are what later papers take that follow this protocol.",),
    ),
    Preset(
      name="deepfakebench",
      source="DeepfakeBench (Yan et al., NeurIPS 2023): 32 frames, largest face, five points to a template",
      frames=32,
      ends=True,
      faces="largest",
      crop="template",
      enlargement=1.3,
      padded=False,
      size_px=256,
      frame_score="max",
      video_score="mean",
      level="frame",
      missing=None,
      notes=(
        "The five points are the middles of the eyes, the tip of the nose and the corners of the mouth, of "
        "the mesh; DeepfakeBench takes five of dlib's.",
      ),
    ),
    Preset(
      name="sbi",
      source="Self-blended images (Shiohara and Yamasaki, CVPR 2022): 32 frames, the highest face, mean",
      frames=32,
      ends=True,
      faces="half_of_largest",
      crop="box",
      enlargement=0.125,
      padded=False,
      size_px=380,
      frame_score="max",
      video_score="mean",
      level="video",
      missing=0.5,
    ),
    Preset(
      name="dfdc",
      source="The winner of the DFDC (Seferbekov 2020): 32 frames, all faces, confident mean",
      frames=32,
      ends=True,
      faces="all",
      crop="box",
      enlargement=1 / 3,
      padded=True,
      size_px=380,
      frame_score="each",
      video_score="confident",
      level="video",
      missing=0.5,
    ),
  )
}


@dataclasses.dataclass(frozen=True)
class Protocol:
  """What figures depend on beside the model's parameters and the files; plain values, so that JSON holds it.

  Attributes:
    train: the data that the model was trained on: names, and how forgeries were had.
    selection: how the checkpoint and its thresholds were chosen, and on which split.
    media: "prepared" examples or raw "media" files.
    preprocessing: `OWN`, or the name of a preset.
    frames: of a video that are looked at; None: as many as the prepared dataset holds.
    faces: which faces count.
    aggregation: how scores of windows become one of a video.
    level: of the headline.
    missing: what becomes of files without a score.
    pairs: `pairs_hash` of how pseudo-fakes were made, where they were scored; else "".
  """

  train: Mapping
  selection: Mapping
  media: str
  preprocessing: str
  frames: int | None
  faces: str
  aggregation: str
  level: str
  missing: str = LEFT_OUT
  pairs: str = ""

  def to_dict(self) -> dict:
    """Plain values."""
    return json.loads(json.dumps(dataclasses.asdict(self)))

  @property
  def hash(self) -> str:
    """SHA-256 of all fields in order of name."""
    return protocol_hash(self.to_dict())


def pairs_hash(facts: Mapping) -> str:
  """SHA-256 of how the held-out pseudo-fakes of a model are made: each makes them as it was trained to.

  Models that make others were not tried on the same pictures, whatever these are called.

  Args:
    facts: of checkpoints.read_model.
  """
  made = {key: facts["config"]["data"].get(key) for key in _PAIRS}
  # Held-out pairs have no synthetic faces in them, whatever training had.
  if made["swap"]:
    made["swap"] = {key: value for key, value in made["swap"].items() if key != "synthetic_share"}
  return protocol_hash(made)


_PAIRS = (
  "pseudofake_kinds",
  "moving_stills",
  "window",
  "blend",
  "clip_blend",
  "swap",
  "voice",
  "sync",
  "augment",
  "augment_audio",
)


def protocol_hash(protocol: Mapping) -> str:
  """SHA-256 of a protocol as a card holds it."""
  return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()


def differences(a: Mapping, b: Mapping, path: str = "") -> list[str]:
  """What differs between two protocols: "train.datasets: ['x'] and ['y']" each."""
  found = []
  for key in sorted(a.keys() | b.keys()):
    place, one, other = (f"{path}.{key}" if path else key), a.get(key), b.get(key)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
      found += differences(one, other, place)
    elif one != other:
      found.append(f"{place}: {one!r} and {other!r}")
  return found


def find_preset(name: str) -> Preset | None:
  """The preset of a name; None for `OWN`.

  Raises:
    ValueError: there is none; the sentence names those that there are.
  """
  if name == OWN:
    return None
  if name not in PRESETS:
    raise ValueError(f"Unknown preprocessing {name!r}; there are {', '.join((OWN, *PRESETS))}.")
  return PRESETS[name]


def model_protocol(facts: Mapping) -> tuple[dict, dict]:
  """What a model's facts say of its training: the fields `train` and `selection` of a Protocol.

  Args:
    facts: of checkpoints.read_model.
  """
  config = facts["config"]
  data, train = config["data"], config["train"]
  trained = {
    "datasets": sorted(data["datasets"]),
    "pseudofakes": bool(data["pseudofakes"]),
    "labelled_share": float(data.get("labelled_share", 0.0)),
  }
  if "lineage" in facts:
    # Which files, wherever they were built; the folder that a model began with may be called anything.
    trained["lineage"] = [
      training["datasets"] and {name: known["division"] for name, known in training["datasets"].items()}
      for training in facts["lineage"]
    ]
  else:
    trained["start_from"] = train.get("start_from", "")
  rates = {
    key: facts[key]["false_positive_rate"] for key in ("calibration", "sound_calibration") if facts.get(key)
  }
  chosen = {"split": "validation", "metric": train["metric"], "threshold_false_positive_rates": rates}
  return trained, chosen


def check_split(trained_on: Iterable[str], datasets: Iterable[str], split: str) -> None:
  """Refuses to evaluate a model on what it was trained on or selected with.

  Forms and configs of one dataset hold the same files, so they count as one: who was chosen on the validation
  split of faceforensics/c23 has seen that of faceforensics/c40.

  Args:
    trained_on: names of what it, or a model that it began with, was trained on.
    datasets: names that it is to be evaluated on.
    split: of them; "all" is every split together.

  Raises:
    ValueError: the split is not "test", and the model, or one that it started from, knows one of the
      datasets.
  """
  if split == "test":
    return
  known = {family(name) for name in trained_on}
  if seen := sorted({name for name in datasets if family(name) in known}):
    verb = _USES.get(split, _USES["train"])
    raise ValueError(
      f"This model was {verb} of {', '.join(seen)}, so figures there would flatter it; evaluate it with "
      "--split=test, or on datasets that it has never seen."
    )


_USES = {
  "train": "trained on the train split",
  "validation": "selected and calibrated with the validation split",
  "all": "trained and selected with files",
}


def family(name: str) -> str:
  """A dataset's name without its form: "faceforensics" of "faceforensics/c23"; forms hold the same people.

  So may collections of one's own files, "real_only/press" and "real_only/archive".
  """
  return name.partition("/")[0]


# How faces are chosen, cut and counted ------------------------------------------------------------------


def chosen_faces(boxes: np.ndarray, *, faces: str) -> np.ndarray:
  """[face] bool: which of the faces of a frame count.

  Args:
    boxes: [face, 4] x_min, y_min, x_max, y_max.
    faces: "largest", "half_of_largest" or "all"; of equally large ones the first is the largest.
  """
  boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
  areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
  if faces == "all" or not len(boxes):
    return np.ones(len(boxes), bool)
  if faces == "largest":
    return np.arange(len(boxes)) == areas.argmax()
  if faces == "half_of_largest":
    return areas >= areas.max() / 2
  raise ValueError(f"Unknown choice of faces {faces!r}; there are largest, half_of_largest and all.")


def rectangle(box: Sequence[float], *, preset: Preset, width: int, height: int) -> tuple[int, int, int, int]:
  """left, top, right, bottom of a crop in whole pixels of the frame, within it.

  "square": side is `enlargement` times the longer side of the box, around its middle; its corner is moved
  into the frame, and what then reaches beyond makes it smaller. "box": `enlargement` times the box's width is
  added at its left and right, and of its height above and below; what lies outside of the frame is cut off.
  """
  x_min, y_min, x_max, y_max = (float(value) for value in box)
  if preset.crop == "square":
    side = int(max(x_max - x_min, y_max - y_min) * preset.enlargement)
    left = max(int((x_min + x_max) / 2 - side / 2), 0)
    top = max(int((y_min + y_max) / 2 - side / 2), 0)
    side = max(min(side, width - left, height - top), 1)
    return left, top, left + side, top + side
  across, down = preset.enlargement * (x_max - x_min), preset.enlargement * (y_max - y_min)
  left, top = max(int(x_min - across), 0), max(int(y_min - down), 0)
  return (
    left,
    top,
    max(min(int(x_max + across), width), left + 1),
    max(min(int(y_max + down), height), top + 1),
  )


def template(size: int, *, enlargement: float) -> np.ndarray:
  """[5, 2] where eyes, nose and corners of the mouth lie in a crop of size px, x and y."""
  middle = size / 2
  return middle + (_TEMPLATE * (size / _TEMPLATE_SIZE) - middle) / enlargement


def five_points(landmarks: np.ndarray) -> np.ndarray:
  """[5, 2] middles of the right and left eye, tip of the nose, right and left corner of the mouth.

  Args:
    landmarks: [468, 2 or 3]; right and left are the person's own.
  """
  points = np.asarray(landmarks, np.float64)[:, :2]
  eyes = [points[list(outline)].mean(axis=0) for outline in (RIGHT_EYE, LEFT_EYE)]
  return np.stack([*eyes, points[_NOSE_TIP], *points[list(_MOUTH_CORNERS)]])


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
  """[2, 3] the rotation, scale and shift that takes points nearest to others (least squares, Umeyama 1991).

  Args:
    source, target: [point, 2], at least two of which differ.
  """
  source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
  middle, aim = source.mean(axis=0), target.mean(axis=0)
  # As complex numbers a rotation with a scale is one factor.
  from_middle = (source - middle) @ (1, 1j)
  towards = (target - aim) @ (1, 1j)
  factor = (np.conj(from_middle) @ towards) / (np.conj(from_middle) @ from_middle)
  turn = np.array([[factor.real, -factor.imag], [factor.imag, factor.real]])
  return np.column_stack([turn, aim - turn @ middle])


def cut_face(
  frame: np.ndarray, *, box: np.ndarray, landmarks: np.ndarray, preset: Preset, size: int
) -> np.ndarray:
  """A face cut as a preset says.

  Args:
    frame: uint8 [height, width, 3].
    box: [4] of the face, pixels of the frame.
    landmarks: [468, 2 or 3] likewise.
    preset: whose geometry.
    size: pixels of the result.

  Returns:
    uint8 [size, size, 3].
  """
  if preset.crop == "template":
    target = template(size, enlargement=preset.enlargement)
    return warp(frame, similarity(five_points(landmarks), target), size=size)
  height, width = frame.shape[:2]
  left, top, right, bottom = rectangle(box, preset=preset, width=width, height=height)
  part = frame[top:bottom, left:right]
  across, down = size / part.shape[1], size / part.shape[0]
  if preset.padded:
    across = down = min(across, down)
  matrix = np.array(
    [
      [across, 0.0, (size - across * part.shape[1]) / 2],
      [0.0, down, (size - down * part.shape[0]) / 2],
    ]
  )
  return warp(part, matrix, size=size)


def video_score(frames: Sequence[np.ndarray], *, preset: Preset) -> float | None:
  """The score of a video from those of its faces; None where there is no face.

  Args:
    frames: of each frame the probabilities of the faces that count, maybe none.
    preset: whose rules.
  """
  scores = frame_scores(frames, preset=preset)
  scores = scores[np.isfinite(scores)]
  if not len(scores):
    return None
  return confident_mean(scores) if preset.video_score == "confident" else float(scores.mean())


def frame_scores(frames: Sequence[np.ndarray], *, preset: Preset) -> np.ndarray:
  """[frame] the score of each frame, NaN where there is no face; with "each", [face]."""
  if preset.frame_score == "each":
    return np.concatenate([np.zeros(0), *(np.asarray(f, np.float64).ravel() for f in frames)])
  best = np.max if preset.frame_score == "max" else np.mean
  return np.array([best(f) if len(f) else np.nan for f in frames], np.float64)


def confident_mean(probabilities: np.ndarray) -> float:
  """The mean of those that are sure of a fake, where they are many; else of those sure of none; else of all.

  Many are more than 11 and more than the whole part of two fifths; sure of none must be more than nine of
  ten.

  Args:
    probabilities: [score] 0..1, at least one.
  """
  p = np.asarray(probabilities, np.float64)
  fakes, reals = p[p > _SURE_FAKE], p[p < _SURE_REAL]
  if len(fakes) > max(len(p) // 2.5, 11):
    return float(fakes.mean())
  return float(reals.mean() if len(reals) > 0.9 * len(p) else p.mean())
