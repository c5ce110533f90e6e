"""The evaluation card: all figures of a model on some files, how they were made, and comparing two of them.

A card is plain values for JSON. What is undefined (an AUC without fakes, a precision where nothing is called)
is None, never NaN. Intervals are 95 % by a bootstrap over groups (a person, a source video, an occasion);
those of false alarms, and of rates of 0 or 1, are also no narrower than so many groups allow, for a resample
of no alarms has none. With fewer than LEAST_GROUPS groups of a class only rates have an interval, for
resamples of so few know nothing of the next one. Files without a score are in no figure; their share stands
beside each as `coverage`.
"""

import dataclasses
import datetime
import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from deepscan_jax import levels, metrics, perturb, protocols
from deepscan_jax.levels import Rows
from deepscan_jax.version import __version__

SCHEMA_VERSION = "1.1"
DRAWS = 1000
# What is read off the curve for the headline.
TPR, FPR = 0.95, 0.01
# Fewer groups of a class make an interval that should not be trusted; the card says so.
FEW_GROUPS = 20
LEAST_GROUPS = 5
# Figures of one model on one machine differ by less where its batches are put together in another way.
_NO_DIFFERENCE = 1e-6
# By what figures are broken down.
BREAKDOWNS = ("dataset", "source", "method", "compression", "face_size", "sharpness", "condition")
# Figures, in the order in which they are shown: name -> (words, whether higher is better).
FIGURES = {
  "auc": ("AUC", True),
  "average_precision": ("AP", True),
  "eer": ("EER", False),
  "fpr_at_tpr95": ("FPR at 95 % TPR", False),
  "tpr_at_fpr1": ("TPR at 1 % FPR", True),
  "accuracy": ("accuracy", True),
  "balanced_accuracy": ("balanced accuracy", True),
  "precision": ("precision", True),
  "recall": ("recall", True),
  "f1": ("F1", True),
  "false_positive_rate": ("false alarms", False),
  "log_loss": ("log loss", False),
  "brier": ("Brier score", False),
  "ece": ("ECE", False),
  "log_loss_balanced": ("log loss, classes weighted alike", False),
  "brier_balanced": ("Brier score, classes weighted alike", False),
  "ece_balanced": ("ECE, classes weighted alike", False),
}
COMPARED = (
  "auc",
  "average_precision",
  "eer",
  "accuracy",
  "recall",
  "false_positive_rate",
  "log_loss",
  "brier",
)
# Shares, and of which class: the groups of that class stand behind them.
_RATES = {"accuracy": None, "recall": 1, "false_positive_rate": 0}
_CURVE_POINTS = 160
_COMPRESSIONS = ("raw", "c0", "c23", "c40")


# What stands for a name that is hidden.
_HIDDEN_DIGITS = 16
_HIDDEN = re.compile(f"[0-9a-f]{{{_HIDDEN_DIGITS}}}")


class ProtocolError(ValueError):
  """Two cards whose figures do not compare; the message says why, and what to do."""


