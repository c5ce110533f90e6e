"""Measures a model on held-out data: AUC of single pictures, false alarms by source, with 95 % intervals.

    deepscan evaluate --model_path=runs/default/best --data_dir=data --split=test

Pairs are held-out real pictures and their self-blended twins, every picture scored on its own: "plain" as the
detector crops them, "degraded" after the blur, noise and compression of training, "all" both. False alarms
are untouched real pictures at or above the model's threshold. Intervals come from a bootstrap over groups
(one person or occasion).
"""

import json
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

_MODEL_PATH = flags.DEFINE_string(
  "model_path",
  None,
  "A model's folder; without it the model that comes with the package.",
  allow_override=True,
)
_DATA_DIR = flags.DEFINE_string(
  "data_dir", "data", "Where build_dataset wrote the datasets.", allow_override=True
)
_SPLIT = flags.DEFINE_enum("split", "test", ["validation", "test"], "Which split to measure on.")
_OUTPUT_JSON = flags.DEFINE_string(
  "output_json", None, "Write the figures to this file.", allow_override=True
)


def main(argv: Sequence[str]) -> int:
  """Measures the model that the flags name; returns the exit code."""
  if argv[1:]:
    raise app.UsageError(f"Unexpected argument {argv[1]!r}; see --help.")
  if _OUTPUT_JSON.value and not Path(_OUTPUT_JSON.value).parent.is_dir():
    # Before the minutes that measuring takes.
    raise app.UsageError(f"Cannot write {_OUTPUT_JSON.value}: there is no such folder.")

  from deepscan_jax import compilation_cache, load_detector, report
  from deepscan_jax.evaluation import measure_model

  compilation_cache.switch_on()
  figures = measure_model(load_detector(_MODEL_PATH.value), data_dir=_DATA_DIR.value, split=_SPLIT.value)
  print(summary(figures))
  if _OUTPUT_JSON.value:
    report.write_whole(_OUTPUT_JSON.value, json.dumps(figures, indent=2) + "\n")
  return 0


def summary(figures: dict) -> str:
  """The figures of `measure_model` as Markdown tables."""
  lines = [f"Model {figures['model']['name']} {figures['model']['version']}, split {figures['split']}.", ""]
  lines += ["| pairs | examples | AUC | 95 % | fake above twin | fakes found |", "|---|---|---|---|---|---|"]
  for kind, row in figures["pairs"].items():
    low, high = row["auc_interval"]
    twin = f"{row['paired_accuracy']:.3f}" if "paired_accuracy" in row else "-"
    found = f"{100 * figures['detected'][kind]:.1f} %"
    lines.append(
      f"| {kind} | {row['count']} | {row['auc']:.3f} | {low:.3f} to {high:.3f} | {twin} | {found} |"
    )
  lines += ["", "| real examples of | count | called manipulated | 95 % |", "|---|---|---|---|"]
  for source, row in figures["false_alarms"].items():
    low, high = row["interval"]
    lines.append(
      f"| {source} | {row['count']} | {100 * row['rate']:.1f} % | {100 * low:.1f} to {100 * high:.1f} % |"
    )
  return "\n".join(lines)


if __name__ == "__main__":
  from .__main__ import run_module

  run_module(__name__)
