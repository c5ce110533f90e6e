"""The few layers that the face networks are made of, and their stored weights.

Activations are float32 [batch, height, width, channel], even in height and width. Padding is TensorFlow's
SAME. What keeps these networks quick on a CPU, to run and to compile:

- Depthwise convolutions are sums of shifted products; XLA's grouped convolution takes about thirty times as
  long.
- Between blocks, activations carry a border of one zero pixel, written together with the block's result, so
  that no depthwise convolution has to pad. `with_border` and `inner` add and remove it.
- Consecutive blocks of one shape are a scan over their stacked weights, and compile as one block. Where the
  channels grow within such a run, all of it has the channels of the last, the missing ones zero.
- Weights are arguments, never constants of the compiled program, which XLA would spend its time folding.
- What runs in every block is written in jax.lax: indexing, padding and jax.nn take several times as long to
  trace.
"""

import contextlib
import contextvars
import functools
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from deepscan_jax import compilation_cache

WEIGHTS_PATH = Path(__file__).parent / "weights" / "faces.npz"
# One picture alone, or batches of eight: larger ones fall out of the CPU's cache and are no faster per
# picture.
BATCH_SIZE = 8

ZERO = np.float32(0)

Layer = dict[str, np.ndarray]
Block = tuple[Layer, ...]

# Two threads that want the same program wait for one of them to trace it.
_TRACING = threading.Lock()

# Who runs networks in this thread; None: whoever needs them.
_RUNNER: contextvars.ContextVar[Callable | None] = contextvars.ContextVar("runner", default=None)


def load_layers(network: str) -> Iterator[Layer]:
  """Yields the float32 layers of "short_range", "full_range" or "mesh", in the order in which they run."""
  layers: dict[str, Layer] = {}
  with np.load(WEIGHTS_PATH) as stored:
    for name in sorted(stored.files):
      owner, index, part = name.split("/")
      if owner == network:
        layers.setdefault(index, {})[part] = stored[name].astype(np.float32)
  yield from layers.values()


def take_blocks(
  layers: Iterator[Layer], strides: Sequence[int], *, layers_per_block: int
) -> tuple[Block, ...]:
  """Returns the next blocks, each run of equal strides stacked: every array gets a leading axis [block].

  Arrays that are smaller than the largest of their run are filled up with zeros.
  """
  runs = []
  for stride, run in itertools.groupby(strides):
    blocks = [tuple(itertools.islice(layers, layers_per_block)) for _ in run]
    if stride == 1:
      blocks = [_accept_channels(block, _n_channels(blocks[-1])) for block in blocks]
    runs.append(jax.tree.map(_stack, *blocks))
  return tuple(runs)


def run_blocks(block: Callable, x: jax.Array, strides: Sequence[int], runs: tuple[Block, ...]) -> jax.Array:
  """Returns x after all blocks of `take_blocks`, each block(x, layers, stride=...); x carries a border."""
  for (stride, _), layers in zip(itertools.groupby(strides), runs, strict=True):
    if stride == 1:
      x = widen(x, _n_channels(layers))
      x, _ = jax.lax.scan(lambda x, one: (block(x, one, stride=1), None), x, layers)
    else:
      x = block(x, jax.tree.map(lambda values: values[0], layers), stride=stride)
  return x


@contextlib.contextmanager
def run_by(runner: Callable[[Callable, Callable[[], dict], np.ndarray], tuple[np.ndarray, ...]]):
  """Inside, in this thread, runner(network, load_weights, images) does what `run_in_batches` does.

  So a server lets many callers' images take turns.
  """
  token = _RUNNER.set(runner)
  try:
    yield
  finally:
    _RUNNER.reset(token)


def run_in_batches(
  network: Callable, load_weights: Callable[[], dict], images: np.ndarray
) -> tuple[np.ndarray, ...]:
  """Returns the network's answers as numpy arrays; one picture runs alone, more in eights: two shapes.

  Args:
    network: jitted function of weights and uint8 [batch, size, size, 3], to a tuple of arrays [batch, ...].
    load_weights: gives its first argument, always the same.
    images: uint8 [batch, size, size, 3], at least one.
  """
  if runner := _RUNNER.get():
    return runner(network, load_weights, images)
  size = 1 if len(images) == 1 else BATCH_SIZE
  outputs = []
  for start in range(0, len(images), size):
    part = images[start : start + size]
    padded = np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]), part.dtype)])
    outputs.append([output[: len(part)] for output in run_batch(network, load_weights, padded)])
  return tuple(np.concatenate(parts) for parts in zip(*outputs, strict=True))


def run_batch(
  network: Callable, load_weights: Callable[[], dict], images: np.ndarray
) -> tuple[np.ndarray, ...]:
  """As `run_in_batches`, of one batch as it is, whatever its size."""
  program = begin_compiling(network, load_weights, images.shape).result()
  return tuple(np.asarray(output) for output in program(_on_device(load_weights), images))


def begin_compiling(network: Callable, load_weights: Callable[[], dict], shape: tuple[int, ...]) -> Future:
  """Returns the future program of a network (see run_in_batches) for images of one shape; made once."""
  with _TRACING:
    return _program(network, load_weights, shape)


@functools.cache
def _program(network: Callable, load_weights: Callable[[], dict], shape: tuple[int, ...]) -> Future:
  weights = _on_device(load_weights)
  return compilation_cache.compiling(
    f"{network.__name__.strip('_')}_{shape[0]}",
    lambda: network.lower(weights, jax.ShapeDtypeStruct(shape, np.uint8)),
    facts=repr((shape, jax.tree.map(np.shape, weights))),
  )


