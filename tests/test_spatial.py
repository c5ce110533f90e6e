import functools

import jax
import numpy as np
import pytest
from compiling import quick_jit
from toy_signals import blended_borders, train_alone

from deepscan_jax.models.backbones import backbone, measured_statistics
from deepscan_jax.models.spatial import SpatialBranch


def with_measured_statistics(variables: dict, batch: dict, *, network: str) -> dict:
  ours = {key: variables[key]["backbone"] for key in ("params", "batch_stats")}
  measure = quick_jit(functools.partial(measured_statistics, backbone(network)))
  return {**variables, "batch_stats": {"backbone": measure(ours, batch["crops"][:, 0])}}


def test_a_blended_border_is_learned_from_scratch():
  auc, say = train_alone(
    SpatialBranch("pico", features=32),
    functools.partial(blended_borders, count=32, side=64),
    steps=70,
    learning_rate=3e-3,
    prepare=functools.partial(with_measured_statistics, network="pico"),
  )
  assert auc > 0.95
  fakes = blended_borders(np.random.default_rng(1), 32, side=64)
  output = say(fakes)
  region, mask = (np.asarray(m)[fakes["label"] == 1] for m in (output.maps["region"], fakes["region"]))
  # The map shows where: places inside the patch score higher than those outside.
  assert region[mask > 0.5].mean() > region[mask == 0].mean() + 1


@pytest.mark.parametrize("network", ["pico", "pico_densenet"])
def test_measured_statistics_are_those_of_the_pictures(network):
  images = blended_borders(np.random.default_rng(0), 16, side=64)["crops"][:, 0]
  net = backbone(network)
  module = net.make()
  variables = quick_jit(functools.partial(module.init, train=False))(jax.random.key(0), net.normalise(images))
  measured = quick_jit(functools.partial(measured_statistics, net))(variables, images)
  assert jax.tree.structure(measured) == jax.tree.structure(variables["batch_stats"])

  def spread(statistics: dict) -> float:
    """How much the pictures' last maps differ from each other, beside how much places and channels do."""
    apply = quick_jit(functools.partial(module.apply, train=False))
    head = apply({"params": variables["params"], "batch_stats": statistics}, net.normalise(images))["head"]
    return float(head.std(axis=0).mean() / head.std())

  assert spread(measured) > 1.5 * spread(variables["batch_stats"])
