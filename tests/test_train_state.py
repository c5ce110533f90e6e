"""One step of training against plain numpy: parts of a batch, sharpness, averages, what is frozen."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_variables, tiny_batch, tiny_branch, tiny_config

from deepscan_jax import losses, parallel, provenance, train_state
from deepscan_jax.config import Config, ModelConfig, TrainConfig, override
from deepscan_jax.models.detector import Detector
from deepscan_jax.models.interface import BranchOutput, DetectorOutput
from deepscan_jax.optimizer import create_optimizer

FEATURES = 5


class Line:
  """A model of one line through each example's numbers; with `drops` it sees half of them, by its rng."""

  def __init__(self, *, drops: bool = False):
    self._drops = drops

  def apply(self, variables, batch, *, train, rngs):
    del train
    x = batch["x"]
    if self._drops:
      x = jnp.where(jax.random.bernoulli(rngs["dropout"], 0.5, x.shape), x, 0.0)
    logit = x @ variables["params"]["line"]["kernel"] + variables["params"]["line"]["bias"]
    there = jnp.ones((len(x), 1), bool)
    branch = BranchOutput(jnp.zeros((len(x), 1, 1)), there, logit)
    return DetectorOutput(logit=logit, branches={"line": branch}, weights=jnp.ones((len(x), 1)))


def line_config(**train) -> Config:
  settings = {"optimizer": "sgd", "learning_rate": 0.5, "warmup_steps": 0, "clip_norm": 1e9}
  settings |= {"branch_weight": 0.0, "schedule": "plateau"}
  return Config(train=TrainConfig(**settings | train))


def line_state(config: Config, *, seed: int = 0) -> train_state.TrainState:
  rng = np.random.default_rng(seed)
  kernel, bias = (rng.normal(size=shape).astype(np.float32) for shape in (FEATURES, ()))
  params = {"line": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}}
  return train_state.TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    batch_stats={},
    ema=jax.tree.map(jnp.copy, params),
    opt_state=create_optimizer(config.train).init(params),
  )


def line_batch(size: int, *, seed: int = 1) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(seed)
  return {
    "x": rng.normal(size=(size, FEATURES)).astype(np.float32),
    "label": rng.integers(0, 2, size).astype(np.int32),
    "example_mask": rng.random(size) < 0.6,
  }


def line_step(config: Config, *, model=None, frozen=frozenset()):
  return functools.partial(
    train_state.train_step,
    model=model or Line(),
    optimizer=create_optimizer(config.train),
    config=config,
    frozen=frozen,
  )


def line_gradient(kernel, bias, batch, x=None) -> tuple[np.ndarray, float]:
  """Of the mean cross entropy over the valid examples, one by one."""
  kernel_sum, bias_sum, count = np.zeros(FEATURES), 0.0, 0
  for values, label, valid in zip(
    batch["x"] if x is None else x, batch["label"], batch["example_mask"], strict=True
  ):
    if valid:
      error = 1 / (1 + np.exp(-(values @ kernel + bias))) - label
      kernel_sum, bias_sum, count = kernel_sum + error * values, bias_sum + error, count + 1
  return kernel_sum / count, bias_sum / count


def assert_trees_close(one, other, **tolerances) -> None:
  for a, b in zip(*map(jax.tree_util.tree_leaves_with_path, (one, other)), strict=True):
    np.testing.assert_allclose(a[1], b[1], err_msg=jax.tree_util.keystr(a[0]), **tolerances)


def largest_change(one, other) -> float:
  return max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True))


