"""How many self-blended pairs one thread makes in a second of its processor: `deepscan benchmark pairs`.

Stage upon stage, as a loader's worker makes them, of a portrait as it is and of one cut so tightly that its
stored crop reaches beyond it, with the same random numbers in every turn. Each frame of a window is a pair.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable

import cv2
import numpy as np

from deepscan_jax import faces
from deepscan_jax.augment import AugmentConfig, ColourConfig, augment_pair, h264_clip, jpeg
from deepscan_jax.pseudofakes import (
  BlendConfig,
  ClipBlendConfig,
  MotionConfig,
  moving_still,
  self_blend,
  self_blend_clip,
)

from . import demo

PAIRS = 100
WINDOW_FRAMES = 16
# Promises, in pairs a second.
LEAST_BEFORE_CODECS, LEAST_AUGMENTED = 250.0, 120.0

Face = tuple[np.ndarray, np.ndarray]

NO_CODEC = dataclasses.replace(
  AugmentConfig(), h264_probability=0.0, jpeg_probability=0.0, second_jpeg_probability=0.0
)
EVERYTHING = AugmentConfig(
  colour=ColourConfig(rgb_shift_probability=1.0, hsv_probability=1.0, brightness_contrast_probability=1.0),
  shrink_probability=1.0,
  blur_probability=1.0,
  noise_probability=1.0,
  h264_probability=1.0,
  jpeg_probability=1.0,
  second_jpeg_probability=1.0,
)


def pair_rows(*, in_turns: Callable, row: Callable, repeats: int) -> list:
  """The rows of the benchmark, for launch.benchmark, whose `in_turns` and `_rate_row` these are."""
  sample = sample_faces()
  pictures = functools.partial(make_pairs, sample)
  windows = functools.partial(make_windows, sample)
  frames = WINDOW_FRAMES * len(sample)
  window = f"windows of {WINDOW_FRAMES} frames: "
  cases = [
    ("self-blend at 256 px", PAIRS, None, pictures),
    ("and cut to 224 px, camera", PAIRS, LEAST_BEFORE_CODECS, functools.partial(pictures, augment=NO_CODEC)),
    (
      "and codecs, as in training",
      PAIRS,
      LEAST_AUGMENTED,
      functools.partial(pictures, augment=AugmentConfig()),
    ),
    ("and every change every time", PAIRS, LEAST_AUGMENTED, functools.partial(pictures, augment=EVERYTHING)),
    (f"{window}a moved still", frames, None, windows),
    (f"{window}and self-blend", frames, None, functools.partial(windows, blend=True)),
    (
      f"{window}and augmented, as in training",
      frames,
      None,
      functools.partial(windows, blend=True, augment=AugmentConfig()),
    ),
    ("JPEG of both twins alone", PAIRS, None, functools.partial(encode_jpeg, sample)),
    ("H.264 of both twins alone", PAIRS, None, functools.partial(encode_h264, sample)),
  ]
  threads = cv2.getNumThreads()
  cv2.setNumThreads(1)
  try:
    # Of the processor, not of the wall: one thread is busy all the time, others may be too.
    seconds = in_turns(*(call for *_, call in cases), repeats=repeats, clock=time.process_time)
  finally:
    cv2.setNumThreads(threads)
  return [
    row("pairs", case, pairs / s, least_per_s=least)
    for (case, pairs, least, _), s in zip(cases, seconds, strict=True)
  ]


def sample_faces() -> list[Face]:
  """Stored crops uint8 [256, 256, 3] and landmarks float32 [468, 2]: inside its picture, and beyond it."""
  portrait = demo.sample_portrait()
  (found,) = faces.find_faces([portrait])[0]
  left, top, right, bottom = (round(float(v)) for v in found.box)
  return [
    faces.crop_face(portrait, found.landmarks),
    faces.crop_face(portrait[top:bottom, left:right], found.landmarks[:, :2] - (left, top)),
  ]


def make_pairs(sample: list[Face], *, augment: AugmentConfig | None = None) -> None:
  """Makes `PAIRS` pairs, of each face in turn."""
  rng = np.random.default_rng(0)
  for i in range(PAIRS):
    pair = self_blend(*sample[i % len(sample)], rng=rng, config=BlendConfig())
    if augment is not None:
      augment_pair(pair.real, pair.fake, pair.mask, rng=rng, config=augment)


def make_windows(sample: list[Face], *, blend: bool = False, augment: AugmentConfig | None = None) -> None:
  """Makes a window of each face."""
  rng = np.random.default_rng(0)
  for crop, landmarks in sample:
    crops, points = moving_still(crop, landmarks, frames=WINDOW_FRAMES, rng=rng, config=MotionConfig())
    if not blend:
      continue
    clip = self_blend_clip(crops, points, rng=rng, config=ClipBlendConfig())
    if augment is not None:
      augment_pair(clip.real, clip.fake, clip.mask, rng=rng, config=augment)


def encode_jpeg(sample: list[Face]) -> None:
  """Two pictures of 224 px through JPEG, `PAIRS` times."""
  for _ in range(PAIRS):
    for crop in _twins(sample):
      jpeg(crop, quality=75)


def encode_h264(sample: list[Face]) -> None:
  """Two pictures of 224 px through H.264, `PAIRS` times."""
  for _ in range(PAIRS):
    h264_clip(_twins(sample), qp=26, key_frames_only=True)


def _twins(sample: list[Face]) -> list[np.ndarray]:
  return [faces.eval_crop(sample[0][0])] * 2
