"""ConvNeXt blocks for spectrograms and small crops: no statistics of a batch, and padding in time stays out.

After Liu et al. 2022, "A ConvNet for the 2020s" (https://arxiv.org/abs/2201.03545). Their layer norm sees
one place of one example only, so that training on pairs of real and fake cannot leak through it (see
layers.BatchNorm). It stands before the depthwise convolution here: behind it, XLA sums the shifted products
on CPUs anew for each pass of the norm, which took five times as long.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from deepscan_jax.models.interface import hide
from deepscan_jax.models.layers import Conv, Dense, DepthwiseConv, DropPath, LayerNorm


class ConvNextBlock(nn.Module):
  """Layer norm, depthwise convolution, two pointwise layers, around which the input is added.

  Attributes:
    kernel_size: of the depthwise convolution; odd.
    expansion: the hidden layer has so many times the channels.
    drop_path: how often training leaves the block out.
  """

  kernel_size: int = 3
  expansion: int = 2
  drop_path: float = 0.0

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None = None, *, train: bool) -> jax.Array:
    """Returns [batch, rows, columns, channel].

    Args:
      x: [batch, rows, columns, channel], zero where the mask is False.
      mask: [batch, rows] bool, rows being time; the other rows stay zero.
      train: whether the block is left out at times.
    """
    channels = x.shape[-1]
    y = LayerNorm(epsilon=1e-6, name="norm")(x)
    y = y if mask is None else hide(y, mask)
    y = DepthwiseConv(self.kernel_size, use_bias=True, name="depthwise")(y)
    y = nn.gelu(Dense(self.expansion * channels, name="expand")(y))
    y = Dense(channels, name="reduce")(y)
    y = DropPath(self.drop_path, name="drop_path")(y, train=train)
    return x + (y if mask is None else hide(y, mask))


class Reduce(nn.Module):
  """Fewer places, more channels: a strided convolution followed by layer norm.

  Its padding is the same on both sides, so that where its outputs lie does not depend on the size.

  Attributes:
    features: output channels.
    kernel_size: odd.
    strides: of rows and columns.
  """

  features: int
  kernel_size: int = 3
  strides: tuple[int, int] = (2, 2)

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [batch, rows, columns, channel] to [batch, rows / stride, columns / stride, features]."""
    size = self.kernel_size
    x = Conv(self.features, (size, size), self.strides, padding=size // 2, name="conv")(x)
    return LayerNorm(epsilon=1e-6, name="norm")(x)


def halve_mask(mask: jax.Array) -> jax.Array:
  """Which outputs of a convolution of stride 2 see something: [batch, (time + 1) // 2] of [batch, time]."""
  return mask[:, ::2] | jnp.pad(mask[:, 1::2], ((0, 0), (0, mask.shape[1] % 2)))


def with_height(x: jax.Array) -> jax.Array:
  """Adds a channel that says how high in the spectrum a place lies, for convolutions cannot tell.

  Args:
    x: [batch, time, frequency].

  Returns:
    [batch, time, frequency, 2]; the second is -1 at the lowest to 1 at the highest, also on padding.
  """
  height = jnp.broadcast_to(jnp.linspace(-1.0, 1.0, x.shape[-1], dtype=x.dtype), x.shape)
  return jnp.stack([x, height], axis=-1)