def make_card(
  scored,
  *,
  model: Mapping,
  protocol: protocols.Protocol,
  datasets: Sequence[str],
  split: str,
  thresholds: Mapping,
  builds: Mapping[str, str | None] | None = None,
  trained_on: Sequence[str] = (),
  prevalences: Sequence[float] = (0.01,),
  missing_score: float | None = None,
  cost: Mapping | None = None,
  faithfulness: Mapping | None = None,
  legacy: Mapping | None = None,
  draws: int = DRAWS,
  ladder=None,
  created: datetime.datetime | None = None,
) -> dict:
  """The card of what was scored.

  Args:
    scored: scoring.Scored.
    model: name, version, sha256, bytes, parameters.
    protocol: how it was scored.
    datasets, split: what.
    builds: by dataset the fingerprint of its build, where there is one.
    trained_on: the datasets that the model, or one that it began with, was trained on.
    thresholds: by part "inconclusive", "manipulated" and "false_positive_rate" of validation.
    prevalences: shares of fakes for which the worth of a call is worked out, each above 0 and below 1.
    missing_score: what a published protocol gives to videos without a score; adds a figure beside the others.
    cost: peak_memory_bytes and the like.
    faithfulness: faithfulness.figures of region maps; None where there are none.
    legacy: evaluation.measure_scores; its tables stand at the top of the card.
    draws: resamples of the bootstrap.
    ladder: scoring.Ladder; adds "robustness". It is no part of the protocol, for no other figure depends on
      it.
    created: the time that the card names as its own; None is now.

  Raises:
    ValueError: nothing was scored, or a prevalence out of range.
  """
  for prevalence in prevalences:
    if not 0 < prevalence < 1:
      raise ValueError(f"A prevalence must be above 0 and below 1, got {prevalence:g}.")
  sets = {"labelled": scored.labelled, **({"pairs": scored.pairs} if scored.pairs else {})}
  if not len(scored.labelled["video"]) and not scored.pairs:
    reasons = ", ".join(f"{reason}: {count}" for reason, count in _reasons(scored.missing).items())
    raise ValueError(
      f"None of the {len(scored.missing)} files got a score ({reasons}); there are no figures."
    )
  coverage = _coverage(scored)
  results = {name: _result(rows, protocol, scored, draws=draws) for name, rows in sets.items()}
  headline = headline_set(scored)
  level = protocol.level if len(sets[headline][protocol.level]) else "video"
  rows = sets[headline][level]
  main = results[headline]["levels"][level]
  card = {
    "schema_version": SCHEMA_VERSION,
    "deepscan_jax": __version__,
    "created": (created or datetime.datetime.now(datetime.UTC)).isoformat(timespec="seconds"),
    **(legacy or {}),
    "model": dict(model),
    "split": split,
    "datasets": list(datasets),
    "builds": dict(builds or {}),
    "protocol": protocol.to_dict(),
    "protocol_hash": protocol.hash,
    "thresholds": {part: dict(values) for part, values in thresholds.items()},
    "headline": {"set": headline, "level": level},
    "results": results,
    "coverage": coverage,
    "cross_dataset": cross_table(_cross_row(results[headline], protocol, trained_on)),
    "deployment": [_deployment(main, prevalence) for prevalence in prevalences],
    "cost": {**(cost or {}), "latency": _latency(scored.timings)},
    "as_published": _as_published(scored, missing_score),
    "faithfulness": dict(faithfulness) if faithfulness else None,
    "notes": [*scored.notes, *_notes(main, headline)],
    "settings": {"draws": draws, "reliability_bins": metrics.RELIABILITY_BINS},
    "scores": {
      "id": rows.id.tolist(),
      "group": rows.group.tolist(),
      "label": rows.label.tolist(),
      "score": rows.score.tolist(),
      "called": rows.called.tolist(),
    },
  }
  if ladder is not None:
    card |= _robustness(ladder, protocol.level, draws=draws)
  return _plain(card)


def without_names(card: Mapping) -> dict:
  """A card in which hashes stand for the names of files and groups, which may be those of people.

  The same name has the same hash in every card, so that such cards compare with each other; who knows a name
  can find it, who does not cannot. Scores are rounded to six digits, which moves no figure.
  """

  def hidden(names: Sequence[str]) -> list[str]:
    return [hashlib.sha256(name.encode()).hexdigest()[:_HIDDEN_DIGITS] for name in names]

  scores = dict(card["scores"])
  scores |= {key: hidden(scores[key]) for key in ("id", "group")}
  scores["score"] = [float(f"{value:.6g}") for value in scores["score"]]
  return {**card, "scores": scores}


def headline_set(scored) -> str:
  """Of which set the headline is: "labelled" files, or "pairs" where those are real ones alone.

  Args:
    scored: scoring.Scored.
  """
  labels = scored.labelled["video"].label
  return "labelled" if not scored.pairs or len(set(labels.tolist())) == 2 else "pairs"


def _robustness(ladder, level: str, *, draws: int) -> dict:
  """robustness: by perturbation, of each level from 0 on, its figures; and what they were made of."""
  level = level if all(len(rows[level]) for rungs in ladder.rungs.values() for rows in rungs) else "video"
  found, untouched = {}, None
  for name, rungs in ladder.rungs.items():
    found[name] = []
    for step, rows in enumerate(rungs):
      # Level 0 is the same for all.
      figures = untouched if step == 0 and untouched else figures_of(rows[level], draws=draws)
      untouched = untouched or figures
      found[name].append(
        {
          "level": step,
          "setting": perturb.find(name).say(step),
          "auc": figures["auc"]["value"],
          "interval": figures["auc"]["interval"],
          "detected": figures["recall"],
          "false_alarms": figures["false_positive_rate"],
        }
      )
  about = {
    "set": ladder.of,
    "level": level,
    "examples": ladder.examples,
    "of_examples": ladder.total,
    "count": untouched["count"],
  }
  return {"robustness": found, "robustness_of": about}


