"""The 3D CNN branch: looks at how a face changes in place from frame to frame, for what flickers or slides.

Axis order is batch, time, height, width, channel. Time is never strided, as in X3D (Feichtenhofer 2020,
arXiv:2004.04730): a window has few frames, and each shall have evidence of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from deepscan_jax.models.crops import reduce_crops
from deepscan_jax.models.interface import BranchOutput, hide, masked_mean
from deepscan_jax.models.layers import Activation, BatchNorm
from deepscan_jax.models.spatial import RegionHead

# Normal with variance 2 / (kernel time x height x width x out channels), as the 2D layers draw theirs.
_fan_out_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
_TAPS = 3


class CNN3DBranch(nn.Module):
  """A 3D network with channel and spatial attention and a region head, over the crops at half their size.

  A single picture is a window of one frame: the network then sees space only. Frames that are not there
  count as the zeros beyond the window's ends, in every layer: a padded window gives what it gives without
  its padding.

  Attributes:
    widths: output channels of the network's four stages.
    depths: residual blocks of each stage.
    factorised: convolve in space, then in time (R(2+1)D), or in both at once.
    reduction: crops are reduced by this factor; 2 makes 112 pixels of 224.
    features: width of a token.
    dropout: of the pooled description, in training.
    axis_name: the pmap axis.
    dtype: what the network computes in; see models/interface.py.
  """

  INPUTS = ("crops", "crop_mask")

  widths: Sequence[int] = (32, 64, 128, 256)
  depths: Sequence[int] = (1, 1, 1, 1)
  factorised: bool = True
  reduction: int = 2
  features: int = 256
  dropout: float = 0.2
  axis_name: str | None = None
  dtype: str = "float32"

  @nn.compact
  def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> BranchOutput:
    """One token per frame, each having seen the frames around it.

    Args:
      batch: crops [batch, frame, height, width, 3] uint8 or float in 0..255, at least 32 * reduction pixels
        a side; crop_mask [batch, frame] bool.
      train: dropout on; needs the rng "dropout".

    Returns:
      tokens [batch, frame, features]; logit, the mean over the frames present; maps "region" [batch, frame,
      rows, columns], the logit of each place at each time lying in a forged region (14 x 14 for 224 pixels),
      and "frame_logit" [batch, frame].
    """
    mask = batch["crop_mask"]
    clips = reduce_crops(batch["crops"], mask, reduction=self.reduction).astype(self.dtype)
    frames = clips.shape[1]
    maps = ResNet3D(
      self.widths, self.depths, factorised=self.factorised, axis_name=self.axis_name, name="backbone"
    )(clips, mask, train=train)
    maps = {
      name: einops.rearrange(x, "batch frame ... -> (batch frame) ...")
      for name, x in (maps | {"head": maps["stride32"]}).items()
    }
    description, region = RegionHead(name="region_head")(maps)
    description = nn.relu(nn.Dense(self.features, name="describe")(description))
    tokens = nn.Dropout(self.dropout, deterministic=not train)(description)
    logits = nn.Dense(1, name="classify")(tokens)[:, 0]

    def by_frame(x: jax.Array) -> jax.Array:
      return hide(einops.rearrange(x, "(batch frame) ... -> batch frame ...", frame=frames), mask)

    frame_logit = by_frame(logits)
    return BranchOutput(
      tokens=by_frame(tokens),
      token_mask=mask,
      logit=masked_mean(frame_logit, mask),
      maps={"region": by_frame(region), "frame_logit": frame_logit},
    )


class ResNet3D(nn.Module):
  """Feature maps of normalised clips: R(2+1)D of half the paper's width, one block to a stage.

  Du Tran et al., "A Closer Look at Spatiotemporal Convolutions for Action Recognition", CVPR 2018
  (arXiv:1711.11248). Each 3D convolution is one in space and one in time, with as many channels between
  them as keep the number of parameters.

  Attributes:
    widths: output channels of the stages; each but the first halves height and width.
    depths: residual blocks of each stage; (2, 2, 2, 2) is the paper's depth of 18.
    factorised: False for the paper's R3D, full 3D convolutions.
    frozen_norm: see layers.BatchNorm.
    axis_name: see layers.BatchNorm.
  """

  widths: Sequence[int] = (32, 64, 128, 256)
  depths: Sequence[int] = (1, 1, 1, 1)
  factorised: bool = True
  frozen_norm: bool = True
  axis_name: str | None = None

  @nn.compact
  def __call__(self, clips: jax.Array, mask: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    """Returns the stages' maps, named by their stride in pixels of a crop twice as large.

    Args:
      clips: [batch, time, height, width, 3] float.
      mask: [batch, time] bool.
      train: whether statistics are taken from the batch, unless frozen_norm.

    Returns:
      {"stride4", "stride8", "stride16", "stride32"}: [batch, time, rows, columns, channel] each.
    """
    norm = {"frozen_norm": self.frozen_norm, "axis_name": self.axis_name}
    x = SpaceTimeConv(
      self.widths[0], size=7, stride=2, factorised=self.factorised, activation=nn.relu, name="stem", **norm
    )(clips, mask, train=train)
    maps = {}
    for stage, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
      for block in range(depth):
        x = ResidualBlock(
          width,
          stride=2 if stage and not block else 1,
          factorised=self.factorised,
          name=f"stage{stage}_block{block}",
          **norm,
        )(x, mask, train=train)
      maps[f"stride{4 << stage}"] = x
    return maps


class ResidualBlock(nn.Module):
  """Two space-time convolutions beside a shortcut.

  The sum is divided by the square root of two: its variance stays, which no batch statistics would see to
  while the norms are frozen.
  """

  features: int
  stride: int = 1
  factorised: bool = True
  frozen_norm: bool = True
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array, *, train: bool) -> jax.Array:
    """Maps x [batch, time, height, width, channel] to [..., height / stride, width / stride, features]."""
    norm = {"frozen_norm": self.frozen_norm, "axis_name": self.axis_name}
    convolve = functools.partial(SpaceTimeConv, self.features, factorised=self.factorised, **norm)
    y = convolve(stride=self.stride, activation=nn.relu, name="first")(x, mask, train=train)
    y = convolve(name="second")(y, mask, train=train)
    if x.shape != y.shape:
      x = ConvNorm3D(self.features, (1, 1), stride=self.stride, name="shortcut", **norm)(x, train=train)
    return nn.relu((x + y) * 0.5**0.5)


class SpaceTimeConv(nn.Module):
  """A convolution over space and time with its norm, factorised or not.

  Attributes:
    features: output channels.
    size: of the kernel in space; in time it is 3.
    stride: in space.
    factorised: in space, a norm and a relu, then in time.
    activation: applied last; None for none.
  """

  features: int
  size: int = 3
  stride: int = 1
  factorised: bool = True
  activation: Activation | None = None
  frozen_norm: bool = True
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array, *, train: bool) -> jax.Array:
    """Maps x [batch, time, height, width, channel] to [..., height / stride, width / stride, features]."""
    norm = {"frozen_norm": self.frozen_norm, "axis_name": self.axis_name}
    if self.factorised:
      between = between_channels(x.shape[-1], self.features, self.size)
      x = ConvNorm3D(between, (1, self.size), stride=self.stride, activation=nn.relu, name="space", **norm)(
        x, train=train
      )
      kernel, stride, name = (_TAPS, 1), 1, "time"
    else:
      kernel, stride, name = (_TAPS, self.size), self.stride, "space_time"
    # What looks at neighbours in time must find nothing where no frame is.
    return ConvNorm3D(self.features, kernel, stride=stride, activation=self.activation, name=name, **norm)(
      hide(x, mask), train=train
    )


class ConvNorm3D(nn.Module):
  """3D convolution without bias, batch norm, activation; see layers.ConvNorm for the attributes.

  Attributes:
    kernel_size: in time, and in both axes of space; odd.
    stride: in space.
  """

  features: int
  kernel_size: tuple[int, int]
  stride: int = 1
  activation: Activation | None = None
  frozen_norm: bool = True
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps x [batch, time, height, width, channel] to [..., height / stride, width / stride, features]."""
    taps, size = self.kernel_size
    kernel = self.param("kernel", _fan_out_normal, (taps, size, size, x.shape[-1], self.features))
    norm = BatchNorm(frozen=self.frozen_norm, axis_name=self.axis_name, name="norm")
    if train and not self.frozen_norm:
      x = norm(conv3d(x, kernel.astype(x.dtype), stride=self.stride), train=True)
    else:
      scale, shift = norm.affine(self.features)
      kernel = (kernel * scale).astype(x.dtype)
      x = conv3d(x, kernel, stride=self.stride) + shift.astype(x.dtype)
    return x if self.activation is None else self.activation(x)


