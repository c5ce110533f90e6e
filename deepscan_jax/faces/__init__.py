"""Faces of pictures and videos: detector, landmarks, tracks, aligned crops, quality."""

from deepscan_jax.faces.align import (
  EVAL_SIZE,
  MOUTH_SIZE,
  STORED_MARGIN,
  STORED_SIZE,
  crop_face,
  eval_crop,
  eval_place,
  eval_points,
  face_size,
  face_transform,
  mouth_crop,
)
from deepscan_jax.faces.detection import Face, find_faces, prepare
from deepscan_jax.faces.network import BATCH_SIZE, run_batch, run_by
from deepscan_jax.faces.quality import FaceQuality, crop_sharpness, measure_quality, quality_problems
from deepscan_jax.faces.regions import N_LANDMARKS
from deepscan_jax.faces.tracks import Track, find_shots, group_tracks

__all__ = [
  "BATCH_SIZE",
  "EVAL_SIZE",
  "MOUTH_SIZE",
  "N_LANDMARKS",
  "STORED_MARGIN",
  "STORED_SIZE",
  "Face",
  "FaceQuality",
  "Track",
  "crop_face",
  "crop_sharpness",
  "eval_crop",
  "eval_place",
  "eval_points",
  "face_size",
  "face_transform",
  "find_faces",
  "find_shots",
  "group_tracks",
  "measure_quality",
  "mouth_crop",
  "prepare",
  "quality_problems",
  "run_batch",
  "run_by",
]
