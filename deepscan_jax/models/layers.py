"""Layers of the image networks: convolutions that are quick on CPUs too, norms that can be frozen, attention.

Axis order is batch, height, width, channel. Everything is a pure flax.linen module or function.

Mixed precision follows the data: parameters are float32, and a layer computes in the type of what it is
given, so that a branch chooses by casting what its network reads. Norms compute in float32 whatever they
read, and answer in its type.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

Activation = Callable[[jax.Array], jax.Array]
Padding = str | int
_Pads = tuple[tuple[int, int], tuple[int, int]]

# The work of one step of the depthwise kernel's gradient on CPUs: its picture rows and channels fill half a
# megabyte at most in the networks here, which is the second-level cache of a core.
_BLOCK_ROWS = 16
_BLOCK_CHANNELS = 128

# The EfficientNet initialisation: a normal with variance 2 / (kernel height x kernel width x out channels).
_fan_out_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def _in_the_type_of_the_first(x, *params, dtype=None):
  return [x, *(param if param is None else param.astype(x.dtype) for param in params)]


# flax's own compute in the wider type of input and parameters, which would always be float32.
Dense = functools.partial(nn.Dense, promote_dtype=_in_the_type_of_the_first)
DenseGeneral = functools.partial(nn.DenseGeneral, promote_dtype=_in_the_type_of_the_first)
Conv = functools.partial(nn.Conv, promote_dtype=_in_the_type_of_the_first)


class LayerNorm(nn.LayerNorm):
  """Layer norm in float32 (Ba et al. 2016, arXiv:1607.06450) that answers in the type of its input."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns x [..., feature] normalised over the last axis."""
    return super().__call__(x).astype(x.dtype)


