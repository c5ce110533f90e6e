"""The DenseNet family in Flax: 121, 169 and 201, as feature extractors at several strides.

Gao Huang, Zhuang Liu, Laurens van der Maaten and Kilian Q. Weinberger, "Densely Connected Convolutional
Networks", CVPR 2017 (https://arxiv.org/abs/1608.06993). Padding and the epsilon of the norms are those of
Keras' version, so that its ImageNet weights fit (models/pretrained.py).
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from deepscan_jax.models import layers

NORM_EPSILON = 1.001e-5


@dataclasses.dataclass(frozen=True)
class FamilyMember:
  """A member of the family: layers of each dense block, channels that a layer adds, channels of the stem."""

  blocks: tuple[int, ...]
  growth: int
  stem_channels: int


# Table 1 of the paper
_MEMBERS = {
  "121": FamilyMember((6, 12, 24, 16), growth=32, stem_channels=64),
  "169": FamilyMember((6, 12, 32, 32), growth=32, stem_channels=64),
  "201": FamilyMember((6, 12, 48, 32), growth=32, stem_channels=64),
  # Not of the paper: for tests; compiles in seconds, has no weights.
  "pico": FamilyMember((2, 1, 1, 2), growth=8, stem_channels=16),
}
_BOTTLENECK = 4  # the 1x1 convolution of a layer has so many times `growth` channels
_COMPRESSION = 2  # a transition divides the channels by that
_fan_in_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class DenseNet(nn.Module):
  """Feature maps of normalised images [batch, height, width, 3] float.

  Attributes:
    variant: "121", "169" or "201", or "pico", which is for tests.
    num_classes: adds "logits" [batch, num_classes] over the pooled head; None for none.
    frozen_norm: the batch norms use their running statistics in training too (see layers.BatchNorm).
    axis_name: the pmap axis over which batch statistics are averaged.
  """

  variant: str = "121"
  num_classes: int | None = None
  frozen_norm: bool = True
  axis_name: str | None = None

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    """Returns the maps by stride, each a dense block's output after the norm and the relu that follow it.

    Args:
      images: [batch, height, width, 3] float; for the ImageNet weights each channel less its mean, over its
        standard deviation (models/backbones.py).
      train: whether statistics are taken from the batch unless frozen_norm.

    Returns:
      {"stride4", "stride8", "stride16", "stride32", "head"}: [batch, rows, columns, channel] each, the last
      two the same; with num_classes also "logits" [batch, num_classes].
    """
    member = family_member(self.variant)
    norm = {"frozen_norm": self.frozen_norm, "axis_name": self.axis_name}
    x = layers.ConvNorm(
      member.stem_channels,
      kernel_size=7,
      stride=2,
      padding=3,
      activation=nn.relu,
      epsilon=NORM_EPSILON,
      name="stem",
      **norm,
    )(images, train=train)
    x = layers.max_pool(x, padding=1)
    maps: dict[str, jax.Array] = {}
    for index, count in enumerate(member.blocks):
      for layer in range(count):
        grown = DenseLayer(member.growth, name=f"block{index}_layer{layer}", **norm)(x, train=train)
        x = jnp.concatenate([x, grown], axis=-1)
      x = NormRelu(name=f"norm{index}", **norm)(x, train=train)
      maps[f"stride{4 << index}"] = x
      if index + 1 < len(member.blocks):
        x = Transition(name=f"transition{index}")(x)
    maps["head"] = x
    if self.num_classes is not None:
      maps["logits"] = nn.Dense(self.num_classes, name="classifier")(x.mean(axis=(1, 2)))
    return maps


class DenseLayer(nn.Module):
  """What one layer adds: norm, relu, 1x1 convolution, norm, relu, 3x3 convolution."""

  growth: int
  frozen_norm: bool = True
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Returns [batch, height, width, growth] for x [batch, height, width, channel]."""
    norm = {"frozen_norm": self.frozen_norm, "axis_name": self.axis_name}
    x = NormRelu(name="norm", **norm)(x, train=train)
    x = layers.ConvNorm(
      _BOTTLENECK * self.growth, activation=nn.relu, epsilon=NORM_EPSILON, name="bottleneck", **norm
    )(x, train=train)
    return layers.Conv(self.growth, (3, 3), use_bias=False, name="grow")(x)


class Transition(nn.Module):
  """From one dense block to the next: half the channels, half the height and width.

  Means commute with a 1x1 convolution, which has a quarter of the places to go through after them.
  """

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns [batch, height / 2, width / 2, channel / 2] for x [batch, height, width, channel]."""
    channels = x.shape[-1]
    kernel = self.param("kernel", _fan_in_normal, (channels, channels // _COMPRESSION))
    return layers.pointwise_conv(layers.average_pool(x), kernel.astype(x.dtype))


class NormRelu(nn.Module):
  """Batch norm and relu, before a convolution instead of after it."""

  frozen_norm: bool = True
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Returns x [..., channel] normalised, and zero where that is negative."""
    return nn.relu(
      layers.BatchNorm(frozen=self.frozen_norm, axis_name=self.axis_name, epsilon=NORM_EPSILON, name="norm")(
        x, train=train
      )
    )


def family_member(variant: str) -> FamilyMember:
  """Returns blocks and channels of a variant ("121", "169", "201", "pico"); ValueError for another name."""
  if variant not in _MEMBERS:
    raise ValueError(f"Unknown DenseNet variant {variant!r}; there are {', '.join(_MEMBERS)}.")
  return _MEMBERS[variant]
