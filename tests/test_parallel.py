import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from multihost_probe import dropout_bits
from tiny import tiny_batch, tiny_branch, tiny_config

from deepscan_jax import parallel, train_state
from deepscan_jax.config import override
from deepscan_jax.models.detector import Detector
from deepscan_jax.optimizer import create_optimizer


@pytest.fixture(autouse=True)
def tiny():
  with tiny_branch():
    yield


def step_of(config, axis_name):
  model = Detector(config.model, axis_name=axis_name)
  return functools.partial(
    train_state.train_step, model=model, optimizer=create_optimizer(config.train), config=config
  )


def test_eight_devices_do_what_one_does():
  """SGD, because Adam hides a wrong scale of the gradients; the valid examples are spread unevenly."""
  config = tiny_config(optimizer="sgd", learning_rate=0.5, warmup_steps=0, focal_gamma=1.0)
  config = override(config, "model.dropout=0.0")
  batches = [tiny_batch(16, seed=seed) for seed in range(2)]
  for batch in batches:
    batch["example_mask"][[3, 10, 12, 13, 14, 15]] = False
    batch["crop_mask"][[0, 10]] = False
  start = train_state.create_state(config)
  # Copied, because the step of many devices gives the buffers of its state away.
  single, many = start, parallel.replicate(jax.tree.map(jnp.copy, start))
  on_one = jax.jit(step_of(config, None))
  on_eight = parallel.parallel_step(step_of(config, parallel.AXIS))
  for batch in batches:
    single, sums = on_one(single, batch)
    many, sums_of_many = on_eight(many, parallel.split_batch(batch))
    for a, b in zip(jax.tree.leaves(sums), jax.tree.leaves(sums_of_many), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5)
  assert float(sums["fused"].weight) == 9
  moved = [
    np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (start.params, single.params)), strict=True)
  ]
  assert max(moved) > 1e-3
  for a, b in zip(jax.tree.leaves(single), jax.tree.leaves(many), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_each_device_draws_its_own_dropout():
  assert len(set(dropout_bits(rows=8))) == 8


def test_a_batch_is_split_in_order():
  batch = parallel.split_batch({"a": np.arange(16), "b": np.zeros((16, 3))})
  np.testing.assert_array_equal(batch["a"], np.arange(16).reshape(8, 2))
  assert batch["b"].shape == (8, 2, 3)


@pytest.mark.parametrize(("size", "options"), [(30, "24 or 32"), (5, "8")])
def test_a_batch_that_cannot_be_split_is_refused(size, options):
  with pytest.raises(
    ValueError, match=rf"Batch size {size} must be divisible by the number of devices, 8; try {options}\."
  ):
    parallel.split_batch({"a": np.zeros(size)})


def test_parallel_map_has_the_device_axis_in_front():
  result = parallel.parallel_map(lambda scale, batch: scale * batch["a"].sum())(
    jnp.float32(2), {"a": jnp.arange(16.0).reshape(8, 2)}
  )
  np.testing.assert_allclose(result, 2 * np.arange(16).reshape(8, 2).sum(axis=1))
