"""The 3D CNN branch: its convolution against XLA's, frames that are not there, and flicker."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from branch_contract import MASK, check_branch, poison, window_batch
from compiling import quick_jit
from tiny import random_variables
from toy_signals import flickering_clips, train_alone

from deepscan_jax.models import cnn3d

# 32 pixels without reduction are the least: the region map's strongest places are sixteen.
SIDE = 32
TINY = {"widths": (4, 8, 8, 8), "reduction": 1, "features": 8, "dropout": 0.2}

# taps, size, stride, (time, height, width)
CASES = [
  (3, 1, 1, (5, 4, 3)),
  (3, 1, 2, (4, 5, 6)),
  (1, 3, 1, (3, 4, 5)),
  (1, 7, 2, (2, 9, 8)),
  (1, 1, 2, (2, 7, 6)),
  (3, 3, 1, (4, 5, 4)),
  (3, 3, 2, (3, 6, 7)),
  (5, 3, 2, (2, 6, 5)),  # the outermost taps reach beyond both ends of the clip
  (3, 3, 1, (1, 4, 4)),
]


def random(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def one_conv(x, kernel, stride):
  """XLA's own 3D convolution."""
  pads = [(length // 2, length // 2) for length in kernel.shape[:3]]
  return jax.lax.conv_general_dilated(
    x, kernel, (1, stride, stride), pads, dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
  )


@pytest.mark.parametrize(("taps", "size", "stride", "lengths"), CASES)
def test_conv3d_equals_the_3d_convolution_and_its_gradients(taps, size, stride, lengths):
  x, kernel = random(2, *lengths, 3), random(taps, size, size, 3, 4, seed=1)

  @quick_jit
  def both(x, kernel):
    ours, our_gradient = jax.vjp(lambda x, k: cnn3d.conv3d(x, k, stride=stride), x, kernel)
    xla, xla_gradient = jax.vjp(lambda x, k: one_conv(x, k, stride), x, kernel)
    cotangent = jnp.cos(jnp.arange(xla.size, dtype=jnp.float32)).reshape(xla.shape)
    return (ours, *our_gradient(cotangent)), (xla, *xla_gradient(cotangent))

  for ours, xla in zip(*both(x, kernel), strict=True):
    assert ours.shape == xla.shape
    np.testing.assert_allclose(ours, xla, rtol=1e-5, atol=2e-6 * float(np.abs(xla).max()))


def test_conv3d_refuses_what_it_cannot_do():
  x = np.zeros((1, 2, 4, 4, 2), np.float32)
  with pytest.raises(ValueError, match=r"\(1, 2, 4, 4, 2\) and \(3, 3, 3, 5, 2\)"):
    cnn3d.conv3d(x, np.zeros((3, 3, 3, 5, 2), np.float32))
  with pytest.raises(ValueError, match=r"odd and square in space; got \(2, 3, 3\)"):
    cnn3d.conv3d(x, np.zeros((2, 3, 3, 2, 2), np.float32))


def test_the_factors_have_the_parameters_of_the_whole():
  assert cnn3d.between_channels(64, 64, 3) == 144  # the paper's

  def size(factorised: bool) -> int:
    clips, mask = jax.ShapeDtypeStruct((1, 16, 112, 112, 3), jnp.float32), np.ones((1, 16), bool)
    module = cnn3d.ResNet3D(factorised=factorised)
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, mask, train=False), clips)
    return sum(x.size for x in jax.tree.leaves(shapes["params"]))

  assert 0.98 < size(True) / size(False) < 1.0
  assert 3e6 < size(True) < 4e6


