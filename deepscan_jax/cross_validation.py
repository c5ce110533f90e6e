"""Cross-validation: one run for each fold of train and validation together, and their figures side by side.

Each fold is a whole run of training.py in WORKDIR/fold_0, fold_1 and so on, with a model, checkpoints and a
resumption of its own, so that folds may be trained on different machines and their folders be brought
together afterwards. When a fold is done, its best model scores what it has not seen; when all are, every
example of train and validation has been scored once by a model that has seen nobody who is in it
(deepscan_jax.folds). The test split is never opened.

A fold's best model is chosen on the very examples that it is then scored on, so the figures flatter a
little, the more so the more often a run validates; a figure to publish comes from the test split.
"""

import dataclasses
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from deepscan_jax import checkpoints, data, evaluation, examples, training
from deepscan_jax.config import Config, to_dict
from deepscan_jax.evaluation import COLUMNS, Scores
from deepscan_jax.files import whole_file, write_whole
from deepscan_jax.inference import Detector
from deepscan_jax.models.detector import detector_inputs
from deepscan_jax.stopping import Interrupted, StopRequest, listening, raise_again
from deepscan_jax.stopping import name as signal_name

SUMMARY_FILE = "folds.json"
# In a fold's folder: its figures, written last of all, and the scores that they were computed from.
_FOLD_FILE, _SCORES_FILE = "fold.json", "out_of_fold.npz"


def cross_validate(
  config: Config,
  *,
  workdir: str | Path,
  data_dir: str | Path,
  folds: int,
  fold: int | None = None,
  resume: bool = True,
  request: StopRequest | None = None,
) -> dict | None:
  """Trains and scores each fold that is not done yet, going on where an earlier call stopped.

  After SIGTERM or Ctrl-C what is going on is saved, as by `training.fit`, and this returns; scores that were
  only begun are computed again by the next call.

  Args:
    config: of every fold's run; its data.folds and data.fold are set here.
    workdir: of all folds.
    data_dir: where the datasets are.
    folds: how many; each leaves out about one in so many of the people or source videos.
    fold: only this one, from 0 on; None: all.
    resume: False refuses a workdir where a fold was begun.
    request: of a caller who listens to signals himself (stopping.listening), for longer than this.

  Returns:
    What is written to workdir/folds.json once all folds are done, None before: "folds", "config", "per_fold"
    (each with "fold", "figures", "best_step", "steps", "stopped" and "count" of scored rows), "spread"
    ({metric: {"mean", "std", "min", "max"}} over folds, std with n - 1), "pooled" (the metrics over the
    scores of all folds, and "auc_interval", "count") and "between_folds" (how many examples show people of
    several folds and are not scored). With pseudo-fakes scores are of plain and degraded pairs.

  Raises:
    ValueError: there is no such fold or a fold lacks examples (before anything is written); the workdir
      holds a run without folds or one of another configuration; the data have changed between two folds.
    FileNotFoundError, TrainingError: see `training.fit`.
  """
  workdir = Path(workdir)
  if (workdir / "config.json").exists():
    raise ValueError(f"{workdir} holds a run without folds; choose another --workdir.")
  # It knows which there are.
  data.Fold(fold or 0, folds, config.data.datasets)
  if other := [path for path in workdir.glob("fold_*") if path.name not in _names(folds)]:
    raise ValueError(
      f"{other[0]} is of a cross-validation with more than {folds} folds; choose another --workdir."
    )
  with listening(request) as heard:
    summary = _cross_validate(
      config, workdir=workdir, data_dir=data_dir, folds=folds, fold=fold, resume=resume, request=heard
    )
  chosen = range(folds) if fold is None else (fold,)
  if request is None and not _missing(workdir, chosen):
    # It came when there was nothing left to stop, and is meant for what comes after.
    raise_again(heard)
  return summary


def _cross_validate(
  config: Config,
  *,
  workdir: Path,
  data_dir: str | Path,
  folds: int,
  fold: int | None,
  resume: bool,
  request: StopRequest,
) -> dict | None:
  chosen = range(folds) if fold is None else (fold,)
  for number in range(folds):
    # All of them, though one alone is wanted: the others will want the same data.
    training.check_run(
      fold_config(config, number, folds),
      workdir=_folder(workdir, number),
      data_dir=data_dir,
      resume=resume or number not in chosen,
    )
  for number in _missing(workdir, chosen):
    try:
      if request:
        raise Interrupted(request.number)
      logging.info("Fold %d of 0 to %d.", number, folds - 1)
      stopped = _run_fold(
        fold_config(config, number, folds),
        folder=_folder(workdir, number),
        data_dir=data_dir,
        request=request,
      )
    except Interrupted as interrupted:
      stopped = f"stopped by {signal_name(interrupted.number)}"
    if stopped:
      # No other begins, and this one is not missing for any other reason.
      logging.info("Fold %d: %s; the same command goes on.", number, stopped)
      return None
  if missing := _missing(workdir, range(folds)):
    logging.info(
      "Not there yet: fold %s. Trained elsewhere, their folders go below %s; the same command without --fold "
      "does what is missing and sums up.",
      ", ".join(map(str, missing)),
      workdir,
    )
    return None
  summary = _summary(config, workdir=workdir, data_dir=data_dir, folds=folds)
  write_whole(workdir / SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")
  return summary


def fold_config(config: Config, fold: int, folds: int) -> Config:
  """The configuration of one fold's run."""
  return dataclasses.replace(config, data=dataclasses.replace(config.data, folds=folds, fold=fold))


def fold_figures(workdir: str | Path, fold: int) -> dict | None:
  """What is known of one fold: an entry of "per_fold"; None where it is not done."""
  file = _folder(Path(workdir), fold) / _FOLD_FILE
  return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def out_of_fold(workdir: str | Path, fold: int) -> Scores:
  """The scores of a fold that is done, of examples that its model has not seen."""
  with np.load(_folder(Path(workdir), fold) / _SCORES_FILE) as stored:
    return Scores(**{name: stored[name] for name in COLUMNS}, paired=bool(stored["paired"]))


def markdown(per_fold: Sequence[dict], summary: dict | None = None) -> str:
  """Tables of folds that are done and, where all are, of their spread and the pooled scores."""
  names = list(per_fold[0]["figures"])
  head = ["fold", "scored", *(name.replace("_", " ") for name in names), "best step", "stopped"]
  rows = [
    [
      str(row["fold"]),
      f"{row['count']:,}",
      *(f"{row['figures'][name]:.4f}" for name in names),
      f"{row['best_step']:,} of {row['steps']:,}",
      row["stopped"],
    ]
    for row in per_fold
  ]
  if summary:
    spread = summary["spread"]
    for title, key in (
      ("mean", "mean"),
      ("standard deviation", "std"),
      ("lowest", "min"),
      ("highest", "max"),
    ):
      rows.append([title, "", *(f"{spread[name][key]:.4f}" for name in names), "", ""])
    pooled = summary["pooled"]
    rows.append(["pooled", f"{pooled['count']:,}", *(f"{pooled[name]:.4f}" for name in names), "", ""])
  lines = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]
  if summary:
    low, high = summary["pooled"]["auc_interval"]
    lines += ["", f"95 % interval of the pooled AUC, by bootstrap over groups: {low:.4f} to {high:.4f}."]
    if between := summary["between_folds"]:
      lines.append(f"{between:,} examples show people of several folds and were not scored.")
  return "\n".join(lines)


