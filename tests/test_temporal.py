"""The temporal branch: its LSTM and its motion features against plain loops, and flicker."""

import functools

import jax
import numpy as np
import pytest
from branch_contract import MASK, check_branch, poison, window_batch
from compiling import quick_jit
from tiny import random_variables
from toy_signals import flickering_clips, train_alone

from deepscan_jax.models import temporal
from deepscan_jax.verdict import frame_consistency

SIDE = 16
TINY = {"hidden": 8, "features": 8, "dropout": 0.2}
# Whole, padded, with gaps, empty.
MASKS = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 0, 1, 1], [0, 0, 0, 0, 0]], bool)


def random(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def plain_lstm(frames, kernel, recurrent, bias):
  """The textbook's loop over a list of vectors: input, forget, cell and output gate."""
  hidden = len(recurrent)
  h, c, states = np.zeros(hidden), np.zeros(hidden), []
  for x in frames:
    write, keep, cell, show = np.split(x @ kernel + h @ recurrent + bias, 4)
    c = sigmoid(keep) * c + sigmoid(write) * np.tanh(cell)
    h = sigmoid(show) * np.tanh(c)
    states.append(h)
  return states


def test_the_lstm_is_a_plain_loop_over_the_frames_that_are_there():
  x, module = random(4, 5, 3), temporal.BiLSTM(hidden=2)
  poisoned = np.where(MASKS[..., None], x, np.nan)
  variables = random_variables(module, x, MASKS)
  parameters = [variables["params"][name].astype(np.float64) for name in ("kernel", "recurrent", "bias")]
  expected = np.zeros((4, 5, 4))
  for window in range(4):
    there = np.flatnonzero(MASKS[window])
    forward = plain_lstm(x[window, there], *(p[0] for p in parameters))
    backward = plain_lstm(x[window, there[::-1]], *(p[1] for p in parameters))[::-1]
    for frame, f, b in zip(there, forward, backward, strict=True):
      expected[window, frame] = np.concatenate([f, b])
  np.testing.assert_allclose(module.apply(variables, poisoned, MASKS), expected, rtol=1e-4, atol=1e-6)


def test_an_untrained_lstm_remembers():
  variables = temporal.BiLSTM(hidden=3).init(jax.random.key(0), random(1, 2, 4), np.ones((1, 2), bool))
  np.testing.assert_array_equal(variables["params"]["bias"], [[0] * 3 + [1] * 3 + [0] * 6] * 2)


def moving_points(times_s):
  """One window of 4 points: the corners of a unit square of 50 pixels that slides at 20, then at 60 px/s."""
  corners = np.array([[0, 0], [50, 0], [0, 50], [50, 50]], np.float64)
  x = 20 * times_s + 40 * np.maximum(times_s - 0.1, 0)
  return (corners[None] + np.stack([x, 0 * x], axis=-1)[:, None])[None].astype(np.float32)


def test_velocity_and_acceleration_are_those_of_the_points():
  times_s = np.array([0.0, 0.05, 0.1, 0.2, 0.3])
  motion = temporal.landmark_motion(moving_points(times_s), times_s[None], np.ones((1, 5), bool))
  velocity, acceleration, sizes, step, moved = np.split(np.sinh(motion[0]), (8, 16, 18, 19), axis=-1)
  speed = np.array([0, 20, 20, 60, 60]) / 50 / 0.25
  np.testing.assert_allclose(velocity[:, 0::2], np.repeat(speed[:, None], 4, axis=1), rtol=1e-3, atol=1e-3)
  np.testing.assert_allclose(velocity[:, 1::2], 0, atol=1e-5)
  # From the middle of one step, 0.075 s, to that of the next, 0.15 s.
  change = np.array([0, 0, 0, 40 / 50 / 0.25 / 0.075 * 0.04, 0])
  np.testing.assert_allclose(acceleration[:, 0], change, rtol=1e-3, atol=2e-3)
  np.testing.assert_allclose(sizes, np.stack([speed, change], axis=-1) / np.sqrt(2), rtol=1e-3, atol=2e-3)
  np.testing.assert_allclose(step[:, 0], [0, *np.log(np.diff(times_s) / 0.04)], rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(np.arcsinh(moved[:, 0]), np.arcsinh([0, 1, 1, 1, 1]), rtol=1e-6)


def test_motion_does_not_depend_on_the_size_of_the_face():
  times_s, mask = np.arange(4)[None] / 25, np.ones((1, 4), bool)
  points = np.cumsum(random(1, 4, 468, 2), axis=1) + 20 * random(1, 1, 468, 2, seed=1)
  for function in (temporal.landmark_motion, temporal.openings):
    one, other = (np.asarray(function(scale * points, times_s, mask)) for scale in (1, 3))
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def test_there_is_no_motion_across_a_gap_nor_where_time_stands_still():
  points, pixels = random(4, 5, 468, 2) * 50, random(4, 5, 8, 8, 3)
  times_s = np.broadcast_to(np.array([0, 0.04, 0.04, 0.08, 0.12], np.float32), (4, 5))
  moved = np.array([[0, 1, 0, 1, 1], [0, 1, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]], bool)
  motion = np.asarray(temporal.landmark_motion(points * MASKS[..., None, None], times_s * MASKS, MASKS))
  np.testing.assert_array_equal(motion[..., -1] != 0, moved)
  velocity, acceleration = motion[..., : 2 * 468], motion[..., 2 * 468 : 4 * 468]
  np.testing.assert_array_equal((velocity != 0).any(-1), moved)
  twice = np.array([[0, 0, 0, 0, 1], [0] * 5, [0] * 5, [0] * 5], bool)
  np.testing.assert_array_equal((acceleration != 0).any(-1), twice)
  changes = np.asarray(temporal.crop_changes(pixels * MASKS[..., None, None, None], MASKS))
  pairs = np.array([[0, 1, 1, 1, 1], [0, 1, 1, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]], bool)
  np.testing.assert_array_equal((changes != 0).any(-1), pairs)


def blinking_face() -> np.ndarray:
  """Points [3 frames, 468, 2] whose eyes are open by 0.3, closed, open by 0.3; the mouth by 0, 0.5, 1."""
  points = np.zeros((3, 468, 2), np.float32)
  for upper, lower, (left, right), opened in (
    ((160, 159, 158), (144, 145, 153), (33, 133), (0.3, 0.0, 0.3)),
    ((385, 386, 387), (380, 374, 373), (362, 263), (0.3, 0.0, 0.3)),
    ((81, 13, 311), (178, 14, 402), (78, 308), (0.0, 0.5, 1.0)),
  ):
    points[:, (left, right), 0] = 0, 40
    for frame, share in enumerate(opened):
      for i, (one, other) in enumerate(zip(upper, lower, strict=True)):
        points[frame, one] = 10 + 10 * i, -20 * share
        points[frame, other] = 10 + 10 * i, 20 * share
  return points


def test_openings_follow_a_blink_and_a_mouth():
  times_s = np.array([[0.0, 0.04, 0.12]])
  series = np.asarray(temporal.openings(blinking_face()[None], times_s, np.ones((1, 3), bool)))[0]
  eyes, mouth = [0.3, 0.0, 0.3], [0.0, 0.5, 1.0]
  expected = np.array([eyes, eyes, mouth]).T
  np.testing.assert_allclose(series[:, :3], expected, atol=1e-5)
  np.testing.assert_allclose(series[:, 3:6], expected - expected.mean(axis=0), atol=1e-5)
  np.testing.assert_allclose(series[:, 6], [0, -0.3, 0.15], atol=1e-5)
  np.testing.assert_allclose(series[:, 8], [0, 0.5, 0.25], atol=1e-5)


def test_the_points_of_eyes_and_mouth_are_those_of_the_mesh():
  from deepscan_jax.faces import regions

  outlines = (regions.RIGHT_EYE, regions.LEFT_EYE, regions.LIPS_INNER)
  parts = (temporal._RIGHT_EYE, temporal._LEFT_EYE, temporal._MOUTH)
  for outline, (pairs, corners) in zip(outlines, parts, strict=True):
    # Drawn from the one corner to the other and back: a pair lies on either side, equally far along.
    around = outline[outline.index(corners[0]) :] + outline[: outline.index(corners[0])]
    assert around.index(corners[1]) == len(around) // 2
    for pair in pairs:
      assert abs(sum(around.index(point) for point in pair) - len(around)) <= 1


def test_changes_of_crops_tell_light_from_texture():
  pixels = np.zeros((1, 3, 8, 8, 3), np.float32)
  pixels[0, 1] += 0.25
  checks = (np.indices((8, 8)).sum(axis=0) % 2 * 2 - 1)[..., None]
  pixels[0, 2] = 0.25 + 0.125 * checks
  changes = np.asarray(temporal.crop_changes(pixels, np.ones((1, 3), bool)))[0]
  sizes, means = np.split(changes, 2, axis=-1)
  np.testing.assert_allclose(sizes, np.repeat([[0.0], [2.0], [1.0]], 16, axis=1), atol=1e-5)
  np.testing.assert_allclose(means[:2], np.repeat([[0.0], [2.0]], 16, axis=1), atol=1e-5)
  assert np.abs(means[2]).max() < 0.3


def test_consistency_is_that_of_the_verdict():
  logits = 3 * random(4, 5)
  score = temporal.frame_consistency_score(logits, MASKS)
  expected = [frame_consistency(sigmoid(logits[i, MASKS[i]])) for i in range(3)]
  np.testing.assert_allclose(score, [*expected, 0], rtol=1e-5)
  extremes = np.array([[9, 9, 9, 9], [99, -99, 99, -99]], np.float32)
  np.testing.assert_allclose(
    temporal.frame_consistency_score(extremes, np.ones((2, 4), bool)), [1, 0], atol=1e-6
  )


@pytest.mark.parametrize("frame_features", [True, False])
def test_the_branch_keeps_the_contract(frame_features):
  module = temporal.TemporalBranch(frame_features=frame_features, layers=2, **TINY)
  assert ("frame_features" in module.INPUTS) == frame_features
  check_branch(module, side=SIDE)


def test_one_frame_alone_has_no_motion():
  module = temporal.TemporalBranch(**TINY)
  batch = window_batch(side=SIDE)
  variables = random_variables(module, batch, train=False)
  single = poison(batch, MASK & (np.arange(4) == 0))
  apply = quick_jit(functools.partial(module.apply, train=False))
  for there in (single, {key: value[:, :1] for key, value in single.items()}):
    output = apply(variables, there)
    assert not output.present.any()
    for x in (output.logit, output.tokens, *output.maps.values()):
      np.testing.assert_array_equal(x, 0)


def test_frames_agree_as_far_as_their_logits_do():
  module = temporal.TemporalBranch(**TINY)
  batch = window_batch(side=SIDE)
  apply = quick_jit(functools.partial(module.apply, train=False))
  output = apply(random_variables(module, batch, train=False), batch)
  for window in range(2):
    p = sigmoid(np.asarray(output.maps["frame_logit"])[window, MASK[window]])
    np.testing.assert_allclose(
      output.maps["frame_consistency_score"][window], frame_consistency(p), rtol=1e-5
    )
  np.testing.assert_allclose(output.logit[1], np.asarray(output.maps["frame_logit"])[1, :2].mean(), rtol=1e-5)


def test_it_learns_to_see_flicker():
  module = temporal.TemporalBranch(frame_features=False, hidden=16, features=16, dropout=0.0)
  draw = functools.partial(flickering_clips, count=32, frames=6, side=SIDE)
  assert train_alone(module, draw, steps=60, learning_rate=1e-2)[0] > 0.95