def figures_of(rows: Rows, *, draws: int = DRAWS) -> dict:
  """Every figure of some rows, with its interval.

  Returns:
    count: {rows, real, fake, groups, real_groups, fake_groups}; confusion: {true_positives, ...}; and by name
    of `FIGURES` {"value", "interval"}, both None where undefined.
  """
  values = _measure(rows, np.ones((1, len(rows))))
  resampled: dict[str, list[np.ndarray]] = {name: [] for name in FIGURES}
  if len(rows):
    for weights in metrics.bootstrap_weights(rows.group, draws=draws):
      for name, drawn in _measure(rows, weights).items():
        resampled[name].append(drawn)
  groups = {label: len(np.unique(rows.group[rows.label == label])) for label in (0, 1)}
  groups[None] = len(np.unique(rows.group))
  found: dict = {
    "count": {
      "rows": len(rows),
      "real": int((rows.label == 0).sum()),
      "fake": int((rows.label == 1).sum()),
      "groups": groups[None],
      "real_groups": groups[0],
      "fake_groups": groups[1],
    },
    "confusion": dataclasses.asdict(metrics.Confusion.of(rows.label, rows.called)),
  }
  few = _too_few(rows)
  for name in FIGURES:
    value = float(values[name][0])
    interval = None
    if math.isfinite(value) and (not few or name in _RATES):
      low, high = metrics.percentile_interval(np.concatenate(resampled[name]))
      if name in _RATES and (few or name == "false_positive_rate" or value in (0, 1)):
        least = metrics.wilson_interval(value, groups[_RATES[name]])
        low, high = np.fmin(low, least[0]), np.fmax(high, least[1])
      interval = [low, high] if math.isfinite(low) else None
    found[name] = {"value": value if math.isfinite(value) else None, "interval": interval}
  return found


def _too_few(rows: Rows) -> bool:
  """Whether a class that is there has too few groups for a bootstrap to know anything."""
  return any(
    len(np.unique(rows.group[rows.label == label])) < LEAST_GROUPS for label in np.unique(rows.label)
  )


def _measure(rows: Rows, weights: np.ndarray) -> dict[str, np.ndarray]:
  """Every figure for each of some weights [draw, row]: [draw], NaN where undefined."""
  ranking = metrics.Ranking.of(rows.label, rows.score, weights=weights)
  cases = metrics.Confusion.of(rows.label, rows.called, weights=weights)
  p, even = rows.probability, metrics.balanced(rows.label, weights)
  return {
    "auc": ranking.auc(),
    "average_precision": ranking.average_precision(),
    "eer": ranking.equal_error_rate(),
    "fpr_at_tpr95": ranking.false_positive_rate_at(TPR),
    "tpr_at_fpr1": ranking.true_positive_rate_at(FPR),
    "accuracy": cases.accuracy,
    "balanced_accuracy": cases.balanced_accuracy,
    "precision": cases.precision,
    "recall": cases.recall,
    "f1": cases.f1,
    "false_positive_rate": cases.false_positive_rate,
    "log_loss": metrics.log_loss(rows.label, p, weights=weights),
    "brier": metrics.brier_score(rows.label, p, weights=weights),
    "ece": metrics.Reliability.of(rows.label, p, weights=weights).expected_calibration_error(),
    "log_loss_balanced": metrics.log_loss(rows.label, p, weights=even),
    "brier_balanced": metrics.brier_score(rows.label, p, weights=even),
    "ece_balanced": metrics.Reliability.of(rows.label, p, weights=even).expected_calibration_error(),
  }


def _result(rows_of: Mapping[str, Rows], protocol: protocols.Protocol, scored, *, draws: int) -> dict:
  """Figures of one set of rows: by level, broken down at the protocol's level, and curves."""
  known: list[tuple[Rows, dict]] = []
  by_level = {}
  for level in protocols.LEVELS:
    rows = rows_of[level]
    if not len(rows):
      continue
    # Where a window is a frame, and a file one picture, levels are the same; they are measured once.
    same = next((figures for other, figures in known if _same(rows, other)), None)
    figures = same or figures_of(rows, draws=draws)
    known.append((rows, figures))
    files = len(scored.labelled["video"])
    by_level[level] = {**figures, "coverage": _share(files, files + len(scored.missing))}
  level = protocol.level if protocol.level in by_level else "video"
  rows = rows_of[level]
  by = {}
  for name, parts in _parts(rows).items():
    # One part alone is all of it.
    if len(parts) > 1 or name == "dataset":
      whole = by_level[level]
      by[name] = {
        part: {
          **(whole if keep.all() else figures_of(rows.take(keep), draws=draws)),
          "coverage": _coverage_of(scored, name, part),
        }
        for part, keep in parts.items()
      }
  return {"levels": by_level, "by": by, "curves": {level: curves(rows_of[level]) for level in by_level}}


