"""Decides on a stream while it runs: a sequential probability ratio test with stated error rates.

Wald ("Sequential tests of statistical hypotheses", 1945): add up log likelihood ratios until the sum leaves
an interval. A window's log likelihood ratio is its calibrated log odds less the log odds of the prior that
the calibration assumes (one half, so 0; see deepscan_jax/calibration.py). Three things keep windows of one
stream from being what Wald's test takes them for:

- They are not independent: the same person, camera and light are in all of them, and what misleads the model
  in one misleads it in the next. If log ratios have the correlation r between any two windows of a stream
  (and are normal), the log ratio of n windows is exactly their sum over 1 + (n - 1) r, the design effect
  (Kish, "Survey Sampling", 1965). However long the stream, its windows are worth no more than 1 / r
  independent ones: weak evidence does not become strong by being repeated.
- A calibration is wrong most where it is most certain. Each ratio is therefore cut off at +-`most` (Huber, "A
  robust version of the probability ratio test", 1965), so that no single window decides. Where the ratios of
  the two classes mirror each other this can only lower the rates: what is cut off above takes more from the
  mean of exp(ratio) than what is cut off below adds.
- A stream changes; somebody else may sit down in the middle of a call. Whenever the test has decided, and
  after `round_windows` windows without a decision, it begins anew, so that what is old weighs nothing.

The limits are log(1 / false_alarm_rate) and -log(1 / miss_rate): by Ville's inequality ("Etude critique de la
notion de collectif", 1939) a round that begins on an authentic stream is called manipulated with a
probability of at most the false alarm rate, however long it goes on, and one on a manipulated stream
authentic with at most the miss rate.

What these rates rest on, and so what they are not: the calibration has to hold for streams like this one
(another camera, codec or kind of forgery than in the validation data may break it; nothing here can notice),
the correlation has to be no smaller than it is said to be (`fit_correlation` measures it), and they are rates
of one round, of streams drawn at random: a stream of many rounds gives a false alarm now and then, and a
stream that misled one round will mislead the next.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from deepscan_jax.verdict import LIKELY_AUTHENTIC, LIKELY_MANIPULATED

UNDECIDED = "undecided"
STATES = (UNDECIDED, LIKELY_AUTHENTIC, LIKELY_MANIPULATED)
# A round lasts so many times as many windows as are worth half of what any number of them is.
_HALVES = 5.0
_LEAST_ROUND, _LONGEST_ROUND = 20, 500


@dataclasses.dataclass(frozen=True)
class Decision:
  """What is decided so far.

  Attributes:
    state: one of STATES: what the last round decided; undecided at the beginning, and again once a whole
      round has passed without a decision.
    since: the number of windows, of those that count, after which the state became what it is.
    evidence: log likelihood ratio of the present round, discounted; above 0 it speaks for manipulation.
    windows: that count in the present round.
    rounds: that have ended with a decision.
    changed: whether the state is another than before the last window.
  """

  state: str = UNDECIDED
  since: int = 0
  evidence: float = 0.0
  windows: int = 0
  rounds: int = 0
  changed: bool = False


class SequentialTest:
  """The test; give it the probability of one window after the other.

  Args:
    false_alarm_rate: of rounds on authentic streams, at most so many are called manipulated.
    miss_rate: of rounds on manipulated streams, at most so many are called authentic.
    correlation: between the log likelihood ratios of any two windows of a stream of one class; 0: they are
      independent.
    most: the largest log likelihood ratio that one window may have.
    prior: the share of fakes that probabilities assume.
    round_windows: after so many windows without a decision a round ends; None: as many as are worth about
      five sixths of all, at least 20 and at most 500.

  Attributes:
    decision: the present Decision.

  Raises:
    ValueError: an argument out of its range.
  """

  def __init__(
    self,
    *,
    false_alarm_rate: float = 0.05,
    miss_rate: float = 0.1,
    correlation: float = 0.5,
    most: float = 2.0,
    prior: float = 0.5,
    round_windows: int | None = None,
  ):
    for name, rate in (("false_alarm_rate", false_alarm_rate), ("miss_rate", miss_rate), ("prior", prior)):
      least_wrong = 1.0 if name == "prior" else 0.5
      if not 0 < rate < least_wrong:
        raise ValueError(f"{name} must be above 0 and below {least_wrong:g}, got {rate:g}.")
    if not 0 <= correlation < 1:
      raise ValueError(f"correlation must be 0 or more and below 1, got {correlation:g}.")
    if not most > 0:
      raise ValueError(f"most must be above 0, got {most:g}.")
    if round_windows is None:
      wanted = _HALVES * (1 - correlation) / correlation if correlation else math.inf
      round_windows = int(min(max(wanted, _LEAST_ROUND), _LONGEST_ROUND))
    if round_windows < 1:
      raise ValueError(f"round_windows must be 1 or more, got {round_windows}.")
    self.upper, self.lower = math.log(1 / false_alarm_rate), -math.log(1 / miss_rate)
    self.correlation, self.most, self.round_windows = correlation, most, round_windows
    self._prior_log_odds = math.log(prior) - math.log1p(-prior)
    self._sum, self._count, self._all = 0.0, 0, 0
    self.decision = Decision()

  def add(self, probability: float | None) -> Decision:
    """Counts one window and returns the new Decision; one that was not judged (None) changes nothing."""
    if probability is None:
      self.decision = dataclasses.replace(self.decision, changed=False)
      return self.decision
    return self.add_ratio(log_odds(probability) - self._prior_log_odds)

  def add_ratio(self, ratio: float) -> Decision:
    """As `add`, of a log likelihood ratio.

    Raises:
      ValueError: it is not a number.
    """
    if math.isnan(ratio):
      raise ValueError("A log likelihood ratio must be a number.")
    self._sum += min(max(ratio, -self.most), self.most)
    self._count += 1
    self._all += 1
    evidence = self._sum / (1 + (self._count - 1) * self.correlation)
    before = self.decision
    state, rounds, windows = before.state, before.rounds, self._count
    if evidence >= self.upper or evidence <= self.lower:
      state = LIKELY_MANIPULATED if evidence >= self.upper else LIKELY_AUTHENTIC
      rounds += 1
      self.restart()
    elif self._count >= self.round_windows:
      state = UNDECIDED
      self.restart()
    changed = state != before.state
    since = self._all if changed else before.since
    self.decision = Decision(state, since, evidence, windows, rounds, changed)
    return self.decision

  def restart(self) -> None:
    """Forgets the present round; what is decided stays until another round has ended."""
    self._sum, self._count = 0.0, 0


def log_odds(probability: float) -> float:
  """log(p / (1 - p)); infinite at 0 and 1."""
  if not 0 <= probability <= 1:
    raise ValueError(f"A probability must be 0 to 1, got {probability:g}.")
  if probability in (0.0, 1.0):
    return math.inf if probability else -math.inf
  return math.log(probability) - math.log1p(-probability)


def fit_correlation(streams: Sequence[Sequence[float]]) -> float:
  """The correlation between any two windows of a stream, by one-way analysis of variance.

  The estimator is that of Donner ("A review of inference procedures for the intraclass correlation
  coefficient", 1986); it is 0 where streams differ by no more than their windows do.

  Args:
    streams: of each stream of one class (all authentic, or all of one kind of forgery) the log likelihood
      ratios of its windows, cut off as SequentialTest does.

  Raises:
    ValueError: fewer than two streams, or none with two windows.
  """
  values = [np.asarray(stream, np.float64) for stream in streams if len(stream)]
  sizes = np.array([len(x) for x in values], np.float64)
  total, count = sizes.sum(), len(values)
  if count < 2 or total <= count:
    raise ValueError("A correlation needs two streams or more, one of them with two windows or more.")
  means = np.array([x.mean() for x in values])
  whole = float((sizes * means).sum() / total)
  between = float((sizes * (means - whole) ** 2).sum() / (count - 1))
  within = float(sum(((x - m) ** 2).sum() for x, m in zip(values, means, strict=True)) / (total - count))
  usual = (total - (sizes**2).sum() / total) / (count - 1)
  spread = between + (usual - 1) * within
  return float(min(max((between - within) / spread, 0.0), 1.0)) if spread > 0 else 0.0
