import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deepscan_jax.config import TrainConfig, load_preset
from deepscan_jax.optimizer import after_validation, create_optimizer, learning_rate, learning_rate_schedule
from deepscan_jax.train_state import abstract_state


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


def test_weight_decay_reaches_matrices_and_kernels_of_the_whole_model_alone():
  state = abstract_state(load_preset("full"))
  names = {(path[-1].key, x.ndim) for path, x in jax.tree_util.tree_leaves_with_path(state.params)}
  # Of attention heads, and of an LSTM of two directions; the probe of the fusion.
  assert {("bias", 2), ("probe", 3), ("bottlenecks", 2), ("recurrent", 3), ("kernel", 5)} <= names
  params = {f"{name}{ndim}": {name: jnp.ones((1,) * ndim)} for name, ndim in names}
  config = TrainConfig(steps=100, warmup_steps=1, learning_rate=0.1, weight_decay=0.5)
  after = update(config, params, jax.tree.map(jnp.zeros_like, params), steps=2)
  decayed = {path[-1].key for path, x in jax.tree_util.tree_leaves_with_path(after) if (x != 1).all()}
  assert decayed == {"kernel", "recurrent"}


def test_gradients_are_clipped_by_their_global_norm():
  config = TrainConfig(optimizer="sgd", steps=100, warmup_steps=1, learning_rate=0.1, clip_norm=2.0)
  params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
  after = update(config, params, {"a": jnp.array([30.0]), "b": jnp.array([40.0])}, steps=2)
  # Momentum 0.9: the second update is 1.9 times the clipped gradient (1.2, 1.6).
  np.testing.assert_allclose([after["a"][0], after["b"][0]], [-0.1 * 1.9 * 1.2, -0.1 * 1.9 * 1.6], rtol=1e-5)


def test_an_unknown_optimizer_is_refused():
  with pytest.raises(ValueError, match=r"Unknown optimizer 'adam'; there are adamw, sgd\."):
    create_optimizer(TrainConfig(optimizer="adam"))


def test_on_a_plateau_the_rate_falls_after_so_many_validations_and_never_below_its_least():
  config = TrainConfig(
    schedule="plateau",
    warmup_steps=10,
    learning_rate=0.8,
    plateau_factor=0.5,
    plateau_patience=2,
    plateau_min=0.15,
  )
  state = create_optimizer(config).init({"a": jnp.zeros(1)})
  validated = [
    # step, better, the rate after it
    (5, False, 0.8),  # in the warm-up nothing counts
    (10, False, 0.8),
    (15, False, 0.8),
    (20, True, 0.8),
    (25, False, 0.8),
    (30, False, 0.4),
    (35, False, 0.4),  # counted anew
    (40, True, 0.4),
    (45, False, 0.4),
    (50, False, 0.2),
    (55, False, 0.2),
    (60, False, 0.15),
    (65, False, 0.15),
    (70, False, 0.15),
  ]
  for step, better, rate in validated:
    before = state
    state = after_validation(state, better=better, step=step, config=config)
    found = learning_rate(state, step=step + 1, config=config)
    # Step 6 has half of the warm-up behind it.
    assert found == pytest.approx(0.4 if step == 5 else rate), step
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(state)] == [
      (x.shape, x.dtype) for x in jax.tree.leaves(before)
    ]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_reduced_rate_shrinks_the_whole_update_and_nothing_else(optimizer):
  config = TrainConfig(
    schedule="plateau", optimizer=optimizer, warmup_steps=0, plateau_factor=0.25, plateau_patience=1
  )
  optimiser = create_optimizer(config)
  params, gradients = {"a": jnp.full((2, 2), 3.0)}, {"a": jnp.full((2, 2), 0.1)}
  state = optimiser.init(params)
  reduced = after_validation(state, better=False, step=1, config=config)
  for _ in range(3):
    full, state = optimiser.update(gradients, state, params)
    quarter, reduced = optimiser.update(gradients, reduced, params)
    np.testing.assert_allclose(quarter["a"], 0.25 * full["a"], rtol=1e-6)
  assert np.abs(full["a"]).max() > 0
  for a, b in zip(jax.tree.leaves(state[:-1]), jax.tree.leaves(reduced[:-1]), strict=True):
    np.testing.assert_array_equal(a, b)


def test_other_schedules_have_no_plateau_and_the_state_that_they_had():
  config = TrainConfig(steps=100, warmup_steps=10, learning_rate=0.5)
  state = create_optimizer(config).init({"a": jnp.zeros(1)})
  assert len(state) == 2 and after_validation(state, better=False, step=50, config=config) is state
  # The update of step 11 is the eleventh: ten came before it.
  assert learning_rate(state, step=11, config=config) == pytest.approx(0.5)
  assert learning_rate(state, step=1, config=config) == 0


@pytest.mark.parametrize("warmup", [0, 4])
def test_the_rate_stays_after_the_warm_up_of_a_plateau(warmup):
  schedule = learning_rate_schedule(TrainConfig(schedule="plateau", warmup_steps=warmup, learning_rate=0.5))
  expected = {0: [0.5] * 4, 4: [0.0, 0.125, 0.25, 0.375]}[warmup] + [0.5, 0.5]
  assert [float(schedule(step)) for step in range(6)] == pytest.approx(expected)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"restarts": (10,)}, r"train\.restarts is \(10,\), which train\.schedule=plateau does not have; set"),
    ({"plateau_min": 1.0}, r"train\.plateau_min must be at most train\.learning_rate, 0\.0005, got 1\."),
    ({"patience": 3}, r"train\.patience=3 ends training before the learning rate is reduced; it must be"),
  ],
)
def test_a_plateau_that_contradicts_itself_is_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    create_optimizer(TrainConfig(schedule="plateau", **changes))