def _same(a: Rows, b: Rows) -> bool:
  """Whether rows of two levels give the same figures."""
  return len(a) == len(b) and all(
    np.array_equal(getattr(a, name), getattr(b, name)) for name in ("score", "label", "called", "group")
  )


def _coverage_of(scored, name: str, part: str) -> float | None:
  """Which share of the files of a part got a score; None where files without one do not say their part."""
  files, missing = scored.labelled["video"], scored.missing
  if name == "compression":
    scored_of = [compression_of(dataset) for dataset in files.dataset.tolist()]
    missing_of = [compression_of(row.dataset) for row in missing]
  elif name in ("dataset", "source", "method"):
    scored_of, missing_of = getattr(files, name).tolist(), [getattr(row, name) for row in missing]
  else:
    return None
  if name == "source" and "" in missing_of:
    return None
  got, lost = scored_of.count(part), missing_of.count(part)
  return _share(got, got + lost)


def _parts(rows: Rows) -> dict[str, dict[str, np.ndarray]]:
  """By breakdown and part, which rows belong to it.

  Fakes of a method stand against all real ones of the datasets that hold the method; where those have none,
  against all there are.
  """
  columns = {
    "dataset": rows.dataset,
    "source": rows.source,
    "compression": np.array([compression_of(name) for name in rows.dataset]),
    "face_size": levels.bucket(rows.face_size_px, levels.FACE_SIZE_BUCKETS),
    "sharpness": levels.bucket(rows.sharpness, levels.SHARPNESS_BUCKETS),
    "condition": rows.condition,
  }
  found = {name: {part: values == part for part in _ordered(values)} for name, values in columns.items()}
  real, found["method"] = rows.label == 0, {}
  for method in filter(None, np.unique(rows.method).tolist()):
    of_method = rows.method == method
    beside = real & np.isin(rows.dataset, rows.dataset[of_method])
    found["method"][method] = of_method | (beside if beside.any() else real)
  return {name: found[name] for name in BREAKDOWNS}


def _ordered(values: np.ndarray) -> list[str]:
  """The different values: buckets as they follow each other, all else in order of name."""
  places = [name for buckets in (levels.FACE_SIZE_BUCKETS, levels.SHARPNESS_BUCKETS) for name, _ in buckets]
  there = set(values.tolist())
  return [name for name in places if name in there] + sorted(there - set(places))


def compression_of(dataset: str) -> str:
  """What a dataset's name says of its compression: "c23", "c40-jpeg95", "raw"; "as it is" where nothing."""
  parts = dataset.partition("/")[2].split("-")
  return "-".join(p for p in parts if p in _COMPRESSIONS or p.startswith("jpeg")) or "as it is"


def curves(rows: Rows) -> dict | None:
  """Points of the ROC (and so the DET) and the PR curve, and the reliability diagram; None without a class.

  Returns:
    roc: {fpr, tpr, threshold}; pr: {recall, precision}; reliability: {weight, predicted, observed} by bin,
    None in an empty one, with reliability_balanced of classes weighted alike. Thresholds are probabilities.
  """
  if len(set(rows.label.tolist())) < 2:
    return None
  ranking = metrics.Ranking.of(rows.label, rows.score)
  fpr, tpr = ranking.false_positive_rates, ranking.true_positive_rates
  at = _thinned(fpr, tpr)
  thresholds = 1 / (1 + np.exp(-np.clip(ranking.thresholds[at], -500, 500)))
  found = {
    "roc": {"fpr": fpr[at].tolist(), "tpr": tpr[at].tolist(), "threshold": thresholds.tolist()},
    "pr": {"recall": tpr[at][1:].tolist(), "precision": ranking.precisions[at][1:].tolist()},
  }
  for name, weights in (("reliability", None), ("reliability_balanced", metrics.balanced(rows.label))):
    bins = metrics.Reliability.of(rows.label, rows.probability, weights=weights)
    found[name] = {field: getattr(bins, field).tolist() for field in ("weight", "predicted", "observed")}
  return found


