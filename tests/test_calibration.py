import json

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from deepscan_jax import metrics
from deepscan_jax.calibration import (
  METHODS,
  Calibration,
  calibrate,
  fit_isotonic,
  fit_platt,
  fit_temperature,
  pool_adjacent_violators,
  rate_to_show,
)
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
  fitted = calibrate(labels, logits + 9, real_logits=real, real_sources=sources, real_groups=sources)
  rates = {s: metrics.false_positive_rate(real[sources == s], threshold=fitted.manipulated) for s in "abc"}
  assert max(rates.values()) <= 0.05 and rates["b"] == 3 / 60 and rates["c"] < 0.01
  doubtful = [metrics.false_positive_rate(real[sources == s], threshold=fitted.inconclusive) for s in "abc"]
  assert max(doubtful) <= 0.2 < max(doubtful) + 1 / 60
  assert fitted.inconclusive < fitted.even and fitted.probability(fitted.even) == pytest.approx(0.5)


def test_nothing_is_called_authentic_that_is_more_probably_a_fake():
  labels, logits = scores(reals=500, fakes=500)
  real = np.random.default_rng(1).normal(size=200) + 3.0  # a source that is nearly as suspicious as a fake
  one = np.repeat("a", 200)
  for method in METHODS:
    fitted = calibrate(labels, logits, real_logits=real, real_sources=one, real_groups=one, method=method)
    assert fitted.inconclusive == fitted.even < fitted.manipulated
    assert fitted.probability(fitted.even) == pytest.approx(0.5)
    assert fitted.outcome(fitted.even + 1e-6) == "inconclusive"


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


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_of_logits_is_recovered(temperature):
  rng = np.random.default_rng(3)
  true = rng.normal(size=40_000) * 2
  labels = rng.random(40_000) < 1 / (1 + np.exp(-true))
  assert fit_temperature(labels, temperature * true) == pytest.approx(temperature, rel=0.03)


@pytest.mark.parametrize("seed", range(5))
def test_pooling_is_isotonic_regression(seed):
  rng = np.random.default_rng(seed)
  values, weights = np.round(rng.normal(size=60) + np.linspace(0, 2, 60), 1), rng.uniform(0.1, 3, 60)
  block, level = pool_adjacent_violators(values, weights)
  expected = IsotonicRegression().fit_transform(np.arange(60), values, sample_weight=weights)
  np.testing.assert_allclose(level[block], expected, atol=1e-9)
  assert (np.diff(level) > 0).all() and block[0] == 0 and block[-1] == len(level) - 1


def test_an_isotonic_fit_is_that_of_a_trusted_library_at_the_middles_of_its_steps():
  labels, logits = scores(reals=900, fakes=300)
  logits = np.round(logits, 1)  # ties
  targets = np.where(labels == 1, 301 / 302, 1 / 902)
  weights = np.where(labels == 1, 0.5 / 300, 0.5 / 900)
  expected = IsotonicRegression().fit(logits, targets, sample_weight=weights)
  curve = np.array(fit_isotonic(labels, logits))
  assert len(curve) > 5 and (np.diff(curve, axis=0) > 0).all()
  steps, place = np.unique(expected.predict(logits), return_inverse=True)
  middles = np.bincount(place, weights * logits) / np.bincount(place, weights)
  np.testing.assert_allclose(curve[:, 0], middles, atol=1e-6)
  np.testing.assert_allclose(1 / (1 + np.exp(-curve[:, 1])), steps, atol=1e-9)


def fitted(method: str, labels=None, logits=None) -> Calibration:
  if labels is None:
    labels, logits = scores(reals=400, fakes=300)
  real = np.asarray(logits)[np.asarray(labels) == 0]
  names = np.full(len(real), "a")
  return calibrate(
    labels,
    logits,
    real_logits=real,
    real_sources=names,
    real_groups=np.arange(len(real)).astype(str),
    method=method,
  )


@pytest.mark.parametrize("method", METHODS)
def test_no_method_changes_an_order_or_what_is_called_manipulated(method):
  found, plain = fitted(method), fitted("platt")
  logits = np.linspace(-20, 20, 2001)
  assert (np.diff(found.score(logits)) > 0).all() and np.isfinite(found.score(logits)).all()
  assert found.manipulated == plain.manipulated and found.inconclusive <= found.even
  for logit in logits[::50]:
    assert (found.outcome(logit) == LIKELY_MANIPULATED) == (plain.outcome(logit) == LIKELY_MANIPULATED)
    # What a report says of probabilities is what the logits say.
    assert found.thresholds.outcome(float(found.probability(logit))) == found.outcome(logit)
  assert isinstance(float(found.score(0.3)), float)


@pytest.mark.parametrize("method", METHODS)
def test_separable_scores_have_finite_probabilities(method):
  found = fitted(method, np.array([0, 0, 1, 1]), np.array([-2.0, -1.0, 1.0, 2.0]))
  p = found.probability(np.array([-30.0, -1.5, 0.0, 1.5, 30.0]))
  assert (np.diff(p) > 0).all() and 0 < p[1] < 0.5 < p[3] < 1


def test_scores_in_the_wrong_order_still_have_an_isotonic_fit():
  found = fitted("isotonic", np.array([1, 1, 0, 0]), np.array([-2.0, -1.0, 1.0, 2.0]))
  assert len(found.curve) == 1 and found.probability(0.0) == pytest.approx(0.5, abs=0.1)


def test_isotonic_helps_where_the_curve_is_no_sigmoid():
  rng = np.random.default_rng(4)

  def draw():
    logits = rng.uniform(-4, 4, 8000)
    # A step and a plateau.
    p = np.select([logits < -2, logits < 2], [0.05, 0.5], 0.95)
    return (rng.random(8000) < p).astype(int), logits

  (labels, logits), (others, unseen) = draw(), draw()
  error = {}
  for method in METHODS:
    p = fitted(method, labels, logits).probability(unseen)
    error[method] = float(metrics.Reliability.of(others, p).expected_calibration_error())
  assert error["isotonic"] < 0.03 < error["platt"]


@pytest.mark.parametrize("method", METHODS)
def test_a_calibration_comes_back_from_json(method):
  found = fitted(method)
  facts = json.loads(json.dumps(found.to_dict()))
  assert Calibration.from_dict(facts) == found and facts == found.to_dict()
  assert found.rates.real[2] <= 0.05 and sum(found.rates.fake) == pytest.approx(1)
  assert found.rates.real_groups == 400 and found.rates.fake_groups == 300


def test_a_calibration_of_an_earlier_version_is_read():
  facts = {
    "scale": 1.1, "offset": 0.2, "inconclusive": 0.5, "manipulated": 2.0, "false_positive_rate": 0.05
  }  # fmt: skip
  found = Calibration.from_dict(facts)
  assert found.method == "platt" and found.rates is None and found.score(2.0) == pytest.approx(2.4)
  assert found.to_dict() == {**facts, "method": "platt"}


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"method": "beta"}, "there are platt, temperature, isotonic"),
    ({"scale": 0.0}, "above 0, got 0"),
    ({"curve": ((0.0, 0.0),)}, "has a rising curve"),
    ({"method": "isotonic"}, "has a rising curve"),
    ({"method": "isotonic", "curve": ((0.0, 1.0), (1.0, 1.0))}, "has a rising curve"),
  ],
)
def test_what_is_no_calibration_is_refused(change, message):
  facts = {"scale": 1.0, "offset": 0.0, "inconclusive": 0.0, "manipulated": 1.0, "false_positive_rate": 0.05}
  with pytest.raises(ValueError, match=message):
    Calibration(**{**facts, **change})
