"""Mesh points of a face drawn with ellipses, and blends and colours that change nothing."""

import numpy as np

from deepscan_jax.augment import ColourConfig
from deepscan_jax.faces import regions
from deepscan_jax.pseudofakes import BlendConfig

NO_COLOUR = ColourConfig(rgb_shift_probability=0, hsv_probability=0, brightness_contrast_probability=0)
IDENTITY = BlendConfig(
  colour=NO_COLOUR,
  resample_probability=0,
  sharpen_probability=0,
  generator_probability=0,
  colour_transfer_probability=0,
  shift_x=0,
  shift_y=0,
  scale=1,
  min_difference=0,
)


def ellipse(indices, *, x, y, width, height, start=-np.pi / 2):
  angles = start + 2 * np.pi * np.arange(len(indices)) / len(indices)
  return np.stack([x + width / 2 * np.cos(angles), y + height / 2 * np.sin(angles)], axis=1)


def rough_landmarks():
  """A face of 172 pixels in the middle of a stored crop; points of no region lie at its centre."""
  points = np.full((regions.N_LANDMARKS, 2), 128, np.float32)
  for indices, place in (
    (regions.FACE_OVAL, {"x": 128, "y": 128, "width": 140, "height": 172}),
    (regions.RIGHT_EYEBROW, {"x": 98, "y": 92, "width": 36, "height": 8}),
    (regions.LEFT_EYEBROW, {"x": 158, "y": 92, "width": 36, "height": 8}),
    (regions.RIGHT_EYE, {"x": 98, "y": 108, "width": 28, "height": 12}),
    (regions.LEFT_EYE, {"x": 158, "y": 108, "width": 28, "height": 12}),
    (regions.NOSE, {"x": 128, "y": 130, "width": 34, "height": 44}),
    (regions.LIPS_OUTER, {"x": 128, "y": 172, "width": 52, "height": 20}),
  ):
    points[list(indices)] = ellipse(indices, **place)
  return points
