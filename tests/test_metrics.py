import math

import numpy as np
import pytest
import sklearn.metrics
from sklearn.metrics import roc_auc_score

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


def test_intervals_hold_the_truth_as_often_as_they_say():
  """Coverage by simulation: of experiments whose AUC is known, the share whose interval holds it."""
  rng = np.random.default_rng(0)
  groups, each, common, shift = 60, 4, 0.8, 1.0
  # Scores are normal, of variance 1 + common^2; the AUC of two such is known.
  truth = 0.5 * (1 + math.erf(shift / math.sqrt(1 + common**2) / 2))
  group = np.repeat(np.arange(groups), each)
  label = group % 2
  experiments = 400
  held = {"groups": 0, "examples": 0}
  for _ in range(experiments):
    score = common * rng.normal(size=groups)[group] + rng.normal(size=len(group)) + shift * label
    for name, unit in (("groups", group), ("examples", np.arange(len(group)))):
      drawn = [
        metrics.Ranking.of(label, score, weights=w).auc() for w in metrics.bootstrap_weights(unit, draws=200)
      ]
      low, high = metrics.percentile_interval(np.concatenate(drawn))
      held[name] += low <= truth <= high
  coverage = {name: count / experiments for name, count in held.items()}
  # 95 % is promised; 200 draws of 60 groups, and 400 experiments, come so near to it.
  assert 0.91 <= coverage["groups"] <= 0.98
  # Examples of one group taken for independent ones claim to know more than they do.
  assert coverage["examples"] < coverage["groups"] - 0.05


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