def uneven_batch(size: int) -> dict[str, np.ndarray]:
  """Valid examples, faces, voices and labels, spread unevenly over the parts of a batch."""
  batch, rng = tiny_batch(size), np.random.default_rng(3)
  batch["example_mask"][[1, 2, 3, 5, size - 1]] = False
  batch["crop_mask"][: size // 4 + 1] = False
  batch["waveform"] = rng.normal(size=(size, 16_000)).astype(np.float32) * 0.1
  batch["waveform_mask"] = np.repeat(rng.random((size, 1)) < 0.4, 16_000, axis=1)
  batch["face_label"], batch["sound_label"] = batch["label"].copy(), batch["label"].copy()
  batch["sound_label"][::3] = -1
  batch["region_mask"] = rng.random(size) < 0.5
  return batch


@pytest.mark.parametrize("devices", [1, 8])
def test_the_parts_of_a_batch_make_the_step_of_the_whole(devices):
  """SGD, because Adam hides a wrong scale of the gradients."""
  config = tiny_config(
    optimizer="sgd", learning_rate=0.5, warmup_steps=0, focal_gamma=1.0, class_weights=(1.0, 2.0)
  )
  config = override(config, "model.dropout=0.0")
  config = dataclasses.replace(
    config, model=dataclasses.replace(config.model, branches=("tiny", "tiny_voice"), fusion="weighted")
  )
  batch = uneven_batch(32)
  with tiny_branch():
    axis_name = parallel.AXIS if devices > 1 else None
    variables = random_variables(Detector(config.model), batch, train=False)
    params = jax.tree.map(jnp.asarray, variables["params"])
    start = train_state.TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      batch_stats=jax.tree.map(jnp.asarray, variables["batch_stats"]),
      ema=jax.tree.map(jnp.copy, params),
      opt_state=create_optimizer(config.train).init(params),
    )
    after = {}
    for parts in (1, 4):
      changed = override(config, f"train.accumulate={parts}")
      step = functools.partial(
        train_state.train_step,
        model=Detector(config.model, axis_name=axis_name),
        optimizer=create_optimizer(config.train),
        config=changed,
      )
      if devices > 1:
        state = parallel.replicate(jax.tree.map(jnp.copy, start))
        after[parts] = parallel.parallel_step(step)(state, parallel.split_batch(batch))
      else:
        after[parts] = jax.jit(step)(start, batch)
  (whole, sums), (by_parts, sums_of_parts) = after[1], after[4]
  assert largest_change(start.params, whole.params) > 1e-2
  assert float(sums["fused"].weight) != float(sums["branch_tiny"].weight) != float(sums["region"].weight)
  assert_trees_close(by_parts, whole, rtol=1e-5, atol=1e-5)
  assert_trees_close(sums_of_parts, sums, rtol=1e-5)


