"""PyTorch programs that `deepscan benchmark` times ours against; needs the `benchmark` extra (torch).

The same EfficientNet, the same detector of the default preset and the same training step as ours, written
with torch alone. `load_variables` copies our variables into a network, so that two programs are compared that
compute the same numbers.

The method `tree` of a module gives its tensors as a tree with the names, axes and shapes of our variables.
They are views: what is written into them is written into the module. `of` may put another tensor in the place
of a parameter, its gradient for instance.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import numpy as np
import torch
from flax.traverse_util import flatten_dict
from torch import nn
from torch.nn import functional

from deepscan_jax.config import Config
from deepscan_jax.models import efficientnet
from deepscan_jax.optimizer import learning_rate_schedule

NORM_EPSILON = 1e-3  # as in the TensorFlow original; torch's own default is 1e-5
LAYER_NORM_EPSILON = 1e-6  # Flax's own default
STRONGEST_PLACES = 16  # as in the region head
REGION_FEATURES = 128
ATTENTION_REDUCTION, ATTENTION_SIZE = 16, 7

_Activation = Callable[[torch.Tensor], torch.Tensor]
_Of = Callable[[torch.Tensor], torch.Tensor]


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
    activation: _Activation | None = None,
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

  def tree(self, of: _Of) -> dict:
    """See the module's docstring; the statistics stand beside scale and bias."""
    kernel = of(self.conv.weight).permute(2, 3, 1, 0)
    if self.conv.groups > 1:
      kernel = kernel[:, :, 0]
    elif self.conv.kernel_size == (1, 1):
      kernel = kernel[0, 0]
    norm = self.norm
    stats = {"mean": norm.running_mean, "var": norm.running_var}
    return {"kernel": kernel, "norm": {"scale": of(norm.weight), "bias": of(norm.bias), **stats}}


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

  def tree(self, of: _Of) -> dict:
    """See the module's docstring."""
    return {"reduce": _dense(self.reduce, of), "expand": _dense(self.expand, of)}


class InvertedResidual(nn.Module):
  """One MBConv block: expand, depthwise, squeeze-excite, project, and the residual sum where shapes allow."""

  def __init__(self, in_channels: int, block: efficientnet.BlockSpec, activation: _Activation):
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

  def tree(self, of: _Of) -> dict:
    """See the module's docstring."""
    return {name: part.tree(of) for name, part in self.named_children() if hasattr(part, "tree")}


class EfficientNet(nn.Module):
  """The EfficientNet family in torch; returns the pooled head, or logits where num_classes is given."""

  def __init__(self, variant: str = "lite0", *, num_classes: int | None = None):
    super().__init__()
    spec = efficientnet.family_member(variant)
    activation = functional.relu6 if spec.lite else functional.silu
    self.stem = ConvNorm(3, spec.stem_channels, kernel_size=3, stride=2, activation=activation)
    self.blocks = nn.ModuleList()
    self.strides = []
    channels, stride = spec.stem_channels, 2
    for block in spec.blocks:
      stride *= block.stride
      self.strides.append(stride)
      self.blocks.append(InvertedResidual(channels, block, activation))
      channels = block.channels
    self.head = ConvNorm(channels, spec.head_channels, activation=activation)
    self.classifier = None if num_classes is None else nn.Linear(spec.head_channels, num_classes)

  def maps(self, images: torch.Tensor) -> dict[int | str, torch.Tensor]:
    """The last map [batch, channel, rows, columns] of each stride, and "head"."""
    images, maps = self.stem(images), {}
    for stride, block in zip(self.strides, self.blocks, strict=True):
      maps[stride] = images = block(images)
    return {**maps, "head": self.head(images)}

  def forward(self, images: torch.Tensor) -> torch.Tensor:
    """Maps [batch, 3, height, width] to [batch, num_classes], or to [batch, head channel] without classes."""
    pooled = self.maps(images)["head"].mean((2, 3))
    return pooled if self.classifier is None else self.classifier(pooled)

  def tree(self, of: _Of) -> dict:
    """See the module's docstring."""
    blocks = {f"block{index}": block.tree(of) for index, block in enumerate(self.blocks)}
    tree = {"stem": self.stem.tree(of), **blocks, "head": self.head.tree(of)}
    return tree if self.classifier is None else {**tree, "classifier": _dense(self.classifier, of)}

  def load_variables(self, variables: Mapping) -> EfficientNet:
    """Copies the variables of our EfficientNet of the same variant and number of classes; returns self."""
    return _load(self, variables)


