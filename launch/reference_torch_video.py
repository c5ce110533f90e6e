"""The 3D network in PyTorch, against which `deepscan benchmark` times ours; needs the `benchmark` extra.

The same network as deepscan_jax.models.cnn3d.ResNet3D, written with torch.nn alone, for windows in which
every frame is present. `load_variables` copies our variables into it, so that two programs are compared that
compute the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from deepscan_jax.models.cnn3d import between_channels

NORM_EPSILON = 1e-3  # as in our layers; torch's own default is 1e-5


class ConvNorm3D(nn.Module):
  """A 3D convolution, batch normalisation, and a relu where it is wanted."""

  def __init__(
    self, in_channels: int, out_channels: int, *, kernel_size: tuple[int, int], stride: int = 1, relu=False
  ):
    super().__init__()
    taps, size = kernel_size
    self.conv = nn.Conv3d(
      in_channels,
      out_channels,
      (taps, size, size),
      stride=(1, stride, stride),
      padding=(taps // 2, size // 2, size // 2),
      bias=False,
    )
    self.norm = nn.BatchNorm3d(out_channels, eps=NORM_EPSILON)
    self.relu = relu

  def forward(self, clips: torch.Tensor) -> torch.Tensor:
    """Returns [batch, channel, time, height / stride, width / stride], rounded up."""
    clips = self.norm(self.conv(clips))
    return functional.relu(clips, inplace=True) if self.relu else clips

  def load(self, params: Mapping, stats: Mapping) -> None:
    """Copies the variables of our ConvNorm3D."""
    _copy(self.conv.weight, np.asarray(params["kernel"]).transpose(4, 3, 0, 1, 2))
    _copy(self.norm.weight, params["norm"]["scale"])
    _copy(self.norm.bias, params["norm"]["bias"])
    _copy(self.norm.running_mean, stats["norm"]["mean"])
    _copy(self.norm.running_var, stats["norm"]["var"])


class SpaceTimeConv(nn.Module):
  """A convolution over space and time, factorised or not."""

  def __init__(
    self, in_channels: int, out_channels: int, *, size: int = 3, stride: int = 1, factorised: bool, relu: bool
  ):
    super().__init__()
    if factorised:
      between = between_channels(in_channels, out_channels, size)
      self.space = ConvNorm3D(in_channels, between, kernel_size=(1, size), stride=stride, relu=True)
      self.time = ConvNorm3D(between, out_channels, kernel_size=(3, 1), relu=relu)
    else:
      self.space_time = ConvNorm3D(in_channels, out_channels, kernel_size=(3, size), stride=stride, relu=relu)

  def forward(self, clips: torch.Tensor) -> torch.Tensor:
    """Returns [batch, channel, time, height / stride, width / stride]."""
    for part in self.children():
      clips = part(clips)
    return clips


class ResidualBlock(nn.Module):
  """Two space-time convolutions beside a shortcut."""

  def __init__(self, in_channels: int, out_channels: int, *, stride: int, factorised: bool):
    super().__init__()
    self.first = SpaceTimeConv(in_channels, out_channels, stride=stride, factorised=factorised, relu=True)
    self.second = SpaceTimeConv(out_channels, out_channels, factorised=factorised, relu=False)
    self.shortcut = (
      nn.Identity()
      if stride == 1 and in_channels == out_channels
      else ConvNorm3D(in_channels, out_channels, kernel_size=(1, 1), stride=stride)
    )

  def forward(self, clips: torch.Tensor) -> torch.Tensor:
    """Returns [batch, channel, time, height / stride, width / stride]."""
    return functional.relu((self.shortcut(clips) + self.second(self.first(clips))) * 0.5**0.5)


class ResNet3D(nn.Module):
  """Our ResNet3D in torch; returns its last map."""

  def __init__(
    self,
    widths: Sequence[int] = (32, 64, 128, 256),
    depths: Sequence[int] = (1, 1, 1, 1),
    *,
    factorised: bool = True,
  ):
    super().__init__()
    channels = widths[0]
    self.stem = SpaceTimeConv(3, channels, size=7, stride=2, factorised=factorised, relu=True)
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
      for block in range(depth):
        stride = 2 if stage and not block else 1
        module = ResidualBlock(channels, width, stride=stride, factorised=factorised)
        self.add_module(f"stage{stage}_block{block}", module)
        channels = width

  def forward(self, clips: torch.Tensor) -> torch.Tensor:
    """Maps [batch, 3, time, height, width] to [batch, channel, time, height / 16, width / 16]."""
    for part in self.children():
      clips = part(clips)
    return clips

  def load_variables(self, variables: Mapping) -> ResNet3D:
    """Copies the variables of our ResNet3D of the same shape; returns self."""
    for name, module in self.named_modules():
      if isinstance(module, ConvNorm3D):
        module.load(*(_at(variables[collection], name) for collection in ("params", "batch_stats")))
    return self


def make_forward(model: nn.Module, *, channels_last: bool) -> Callable[[np.ndarray], np.ndarray]:
  """Returns a function from normalised float32 clips [batch, time, height, width, 3] to the last map.

  The map is [batch, time, rows, columns, channel], as ours is.
  """
  layout = torch.channels_last_3d if channels_last else torch.contiguous_format
  model = model.to(memory_format=layout).eval()

  @torch.inference_mode()
  def forward(clips: np.ndarray) -> np.ndarray:
    views = torch.from_numpy(clips).permute(0, 4, 1, 2, 3).contiguous(memory_format=layout)
    return model(views).permute(0, 2, 3, 4, 1).numpy()

  return forward


def _at(tree: Mapping, path: str):
  for name in path.split("."):
    tree = tree[name]
  return tree


def _copy(target: torch.Tensor, values) -> None:
  with torch.no_grad():
    target.copy_(torch.from_numpy(np.array(values)))
