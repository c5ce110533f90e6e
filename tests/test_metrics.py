import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from deepscan_jax import metrics


@pytest.mark.parametrize("decimals", [6, 1, 0])
def test_auc_is_that_of_scikit_learn_ties_included(decimals):
  rng = np.random.default_rng(decimals)
  labels = rng.integers(0, 2, 300)
  scores = np.round(rng.normal(size=300) + labels, decimals)
  assert metrics.auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_auc_counts_pairs():
  labels, scores = np.array([0, 1, 0, 1, 1]), np.array([0.1, 0.1, 0.5, 0.7, 0.4])
  pairs = [(r, f) for r in scores[labels == 0] for f in scores[labels == 1]]
  expected = sum((f > r) + 0.5 * (f == r) for r, f in pairs) / len(pairs)
  assert metrics.auc(labels, scores) == pytest.approx(expected)


def test_auc_of_one_class_is_not_a_number():
  assert math.isnan(metrics.auc(np.ones(3), np.arange(3)))


def test_shares():
  labels, scores = np.array([0, 0, 1, 1]), np.array([-1.0, 0.0, 0.0, 1.0])
  assert metrics.accuracy(labels, scores) == 0.75
  assert metrics.accuracy(labels, scores, threshold=0.5) == 0.75
  assert metrics.false_positive_rate(scores[labels == 0], threshold=0.0) == 0.5
  assert metrics.paired_accuracy(np.array([0.0, 1.0, 2.0, 3.0]), np.array([1.0, 1.0, 1.0, 4.0])) == 0.625


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.1, 0.5])
@pytest.mark.parametrize("decimals", [6, 1])
def test_a_threshold_keeps_its_rate_and_is_the_lowest_that_does(rate, decimals):
  scores = np.round(np.random.default_rng(1).normal(size=87), decimals)
  threshold = metrics.threshold_at(scores, false_positive_rate=rate)
  assert metrics.false_positive_rate(scores, threshold=threshold) <= rate
  below = np.nextafter(threshold, -np.inf)
  assert metrics.false_positive_rate(scores, threshold=below) > rate


def test_the_bootstrap_draws_whole_groups():
  rng = np.random.default_rng(0)
  values = rng.normal(size=40)
  alone = metrics.bootstrap_interval(np.mean, values, groups=np.arange(40))
  # Ten copies of each example say no more than one.
  copies = metrics.bootstrap_interval(np.mean, np.repeat(values, 10), groups=np.repeat(np.arange(40), 10))
  np.testing.assert_allclose(copies, alone)
  flattered = metrics.bootstrap_interval(np.mean, np.repeat(values, 10), groups=np.arange(400))
  assert flattered[1] - flattered[0] < 0.5 * (alone[1] - alone[0])
  low, high = alone
  spread = values.std() / np.sqrt(40)
  assert low == pytest.approx(values.mean() - 1.96 * spread, abs=0.3 * spread)
  assert high == pytest.approx(values.mean() + 1.96 * spread, abs=0.3 * spread)


def test_the_bootstrap_repeats_and_skips_undefined_draws():
  labels, scores = np.array([0, 1, 0, 1]), np.array([0.0, 1.0, 0.5, 2.0])
  interval = metrics.bootstrap_interval(metrics.auc, labels, scores, groups=np.arange(4))
  assert interval == metrics.bootstrap_interval(metrics.auc, labels, scores, groups=np.arange(4))
  assert interval == (1.0, 1.0)


def test_the_interval_of_a_rate_is_that_of_the_textbook_and_honest_about_few():
  from scipy.stats import binomtest

  for hits, count in ((0, 45), (2, 45), (45, 45), (7, 1000)):
    expected = binomtest(hits, count).proportion_ci(method="wilson")
    assert metrics.wilson_interval(hits / count, count) == pytest.approx(tuple(expected), abs=1e-6)
  assert metrics.wilson_interval(0.0, 45)[1] > 0.05


def test_a_confusion_matrix_counts_each_label_by_what_it_is_called():
  labels, scores = np.array([0, 0, 0, 1, 1]), np.array([-1.0, 0.0, 2.0, -0.5, 3.0])
  assert metrics.confusion(labels, scores).tolist() == [[1, 2], [1, 1]]
  assert metrics.confusion(labels, scores, threshold=2.5).tolist() == [[3, 0], [1, 1]]


@pytest.mark.parametrize("decimals", [6, 1, 0])
def test_the_roc_curve_is_that_of_scikit_learn_ties_included(decimals):
  rng = np.random.default_rng(decimals)
  labels = rng.integers(0, 2, 300)
  scores = np.round(rng.normal(size=300) + labels, decimals)
  expected = roc_curve(labels, scores, drop_intermediate=False)
  for ours, theirs in zip(metrics.roc_curve(labels, scores), expected, strict=False):
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_a_thinned_curve_keeps_its_ends_and_its_area():
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 2, 5000)
  whole = metrics.roc_curve(labels, rng.normal(size=5000) + labels)
  thin = metrics.thinned_curve(*whole, points=100)
  assert len(thin[0]) <= 100 < len(whole[0])
  for full, few in zip(whole, thin, strict=True):
    assert (few[0], few[-1]) == (0, 1) and set(few) <= set(full)
  assert np.trapezoid(thin[1], thin[0]) == pytest.approx(np.trapezoid(whole[1], whole[0]), abs=2e-3)
  few = metrics.roc_curve(labels[:20], np.arange(20))
  for one, other in zip(metrics.thinned_curve(*few), few, strict=True):
    np.testing.assert_array_equal(one, other)
