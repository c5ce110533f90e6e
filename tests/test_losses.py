import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepscan_jax import losses
from deepscan_jax.models.interface import BranchOutput, DetectorOutput


def sigmoid(x: float) -> float:
  return 1 / (1 + math.exp(-x))


def plain_focal(logits, labels, weights, *, gamma, smoothing, alpha=0.0) -> float:
  total = 0.0
  for logit, label, weight in zip(logits, labels, weights, strict=True):
    p = sigmoid(logit)
    target = label * (1 - smoothing) + smoothing / 2
    p_target = p * target + (1 - p) * (1 - target)
    entropy = -(target * math.log(p) + (1 - target) * math.log(1 - p))
    alpha_target = alpha * target + (1 - alpha) * (1 - target) if alpha else 1.0
    total += weight * alpha_target * (1 - p_target) ** gamma * entropy
  return total


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.9])
def test_focal_loss_is_its_formula(gamma, smoothing, alpha):
  rng = np.random.default_rng(0)
  logits, labels, weights = rng.normal(size=9) * 2, rng.integers(0, 2, 9), rng.random(9)
  got = losses.focal_loss(
    jnp.array(logits),
    jnp.array(labels),
    jnp.array(weights),
    gamma=gamma,
    alpha=alpha,
    label_smoothing=smoothing,
  )
  expected = plain_focal(logits, labels, weights, gamma=gamma, smoothing=smoothing, alpha=alpha)
  np.testing.assert_allclose(got.total, expected, rtol=1e-5)
  np.testing.assert_allclose(got.weight, weights.sum(), rtol=1e-6)


def test_alpha_is_the_share_of_a_fake_as_in_the_paper():
  """At logit 0 and gamma 2 each example's loss is log 2 / 4, times alpha or 1 - alpha."""
  got = losses.focal_loss(jnp.zeros(4), jnp.array([1, 0, 0, 0]), jnp.ones(4), gamma=2.0, alpha=0.25)
  np.testing.assert_allclose(got.total, (0.25 + 3 * 0.75) * math.log(2) / 4, rtol=1e-6)
  assert got.weight == 4


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_surest_logits_have_a_finite_gradient(gamma, smoothing):
  logits, labels = jnp.array([-200.0, -30.0, 30.0, 200.0, 0.0]), jnp.array([0, 1, 1, 0, 1])

  def total(logits):
    kind = {"gamma": gamma, "alpha": 0.25, "label_smoothing": smoothing}
    return losses.focal_loss(logits, labels, jnp.ones(5), **kind).total

  value, gradient = jax.value_and_grad(total)(logits)
  assert np.isfinite(value) and np.isfinite(gradient).all()


def test_an_example_of_no_weight_does_not_count_even_if_it_is_nan():
  got = losses.focal_loss(jnp.array([1.0, jnp.nan]), jnp.array([1, 0]), jnp.array([1.0, 0.0]), gamma=0.0)
  np.testing.assert_allclose(got.total, -math.log(sigmoid(1.0)), rtol=1e-5)
  assert got.weight == 1


def test_region_loss_is_a_mean_over_places():
  rng = np.random.default_rng(0)
  logits, region, weights = rng.normal(size=(2, 3, 4, 5)), rng.random((2, 3, 4, 5)), rng.random((2, 3))
  total = 0.0
  for b in range(2):
    for f in range(3):
      places = [
        -(t * math.log(sigmoid(x)) + (1 - t) * math.log(1 - sigmoid(x)))
        for x, t in zip(logits[b, f].ravel(), region[b, f].ravel(), strict=True)
      ]
      total += weights[b, f] * sum(places) / len(places)
  got = losses.region_loss(jnp.array(logits), jnp.array(region), jnp.array(weights))
  np.testing.assert_allclose(got.total, total, rtol=1e-5)
  np.testing.assert_allclose(got.weight, weights.sum(), rtol=1e-6)


def test_each_branch_counts_where_it_is_present_and_padding_never():
  def branch(present, maps=None):
    mask = jnp.array(present)[:, None]
    return BranchOutput(jnp.zeros((4, 1, 2)), mask, jnp.where(mask[:, 0], 2.0, 0.0), maps or {})

  spatial = branch([True, True, False, True], {"region": jnp.zeros((4, 1, 3, 3))})
  audio = branch([False, True, False, True])
  output = DetectorOutput(jnp.full(4, 2.0), {"spatial": spatial, "audio": audio}, jnp.zeros((4, 2)))
  batch = {
    "label": jnp.ones(4, jnp.int32),
    "example_mask": jnp.array([True, True, True, False]),
    "region": jnp.ones((4, 1, 3, 3)),
  }
  found = losses.detector_losses(output, batch, gamma=0.0, smoothing=0.0)
  weights = {name: float(loss.weight) for name, loss in found.items()}
  assert weights == {"fused": 2, "branch_spatial": 2, "region": 2, "branch_audio": 1}
  one = -math.log(sigmoid(2.0))
  np.testing.assert_allclose(found["fused"].total, 2 * one, rtol=1e-5)
  np.testing.assert_allclose(found["branch_audio"].total, one, rtol=1e-5)
  np.testing.assert_allclose(found["region"].total, 2 * math.log(2), rtol=1e-5)
  del batch["region"]
  assert "region" not in losses.detector_losses(output, batch, gamma=0.0, smoothing=0.0)


