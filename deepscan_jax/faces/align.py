"""Crops of one face in a stated geometry, the same for builders, training and detection.

A stored crop is a square: rotated so that the line through the outer eye corners is level, centred on the
bounding box of all landmarks in that rotated frame, with the box's longer side L plus STORED_MARGIN * L on
every side, resampled to STORED_SIZE pixels, black outside of the frame. The model sees its central EVAL_SIZE
pixels, which leaves 0.15 L around the face; training jitters within the rest.

Coordinates are continuous pixels: the centre of the first pixel is (0.5, 0.5).
"""

import math

import cv2
import numpy as np

from deepscan_jax.faces.regions import LEFT_EYE_OUTER_CORNER, LIPS_OUTER, RIGHT_EYE_OUTER_CORNER

STORED_SIZE = 256
EVAL_SIZE = 224
MOUTH_SIZE = 96
EVAL_MARGIN = 0.15
STORED_MARGIN = (STORED_SIZE / EVAL_SIZE * (1 + 2 * EVAL_MARGIN) - 1) / 2


def face_transform(landmarks: np.ndarray) -> np.ndarray:
  """Returns the matrix that takes frame pixels to stored-crop pixels.

  Args:
    landmarks: [468, 2 or 3] pixels of the frame.

  Returns:
    float64 [2, 3]: a rotation, one scale and a shift.
  """
  points = np.asarray(landmarks, np.float64)[:, :2]
  angle = _eye_angle(points)
  low, high = _rotated_extent(points, angle)
  side = (high - low).max() * (1 + 2 * STORED_MARGIN)
  return square_transform(rotate((low + high) / 2, angle), side, angle, size=STORED_SIZE)


def face_size(landmarks: np.ndarray) -> float:
  """Returns L, the longer side of the face's box after levelling the eyes, in the landmarks' pixels."""
  points = np.asarray(landmarks, np.float64)[:, :2]
  low, high = _rotated_extent(points, _eye_angle(points))
  return float((high - low).max())


