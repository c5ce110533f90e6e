"""Toy forgeries that one kind of branch can see, and a short training that has to find them."""

import functools
from collections.abc import Callable

import cv2
import jax
import numpy as np
import optax
from compiling import quick_jit

from deepscan_jax import losses, metrics
from deepscan_jax.models.interface import BranchOutput


def flickering_clips(rng: np.random.Generator, count: int, *, frames: int, side: int) -> dict:
  """Windows of still, smooth faces; brightness is drawn for each clip, in fakes anew for each frame.

  A single frame of a fake is like one of a real clip: only time tells them apart.
  """
  label = np.arange(count) % 2
  brightness = rng.uniform(-40, 40, (count, frames, 1, 1, 1))
  brightness = np.where(label[:, None, None, None, None] == 1, brightness, brightness[:, :1])
  points = rng.uniform(0, side, (count, 1, 468, 2)).repeat(frames, axis=1)
  return {
    "crops": np.clip(_smooth_pictures(rng, count, side)[:, None] + brightness, 0, 255).astype(np.float32),
    "crop_mask": np.ones((count, frames), bool),
    "landmarks": (points + rng.normal(size=points.shape) * 0.2).astype(np.float32),
    "frame_times_s": np.broadcast_to(np.arange(frames, dtype=np.float32) / 25, (count, frames)),
    "label": label.astype(np.int32),
  }


def odd_textures(rng: np.random.Generator, count: int, *, side: int) -> dict:
  """Single smooth faces; on a part of the fakes lies a fine texture that no real face has."""
  label = np.arange(count) % 2
  texture = rng.normal(size=(count, side, side, 1)) * 20
  texture[:, : side // 2] = 0
  crops = _smooth_pictures(rng, count, side) + texture * label[:, None, None, None]
  return {
    "crops": np.clip(crops, 0, 255).astype(np.float32)[:, None],
    "crop_mask": np.ones((count, 1), bool),
    "label": label.astype(np.int32),
  }


def blended_borders(rng: np.random.Generator, count: int, *, side: int) -> dict:
  """Single smooth faces; into each fake a round patch of another one is blended, whose border shows.

  Both are drawn alike and the patch lies anywhere, so that neither colours nor places tell, only the border.
  """
  label = np.arange(count) % 2
  rows, columns = np.indices((side, side), np.float32)
  middle = rng.uniform(0.3 * side, 0.7 * side, (2, count, 1, 1))
  radius = rng.uniform(0.2 * side, 0.3 * side, (count, 1, 1))
  distance = np.hypot(rows - middle[0], columns - middle[1])
  mask = np.clip((radius - distance) / 2 + 0.5, 0, 1) * label[:, None, None]
  face, patch = _smooth_pictures(rng, count, side), _smooth_pictures(rng, count, side)
  crops = face + mask[..., None] * (patch - face)
  places = side // 16
  region = mask.reshape(count, places, 16, places, 16).mean(axis=(2, 4))
  return {
    "crops": np.clip(crops, 0, 255).astype(np.float32)[:, None],
    "crop_mask": np.ones((count, 1), bool),
    "region": region.astype(np.float32)[:, None],
    "label": label.astype(np.int32),
  }


def train_alone(
  module,
  draw: Callable[[np.random.Generator], dict],
  *,
  steps: int,
  learning_rate: float,
  prepare: Callable[[dict, dict], dict] | None = None,
) -> tuple[float, Callable[[dict], BranchOutput]]:
  """Trains a branch by its own losses, of its score and of its maps; never shown the same twice.

  Args:
    module: the branch.
    draw: makes a batch.
    steps: of Adam.
    learning_rate: at the start; a half cosine to 0.
    prepare: (variables, first batch) -> the variables to start from, where they are not those of `init`.

  Returns:
    The area under the curve on a batch that comes after the last, and what the trained branch says of one.
  """
  rng = np.random.default_rng(0)
  first = draw(rng)
  # What runs once or twice is compiled quickly; the step is run often enough to be compiled well.
  variables = quick_jit(lambda key, batch: module.init(key, batch, train=False))(jax.random.key(0), first)
  if prepare is not None:
    variables = prepare(variables, first)
  rest = {key: value for key, value in variables.items() if key != "params"}
  optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

  def loss(params, batch):
    output = module.apply({**rest, "params": params}, batch, train=True, rngs={"dropout": jax.random.key(1)})
    total = losses.focal_loss(output.logit, batch["label"], output.present * 1.0, gamma=0.0).total
    if "reconstruction_error" in output.maps:
      error = output.maps["reconstruction_error"]
      total += losses.reconstruction_loss(error, batch["label"], output.token_mask * 1.0).total
    if "region" in batch:
      total += losses.region_loss(output.maps["region"], batch["region"], output.token_mask * 1.0).total
    return total / len(batch["label"])

  @jax.jit
  def step(params, state, batch):
    updates, state = optimizer.update(jax.grad(loss)(params, batch), state, params)
    return optax.apply_updates(params, updates), state

  params = variables["params"]
  state = quick_jit(optimizer.init)(params)
  for _ in range(steps):
    params, state = step(params, state, draw(rng))
  variables = {**rest, "params": params}
  say = functools.partial(quick_jit(functools.partial(module.apply, train=False)), variables)
  fresh = draw(rng)
  return metrics.auc(fresh["label"], np.asarray(say(fresh).logit)), say


def _smooth_pictures(rng, count, side) -> np.ndarray:
  small = rng.uniform(60, 190, (count, 3, 3, 3)).astype(np.float32)
  return np.stack([cv2.resize(picture, (side, side), interpolation=cv2.INTER_CUBIC) for picture in small])
