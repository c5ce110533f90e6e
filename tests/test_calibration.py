import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from deepscan_jax import metrics
from deepscan_jax.calibration import Calibration, calibrate, fit_platt, rate_to_show
from deepscan_jax.verdict import INCONCLUSIVE, LIKELY_AUTHENTIC, LIKELY_MANIPULATED


def scores(*, reals: int, fakes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
  rng = np.random.default_rng(seed)
  labels = np.repeat([0, 1], [reals, fakes])
  return labels, rng.normal(size=reals + fakes) * 1.5 + 2 * labels - 0.3


def test_platt_scaling_is_a_balanced_logistic_regression():
  labels, logits = scores(reals=6000, fakes=2000)
  scale, offset = fit_platt(labels, logits)
  model = LogisticRegression(C=1e6, class_weight="balanced", tol=1e-8).fit(logits[:, None], labels)
  assert scale == pytest.approx(model.coef_[0, 0], rel=5e-3)
  assert offset == pytest.approx(model.intercept_[0], rel=5e-3, abs=5e-3)


def test_platt_scaling_with_its_smoothed_targets_is_a_weighted_logistic_regression():
  labels, logits = scores(reals=12, fakes=7)
  targets = np.where(labels == 1, 8 / 9, 1 / 14)
  weights = np.where(labels == 1, 0.5 / 7, 0.5 / 12)
  model = LogisticRegression(C=1e8, tol=1e-10, max_iter=1000).fit(
    np.tile(logits, 2)[:, None],
    np.repeat([1, 0], len(labels)),
    sample_weight=np.concatenate([weights * targets, weights * (1 - targets)]),
  )
  np.testing.assert_allclose(fit_platt(labels, logits), (model.coef_[0, 0], model.intercept_[0]), rtol=2e-3)


def test_separable_scores_have_a_finite_fit():
  scale, offset = fit_platt(np.array([0, 0, 1, 1]), np.array([-2.0, -1.0, 1.0, 2.0]))
  assert 0 < scale < 10 and abs(offset) < 1e-3


def test_one_class_alone_is_refused():
  with pytest.raises(ValueError, match="needs both classes, got 3 fake and 0 real"):
    fit_platt(np.ones(3), np.arange(3.0))


def test_thresholds_hold_their_rate_on_every_source():
  labels, logits = scores(reals=500, fakes=500)
  rng = np.random.default_rng(1)
  sources = np.repeat(["a", "b", "c"], [200, 60, 400])
  real = rng.normal(size=660) + np.repeat([0.0, 1.5, -1.0], [200, 60, 400])
  # Each picture in a group of its own source's: too few groups for more than the plain rate.
  fitted = calibrate(labels, logits, real_logits=real, real_sources=sources, real_groups=sources)
  rates = {s: metrics.false_positive_rate(real[sources == s], threshold=fitted.manipulated) for s in "abc"}
  assert max(rates.values()) <= 0.05 and rates["b"] == 3 / 60 and rates["c"] < 0.01
  doubtful = [metrics.false_positive_rate(real[sources == s], threshold=fitted.inconclusive) for s in "abc"]
  assert max(doubtful) <= 0.2 < max(doubtful) + 1 / 60


def test_a_rate_is_held_with_confidence_where_there_are_groups_enough():
  labels, logits = scores(reals=500, fakes=500)
  rng = np.random.default_rng(2)
  many, few = rng.normal(size=400), rng.normal(size=40) + 1.0

  def fitted(*sources, pictures_in_a_group=1):
    names = np.repeat(["a", "b"][: len(sources)], [len(s) for s in sources])
    groups = np.concatenate([np.arange(len(s)) // pictures_in_a_group for s in sources])
    real = np.concatenate(sources)
    return calibrate(labels, logits, real_logits=real, real_sources=names, real_groups=groups).manipulated

  # 0.05 - 1.96 * sqrt(0.05 * 0.95 / 400) = 0.0286: 11 of 400.
  assert metrics.false_positive_rate(many, threshold=fitted(many)) == 11 / 400
  # With 100 groups 0.0073.
  assert metrics.false_positive_rate(many, threshold=fitted(many, pictures_in_a_group=4)) == 2 / 400
  # The few decide here, at the plain rate: 2 of 40.
  assert metrics.false_positive_rate(few, threshold=fitted(many, few)) == 2 / 40


def test_the_rate_to_show_is_the_one_whose_interval_ends_at_the_rate():
  for rate, groups in ((0.05, 93), (0.2, 60)):
    assert metrics.wilson_interval(rate_to_show(rate, groups), groups)[1] == pytest.approx(rate)


def test_the_rate_to_show_keeps_the_true_one_below_with_confidence():
  rng = np.random.default_rng(0)
  for true, groups in ((0.05, 93), (0.2, 60)):
    seen = rng.binomial(groups, true, 20_000) / groups
    # A set that shows so little although its true rate is higher is one of forty, or rarer.
    assert np.mean(seen <= rate_to_show(true, groups)) <= 0.025 + 0.01
  assert rate_to_show(0.05, 72) == 0.05 and 0 <= rate_to_show(0.05, 73) < 0.001
  assert rate_to_show(0.05, 10**8) == pytest.approx(0.05, abs=1e-4)


def test_outcomes_change_at_the_thresholds_and_probabilities_keep_the_order():
  calibration = Calibration(
    scale=2.0, offset=-1.0, inconclusive=0.2, manipulated=0.9, false_positive_rate=0.05
  )
  assert [calibration.outcome(x) for x in (-9, 0.19, 0.2, 0.89, 0.9, 9)] == [
    *[LIKELY_AUTHENTIC] * 2,
    *[INCONCLUSIVE] * 2,
    *[LIKELY_MANIPULATED] * 2,
  ]
  logits = np.array([-1e6, -1.0, 0.2, 0.5, 0.9, 1e6])
  probabilities = calibration.probability(logits)
  assert np.all(np.diff(probabilities) > 0) and probabilities[0] >= 0 and probabilities[-1] <= 1
  assert probabilities[3] == 0.5
  thresholds = calibration.thresholds
  assert (thresholds.inconclusive, thresholds.manipulated) == pytest.approx(tuple(probabilities[[2, 4]]))
  assert thresholds.false_positive_rate == 0.05