def noisy(count: int = 300, *, decimals: int = 1, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Labels, scores with ties, and whole-numbered weights, some of them 0."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, 2, count)
  return labels, np.round(rng.normal(size=count) + labels, decimals), rng.integers(0, 4, count).astype(float)


@pytest.mark.parametrize("decimals", [6, 1, 0])
@pytest.mark.parametrize("weighted", [False, True])
def test_curves_are_those_of_scikit_learn_ties_and_weights_included(decimals, weighted):
  labels, scores, weights = noisy(decimals=decimals)
  weights = weights if weighted else None
  ranking = metrics.Ranking.of(labels, scores, weights=weights)
  theirs = {"sample_weight": weights}
  fpr, tpr, _ = sklearn.metrics.roc_curve(labels, scores, drop_intermediate=False, **theirs)
  if not weighted:  # scikit-learn leaves out what weighs nothing
    np.testing.assert_allclose(ranking.false_positive_rates, fpr, atol=1e-12)
    np.testing.assert_allclose(ranking.true_positive_rates, tpr, atol=1e-12)
  assert ranking.auc() == pytest.approx(roc_auc_score(labels, scores, **theirs), abs=1e-12)
  expected = sklearn.metrics.average_precision_score(labels, scores, **theirs)
  assert ranking.average_precision() == pytest.approx(expected, abs=1e-12)
  assert metrics.average_precision(labels, scores, weights=weights) == ranking.average_precision()
  assert ranking.false_positive_rate_at(0.95) == pytest.approx(fpr[tpr >= 0.95].min(), abs=1e-12)
  assert ranking.true_positive_rate_at(0.01) == pytest.approx(tpr[fpr <= 0.01].max(), abs=1e-12)
  # The equal error rate of an interpolated curve, found by bisection.
  low, high = 0.0, 1.0
  for _ in range(60):
    middle = (low + high) / 2
    low, high = (middle, high) if 1 - np.interp(middle, *_upright(fpr, tpr)) > middle else (low, middle)
  assert ranking.equal_error_rate() == pytest.approx(low, abs=1e-9)


def _upright(fpr: np.ndarray, tpr: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """np.interp wants rising positions; upright parts of the curve lean by next to nothing."""
  return fpr + 1e-13 * np.arange(len(fpr)), tpr


def test_the_equal_error_rate_is_interpolated():
  # Thresholds at (fpr, fnr) = (0, 1/2), (1/2, 1/2), ...: on the curve, not at the nearest of its points.
  labels, scores = np.array([1, 0, 1, 0]), np.array([4.0, 3.0, 2.0, 1.0])
  assert metrics.equal_error_rate(labels, scores) == pytest.approx(0.5)
  # Three reals and two fakes: (0, 1/2) and, with the tie, (2/3, 0): they cross at 2/7.
  labels, scores = np.array([1, 0, 0, 1, 0]), np.array([3.0, 2.0, 2.0, 2.0, 1.0])
  assert metrics.equal_error_rate(labels, scores) == pytest.approx(2 / 7)
  assert metrics.equal_error_rate(np.array([0, 1]), np.array([0.0, 1.0])) == 0.0
  assert metrics.equal_error_rate(np.array([0, 1]), np.array([1.0, 0.0])) == 1.0


def test_whole_weights_are_copies():
  labels, scores, weights = noisy(80)
  copies = np.repeat(np.arange(80), weights.astype(int))
  called, p = scores > 0.5, 1 / (1 + np.exp(-scores))

  def figures(rows, weights):
    ranking = metrics.Ranking.of(labels[rows], scores[rows], weights=weights)
    cases = metrics.Confusion.of(labels[rows], called[rows], weights=weights)
    bins = metrics.Reliability.of(labels[rows], p[rows], weights=weights)
    return [
      ranking.auc(),
      ranking.average_precision(),
      ranking.equal_error_rate(),
      ranking.false_positive_rate_at(0.95),
      ranking.true_positive_rate_at(0.01),
      *(getattr(cases, name) for name in ("accuracy", "precision", "recall", "false_positive_rate", "f1")),
      metrics.log_loss(labels[rows], p[rows], weights=weights),
      metrics.brier_score(labels[rows], p[rows], weights=weights),
      bins.expected_calibration_error(),
    ]

  np.testing.assert_allclose(figures(slice(None), weights), figures(copies, None), atol=1e-12)


def test_counts_at_a_threshold_are_those_of_scikit_learn():
  labels, scores, weights = noisy()
  called = scores >= 0.5
  cases = metrics.Confusion.of(labels, called, weights=weights)
  (tn, fp), (fn, tp) = sklearn.metrics.confusion_matrix(labels, called, sample_weight=weights)
  found = (cases.true_negatives, cases.false_positives, cases.false_negatives, cases.true_positives)
  assert found == (tn, fp, fn, tp) and cases.table() == [[tn, fp], [fn, tp]]
  for name, theirs in (
    ("accuracy", sklearn.metrics.accuracy_score),
    ("balanced_accuracy", sklearn.metrics.balanced_accuracy_score),
    ("precision", sklearn.metrics.precision_score),
    ("recall", sklearn.metrics.recall_score),
    ("f1", sklearn.metrics.f1_score),
  ):
    assert getattr(cases, name) == pytest.approx(theirs(labels, called, sample_weight=weights)), name
  assert cases.false_positive_rate == pytest.approx(fp / (fp + tn))


def test_losses_of_probabilities_are_those_of_scikit_learn():
  labels, scores, weights = noisy()
  p = 1 / (1 + np.exp(-scores))
  for w in (None, weights):
    expected = sklearn.metrics.log_loss(labels, p, sample_weight=w)
    assert metrics.log_loss(labels, p, weights=w) == pytest.approx(expected)
    expected = sklearn.metrics.brier_score_loss(labels, p, sample_weight=w)
    assert metrics.brier_score(labels, p, weights=w) == pytest.approx(expected)
  assert np.isfinite(metrics.log_loss(np.array([0, 1]), np.array([1.0, 0.0])))


def test_reliability_is_that_of_a_plain_loop():
  labels, scores, weights = noisy()
  p = np.append(1 / (1 + np.exp(-scores[:-1])), 1.0)
  bins = metrics.Reliability.of(labels, p, weights=weights, bins=10)
  gaps = 0.0
  for number in range(10):
    low, high = number / 10, (number + 1) / 10
    inside = (p >= low) & ((p < high) | (number == 9))
    weight = weights[inside].sum()
    assert bins.weight[number] == weight
    if weight:
      predicted = (weights * p)[inside].sum() / weight
      observed = (weights * labels)[inside].sum() / weight
      assert bins.predicted[number] == pytest.approx(predicted)
      assert bins.observed[number] == pytest.approx(observed)
      gaps += weight * abs(predicted - observed)
    else:
      assert np.isnan(bins.predicted[number])
  assert bins.expected_calibration_error() == pytest.approx(gaps / weights.sum())


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_alone_gives_no_ranking(label):
  labels, scores = np.full(5, label), np.arange(5.0)
  ranking = metrics.Ranking.of(labels, scores)
  for value in (
    ranking.auc(),
    ranking.average_precision(),
    ranking.equal_error_rate(),
    ranking.false_positive_rate_at(0.95),
    ranking.true_positive_rate_at(0.01),
    metrics.log_loss(labels, np.full(5, 0.5), weights=metrics.balanced(labels)),
  ):
    assert np.isnan(value)
  cases = metrics.Confusion.of(labels, scores > 10)
  assert np.isnan(cases.precision)
  assert np.isnan(cases.recall) == (label == 0) and np.isnan(cases.false_positive_rate) == (label == 1)


def test_balanced_weights_weigh_both_classes_the_same():
  labels = np.array([0, 0, 0, 1])
  weights = metrics.balanced(labels)
  assert weights[labels == 0].sum() == weights[labels == 1].sum() == pytest.approx(2.0)
  several = metrics.balanced(labels, np.array([[1.0, 1, 1, 1], [0, 3, 0, 1]]))
  np.testing.assert_allclose(several[:, labels == 0].sum(axis=1), several[:, labels == 1].sum(axis=1))


def test_what_a_call_is_worth_where_fakes_are_rare():
  # Of 10,000 files 100 are fake: 80 are found, and 99 of 9,900 reals are called so too.
  ppv, npv = metrics.predictive_values(np.array(0.8), np.array(0.01), prevalence=0.01)
  assert ppv == pytest.approx(80 / 179) and npv == pytest.approx(9801 / 9821)
  assert np.isnan(metrics.predictive_values(np.array(0.0), np.array(0.0), prevalence=0.01)[0])


def test_resamples_by_weight_are_those_of_the_plain_bootstrap():
  labels, scores, _ = noisy(200)
  groups = np.arange(200) // 4
  expected = metrics.bootstrap_interval(metrics.auc, labels, scores, groups=groups, draws=200)
  drawn = metrics.bootstrap_weights(groups, draws=200)
  values = np.concatenate([metrics.Ranking.of(labels, scores, weights=w).auc() for w in drawn])
  assert metrics.percentile_interval(values) == pytest.approx(expected, abs=1e-12)
  first = next(metrics.bootstrap_weights(groups, draws=200))
  np.testing.assert_array_equal(first, next(metrics.bootstrap_weights(groups, draws=200)))
  np.testing.assert_array_equal(first[:, ::4], first[:, 3::4])  # whole groups
  assert all(np.isnan(metrics.percentile_interval(np.array([np.nan]))))


def test_a_difference_on_one_side_of_nought_is_no_chance():
  assert metrics.two_sided_p(np.full(999, 0.1)) == pytest.approx(2 / 1000)
  assert metrics.two_sided_p(np.array([-1.0, 1.0] * 500)) == 1.0
  assert np.isnan(metrics.two_sided_p(np.array([np.nan])))


def upright_curve(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  ranking = metrics.Ranking.of(labels, scores)
  return ranking.false_positive_rates, ranking.true_positive_rates


def test_a_thinned_curve_keeps_its_ends_and_its_area():
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 2, 5000)
  whole = upright_curve(labels, rng.normal(size=5000) + labels)
  thin = metrics.thinned_curve(*whole, points=100)
  assert len(thin[0]) <= 100 < len(whole[0])
  for full, few in zip(whole, thin, strict=True):
    assert (few[0], few[-1]) == (0, 1) and set(few) <= set(full)
  assert np.trapezoid(thin[1], thin[0]) == pytest.approx(np.trapezoid(whole[1], whole[0]), abs=2e-3)
  few = upright_curve(labels[:20], np.arange(20))
  for one, other in zip(metrics.thinned_curve(*few), few, strict=True):
    np.testing.assert_array_equal(one, other)