class ConvNorm(nn.Module):
  """Dense convolution without bias, batch norm, activation.

  Attributes:
    features: output channels.
    kernel_size: odd; 1 is computed as a matrix product and its kernel is [in channel, out channel].
    stride: 1 or 2.
    padding: "SAME" as in TensorFlow, or the pixels on each side.
    activation: applied last; None for none.
    frozen_norm: see BatchNorm.
    axis_name: see BatchNorm.
    epsilon: see BatchNorm.
  """

  features: int
  kernel_size: int = 1
  stride: int = 1
  padding: Padding = "SAME"
  activation: Activation | None = None
  frozen_norm: bool = True
  axis_name: str | None = None
  epsilon: float = 1e-3

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps [batch, height, width, channel] to [batch, height / stride, width / stride, features]."""
    size, channels = self.kernel_size, x.shape[-1]
    pointwise = size == 1 and self.stride == 1
    shape = (channels, self.features) if pointwise else (size, size, channels, self.features)
    kernel = self.param("kernel", _fan_out_normal, shape)
    norm = BatchNorm(frozen=self.frozen_norm, axis_name=self.axis_name, epsilon=self.epsilon, name="norm")
    if train and not self.frozen_norm:
      x = norm(self._convolve(x, kernel), train=True)
    else:
      scale, shift = norm.affine(self.features)
      x = self._convolve(x, kernel * scale) + shift.astype(x.dtype)
    return x if self.activation is None else self.activation(x)

  def _convolve(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
    kernel = kernel.astype(x.dtype)
    if kernel.ndim == 2:
      return pointwise_conv(x, kernel)
    pads = explicit_padding(x.shape[1:3], self.kernel_size, stride=self.stride, padding=self.padding)
    return jax.lax.conv_general_dilated(
      x, kernel, (self.stride, self.stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


class DepthwiseConvNorm(nn.Module):
  """Depthwise convolution without bias, batch norm, activation; attributes as those of ConvNorm."""

  kernel_size: int
  stride: int = 1
  padding: Padding = "SAME"
  activation: Activation | None = None
  frozen_norm: bool = True
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps [batch, height, width, channel] to [batch, height / stride, width / stride, channel]."""
    channels = x.shape[-1]
    kernel = self.param("kernel", _depthwise_normal, (self.kernel_size, self.kernel_size, channels))
    norm = BatchNorm(frozen=self.frozen_norm, axis_name=self.axis_name, name="norm")
    if train and not self.frozen_norm:
      x = norm(self._convolve(x, kernel), train=True)
    else:
      scale, shift = norm.affine(channels)
      x = self._convolve(x, kernel * scale) + shift.astype(x.dtype)
    return x if self.activation is None else self.activation(x)

  def _convolve(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return depthwise_conv(x, kernel.astype(x.dtype), stride=self.stride, padding=self.padding)


class DepthwiseConv(nn.Module):
  """Convolution of every channel with a kernel of its own; kernel [height, width, channel].

  Attributes:
    kernel_size: odd.
    stride: 1 or 2.
    padding: "SAME" as in TensorFlow, or the pixels on each side.
    use_bias: adds a bias per channel.
  """

  kernel_size: int
  stride: int = 1
  padding: Padding = "SAME"
  use_bias: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [batch, height, width, channel] to [batch, height / stride, width / stride, channel]."""
    channels = x.shape[-1]
    kernel = self.param("kernel", _depthwise_normal, (self.kernel_size, self.kernel_size, channels))
    x = depthwise_conv(x, kernel.astype(x.dtype), stride=self.stride, padding=self.padding)
    if not self.use_bias:
      return x
    return x + self.param("bias", nn.initializers.zeros, (channels,)).astype(x.dtype)


class BatchNorm(nn.Module):
  """Batch normalisation whose statistics can be frozen while scale and bias are trained.

  A batch that holds each face beside its forged twin leaks the answer through batch statistics: frozen,
  training sees exactly what evaluation of a single picture sees.

  Attributes:
    frozen: the running statistics are used, and left alone, in training too.
    axis_name: the pmap axis over which batch statistics are averaged; None for per-device statistics.
    momentum: the share of the old running statistics that a training step keeps.
    epsilon: added to the variance; 1e-3 is TensorFlow's, which ImageNet weights of the EfficientNets need.
  """

  frozen: bool = True
  axis_name: str | None = None
  momentum: float = 0.99
  epsilon: float = 1e-3

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Returns x [..., channel] normalised over all other axes."""
    dtype, x = x.dtype, x.astype(jnp.float32)
    if not train or self.frozen:
      scale, shift = self.affine(x.shape[-1])
      return (x * scale + shift).astype(dtype)
    scale, bias, mean, var = self._variables(x.shape[-1])
    axes = tuple(range(x.ndim - 1))
    batch_mean = x.mean(axes)
    batch_square = jnp.square(x).mean(axes)
    if self.axis_name is not None and not self.is_initializing():
      batch_mean, batch_square = jax.lax.pmean((batch_mean, batch_square), self.axis_name)
    batch_var = jnp.maximum(batch_square - jnp.square(batch_mean), 0.0)
    if not self.is_initializing():
      mean.value = self.momentum * mean.value + (1 - self.momentum) * batch_mean
      var.value = self.momentum * var.value + (1 - self.momentum) * batch_var
    factor = scale * jax.lax.rsqrt(batch_var + self.epsilon)
    return (x * factor + (bias - batch_mean * factor)).astype(dtype)

  @nn.compact
  def affine(self, channels: int) -> tuple[jax.Array, jax.Array]:
    """Returns (scale, shift) [channel]: normalisation by the running statistics is x * scale + shift.

    A convolution that multiplies its kernel by the scale has the norm for the price of a bias, and the
    gradients of scale and bias stay right.
    """
    scale, bias, mean, var = self._variables(channels)
    factor = scale * jax.lax.rsqrt(var.value + self.epsilon)
    return factor, bias - mean.value * factor

  def _variables(self, channels: int):
    return (
      self.param("scale", nn.initializers.ones, (channels,)),
      self.param("bias", nn.initializers.zeros, (channels,)),
      self.variable("batch_stats", "mean", jnp.zeros, (channels,)),
      self.variable("batch_stats", "var", jnp.ones, (channels,)),
    )


class SqueezeExcite(nn.Module):
  """Channels weighted by a two-layer network over their means (Hu et al. 2018, https://arxiv.org/abs/1709.01507)."""

  reduced: int
  activation: Activation = nn.silu

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns x [batch, height, width, channel], each channel multiplied by its weight in 0..1."""
    means = x.mean(axis=(1, 2), keepdims=True)
    hidden = self.activation(Dense(self.reduced, name="reduce")(means))
    return x * nn.sigmoid(Dense(x.shape[-1], name="expand")(hidden))


class ChannelAttention(nn.Module):
  """Which channels matter: CBAM's first half (Woo et al. 2018, https://arxiv.org/abs/1807.06521, equation 2).

  One shared two-layer network sees averages and maxima over space; the sum of its two answers is squashed.

  Attributes:
    reduction: the hidden layer has channels / reduction units, at least one.
  """

  reduction: int = 16

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns x [batch, height, width, channel], each channel multiplied by its weight in 0..1."""
    channels = x.shape[-1]
    reduce = Dense(max(1, channels // self.reduction), use_bias=False, name="reduce")
    expand = Dense(channels, use_bias=False, name="expand")
    pooled = jnp.stack([x.mean(axis=(1, 2)), x.max(axis=(1, 2))], axis=1)
    weights = nn.sigmoid(expand(nn.relu(reduce(pooled))).sum(axis=1))
    return x * weights[:, None, None, :]


class SpatialAttention(nn.Module):
  """Which places matter: CBAM's second half (Woo et al. 2018, https://arxiv.org/abs/1807.06521, equation 3).

  A convolution over the mean and the maximum across channels, squashed.
  """

  kernel_size: int = 7

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns (x weighted [batch, height, width, channel], the weights [batch, height, width] in 0..1)."""
    pooled = jnp.stack([x.mean(axis=-1), x.max(axis=-1)], axis=-1)
    size = self.kernel_size
    kernel = self.param("kernel", nn.initializers.lecun_normal(), (size, size, 2, 1)).astype(x.dtype)
    weights = nn.sigmoid(
      jax.lax.conv_general_dilated(pooled, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    )
    return x * weights, weights[..., 0]


class DropPath(nn.Module):
  """Stochastic depth: a residual branch left out per example (Huang et al. 2016, arXiv:1603.09382).

  Attributes:
    rate: how often, 0..1; what remains is divided by 1 - rate. The rng is "dropout".
  """

  rate: float

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Returns x [batch, ...], in training with whole examples zeroed."""
    if not train or self.rate == 0:
      return x
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, shape)
    return jnp.where(keep, x / (1 - self.rate), 0.0)


@jax.custom_vjp
def swish(x: jax.Array) -> jax.Array:
  """Returns x times its sigmoid, for x of any shape.

  Its gradient computes the sigmoid again, and as a hyperbolic tangent: left to differentiate, or given the
  same formula twice, XLA keeps the sigmoid of every map in memory until the gradient has come back to it.
  That is exact to 2e-6, not relative to the gradients near 0 of x far below 0.
  """
  return nn.silu(x)


def pointwise_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Returns x [batch, height, width, in channel] times kernel [in channel, out channel]: a 1x1 convolution.

  Its gradient for the kernel has the narrower operand first: XLA copies the first one in transposed order on
  CPUs, and where that comes from a depthwise convolution computes it all over again as it copies.
  """
  return _pointwise(x, kernel)


def depthwise_conv(
  x: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: Padding = "SAME"
) -> jax.Array:
  """Returns each channel of x convolved with its own kernel.

  XLA computes a grouped convolution on CPUs up to thirty times slower than the same sum written as shifted
  multiply-adds, so there it is written as that, its gradient too; elsewhere it is the grouped convolution.

  Args:
    x: [batch, height, width, channel] float.
    kernel: [kernel height, kernel width, channel]; both sizes odd.
    stride: 1 or 2.
    padding: "SAME" as in TensorFlow (stride 2: one pixel more at the end), or the pixels on each side.

  Returns:
    [batch, out height, out width, channel].

  Raises:
    ValueError: shapes do not fit, or the stride is neither 1 nor 2.
  """
  if x.ndim != 4 or kernel.ndim != 3 or x.shape[-1] != kernel.shape[-1]:
    raise ValueError(
      "x must be [batch, height, width, channel] and kernel [height, width, channel]; "
      f"got {x.shape} and {kernel.shape}."
    )
  if stride not in (1, 2):
    raise ValueError(f"The stride of a depthwise convolution is 1 or 2; got {stride}.")
  if kernel.shape[0] != kernel.shape[1] or kernel.shape[0] % 2 == 0:
    raise ValueError(f"Depthwise kernels are square and odd; got {kernel.shape[:2]}.")
  return _depthwise(
    x, kernel, stride, explicit_padding(x.shape[1:3], kernel.shape[0], stride=stride, padding=padding)
  )


def max_pool(x: jax.Array, *, kernel_size: int = 3, stride: int = 2, padding: Padding = "SAME") -> jax.Array:
  """Returns the largest value of each window of x [batch, height, width, channel].

  Pads with what is never the largest; "SAME" as in TensorFlow. Written as the maximum of shifted windows: XLA
  computes windowed reductions, and their gradients above all, one number at a time on CPUs. Where several
  values of a window are the largest, they share its gradient.
  """
  pads = explicit_padding(x.shape[1:3], kernel_size, stride=stride, padding=padding)
  x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf)
  return functools.reduce(jnp.maximum, _windows(x, kernel_size, stride))


def average_pool(x: jax.Array, *, size: int = 2) -> jax.Array:
  """Returns the means of x [batch, height, width, channel] over size x size places, a remainder left out."""
  return functools.reduce(jnp.add, _windows(x, size, size)) * (1.0 / size**2)


def explicit_padding(lengths: tuple[int, int], kernel_size: int, *, stride: int, padding: Padding) -> _Pads:
  """Returns the pixels before and after each of the two axes; "SAME" puts the odd one at the end."""
  if padding != "SAME":
    return ((padding, padding), (padding, padding))
  pads = []
  for length in lengths:
    total = max((-(-length // stride) - 1) * stride + kernel_size - length, 0)
    pads.append((total // 2, total - total // 2))
  return tuple(pads)


def _depthwise_normal(key, shape, dtype=jnp.float32):
  # Each output sees one channel only, so the fan-out is the kernel's area.
  return jnp.sqrt(2.0 / (shape[0] * shape[1])) * jax.random.normal(key, shape, dtype)


def _swish_forward(x):
  return swish(x), x


def _swish_backward(x, cotangent):
  gate = 0.5 + 0.5 * jnp.tanh(0.5 * x)
  return (cotangent * gate * (1 + x * (1 - gate)),)


swish.defvjp(_swish_forward, _swish_backward)


@jax.custom_vjp
def _pointwise(x, kernel):
  return jax.lax.dot_general(x, kernel, (((3,), (0,)), ((), ())))


def _pointwise_forward(x, kernel):
  return _pointwise(x, kernel), (x, kernel)


def _pointwise_backward(residuals, cotangent):
  x, kernel = residuals
  places = (0, 1, 2)

  def product(a, b):
    return jax.lax.dot_general(a, b, ((places, places), ((), ())))

  wide = x.shape[3] > cotangent.shape[3]
  return (
    jax.lax.dot_general(cotangent, kernel, (((3,), (1,)), ((), ()))),
    product(cotangent, x).T if wide else product(x, cotangent),
  )


_pointwise.defvjp(_pointwise_forward, _pointwise_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(x, kernel, stride, pads):
  return jax.lax.platform_dependent(
    x,
    kernel,
    cpu=functools.partial(_shifted_sum, stride=stride, pads=pads),
    default=functools.partial(_grouped_conv, stride=stride, pads=pads),
  )


def _depthwise_forward(x, kernel, stride, pads):
  return _depthwise(x, kernel, stride, pads), (x, kernel)


def _depthwise_backward(stride, pads, residuals, cotangent):
  x, kernel = residuals

  def by_hand(x, kernel, cotangent):
    return _input_gradient(kernel, cotangent, x.shape, stride, pads), _kernel_gradient(
      x, cotangent, kernel.shape[0], stride, pads
    )

  def by_xla(x, kernel, cotangent):
    return jax.vjp(functools.partial(_grouped_conv, stride=stride, pads=pads), x, kernel)[1](cotangent)

  return jax.lax.platform_dependent(x, kernel, cotangent, cpu=by_hand, default=by_xla)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _grouped_conv(x, kernel, *, stride, pads):
  return jax.lax.conv_general_dilated(
    x,
    kernel[:, :, None, :],
    (stride, stride),
    pads,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=x.shape[-1],
  )


def _windows(x, size, stride):
  """For each place within a window: x at that place of all windows."""
  height, width = ((length - size) // stride + 1 for length in x.shape[1:3])
  return [
    x[:, i : i + stride * (height - 1) + 1 : stride, j : j + stride * (width - 1) + 1 : stride]
    for i in range(size)
    for j in range(size)
  ]


def _shifted_sum(x, kernel, *, stride, pads):
  """The sum over the taps, on a grid with one column too many, which is cut off at the end.

  That column makes every window reach into the padding. Where one did not, as that of the middle tap, XLA
  would read it from x before it is padded; what computes x is then needed twice, and done or stored twice.
  """
  size = kernel.shape[0]
  rows, (left, right) = pads
  x = jnp.pad(x, ((0, 0), rows, (left, right + stride), (0, 0)))
  windows = _windows(x, size, stride)
  taps = kernel.reshape(-1, kernel.shape[-1])
  total = functools.reduce(jnp.add, [_product(*pair) for pair in zip(windows, taps, strict=True)])
  return total[:, :, :-1].astype(x.dtype)


def _product(one, other):
  """As a term of a sum: in float32, for a sum in bfloat16 rounds after each of its terms."""
  return one.astype(jnp.float32) * other.astype(jnp.float32)


def _input_gradient(kernel, cotangent, shape, stride, pads):
  """The transposed convolution: a dense sum for each phase of the stride, then the phases interleaved."""
  batch, height, width, channels = shape
  size = kernel.shape[0]
  rows, columns = -(-height // stride), -(-width // stride)
  row_phases = _phases(size, stride, pads[0][0])
  column_phases = _phases(size, stride, pads[1][0])
  top, bottom = _reach(row_phases, rows, cotangent.shape[1])
  left, right = _reach(column_phases, columns, cotangent.shape[2])
  # One column too many, for the reason that _shifted_sum has one.
  padded = jnp.pad(cotangent, ((0, 0), (top, bottom), (left, right + 1), (0, 0)))

  def phase(row_taps, column_taps):
    total = jnp.zeros((batch, rows, columns + 1, channels), jnp.float32)
    for i, row in row_taps:
      for j, column in column_taps:
        window = padded[:, top + row : top + row + rows, left + column : left + column + columns + 1]
        total = total + _product(window, kernel[i, j])
    return total[:, :, :columns].astype(cotangent.dtype)

  parts = [jnp.stack([phase(r, c) for c in column_phases], axis=3) for r in row_phases]
  interleaved = jnp.stack(parts, axis=2).reshape(batch, rows * stride, columns * stride, channels)
  return interleaved[:, :height, :width]


def _phases(size, stride, before):
  """For each input position modulo the stride: the kernel taps that meet it, and at which output they do."""
  return [
    [(tap, (phase + before - tap) // stride) for tap in range(size) if (phase + before - tap) % stride == 0]
    for phase in range(stride)
  ]


def _reach(phases, length, available):
  """How far windows of this length at the taps' offsets reach beyond the start and the end."""
  offsets = [offset for phase in phases for _, offset in phase]
  return max(0, -min(offsets)), max(0, max(offsets) + length - available)


def _kernel_gradient(x, cotangent, size, stride, pads):
  """Sums over blocks of one image, some rows and some channels: a block stays in the cache for all taps.

  Within a block every tap is an elementwise sum over the rows; columns are summed at the end. Each step
  computes on the block that the step before has copied: were it sliced where it is used, XLA would merge the
  slicing with its moving offset into the sums and no longer vectorise them (four times slower).
  """
  batch, out_height, out_width, channels = cotangent.shape
  blocks = -(-out_height // _BLOCK_ROWS)
  rows = -(-out_height // blocks)
  group = _largest_divisor(channels, _BLOCK_CHANNELS)
  window_rows = (rows - 1) * stride + size
  (top, bottom), sides = pads
  # Padded so that all blocks are whole: rows of zeros add nothing.
  missing = (blocks * rows - 1) * stride + size - (top + x.shape[1] + bottom)
  x = jnp.pad(x, ((0, 0), (top, bottom + max(missing, 0)), sides, (0, 0)))
  cotangent = jnp.pad(cotangent, ((0, 0), (0, blocks * rows - out_height), (0, 0), (0, 0)))
  steps = batch * blocks

  def load(step):
    channel = step // steps * group
    image, block = step % steps // blocks, step % blocks
    return (
      jax.lax.dynamic_slice(
        x, (image, block * rows * stride, 0, channel), (1, window_rows, x.shape[2], group)
      )[0],
      jax.lax.dynamic_slice(cotangent, (image, block * rows, 0, channel), (1, rows, out_width, group))[0],
    )

  def add_block(carry, step):
    (window, weights), totals = carry
    sums = []
    # All taps of a column in one sum: fewer loops to compile, with as much to do in each.
    for j, total in enumerate(totals):
      columns = slice(j, j + stride * (out_width - 1) + 1, stride)
      for row in range(rows):
        total = total + _product(window[row * stride : row * stride + size, columns], weights[row])
      sums.append(total)
    return (load(step + 1), tuple(sums)), None

  def sum_group(block, index):
    zeros = tuple(jnp.zeros((size, out_width, group), jnp.float32) for _ in range(size))
    (block, totals), _ = jax.lax.scan(add_block, (block, zeros), index * steps + jnp.arange(steps))
    return block, jnp.stack(totals, axis=1).sum(2)

  _, sums = jax.lax.scan(sum_group, load(0), jnp.arange(channels // group))
  return sums.transpose(1, 2, 0, 3).reshape(size, size, channels).astype(x.dtype)


def _largest_divisor(number, limit):
  """The largest divisor of number that is a multiple of 8 (a vector), up to limit; else number itself."""
  return max((d for d in range(8, limit + 1, 8) if number % d == 0), default=number)