def test_what_a_branch_hides_by_chance_counts_the_same_in_both_passes():
  """The provenance branch drops out of examples, and so out of the weights that losses are divided by."""
  size, parts = 16, 4
  config = Config(model=ModelConfig(branches=("provenance",), features=8, fusion="weighted"))
  for setting in ("optimizer=sgd", "learning_rate=0.5", "warmup_steps=0", f"accumulate={parts}"):
    config = override(config, f"train.{setting}")
  rng = np.random.default_rng(0)
  facts = (size, len(provenance.FACT_NAMES))
  batch = {
    "file_facts": rng.normal(size=facts).astype(np.float32),
    "file_facts_mask": rng.random(facts) < 0.5,
    "label": rng.integers(0, 2, size).astype(np.int32),
    "example_mask": rng.random(size) < 0.8,
  }
  model, optimizer = Detector(config.model), create_optimizer(config.train)
  params = jax.tree.map(jnp.asarray, random_variables(model, batch, train=False)["params"])
  state = train_state.TrainState(jnp.int32(7), params, {}, params, optimizer.init(params))
  after, sums = jax.jit(
    functools.partial(train_state.train_step, model=model, optimizer=optimizer, config=config)
  )(state, batch)

  base = jax.random.fold_in(jax.random.key(config.seed), 7)

  def whole_loss(params):
    totals, weights = {}, {}
    for part in range(parts):
      rows = slice(part * size // parts, (part + 1) * size // parts)
      some = {key: jnp.asarray(value[rows]) for key, value in batch.items()}
      rngs = {
        name: jax.random.fold_in(jax.random.fold_in(base, stream), part)
        for stream, name in enumerate(("dropout", "modality"))
      }
      output = model.apply({"params": params}, some, train=True, rngs=rngs)
      for name, loss in losses.detector_losses(output, some, gamma=0.0, smoothing=0.0).items():
        totals[name] = totals.get(name, 0.0) + loss.total
        weights[name] = weights.get(name, 0.0) + loss.weight
    value = totals["fused"] / weights["fused"]
    return value + 0.5 * totals["branch_provenance"] / weights["branch_provenance"], weights

  gradients, weights = jax.grad(whole_loss, has_aux=True)(params)
  assert 0 < weights["fused"] < batch["example_mask"].sum()  # Some hid.
  assert sums["fused"].weight == weights["fused"]
  norm = np.sqrt(sum(np.square(g).sum() for g in jax.tree.leaves(gradients)))
  rate = 0.5 * min(1.0, config.train.clip_norm / norm)
  assert_trees_close(
    after.params, jax.tree.map(lambda p, g: p - rate * g, params, gradients), rtol=1e-5, atol=1e-6
  )


def test_a_batch_in_parts_takes_less_memory_and_computes_no_network_twice():
  products, memory = [], []
  with tiny_branch():
    for parts in (1, 4):
      config = override(tiny_config(), f"train.accumulate={parts}")
      state = train_state.abstract_state(config)
      batch = train_state.abstract_training_batch(32, config) | jax.eval_shape(lambda: tiny_batch(32))
      step = functools.partial(
        train_state.train_step,
        model=Detector(config.model),
        optimizer=create_optimizer(config.train),
        config=config,
      )
      compiled = jax.jit(step).lower(state, batch).compile()
      products.append(sum(" dot(" in line for line in compiled.as_text().splitlines()))
      memory.append(compiled.memory_analysis().temp_size_in_bytes)
  assert products[0] > 10 and products[1] <= products[0]
  assert memory[1] < 0.5 * memory[0]


def test_parts_that_do_not_divide_a_batch_are_refused():
  config = line_config(accumulate=3)
  with pytest.raises(ValueError, match=r"train\.accumulate=3 must divide the 8 examples of a batch"):
    line_step(config)(line_state(config), line_batch(8))
  with pytest.raises(
    ValueError, match=r"data\.batch_size=32 must be divisible by train\.accumulate=3 times 8 devices"
  ):
    train_state.check_config(config)
  train_state.check_config(line_config(accumulate=4))


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("parts", [1, 2])
def test_sharpness_aware_steps_follow_their_formula(devices, parts):
  """Where valid examples are spread unevenly, the place on no single device's own way up."""
  rho, rate = 0.7, 0.5
  config = line_config(sam_rho=rho, accumulate=parts)
  state, batch = line_state(config), line_batch(32)
  kernel, bias = (np.asarray(x, np.float64) for x in state.params["line"].values())
  expected = line_gradient(kernel, bias, batch)
  norm = np.sqrt(np.square(expected[0]).sum() + expected[1] ** 2)
  away = line_gradient(kernel + rho * expected[0] / norm, bias + rho * expected[1] / norm, batch)
  if devices == 1:
    after, sums = jax.jit(line_step(config))(state, batch)
  else:
    step = parallel.parallel_step(line_step(config))
    after, sums = step(parallel.replicate(jax.tree.map(jnp.copy, state)), parallel.split_batch(batch))
  np.testing.assert_allclose(after.params["line"]["kernel"], kernel - rate * away[0], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(after.params["line"]["bias"], bias - rate * away[1], rtol=1e-5, atol=1e-6)
  assert np.abs(away[0] - expected[0]).max() > 0.01
  norm_of_the_step = np.sqrt(np.square(away[0]).sum() + away[1] ** 2)
  np.testing.assert_allclose(sums["gradient_norm"].total, norm_of_the_step, rtol=1e-5)


def test_both_gradients_of_a_sharpness_aware_step_see_the_same_dropout():
  rho, rate = 0.7, 0.5
  config = line_config(sam_rho=rho)
  state, batch = line_state(config), line_batch(16)
  after, _ = jax.jit(line_step(config, model=Line(drops=True)))(state, batch)
  key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 0), 0)
  x = np.where(jax.random.bernoulli(key, 0.5, batch["x"].shape), batch["x"], 0.0)
  kernel, bias = (np.asarray(x, np.float64) for x in state.params["line"].values())
  first = line_gradient(kernel, bias, batch, x)
  norm = np.sqrt(np.square(first[0]).sum() + first[1] ** 2)
  away = line_gradient(kernel + rho * first[0] / norm, bias + rho * first[1] / norm, batch, x)
  np.testing.assert_allclose(after.params["line"]["kernel"], kernel - rate * away[0], rtol=1e-5, atol=1e-6)


