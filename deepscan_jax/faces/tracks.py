"""Tracks: the faces of a video, each followed over the sampled frames.

Frames may lie from a fraction of a second to several seconds apart, so a face is followed by place and size,
not by overlap alone: what counts is how far it moved, in widths of the face, and how much it grew. The
assignment of each frame's faces to the open tracks is optimal (Kuhn 1955, the Hungarian method). A shot
change ends all tracks.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from deepscan_jax.faces.align import resize
from deepscan_jax.faces.detection import Face, overlaps

# Between two sightings a face may move this many of its widths, plus MOVE_PER_S for each second between them.
MAX_MOVE = 0.6
MOVE_PER_S = 0.6
# However long the wait, a face that moved further is another one.
MAX_MOVE_EVER = 1.5
MAX_GROWTH = 1.8
# A track unseen for longer, or for more than two sampled frames, has ended.
MAX_GAP_S = 2.0
MAX_GAP_FRAMES = 3
SHOT_CORRELATION = 0.4


@dataclasses.dataclass(frozen=True, eq=False)
class Track:
  """One person through a video: frame_indices int64 [n], ascending, and the face in each of them."""

  frame_indices: np.ndarray
  faces: tuple[Face, ...]


def group_tracks(
  faces_per_frame: Sequence[Sequence[Face]],
  frame_times_s: np.ndarray,
  *,
  shots: np.ndarray | None = None,
) -> list[Track]:
  """Returns the tracks of a video, in the order in which they begin; every face belongs to exactly one.

  Args:
    faces_per_frame: the faces of every sampled frame, in order of time.
    frame_times_s: [frame] seconds, ascending.
    shots: optional int [frame], the number of each frame's shot (see `find_shots`); no track goes on from one
    shot into the next.

  Raises:
    ValueError: when the lengths differ.
  """
  n = len(faces_per_frame)
  if len(frame_times_s) != n or (shots is not None and len(shots) != n):
    raise ValueError(
      f"There are faces of {n} frames, {len(frame_times_s)} times"
      f"{'' if shots is None else f' and {len(shots)} shots'}; give one of each per frame."
    )
  tracks: list[list[tuple[int, Face]]] = []
  for now, faces in enumerate(faces_per_frame):
    alive = [track for track in tracks if _may_go_on(track[-1][0], now, frame_times_s, shots)]
    costs = np.array(
      [
        [_cost(track[-1][1], face, frame_times_s[now] - frame_times_s[track[-1][0]]) for face in faces]
        for track in alive
      ]
    ).reshape(len(alive), len(faces))
    followed = {column: alive[row] for row, column in _assign(costs) if np.isfinite(costs[row, column])}
    for column, face in enumerate(faces):
      if column in followed:
        followed[column].append((now, face))
      else:
        tracks.append([(now, face)])
  return [
    Track(np.array([i for i, _ in track], np.int64), tuple(face for _, face in track)) for track in tracks
  ]


def find_shots(frames: np.ndarray) -> np.ndarray:
  """Returns the number of each frame's shot, from 0, one more wherever the colours change at once.

  Two frames belong to one shot while the correlation of their colours over a 4x4 grid of 4x4x4-bin RGB
  histograms is at least SHOT_CORRELATION, whatever moves in them.

  Args:
    frames: uint8 [time, height, width, 3].

  Returns:
    int64 [time].
  """
  signatures = [_colours(frame) for frame in frames]
  cuts = [float(np.corrcoef(a, b)[0, 1]) < SHOT_CORRELATION for a, b in itertools.pairwise(signatures)]
  return np.cumsum([0, *cuts])[: len(frames)]


def _may_go_on(last: int, now: int, times_s: np.ndarray, shots: np.ndarray | None) -> bool:
  if shots is not None and shots[last] != shots[now]:
    return False
  return now - last == 1 or (now - last <= MAX_GAP_FRAMES and times_s[now] - times_s[last] <= MAX_GAP_S)


def _cost(before: Face, after: Face, seconds: float) -> float:
  """Returns how unlikely it is that both are one face: infinite, or 0 (nothing moved) to about 4."""
  sizes = [np.sqrt(np.prod(face.box[2:] - face.box[:2])) for face in (before, after)]
  centres = [(face.box[:2] + face.box[2:]) / 2 for face in (before, after)]
  moved = float(np.linalg.norm(centres[1] - centres[0]) / np.mean(sizes))
  growth = float(max(sizes) / min(sizes))
  if moved > min(MAX_MOVE + MOVE_PER_S * seconds, MAX_MOVE_EVER) or growth > MAX_GROWTH:
    return np.inf
  return moved + np.log(growth) + 1 - float(overlaps(before.box, after.box[None])[0])


def _assign(costs: np.ndarray) -> list[tuple[int, int]]:
  """Returns the pairs (row, column), each row and column in one at most, whose costs are least in all."""
  # An impossible pair costs more than any number of possible ones, so it is taken only where nothing else is
  # left.
  costs = np.where(np.isfinite(costs), costs, 1e6)
  if min(costs.shape) <= 1:  # one person, as in most videos: no reason to wait for SciPy to load
    return [divmod(int(costs.argmin()), costs.shape[1])] if costs.size else []
  from scipy.optimize import linear_sum_assignment

  return list(zip(*map(np.ndarray.tolist, linear_sum_assignment(costs)), strict=True))


def _colours(frame: np.ndarray) -> np.ndarray:
  small = resize(frame, width=64, height=64)
  bins = (small // 64).astype(np.int64) @ (16, 4, 1)
  cells = bins.reshape(4, 16, 4, 16).transpose(0, 2, 1, 3).reshape(16, -1)
  return np.bincount((cells + 64 * np.arange(16)[:, None]).ravel(), minlength=16 * 64).astype(np.float64)