@functools.cache
def _on_device(load_weights: Callable[[], dict]) -> dict:
  return jax.device_put(load_weights(), jax.local_devices()[0])


def convolve(x: jax.Array, layer: Layer, *, stride: int = 1, padding: str = "SAME") -> jax.Array:
  """Returns a dense convolution of x (no border); a kernel of two axes is a 1x1 convolution."""
  kernel = layer["kernel"]
  if kernel.ndim == 2:
    return jax.lax.dot_general(x, kernel, (((3,), (0,)), ((), ()))) + layer["bias"]
  dimensions = ("NHWC", "HWIO", "NHWC")
  y = jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=dimensions)
  return y + layer["bias"]


def convolve_separably(x: jax.Array, depthwise: Layer, pointwise: Layer, *, stride: int = 1) -> jax.Array:
  """Returns a 3x3 convolution of each channel, then a 1x1 convolution; x has a border, the result none."""
  batch, height, width, channels = x.shape
  taps = jax.lax.split(depthwise["kernel"].reshape(9, channels), [1] * 9)
  height, width = (height - 2) // stride, (width - 2) // stride
  shape = (batch, height, width, channels)
  total = jax.lax.broadcast_in_dim(depthwise["bias"], shape, (3,))
  # SAME padding of even lengths: one pixel before and after at stride 1, only one after at stride 2.
  start = stride - 1
  for tap, (row, column) in zip(taps, itertools.product(range(start, start + 3), repeat=2), strict=True):
    end = (batch, row + (height - 1) * stride + 1, column + (width - 1) * stride + 1, channels)
    shifted = jax.lax.slice(x, (0, row, column, 0), end, (1, stride, stride, 1))
    total = total + shifted * jax.lax.broadcast_in_dim(tap, shape, (2, 3))
  return convolve(total, pointwise)


def shortcut(x: jax.Array, *, channels: int, stride: int = 1) -> jax.Array:
  """Returns the identity path of a block, without border: 2x2 maximum at stride 2, new channels at zero."""
  x = inner(x)
  if stride == 2:
    x = functools.reduce(jnp.maximum, [x[:, row::2, column::2] for row in (0, 1) for column in (0, 1)])
  return widen(x, channels)


def widen(x: jax.Array, channels: int) -> jax.Array:
  """Returns x with zero channels appended until it has `channels`."""
  return jax.lax.pad(x, ZERO, [(0, 0, 0), (0, 0, 0), (0, 0, 0), (0, channels - x.shape[-1], 0)])


def with_border(x: jax.Array) -> jax.Array:
  """Returns x with one zero pixel around it."""
  # The barrier keeps XLA from computing x anew, with a branch per pixel, in each of the nine products that
  # read it.
  return jax.lax.optimization_barrier(jax.lax.pad(x, ZERO, [(0, 0, 0), (1, 1, 0), (1, 1, 0), (0, 0, 0)]))


def inner(x: jax.Array) -> jax.Array:
  """Returns x without its border."""
  return x[:, 1:-1, 1:-1]


def double_size(x: jax.Array) -> jax.Array:
  """Returns x (no border) at twice its size, bilinear: new pixels lie 1/4 beside the old centres."""
  for axis in (1, 2):
    n = x.shape[axis]
    # Each line's neighbours; the first and the last line are their own.
    padded = jnp.pad(x, [(1, 1) if i == axis else (0, 0) for i in range(4)], mode="edge")
    before, after = (jax.lax.slice_in_dim(padded, i, i + n, axis=axis) for i in (0, 2))
    shape = (*x.shape[:axis], 2 * n, *x.shape[axis + 1 :])
    x = jnp.stack([0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after], axis + 1).reshape(shape)
  return x


def relu(x: jax.Array) -> jax.Array:
  """Returns x where positive, 0 elsewhere."""
  return jax.lax.max(x, jnp.zeros_like(x))


def prelu(x: jax.Array, layer: Layer) -> jax.Array:
  """Returns x where positive, x times its channel's slope elsewhere."""
  return jnp.where(x > 0, x, x * layer["slope"])


def _n_channels(block: Block) -> int:
  """Returns how many channels a block puts out."""
  return next(iter(block[-1].values())).shape[-1]


def _accept_channels(block: Block, channels: int) -> Block:
  """Returns a block that takes `channels`, of which those that it did not know count nothing."""
  depthwise, pointwise, *others = block
  known = depthwise["bias"].shape[0]
  depthwise = {part: _pad_axis(values, -1, channels - known) for part, values in depthwise.items()}
  pointwise = {**pointwise, "kernel": _pad_axis(pointwise["kernel"], 0, channels - known)}
  return (depthwise, pointwise, *others)


def _pad_axis(values: np.ndarray, axis: int, n: int) -> np.ndarray:
  pads = [(0, 0)] * values.ndim
  pads[axis] = (0, n)
  return np.pad(values, pads)


def _stack(*arrays: np.ndarray) -> np.ndarray:
  shape = np.max([array.shape for array in arrays], axis=0)
  pads = [[(0, n - m) for n, m in zip(shape, array.shape, strict=True)] for array in arrays]
  return np.stack([np.pad(array, pad) for array, pad in zip(arrays, pads, strict=True)])