def test_a_layer_folds_its_norm():
  x, layer = random(2, 3, 4, 4, 5), cnn3d.ConvNorm3D(6, (3, 3))
  variables = random_variables(layer, x, train=False)
  norm = variables["params"]["norm"] | variables["batch_stats"]["norm"]
  plain = one_conv(x, variables["params"]["kernel"], 1)
  expected = (plain - norm["mean"]) / np.sqrt(norm["var"] + 1e-3) * norm["scale"] + norm["bias"]
  np.testing.assert_allclose(layer.apply(variables, x, train=False), expected, rtol=1e-4, atol=1e-5)
  unfrozen = cnn3d.ConvNorm3D(6, (3, 3), frozen_norm=False)
  y, changed = unfrozen.apply(variables, x, train=True, mutable=["batch_stats"])
  scale = norm["scale"] / np.sqrt(plain.var((0, 1, 2, 3)) + 1e-3)
  np.testing.assert_allclose(y, (plain - plain.mean((0, 1, 2, 3))) * scale + norm["bias"], atol=1e-4)
  assert not np.allclose(changed["batch_stats"]["norm"]["mean"], norm["mean"])


@pytest.mark.parametrize("factorised", [True, False])
def test_the_branch_keeps_the_contract(factorised):
  check_branch(cnn3d.CNN3DBranch(**TINY, factorised=factorised), side=SIDE)


@functools.cache
def evaluate(factorised: bool):
  module = cnn3d.CNN3DBranch(**TINY, factorised=factorised)
  return random_variables(module, window_batch(side=SIDE), train=False), quick_jit(
    lambda variables, batch: module.apply(variables, batch, train=False)
  )


@pytest.mark.parametrize("factorised", [True, False])
@pytest.mark.parametrize("length", [1, 2])
def test_a_padded_window_gives_what_it_gives_without_its_padding(factorised, length):
  variables, run = evaluate(factorised)
  mask = np.repeat(np.arange(4)[None] < length, 3, axis=0)
  padded = poison(window_batch(side=SIDE), mask)
  short = {key: value[:, :length] for key, value in padded.items()}
  whole, alone = run(variables, padded), run(variables, short)
  np.testing.assert_allclose(whole.logit, alone.logit, rtol=1e-5, atol=1e-6)
  for ours, theirs in ((whole.tokens, alone.tokens), (whole.maps["region"], alone.maps["region"])):
    np.testing.assert_allclose(ours[:, :length], theirs, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(ours[:, length:], 0)


def test_every_frame_sees_its_neighbours_and_no_other_window():
  variables, run = evaluate(True)
  batch = window_batch(side=SIDE, mask=np.ones((3, 4), bool))
  other = {**batch, "crops": batch["crops"].copy()}
  other["crops"][0, 3] = 0
  before, after = (np.asarray(run(variables, b).maps["frame_logit"]) for b in (batch, other))
  assert (before[0] != after[0]).all()
  np.testing.assert_allclose(before[1:], after[1:], rtol=1e-5, atol=1e-6)


def test_the_default_maps_have_the_size_of_the_masks_that_train_them():
  from deepscan_jax.data import REGION_SIZE

  batch = {
    "crops": jax.ShapeDtypeStruct((2, 16, 224, 224, 3), jnp.uint8),
    "crop_mask": jax.ShapeDtypeStruct((2, 16), jnp.bool_),
  }
  module = cnn3d.CNN3DBranch()
  output, _ = jax.eval_shape(
    lambda batch: module.init_with_output(jax.random.key(0), batch, train=False), batch
  )
  assert output.maps["region"].shape == (2, 16, REGION_SIZE, REGION_SIZE)
  assert output.maps["frame_logit"].shape == (2, 16) == output.token_mask.shape
  assert output.tokens.shape == (2, 16, 256)


def test_crops_of_a_wrong_size_are_refused():
  batch = {"crops": np.zeros((3, 4, 33, 32, 3), np.uint8), "crop_mask": MASK}
  module = cnn3d.CNN3DBranch(**TINY | {"reduction": 2})
  with pytest.raises(ValueError, match=r"sides multiples of 2; got \(3, 4, 33, 32, 3\)"):
    jax.eval_shape(lambda: module.init(jax.random.key(0), batch, train=False))


def test_it_learns_to_see_flicker():
  module = cnn3d.CNN3DBranch(**TINY | {"dropout": 0.0})
  draw = functools.partial(flickering_clips, count=16, frames=4, side=SIDE)
  assert train_alone(module, draw, steps=80, learning_rate=1e-2)[0] > 0.9
