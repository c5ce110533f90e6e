"""From scores of single windows to those of frames, tracks and videos: who belongs to whom, and who decides.

An example's id is the file's own id, "#", and the place: "person.window" for a face, "sound.window" for sound
(datasets/media_builder.py). A file is known by its dataset and its whole id, never by the name of its folder
or its last part: two clips called 001.mp4 are two videos.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from deepscan_jax.protocols import LEVELS

FACES, SOUND = "faces", "sound"
_SEPARATOR = "#"
# Upper ends of the buckets of a face's size in pixels and of its sharpness. Sharpness is the variance of the
# Laplacian over that of the brightness, of the face at 96 px (faces/quality.py).
FACE_SIZE_BUCKETS = (
  ("below 64 px", 64.0),
  ("64 to 128 px", 128.0),
  ("128 to 256 px", 256.0),
  ("256 px or more", np.inf),
)
SHARPNESS_BUCKETS = (
  ("blurred (below 0.03)", 0.03),
  ("soft (0.03 to 0.1)", 0.1),
  ("sharp (0.1 or more)", np.inf),
)


@dataclasses.dataclass(frozen=True)
class Rows:
  """Scores of one level with what is known of each, as columns [row].

  Attributes:
    id: unique within a level.
    file: dataset, ":" and the file's id; of pairs both twins are files of their own (`twin_file`).
    dataset, source, method: str; method is "" for a real one.
    group: dataset, "/" and the group; rows of one group are not independent.
    part: FACES or SOUND.
    condition: "untouched", or of pairs with pseudo-fakes "plain" or "degraded".
    label: int, 1 = fake.
    score: float64, higher is more likely fake: the calibrated logit, whose sigmoid is the probability.
    called: bool, whether it is called manipulated at the threshold that validation fixed.
    doubtful: bool, whether it is called inconclusive.
    face_size_px, sharpness: float64 of the face, NaN where not known.
  """

  id: np.ndarray
  file: np.ndarray
  dataset: np.ndarray
  group: np.ndarray
  source: np.ndarray
  method: np.ndarray
  part: np.ndarray
  condition: np.ndarray
  label: np.ndarray
  score: np.ndarray
  called: np.ndarray
  doubtful: np.ndarray
  face_size_px: np.ndarray
  sharpness: np.ndarray

  def __post_init__(self):
    for field in dataclasses.fields(self):
      values = np.asarray(getattr(self, field.name))
      object.__setattr__(self, field.name, values.astype(_DTYPES.get(field.name, values.dtype)))

  def __len__(self) -> int:
    return len(self.id)

  @property
  def probability(self) -> np.ndarray:
    """[row] calibrated probability of a fake, where fakes and real ones are equally frequent."""
    return 1 / (1 + np.exp(-np.clip(self.score, -500, 500)))

  def take(self, keep: np.ndarray) -> "Rows":
    """The rows where keep [row] is True, or in the order of its indices."""
    return Rows(**{name: getattr(self, name)[keep] for name in COLUMNS})

  @classmethod
  def of(cls, rows: Sequence[Mapping]) -> "Rows":
    """From a dict for each row."""
    return cls(**{name: np.array([row[name] for row in rows]) for name in COLUMNS})

  @classmethod
  def join(cls, parts: Sequence["Rows"]) -> "Rows":
    """All rows of the parts."""
    parts = [part for part in parts if len(part)] or [cls.of([])]
    return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS})


COLUMNS = tuple(field.name for field in dataclasses.fields(Rows))
_DTYPES = {
  "label": np.int64,
  "score": np.float64,
  "called": np.bool_,
  "doubtful": np.bool_,
  "face_size_px": np.float64,
  "sharpness": np.float64,
}


def file_of(example_id: str) -> str:
  """The id of an example's file: all before the last "#"."""
  return example_id.rpartition(_SEPARATOR)[0] or example_id


def twin_file(file: str, *, condition: str, label: int) -> str:
  """The name of a file that stands for one row of its pairs: each twin of a video is a video."""
  return f"{file}~{condition}.{'twin' if label else 'real'}"


def track_of(example_id: str) -> str:
  """The person of an example, or "sound": what stands between the last "#" and the dot behind it."""
  return example_id.rpartition(_SEPARATOR)[2].partition(".")[0]


def part_of_track(track: str) -> str:
  """Whether a track of `track_of` is one of faces."""
  return SOUND if track == SOUND else FACES


