"""Faces in pictures: detector, then mesh; the only way into this package that needs no knowledge of its networks.

A face must convince two networks: the detector's score must reach MIN_SCORE and the mesh's own presence MIN_PRESENCE.
Each picture is looked at whole by both detectors. A picture in which that finds nothing is looked at once more with black
around it (a face cut by the borders looks smaller, and whole), and, when it is large, in overlapping tiles.
"""

import dataclasses
import math
from collections.abc import Sequence

import cv2
import numpy as np

from deepscan_jax.faces import align, blazeface, mesh

MIN_SCORE = 0.5
MIN_PRESENCE = 0.5
# Two detections that overlap by more are one face (intersection over union).
SAME_FACE_OVERLAP = 0.3
MAX_FACES = 8
# The mesh was trained on squares this much larger than the detector's box.
MESH_REGION = 1.5


@dataclasses.dataclass(frozen=True)
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
  """A square of one picture, black where it reaches beyond it."""

  picture: int
  x: float
  y: float
  side: float


def find_faces(frames: np.ndarray | Sequence[np.ndarray], *, max_faces: int = MAX_FACES) -> list[list[Face]]:
  """Returns the faces of every picture, the largest first.

  Args:
    frames: uint8 RGB [time, height, width, 3], or a sequence of [height, width, 3] that may differ in size.
    max_faces: per picture.

  Returns:
    One list per picture, empty where no face is found.

  Raises:
    ValueError: when a picture is not uint8 [height, width, 3].
  """
  for frame in frames:
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
      raise ValueError(
        f"A picture is {frame.dtype} {frame.shape}; give uint8 RGB of shape [height, width, 3]."
      )
  faces: list[list[Face]] = [[] for _ in frames]
  for views_of in (_whole, _whole_with_border):
    views = [view for i, frame in enumerate(frames) if not faces[i] for view in views_of(i, frame)]
    for picture, found in _find_in_views(frames, views, max_faces=max_faces).items():
      faces[picture] = found
  return faces


def _whole(picture: int, frame: np.ndarray) -> list[View]:
  height, width = frame.shape[:2]
  side = max(height, width)
  return [View(picture, (width - side) / 2, (height - side) / 2, side)]


def _whole_with_border(picture: int, frame: np.ndarray) -> list[View]:
  height, width = frame.shape[:2]
  side = 1.6 * max(height, width)
  return [View(picture, (width - side) / 2, (height - side) / 2, side)]


def _find_in_views(frames, views: list[View], *, max_faces: int) -> dict[int, list[Face]]:
  """Returns the faces found in `views`, by the index of their picture."""
  if not views:
    return {}
  detections: dict[int, list[np.ndarray]] = {}
  pictures = np.stack(
    [cut_view(frames[view.picture], view, size=blazeface.FULL_RANGE_SIZE) for view in views]
  )
  for size in (blazeface.SHORT_RANGE_SIZE, blazeface.FULL_RANGE_SIZE):
    if size != blazeface.FULL_RANGE_SIZE:
      inputs = np.stack([cv2.resize(p, (size, size), interpolation=cv2.INTER_AREA) for p in pictures])
    else:
      inputs = pictures
    scores, values = blazeface.detect(inputs)
    for view, row, column in zip(views, scores, values, strict=True):
      sure = row >= MIN_SCORE
      points = column[sure].reshape(-1, 8, 2) * (view.side / size) + (view.x, view.y)
      rows = np.concatenate([row[sure, None], points.reshape(-1, 16)], 1)
      detections.setdefault(view.picture, []).append(rows)
  candidates = [
    (picture, row)
    for picture, rows in detections.items()
    for row in merge_overlapping(np.concatenate(rows))[:max_faces]
  ]
  return _add_landmarks(frames, candidates)


def cut_view(frame: np.ndarray, view: View, *, size: int) -> np.ndarray:
  """Returns a view as uint8 [size, size, 3], averaged over areas where it is shrunk."""
  scale = size / view.side
  height, width = frame.shape[:2]
  x0, y0 = max(int(view.x), 0), max(int(view.y), 0)
  x1, y1 = min(math.ceil(view.x + view.side), width), min(math.ceil(view.y + view.side), height)
  u0, v0 = round((x0 - view.x) * scale), round((y0 - view.y) * scale)
  u1, v1 = min(round((x1 - view.x) * scale), size), min(round((y1 - view.y) * scale), size)
  square = np.zeros((size, size, 3), np.uint8)
  if u1 > u0 and v1 > v0:
    shrinks = scale < 1
    square[v0:v1, u0:u1] = cv2.resize(
      frame[y0:y1, x0:x1], (u1 - u0, v1 - v0), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )
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
  """Returns the matrix to the mesh's picture: the box's centre, its longer side times MESH_REGION, the eyes level."""
  low, high = row[1:3].astype(np.float64), row[3:5].astype(np.float64)
  across = row[7:9] - row[5:7]
  angle = math.atan2(across[1], across[0])
  return align.square_transform(
    (low + high) / 2, MESH_REGION * (high - low).max(), angle, size=mesh.MESH_SIZE
  )
