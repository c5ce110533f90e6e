import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepscan_jax.models import freezing
from deepscan_jax.models.layers import ConvNorm


class Backbone(nn.Module):
  @nn.compact
  def __call__(self, x, *, train):
    for name in ("zebra", "apple", "mouse"):
      x = ConvNorm(4, kernel_size=3, name=name)(x, train=train)
    return x


class Branch(nn.Module):
  @nn.compact
  def __call__(self, x, *, train):
    return nn.Dense(1, name="classify")(Backbone(name="backbone")(x, train=train).mean(axis=(1, 2)))


IMAGES = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)


def test_layers_come_in_the_order_of_the_forward_pass():
  order = freezing.layers_in_order(Branch(), IMAGES, train=False)
  convolutions = ["zebra", "apple", "mouse"]
  expected = [path for name in convolutions for path in (("backbone", name), ("backbone", name, "norm"))]
  assert [path for path in order if path[0] == "backbone"] == expected
  assert ("classify",) in order


def test_all_but_the_last_layers_of_each_network_are_frozen():
  order = [(b, "backbone", str(i)) for b in ("spatial", "spatial_xception") for i in range(5)]
  order += [("spatial", "classify"), ("fusion",)]
  frozen = freezing.frozen_layers(order, keep_last=2)
  assert frozen == {(b, "backbone", str(i)) for b in ("spatial", "spatial_xception") for i in range(3)}
  assert freezing.frozen_layers(order, keep_last=0) == frozenset()
  assert freezing.frozen_layers(order, keep_last=9) == frozenset()
  with pytest.raises(ValueError, match="freeze_all_but_last"):
    freezing.frozen_layers(order, keep_last=-1)


def test_no_gradient_reaches_a_frozen_layer_and_decay_does_not_move_it():
  module = Branch()
  images = jax.random.normal(jax.random.key(0), IMAGES.shape)
  variables = module.init(jax.random.key(1), images, train=False)
  frozen = freezing.frozen_layers(freezing.layers_in_order(module, IMAGES, train=False), keep_last=2)

  def loss(params):
    params = freezing.stop_gradients(params, frozen)
    return module.apply({**variables, "params": params}, images, train=True).sum()

  gradients = jax.grad(loss)(variables["params"])
  for name, moves in (("zebra", False), ("apple", False), ("mouse", True)):
    assert bool(np.abs(gradients["backbone"][name]["kernel"]).max() > 0) == moves, name
  assert np.abs(gradients["classify"]["kernel"]).max() > 0

  decayed = jax.tree.map(lambda x: x * 0.9, variables["params"])
  kept = freezing.restore_frozen(decayed, variables["params"], frozen)
  np.testing.assert_array_equal(
    kept["backbone"]["zebra"]["kernel"], variables["params"]["backbone"]["zebra"]["kernel"]
  )
  np.testing.assert_array_equal(kept["backbone"]["mouse"]["kernel"], decayed["backbone"]["mouse"]["kernel"])
  np.testing.assert_array_equal(kept["classify"]["kernel"], decayed["classify"]["kernel"])
