import math

import numpy as np
import pytest

from deepscan_jax.sequential import UNDECIDED, SequentialTest, fit_correlation, log_odds
from deepscan_jax.verdict import LIKELY_AUTHENTIC, LIKELY_MANIPULATED

STREAMS, WINDOWS = 800, 100


def ratios(*, manipulated: bool, drift: float, correlation: float = 0.0, seed: int = 0) -> np.ndarray:
  """[stream, window] log likelihood ratios of a calibrated model: normal, of variance twice the mean."""
  rng = np.random.default_rng(seed)
  shared = rng.normal(size=(STREAMS, 1)) * math.sqrt(correlation)
  own = rng.normal(size=(STREAMS, WINDOWS)) * math.sqrt(1 - correlation)
  return (drift if manipulated else -drift) + math.sqrt(2 * drift) * (shared + own)


def first_decisions(values: np.ndarray, **settings) -> list[str]:
  """What the first round that decides says of each stream."""
  said = []
  for stream in values:
    test = SequentialTest(round_windows=WINDOWS, **settings)
    said.append(next((d.state for d in map(test.add_ratio, stream) if d.rounds), UNDECIDED))
  return said


def share(said: list[str], state: str) -> float:
  return said.count(state) / len(said)


@pytest.mark.parametrize("most", [3.0, 50.0])
@pytest.mark.parametrize("drift", [0.3, 1.5])
def test_the_rates_hold_on_independent_windows(drift, most):
  settings = {"false_alarm_rate": 0.05, "miss_rate": 0.1, "correlation": 0.0, "most": most}
  real = first_decisions(ratios(manipulated=False, drift=drift), **settings)
  fake = first_decisions(ratios(manipulated=True, drift=drift, seed=1), **settings)
  assert 0 < share(real, LIKELY_MANIPULATED) <= 0.05
  assert 0 < share(fake, LIKELY_AUTHENTIC) <= 0.1
  # And it does decide.
  assert share(real, LIKELY_AUTHENTIC) > 0.9 and share(fake, LIKELY_MANIPULATED) > 0.85


def test_windows_that_err_together_need_the_discount():
  rates = {"false_alarm_rate": 0.05, "miss_rate": 0.1}
  real = ratios(manipulated=False, drift=1.0, correlation=0.3)
  fake = ratios(manipulated=True, drift=1.0, correlation=0.3, seed=1)
  # Taken for independent, they are called wrongly far more often than was said.
  assert share(first_decisions(real, correlation=0.0, **rates), LIKELY_MANIPULATED) > 0.1
  assert share(first_decisions(real, correlation=0.3, **rates), LIKELY_MANIPULATED) <= 0.05
  assert share(first_decisions(fake, correlation=0.3, **rates), LIKELY_AUTHENTIC) <= 0.1
  assert share(first_decisions(fake, correlation=0.3, **rates), LIKELY_MANIPULATED) > 0.4


def test_the_correlation_is_measured():
  for correlation in (0.0, 0.3, 0.6):
    streams = ratios(manipulated=False, drift=1.0, correlation=correlation)[:800, :20]
    assert fit_correlation(list(streams)) == pytest.approx(correlation, abs=0.04)
  with pytest.raises(ValueError, match="two streams"):
    fit_correlation([[1.0, 2.0]])


def test_weak_evidence_stays_weak_however_often_it_is_repeated():
  test = SequentialTest(correlation=0.2, round_windows=10_000)
  for _ in range(5000):
    said = test.add(0.6)
  assert said.state == UNDECIDED and said.evidence <= log_odds(0.6) / 0.2
  assert said.windows == 5000


def test_a_stream_that_changes_is_called_anew():
  test = SequentialTest()
  states = [test.add(0.05).state for _ in range(50)]
  assert states[-1] == LIKELY_AUTHENTIC and test.decision.rounds > 5
  after = [test.add(0.95) for _ in range(20)]
  changed = [i for i, said in enumerate(after) if said.changed]
  # Somebody else sits there: it takes one round at most to forget, and one to decide.
  assert after[-1].state == LIKELY_MANIPULATED and changed[-1] < 8


def test_a_round_without_a_decision_takes_the_last_one_back():
  test = SequentialTest(round_windows=10)
  while not test.add(0.01).rounds:
    pass
  assert test.decision.state == LIKELY_AUTHENTIC
  for _ in range(9):
    assert test.add(0.5).state == LIKELY_AUTHENTIC
  said = test.add(0.5)
  assert said.state == UNDECIDED and said.changed


def test_no_single_window_decides_and_one_that_was_not_judged_says_nothing():
  test = SequentialTest()
  assert test.add(1.0).evidence == 2.0 and test.decision.state == UNDECIDED
  before = test.decision
  assert test.add(None).evidence == before.evidence and test.decision.windows == 1
  for wrong in (1.5, float("nan")):
    with pytest.raises(ValueError, match=r"0 to 1"):
      test.add(wrong)
  with pytest.raises(ValueError, match="must be a number"):
    test.add_ratio(float("nan"))


def test_another_prior_is_taken_out():
  assert SequentialTest(prior=0.1).add(0.1).evidence == pytest.approx(0.0)


@pytest.mark.parametrize(
  "wrong",
  [
    {"false_alarm_rate": 0.0},
    {"miss_rate": 0.5},
    {"correlation": 1.0},
    {"correlation": -0.1},
    {"most": 0.0},
    {"prior": 1.0},
    {"round_windows": 0},
  ],
)
def test_settings_out_of_range_are_told(wrong):
  with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
    SequentialTest(**wrong)
