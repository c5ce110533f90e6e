"""What presets ask for can be trained: shapes fit, layers freeze, passes over the data become steps."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit
from tiny import random_variables, tiny_branch, tiny_config

from deepscan_jax import checkpoints, data, train_state, training
from deepscan_jax.config import Config, ModelConfig, load_preset, override, preset_names
from deepscan_jax.models.detector import Detector
from deepscan_jax.optimizer import create_optimizer


@pytest.mark.parametrize("name", preset_names())
def test_a_training_step_of_every_preset_fits_together(name):
  config = load_preset(name)
  if config.train.start_from:
    config = override(config, "train.start_from=default")
  state, part = train_state.abstract_state(config), train_state.trained_part(config)
  step = functools.partial(
    train_state.train_step,
    model=Detector(part.model),
    optimizer=create_optimizer(config.train),
    config=part,
    frozen=train_state.frozen_parameters(config),
  )
  after, sums = jax.eval_shape(step, state, train_state.abstract_training_batch(2, part))
  assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
    lambda x: (x.shape, x.dtype), state
  )
  assert {"fused", *(f"branch_{branch}" for branch in part.model.branches)} <= set(sums)
  assert ("reconstruction" in sums) == ("autoencoder" in config.model.branches)
  assert ("sync" in sums) == ("lipsync" in config.model.branches)
  sizes = [x.size for x in jax.tree.leaves(state.variables)]
  stored = sum((2 if size >= checkpoints.NARROW_FROM else 4) * size for size in sizes)
  assert stored < 110e6  # as `deepscan export` stores the largest of them


def test_the_full_preset_is_the_ensemble_with_what_a_container_tells_left_out():
  config = load_preset("full")
  assert (config.model.backbone, config.model.densenet, config.model.xception) == (
    "b3",
    "densenet121",
    "xception",
  )
  assert {"audio", "lipsync", "temporal", "cnn3d", "autoencoder"} < set(config.model.branches)
  assert "provenance" not in config.model.branches
  assert (config.train.epochs, config.data.batch_size, config.train.class_weights) == (150, 32, (1.0, 1.5))
  assert (config.train.learning_rate, config.train.weight_decay) == (1e-4, 1e-4)


def test_a_step_moves_the_last_layers_of_a_network_and_nothing_before_them():
  config = Config(model=ModelConfig(backbone="pico", features=16, fusion_heads=2))
  for assignment in ("train.freeze_all_but_last=4", "train.pretrained=false", "train.warmup_steps=0"):
    config = override(config, assignment)
  frozen = train_state.frozen_parameters(config)
  shapes = train_state.abstract_training_batch(2, config)
  rng = np.random.default_rng(0)
  batch = {
    "crops": rng.integers(0, 256, shapes["crops"].shape, dtype=np.uint8),
    "crop_mask": np.ones(shapes["crop_mask"].shape, bool),
    "label": np.array([0, 1], np.int32),
    "example_mask": np.ones(2, bool),
    "region": rng.random(shapes["region"].shape, np.float32),
  }
  model, optimizer = Detector(config.model), create_optimizer(config.train)
  variables = random_variables(model, train_state.abstract_batch(2, config), train=False)
  params = variables["params"]
  before = train_state.TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    batch_stats=variables["batch_stats"],
    ema=params,
    opt_state=quick_jit(optimizer.init)(params),
  )
  step = functools.partial(
    train_state.train_step, model=model, optimizer=optimizer, config=config, frozen=frozen
  )
  after, _ = jax.device_get(quick_jit(step)(before, batch))
  moved, stayed = set(), set()
  for path, change in jax.tree_util.tree_leaves_with_path(
    jax.tree.map(lambda a, b: np.abs(a - b).max(), after.params, params)
  ):
    layer = tuple(key.key for key in path[:-1])
    (moved if change > 0 else stayed).add(layer)
  backbone = {layer for layer in moved | stayed if "backbone" in layer}
  assert len(frozen) == len(backbone) - 4 and not frozen & moved
  assert len(moved & backbone) == 4
  assert ("spatial", "describe") in moved
  for a, b in zip(*map(jax.tree.leaves, (after.batch_stats, before.batch_stats)), strict=True):
    np.testing.assert_array_equal(a, b)


def test_passes_over_the_data_are_told_as_steps(prepared_dataset):
  with tiny_branch():
    check_passes(prepared_dataset)


def check_passes(prepared_dataset):
  config = override(tiny_config(), "train.epochs=3")
  rows = data.rows_in_pass(config.data, data_dir=prepared_dataset)
  assert rows == 2 * len(data.ExampleSource(config.data.datasets, "train", prepared_dataset))
  assert training.with_steps(config, data_dir=prepared_dataset).train.steps == math.ceil(3 * rows / 8)
  assert training.with_steps(tiny_config(), data_dir=prepared_dataset) == tiny_config()
  with pytest.raises(ValueError, match=r"train\.epochs must be 0 .* got -1"):
    training.with_steps(override(config, "train.epochs=-1"), data_dir=prepared_dataset)
