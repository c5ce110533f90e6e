"""The face mesh: 468 landmarks in three dimensions from a rotated square picture of one face.

Kartynnik et al. 2019, "Real-time Facial Surface Geometry from Monocular Video on Mobile GPUs", arXiv:1907.06724.
Weights by Google (Apache-2.0, see weights/NOTICE).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from deepscan_jax.faces.network import (
  Layer,
  activate,
  convolve,
  convolve_separably,
  load_layers,
  run_in_batches,
  shortcut,
)

MESH_SIZE = 192
STRIDES = (1, 1, 2, 1, 1, 2, 1, 1, 2, 1, 1, 2, 1, 1)


def find_landmarks(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the landmarks of one face per picture, and how sure the network is that there is one.

  Args:
    images: uint8 [batch, 192, 192, 3] RGB: a face upright in the middle, its box 2/3 of the side.

  Returns:
    landmarks float32 [batch, 468, 3], x and y in pixels of `images`, z (depth, smaller is nearer, 0 at the middle of the
    head) on the same scale; presence float32 [batch] in 0..1.
  """
  return run_in_batches(functools.partial(_find_landmarks, load_layers("mesh")), images)


@jax.jit
def _find_landmarks(layers: tuple[Layer, ...], images: jax.Array) -> tuple[jax.Array, jax.Array]:
  landmarks, logit = mesh(layers, images.astype(jnp.float32) / 255)
  return landmarks, jax.nn.sigmoid(logit)


def mesh(layers: tuple[Layer, ...], x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns landmarks [batch, 468, 3] and presence logits [batch] of pictures [batch, 192, 192, 3] in 0..1."""
  trunk = iter(layers)
  x = activate(convolve(x, next(trunk), stride=2), next(trunk))
  for stride in STRIDES:
    x = _block(x, trunk, stride)
  # The file runs both heads side by side, presence first; only the landmarks' head begins with two blocks of its own.
  faces = _block(_block(x, trunk, 2), trunk, 1)
  heads = list(trunk)
  logit = _head(_block(x, presence_head := iter(heads[0::2]), 2), presence_head)
  landmarks = _head(_block(faces, landmark_head := iter(heads[1::2]), 1), landmark_head)
  return landmarks.reshape(-1, 468, 3), logit.reshape(-1)


def _block(x: jax.Array, layers, stride: int) -> jax.Array:
  y = convolve_separably(x, next(layers), next(layers), stride=stride)
  return activate(y + shortcut(x, channels=y.shape[-1], stride=stride), next(layers))


def _head(x: jax.Array, layers) -> jax.Array:
  x = activate(convolve(x, next(layers)), next(layers))
  return convolve(_block(x, layers, 1), next(layers), padding="VALID")
