"""The table of picture networks, and the spatial branch on each kind of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit
from tiny import random_variables

from deepscan_jax.models import layers
from deepscan_jax.models.backbones import BACKBONES, backbone
from deepscan_jax.models.spatial import RegionHead, SpatialBranch

SMALL = ("pico", "pico_densenet", "pico_xception")


def batch_of(side):
  crops = np.random.default_rng(0).integers(0, 256, (2, 1, side, side, 3), dtype=np.uint8)
  return {"crops": crops, "crop_mask": np.ones((2, 1), bool)}


def test_an_unknown_name_is_refused_with_the_list():
  with pytest.raises(ValueError, match="'resnet50'; there are lite0, lite1"):
    backbone("resnet50")


def test_every_published_network_says_where_its_weights_are():
  assert {name for name, each in BACKBONES.items() if not (each.package or each.keras_file)} == {
    "lite3",
    "lite4",
    *SMALL,
  }


def test_pictures_are_normalised_as_the_weights_want_them():
  grey = np.full((1, 2, 2, 3), 127, np.uint8)
  assert (backbone("lite0").normalise(grey) == 0).all()
  np.testing.assert_allclose(backbone("xception").normalise(np.array([0.0, 255.0])), [-1, 1])
  white = backbone("b3").normalise(np.full((1, 1, 1, 3), 255.0))
  np.testing.assert_allclose(white.ravel(), (1 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225])
  assert backbone("densenet121").normalise(grey).dtype == jnp.float32


@pytest.mark.parametrize("name", SMALL)
def test_the_spatial_branch_sits_on_each_kind(name):
  branch = SpatialBranch(name, features=16)
  for side, places in ((224, 14), (299, 19 if name != "pico_densenet" else 18)):
    batch = batch_of(side)
    output, variables = jax.eval_shape(
      functools.partial(branch.init_with_output, train=False), jax.random.key(0), batch
    )
    assert output.tokens.shape == (2, 1, 16)
    assert output.maps["region"].shape == (2, 1, places, places)
    assert set(variables["params"]) == {"backbone", "region_head", "describe", "classify"}


def test_the_branch_on_an_xception_changes_with_its_crops():
  branch = SpatialBranch("pico_xception", features=16)
  batch = batch_of(96)
  variables = random_variables(branch, batch, train=False)
  apply = quick_jit(lambda v, b: branch.apply(v, b, train=False).logit)
  logits = apply(variables, batch)
  assert np.isfinite(logits).all() and logits[0] != logits[1]


@pytest.mark.parametrize("sides", [(28, 14, 7), (37, 19, 10), (37, 18, 9), (38, 19, 9)])
def test_the_region_head_fits_maps_halved_upwards_and_downwards(sides):
  maps = {f"stride{8 << i}": np.zeros((1, side, side, 4), np.float32) for i, side in enumerate(sides)}
  maps["head"] = maps["stride32"]
  (_, region), _ = jax.eval_shape(RegionHead().init_with_output, jax.random.key(0), maps)
  assert region.shape == (1, sides[1], sides[1])


@pytest.mark.parametrize(("lengths", "padding"), [((8, 7), "SAME"), ((7, 8), 1), ((5, 6), 0)])
def test_pooling_is_that_of_windows(lengths, padding):
  x = np.random.default_rng(0).normal(size=(2, *lengths, 3)).astype(np.float32) - 3
  pads = padding if padding == "SAME" else [(0, 0), (padding, padding), (padding, padding), (0, 0)]

  def by_window(x):
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), pads)

  ours, gradient = jax.vjp(functools.partial(layers.max_pool, padding=padding), x)
  theirs, expected = jax.vjp(by_window, x)
  np.testing.assert_array_equal(ours, theirs)
  np.testing.assert_allclose(gradient(jnp.cos(theirs))[0], expected(jnp.cos(theirs))[0], atol=1e-6)
  rows, columns = lengths[0] // 2, lengths[1] // 2
  means = x[:, : 2 * rows, : 2 * columns].reshape(2, rows, 2, columns, 2, 3).mean((2, 4))
  np.testing.assert_allclose(layers.average_pool(x), means, rtol=1e-5)
