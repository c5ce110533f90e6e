import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deepscan_jax.config import TrainConfig
from deepscan_jax.optimizer import create_optimizer, learning_rate_schedule


def update(config, params, gradients, *, steps):
  optimizer = create_optimizer(config)
  state = optimizer.init(params)
  for _ in range(steps):
    updates, state = optimizer.update(gradients, state, params)
    params = optax.apply_updates(params, updates)
  return params


def test_the_schedule_warms_up_and_falls_as_a_half_cosine():
  schedule = learning_rate_schedule(TrainConfig(steps=110, warmup_steps=10, learning_rate=0.5))
  for step, expected in {
    0: 0.0,
    5: 0.25,
    10: 0.5,
    35: 0.25 * (1 + math.cos(math.pi / 4)),
    60: 0.25,
    110: 0.0,
    200: 0.0,
  }.items():
    assert schedule(step) == pytest.approx(expected, abs=1e-7), step


def test_a_run_shorter_than_the_warm_up_still_has_a_schedule():
  schedule = learning_rate_schedule(TrainConfig(steps=2, warmup_steps=60, learning_rate=0.5))
  assert [float(schedule(step)) for step in range(3)] == pytest.approx([0.0, 0.5, 0.0])


def test_a_restart_begins_the_schedule_again():
  config = TrainConfig(steps=300, warmup_steps=10, learning_rate=0.5, restarts=(100,))
  schedule = learning_rate_schedule(config)
  first = learning_rate_schedule(TrainConfig(steps=100, warmup_steps=10, learning_rate=0.5))
  second = learning_rate_schedule(TrainConfig(steps=200, warmup_steps=10, learning_rate=0.5))
  for step in range(0, 301, 5):
    expected = float(first(step) if step < 100 else second(step - 100))
    assert schedule(step) == pytest.approx(expected, abs=1e-7), step


@pytest.mark.parametrize("restarts", [(0,), (300,), (100, 50)])
def test_restarts_out_of_order_are_refused(restarts):
  with pytest.raises(ValueError, match="restarts must rise"):
    learning_rate_schedule(TrainConfig(steps=300, restarts=restarts))


def test_weight_decay_leaves_one_dimensional_parameters_alone():
  config = TrainConfig(steps=100, warmup_steps=1, learning_rate=0.1, weight_decay=0.5)
  params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3), "scale": jnp.ones(3)}
  after = update(config, params, {key: jnp.zeros_like(x) for key, x in params.items()}, steps=2)
  # The first step has a rate of 0, the second one of 0.1.
  np.testing.assert_allclose(after["kernel"], 1 - 0.1 * 0.5, rtol=1e-6)
  np.testing.assert_array_equal(after["bias"], 1)
  np.testing.assert_array_equal(after["scale"], 1)


def test_gradients_are_clipped_by_their_global_norm():
  config = TrainConfig(optimizer="sgd", steps=100, warmup_steps=1, learning_rate=0.1, clip_norm=2.0)
  params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
  after = update(config, params, {"a": jnp.array([30.0]), "b": jnp.array([40.0])}, steps=2)
  # Momentum 0.9: the second update is 1.9 times the clipped gradient (1.2, 1.6).
  np.testing.assert_allclose([after["a"][0], after["b"][0]], [-0.1 * 1.9 * 1.2, -0.1 * 1.9 * 1.6], rtol=1e-5)


def test_an_unknown_optimizer_is_refused():
  with pytest.raises(ValueError, match=r"Unknown optimizer 'adam'; there are adamw, sgd\."):
    create_optimizer(TrainConfig(optimizer="adam"))
