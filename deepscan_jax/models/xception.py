"""Xception in Flax, as a feature extractor at several strides.

François Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", CVPR 2017
(https://arxiv.org/abs/1610.02357), figure 5; since FaceForensics++ the network that face forgery detectors
are compared with (Rössler et al., ICCV 2019, arXiv:1901.08971). Padding and the epsilon of the norms are
those of the author's Keras version, so that its ImageNet weights fit (models/pretrained.py).
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax

from deepscan_jax.models import layers


@dataclasses.dataclass(frozen=True)
class BlockSpec:
  """A residual block: channels of its separable convolutions, and whether it halves height and width."""

  channels: tuple[int, ...]
  halves: bool
  leading_relu: bool = True


@dataclasses.dataclass(frozen=True)
class Architecture:
  """Channels of the two stem convolutions, the residual blocks in order, channels of the last two."""

  stem_channels: tuple[int, int]
  blocks: tuple[BlockSpec, ...]
  head_channels: tuple[int, int]


def _architecture(stem, entry, *, middle: int, exit_channels: int, head) -> Architecture:
  wide = entry[-1]
  return Architecture(
    stem_channels=stem,
    blocks=(
      *(BlockSpec((c, c), halves=True, leading_relu=index > 0) for index, c in enumerate(entry)),
      *(BlockSpec((wide,) * 3, halves=False) for _ in range(middle)),
      BlockSpec((wide, exit_channels), halves=True),
    ),
    head_channels=head,
  )


_VARIANTS = {
  "xception": _architecture((32, 64), (128, 256, 728), middle=8, exit_channels=1024, head=(1536, 2048)),
  # Not of the paper: for tests; compiles in seconds, has no weights.
  "pico": _architecture((8, 16), (16, 24, 32), middle=1, exit_channels=40, head=(48, 64)),
}


class Xception(nn.Module):
  """Feature maps of normalised images [batch, height, width, 3] float.

  Attributes:
    variant: "xception", or "pico", which is for tests.
    num_classes: adds "logits" [batch, num_classes] over the pooled head; None for none.
    frozen_norm: the batch norms use their running statistics in training too (see layers.BatchNorm).
    axis_name: the pmap axis over which batch statistics are averaged.
  """

  variant: str = "xception"
  num_classes: int | None = None
  frozen_norm: bool = True
  axis_name: str | None = None

  def __call__(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    """Returns the maps by stride, the sums of the residual blocks, and "head" after the last convolutions.

    Args:
      images: [batch, height, width, 3] float; pixel / 127.5 - 1 for the ImageNet weights. 224 pixels
        give maps of 55, 28, 14 and 7 places on a side: the first convolutions are not padded.
      train: whether statistics are taken from the batch unless frozen_norm.

    Returns:
      {"stride4", "stride8", "stride16", "stride32", "head"}: [batch, rows, columns, channel] each; with
      num_classes also "logits" [batch, num_classes].
    """
    if train or self.is_initializing() or images.shape[0] == 1:
      return self._maps(images, train=train)
    network, variables = self.clone(parent=None, name=None), self.variables

    def together(images: jax.Array) -> dict[str, jax.Array]:
      return network.apply(variables, images, train=False, method="_maps")

    def one_by_one(images: jax.Array) -> dict[str, jax.Array]:
      maps = jax.lax.map(together, images[:, None])
      return jax.tree.map(lambda x: x[:, 0], maps)

    # The first maps of one picture fill the cache of a CPU; those of several would go through its memory.
    return jax.lax.platform_dependent(images, cpu=one_by_one, default=together)

  @nn.compact
  def _maps(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    architecture = variant_architecture(self.variant)
    norm = {"frozen_norm": self.frozen_norm, "axis_name": self.axis_name}
    x = images
    for index, channels in enumerate(architecture.stem_channels):
      x = layers.ConvNorm(
        channels,
        kernel_size=3,
        stride=2 if index == 0 else 1,
        padding=0,
        activation=nn.relu,
        name=f"stem{index}",
        **norm,
      )(x, train=train)
    maps: dict[str, jax.Array] = {}
    stride = 2
    for index, block in enumerate(architecture.blocks):
      x = ResidualBlock(block, name=f"block{index}", **norm)(x, train=train)
      stride *= 2 if block.halves else 1
      maps[f"stride{stride}"] = x
    for index, channels in enumerate(architecture.head_channels):
      x = SeparableConvNorm(channels, activation=nn.relu, name=f"head{index}", **norm)(x, train=train)
    maps["head"] = x
    if self.num_classes is not None:
      maps["logits"] = nn.Dense(self.num_classes, name="classifier")(x.mean(axis=(1, 2)))
    return maps


class ResidualBlock(nn.Module):
  """Separable convolutions, each after a relu, and max pooling where the block halves; plus its input."""

  spec: BlockSpec
  frozen_norm: bool = True
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Returns [batch, height, width, channel], halved (rounded up) or not, for x of the same axes."""
    norm = {"frozen_norm": self.frozen_norm, "axis_name": self.axis_name}
    y = x
    for index, channels in enumerate(self.spec.channels):
      if index > 0 or self.spec.leading_relu:
        y = nn.relu(y)
      y = SeparableConvNorm(channels, name=f"separable{index}", **norm)(y, train=train)
    if not self.spec.halves:
      return x + y
    # A 1x1 convolution of stride 2 sees every other place only.
    shortcut = layers.ConvNorm(self.spec.channels[-1], name="shortcut", **norm)(x[:, ::2, ::2], train=train)
    return layers.max_pool(y) + shortcut


class SeparableConvNorm(nn.Module):
  """A 3x3 depthwise and a pointwise convolution with nothing in between, batch norm, activation."""

  features: int
  activation: layers.Activation | None = None
  frozen_norm: bool = True
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Returns [batch, height, width, features] for x [batch, height, width, channel]."""
    x = layers.DepthwiseConv(3, name="depthwise")(x)
    return layers.ConvNorm(
      self.features,
      activation=self.activation,
      frozen_norm=self.frozen_norm,
      axis_name=self.axis_name,
      name="pointwise",
    )(x, train=train)


def variant_architecture(variant: str) -> Architecture:
  """Returns the channels and blocks of a variant ("xception", "pico"); ValueError for another name."""
  if variant not in _VARIANTS:
    raise ValueError(f"Unknown Xception variant {variant!r}; there are {', '.join(_VARIANTS)}.")
  return _VARIANTS[variant]
