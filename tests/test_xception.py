"""Xception: published sizes, shapes of the maps, gradients, the numbers of Keras and torch."""

import functools

import jax
import jax.numpy as jnp
import keras_oracle
import numpy as np
import pytest
from compiling import quick_jit
from tiny import random_variables

from deepscan_jax.models import xception


def shapes_of(variant, size, **options):
  model = xception.Xception(variant, **options)
  images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
  variables = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)
  maps = jax.eval_shape(functools.partial(model.apply, train=False), variables, images)
  return variables, {name: value.shape for name, value in maps.items()}


def test_sizes_are_the_published_ones():
  variables, maps = shapes_of("xception", 299, num_classes=1000)
  # Keras counts the running statistics as well.
  assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(variables)) == 22_910_480
  assert maps == {
    "stride4": (2, 74, 74, 128),
    "stride8": (2, 37, 37, 256),
    "stride16": (2, 19, 19, 728),
    "stride32": (2, 10, 10, 1024),
    "head": (2, 10, 10, 2048),
    "logits": (2, 1000),
  }


def test_face_crops_give_even_maps_where_regions_are_looked_for():
  _, maps = shapes_of("pico", 224)
  assert [maps[f"stride{s}"][1:3] for s in (4, 8, 16, 32)] == [(55, 55), (28, 28), (14, 14), (7, 7)]


def test_an_unknown_variant_is_refused_with_the_list():
  with pytest.raises(ValueError, match="'b0'; there are xception"):
    xception.variant_architecture("b0")


def test_several_pictures_give_what_each_gives_alone_and_the_same_gradients():
  model = xception.Xception("pico", num_classes=1)
  images = np.random.default_rng(0).normal(size=(3, 64, 64, 3)).astype(np.float32)
  variables = random_variables(model, images, train=False)
  apply = quick_jit(functools.partial(model.apply, train=False))
  maps = apply(variables, images)
  for i in range(3):
    alone = apply(variables, images[i : i + 1])
    for name, values in alone.items():
      np.testing.assert_allclose(maps[name][i : i + 1], values, rtol=1e-4, atol=1e-4)

  def loss(params, train):
    return jnp.square(model.apply({**variables, "params": params}, images, train=train)["logits"]).mean()

  evaluated, trained = (
    quick_jit(jax.grad(loss), static_argnums=1)(variables["params"], t) for t in (False, True)
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max()), evaluated, trained)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_training_step_lowers_the_loss_and_reaches_every_parameter(frozen):
  model = xception.Xception("pico", num_classes=1, frozen_norm=frozen)
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

  model = xception.Xception("pico", num_classes=3)
  images = np.random.default_rng(1).normal(size=(2, *size, 3)).astype(np.float32)
  variables = random_variables(model, images, train=False)
  ours = quick_jit(lambda v, x: model.apply(v, x, train=False))(variables, images)["logits"]
  network = reference_torch_models.Xception("pico", num_classes=3).load_variables(variables)
  theirs = reference_torch.make_forward(network, channels_last=True)(images)
  np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


def test_maps_are_those_that_keras_gave():
  keras_oracle.check_goldens("xception")


def test_maps_equal_keras():
  keras_oracle.check_parity("xception")
