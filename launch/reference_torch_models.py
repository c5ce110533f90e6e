"""DenseNet and Xception in torch, which `deepscan benchmark models` times ours against.

Written with torch.nn alone, in eval mode, layer by layer as their papers have them. `load_variables` copies
our parameters, so that two programs are compared that compute the same numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from deepscan_jax.models import densenet, xception

_XCEPTION_EPSILON = 1e-3  # as in the Keras original; torch's own default is 1e-5


class DenseNet(nn.Module):
  """The DenseNet family in torch; returns the pooled head, or logits where num_classes is given."""

  def __init__(self, variant: str = "121", *, num_classes: int | None = None):
    super().__init__()
    member = densenet.family_member(variant)
    self.stem = nn.Conv2d(3, member.stem_channels, 7, stride=2, padding=3, bias=False)
    self.stem_norm = _dense_norm(member.stem_channels)
    self.blocks, self.norms, self.transitions = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
    channels = member.stem_channels
    for index, count in enumerate(member.blocks):
      block = nn.ModuleList()
      for _ in range(count):
        block.append(_DenseLayer(channels, member.growth))
        channels += member.growth
      self.blocks.append(block)
      self.norms.append(_dense_norm(channels))
      if index + 1 < len(member.blocks):
        self.transitions.append(nn.Conv2d(channels, channels // 2, 1, bias=False))
        channels //= 2
    self.classifier = None if num_classes is None else nn.Linear(channels, num_classes)

  def forward(self, images: torch.Tensor) -> torch.Tensor:
    """Maps [batch, 3, height, width] to [batch, num_classes], or to [batch, head channel] without classes."""
    images = functional.relu(self.stem_norm(self.stem(images)))
    images = functional.max_pool2d(images, 3, stride=2, padding=1)
    for index, block in enumerate(self.blocks):
      for layer in block:
        images = torch.cat([images, layer(images)], 1)
      images = functional.relu(self.norms[index](images))
      if index < len(self.transitions):
        images = functional.avg_pool2d(self.transitions[index](images), 2)
    return _classified(self, images)

  def load_variables(self, variables: Mapping) -> DenseNet:
    """Copies the variables of our DenseNet of the same variant and number of classes; returns self."""
    params, stats = variables["params"], variables["batch_stats"]
    _copy_kernel(self.stem, params["stem"]["kernel"])
    _copy_norm(self.stem_norm, params["stem"]["norm"], stats["stem"]["norm"])
    for index, block in enumerate(self.blocks):
      for number, layer in enumerate(block):
        name = f"block{index}_layer{number}"
        layer.load(params[name], stats[name])
      name = f"norm{index}"
      _copy_norm(self.norms[index], params[name]["norm"], stats[name]["norm"])
    for index, transition in enumerate(self.transitions):
      _copy_kernel(transition, params[f"transition{index}"]["kernel"])
    return _with_classifier(self, params)


class _DenseLayer(nn.Module):
  def __init__(self, channels: int, growth: int):
    super().__init__()
    self.norm, self.bottleneck_norm = _dense_norm(channels), _dense_norm(4 * growth)
    self.bottleneck = nn.Conv2d(channels, 4 * growth, 1, bias=False)
    self.grow = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

  def forward(self, images: torch.Tensor) -> torch.Tensor:
    images = self.bottleneck(functional.relu(self.norm(images)))
    return self.grow(functional.relu(self.bottleneck_norm(images)))

  def load(self, params: Mapping, stats: Mapping) -> None:
    _copy_norm(self.norm, params["norm"]["norm"], stats["norm"]["norm"])
    _copy_kernel(self.bottleneck, params["bottleneck"]["kernel"])
    _copy_norm(self.bottleneck_norm, params["bottleneck"]["norm"], stats["bottleneck"]["norm"])
    _copy_kernel(self.grow, params["grow"]["kernel"])


class Xception(nn.Module):
  """Xception in torch; returns the pooled head, or logits where num_classes is given."""

  def __init__(self, variant: str = "xception", *, num_classes: int | None = None):
    super().__init__()
    architecture = xception.variant_architecture(variant)
    self.stem, self.stem_norms = nn.ModuleList(), nn.ModuleList()
    channels = 3
    for index, width in enumerate(architecture.stem_channels):
      self.stem.append(nn.Conv2d(channels, width, 3, stride=2 - index, bias=False))
      self.stem_norms.append(nn.BatchNorm2d(width, eps=_XCEPTION_EPSILON))
      channels = width
    self.blocks = nn.ModuleList()
    for block in architecture.blocks:
      self.blocks.append(_XceptionBlock(channels, block))
      channels = block.channels[-1]
    self.head = nn.ModuleList()
    for width in architecture.head_channels:
      self.head.append(_Separable(channels, width))
      channels = width
    self.classifier = None if num_classes is None else nn.Linear(channels, num_classes)

  def forward(self, images: torch.Tensor) -> torch.Tensor:
    """Maps [batch, 3, height, width] to [batch, num_classes], or to [batch, head channel] without classes."""
    for conv, norm in zip(self.stem, self.stem_norms, strict=True):
      images = functional.relu(norm(conv(images)))
    for block in self.blocks:
      images = block(images)
    for separable in self.head:
      images = functional.relu(separable(images))
    return _classified(self, images)

  def load_variables(self, variables: Mapping) -> Xception:
    """Copies the variables of our Xception of the same variant and number of classes; returns self."""
    params, stats = variables["params"], variables["batch_stats"]
    for index, (conv, norm) in enumerate(zip(self.stem, self.stem_norms, strict=True)):
      name = f"stem{index}"
      _copy_kernel(conv, params[name]["kernel"])
      _copy_norm(norm, params[name]["norm"], stats[name]["norm"])
    for index, block in enumerate(self.blocks):
      block.load(params[f"block{index}"], stats[f"block{index}"])
    for index, separable in enumerate(self.head):
      separable.load(params[f"head{index}"], stats[f"head{index}"])
    return _with_classifier(self, params)


class _XceptionBlock(nn.Module):
  def __init__(self, channels: int, spec: xception.BlockSpec):
    super().__init__()
    self.spec = spec
    widths = (channels, *spec.channels)
    self.separables = nn.ModuleList(_Separable(before, after) for before, after in itertools.pairwise(widths))
    if spec.halves:
      self.shortcut = nn.Conv2d(channels, widths[-1], 1, stride=2, bias=False)
      self.shortcut_norm = nn.BatchNorm2d(widths[-1], eps=_XCEPTION_EPSILON)

  def forward(self, images: torch.Tensor) -> torch.Tensor:
    outputs = images
    for index, separable in enumerate(self.separables):
      if index > 0 or self.spec.leading_relu:
        outputs = functional.relu(outputs)
      outputs = separable(outputs)
    if not self.spec.halves:
      return images + outputs
    # SAME as in TensorFlow: of an even length the pixel that is added stands at the end. No output is lost to
    # what is added at the start of an odd one.
    pads = [pad for length in (outputs.shape[3], outputs.shape[2]) for pad in (length % 2, 1)]
    outputs = functional.max_pool2d(functional.pad(outputs, pads, value=float("-inf")), 3, stride=2)
    return outputs + self.shortcut_norm(self.shortcut(images))

  def load(self, params: Mapping, stats: Mapping) -> None:
    for index, separable in enumerate(self.separables):
      separable.load(params[f"separable{index}"], stats[f"separable{index}"])
    if self.spec.halves:
      _copy_kernel(self.shortcut, params["shortcut"]["kernel"])
      _copy_norm(self.shortcut_norm, params["shortcut"]["norm"], stats["shortcut"]["norm"])


class _Separable(nn.Module):
  def __init__(self, channels: int, features: int):
    super().__init__()
    self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
    self.pointwise = nn.Conv2d(channels, features, 1, bias=False)
    self.norm = nn.BatchNorm2d(features, eps=_XCEPTION_EPSILON)

  def forward(self, images: torch.Tensor) -> torch.Tensor:
    return self.norm(self.pointwise(self.depthwise(images)))

  def load(self, params: Mapping, stats: Mapping) -> None:
    _copy_kernel(self.depthwise, params["depthwise"]["kernel"])
    _copy_kernel(self.pointwise, params["pointwise"]["kernel"])
    _copy_norm(self.norm, params["pointwise"]["norm"], stats["pointwise"]["norm"])


def _dense_norm(channels: int) -> nn.BatchNorm2d:
  return nn.BatchNorm2d(channels, eps=densenet.NORM_EPSILON)


def _classified(network: nn.Module, maps: torch.Tensor) -> torch.Tensor:
  pooled = maps.mean((2, 3))
  return pooled if network.classifier is None else network.classifier(pooled)


def _with_classifier(network: nn.Module, params: Mapping):
  if network.classifier is not None:
    _copy(network.classifier.weight, np.asarray(params["classifier"]["kernel"]).T)
    _copy(network.classifier.bias, params["classifier"]["bias"])
  return network


def _copy_kernel(module: nn.Conv2d, kernel) -> None:
  kernel = np.asarray(kernel)
  if kernel.ndim == 2:  # pointwise: [in, out]
    kernel = kernel[None, None]
  elif kernel.ndim == 3:  # depthwise: [height, width, channel]
    kernel = kernel[:, :, None]
  _copy(module.weight, kernel.transpose(3, 2, 0, 1))


def _copy_norm(module: nn.BatchNorm2d, params: Mapping, stats: Mapping) -> None:
  _copy(module.weight, params["scale"])
  _copy(module.bias, params["bias"])
  _copy(module.running_mean, stats["mean"])
  _copy(module.running_var, stats["var"])


def _copy(target: torch.Tensor, values) -> None:
  with torch.no_grad():
    target.copy_(torch.from_numpy(np.array(values)))
