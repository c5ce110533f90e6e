"""The EfficientNet family in Flax: B0 to B7 and Lite0 to Lite4, as feature extractors at several strides.

Mingxing Tan and Quoc V. Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML
2019 (https://arxiv.org/abs/1905.11946). The Lite members leave out squeeze-and-excitation, use relu6 instead
of swish and do not scale stem and head. Padding and the epsilon of the norms are those of the TensorFlow
original, so that its ImageNet weights fit (models/pretrained.py).
"""

from __future__ import annotations

import dataclasses
import math

import flax.linen as nn
import jax

from deepscan_jax.models import layers


@dataclasses.dataclass(frozen=True)
class BlockSpec:
  """The sizes of one inverted-residual block; `reduced` is the width of its squeeze-excite, 0 for none."""

  kernel_size: int
  stride: int
  expand_ratio: int
  channels: int
  reduced: int


@dataclasses.dataclass(frozen=True)
class FamilyMember:
  """A member of the family: its channels, its blocks in order, and the picture size it was designed for."""

  lite: bool
  image_size: int
  stem_channels: int
  blocks: tuple[BlockSpec, ...]
  head_channels: int
  dropout: float


# width, depth, image size, dropout
_COEFFICIENTS = {
  "b0": (1.0, 1.0, 224, 0.2),
  "b1": (1.0, 1.1, 240, 0.2),
  "b2": (1.1, 1.2, 260, 0.3),
  "b3": (1.2, 1.4, 300, 0.3),
  "b4": (1.4, 1.8, 380, 0.4),
  "b5": (1.6, 2.2, 456, 0.4),
  "b6": (1.8, 2.6, 528, 0.5),
  "b7": (2.0, 3.1, 600, 0.5),
  "lite0": (1.0, 1.0, 224, 0.2),
  "lite1": (1.0, 1.1, 240, 0.2),
  "lite2": (1.1, 1.2, 260, 0.3),
  "lite3": (1.2, 1.4, 280, 0.3),
  "lite4": (1.4, 1.8, 300, 0.3),
  # Not of the paper: a Lite member for tests, one block to a stage; compiles in seconds, has no weights.
  "pico": (0.25, 0.25, 224, 0.2),
}

# Table 1 of the paper: kernel size, repeats, output channels, expand ratio, stride of the first repeat
_STAGES = (
  (3, 1, 16, 1, 1),
  (3, 2, 24, 6, 2),
  (5, 2, 40, 6, 2),
  (3, 3, 80, 6, 2),
  (5, 3, 112, 6, 1),
  (5, 4, 192, 6, 2),
  (3, 1, 320, 6, 1),
)
_SQUEEZE_RATIO = 0.25


class EfficientNet(nn.Module):
  """Feature maps of normalised images [batch, height, width, 3] float.

  Attributes:
    variant: "b0" to "b7", "lite0" to "lite4", or "pico", which is for tests.
    num_classes: adds "logits" [batch, num_classes] over the pooled head; None for none.
    frozen_norm: the batch norms use their running statistics in training too (see layers.BatchNorm).
    axis_name: the pmap axis over which batch statistics are averaged.
    drop_path: stochastic depth; how often training leaves out the last block; earlier ones less, linearly.
  """

  variant: str = "lite0"
  num_classes: int | None = None
  frozen_norm: bool = True
  axis_name: str | None = None
  drop_path: float = 0.0

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    """Returns the maps by stride, the last ("head") after the final pointwise convolution.

    Args:
      images: [batch, height, width, 3] float; (pixel - 127) / 128 for the ImageNet weights of a Lite member.
      train: whether blocks drop out, and statistics are taken from the batch unless frozen_norm. With
        dropout the rng "dropout" is needed.

    Returns:
      {"stride4", "stride8", "stride16", "stride32", "head"}: [batch, rows, columns, channel] each; with
      num_classes also "logits" [batch, num_classes].
    """
    member = family_member(self.variant)
    activation = nn.relu6 if member.lite else layers.swish
    norm = {"frozen_norm": self.frozen_norm, "axis_name": self.axis_name}
    x = layers.ConvNorm(
      member.stem_channels, kernel_size=3, stride=2, activation=activation, name="stem", **norm
    )(images, train=train)
    maps: dict[str, jax.Array] = {}
    stride = 2
    for index, block in enumerate(member.blocks):
      stride *= block.stride
      x = InvertedResidual(
        block,
        activation=activation,
        drop_path=self.drop_path * index / len(member.blocks),
        name=f"block{index}",
        **norm,
      )(x, train=train)
      maps[f"stride{stride}"] = x
    del maps["stride2"]
    maps["head"] = layers.ConvNorm(
      member.head_channels, kernel_size=1, activation=activation, name="head", **norm
    )(x, train=train)
    if self.num_classes is not None:
      pooled = maps["head"].mean(axis=(1, 2))
      pooled = nn.Dropout(member.dropout, deterministic=not train)(pooled)
      maps["logits"] = nn.Dense(self.num_classes, name="classifier")(pooled)
    return maps


