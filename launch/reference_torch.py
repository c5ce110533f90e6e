"""PyTorch networks that `deepscan benchmark` times ours against; needs the `benchmark` extra (torch).

The same EfficientNet as deepscan_jax.models.efficientnet, written with torch.nn alone. `load_variables`
copies our parameters into it, so that a benchmark compares two programs that compute the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from deepscan_jax.models import efficientnet

NORM_EPSILON = 1e-3  # as in the TensorFlow original; torch's own default is 1e-5


class ConvNorm(nn.Module):
  """A convolution padded as TensorFlow's SAME, batch normalisation, and an activation."""

  def __init__(
    self,
    in_channels: int,
    out_channels: int,
    *,
    kernel_size: int = 1,
    stride: int = 1,
    groups: int = 1,
    activation: Callable[[torch.Tensor], torch.Tensor] | None = None,
  ):
    super().__init__()
    # SAME is asymmetric only for stride 2; elsewhere torch's own padding saves it a copy.
    padding = kernel_size // 2 if stride == 1 else 0
    self.conv = nn.Conv2d(
      in_channels, out_channels, kernel_size, stride=stride, padding=padding, groups=groups, bias=False
    )
    self.norm = nn.BatchNorm2d(out_channels, eps=NORM_EPSILON)
    self.activation = activation

  def forward(self, images: torch.Tensor) -> torch.Tensor:
    """Returns [batch, channel, height / stride, width / stride], rounded up."""
    stride, size = self.conv.stride[0], self.conv.kernel_size[0]
    if stride > 1:
      pads = []
      for length in (images.shape[3], images.shape[2]):
        total = max((-(-length // stride) - 1) * stride + size - length, 0)
        pads += [total // 2, total - total // 2]
      images = functional.pad(images, pads)
    images = self.norm(self.conv(images))
    return images if self.activation is None else self.activation(images)


class SqueezeExcite(nn.Module):
  """Channels weighted by a two-layer network over their means."""

  def __init__(self, channels: int, reduced: int):
    super().__init__()
    self.reduce = nn.Conv2d(channels, reduced, 1)
    self.expand = nn.Conv2d(reduced, channels, 1)

  def forward(self, images: torch.Tensor) -> torch.Tensor:
    """Returns the images, each channel multiplied by its weight in 0..1."""
    means = images.mean((2, 3), keepdim=True)
    return images * torch.sigmoid(self.expand(functional.silu(self.reduce(means))))


class InvertedResidual(nn.Module):
  """One MBConv block: expand, depthwise, squeeze-excite, project, and the residual sum where shapes allow."""

  def __init__(self, in_channels: int, block: efficientnet.BlockSpec, activation):
    super().__init__()
    wide = in_channels * block.expand_ratio
    self.expand = (
      ConvNorm(in_channels, wide, activation=activation) if block.expand_ratio > 1 else nn.Identity()
    )
    self.depthwise = ConvNorm(
      wide, wide, kernel_size=block.kernel_size, stride=block.stride, groups=wide, activation=activation
    )
    self.squeeze_excite = SqueezeExcite(wide, block.reduced) if block.reduced else nn.Identity()
    self.project = ConvNorm(wide, block.channels)
    self.residual = block.stride == 1 and in_channels == block.channels

  def forward(self, images: torch.Tensor) -> torch.Tensor:
    """Returns [batch, channel, height, width] of the block's output."""
    outputs = self.project(self.squeeze_excite(self.depthwise(self.expand(images))))
    return images + outputs if self.residual else outputs


class EfficientNet(nn.Module):
  """The EfficientNet family in torch; returns the pooled head, or logits where num_classes is given."""

  def __init__(self, variant: str = "lite0", *, num_classes: int | None = None):
    super().__init__()
    spec = efficientnet.family_member(variant)
    activation = functional.relu6 if spec.lite else functional.silu
    self.stem = ConvNorm(3, spec.stem_channels, kernel_size=3, stride=2, activation=activation)
    self.blocks = nn.ModuleList()
    channels = spec.stem_channels
    for block in spec.blocks:
      self.blocks.append(InvertedResidual(channels, block, activation))
      channels = block.channels
    self.head = ConvNorm(channels, spec.head_channels, activation=activation)
    self.classifier = None if num_classes is None else nn.Linear(spec.head_channels, num_classes)

  def forward(self, images: torch.Tensor) -> torch.Tensor:
    """Maps [batch, 3, height, width] to [batch, num_classes], or to [batch, head channel] without classes."""
    images = self.stem(images)
    for block in self.blocks:
      images = block(images)
    pooled = self.head(images).mean((2, 3))
    return pooled if self.classifier is None else self.classifier(pooled)

  def load_variables(self, variables: Mapping) -> EfficientNet:
    """Copies the variables of our EfficientNet of the same variant and number of classes; returns self."""
    params, stats = variables["params"], variables["batch_stats"]
    _copy_conv_norm(self.stem, params["stem"], stats["stem"])
    for index, block in enumerate(self.blocks):
      name = f"block{index}"
      for part in ("expand", "depthwise", "project"):
        if part in params[name]:
          _copy_conv_norm(getattr(block, part), params[name][part], stats[name][part])
      if "squeeze_excite" in params[name]:
        for part in ("reduce", "expand"):
          _copy_linear(getattr(block.squeeze_excite, part), params[name]["squeeze_excite"][part])
    _copy_conv_norm(self.head, params["head"], stats["head"])
    if self.classifier is not None:
      _copy_linear(self.classifier, params["classifier"])
    return self


def make_forward(model: nn.Module, *, channels_last: bool) -> Callable[[np.ndarray], np.ndarray]:
  """Returns a function from normalised NHWC float32 images to the model's output, in eval mode."""
  model = _in_layout(model, channels_last).eval()

  @torch.inference_mode()
  def forward(images: np.ndarray) -> np.ndarray:
    return model(_to_nchw(images, channels_last)).numpy()

  return forward


def make_train_step(
  model: nn.Module, *, channels_last: bool, learning_rate: float = 5e-4, weight_decay: float = 0.01
) -> Callable[[np.ndarray, np.ndarray], float]:
  """Returns a function (images, labels) -> loss that takes one AdamW step on the mean logistic loss.

  Statistics of batch normalisation stay frozen, its scale and bias are trained, as in our default preset.
  The model needs num_classes=1; labels are [batch] float 0 or 1.
  """
  model = _in_layout(model, channels_last).eval()
  optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=True)

  def step(images: np.ndarray, labels: np.ndarray) -> float:
    optimizer.zero_grad(set_to_none=True)
    logits = model(_to_nchw(images, channels_last))[:, 0]
    loss = functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(labels))
    loss.backward()
    optimizer.step()
    return loss.item()

  return step


def _in_layout(model: nn.Module, channels_last: bool) -> nn.Module:
  return model.to(memory_format=torch.channels_last) if channels_last else model


def _to_nchw(images: np.ndarray, channels_last: bool) -> torch.Tensor:
  # The permuted view of NHWC memory already is torch's channels_last: no copy.
  views = torch.from_numpy(images).permute(0, 3, 1, 2)
  return views if channels_last else views.contiguous()


def _copy_conv_norm(module: ConvNorm, params: Mapping, stats: Mapping) -> None:
  kernel = np.asarray(params["kernel"])
  if kernel.ndim == 2:  # pointwise: [in, out]
    kernel = kernel[None, None]
  elif module.conv.groups > 1:  # depthwise: [height, width, channel]
    kernel = kernel[:, :, None]
  _copy(module.conv.weight, kernel.transpose(3, 2, 0, 1))
  _copy(module.norm.weight, params["norm"]["scale"])
  _copy(module.norm.bias, params["norm"]["bias"])
  _copy(module.norm.running_mean, stats["norm"]["mean"])
  _copy(module.norm.running_var, stats["norm"]["var"])


def _copy_linear(module: nn.Linear | nn.Conv2d, params: Mapping) -> None:
  _copy(module.weight, np.asarray(params["kernel"]).T.reshape(module.weight.shape))
  _copy(module.bias, params["bias"])


def _copy(target: torch.Tensor, values) -> None:
  with torch.no_grad():
    target.copy_(torch.from_numpy(np.array(values)))
