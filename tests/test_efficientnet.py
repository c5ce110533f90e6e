"""The EfficientNet family: published sizes, shapes of the maps, gradients, and the torch reference."""

import jax
import jax.numpy as jnp
import keras_oracle
import numpy as np
import pytest
from compiling import quick_jit

from deepscan_jax.models import efficientnet


def shapes_of(variant, size, **options):
  model = efficientnet.EfficientNet(variant, **options)
  images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
  variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
  maps = jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, images)
  return variables, {name: value.shape for name, value in maps.items()}


@pytest.mark.parametrize(
  ("variant", "parameters"),
  [
    # Published, to the digit where the authors' weight files give it (1000 classes).
    ("lite0", 4_652_008),
    ("lite4", 13_006_568),
    ("b0", 5_288_548),
    ("b1", 7_794_184),
    ("b3", 12_233_232),
    ("b7", 66_347_960),
  ],
)
def test_parameter_counts_are_the_published_ones(variant, parameters):
  variables, maps = shapes_of(variant, 64, num_classes=1000)
  assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"])) == parameters
  assert maps["logits"] == (2, 1000)


def test_maps_have_the_strides_of_their_names():
  _, maps = shapes_of("lite0", 224)
  assert maps == {
    "stride4": (2, 56, 56, 24),
    "stride8": (2, 28, 28, 40),
    "stride16": (2, 14, 14, 112),
    "stride32": (2, 7, 7, 320),
    "head": (2, 7, 7, 1280),
  }
  _, odd = shapes_of("b3", 75)
  assert odd["stride4"][1:3] == (19, 19) and odd["head"] == (2, 3, 3, 1536)


def test_an_unknown_variant_is_refused_with_the_list():
  with pytest.raises(ValueError, match="'b9'; there are b0, b1"):
    efficientnet.family_member("b9")


def random_variables(model, images):
  """Norms that are not the identity, or a wrong use of them would not show; and nothing to compile."""
  shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    if path[-1].key == "kernel":
      scale = np.sqrt(2 / np.prod(leaf.shape[:-1]))
      return (scale * rng.normal(size=leaf.shape)).astype(np.float32)
    return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, dict(shapes))


def test_a_training_step_lowers_the_loss_and_drops_paths():
  model = efficientnet.EfficientNet("pico", num_classes=1, drop_path=0.2)
  images = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
  labels = np.array([0.0, 1.0, 0.0, 1.0], np.float32)
  variables = random_variables(model, images)

  @quick_jit
  @jax.value_and_grad
  def step(params, key):
    outputs = model.apply({**variables, "params": params}, images, train=True, rngs={"dropout": key})
    return jnp.square(outputs["logits"][:, 0] - labels).mean()

  params, key = variables["params"], jax.random.key(1)
  before, gradient = jax.device_get(step(params, key))
  assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))
  norm = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(gradient)))
  moved = jax.tree.map(lambda p, g: p - 1e-2 * g / norm, params, gradient)
  assert step(moved, key)[0] < before
  assert step(params, jax.random.key(2))[0] != before


@pytest.mark.parametrize("variant", ["lite0", "b0"])
def test_the_torch_reference_computes_the_same_numbers(variant):
  pytest.importorskip("torch")
  from launch import reference_torch

  model = efficientnet.EfficientNet(variant, num_classes=3)
  images = np.random.default_rng(1).normal(size=(2, 70, 64, 3)).astype(np.float32)
  variables = random_variables(model, images)
  ours = quick_jit(lambda v, x: model.apply(v, x, train=False))(variables, images)["logits"]
  for channels_last in (False, True):
    network = reference_torch.EfficientNet(variant, num_classes=3).load_variables(variables)
    theirs = reference_torch.make_forward(network, channels_last=channels_last)(images)
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize("name", ["b0", "b3"])
def test_maps_are_those_that_keras_gave(name):
  keras_oracle.check_goldens(name)


@pytest.mark.parametrize("name", ["b0", "b3"])
def test_maps_equal_keras(name):
  keras_oracle.check_parity(name)