def crop_face(frame: np.ndarray, landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the stored crop of one face and its landmarks in crop pixels.

  Args:
    frame: uint8 [height, width, 3].
    landmarks: [468, 2 or 3] pixels of the frame.

  Returns:
    crop uint8 [256, 256, 3] and landmarks float32 [468, 2].
  """
  matrix = face_transform(landmarks)
  return warp(frame, matrix, size=STORED_SIZE), apply(matrix, landmarks[:, :2]).astype(np.float32)


def eval_crop(crops: np.ndarray) -> np.ndarray:
  """Returns the central [..., 224, 224, 3] of stored crops [..., 256, 256, 3]: what evaluation sees."""
  start = (STORED_SIZE - EVAL_SIZE) // 2
  return crops[..., start : start + EVAL_SIZE, start : start + EVAL_SIZE, :]


def eval_points(points: np.ndarray) -> np.ndarray:
  """Returns points [..., 2] of a stored crop in pixels of its `eval_crop`."""
  return points - np.float32((STORED_SIZE - EVAL_SIZE) // 2)


def eval_place(matrix: np.ndarray) -> np.ndarray:
  """Returns the matrix from pixels of the `eval_crop` to those of the frame, both counted from corners.

  Args:
    matrix: float64 [2, 3] of `face_transform`.
  """
  inverse, inset = invert(matrix), (STORED_SIZE - EVAL_SIZE) // 2
  return np.column_stack([inverse[:, :2], apply(inverse, np.array([inset, inset], np.float64))])


def mouth_crop(crop: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
  """Returns the pixels around the mouth of a stored crop, at its scale, so that nothing is resampled again.

  Args:
    crop: uint8 [256, 256, 3].
    landmarks: [468, 2] pixels of the crop.

  Returns:
    uint8 [96, 96, 3], the square around the middle of the lips that lies within the crop.
  """
  lips = landmarks[list(LIPS_OUTER)]
  corner = np.round((lips.min(axis=0) + lips.max(axis=0)) / 2 - MOUTH_SIZE / 2).astype(int)
  x, y = np.clip(corner, 0, STORED_SIZE - MOUTH_SIZE)
  return crop[y : y + MOUTH_SIZE, x : x + MOUTH_SIZE]


def square_transform(centre: np.ndarray, side: float, angle: float, *, size: int) -> np.ndarray:
  """Returns float64 [2, 3] that takes a square of a frame to size x size pixels.

  Args:
    centre: [2] of the square, pixels of the frame.
    side: of the square in pixels of the frame.
    angle: radians by which the square's horizontal axis is turned, from the frame's x axis towards its y
    axis.
    size: pixels.
  """
  scale = size / side
  cosine, sine = scale * math.cos(angle), scale * math.sin(angle)
  turn = np.array([[cosine, sine], [-sine, cosine]])
  return np.column_stack([turn, size / 2 - turn @ np.asarray(centre, np.float64)])


def apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
  """Returns points [..., 2] moved by a [2, 3] matrix."""
  return points @ matrix[:, :2].T + matrix[:, 2]


def invert(matrix: np.ndarray) -> np.ndarray:
  """Returns the [2, 3] matrix that undoes `matrix`."""
  inverse = np.linalg.inv(matrix[:, :2])
  return np.column_stack([inverse, -inverse @ matrix[:, 2]])


def rotate(points: np.ndarray, angle: float) -> np.ndarray:
  """Returns points [..., 2] turned by `angle` radians around the origin, from x towards y."""
  cosine, sine = math.cos(angle), math.sin(angle)
  return points @ np.array([[cosine, sine], [-sine, cosine]])


def warp(frame: np.ndarray, matrix: np.ndarray, *, size: int) -> np.ndarray:
  """Returns the square picture that `matrix` cuts out of a frame, black outside of it.

  Where the frame is shrunk by two or more, the pixels under the square are first averaged in whole blocks, so
  that fine texture does not alias.

  Args:
    frame: uint8 [height, width, 3].
    matrix: [2, 3], frame pixels to pixels of the result, a similarity.
    size: pixels of the result.

  Returns:
    uint8 [size, size, 3].
  """
  shrink = int(1 / math.sqrt(abs(np.linalg.det(matrix[:, :2]))))
  if shrink >= 2:
    corners = apply(invert(matrix), np.array([[0, 0], [size, 0], [0, size], [size, size]], np.float64))
    height, width = frame.shape[:2]
    # Whole blocks on a grid fixed to the frame; one block more on each side for the interpolation.
    low = np.maximum(np.floor(corners.min(0) / shrink).astype(int) - 1, 0)
    high = np.minimum(np.ceil(corners.max(0) / shrink).astype(int) + 1, (width // shrink, height // shrink))
    if (high <= low).any():
      return np.zeros((size, size, 3), np.uint8)
    part = frame[low[1] * shrink : high[1] * shrink, low[0] * shrink : high[0] * shrink]
    frame = cv2.resize(part, tuple(map(int, high - low)), interpolation=cv2.INTER_AREA)
    matrix = np.column_stack([matrix[:, :2] * shrink, matrix[:, 2] + matrix[:, :2] @ (low * shrink)])
  # OpenCV puts the centre of the first pixel at (0, 0).
  shift = matrix[:, :2] @ (0.5, 0.5) - 0.5
  return cv2.warpAffine(frame, np.column_stack([matrix[:, :2], matrix[:, 2] + shift]), (size, size))


def resize(image: np.ndarray, *, width: int, height: int) -> np.ndarray:
  """Returns an image at another size, averaged over areas where it is shrunk.

  Halves it (2x2 means) while it is at least twice too large, then interpolates: several times quicker than
  OpenCV's averaging by a fraction, and as free of aliasing as a detector needs.
  """
  while image.shape[0] >= 2 * height and image.shape[1] >= 2 * width:
    half_height, half_width = image.shape[0] // 2, image.shape[1] // 2
    even = image[: 2 * half_height, : 2 * half_width]
    image = cv2.resize(even, (half_width, half_height), interpolation=cv2.INTER_AREA)
  return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def _eye_angle(points: np.ndarray) -> float:
  across = points[LEFT_EYE_OUTER_CORNER] - points[RIGHT_EYE_OUTER_CORNER]
  return math.atan2(across[1], across[0])


def _rotated_extent(points: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
  level = rotate(points, -angle)
  return level.min(0), level.max(0)