class InvertedResidual(nn.Module):
  """One MBConv block: pointwise expansion, depthwise convolution, squeeze-excite, pointwise projection."""

  spec: BlockSpec
  activation: layers.Activation
  frozen_norm: bool = True
  axis_name: str | None = None
  drop_path: float = 0.0

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Returns [batch, height / stride, width / stride, channel] for x [batch, height, width, channel]."""
    spec = self.spec
    norm = {"frozen_norm": self.frozen_norm, "axis_name": self.axis_name}
    channels = x.shape[-1] * spec.expand_ratio
    y = x
    if spec.expand_ratio > 1:
      y = layers.ConvNorm(channels, kernel_size=1, activation=self.activation, name="expand", **norm)(
        y, train=train
      )
    y = layers.DepthwiseConvNorm(
      kernel_size=spec.kernel_size, stride=spec.stride, activation=self.activation, name="depthwise", **norm
    )(y, train=train)
    if spec.reduced:
      y = layers.SqueezeExcite(spec.reduced, name="squeeze_excite")(y)
    y = layers.ConvNorm(spec.channels, kernel_size=1, name="project", **norm)(y, train=train)
    if spec.stride == 1 and x.shape[-1] == spec.channels:
      y = x + layers.DropPath(self.drop_path, name="drop_path")(y, train=train)
    return y


def family_member(variant: str) -> FamilyMember:
  """Returns the channels and blocks of a variant ("b0" to "b7", "lite0" to "lite4", "pico").

  Widths are rounded to multiples of 8 (never below 90 % of the exact width), repeats upwards. A Lite member
  keeps the stem (32) and the head (1280) of B0 and does not repeat its first and last stage; pico, which is
  for tests, is a Lite member that scales both ends as well. ValueError for another name.
  """
  if variant not in _COEFFICIENTS:
    raise ValueError(f"Unknown EfficientNet variant {variant!r}; there are {', '.join(_COEFFICIENTS)}.")
  width, depth, image_size, dropout = _COEFFICIENTS[variant]
  lite = not variant.startswith("b")
  fixed_ends = variant.startswith("lite")
  blocks: list[BlockSpec] = []
  channels_in = stem = 32 if fixed_ends else _round_channels(32 * width)
  for index, (kernel_size, repeats, channels, expand_ratio, stride) in enumerate(_STAGES):
    if not (fixed_ends and index in (0, len(_STAGES) - 1)):
      repeats = math.ceil(repeats * depth)
    channels = _round_channels(channels * width)
    for repeat in range(repeats):
      blocks.append(
        BlockSpec(
          kernel_size=kernel_size,
          stride=stride if repeat == 0 else 1,
          expand_ratio=expand_ratio,
          channels=channels,
          reduced=0 if lite else max(1, int(channels_in * _SQUEEZE_RATIO)),
        )
      )
      channels_in = channels
  return FamilyMember(
    lite=lite,
    image_size=image_size,
    stem_channels=stem,
    blocks=tuple(blocks),
    head_channels=1280 if fixed_ends else _round_channels(1280 * width),
    dropout=dropout,
  )


def _round_channels(channels: float, divisor: int = 8) -> int:
  rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
  return rounded + divisor if rounded < 0.9 * channels else rounded
