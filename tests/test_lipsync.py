"""The lip-sync branch: its contract, its formulas against loops, and a shifted track that it finds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import quick_jit
from tiny import random_variables

from deepscan_jax import losses, metrics
from deepscan_jax.models import lipsync
from deepscan_jax.models.audio_features import FeatureConfig
from deepscan_jax.models.interface import BranchOutput
from deepscan_jax.models.lipsync import LipSyncBranch
from deepscan_jax.models.time_windows import time_windows

PICTURES = 36
SAMPLES = PICTURES * 640
SIDE = 16
BRANCH = LipSyncBranch(
  features=32,
  embedding=16,
  video_widths=(8, 12, 16),
  audio_widths=(8, 16),
  max_shift=8,
  least_moments=12,
  window_s=0.6,
  window_hop_s=0.4,
  dropout=0.0,
  sound=FeatureConfig(fft_length=512, mel_bands=32),
)
# All, sound for 0.8 s, no sound, silence, no picture, too few pictures.
PICTURE_MASK = np.ones((6, PICTURES), bool)
PICTURE_MASK[4], PICTURE_MASK[5, 12:] = False, False
SAMPLE_MASK = np.ones((6, SAMPLES), bool)
SAMPLE_MASK[1, 20 * 640 :], SAMPLE_MASK[2] = False, False
SILENT = 3


def talking(count: int, *, seed: int, lag: np.ndarray | int = 0) -> dict[str, np.ndarray]:
  """Mouths that open as the sound swells, the sound `lag` pictures late."""
  rng = np.random.default_rng(seed)
  margin = 12
  series = rng.normal(size=(count, PICTURES + 2 * margin + 2))
  opening = 1 / (1 + np.exp(-1.2 * (series[:, :-2] + series[:, 1:-1] + series[:, 2:])))
  seen = opening[:, margin : margin + PICTURES]
  rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE - 0.5
  inside = np.square(rows) < np.square(0.4 * seen[..., None, None]) * (0.2 - np.square(columns)) / 0.2
  crops = np.where(inside[..., None], 30, 190) + rng.integers(-20, 20, (*inside.shape, 3))

  lags = np.broadcast_to(lag, count)
  times = margin + (np.arange(SAMPLES) / 640) - lags[:, None]
  # The sound of picture i is loudest in the middle of its 40 ms.
  loudness = np.stack([np.interp(t - 0.5, np.arange(o.size), o) for t, o in zip(times, opening, strict=True)])
  waveform = 0.1 * (0.02 + np.square(loudness)) * rng.normal(size=(count, SAMPLES))
  return {
    "mouth_crops": crops.astype(np.uint8),
    "mouth_mask": np.ones((count, PICTURES), bool),
    "waveform": waveform.astype(np.float32),
    "waveform_mask": np.ones((count, SAMPLES), bool),
  }


@functools.cache
def inputs() -> dict[str, np.ndarray]:
  batch = talking(6, seed=0)
  batch["waveform"][SILENT] = 0
  return {
    "mouth_crops": np.where(PICTURE_MASK[..., None, None, None], batch["mouth_crops"], 0).astype(np.float32),
    "mouth_mask": PICTURE_MASK,
    "waveform": np.where(SAMPLE_MASK, batch["waveform"], 0),
    "waveform_mask": SAMPLE_MASK,
  }


@functools.cache
def variables() -> dict:
  return random_variables(BRANCH, inputs(), train=False)


evaluate = quick_jit(functools.partial(BRANCH.apply, train=False))


def test_shapes_are_the_same_in_training_and_evaluation():
  for train in (False, True):
    found = jax.eval_shape(functools.partial(BRANCH.apply, train=train), variables(), inputs())
    assert isinstance(found, BranchOutput)
    # 1.44 s: windows at 0, 0.4, 0.8 and one moved back from 1.2.
    assert found.tokens.shape == (6, 1 + 4, 32) and found.token_mask.shape == (6, 1 + 4)
    assert found.logit.shape == (6,) and found.logit.dtype == found.tokens.dtype == jnp.float32
    assert all(x.shape[0] == 6 and x.dtype == jnp.float32 for x in found.maps.values())
    assert found.maps["distance"].shape == (6, 17) and found.maps["offset"].shape == (6,)
    assert found.maps["shift_logit"].shape == found.maps["shift_mask"].shape == (6, PICTURES - 4, 17)
    assert found.maps["window_offset"].shape == found.maps["window_logit"].shape == (6, 4)


def test_what_cannot_be_compared_is_absent_even_if_it_is_nan():
  before = {key: value.copy() for key, value in inputs().items()}
  hostile = {
    **inputs(),
    "mouth_crops": np.where(PICTURE_MASK[..., None, None, None], inputs()["mouth_crops"], np.nan),
    "waveform": np.where(SAMPLE_MASK, inputs()["waveform"], np.nan),
  }
  clean, poisoned = evaluate(variables(), inputs()), evaluate(variables(), hostile)
  for a, b in zip(*map(jax.tree.leaves, (clean, poisoned)), strict=True):
    np.testing.assert_array_equal(a, b)
    assert np.isfinite(a).all()
  for key, value in before.items():
    np.testing.assert_array_equal(inputs()[key], value)
  np.testing.assert_array_equal(clean.present, [True, True, False, False, False, False])
  # Moments 0 to 15 are heard of the second: the windows at 0 and 0.4 s.
  np.testing.assert_array_equal(clean.token_mask[1], [True, True, True, False, False])
  np.testing.assert_array_equal(np.asarray(clean.tokens)[~np.asarray(clean.token_mask)], 0)
  assert (np.asarray(clean.logit[:2]) != 0).all()
  for name, values in clean.maps.items():
    assert not np.asarray(values[2:]).any(), name
  assert clean.maps["shift_mask"][0].sum() == sum(32 - abs(k) for k in range(-8, 9))
  # Of 16 moments heard, shifts later than 11 leave fewer than 5; here all are known.
  assert (np.asarray(clean.maps["distance"][:2]) > 0).all()


def test_the_order_in_a_batch_does_not_matter():
  there = evaluate(variables(), inputs())
  back = evaluate(variables(), {key: value[::-1] for key, value in inputs().items()})
  for a, b in zip(*map(jax.tree.leaves, (there, back)), strict=True):
    np.testing.assert_allclose(a, b[::-1], rtol=1e-4, atol=1e-5)


def test_bytes_bfloat16_and_a_single_picture_are_taken():
  kinds = {
    "mouth_crops": inputs()["mouth_crops"].astype(np.uint8),
    "waveform": jnp.asarray(inputs()["waveform"], jnp.bfloat16),
  }
  found = evaluate(variables(), {**inputs(), **kinds})
  assert found.logit.dtype == jnp.float32 and np.isfinite(found.logit).all()
  np.testing.assert_array_equal(found.present, [True, True, False, False, False, False])
  one = {key: value[:, :1] for key, value in inputs().items()}
  found = evaluate(variables(), one)
  assert not np.asarray(found.present).any() and not np.asarray(found.logit).any()


def test_nothing_flows_into_the_parameters_where_nothing_can_be_compared():
  batch = {**inputs(), "mouth_crops": np.full_like(inputs()["mouth_crops"], np.nan)}
  batch["mouth_mask"] = np.zeros_like(PICTURE_MASK)

  def total(params):
    return sum(x.sum() for x in jax.tree.leaves(BRANCH.apply({"params": params}, batch, train=False)))

  value, gradients = quick_jit(jax.value_and_grad(total))(variables()["params"])
  assert value == 0
  for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
    np.testing.assert_array_equal(gradient, 0, err_msg=jax.tree_util.keystr(path))


def test_similarity_distance_and_summary_are_their_formulas():
  rng = np.random.default_rng(0)
  video, audio = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in rng.normal(size=(2, 2, 12, 5)))
  video_mask, audio_mask = rng.random((2, 12)) < 0.8, rng.random((2, 12)) < 0.8
  audio_mask[1] = False
  windows = time_windows(np.arange(12) * 0.1, window_s=0.8, hop_s=0.4, duration_s=1.2)
  similarity, pairs = lipsync.shifted_similarity(
    jnp.asarray(video), jnp.asarray(video_mask), jnp.asarray(audio), jnp.asarray(audio_mask), max_shift=3
  )
  curve = lipsync.distance_curves(similarity, pairs, windows)
  summary = lipsync.summarise(curve, max_shift=3)
  for example in range(2):
    for window in range(3):
      distances = {}
      for shift in range(-3, 4):
        each = []
        for moment in range(12):
          heard = moment + shift
          there = 0 <= heard < 12 and video_mask[example, moment] and audio_mask[example, heard]
          assert bool(pairs[example, moment, shift + 3]) == there
          if there:
            cosine = video[example, moment] @ audio[example, heard]
            np.testing.assert_allclose(similarity[example, moment, shift + 3], cosine, atol=1e-5)
            if windows.member[window, moment]:
              each.append(np.linalg.norm(video[example, moment] - audio[example, heard]))
        known = len(each) >= 5
        assert bool(curve.known[example, window, shift + 3]) == known
        if known:
          distances[shift] = np.mean(each)
          np.testing.assert_allclose(curve.distance[example, window, shift + 3], distances[shift], rtol=1e-4)
      found = {name: float(x[example, window]) for name, x in summary.items()}
      if not distances:
        assert set(found.values()) == {0.0}
        continue
      median = np.median(list(distances.values()))
      assert found["offset"] == min(distances, key=distances.get)
      np.testing.assert_allclose(found["median"], median, rtol=1e-4)
      np.testing.assert_allclose(found["confidence"], median - min(distances.values()), rtol=1e-3)


def test_drift_is_the_weighted_deviation_of_the_windows_offsets():
  offset = np.array([[9.0, 1, 1, 5, 100], [9, 2, 2, 2, 2]], np.float32)
  confidence = np.array([[1.0, 0.2, 0.1, 0.3, 0.5], [1, 0, 0, 0, 0]], np.float32)
  present = np.array([[True, True, True, False], [True] * 4])
  mean = np.average([1, 1, 5], weights=[0.2, 0.1, 0.3])
  expected = np.sqrt(np.average(np.square(np.array([1, 1, 5]) - mean), weights=[0.2, 0.1, 0.3]))
  np.testing.assert_allclose(lipsync._drift(offset, confidence, present), [expected, 0], rtol=1e-5)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"mouth_crops": np.zeros((6, PICTURES, 16, 16))}, r"mouth_crops must be .*got \(6, 36, 16, 16\)"),
    ({"waveform": np.zeros((6, 5))}, r"got \(6, 5\) and \(6, 23040\)"),
  ],
)
def test_inputs_of_another_shape_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    BRANCH.apply({}, {**inputs(), **changes}, train=False)


def test_sound_of_another_frame_rate_is_refused():
  with pytest.raises(ValueError, match=r"100 frames of sound a second; got 62\.5"):
    LipSyncBranch(sound=FeatureConfig(hop_length=256)).apply({}, inputs(), train=False)


def test_a_shifted_track_is_learned_and_its_shift_is_found():
  lags = np.array([-6, -5, -4, -3, 3, 4, 5, 6])

  def batch_of(pairs: int, seed: int) -> dict[str, np.ndarray]:
    drawn = np.random.default_rng(seed).choice(lags, pairs)
    batch = talking(2 * pairs, seed=seed, lag=np.concatenate([np.zeros(pairs, int), drawn]))
    return {**batch, "label": np.repeat([0, 1], pairs), "lag": np.concatenate([np.zeros(pairs), drawn])}

  optimiser = optax.adam(3e-3)

  @jax.jit
  def step(params, state, batch):
    def loss(params):
      output = BRANCH.apply({"params": params}, batch, train=True)
      real = jnp.where(output.present & (batch["label"] == 0), 1.0, 0.0)
      sync = losses.sync_loss(output.maps["shift_logit"], output.maps["shift_mask"], real)
      verdict = losses.focal_loss(output.logit, batch["label"], jnp.ones(output.logit.shape), gamma=0.0)
      return sync.total / sync.weight + verdict.total / verdict.weight, sync.total / sync.weight

    (_, sync), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    updates, state = optimiser.update(gradients, state)
    return optax.apply_updates(params, updates), state, sync

  fixed = {"bias": np.zeros_like, "scale": np.ones_like, "log_scale": lambda x: np.full_like(x, np.log(10))}
  params = jax.tree_util.tree_map_with_path(
    lambda path, x: fixed.get(path[-1].key, np.asarray)(x),
    random_variables(BRANCH, batch_of(4, 0), train=True, seed=1)["params"],
  )
  state = quick_jit(optimiser.init)(params)
  train = [batch_of(8, seed) for seed in range(16)]
  for number in range(120):
    params, state, sync = step(params, state, train[number % len(train)])
  unseen = batch_of(24, 1000)
  found = evaluate({"params": params}, {key: unseen[key] for key in BRANCH.INPUTS})
  assert sync < 0.7 * np.log(17)
  assert metrics.auc(unseen["label"], np.asarray(found.logit)) > 0.9
  assert np.mean(np.abs(found.maps["offset"] - unseen["lag"]) <= 1) > 0.9
  assert np.median(found.maps["confidence"]) > 0.1
