"""Faces of pictures and videos: detector, landmarks, tracks, aligned crops, quality."""

from deepscan_jax.faces.align import (
  EVAL_SIZE,
  STORED_MARGIN,
  STORED_SIZE,
  crop_face,
  eval_crop,
  face_size,
  face_transform,
)
from deepscan_jax.faces.detection import Face, find_faces, prepare
from deepscan_jax.faces.quality import FaceQuality, measure_quality, quality_problems
from deepscan_jax.faces.tracks import Track, find_shots, group_tracks

__all__ = [
  "EVAL_SIZE",
  "STORED_MARGIN",
  "STORED_SIZE",
  "Face",
  "FaceQuality",
  "Track",
  "crop_face",
  "eval_crop",
  "face_size",
  "face_transform",
  "find_faces",
  "find_shots",
  "group_tracks",
  "measure_quality",
  "prepare",
  "quality_problems",
]