def _names(folds: int) -> set[str]:
  return {f"fold_{number}" for number in range(folds)}


def _folder(workdir: Path, fold: int) -> Path:
  return workdir / f"fold_{fold}"


def _missing(workdir: Path, chosen: Iterable[int]) -> list[int]:
  """Which of some folds are not done."""
  return [number for number in chosen if not (_folder(workdir, number) / _FOLD_FILE).exists()]


def _run_fold(config: Config, *, folder: Path, data_dir: str | Path, request: StopRequest) -> str:
  """Trains and scores a fold; "" once that is done, else what stopped its training.

  Raises:
    Interrupted: a signal broke its scoring off.
  """
  result = training.fit(config, workdir=folder, data_dir=data_dir, request=request)
  if result.signal:
    return result.stopped
  model = folder / "best"
  scores = evaluation.held_out_scores(
    Detector(model, calibrated=False), data_dir=data_dir, split="validation", request=request
  )
  evaluation.calibrate_model(model, data_dir=data_dir, scores=scores)
  held_out = scores["all"]
  with whole_file(folder / _SCORES_FILE) as file:
    np.savez_compressed(file, paired=held_out.paired, **{name: getattr(held_out, name) for name in COLUMNS})
  facts = {
    "fold": config.data.fold,
    "figures": held_out.summary(),
    "best_step": result.best_step,
    "steps": int(result.state.step),
    "stopped": result.stopped,
    "count": len(held_out.labels),
    "model": checkpoints.read_model(model)["sha256"],
  }
  write_whole(folder / _FOLD_FILE, json.dumps(facts, indent=2) + "\n")
  return ""


def _summary(config: Config, *, workdir: Path, data_dir: str | Path, folds: int) -> dict:
  per_fold = [fold_figures(workdir, number) for number in range(folds)]
  scores = [out_of_fold(workdir, number) for number in range(folds)]
  between = _check_whole(config, scores, data_dir=data_dir)
  pooled = sum(scores[1:], scores[0])
  names = list(per_fold[0]["figures"])
  values = {name: np.array([row["figures"][name] for row in per_fold]) for name in names}
  return {
    "folds": folds,
    "config": to_dict(dataclasses.replace(config, data=dataclasses.replace(config.data, folds=folds))),
    "per_fold": per_fold,
    "spread": {
      name: {
        "mean": float(of_folds.mean()),
        "std": float(of_folds.std(ddof=1)),
        "min": float(of_folds.min()),
        "max": float(of_folds.max()),
      }
      for name, of_folds in values.items()
    },
    "pooled": {
      **pooled.summary(),
      "auc_interval": list(pooled.auc_interval()),
      "count": len(pooled.labels),
    },
    "between_folds": between,
  }


def _check_whole(config: Config, scores: Sequence[Scores], *, data_dir: str | Path) -> int:
  """How many examples lie between folds, once it is sure that each of the others was scored in one fold."""
  seen: dict[str, int] = {}
  for number, of_fold in enumerate(scores):
    for name in np.unique(of_fold.id).tolist():
      if seen.setdefault(name, number) != number:
        raise ValueError(
          f"{name} was scored in folds {seen[name]} and {number}: the data have changed between them. Train "
          "the folds again on the same data, in another --workdir."
        )
  inputs = detector_inputs(config.model)
  scored = (examples.REAL,) if config.data.pseudofakes else (examples.REAL, examples.FAKE)

  def count(of: Config, split: str) -> int:
    counts = data.label_counts(of.data, split, data_dir=data_dir, inputs=inputs)
    return sum(counts[label] for label in scored)

  folds = len(scores)
  whole = sum(count(fold_config(config, 0, 0), split) for split in ("train", "validation"))
  inside = sum(count(fold_config(config, number, folds), "validation") for number in range(folds))
  if inside != len(seen):
    raise ValueError(
      f"{len(seen):,} examples were scored and {inside:,} are there: the data have changed since. Train the "
      "folds again on the same data, in another --workdir."
    )
  return whole - inside
