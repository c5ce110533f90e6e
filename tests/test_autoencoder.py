"""The autoencoder branch: who trains what, its errors and their scale, and an odd texture."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from branch_contract import MASK, check_branch, window_batch
from compiling import quick_jit
from tiny import random_variables
from toy_signals import odd_textures, train_alone

from deepscan_jax import losses
from deepscan_jax.models import autoencoder

SIDE = 16
TINY = {"widths": (4, 8), "code": 2, "reduction": 1, "features": 8, "dropout": 0.2}


def test_the_branch_keeps_the_contract():
  check_branch(autoencoder.AutoencoderBranch(**TINY), side=SIDE)


def test_the_code_is_too_small_to_copy_through():
  module = autoencoder.Autoencoder()
  images = jax.ShapeDtypeStruct((1, 112, 112, 3), jnp.float32)
  (rebuilt, kept), variables = jax.eval_shape(
    lambda x: (
      module.apply(
        (variables := module.init(jax.random.key(0), x, train=False)),
        x,
        train=False,
        capture_intermediates=True,
        mutable=["intermediates"],
      ),
      variables,
    ),
    images,
  )
  code = kept["intermediates"]["encode"]["__call__"][0]
  assert rebuilt.shape == images.shape and code.shape == (1, 7, 7, 8)
  assert code.size < images.size / 90
  assert sum(x.size for x in jax.tree.leaves(variables["params"])) < 1e6


def test_the_error_is_that_of_each_pixel_and_the_logit_rises_with_it():
  module = autoencoder.AutoencoderBranch(**TINY)
  batch = window_batch(side=SIDE)
  variables = random_variables(module, batch, train=False)
  output = module.apply(variables, batch, train=False)
  images = (batch["crops"][0] - 127) / 128
  network = {name: collection["autoencoder"] for name, collection in variables.items()}
  rebuilt = autoencoder.Autoencoder(TINY["widths"], TINY["code"]).apply(network, images, train=False)
  error = np.abs(np.asarray(rebuilt) - images).mean(axis=-1)
  np.testing.assert_allclose(output.maps["reconstruction_error"][0], error, rtol=1e-4, atol=1e-5)
  slope, bias = (float(variables["params"]["scale"][name]) for name in ("slope", "bias"))
  log_error = np.log(error.mean(axis=(1, 2)) + 1e-3)
  frame_logit = np.log1p(np.exp(slope)) * (log_error + 2.5) + bias
  np.testing.assert_allclose(output.maps["frame_logit"][0], frame_logit, rtol=1e-4)
  np.testing.assert_allclose(output.logit[0], frame_logit.mean(), rtol=1e-4)


@pytest.mark.parametrize("slope", [-5.0, 0.0, 3.0])
def test_a_larger_error_never_speaks_for_a_real_face(slope):
  variables = {"params": {"slope": jnp.array(slope), "bias": jnp.array(-1.0)}}
  logits = np.asarray(autoencoder.ErrorScale().apply(variables, jnp.linspace(-7, 1, 20)))
  assert (np.diff(logits) > 0).all()


def gradients(batch: dict, weight_of_classification: float):
  """Of the losses of a training step, by part of the branch."""
  module = autoencoder.AutoencoderBranch(**TINY)
  variables = random_variables(module, batch, train=False)

  def loss(params):
    output = module.apply(
      {**variables, "params": params}, batch, train=True, rngs={"dropout": jax.random.key(0)}
    )
    present = output.present * 1.0
    classify = losses.focal_loss(output.logit, batch["label"], present, gamma=2.0).total
    # Stands for the fusion, which reads the tokens.
    classify += jnp.sin(output.tokens).sum()
    error = output.maps["reconstruction_error"]
    rebuild = losses.reconstruction_loss(error, batch["label"], output.token_mask * 1.0)
    return weight_of_classification * classify + rebuild.total / jnp.maximum(rebuild.weight, 1e-6)

  return quick_jit(jax.grad(loss))(variables["params"])


def test_fakes_never_touch_the_autoencoder():
  batch = window_batch(side=SIDE) | {"label": np.ones(3, np.int32)}
  found = gradients(batch, 1.0)
  for path, gradient in jax.tree_util.tree_leaves_with_path(found["autoencoder"]):
    np.testing.assert_array_equal(gradient, 0, err_msg=jax.tree_util.keystr(path))
  # They do fit the scale and the tokens.
  for part in ("scale", "describe"):
    assert all(np.abs(gradient).max() > 0 for gradient in jax.tree.leaves(found[part]))


def test_real_faces_train_it_as_if_no_fake_were_beside_them():
  batch = window_batch(side=SIDE)
  mixed = gradients(batch | {"label": np.array([0, 1, 0], np.int32)}, 1.0)
  batch["crop_mask"] = MASK & np.array([[True], [False], [True]])
  alone = gradients(batch | {"label": np.zeros(3, np.int32)}, 0.0)
  for (path, ours), theirs in zip(
    jax.tree_util.tree_leaves_with_path(mixed["autoencoder"]),
    jax.tree.leaves(alone["autoencoder"]),
    strict=True,
  ):
    assert np.abs(theirs).max() > 0, jax.tree_util.keystr(path)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-7)


def test_crops_of_a_wrong_size_are_refused():
  module = autoencoder.AutoencoderBranch(**TINY)
  with pytest.raises(ValueError, match=r"sides that 4 divides; got \(18, 18\)"):
    jax.eval_shape(lambda: module.init(jax.random.key(0), window_batch(side=18), train=False))


def test_it_learns_which_texture_is_odd():
  module = autoencoder.AutoencoderBranch(widths=(8, 16, 16), code=2, reduction=1, features=8, dropout=0.0)
  draw = functools.partial(odd_textures, count=32, side=32)
  auc, say = train_alone(module, draw, steps=120, learning_rate=1e-2)
  assert auc > 0.95
  batch = draw(np.random.default_rng(1))
  error = np.asarray(say(batch).maps["reconstruction_error"])[1::2, 0]
  assert error[:, 16:].mean() > 1.5 * error[:, :16].mean()  # the texture lies in the lower half
