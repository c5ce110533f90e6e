"""The face mesh: 468 landmarks in three dimensions from a rotated square picture of one face.

Kartynnik et al. 2019, "Real-time Facial Surface Geometry from Monocular Video on Mobile GPUs",
arXiv:1907.06724. Weights by Google (Apache-2.0, see weights/NOTICE).
"""

import functools
import itertools
from collections.abc import Iterator
from concurrent.futures import Future

import jax
import jax.numpy as jnp
import numpy as np

from deepscan_jax.faces import network
from deepscan_jax.faces.network import (
  Block,
  Layer,
  convolve,
  convolve_separably,
  inner,
  load_layers,
  prelu,
  run_blocks,
  run_in_batches,
  shortcut,
  take_blocks,
  with_border,
)

MESH_SIZE = 192
TRUNK_STRIDES = (1, 1, 2, 1, 1, 2, 1, 1, 2, 1, 1, 2, 1, 1)
PRESENCE_STRIDES = (2,)
LANDMARK_STRIDES = (2, 1, 1)


def find_landmarks(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the landmarks of one face per picture, and how sure the network is that there is one.

  Args:
    images: uint8 [batch, 192, 192, 3] RGB: a face upright in the middle, its box 2/3 of the side.

  Returns:
    landmarks float32 [batch, 468, 3], x and y in pixels of `images`, z (depth, smaller is nearer, 0 at the
    middle of the head) on the same scale; presence float32 [batch] in 0..1.
  """
  return run_in_batches(_find_landmarks, load_mesh, images)


def begin_compiling(*, batch: int) -> Future:
  """Begins to compile what `find_landmarks` runs; returns the future program."""
  return network.begin_compiling(_find_landmarks, load_mesh, (batch, MESH_SIZE, MESH_SIZE, 3))


@functools.cache
def load_mesh() -> dict:
  """Returns the weights that `mesh` takes."""
  layers = load_layers("mesh")
  stem = (next(layers), next(layers))
  trunk = take_blocks(layers, TRUNK_STRIDES, layers_per_block=3)
  # The file begins the landmarks' head with two blocks, then runs both heads side by side, presence first.
  begin = list(itertools.islice(layers, 6))
  rest = list(layers)
  presence, landmarks = iter(rest[0::2]), iter(begin + rest[1::2])
  return {
    "stem": stem,
    "trunk": trunk,
    "presence": _load_head(presence, PRESENCE_STRIDES),
    "landmarks": _load_head(landmarks, LANDMARK_STRIDES),
  }


def _load_head(layers: Iterator[Layer], strides: tuple[int, ...]) -> dict:
  return {
    "runs": take_blocks(layers, strides, layers_per_block=3),
    "narrow": (next(layers), next(layers)),
    "last_run": take_blocks(layers, (1,), layers_per_block=3),
    "output": next(layers),
  }


def mesh(weights: dict, x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns landmarks [batch, 468, 3] and presence logits [batch] of [batch, 192, 192, 3] in 0..1."""
  convolution, slopes = weights["stem"]
  x = with_border(prelu(convolve(x, convolution, stride=2), slopes))
  x = run_blocks(_block, x, TRUNK_STRIDES, weights["trunk"])
  landmarks = _run_head(x, LANDMARK_STRIDES, weights["landmarks"])
  logit = _run_head(x, PRESENCE_STRIDES, weights["presence"])
  return landmarks.reshape(-1, 468, 3), logit.reshape(-1)


def _run_head(x: jax.Array, strides: tuple[int, ...], weights: dict) -> jax.Array:
  x = run_blocks(_block, x, strides, weights["runs"])
  convolution, slopes = weights["narrow"]
  x = with_border(prelu(convolve(inner(x), convolution), slopes))
  x = run_blocks(_block, x, (1,), weights["last_run"])
  return convolve(inner(x), weights["output"], padding="VALID")


def _block(x: jax.Array, layers: Block, *, stride: int) -> jax.Array:
  depthwise, pointwise, slopes = layers
  y = convolve_separably(x, depthwise, pointwise, stride=stride)
  return with_border(prelu(y + shortcut(x, channels=y.shape[-1], stride=stride), slopes))


@jax.jit
def _find_landmarks(weights: dict, images: jax.Array) -> tuple[jax.Array, jax.Array]:
  landmarks, logit = mesh(weights, images.astype(jnp.float32) / 255)
  return landmarks, jax.nn.sigmoid(logit)