def aggregate(
  windows: Rows,
  *,
  frames: Rows | None = None,
  decide: Callable[[np.ndarray, np.ndarray], int],
  outcome: Callable[[str, float], tuple[bool, bool]],
) -> dict[str, Rows]:
  """Scores of all levels from those of windows, as the detector makes them for a file.

  A track's score is the mean of its windows'; a file's that of the person who decides, or of its sound, if
  there are no faces or the sound alone is called.

  Args:
    windows: whose ids are their file, "#" and the place, as in an example's id.
    frames: scores of single frames; None: windows hold one frame each, or frames have no scores.
    decide: (number of windows [track], mean score [track]) of the faces of a file -> index of who decides.
    outcome: (part, score) -> (called, doubtful).

  Returns:
    By level of `protocols.LEVELS`.
  """
  by_track = _grouped(
    [f"{file}{_SEPARATOR}{track_of(i)}" for file, i in zip(windows.file, windows.id, strict=True)]
  )
  tracks, sizes = [], []
  for name, members in by_track.items():
    rows = windows.take(members)
    score = float(rows.score.mean())
    part = part_of_track(name.rpartition(_SEPARATOR)[2])
    tracks.append({**_common(rows), "id": name, "part": part, **_scored(part, score, outcome)})
    sizes.append(len(members))
  track_rows, sizes = Rows.of(tracks), np.array(sizes)
  videos = []
  for name, members in _grouped(track_rows.file.tolist()).items():
    rows, count = track_rows.take(members), sizes[members]
    candidates = []
    faces = np.flatnonzero(rows.part == FACES)
    if len(faces):
      candidates.append(int(faces[decide(count[faces], rows.score[faces])]))
    candidates += np.flatnonzero(rows.part == SOUND).tolist()
    # Scores of the two do not compare: see inference.faces_decide.
    best = max(candidates, key=lambda i: (rows.called[i], rows.part[i] == FACES))
    chosen = {column: getattr(rows, column)[best] for column in COLUMNS}
    videos.append({**chosen, "id": name, "label": rows.label.max(), "method": _most(rows.method)})
  return {
    "frame": windows.take(windows.part == FACES) if frames is None else frames,
    "window": windows,
    "track": track_rows,
    "video": Rows.of(videos),
  }


def empty() -> dict[str, Rows]:
  """All levels without rows."""
  return {level: Rows.of([]) for level in LEVELS}


def join(parts: Sequence[Mapping[str, Rows]]) -> dict[str, Rows]:
  """Level by level all rows of the parts."""
  return {level: Rows.join([part[level] for part in parts]) for level in LEVELS}


def bucket(values: np.ndarray, buckets: Sequence[tuple[str, float]]) -> np.ndarray:
  """[row] name of the bucket of each value; "unknown" for NaN."""
  names = np.array([name for name, _ in buckets])
  uppers = np.array([upper for _, upper in buckets])
  known = np.isfinite(values)
  found = names[np.searchsorted(uppers, np.where(known, values, 0.0), side="right").clip(0, len(names) - 1)]
  return np.where(known, found, "unknown")


def _scored(part: str, score: float, outcome: Callable[[str, float], tuple[bool, bool]]) -> dict:
  called, doubtful = outcome(part, score)
  return {"score": score, "called": called, "doubtful": doubtful}


def _grouped(names: Sequence[str]) -> dict[str, np.ndarray]:
  """Indices by name, in order of first appearance."""
  members: dict[str, list[int]] = {}
  for index, name in enumerate(names):
    members.setdefault(name, []).append(index)
  return {name: np.array(indices) for name, indices in members.items()}


def _common(rows: Rows) -> dict:
  """What a track has of its windows: their common facts, the highest label, the median of measures."""
  kept = {name: getattr(rows, name)[0] for name in ("file", "dataset", "group", "source", "condition")}
  measures = {}
  for name in ("face_size_px", "sharpness"):
    values = getattr(rows, name)
    known = values[np.isfinite(values)]
    measures[name] = float(np.median(known)) if len(known) else np.nan
  return {**kept, **measures, "label": rows.label.max(), "method": _most(rows.method)}


def _most(methods: np.ndarray) -> str:
  """The method that is named; where several are, the first in alphabetical order."""
  return next((str(method) for method in np.unique(methods) if method), "")
