"""Faces in pictures: the detector finds them, the mesh confirms them and gives their landmarks.

A face must convince two networks: the detector's score must reach MIN_SCORE and the mesh's own presence
MIN_PRESENCE.

A full search looks at a whole picture, and at overlapping tiles of a large one. Measured on FFHQ faces pasted
into 1080p pictures, by the longer side of the face: short range on the whole picture finds 0.33 of them at
200 px and all at 350 px; full range 0.55 at 130 px and 0.85 at 200 px; full range on tiles of 640 px 0.78 at
48 px and 0.97 at 80 px.

In a video, only a few frames get a full search. In the others, the quick short range network looks at the
whole frame and around the places of those faces. A picture in which nothing is found is looked at once more
with black around it: a face cut by the borders then looks whole.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from deepscan_jax.faces import align, blazeface, mesh
from deepscan_jax.faces.network import BATCH_SIZE

# Of 900 real faces found, 99 % have a score over 0.54 and a presence over 0.97. Without faces (11 pictures of
# things and animals, whole and in tiles) the best was a cat: score 0.55, presence 0.42.
MIN_SCORE = 0.5
MIN_PRESENCE = 0.75
# Two detections that overlap by more are one face (intersection over union).
SAME_FACE_OVERLAP = 0.3
MAX_FACES = 8
# The mesh was trained on squares this much larger than the detector's box.
MESH_REGION = 1.5
# Up to this size of picture, short range finds all faces that are worth finding.
SHORT_RANGE_UP_TO = 256
TILE_SIZE = 640
TILE_STEP = 0.75
# A video's full searches: one for so many sampled frames, and in up to MAX_LOST frames without a face.
FRAMES_PER_SEARCH = 16
MAX_LOST = 8
# Where a face was, it is looked for in a square of so many times its size.
REGION = 4.0
BORDER = 1.4


@dataclasses.dataclass(frozen=True, eq=False)
class Face:
  """One face in one picture, in pixels of it.

  box: float32 [4], x_min, y_min, x_max, y_max of the landmarks.
  score: the detector's, 0..1.
  keypoints: float32 [6, 2] of the detector: right eye, left eye, nose tip, mouth, right ear, left ear.
  landmarks: float32 [468, 3] of the mesh; z on the scale of x and y.
  presence: the mesh's own belief that it looks at a face, 0..1.
  """

  box: np.ndarray
  score: float
  keypoints: np.ndarray
  landmarks: np.ndarray
  presence: float


@dataclasses.dataclass(frozen=True)
class View:
  """A square of one picture, black where it reaches beyond it; size: pixels of the detector to look at it."""

  picture: int
  x: float
  y: float
  side: float
  size: int = blazeface.SHORT_RANGE_SIZE


def find_faces(frames: np.ndarray | Sequence[np.ndarray], *, max_faces: int = MAX_FACES) -> list[list[Face]]:
  """Returns the faces of every picture, the largest first.

  Args:
    frames: uint8 RGB [time, height, width, 3], taken as a video: what is found in one frame helps in the
      others. Or a sequence of single pictures [height, width, 3] of any sizes: each gets a full search.
    max_faces: per picture.

  Returns:
    One list per picture, empty where no face is found.

  Raises:
    ValueError: when a picture is not uint8 [height, width, 3] with at least one pixel.
  """
  for frame in frames:
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3 or 0 in frame.shape:
      raise ValueError(
        f"A picture is {frame.dtype} {frame.shape}; give uint8 RGB [height, width, 3], not empty."
      )
  faces: list[list[Face]] = [[] for _ in frames]

  def look(views: Iterator[View]) -> None:
    for picture, found in _find_in_views(frames, list(views)).items():
      faces[picture] = found

  def empty() -> list[int]:
    return [i for i, found in enumerate(faces) if not found]

  if isinstance(frames, np.ndarray):
    searched = _spread(range(len(frames)), -(-len(frames) // FRAMES_PER_SEARCH))
    look(view for i in searched for view in _full_search(i, frames[i]))
    known = {i: faces[i] for i in searched}
    others = [i for i in range(len(frames)) if i not in known]
    look(view for i in others for view in (_whole(i, frames[i]), *_regions(i, frames[i], known)))
    lost = [i for i in empty() if i not in known]
    look(view for i in _spread(lost, MAX_LOST) for view in _full_search(i, frames[i]))
  else:
    look(view for i, frame in enumerate(frames) for view in _full_search(i, frame))
  look(_whole(i, frames[i], border=BORDER) for i in empty())
  return [found[:max_faces] for found in faces]


def prepare(*, wait: bool = True, batches: Sequence[int] = (BATCH_SIZE,)) -> None:
  """Compiles the networks for videos; without it, `find_faces` compiles what it needs when it needs it.

  Args:
    wait: False returns once they are traced; they are compiled side by side while the caller does something
      else, such as waiting for a file to be decoded.
    batches: sizes of batches; pictures need 1 as well.
  """
  # The one that takes longest first.
  programs = [
    begin(batch=batch)
    for batch in sorted(batches, reverse=True)
    for begin in (
      functools.partial(blazeface.begin_compiling, blazeface.FULL_RANGE_SIZE),
      mesh.begin_compiling,
      functools.partial(blazeface.begin_compiling, blazeface.SHORT_RANGE_SIZE),
    )
  ]
  if wait:
    for program in programs:
      program.result()


def _spread(indices: Sequence[int], n: int) -> list[int]:
  """Returns at most n of `indices`: the middles of n equal parts."""
  n = min(n, len(indices))
  return [indices[(2 * i + 1) * len(indices) // (2 * n)] for i in range(n)]


def _full_search(picture: int, frame: np.ndarray) -> Iterator[View]:
  yield _whole(picture, frame)
  height, width = frame.shape[:2]
  side = max(height, width)
  if side > SHORT_RANGE_UP_TO:
    yield _whole(picture, frame, size=blazeface.FULL_RANGE_SIZE)
  # Tiles a third as large, again and again, until the smallest faces worth finding are large enough.
  while side > TILE_SIZE:
    side = max(side / 3, TILE_SIZE)
    for y in _tile_starts(height, side):
      for x in _tile_starts(width, side):
        yield View(picture, x, y, side, size=blazeface.FULL_RANGE_SIZE)


def _tile_starts(length: int, side: float) -> np.ndarray:
  """Returns where tiles begin that cover `length` with overlap; one tile in the middle where it is longer."""
  if side >= length:
    return np.array([(length - side) / 2])
  return np.linspace(0, length - side, math.ceil((length - side) / (TILE_STEP * side)) + 1)


def _whole(
  picture: int, frame: np.ndarray, *, border: float = 1.0, size: int = blazeface.SHORT_RANGE_SIZE
) -> View:
  height, width = frame.shape[:2]
  side = border * max(height, width)
  return View(picture, (width - side) / 2, (height - side) / 2, side, size=size)


def _regions(picture: int, frame: np.ndarray, known: dict[int, list[Face]]) -> Iterator[View]:
  """Yields squares around the faces of the nearest searched frames, where the whole is too coarse."""
  before = max((i for i in known if i < picture), default=None)
  after = min((i for i in known if i > picture), default=None)
  taken: list[np.ndarray] = []
  for face in (face for i in (before, after) if i is not None for face in known[i]):
    centre, side = (face.box[:2] + face.box[2:]) / 2, REGION * float(max(face.box[2:] - face.box[:2]))
    box = np.concatenate([centre - side / 2, centre + side / 2])
    # The same place needs one look only, and a face that fills much of the frame is seen in the whole.
    if side < max(frame.shape[:2]) * 0.75 and not (taken and overlaps(box, np.array(taken)).max() > 0.6):
      taken.append(box)
      yield View(picture, *box[:2].tolist(), side)


def _find_in_views(frames, views: list[View]) -> dict[int, list[Face]]:
  """Returns the faces found in `views`, by the index of their picture."""
  detections: dict[int, list[np.ndarray]] = {}
  for size in (blazeface.SHORT_RANGE_SIZE, blazeface.FULL_RANGE_SIZE):
    group = [view for view in views if view.size == size]
    if not group:
      continue
    images = np.stack([cut_view(frames[view.picture], view) for view in group])
    single = len(frames) == 1 or not isinstance(frames, np.ndarray)
    found = [blazeface.detect(part) for part in _parts(images, alone=single)]
    scores, values = (np.concatenate(answers) for answers in zip(*found, strict=True))
    for view, view_scores, view_values in zip(group, scores, values, strict=True):
      sure = view_scores >= MIN_SCORE
      points = view_values[sure].reshape(-1, 8, 2) * (view.side / size) + (view.x, view.y)
      rows = np.concatenate([view_scores[sure, None], points.reshape(-1, 16)], 1)
      detections.setdefault(view.picture, []).append(rows)
  candidates = [
    (picture, row)
    for picture, rows in detections.items()
    for row in merge_overlapping(np.concatenate(rows))[: 2 * MAX_FACES]
  ]
  return _add_landmarks(frames, candidates)


def _parts(images: np.ndarray, *, alone: bool) -> list[np.ndarray]:
  """Returns images in the parts in which they are looked at.

  Where `alone`, one or two that would begin another batch, of zeros otherwise, are looked at one by one: of a
  photograph nine views are searched. A video would wait for one more program to be compiled.
  """
  rest = len(images) % BATCH_SIZE
  if not alone or len(images) < BATCH_SIZE or not 0 < rest <= 2:
    return [images]
  full = len(images) - rest
  return [images[:full], *(images[i : i + 1] for i in range(full, len(images)))]


def cut_view(frame: np.ndarray, view: View) -> np.ndarray:
  """Returns a view as uint8 [size, size, 3], averaged over areas where it is shrunk."""
  size = view.size
  scale = size / view.side
  height, width = frame.shape[:2]
  x0, y0 = max(int(view.x), 0), max(int(view.y), 0)
  x1, y1 = min(math.ceil(view.x + view.side), width), min(math.ceil(view.y + view.side), height)
  u0, v0 = round((x0 - view.x) * scale), round((y0 - view.y) * scale)
  u1, v1 = min(round((x1 - view.x) * scale), size), min(round((y1 - view.y) * scale), size)
  square = np.zeros((size, size, 3), np.uint8)
  if u1 > u0 and v1 > v0:
    square[v0:v1, u0:u1] = align.resize(frame[y0:y1, x0:x1], width=u1 - u0, height=v1 - v0)
  return square


def merge_overlapping(rows: np.ndarray) -> np.ndarray:
  """Returns one row per face: overlapping detections are averaged by score, under the best of their scores.

  The "blending" of the BlazeFace paper, section 3.4: steadier in time than keeping the best box alone.

  Args:
    rows: [detection, 17]: score, then x_min, y_min, x_max, y_max and six keypoints.

  Returns:
    float32 [face, 17], best score first.
  """
  rows = rows[np.argsort(-rows[:, 0], kind="stable")]
  merged = []
  while len(rows):
    same = overlaps(rows[0, 1:5], rows[:, 1:5]) > SAME_FACE_OVERLAP
    same[0] = True
    row = np.average(rows[same], axis=0, weights=rows[same, 0])
    row[0] = rows[0, 0]
    merged.append(row)
    rows = rows[~same]
  return np.array(merged, np.float32).reshape(-1, 17)


def overlaps(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
  """Returns the intersection over union of one box [4] with each of boxes [n, 4]: [n] in 0..1."""
  sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
  common = np.prod(np.maximum(sides, 0), axis=1)
  union = np.prod(box[2:] - box[:2]) + np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) - common
  return common / np.maximum(union, 1e-9)


def _add_landmarks(frames, candidates: list[tuple[int, np.ndarray]]) -> dict[int, list[Face]]:
  """Returns the candidates (picture, row of `merge_overlapping`) in which the mesh sees a face too."""
  if not candidates:
    return {}
  matrices = [_mesh_region(row) for _, row in candidates]
  images = np.stack(
    [
      align.warp(frames[picture], matrix, size=mesh.MESH_SIZE)
      for (picture, _), matrix in zip(candidates, matrices, strict=True)
    ]
  )
  faces: dict[int, list[Face]] = {}
  for (picture, row), matrix, points, presence in zip(
    candidates, matrices, *mesh.find_landmarks(images), strict=True
  ):
    if presence < MIN_PRESENCE:
      continue
    back = align.invert(matrix)
    depth = points[:, 2] * math.hypot(*back[:, 0])
    landmarks = np.column_stack([align.apply(back, points[:, :2]), depth]).astype(np.float32)
    box = np.concatenate([landmarks[:, :2].min(0), landmarks[:, :2].max(0)])
    others = faces.setdefault(picture, [])
    if others and overlaps(box, np.array([other.box for other in others])).max() > SAME_FACE_OVERLAP:
      continue
    others.append(Face(box, float(row[0]), row[5:].reshape(6, 2), landmarks, float(presence)))
  for found in faces.values():
    found.sort(key=lambda face: -float(np.prod(face.box[2:] - face.box[:2])))
  return faces


def _mesh_region(row: np.ndarray) -> np.ndarray:
  """Returns the matrix to the mesh's picture: centre of the box, its longer side enlarged, eyes level."""
  low, high = row[1:3].astype(np.float64), row[3:5].astype(np.float64)
  across = row[7:9] - row[5:7]
  angle = math.atan2(across[1], across[0])
  return align.square_transform(
    (low + high) / 2, MESH_REGION * (high - low).max(), angle, size=mesh.MESH_SIZE
  )