def test_every_loss_of_a_batch_is_what_a_loop_over_its_examples_finds():
  """Labels of face and sound, unknown ones, class weights, alpha, absent branches, known regions, padding."""
  rng, size = np.random.default_rng(0), 12
  kind = {"gamma": 1.5, "smoothing": 0.1, "alpha": 0.3}
  class_weights = (1.0, 2.5)
  batch = {
    "label": rng.integers(-1, 2, size),
    "face_label": rng.integers(-1, 2, size),
    "sound_label": rng.integers(-1, 2, size),
    "example_mask": rng.random(size) < 0.8,
    "region": rng.random((size, 2, 3, 3)),
    "region_mask": rng.random(size) < 0.6,
  }
  masks = {name: rng.random((size, 2)) < 0.6 for name in ("spatial", "cnn3d", "audio", "lipsync")}
  logits = {name: np.where(mask.any(axis=1), rng.normal(size=size) * 2, 0.0) for name, mask in masks.items()}
  regions = {name: rng.normal(size=(size, 2, 3, 3)) for name in ("spatial", "cnn3d")}
  fused = rng.normal(size=size)
  branches = {
    name: BranchOutput(
      jnp.zeros((size, 2, 1)),
      jnp.array(mask),
      jnp.array(logits[name]),
      {"region": jnp.array(regions[name])} if name in regions else {},
    )
    for name, mask in masks.items()
  }
  output = DetectorOutput(jnp.array(fused), branches, jnp.zeros((size, 4)))
  arrays = {key: jnp.array(value) for key, value in batch.items()}
  found = losses.detector_losses(output, arrays, class_weights=class_weights, **kind)

  def classified(logit, labels, present) -> tuple[float, float]:
    total = weight = 0.0
    for i in range(size):
      if batch["example_mask"][i] and present[i] and labels[i] >= 0:
        share = class_weights[labels[i]]
        total += plain_focal([logit[i]], [labels[i]], [share], **kind)
        weight += share
    return total, weight

  label_of = {"spatial": "face_label", "cnn3d": "face_label", "audio": "sound_label", "lipsync": "label"}
  present = {name: mask.any(axis=1) for name, mask in masks.items()}
  expected = {f"branch_{n}": classified(logits[n], batch[label_of[n]], present[n]) for n in masks}
  expected["fused"] = classified(fused, batch["label"], np.any(list(present.values()), axis=0))
  total = weight = 0.0
  for name, values in regions.items():
    for i in range(size):
      for frame in range(2):
        if batch["example_mask"][i] and batch["region_mask"][i] and masks[name][i, frame]:
          pairs = zip(values[i, frame].ravel(), batch["region"][i, frame].ravel(), strict=True)
          total += sum(-t * math.log(sigmoid(x)) - (1 - t) * math.log(1 - sigmoid(x)) for x, t in pairs) / 9
          weight += 1
  expected["region"] = (total, weight)
  assert set(found) == set(expected)
  for name, (total, weight) in expected.items():
    np.testing.assert_allclose(found[name].total, total, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(found[name].weight, weight, rtol=1e-6, err_msg=name)
  assert len({weight for _, weight in expected.values()}) > 3


def test_reconstruction_counts_real_faces_only():
  rng = np.random.default_rng(0)
  error, weights = rng.random((3, 2, 4, 5)), rng.random((3, 2))
  error[1] = np.nan
  weights[2, 1] = 0
  got = losses.reconstruction_loss(jnp.array(error), jnp.array([0, 1, 0]), jnp.array(weights))
  total = sum(weights[b, f] * error[b, f].mean() for b in (0, 2) for f in range(2))
  np.testing.assert_allclose(got.total, total, rtol=1e-5)
  np.testing.assert_allclose(got.weight, weights[0].sum() + weights[2].sum(), rtol=1e-6)


def test_without_a_real_face_there_is_no_reconstruction():
  got = losses.reconstruction_loss(jnp.ones((2, 1, 3, 3)), jnp.array([1, 1]), jnp.ones((2, 1)))
  assert got == (0, 0)


@pytest.mark.parametrize("tolerance", [0, 1])
def test_sync_loss_is_the_cross_entropy_of_no_shift_over_known_shifts(tolerance):
  rng = np.random.default_rng(0)
  logits, mask = rng.normal(size=(4, 6, 7)), (rng.random((4, 6, 7)) < 0.7).astype(np.float32)
  mask[2] = 0  # nothing to compare: does not count
  logits = np.where(mask > 0, logits, np.nan)
  weights = np.array([1.0, 0.5, 1.0, 0.0])
  total = 0.0
  for b in (0, 1):
    each = []
    for moment in range(6):
      shifts = [k for k in range(7) if mask[b, moment, k] and (k == 3 or abs(k - 3) > tolerance)]
      if 3 in shifts and len(shifts) > 1:
        each.append(math.log(sum(math.exp(logits[b, moment, k]) for k in shifts)) - logits[b, moment, 3])
    total += weights[b] * sum(each) / len(each)
  got = losses.sync_loss(jnp.array(logits), jnp.array(mask), jnp.array(weights), tolerance=tolerance)
  np.testing.assert_allclose(got.total, total, rtol=1e-5)
  np.testing.assert_allclose(got.weight, 1.5)
