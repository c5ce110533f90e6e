"""Faces of pictures and videos: detector, landmarks, tracks, aligned crops, quality."""

from deepscan_jax.faces.align import (
  EVAL_SIZE,
  STORED_MARGIN,
  STORED_SIZE,
  crop_face,
  eval_crop,
  face_transform,
)
from deepscan_jax.faces.detection import Face, find_faces

__all__ = [
  "EVAL_SIZE",
  "STORED_MARGIN",
  "STORED_SIZE",
  "Face",
  "crop_face",
  "eval_crop",
  "face_transform",
  "find_faces",
]
