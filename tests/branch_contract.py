"""What every branch over face crops has to keep, checked on a batch of three windows of four frames."""

import jax
import jax.numpy as jnp
import numpy as np
from compiling import quick_jit
from tiny import random_variables

from deepscan_jax.models.interface import BranchOutput

FRAMES = 4
# A whole window, one that is padded, and none.
MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], bool)


def window_batch(*, side: int, seed: int = 0, mask: np.ndarray = MASK) -> dict[str, np.ndarray]:
  """A batch of noise with every key that a branch over crops may read; zeros where the mask is False."""
  rng = np.random.default_rng(seed)
  windows, frames = mask.shape
  batch = {
    "crops": rng.uniform(0, 255, (windows, frames, side, side, 3)),
    "landmarks": rng.uniform(0, side, (windows, frames, 468, 2)),
    "frame_times_s": np.broadcast_to(1 + np.arange(frames) / 25, (windows, frames)),
    "frame_features": rng.normal(size=(windows, frames, 6)),
  }
  return _hidden(batch, mask, 0) | {"crop_mask": mask}


def poison(batch: dict[str, np.ndarray], mask: np.ndarray | None = None) -> dict[str, np.ndarray]:
  """The batch with NaN wherever its mask (or the one given, which then becomes its mask) is False."""
  mask = batch["crop_mask"] if mask is None else mask
  values = {key: value for key, value in batch.items() if key != "crop_mask"}
  return _hidden(values, mask, np.nan) | {"crop_mask": mask}


def check_branch(module, *, side: int, present: tuple[bool, bool, bool] = (True, True, False)) -> None:
  """Asserts the contract of models/interface.py."""
  batch = window_batch(side=side)
  variables = random_variables(module, batch, train=False)
  run = quick_jit(lambda variables, batch: module.apply(variables, batch, train=False))
  output = run(variables, batch)
  _check_shapes(module, variables, batch)

  only = {key: batch[key] for key in module.INPUTS}
  _equal(output, run(variables, only))

  hostile = run(variables, poison(batch))
  _equal(output, hostile)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(hostile))
  np.testing.assert_array_equal(output.present, present)
  np.testing.assert_array_equal(np.asarray(output.tokens)[~np.asarray(output.token_mask)], 0)
  np.testing.assert_array_equal(np.asarray(output.logit) != 0, present)

  order = np.array([2, 0, 1])
  shuffled = run(variables, {key: value[order] for key, value in batch.items()})
  for ours, theirs in zip(jax.tree.leaves(shuffled), jax.tree.leaves(output), strict=True):
    np.testing.assert_allclose(ours, np.asarray(theirs)[order], rtol=1e-4, atol=1e-4)

  _check_no_gradient_of_what_is_absent(module, variables, poison(batch, np.zeros_like(MASK)))


def _check_shapes(module, variables, batch) -> None:
  def shapes(train: bool, batch):
    rngs = {"dropout": jax.random.key(0)}
    return jax.eval_shape(lambda v, b: module.apply(v, b, train=train, rngs=rngs), variables, batch)

  output = shapes(False, batch)
  assert isinstance(output, BranchOutput) and output == shapes(True, batch)
  narrow = {k: v.astype(jnp.bfloat16) if v.dtype == np.float32 else v for k, v in batch.items()}
  assert output == shapes(False, narrow)
  assert output == shapes(False, batch | {"crops": batch["crops"].astype(np.uint8)})
  assert output.tokens.ndim == 3 and output.tokens.shape[:2] == output.token_mask.shape
  assert output.token_mask.dtype == jnp.bool_ and output.logit.shape == (len(MASK),)
  floats = (output.tokens, output.logit, *output.maps.values())
  assert all(x.dtype == jnp.float32 and x.shape[0] == len(MASK) for x in floats)


def _check_no_gradient_of_what_is_absent(module, variables, batch) -> None:
  rest = {key: value for key, value in variables.items() if key != "params"}

  def total(params):
    output = module.apply({**rest, "params": params}, batch, train=False)
    return output.logit.sum() + output.tokens.sum() + sum(x.sum() for x in output.maps.values())

  value, gradients = quick_jit(jax.value_and_grad(total))(variables["params"])
  assert value == 0
  for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
    np.testing.assert_array_equal(gradient, 0, err_msg=jax.tree_util.keystr(path))


def _hidden(values, mask, content) -> dict[str, np.ndarray]:
  return {
    key: np.where(mask.reshape(mask.shape + (1,) * (value.ndim - 2)), value, content).astype(np.float32)
    for key, value in values.items()
  }


def _equal(one, other) -> None:
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    np.testing.assert_array_equal(a, b)
