"""Fits a model's probabilities and thresholds on the validation split; `deepscan train` does so at its end.

    deepscan calibrate --model_path=runs/default/best --data_dir=data

    deepscan calibrate --model_path=runs/default/best --data_dir=data --method=isotonic

--method says how logits become probabilities: platt (slope and offset), temperature (slope alone) or isotonic
(any rising curve, for thousands of examples). It changes no ranking and no outcome: thresholds are of logits.
The threshold of "likely manipulated" is set so that at most --false_positive_rate of the real pictures of any
source reach it. The model's calibration is replaced, and with it the model's sha256. Golden scores, which
are logits, stay right.
"""

import json
from collections.abc import Sequence

from absl import app, flags

_MODEL_PATH = flags.DEFINE_string("model_path", None, "The model's folder.", allow_override=True)
_DATA_DIR = flags.DEFINE_string(
  "data_dir", "data", "Where build_dataset wrote the datasets.", allow_override=True
)
_RATE = flags.DEFINE_float(
  "false_positive_rate",
  0.05,
  "Share of real pictures of any source that may be called manipulated.",
  lower_bound=0.0,
  upper_bound=0.5,
)
_METHOD = flags.DEFINE_enum(
  "method", "platt", ["platt", "temperature", "isotonic"], "How logits become probabilities."
)


def main(argv: Sequence[str]) -> int:
  """Calibrates the model that the flags name; returns the exit code."""
  if argv[1:] or not _MODEL_PATH.value:
    raise app.UsageError("Say which model to calibrate: --model_path=FOLDER, and nothing else.")

  from deepscan_jax import compilation_cache
  from deepscan_jax.evaluation import calibrate_model

  compilation_cache.switch_on()
  fitted = calibrate_model(
    _MODEL_PATH.value,
    data_dir=_DATA_DIR.value,
    false_positive_rate=_RATE.value,
    method=_METHOD.value,
  )
  print(json.dumps(fitted, indent=2))
  return 0


if __name__ == "__main__":
  from .__main__ import run_module

  run_module(__name__)
