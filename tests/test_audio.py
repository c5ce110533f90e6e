"""The audio branch: its contract, what padding and loudness may not do, and a vocoded voice it learns."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import quick_jit
from tiny import random_variables

from deepscan_jax import losses, metrics
from deepscan_jax.models.audio import AttentivePooling, AudioBranch, MaskedChannelAttention
from deepscan_jax.models.audio_features import FeatureConfig
from deepscan_jax.models.interface import BranchOutput
from deepscan_jax.models.time_windows import time_windows
from deepscan_jax.pseudofakes.audio import copy_synthesis

SAMPLES = 12800  # 0.8 s
# Two stages reduce 81 frames of 10 ms to 21 steps of 40 ms.
BRANCH = AudioBranch(
  features=32,
  widths=(8, 16),
  depths=(1, 1),
  window_s=0.4,
  window_hop_s=0.2,
  sound=FeatureConfig(fft_length=512, mel_bands=32),
)
# Whole, padded to 0.5 s, silence, nothing.
VALID = np.arange(SAMPLES) < np.array([SAMPLES, 8000, SAMPLES, 0])[:, None]


def toy_voices(count: int, samples: int, *, seed: int = 0) -> np.ndarray:
  """[count, samples] sums of harmonics in step, as of a larynx: wandering pitch, moving formants."""
  rng = np.random.default_rng(seed)
  t = np.arange(samples) / 16000

  def wander(low: float, high: float) -> np.ndarray:
    middle, width, rate, phase = rng.uniform(
      [[low], [0.05], [1], [0]], [[high], [0.15], [4], [6]], (4, count)
    )
    return middle[:, None] * (1 + width[:, None] * np.sin(2 * np.pi * rate[:, None] * t + phase[:, None]))

  pitch = wander(90, 230)
  phase = 2 * np.pi * np.cumsum(pitch, axis=1) / 16000
  formants = [wander(300, 800), wander(1000, 2200), wander(2500, 3500)]
  voice = np.zeros((count, samples))
  for k in range(1, 40):
    heights = [1 / (1 + np.square((k * pitch - formant) / 120)) for formant in formants]
    voice += np.where(k * pitch < 7500, sum(heights) + 0.02, 0) * np.cos(k * phase)
  voice *= 0.3 + np.square(np.sin(np.pi * rng.uniform(1, 3, (count, 1)) * t))
  voice = 0.1 * voice / voice.std(axis=1, keepdims=True)
  return (voice + 0.001 * rng.normal(size=voice.shape)).astype(np.float32)


@functools.cache
def inputs() -> dict[str, np.ndarray]:
  waveform = toy_voices(4, SAMPLES)
  waveform[2] = 0
  return {"waveform": np.where(VALID, waveform, 0), "waveform_mask": VALID}


@functools.cache
def variables() -> dict:
  return random_variables(BRANCH, inputs(), train=False)


def initial_params(batch: dict[str, np.ndarray]) -> dict:
  """Kernels as drawn, biases 0, scales 1: training begins there."""
  fixed = {"bias": np.zeros_like, "scale": np.ones_like}
  return jax.tree_util.tree_map_with_path(
    lambda path, x: fixed.get(path[-1].key, np.asarray)(x),
    random_variables(BRANCH, batch, train=False, seed=3)["params"],
  )


evaluate = quick_jit(functools.partial(BRANCH.apply, train=False))


def test_shapes_are_the_same_in_training_and_evaluation():
  rngs = {"dropout": jax.random.key(0)}
  for train in (False, True):
    found = jax.eval_shape(
      lambda v, b, t=train: BRANCH.apply(v, b, train=t, rngs=rngs), variables(), inputs()
    )
    assert isinstance(found, BranchOutput)
    assert found.tokens.shape == (4, 1 + 3, 32) and found.token_mask.shape == (4, 1 + 3)
    assert found.logit.shape == (4,) and found.logit.dtype == found.tokens.dtype == jnp.float32
    assert {name: x.shape for name, x in found.maps.items()} == {
      "window_logit": (4, 3),
      "window_times_s": (4, 3),
    }


def test_without_its_network_the_branch_hears_statistics_alone():
  alone = BRANCH.copy(network=False)
  given = random_variables(alone, inputs(), train=False)
  assert set(given["params"]) == {"describe", "classify"}
  found = quick_jit(functools.partial(alone.apply, train=False))(given, inputs())
  whole = evaluate(variables(), inputs())
  for a, b in zip(*map(jax.tree.leaves, (found, whole)), strict=True):
    assert a.shape == b.shape and a.dtype == b.dtype and np.isfinite(a).all()
  np.testing.assert_array_equal(found.token_mask, whole.token_mask)
  assert (np.asarray(found.logit[:2]) != 0).all() and not np.asarray(found.logit[2:]).any()


def test_silence_and_padding_are_absent_even_if_padding_is_nan():
  before = {key: value.copy() for key, value in inputs().items()}
  clean = evaluate(variables(), inputs())
  hostile = evaluate(variables(), {**inputs(), "waveform": np.where(VALID, inputs()["waveform"], np.nan)})
  for a, b in zip(*map(jax.tree.leaves, (clean, hostile)), strict=True):
    np.testing.assert_array_equal(a, b)
    assert np.isfinite(a).all()
  for key, value in before.items():
    np.testing.assert_array_equal(inputs()[key], value)
  np.testing.assert_array_equal(clean.present, [True, True, False, False])
  # 0.5 s fill the whole, the first window and half of the second.
  np.testing.assert_array_equal(clean.token_mask[1], [True, True, True, False])
  np.testing.assert_array_equal(np.asarray(clean.tokens)[~np.asarray(clean.token_mask)], 0)
  np.testing.assert_allclose(clean.maps["window_times_s"], [[0.2, 0.4, 0.6], [0.2, 0.4, 0], [0] * 3, [0] * 3])
  assert (np.asarray(clean.logit[:2]) != 0).all() and not np.asarray(clean.logit[2:]).any()
  assert (np.asarray(clean.maps["window_logit"]) != 0).sum() == 3 + 2


def test_the_length_of_the_padding_and_the_order_in_a_batch_do_not_matter():
  short = {key: value[:2, :8000] for key, value in inputs().items()}
  alone, padded = evaluate(variables(), short), evaluate(variables(), inputs())
  np.testing.assert_allclose(alone.logit[1], padded.logit[1], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(alone.tokens[1, 0], padded.tokens[1, 0], rtol=1e-3, atol=1e-4)
  turned = evaluate(variables(), {key: value[::-1] for key, value in inputs().items()})
  np.testing.assert_allclose(turned.logit[::-1], padded.logit, rtol=1e-5, atol=1e-6)


def test_less_sound_is_judged_with_less_certainty():
  """As the deviation of a mean: with the root of its length."""
  branch = dataclasses.replace(BRANCH, whole_s=SAMPLES / 16000)
  variables = random_variables(branch, inputs(), train=False)
  output = branch.apply(variables, inputs(), train=False)
  last = variables["params"]["classify"]
  judged = (output.tokens[:, 0] @ last["kernel"] + last["bias"])[:, 0]
  np.testing.assert_allclose(output.logit[:2], judged[:2] * np.sqrt([1, 8000 / SAMPLES]), rtol=1e-4)
  longer = dataclasses.replace(BRANCH, whole_s=SAMPLES / 16000 / 2).apply(variables, inputs(), train=False)
  np.testing.assert_allclose(longer.logit[:2], judged[:2], rtol=1e-4)


def test_loudness_hardly_matters():
  found = evaluate(variables(), inputs())
  quiet = evaluate(variables(), {**inputs(), "waveform": inputs()["waveform"] * 0.1})
  np.testing.assert_allclose(quiet.logit, found.logit, rtol=0.02, atol=0.02)


def test_bfloat16_and_a_single_sample_are_taken():
  batch = {**inputs(), "waveform": jnp.asarray(inputs()["waveform"], jnp.bfloat16)}
  found = evaluate(variables(), batch)
  assert found.logit.dtype == jnp.float32 and np.isfinite(found.logit).all()
  np.testing.assert_array_equal(found.present, [True, True, False, False])
  one = evaluate(
    variables(), {"waveform": np.ones((1, 1), np.float32), "waveform_mask": np.ones((1, 1), bool)}
  )
  assert not np.asarray(one.present).any() and not np.asarray(one.logit).any()


def test_nothing_flows_into_the_parameters_where_nothing_is_heard():
  batch = {"waveform": np.full((4, SAMPLES), np.nan, np.float32), "waveform_mask": np.zeros_like(VALID)}

  def total(params):
    return sum(x.sum() for x in jax.tree.leaves(BRANCH.apply({"params": params}, batch, train=False)))

  value, gradients = quick_jit(jax.value_and_grad(total))(variables()["params"])
  assert value == 0
  for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
    np.testing.assert_array_equal(gradient, 0, err_msg=jax.tree_util.keystr(path))


def test_pooling_is_a_weighted_mean_and_deviation_over_valid_members():
  rng = np.random.default_rng(0)
  steps = rng.normal(size=(2, 6, 4)).astype(np.float32)
  mask = np.array([[True] * 6, [True] * 3 + [False] * 3])
  member = np.array([[True] * 6, [True, True, False, False, True, False], [False] * 4 + [True] * 2])
  module = AttentivePooling(hidden=5)
  weights = random_variables(module, steps, mask, member)
  found = module.apply(weights, steps, mask, member)
  params = weights["params"]
  hidden = np.tanh(steps @ params["hidden"]["kernel"] + params["hidden"]["bias"])
  scores = (hidden @ params["score"]["kernel"] + params["score"]["bias"])[..., 0]
  for example in range(2):
    for window in range(3):
      inside = mask[example] & member[window]
      if not inside.any():
        np.testing.assert_array_equal(found[example, window], 0)
        continue
      share = np.exp(scores[example, inside])
      share = (share / share.sum())[:, None]
      mean = (share * steps[example, inside]).sum(axis=0)
      deviation = np.sqrt((share * np.square(steps[example, inside] - mean)).sum(axis=0) + 1e-4)
      np.testing.assert_allclose(
        found[example, window], np.concatenate([mean, deviation]), rtol=1e-4, atol=1e-5
      )


def test_channel_attention_sees_valid_time_only():
  x = np.random.default_rng(0).normal(size=(1, 5, 3, 16)).astype(np.float32) - 3
  x[:, 3:] = 0
  module = MaskedChannelAttention(reduction=4)
  weights = random_variables(module, x, np.ones((1, 5), bool))
  masked = module.apply(weights, x, np.array([[True] * 3 + [False] * 2]))
  cut = module.apply(weights, x[:, :3], np.ones((1, 3), bool))
  np.testing.assert_allclose(masked[:, :3], cut, rtol=1e-5)
  assert not np.allclose(masked, module.apply(weights, x, np.ones((1, 5), bool)), rtol=1e-3)


def test_windows_cover_the_time_and_need_half_of_their_steps():
  windows = time_windows(np.arange(10) * 0.1, window_s=0.4, hop_s=0.2, duration_s=0.9)
  assert windows.member[0].all()
  starts = windows.member[1:].argmax(axis=1)
  np.testing.assert_array_equal(starts, [0, 2, 4, 5])
  np.testing.assert_array_equal(windows.member[1:].sum(axis=1), [4, 4, 4, 4])
  np.testing.assert_allclose(windows.times_s, [0.2, 0.4, 0.6, 0.7], rtol=1e-6)
  mask = np.array([[True] * 4 + [False] * 6, [True] + [False] * 9])
  np.testing.assert_array_equal(
    windows.present(mask, least=2), [[True, True, True, False, False], [False] * 5]
  )
  alone = time_windows(np.arange(3) * 0.1, window_s=1.0, hop_s=0.5, duration_s=0.3)
  np.testing.assert_array_equal(alone.member, np.ones((2, 3), bool))


def test_a_waveform_of_another_shape_is_refused():
  with pytest.raises(ValueError, match=r"got \(2, 9, 1\) and \(2, 9\)"):
    BRANCH.apply({}, {"waveform": np.zeros((2, 9, 1)), "waveform_mask": np.ones((2, 9), bool)}, train=False)


def test_a_vocoded_voice_is_learned():
  samples, pairs, held_out = 8000, 96, 32
  real = toy_voices(pairs + held_out, samples, seed=1)
  fake = copy_synthesis(real, np.random.default_rng(2), iterations=8)
  waveform = np.stack([real, fake], axis=1)
  label = np.tile(np.array([0, 1]), (pairs + held_out, 1))

  def batch_of(rows) -> dict[str, np.ndarray]:
    chosen = waveform[rows].reshape(-1, samples)
    return {"waveform": chosen, "waveform_mask": np.ones(chosen.shape, bool), "label": label[rows].ravel()}

  optimiser = optax.adam(3e-3)

  @jax.jit
  def step(params, state, batch, key):
    def loss(params):
      output = BRANCH.apply({"params": params}, batch, train=True, rngs={"dropout": key})
      found = losses.focal_loss(output.logit, batch["label"], jnp.ones(output.logit.shape), gamma=0.0)
      return found.total / found.weight

    value, gradients = jax.value_and_grad(loss)(params)
    updates, state = optimiser.update(gradients, state)
    return optax.apply_updates(params, updates), state, value

  params = initial_params(batch_of(np.arange(8)))
  state = quick_jit(optimiser.init)(params)
  rng = np.random.default_rng(4)
  for number in range(60):
    batch = batch_of(rng.choice(pairs, 8, replace=False))
    params, state, _ = step(params, state, batch, jax.random.key(number))
  unseen = batch_of(np.arange(pairs, pairs + held_out))
  found = evaluate({"params": params}, unseen)
  assert metrics.auc(unseen["label"], np.asarray(found.logit)) > 0.9
