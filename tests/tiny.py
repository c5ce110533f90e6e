"""What tests use in place of large things: a branch that compiles in a second, variables without an init."""

import contextlib
import dataclasses
import functools
from pathlib import Path

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepscan_jax import checkpoints, data, train_state, training
from deepscan_jax.calibration import Calibration
from deepscan_jax.config import Config, DataConfig, ModelConfig, TrainConfig
from deepscan_jax.models import detector
from deepscan_jax.models.interface import BranchOutput, hide, masked_mean
from deepscan_jax.models.layers import BatchNorm

CALIBRATION = Calibration(
  scale=1.5, offset=0.1, inconclusive=-50.0, manipulated=50.0, false_positive_rate=0.05
)


class TinyBranch(nn.Module):
  """A branch like the spatial one, with a mean over 16 x 16 pixels in place of a network."""

  INPUTS = ("crops", "crop_mask")

  features: int = 8
  dropout: float = 0.0
  axis_name: str | None = None

  @nn.compact
  def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> BranchOutput:
    mask = batch["crop_mask"]
    crops = hide(batch["crops"], mask).astype(jnp.float32) / 128 - 1
    places = einops.reduce(
      crops,
      "batch frame (rows row) (columns column) colour -> batch frame rows columns colour",
      "mean",
      rows=data.REGION_SIZE,
      columns=data.REGION_SIZE,
    )
    places = BatchNorm(axis_name=self.axis_name, name="norm")(places, train=train)
    tokens = nn.relu(nn.Dense(self.features, name="describe")(places.mean(axis=(2, 3))))
    tokens = nn.Dropout(self.dropout, deterministic=not train)(tokens)
    frame_logit = hide(nn.Dense(1, name="classify")(tokens)[..., 0], mask)
    region = nn.Dense(1, name="region")(places)[..., 0]
    return BranchOutput(
      tokens=hide(tokens, mask),
      token_mask=mask,
      logit=masked_mean(frame_logit, mask),
      maps={"region": hide(region, mask), "frame_logit": frame_logit},
    )


class TinyVoice(nn.Module):
  """A branch like the audio one, with loudness and roughness of half seconds in place of a network."""

  INPUTS = ("waveform", "waveform_mask")

  features: int = 8

  @nn.compact
  def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> BranchOutput:
    steps, mask = half_seconds(batch["waveform"], batch["waveform_mask"])
    # Second by second, half a second on each time.
    seconds, present = (steps[:, 1:] + steps[:, :-1]) / 2, mask[:, 1:] & mask[:, :-1]
    whole = masked_mean(steps, mask)[:, None]
    tokens = nn.tanh(nn.Dense(self.features, name="describe")(jnp.concatenate([whole, seconds], axis=1)))
    present = jnp.concatenate([mask.any(axis=1, keepdims=True), present], axis=1)
    logits = hide(nn.Dense(1, name="classify")(tokens)[..., 0], present)
    middles_s = 0.5 + 0.5 * jnp.arange(seconds.shape[1])
    return BranchOutput(
      tokens=hide(tokens, present),
      token_mask=present,
      logit=logits[:, 0],
      maps={"window_logit": logits[:, 1:], "window_times_s": jnp.where(present[:, 1:], middles_s, 0.0)},
    )


class TinyLips(nn.Module):
  """A branch that reads what lip-sync reads, with means in place of networks."""

  INPUTS = ("mouth_crops", "mouth_mask", "waveform", "waveform_mask")

  features: int = 8

  @nn.compact
  def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> BranchOutput:
    steps, heard = half_seconds(batch["waveform"], batch["waveform_mask"])
    seen = batch["mouth_mask"]
    mouths = hide(batch["mouth_crops"], seen).astype(jnp.float32).mean(axis=(2, 3)) / 128 - 1
    both = jnp.concatenate([masked_mean(mouths, seen), masked_mean(steps, heard)], axis=-1)
    present = (seen.any(axis=1) & heard.any(axis=1))[:, None]
    token = nn.tanh(nn.Dense(self.features, name="describe")(both))[:, None]
    logit = hide(nn.Dense(1, name="classify")(token)[..., 0], present)
    return BranchOutput(tokens=hide(token, present), token_mask=present, logit=logit[:, 0])


