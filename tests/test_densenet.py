"""The DenseNet family: published sizes, shapes of the maps, gradients, the numbers of Keras and torch."""

import functools

import jax
import jax.numpy as jnp
import keras_oracle
import numpy as np
import pytest
from compiling import quick_jit
from tiny import random_variables

from deepscan_jax.models import densenet


def shapes_of(variant, size, **options):
  model = densenet.DenseNet(variant, **options)
  images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
  variables = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)
  maps = jax.eval_shape(functools.partial(model.apply, train=False), variables, images)
  return variables, {name: value.shape for name, value in maps.items()}


@pytest.mark.parametrize(
  ("variant", "parameters"), [("121", 8_062_504), ("169", 14_307_880), ("201", 20_242_984)]
)
def test_parameter_counts_are_the_published_ones(variant, parameters):
  variables, maps = shapes_of(variant, 64, num_classes=1000)
  # Keras counts the running statistics as well.
  assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(variables)) == parameters
  assert maps["logits"] == (2, 1000)


def test_maps_have_the_strides_of_their_names():
  _, maps = shapes_of("121", 224)
  assert maps == {
    "stride4": (2, 56, 56, 256),
    "stride8": (2, 28, 28, 512),
    "stride16": (2, 14, 14, 1024),
    "stride32": (2, 7, 7, 1024),
    "head": (2, 7, 7, 1024),
  }


def test_an_unknown_variant_is_refused_with_the_list():
  with pytest.raises(ValueError, match="'b0'; there are 121, 169"):
    densenet.family_member("b0")


@pytest.mark.parametrize("frozen", [True, False])
def test_a_training_step_lowers_the_loss_and_reaches_every_parameter(frozen):
  model = densenet.DenseNet("pico", num_classes=1, frozen_norm=frozen)
  images = np.random.default_rng(0).normal(size=(4, 64, 64, 3)).astype(np.float32)
  labels = np.array([0.0, 1.0, 0.0, 1.0], np.float32)
  variables = random_variables(model, images, train=False)

  @quick_jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def step(params):
    maps, changed = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
    return jnp.square(maps["logits"][:, 0] - labels).mean(), changed["batch_stats"]

  params = variables["params"]
  (before, stats), gradient = jax.device_get(step(params))
  assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))
  moved = jax.tree.map(np.array_equal, stats, variables["batch_stats"])
  assert all(jax.tree.leaves(moved)) == frozen
  norm = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(gradient)))
  nearer = jax.tree.map(lambda p, g: p - 1e-3 * g / norm, params, gradient)
  assert step(nearer)[0][0] < before


@pytest.mark.parametrize("size", [(71, 96)])
def test_the_torch_reference_computes_the_same_numbers(size):
  pytest.importorskip("torch")
  from launch import reference_torch, reference_torch_models

  model = densenet.DenseNet("pico", num_classes=3)
  images = np.random.default_rng(1).normal(size=(2, *size, 3)).astype(np.float32)
  variables = random_variables(model, images, train=False)
  ours = quick_jit(lambda v, x: model.apply(v, x, train=False))(variables, images)["logits"]
  network = reference_torch_models.DenseNet("pico", num_classes=3).load_variables(variables)
  theirs = reference_torch.make_forward(network, channels_last=True)(images)
  np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


def test_maps_are_those_that_keras_gave():
  keras_oracle.check_goldens("densenet121")


def test_maps_equal_keras():
  keras_oracle.check_parity("densenet121")
