"""Quality of one face crop, and the gate that says why a face is not good enough to be judged."""

import dataclasses
import math

import cv2
import numpy as np

from deepscan_jax.faces.align import (
  EVAL_MARGIN,
  STORED_MARGIN,
  STORED_SIZE,
  apply,
  face_size,
  face_transform,
  resize,
)

# Below, too few pixels of the face are its own: the model's 224 px would be almost all interpolation.
MIN_SIZE_PX = 48
# Real pictures (200 of each of three sources) lie above 0.02 in 99 of 100 cases; faces blurred by a Gaussian
# of 2 % of their size have a median of 0.010, of 3 % one of 0.005.
MIN_SHARPNESS = 0.008
# Beyond, half of the face is hidden and the mesh guesses it.
MAX_YAW = 60.0
MAX_PITCH = 45.0
# Far outside of what those pictures show: brightness 43 to 230, clipped at most 0.43.
MIN_BRIGHTNESS = 30
MAX_BRIGHTNESS = 235
MAX_CLIPPED = 0.5
# The face's side, in pixels, at which sharpness is measured: finer detail is noise and compression as often
# as skin.
SHARPNESS_SIZE = 96

# Degrees that the mesh shows for a level head: its forehead-to-chin line leans.
LEVEL_PITCH = -9.0


@dataclasses.dataclass(frozen=True)
class FaceQuality:
  """What can make the verdict on a face unreliable.

  size_px: the longer side of the face in source pixels (L of align.py).
  sharpness: variance of the Laplacian over variance of the brightness, of the face at 96 px or its own
    smaller size; 0 is a flat blur.
  yaw, pitch, roll: degrees. Yaw is positive when the person turns to their own left, pitch when they look
    up, roll when the head leans clockwise in the picture.
  brightness: mean of the face, 0..255.
  clipped: fraction of the face's pixels that are nearly black or nearly white.
  """

  size_px: float
  sharpness: float
  yaw: float
  pitch: float
  roll: float
  brightness: float
  clipped: float


def measure_quality(crop: np.ndarray, landmarks: np.ndarray) -> FaceQuality:
  """Returns the quality of one face.

  Args:
    crop: uint8 [256, 256, 3], the stored crop that `crop_face` made.
    landmarks: float [468, 3] in pixels of the frame (not of the crop), as in `Face.landmarks`.
  """
  landmarks = np.asarray(landmarks, np.float64)
  size_px = face_size(landmarks)
  grey = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)
  inside = np.zeros(grey.shape, np.uint8)
  hull = cv2.convexHull(apply(face_transform(landmarks), landmarks[:, :2]).astype(np.float32))
  cv2.fillConvexPoly(inside, hull.round().astype(np.int32), 1)
  # Exactly black is what lies outside of the frame; a dark face still has noise above it.
  inside[grey == 0] = 0
  face = grey[inside > 0]
  yaw, pitch, roll = head_angles(landmarks)
  return FaceQuality(
    size_px=size_px,
    sharpness=_sharpness(grey, inside, size_px),
    yaw=yaw,
    pitch=pitch,
    roll=roll,
    brightness=float(face.mean()) if face.size else 0.0,
    clipped=float(np.mean((face < 8) | (face > 247))) if face.size else 1.0,
  )


def quality_problems(quality: FaceQuality) -> tuple[str, ...]:
  """Returns why a face should not be judged, as machine codes; empty when it may be.

  "face_too_small", "face_too_blurred", "extreme_pose", "bad_exposure", by the thresholds at the head of this
  module.
  """
  checks = {
    "face_too_small": quality.size_px < MIN_SIZE_PX,
    "face_too_blurred": quality.sharpness < MIN_SHARPNESS,
    "extreme_pose": abs(quality.yaw) > MAX_YAW or abs(quality.pitch) > MAX_PITCH,
    "bad_exposure": not MIN_BRIGHTNESS <= quality.brightness <= MAX_BRIGHTNESS
    or quality.clipped > MAX_CLIPPED,
  }
  return tuple(code for code, fails in checks.items() if fails)


def crop_sharpness(crop: np.ndarray) -> float:
  """Sharpness of a crop whose landmarks and size in the picture are not known: of the square in its middle.

  A face that was smaller than 96 px in its picture comes out as blurred, which it is at this size.

  Args:
    crop: uint8 [size, size, 3], an evaluation crop of align.py or one like it.
  """
  size = crop.shape[0]
  edge = round(size * EVAL_MARGIN / (1 + 2 * EVAL_MARGIN))
  grey = cv2.cvtColor(crop[edge : size - edge, edge : size - edge], cv2.COLOR_RGB2GRAY)
  small = resize(grey, width=SHARPNESS_SIZE, height=SHARPNESS_SIZE).astype(np.float32)
  return float(cv2.Laplacian(small, cv2.CV_32F).var() / max(small.var(), 1.0))


def head_angles(landmarks: np.ndarray) -> tuple[float, float, float]:
  """Returns yaw, pitch and roll in degrees, as `FaceQuality` defines them, from landmarks [468, 3]."""
  points = np.asarray(landmarks, np.float64)
  # Head axes: to the person's left, down, and (by the right-hand rule) backwards, away from the camera.
  left = points[454] - points[234] + points[263] - points[33]
  left /= np.linalg.norm(left)
  back = np.cross(left, points[152] - points[10])
  back /= np.linalg.norm(back)
  yaw = math.degrees(math.atan2(-back[0], back[2]))
  pitch = math.degrees(math.asin(np.clip(back[1], -1, 1))) - LEVEL_PITCH
  return yaw, pitch, math.degrees(math.atan2(left[1], left[0]))


def _sharpness(grey: np.ndarray, inside: np.ndarray, size_px: float) -> float:
  """Returns the variance of the Laplacian over that of the brightness, within the face."""
  # Never measure an enlarged face: interpolation has no detail to offer.
  scale = min(SHARPNESS_SIZE, size_px) / (STORED_SIZE / (1 + 2 * STORED_MARGIN))
  side = max(round(STORED_SIZE * scale), 8)
  small = resize(grey, width=side, height=side).astype(np.float32)
  # One pixel less all round: the border of the frame is an edge of its own.
  within = (
    cv2.erode(cv2.resize(inside, (side, side), interpolation=cv2.INTER_NEAREST), np.ones((3, 3), np.uint8))
    > 0
  )
  if not within.any():
    return 0.0
  return float(cv2.Laplacian(small, cv2.CV_32F)[within].var() / max(small[within].var(), 1.0))