def _thinned(fpr: np.ndarray, tpr: np.ndarray) -> np.ndarray:
  """Indices of about _CURVE_POINTS points, dense where false alarms are rare; all where there are no more."""
  if len(fpr) <= _CURVE_POINTS:
    return np.arange(len(fpr))
  along = np.concatenate([[0.0], np.cumsum(np.diff(fpr) + np.diff(tpr))])
  even = np.searchsorted(along, np.linspace(0, along[-1], _CURVE_POINTS // 2))
  rare = np.searchsorted(fpr, np.geomspace(max(fpr[fpr > 0].min(), 1e-6), 1.0, _CURVE_POINTS // 2))
  return np.unique(np.clip(np.concatenate([[0], even, rare, [len(fpr) - 1]]), 0, len(fpr) - 1))


def _reasons(missing: Sequence) -> dict[str, int]:
  return dict(sorted(Counter(row.reason for row in missing).items()))


def _coverage(scored) -> dict:
  """How many files got a score, of each class and dataset, and why the others got none."""

  def part(keep_row: np.ndarray, missing: Sequence) -> dict:
    rows = scored.labelled["video"].take(keep_row)
    found = {"files": len(rows) + len(missing), "scored": len(rows), "reasons": _reasons(missing)}
    for label, name in ((0, "real"), (1, "fake")):
      got, lost = int((rows.label == label).sum()), sum(row.label == label for row in missing)
      found[name] = {"files": got + lost, "scored": got, "share": _share(got, got + lost)}
    return {**found, "share": _share(len(rows), len(rows) + len(missing))}

  rows = scored.labelled["video"]
  names = sorted(set(rows.dataset.tolist()) | {row.dataset for row in scored.missing})
  return {
    **part(np.ones(len(rows), bool), scored.missing),
    "by_dataset": {
      name: part(rows.dataset == name, [row for row in scored.missing if row.dataset == name])
      for name in names
    },
  }


def _share(part: int, whole: int) -> float | None:
  return part / whole if whole else None


def _cross_row(result: Mapping, protocol: protocols.Protocol, trained_on: Sequence[str]) -> dict:
  names = sorted({*protocol.train["datasets"], *trained_on})
  trained = {protocols.family(name) for name in names}
  level = protocol.level if protocol.level in result["levels"] else "video"
  tests = {
    name: {
      "auc": figures["auc"],
      "eer": figures["eer"],
      # The threshold of validation is one and the same: a rate that moves between datasets is its drift.
      "false_positive_rate": figures["false_positive_rate"],
      "recall": figures["recall"],
      "seen_in_training": protocols.family(name) in trained,
    }
    for name, figures in result["by"].get("dataset", {}).items()
  }
  return {
    "train": " + ".join(names),
    "tests": tests,
    "pooled": {
      name: result["levels"][level][name] for name in ("auc", "eer", "false_positive_rate", "recall")
    },
  }


def cross_table(*rows: Mapping) -> dict:
  """The table of train sets by test sets.

  Args:
    rows: {"train", "tests": {dataset: figures}, "pooled": figures} each.

  Returns:
    tests: the names of all test sets; rows, each with mean_auc_unseen, the mean over test sets that were not
    in training, None where there are none.
  """
  done = []
  for row in rows:
    unseen = [t["auc"]["value"] for t in row["tests"].values() if not t["seen_in_training"]]
    unseen = [value for value in unseen if value is not None]
    done.append({**row, "mean_auc_unseen": float(np.mean(unseen)) if unseen else None})
  return {"tests": sorted({name for row in rows for name in row["tests"]}), "rows": done}


def _deployment(figures: Mapping, prevalence: float) -> dict:
  """What a call is worth where fakes are as rare as this.

  Intervals are the worst and the best that the intervals of both rates allow.
  """
  recall, alarms = figures["recall"], figures["false_positive_rate"]
  found: dict = {"prevalence": prevalence}
  defined = recall["value"] is not None and alarms["value"] is not None
  for name in ("ppv", "npv", "false_alarms_per_10000", "found_per_10000", "missed_per_10000"):
    found[name] = {"value": None, "interval": None}
  if alarms["value"] is not None:
    per = 10_000 * (1 - prevalence)
    found["false_alarms_per_10000"] = _scaled(alarms, per)
  if recall["value"] is not None:
    per = 10_000 * prevalence
    found["found_per_10000"] = _scaled(recall, per)
    missed = {"value": 1 - recall["value"], "interval": [1 - end for end in recall["interval"][::-1]]}
    found["missed_per_10000"] = _scaled(missed, per)
  if defined:
    middle = metrics.predictive_values(recall["value"], alarms["value"], prevalence=prevalence)
    worst = metrics.predictive_values(recall["interval"][0], alarms["interval"][1], prevalence=prevalence)
    best = metrics.predictive_values(recall["interval"][1], alarms["interval"][0], prevalence=prevalence)
    for name, *values in zip(("ppv", "npv"), middle, worst, best, strict=True):
      value, low, high = (None if np.isnan(v) else float(v) for v in values)
      found[name] = {
        "value": value,
        "interval": [low, 1.0 if high is None else high] if low is not None else None,
      }
  return found


def _scaled(figure: Mapping, factor: float) -> dict:
  return {"value": factor * figure["value"], "interval": [factor * end for end in figure["interval"]]}


def _latency(timings: Mapping[str, Sequence[float]]) -> dict:
  """Seconds by stage: median, 95th percentile, mean and how many were measured.

  Compiling happens once in a program's life and is taken out of the total.
  """
  timings = {stage: np.asarray(values, np.float64) for stage, values in timings.items() if len(values)}
  if "total_s" in timings and len(timings.get("compile_s", ())) == len(timings["total_s"]):
    timings["total_s"] = timings["total_s"] - timings["compile_s"]
  return {
    stage: {
      "median": float(np.median(values)),
      "p95": float(np.percentile(values, 95)),
      "mean": float(values.mean()),
      "count": len(values),
    }
    for stage, values in timings.items()
  }


def _as_published(scored, missing_score: float | None) -> dict | None:
  """The AUC of videos where files without a score get the one that a published protocol gives them."""
  if missing_score is None:
    return None
  rows = scored.labelled["video"]
  lost = [row for row in scored.missing if row.reason not in _NEVER_ASKED]
  labels = np.append(rows.label, [row.label for row in lost])
  scores = np.append(rows.probability, [missing_score] * len(lost))
  return {
    "missing_score": missing_score,
    "files_that_got_it": len(lost),
    "auc": None if len(set(labels.tolist())) < 2 else metrics.auc(labels, scores),
    "log_loss": float(metrics.log_loss(labels, scores)) if len(labels) else None,
  }


# Of these it is not the model, nor the file, that no score was had.
_NEVER_ASKED = ("label_unknown", "stored_as_pictures", "missing_file")


def _notes(main: Mapping, headline: str) -> list[str]:
  notes = []
  if headline == "pairs":
    notes.append(
      "The fakes are pseudo-fakes, made of the real examples; these figures say nothing of real forgeries."
    )
  count = main["count"]
  for label in ("real", "fake"):
    if 0 < count[f"{label}_groups"] < FEW_GROUPS:
      groups = count[f"{label}_groups"]
      notes.append(
        f"Only {groups} independent group{'s' * (groups != 1)} of {label} files stand{'s' * (groups == 1)} "
        "behind the figures: "
        + (
          "too few for intervals."
          if groups < LEAST_GROUPS
          else "intervals of so few are somewhat too narrow."
        )
      )
    if not count[label]:
      notes.append(f"There are no {label} files, so nothing that ranks both classes is defined.")
  return notes


# Rows and comparisons -----------------------------------------------------------------------------------

_ROW_FIGURES = ("auc", "average_precision", "eer", "accuracy", "fpr_at_tpr95", "tpr_at_fpr1")


def markdown_header() -> str:
  """The two lines above `markdown_row`."""
  words = ["model", "trained on", "tested on", "level", "files", "coverage"]
  words += [FIGURES[name][0] for name in _ROW_FIGURES] + ["protocol"]
  return f"| {' | '.join(words)} |\n|{'---|' * len(words)}"


def markdown_row(card: Mapping) -> str:
  """One row of Markdown with a card's headline; intervals in brackets."""
  where = card["headline"]
  main = card["results"][where["set"]]["levels"][where["level"]]
  tested = f"{' + '.join(card['datasets'])} ({card['split']})"
  if where["set"] == "pairs":
    tested += ", pseudo-fakes"
  cells = [
    f"{card['model']['name']} {card['model']['version']}",
    " + ".join(card["protocol"]["train"]["datasets"]),
    tested,
    where["level"],
    f"{main['count']['rows']}",
    percent(card["coverage"]["share"]),
    *(with_interval(main[name]) for name in _ROW_FIGURES),
    f"{card['protocol']['preprocessing']} {card['protocol_hash'][:8]}",
  ]
  return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def with_interval(figure: Mapping, *, digits: int = 3) -> str:
  """A figure for people: "0.923 (0.915 to 0.931)", "-" where it is undefined."""
  if figure["value"] is None:
    return "-"
  shown = f"{figure['value']:.{digits}f}"
  if figure["interval"] is None:
    return shown
  low, high = figure["interval"]
  return f"{shown} ({low:.{digits}f} to {high:.{digits}f})"


def percent(share: float | None) -> str:
  """A share for people."""
  return "-" if share is None else f"{100 * share:.1f} %"


def check_card(card: Mapping, name: str) -> None:
  """Raises ValueError where a file is no evaluation card, or its protocol was changed after it was hashed."""
  wanted = {"schema_version", "protocol", "protocol_hash", "headline", "scores", "model", "results"}
  if not isinstance(card, Mapping) or wanted - set(card):
    raise ValueError(f"{name} is no evaluation card; `deepscan evaluate --workdir=FOLDER` writes one.")
  if protocols.protocol_hash(card["protocol"]) != card["protocol_hash"]:
    raise ValueError(f"The protocol in {name} is not the one that its hash was made of; evaluate again.")


def compare(
  a: Mapping, b: Mapping, *, allow_different: bool = False, draws: int = DRAWS, seed: int = 0
) -> dict:
  """Compares the headlines of two cards on the files that both scored: a paired bootstrap over groups.

  Args:
    a, b: cards.
    allow_different: compare cards of different protocols all the same.
    draws: resamples; each draws the same groups for both.
    seed: of the draws.

  Returns:
    models, files (common, only_a, only_b), protocol_differences, and figures: by name {a, b, difference,
    interval, p, distinguishable}, difference b - a; distinguishable: the 95 % interval does not hold 0, nor a
    difference so small that rounding makes it.
    interval and p are None, and nothing is distinguishable, with fewer than LEAST_GROUPS groups of a class.
    auc is the one to decide by; the others are not corrected for being many.

  Raises:
    ProtocolError: protocols differ, or headlines, or labels, or no file is common.
  """
  differ = protocols.differences(a["protocol"], b["protocol"])
  if a["headline"] != b["headline"]:
    raise ProtocolError(
      f"The headlines are of {_headline(a)} and {_headline(b)}, whose files are not the same; evaluate both "
      "alike."
    )
  if a["protocol_hash"] != b["protocol_hash"] and not allow_different:
    raise ProtocolError(
      f"The cards follow different protocols ({'; '.join(differ)}); their figures do not compare. "
      "--allow_different_protocols compares them all the same."
    )
  builds = [{k: v for k, v in card.get("builds", {}).items() if v} for card in (a, b)]
  rebuilt = sorted(name for name in builds[0].keys() & builds[1].keys() if builds[0][name] != builds[1][name])
  if rebuilt:
    differ.append(f"the builds of {', '.join(rebuilt)}")
    if not allow_different:
      raise ProtocolError(
        f"The cards were made of different builds of {', '.join(rebuilt)}; evaluate both on one of them, or "
        "give --allow_different_protocols."
      )
  a, b = _named_alike(a, b)
  one, other = (
    dict(zip(card["scores"]["id"], range(len(card["scores"]["id"])), strict=True)) for card in (a, b)
  )
  common = sorted(one.keys() & other.keys())
  if not common:
    raise ProtocolError("The cards have no scored file in common; evaluate both on the same datasets.")
  rows = [_compared(card, [at[i] for i in common]) for card, at in ((a, one), (b, other))]
  if not np.array_equal(rows[0].label, rows[1].label):
    wrong = common[int(np.flatnonzero(rows[0].label != rows[1].label)[0])]
    raise ProtocolError(
      f"The cards do not agree whether {wrong} is fake: they are of other data, or of models that read other "
      "parts of it."
    )
  values = [_measure(r, np.ones((1, len(r)))) for r in rows]
  drawn: dict[str, list[np.ndarray]] = {name: [] for name in COMPARED}
  for weights in metrics.bootstrap_weights(rows[0].group, draws=draws, seed=seed):
    measured = [_measure(r, weights) for r in rows]
    for name in COMPARED:
      drawn[name].append(measured[1][name] - measured[0][name])
  figures = {}
  for name in COMPARED:
    first, second = (float(v[name][0]) for v in values)
    differences = np.concatenate(drawn[name])
    low, high, p = *metrics.percentile_interval(differences), metrics.two_sided_p(differences)
    if _too_few(rows[0]):
      low = high = p = math.nan
    figures[name] = {
      "a": first,
      "b": second,
      "difference": second - first,
      "interval": [low, high],
      "p": p,
      "distinguishable": bool(low > _NO_DIFFERENCE or high < -_NO_DIFFERENCE),
    }
  return _plain(
    {
      "models": [dict(a["model"]), dict(b["model"])],
      "headline": dict(a["headline"]),
      "files": {"common": len(common), "only_a": len(one) - len(common), "only_b": len(other) - len(common)},
      "groups": len(np.unique(rows[0].group)),
      "protocol_differences": differ,
      "figures": figures,
    }
  )


def comparison_sentence(result: Mapping) -> str:
  """What a comparison says, in one sentence."""
  auc = result["figures"]["auc"]
  name = "auc" if auc["difference"] is not None else "accuracy"
  row, words = result["figures"][name], FIGURES[name][0]
  low, high = row["interval"] or (None, None)
  if low is None:
    return (
      f"Not distinguishable: too few groups of files for an interval of the difference in {words} (at least "
      f"{LEAST_GROUPS} of each class are needed)."
    )
  facts = (
    f"{words} {row['a']:.3f} and {row['b']:.3f}, difference {row['difference']:+.3f}, 95 % {low:+.3f} to "
    f"{high:+.3f}"
  )
  if not row["distinguishable"]:
    return f"Not distinguishable: {facts}, p = {row['p']:.3f}."
  better = "second" if (row["difference"] > 0) == FIGURES[name][1] else "first"
  return f"The {better} is better: {facts}, p = {row['p']:.3f}."


def comparison_markdown(result: Mapping) -> str:
  """A comparison as a sentence, a table, and what to mind."""
  files = result["files"]
  lines = [
    comparison_sentence(result),
    "",
    f"Paired bootstrap over {result['groups']} groups of the {files['common']} files that both scored "
    f"({files['only_a']} by the first only, {files['only_b']} by the second only).",
    "",
    "| figure | first | second | difference | 95 % | p | |",
    "|---|---|---|---|---|---|---|",
  ]
  for name, row in result["figures"].items():
    if row["difference"] is None or row["interval"][0] is None:
      continue
    low, high = row["interval"]
    said = "differs" if row["distinguishable"] else "not distinguishable"
    lines.append(
      f"| {FIGURES[name][0]} | {row['a']:.4f} | {row['b']:.4f} | {row['difference']:+.4f} | {low:+.4f} to "
      f"{high:+.4f} | {row['p']:.3f} | {said} |"
    )
  if result["protocol_differences"]:
    lines += ["", f"The protocols differ: {'; '.join(result['protocol_differences'])}."]
  return "\n".join(lines)


def _named_alike(a: Mapping, b: Mapping) -> tuple[Mapping, Mapping]:
  """The cards, with hashes for names in both where they stand in one."""
  hidden = [all(_HIDDEN.fullmatch(name) for name in card["scores"]["id"]) for card in (a, b)]
  if hidden[0] == hidden[1]:
    return a, b
  return (a, without_names(b)) if hidden[0] else (without_names(a), b)


def _headline(card: Mapping) -> str:
  return f"{card['headline']['set']} {card['headline']['level']}s"


def _compared(card: Mapping, at: Sequence[int]) -> Rows:
  """The columns of a card's scores that a comparison needs, as rows."""
  scores = {name: np.array([values[i] for i in at]) for name, values in card["scores"].items()}
  blank = np.full(len(at), "")
  nothing = {name: blank for name in levels.COLUMNS if name not in scores}
  unknown = np.full(len(at), np.nan)
  return Rows(**{**nothing, **scores, "face_size_px": unknown, "sharpness": unknown, "doubtful": blank != ""})


def _plain(value):
  """Plain values: no NaN, no numpy."""
  if isinstance(value, Mapping):
    return {str(key): _plain(v) for key, v in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(v) for v in value]
  if isinstance(value, np.ndarray):
    return _plain(value.tolist())
  if isinstance(value, bool | np.bool_):
    return bool(value)
  if isinstance(value, int | np.integer):
    return int(value)
  if isinstance(value, float | np.floating):
    return float(value) if math.isfinite(value) else None
  return value