def half_seconds(waveform: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Loudness and roughness, [batch, half second, 2], and which half seconds are sound throughout."""
  cut = {"pattern": "batch (step sample) -> batch step sample", "sample": 8000}
  steps, mask = (einops.rearrange(x, **cut) for x in (hide(waveform, mask), mask))
  numbers = [jnp.abs(steps).mean(axis=-1), jnp.abs(jnp.diff(steps, axis=-1)).mean(axis=-1)]
  return jnp.log10(jnp.stack(numbers, axis=-1) + 1e-4), mask.all(axis=-1)


@contextlib.contextmanager
def tiny_branch():
  """Inside, a configuration may name the branches "tiny", "tiny_voice" and "tiny_lips"."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(
      detector.BRANCHES,
      "tiny",
      lambda config, axis_name: TinyBranch(config.features, config.dropout, axis_name, name="tiny"),
    )
    for name, branch in (("tiny_voice", TinyVoice), ("tiny_lips", TinyLips)):
      patch.setitem(
        detector.BRANCHES,
        name,
        lambda config, axis_name, name=name, branch=branch: branch(config.features, name=name),
      )
    yield


def tiny_config(**train) -> Config:
  """A run of the tiny branch; train changes fields of its TrainConfig."""
  settings = {"steps": 4, "warmup_steps": 1, "validate_every": 2, "save_every": 2, "pretrained": False}
  settings["metric"] = "auc"
  return Config(
    name="tiny",
    model=ModelConfig(branches=("tiny",), features=8, dropout=0.2),
    data=DataConfig(batch_size=8, validation_limit=4),
    train=TrainConfig(**settings | train),
  )


def tiny_batch(size: int, *, seed: int = 0) -> dict[str, np.ndarray]:
  """A training batch of noise: reals and fakes in turn, all valid."""
  rng = np.random.default_rng(seed)
  return {
    "crops": rng.integers(0, 256, (size, 1, 224, 224, 3), dtype=np.uint8),
    "crop_mask": np.ones((size, 1), bool),
    "label": np.arange(size, dtype=np.int32) % 2,
    "example_mask": np.ones(size, bool),
    "region": rng.random((size, 1, data.REGION_SIZE, data.REGION_SIZE), np.float32),
  }


def random_variables(module: nn.Module, *inputs, seed: int = 0, **settings) -> dict:
  """Variables of a module, drawn by numpy: compiling an initialiser takes longer than what is tested."""
  shapes = jax.eval_shape(functools.partial(module.init, **settings), jax.random.key(0), *inputs)
  rng = np.random.default_rng(seed)

  def draw(path, shape) -> np.ndarray:
    values = rng.normal(size=shape.shape) / np.sqrt(max(np.prod(shape.shape[:-1]), 1))
    return np.asarray(1 + np.abs(values) if path[-1].key in ("var", "scale") else values, shape.dtype)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def write_model(
  folder: Path,
  *,
  calibration: Calibration | None = CALIBRATION,
  sound_calibration: Calibration | None = None,
  config: Config | None = None,
) -> Path:
  """Saves a model of the tiny branch, or of a configuration, with random parameters; returns the folder."""
  config = config or tiny_config()
  with tiny_branch():
    variables = random_variables(
      detector.Detector(config.model), train_state.abstract_batch(1, config), train=False
    )
    facts = training.model_facts(config, {"best": 0.5})
    for name, found in (("calibration", calibration), ("sound_calibration", sound_calibration)):
      if found:
        facts[name] = dataclasses.asdict(found)
    checkpoints.save_model(folder, params=variables, model=facts)
  return folder