def test_a_radius_of_zero_is_the_plain_step_to_the_bit():
  """A radius that no parameter notices goes the long way and must come to the same numbers."""
  plain, tiny = line_config(), line_config(sam_rho=1e-30)
  batch = line_batch(16)
  state = line_state(plain)
  (one, sums), (other, sums_of_other) = (jax.jit(line_step(c))(state, batch) for c in (plain, tiny))
  for a, b in zip(jax.tree.leaves((one, sums)), jax.tree.leaves((other, sums_of_other)), strict=True):
    np.testing.assert_array_equal(a, b)
  kernel, bias = state.params["line"].values()
  np.testing.assert_allclose(
    one.params["line"]["kernel"], kernel - 0.5 * line_gradient(kernel, bias, batch)[0], rtol=1e-5, atol=1e-6
  )


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.999])
def test_the_average_follows_the_parameters_step_by_step(decay):
  """decay 0.3 is reached in the third step: (1 + n) / (10 + n) is 0.1, 0.18, 0.25, 0.31, ..."""
  config = line_config(ema_decay=decay)
  state, step = line_state(config), jax.jit(line_step(config))
  average = np.asarray(state.params["line"]["kernel"], np.float64)
  for number in range(6):
    state, _ = step(state, line_batch(16, seed=number))
    now = min(decay, (1 + number) / (10 + number))
    average = now * average + (1 - now) * np.asarray(state.params["line"]["kernel"])
    np.testing.assert_allclose(state.ema["line"]["kernel"], average, rtol=1e-5, atol=1e-6)
  if decay == 0:
    np.testing.assert_array_equal(state.ema["line"]["kernel"], state.params["line"]["kernel"])


@pytest.mark.parametrize("train", [{}, {"sam_rho": 0.5, "accumulate": 2}, {"optimizer": "adamw"}])
def test_what_is_frozen_stays_to_the_bit_and_the_rest_moves_as_without_it(train):
  config = line_config(weight_decay=0.5, **train)
  frozen = frozenset({("line", "bias")})
  state = line_state(config)
  before = state
  for number in range(3):
    batch = line_batch(16, seed=number)
    state, _ = jax.jit(line_step(config, frozen=frozen))(state, batch)
  for ours in (state.params, state.ema):
    np.testing.assert_array_equal(ours["line"]["bias"], before.params["line"]["bias"])
    assert np.abs(ours["line"]["kernel"] - before.params["line"]["kernel"]).max() > 1e-3
  if not train:
    kernel, bias = (np.asarray(x, np.float64) for x in before.params["line"].values())
    velocity = 0.0
    for number in range(3):
      velocity = 0.9 * velocity + line_gradient(kernel, bias, line_batch(16, seed=number))[0]
      kernel = kernel - 0.5 * velocity
    np.testing.assert_allclose(state.params["line"]["kernel"], kernel, rtol=1e-5, atol=1e-6)
