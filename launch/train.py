"""Trains a detector, or goes on with a training that stopped.

    deepscan train --preset=default --data_dir=data --workdir=runs/default
    deepscan train --preset=default --set=train.steps=500 --set=data.batch_size=16 --workdir=runs/short

The same command again goes on where the last saved step was. The best model of the run, by a metric on the
validation split, lies in WORKDIR/best and is used with `deepscan detect --model_path=WORKDIR/best`.
"""

import dataclasses
import logging
import sys
from collections.abc import Sequence

from absl import app, flags

_PRESET = flags.DEFINE_string(
  "preset", "default", "A preset in experiments/, or the path of a Python file.", allow_override=True
)
_SET = flags.DEFINE_multi_string(
  "set", [], "Change one field: train.steps=500; may be given several times.", allow_override=True
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Folder of this run: checkpoints, scalars, the best model.", allow_override=True
)
_DATA_DIR = flags.DEFINE_string(
  "data_dir", "data", "Where build_dataset wrote the datasets.", allow_override=True
)


def main(argv: Sequence[str]) -> int:
  """Trains as the flags say; returns the exit code."""
  if argv[1:]:
    raise app.UsageError(
      f"Unexpected argument {argv[1]!r}; fields of the preset are changed by --set=path=value."
    )
  if not _WORKDIR.value:
    raise app.UsageError("Say where the run may write: --workdir=FOLDER.")
  _tell_what_training_logs()

  from deepscan_jax import compilation_cache
  from deepscan_jax.config import load_preset, override
  from deepscan_jax.evaluation import calibrate_model
  from deepscan_jax.training import TrainingError, fit

  compilation_cache.switch_on()
  config = load_preset(_PRESET.value)
  for assignment in _SET.value:
    config = override(config, assignment)
  config = without_late_restarts(config)
  try:
    result = fit(config, workdir=_WORKDIR.value, data_dir=_DATA_DIR.value)
  except TrainingError as error:
    raise app.UsageError(str(error)) from error
  calibrate_model(f"{_WORKDIR.value}/best", data_dir=_DATA_DIR.value)
  print(f"best {config.train.metric} {result.best:.4f} at step {result.best_step}; stopped: {result.stopped}")
  print(f"the model: {_WORKDIR.value}/best")
  print(f"how it went: {_WORKDIR.value}/summary.html")
  return 0


def without_late_restarts(config):
  """Returns the config without the restarts that a smaller train.steps left behind its end, and says so."""
  late = [step for step in config.train.restarts if step >= config.train.steps]
  if not late:
    return config
  print(
    f"deepscan: The learning rate does not restart at {', '.join(map(str, late))}: "
    f"the run ends at step {config.train.steps}.",
    file=sys.stderr,
  )
  kept = tuple(step for step in config.train.restarts if step not in late)
  return dataclasses.replace(config, train=dataclasses.replace(config.train, restarts=kept))


def _tell_what_training_logs() -> None:
  """Shows what this library logs; of others, which log every step that they take, only warnings."""
  handler = logging.StreamHandler()
  handler.addFilter(lambda record: record.name == "root" or record.levelno >= logging.WARNING)
  logging.basicConfig(level=logging.INFO, format="deepscan: %(message)s", handlers=[handler])


if __name__ == "__main__":
  from .__main__ import run_module

  run_module(__name__)