def between_channels(channels: int, features: int, size: int) -> int:
  """Channels between the convolutions in space and in time with the parameters of the full one, at least 1.

  The paper's section 3.5, rounded down to a multiple of 8 where there are so many: whole vectors.
  """
  exact = _TAPS * size**2 * channels * features // (size**2 * channels + _TAPS * features)
  return max(1, exact if exact < 8 else exact // 8 * 8)


def conv3d(x: jax.Array, kernel: jax.Array, *, stride: int = 1) -> jax.Array:
  """Returns x convolved over time and space, padded with zeros by half the kernel on every side.

  XLA computes a 3D convolution on CPUs about half as fast as the same sum written with 2D convolutions, so
  there it is written so, its gradient too; elsewhere it is the 3D convolution.

  Args:
    x: [batch, time, height, width, in channel] float.
    kernel: [taps, size, size, in channel, out channel]; taps and size odd.
    stride: in space.

  Returns:
    [batch, time, height / stride, width / stride, out channel], rounded up.

  Raises:
    ValueError: shapes do not fit.
  """
  if x.ndim != 5 or kernel.ndim != 5 or x.shape[-1] != kernel.shape[3]:
    raise ValueError(
      "x must be [batch, time, height, width, in channel] and kernel [taps, size, size, in channel, "
      f"out channel]; got {x.shape} and {kernel.shape}."
    )
  taps, size, width = kernel.shape[:3]
  if size != width or size % 2 == 0 or taps % 2 == 0:
    raise ValueError(f"3D kernels are odd and square in space; got {kernel.shape[:3]}.")
  return _conv3d(x, kernel, stride)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv3d(x, kernel, stride):
  return jax.lax.platform_dependent(
    x,
    kernel,
    cpu=functools.partial(_sum_over_taps, stride=stride),
    default=functools.partial(_one_conv, stride=stride),
  )


def _conv3d_forward(x, kernel, stride):
  return _conv3d(x, kernel, stride), (x, kernel)


def _conv3d_backward(stride, residuals, cotangent):
  def gradient_of(convolve):
    return lambda x, kernel, cotangent: jax.vjp(functools.partial(convolve, stride=stride), x, kernel)[1](
      cotangent
    )

  return jax.lax.platform_dependent(
    *residuals, cotangent, cpu=gradient_of(_sum_over_taps), default=gradient_of(_one_conv)
  )


_conv3d.defvjp(_conv3d_forward, _conv3d_backward)


def _one_conv(x, kernel, *, stride):
  pads = [(length // 2, length // 2) for length in kernel.shape[:3]]
  return jax.lax.conv_general_dilated(
    x, kernel, (1, stride, stride), pads, dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
  )


def _sum_over_taps(x, kernel, *, stride):
  batch, time, height, width, channels = x.shape
  taps, size, _, _, features = kernel.shape
  if size == 1:
    # All places beside each other: one 2D convolution over time and place.
    x = x[:, :, ::stride, ::stride]
    rows, columns = x.shape[2:4]
    y = _conv2d(x.reshape(batch, time, rows * columns, channels), kernel[:, 0], pads=(taps // 2, 0))
    return y.reshape(batch, time, rows, columns, features)

  def tap(k):
    """What the frames k - taps // 2 away give, zeros where there are none."""
    shift = k - taps // 2
    seen = x[:, max(shift, 0) : time + min(shift, 0)]
    images = seen.reshape(-1, height, width, channels)
    y = _conv2d(images, kernel[k], stride=stride, pads=(size // 2, size // 2))
    y = y.reshape(batch, seen.shape[1], *y.shape[1:])
    return jnp.pad(y, ((0, 0), (max(-shift, 0), max(shift, 0)), (0, 0), (0, 0), (0, 0)))

  # A tap that reaches beyond both ends of a short clip meets nothing.
  return sum(tap(k) for k in range(taps) if abs(k - taps // 2) < time)


def _conv2d(images, kernel, *, pads, stride=1):
  return jax.lax.conv_general_dilated(
    images,
    kernel,
    (stride, stride),
    [(pad, pad) for pad in pads],
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
