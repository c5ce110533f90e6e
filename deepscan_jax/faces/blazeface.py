"""BlazeFace, the face detector: short range (128 px, faces that fill the picture) and full range (192 px, small faces).

Bazarevsky et al. 2019, "BlazeFace: Sub-millisecond Neural Face Detection on Mobile GPUs", arXiv:1907.05047. Weights by
Google (Apache-2.0, see weights/NOTICE). Six keypoints per face: right eye, left eye, nose tip, mouth, right ear, left ear
(the person's own sides).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from deepscan_jax.faces.network import (
  Layer,
  convolve,
  convolve_separably,
  load_layers,
  run_in_batches,
  shortcut,
)

SHORT_RANGE_SIZE = 128
FULL_RANGE_SIZE = 192
# Strides of the residual blocks after the stem (which halves the picture too).
SHORT_RANGE_STRIDES = (1, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1), (2, 1, 1, 1, 1)
FULL_RANGE_STRIDES = (1, 1, 2, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1, 1)


def detect(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns scores and boxes with keypoints for every anchor.

  Args:
    images: uint8 [batch, size, size, 3] RGB; size 128 runs the short range network, 192 the full range one.

  Returns:
    scores float32 [batch, anchor] in 0..1, and float32 [batch, anchor, 16]: x_min, y_min, x_max, y_max, then x, y of the
    six keypoints, in pixels of `images`. There are 896 anchors at short range and 2304 at full range.

  Raises:
    ValueError: when size is neither 128 nor 192.
  """
  if images.shape[1:] == (SHORT_RANGE_SIZE, SHORT_RANGE_SIZE, 3):
    network, layers = _detect_short_range, load_layers("short_range")
  elif images.shape[1:] == (FULL_RANGE_SIZE, FULL_RANGE_SIZE, 3):
    network, layers = _detect_full_range, load_layers("full_range")
  else:
    raise ValueError(
      f"Detector images have shape {images.shape}; give [batch, 128, 128, 3] or [batch, 192, 192, 3]."
    )
  return run_in_batches(functools.partial(network, layers), images)


@jax.jit
def _detect_short_range(layers: tuple[Layer, ...], images: jax.Array) -> tuple[jax.Array, jax.Array]:
  logits, values = short_range(layers, images.astype(jnp.float32) / 127.5 - 1)
  return _decode(logits, values, anchors=SHORT_RANGE_ANCHORS)


@jax.jit
def _detect_full_range(layers: tuple[Layer, ...], images: jax.Array) -> tuple[jax.Array, jax.Array]:
  logits, values = full_range(layers, images.astype(jnp.float32) / 127.5 - 1)
  return _decode(logits, values, anchors=FULL_RANGE_ANCHORS)


def short_range(layers: tuple[Layer, ...], x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns logits [batch, 896] and raw values [batch, 896, 16] of pictures [batch, 128, 128, 3] in -1..1."""
  layers = iter(layers)
  x = jax.nn.relu(convolve(x, next(layers), stride=2))
  maps = []
  for strides in SHORT_RANGE_STRIDES:
    for stride in strides:
      y = convolve_separably(x, next(layers), next(layers), stride=stride)
      x = jax.nn.relu(y + shortcut(x, channels=y.shape[-1], stride=stride))
    maps.append(x)
  batch = x.shape[0]
  logits = [convolve(x, next(layers)).reshape(batch, -1) for x in maps]
  values = [convolve(x, next(layers)).reshape(batch, -1, 16) for x in maps]
  return jnp.concatenate(logits, 1), jnp.concatenate(values, 1)


def full_range(layers: tuple[Layer, ...], x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns logits [batch, 2304] and raw values [batch, 2304, 16] of pictures [batch, 192, 192, 3] in -1..1."""
  layers = iter(layers)

  def block(x, stride=1):
    y = jax.nn.relu(convolve_separably(x, next(layers), next(layers), stride=stride))
    y = convolve_separably(y, next(layers), next(layers))
    return jax.nn.relu(y + shortcut(x, channels=y.shape[-1], stride=stride))

  x = jax.nn.relu(convolve(x, next(layers), stride=2))
  maps = []
  for strides in FULL_RANGE_STRIDES:
    for stride in strides:
      x = block(x, stride)
    maps.append(x)
  # Back up to 48x48: each coarse map, narrowed and doubled in size, is added to the finer one.
  for finer, n_blocks in zip(reversed(maps[:-1]), (2, 2, 1), strict=True):
    coarse = jax.nn.relu(convolve(x, next(layers)))
    lateral = jax.nn.relu(convolve(finer, next(layers)))
    x = lateral + jax.image.resize(coarse, lateral.shape, "bilinear")
    for _ in range(n_blocks):
      x = block(x)
  batch = x.shape[0]
  return convolve(x, next(layers)).reshape(batch, -1), convolve(x, next(layers)).reshape(batch, -1, 16)


def _grid(size: int, *, n: int, per_cell: int) -> np.ndarray:
  """Returns the centres of n x n cells of a picture in pixels, row by row: [n * n * per_cell, 2] (x, y)."""
  centres = (np.arange(n, dtype=np.float32) + 0.5) * size / n
  xs, ys = np.meshgrid(centres, centres)
  return np.repeat(np.stack([xs.ravel(), ys.ravel()], 1), per_cell, 0)


SHORT_RANGE_ANCHORS = np.concatenate(
  [_grid(SHORT_RANGE_SIZE, n=16, per_cell=2), _grid(SHORT_RANGE_SIZE, n=8, per_cell=6)]
)
FULL_RANGE_ANCHORS = _grid(FULL_RANGE_SIZE, n=48, per_cell=1)


def _decode(logits: jax.Array, values: jax.Array, *, anchors: np.ndarray) -> tuple[jax.Array, jax.Array]:
  """Returns scores, and values as corners and keypoints in pixels: centre, size and points are relative to anchors."""
  centre, size = values[..., 0:2] + anchors, values[..., 2:4]
  points = (values[..., 4:].reshape(*values.shape[:2], 6, 2) + anchors[:, None]).reshape(
    *values.shape[:2], 12
  )
  return jax.nn.sigmoid(logits), jnp.concatenate([centre - size / 2, centre + size / 2, points], -1)