class RegionHead(nn.Module):
  """Channel and spatial attention, the region map, and inside compared with outside."""

  def __init__(self, spec: efficientnet.FamilyMember):
    super().__init__()
    by_stride, stride = {}, 2
    for block in spec.blocks:
      stride *= block.stride
      by_stride[stride] = block.channels
    wide, narrow = REGION_FEATURES, REGION_FEATURES // ATTENTION_REDUCTION
    self.mix = nn.Conv2d(by_stride[8] + by_stride[16] + by_stride[32], wide, 1)
    self.reduce, self.expand = nn.Linear(wide, narrow, bias=False), nn.Linear(narrow, wide, bias=False)
    self.places = nn.Conv2d(2, 1, ATTENTION_SIZE, padding=ATTENTION_SIZE // 2, bias=False)
    self.region = nn.Conv2d(wide, 1, 1)
    self.out_features = spec.head_channels + 2 * wide + 2

  def forward(self, maps: Mapping[int | str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the description [batch, feature] and the region logits [batch, rows, columns]."""
    flat, middle = (2, 3), maps[16]
    coarse = maps[32].repeat_interleave(2, 2).repeat_interleave(2, 3)
    coarse = coarse[:, :, : middle.shape[2], : middle.shape[3]]
    x = functional.relu(self.mix(torch.cat([functional.avg_pool2d(maps[8], 2), middle, coarse], 1)))
    pooled = torch.stack([x.mean(flat), x.amax(flat)], 1)
    x = x * torch.sigmoid(self.expand(functional.relu(self.reduce(pooled))).sum(1))[:, :, None, None]
    x = x * torch.sigmoid(self.places(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)))
    region = self.region(x)
    inside = torch.sigmoid(region)
    outside = 1 - inside
    description = [
      maps["head"].mean(flat),
      (inside * x).sum(flat) / (inside.sum(flat) + 1e-3),
      (outside * x).sum(flat) / (outside.sum(flat) + 1e-3),
      region.flatten(1).topk(STRONGEST_PLACES)[0].mean(1, keepdim=True),
      inside.mean(flat),
    ]
    return torch.cat(description, 1), region[:, 0]

  def tree(self, of: _Of) -> dict:
    """See the module's docstring."""
    return {
      "mix": _dense(self.mix, of),
      "channel_attention": {"reduce": _dense(self.reduce, of), "expand": _dense(self.expand, of)},
      "spatial_attention": {"kernel": of(self.places.weight).permute(2, 3, 1, 0)},
      "region": _dense(self.region, of),
    }


class HeadProjection(nn.Module):
  """A linear map to several attention heads."""

  def __init__(self, width: int, heads: int):
    super().__init__()
    self.kernel = nn.Parameter(torch.zeros(width, heads, width // heads))
    self.bias = nn.Parameter(torch.zeros(heads, width // heads))

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """Maps [batch, token, feature] to [batch, token, head, depth]."""
    return torch.tensordot(x, self.kernel, dims=1) + self.bias

  def tree(self, of: _Of) -> dict:
    """See the module's docstring."""
    return {"kernel": of(self.kernel), "bias": of(self.bias)}


class Fusion(nn.Module):
  """The learned probe's attention over one token of one branch that is always present."""

  def __init__(self, width: int, heads: int):
    super().__init__()
    self.kind = nn.Parameter(torch.zeros(width))
    self.probe = nn.Parameter(torch.zeros(1, 1, width))
    self.query, self.key, self.value = (HeadProjection(width, heads) for _ in range(3))
    self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
    self.correct = nn.Linear(width, 1)

  def forward(self, token: torch.Tensor, logit: torch.Tensor) -> torch.Tensor:
    """Returns the fused logit [batch] for the branch's token [batch, feature] and logit [batch]."""
    probe = self.probe.expand(len(token), -1, -1)
    keys = torch.cat([probe, (token + self.kind)[:, None]], 1)
    query, key, value = self.query(probe), self.key(keys), self.value(keys)
    attention = (torch.einsum("bqhd,bthd->bht", query, key) * query.shape[-1] ** -0.5).softmax(-1)
    fused = self.norm(torch.einsum("bht,bthd->bhd", attention, value).flatten(1))
    share = attention.mean(1)[:, 1]
    return logit * (share / share.clamp(min=1e-6)) + self.correct(fused)[:, 0]

  def tree(self, of: _Of) -> dict:
    """See the module's docstring."""
    projections = {name: getattr(self, name).tree(of) for name in ("query", "key", "value")}
    norm = {"scale": of(self.norm.weight), "bias": of(self.norm.bias)}
    own = {"kind_spatial": of(self.kind), "probe": of(self.probe), "norm": norm}
    return {**own, **projections, "correct": _dense(self.correct, of)}


class Detector(nn.Module):
  """The detector of the default preset, one frame to an example."""

  def __init__(self, config: Config):
    super().__init__()
    model = config.model
    self.dropout = model.dropout
    self.backbone = EfficientNet(model.backbone)
    self.region_head = RegionHead(efficientnet.family_member(model.backbone))
    self.describe = nn.Linear(self.region_head.out_features, model.features)
    self.classify = nn.Linear(model.features, 1)
    self.fusion = Fusion(model.features, model.fusion_heads)

  def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the fused logit [batch], the branch's [batch] and the region logits [batch, rows, columns]."""
    description, region = self.region_head(self.backbone.maps(images))
    token = functional.relu(self.describe(description))
    token = functional.dropout(token, self.dropout, training=self.training)
    logit = self.classify(token)[:, 0]
    return self.fusion(token, logit), logit, region

  def tree(self, of: _Of) -> dict:
    """See the module's docstring."""
    spatial = {"backbone": self.backbone.tree(of), "region_head": self.region_head.tree(of)}
    spatial |= {"describe": _dense(self.describe, of), "classify": _dense(self.classify, of)}
    return {"spatial": spatial, "fusion": self.fusion.tree(of)}

  def load_variables(self, variables: Mapping) -> Detector:
    """Copies the variables of our Detector of the same configuration; returns self."""
    return _load(self, variables)


class TrainStep:
  """One step of train_state.train_step in torch: losses, clipping, AdamW and the average of parameters.

  Statistics of batch normalisation stay frozen, its scale and bias are trained. Focal loss and label
  smoothing are not there: the default preset has neither.

  Attributes:
    model: changed in place.
    average: its exponential moving average, a module of its own.
    optimizer: torch's AdamW.
  """

  def __init__(self, model: Detector, config: Config, *, channels_last: bool):
    self.model = _in_layout(model, channels_last).train()
    for module in model.modules():
      if isinstance(module, nn.BatchNorm2d):
        module.eval()
    self.average = copy.deepcopy(model)
    groups = [
      {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": config.train.weight_decay},
      {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    self.optimizer = torch.optim.AdamW(groups, fused=True)
    self._config, self._channels_last = config.train, channels_last
    self._rates = np.asarray(learning_rate_schedule(config.train)(np.arange(config.train.steps)))
    self._done = 0

  def __call__(self, batch: Mapping[str, np.ndarray]) -> float:
    """Takes one step on a batch of deepscan_jax.data.train_dataset with nothing masked; returns the loss."""
    labels, region = torch.from_numpy(batch["label"]).float(), torch.from_numpy(batch["region"][:, 0])
    crops = _to_nchw(batch["crops"][:, 0], self._channels_last)
    self.optimizer.zero_grad()
    fused, branch, places = self.model((crops.float() - 127) / 128)
    entropy = functional.binary_cross_entropy_with_logits
    loss = entropy(fused, labels) + self._config.branch_weight * entropy(branch, labels)
    loss = loss + self._config.region_weight * entropy(places, region)
    loss.backward()
    nn.utils.clip_grad_norm_(self.model.parameters(), self._config.clip_norm)
    for group in self.optimizer.param_groups:
      group["lr"] = float(self._rates[self._done])
    self.optimizer.step()
    decay = min(self._config.ema_decay, (1 + self._done) / (10 + self._done))
    with torch.no_grad():
      averages, parameters = list(self.average.parameters()), list(self.model.parameters())
      torch._foreach_lerp_(averages, parameters, 1 - decay)
    self._done += 1
    return loss.item()


def tensors(model: EfficientNet | Detector, *, of: _Of = lambda parameter: parameter) -> dict:
  """The tensors of a network by the path of ours ("block0/expand/kernel"), with the axes of ours."""
  return flatten_dict(model.tree(of), sep="/")


def make_forward(model: nn.Module, *, channels_last: bool) -> Callable[[np.ndarray], np.ndarray]:
  """Returns a function from normalised NHWC float32 images to the model's output, in eval mode."""
  model = _in_layout(model, channels_last).eval()

  @torch.inference_mode()
  def forward(images: np.ndarray) -> np.ndarray:
    return model(_to_nchw(images, channels_last)).numpy()

  return forward


def _load(model, variables: Mapping):
  """Copies our variables into the model, which must have all of them and no others."""
  ours = flatten_dict(variables["params"], sep="/") | flatten_dict(variables["batch_stats"], sep="/")
  theirs = tensors(model)
  if ours.keys() != theirs.keys():
    raise ValueError(f"Only one of the two networks has {', '.join(sorted(ours.keys() ^ theirs.keys()))}.")
  with torch.no_grad():
    for path, tensor in theirs.items():
      tensor.copy_(torch.from_numpy(np.array(ours[path])))
  return model


def _dense(module: nn.Linear | nn.Conv2d, of: _Of) -> dict:
  """A linear map, or a 1x1 convolution, as Flax's Dense has it: kernel [in, out]."""
  kernel = {"kernel": of(module.weight).flatten(1).T}
  return kernel if module.bias is None else {**kernel, "bias": of(module.bias)}


def _in_layout(model: nn.Module, channels_last: bool) -> nn.Module:
  return model.to(memory_format=torch.channels_last) if channels_last else model


def _to_nchw(images: np.ndarray, channels_last: bool) -> torch.Tensor:
  # The permuted view of NHWC memory already is torch's channels_last: no copy.
  views = torch.from_numpy(images).permute(0, 3, 1, 2)
  return views if channels_last else views.contiguous()
