"""BlazeFace, the face detector: short range (128 px, faces that fill the picture) and full range (192 px,
small faces).

Bazarevsky et al. 2019, "BlazeFace: Sub-millisecond Neural Face Detection on Mobile GPUs", arXiv:1907.05047.
Weights by Google (Apache-2.0, see weights/NOTICE). Six keypoints per face: right eye, left eye, nose tip,
mouth, right ear, left ear (the person's own sides).
"""

import functools
from collections.abc import Callable
from concurrent.futures import Future

import jax
import jax.numpy as jnp
import numpy as np

from deepscan_jax.faces import network
from deepscan_jax.faces.network import (
  Block,
  convolve,
  convolve_separably,
  double_size,
  inner,
  load_layers,
  relu,
  run_blocks,
  run_in_batches,
  shortcut,
  take_blocks,
  with_border,
)

SHORT_RANGE_SIZE = 128
FULL_RANGE_SIZE = 192
# Strides of the blocks after the stem (which halves the picture too), one tuple for each map that is used
# later.
SHORT_RANGE_STRIDES = ((1, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1), (2, 1, 1, 1, 1))
FULL_RANGE_STRIDES = ((1, 1, 2, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1, 1))
FULL_RANGE_UP_STRIDES = ((1, 1), (1, 1), (1,))


def detect(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns scores and boxes with keypoints for every anchor.

  Args:
    images: uint8 [batch, size, size, 3] RGB; size 128 runs the short range network, 192 the full range one.

  Returns:
    scores float32 [batch, anchor] in 0..1, and float32 [batch, anchor, 16]: x_min, y_min, x_max, y_max, then
    x, y of the six keypoints, in pixels of `images`. There are 896 anchors at short range and 2304 at full
    range.

  Raises:
    ValueError: when size is neither 128 nor 192.
  """
  return run_in_batches(*_network(images.shape[1:]), images)


def begin_compiling(size: int, *, batch: int) -> Future:
  """Begins to compile what `detect` runs for pictures of one size; returns the future program."""
  shape = (size, size, 3)
  return network.begin_compiling(*_network(shape), (batch, *shape))


def _network(shape: tuple[int, ...]) -> tuple[Callable, Callable[[], dict]]:
  """Returns the jitted network for pictures of a shape, and what loads its weights."""
  if shape == (SHORT_RANGE_SIZE, SHORT_RANGE_SIZE, 3):
    return _detect_short_range, load_short_range
  if shape == (FULL_RANGE_SIZE, FULL_RANGE_SIZE, 3):
    return _detect_full_range, load_full_range
  raise ValueError(f"Detector images have shape {shape}; give [batch, 128, 128, 3] or [batch, 192, 192, 3].")


@functools.cache
def load_short_range() -> dict:
  """Returns the weights that `short_range` takes."""
  layers = load_layers("short_range")
  return {
    "stem": next(layers),
    "stages": tuple(take_blocks(layers, strides, layers_per_block=2) for strides in SHORT_RANGE_STRIDES),
    "heads": tuple(layers),
  }


def short_range(weights: dict, x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns logits [batch, 896] and raw values [batch, 896, 16] of [batch, 128, 128, 3] in -1..1."""
  x = with_border(relu(convolve(x, weights["stem"], stride=2)))
  maps = []
  for strides, runs in zip(SHORT_RANGE_STRIDES, weights["stages"], strict=True):
    x = run_blocks(_single_block, x, strides, runs)
    maps.append(inner(x))
  heads = zip(maps + maps, weights["heads"], strict=True)
  logits_16, logits_8, values_16, values_8 = (convolve(x, head).reshape(len(x), -1) for x, head in heads)
  values = jnp.concatenate([values_16, values_8], 1)
  return jnp.concatenate([logits_16, logits_8], 1), values.reshape(len(x), -1, 16)


@functools.cache
def load_full_range() -> dict:
  """Returns the weights that `full_range` takes."""
  layers = load_layers("full_range")
  return {
    "stem": next(layers),
    "down": tuple(take_blocks(layers, strides, layers_per_block=4) for strides in FULL_RANGE_STRIDES),
    "up": tuple(
      {"coarse": next(layers), "fine": next(layers), "runs": take_blocks(layers, strides, layers_per_block=4)}
      for strides in FULL_RANGE_UP_STRIDES
    ),
    "heads": tuple(layers),
  }


def full_range(weights: dict, x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns logits [batch, 2304] and raw values [batch, 2304, 16] of [batch, 192, 192, 3] in -1..1."""
  x = with_border(relu(convolve(x, weights["stem"], stride=2)))
  maps = []
  for strides, runs in zip(FULL_RANGE_STRIDES, weights["down"], strict=True):
    x = run_blocks(_double_block, x, strides, runs)
    maps.append(inner(x))
  # Back up to 48x48: each coarse map, narrowed and doubled in size, is added to the finer one.
  for finer, strides, up in zip(reversed(maps[:-1]), FULL_RANGE_UP_STRIDES, weights["up"], strict=True):
    coarse = relu(convolve(inner(x), up["coarse"]))
    fine = relu(convolve(finer, up["fine"]))
    x = with_border(fine + double_size(coarse))
    x = run_blocks(_double_block, x, strides, up["runs"])
  logits, values = (convolve(inner(x), head) for head in weights["heads"])
  return logits.reshape(len(x), -1), values.reshape(len(x), -1, 16)


def _single_block(x: jax.Array, layers: Block, *, stride: int) -> jax.Array:
  y = convolve_separably(x, *layers, stride=stride)
  return with_border(relu(y + shortcut(x, channels=y.shape[-1], stride=stride)))


def _double_block(x: jax.Array, layers: Block, *, stride: int) -> jax.Array:
  y = with_border(relu(convolve_separably(x, *layers[:2], stride=stride)))
  y = convolve_separably(y, *layers[2:], stride=1)
  return with_border(relu(y + shortcut(x, channels=y.shape[-1], stride=stride)))


@jax.jit
def _detect_short_range(weights: dict, images: jax.Array) -> tuple[jax.Array, jax.Array]:
  return _decode(*short_range(weights, images.astype(jnp.float32) / 127.5 - 1), anchors=SHORT_RANGE_ANCHORS)


@jax.jit
def _detect_full_range(weights: dict, images: jax.Array) -> tuple[jax.Array, jax.Array]:
  return _decode(*full_range(weights, images.astype(jnp.float32) / 127.5 - 1), anchors=FULL_RANGE_ANCHORS)


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
  """Returns scores, and corners and keypoints in pixels from centres, sizes and points at anchors."""
  centre, size = values[..., 0:2] + anchors, values[..., 2:4]
  points = (values[..., 4:].reshape(*values.shape[:2], 6, 2) + anchors[:, None]).reshape(
    *values.shape[:2], 12
  )
  return jax.nn.sigmoid(logits), jnp.concatenate([centre - size / 2, centre + size / 2, points], -1)
