"""The few layers that the face networks are made of, and their stored weights.

Activations are float32 [batch, height, width, channel]. Padding is TensorFlow's SAME. Weights are arguments, never
constants of the compiled program: XLA would spend its time folding them.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

WEIGHTS_PATH = Path(__file__).parent / "weights" / "faces.npz"
BATCH_SIZES = (1, 2, 4, 8, 16, 32)

Layer = dict[str, np.ndarray]


@functools.cache
def load_layers(network: str) -> tuple[Layer, ...]:
  """Returns the float32 layers of `network` ("short_range", "full_range" or "mesh"), in the order in which they run."""
  layers: dict[str, Layer] = {}
  with np.load(WEIGHTS_PATH) as stored:
    for name in sorted(stored.files):
      owner, index, part = name.split("/")
      if owner == network:
        layers.setdefault(index, {})[part] = stored[name].astype(np.float32)
  return tuple(layers.values())


def run_in_batches(network, images: np.ndarray) -> tuple[np.ndarray, ...]:
  """Returns `network(images)` as numpy arrays, run on batches of a few fixed sizes so that little is compiled.

  Args:
    network: jitted function of [batch, ...] that returns a tuple of arrays [batch, ...].
    images: [batch, ...], at least one.
  """
  outputs = []
  for start in range(0, len(images), BATCH_SIZES[-1]):
    part = images[start : start + BATCH_SIZES[-1]]
    size = next(size for size in BATCH_SIZES if size >= len(part))
    padded = np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]), part.dtype)])
    outputs.append([np.asarray(output)[: len(part)] for output in network(padded)])
  return tuple(np.concatenate(parts) for parts in zip(*outputs, strict=True))


def convolve(x: jax.Array, layer: Layer, *, stride: int = 1, padding: str = "SAME") -> jax.Array:
  """Returns a dense convolution; a kernel of two axes is a 1x1 convolution."""
  kernel = layer["kernel"]
  if kernel.ndim == 2:
    return jnp.einsum("bhwi,io->bhwo", x, kernel) + layer["bias"]
  dimensions = ("NHWC", "HWIO", "NHWC")
  return (
    jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=dimensions)
    + layer["bias"]
  )


def convolve_depthwise(x: jax.Array, layer: Layer, *, stride: int = 1) -> jax.Array:
  """Returns a convolution of each channel by itself, as a sum of shifted products.

  XLA's own grouped convolution takes about thirty times as long on a CPU.
  """
  kernel = layer["kernel"]
  size = kernel.shape[0]
  height, width = (-(-length // stride) for length in x.shape[1:3])
  pads = []
  for length, n_out in zip(x.shape[1:3], (height, width), strict=True):
    pad = max((n_out - 1) * stride + size - length, 0)
    pads.append((pad // 2, pad - pad // 2))
  # The barrier keeps XLA from folding the padding, with a branch per pixel, into each of the products.
  x = jax.lax.optimization_barrier(jnp.pad(x, ((0, 0), *pads, (0, 0))))
  total = layer["bias"]
  for row in range(size):
    for column in range(size):
      rows = slice(row, row + (height - 1) * stride + 1, stride)
      columns = slice(column, column + (width - 1) * stride + 1, stride)
      total = total + x[:, rows, columns] * kernel[row, column]
  return total


def convolve_separably(x: jax.Array, depthwise: Layer, pointwise: Layer, *, stride: int = 1) -> jax.Array:
  """Returns a depthwise convolution followed by a 1x1 convolution, nothing between them."""
  return convolve(convolve_depthwise(x, depthwise, stride=stride), pointwise)


def shortcut(x: jax.Array, *, channels: int, stride: int = 1) -> jax.Array:
  """Returns the identity path of a residual block: 2x2 maximum when it halves, new channels at zero."""
  if stride == 2:
    batch, height, width, n = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, n).max((2, 4))
  return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, channels - x.shape[-1])))


def activate(x: jax.Array, layer: Layer) -> jax.Array:
  """Returns PReLU(x): x where positive, x times the channel's slope elsewhere."""
  return jnp.where(x > 0, x, x * layer["slope"])
