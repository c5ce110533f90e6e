"""Trains a detector, or goes on with a training that stopped.

    deepscan train --preset=default --data_dir=data --workdir=runs/default
    deepscan train --preset=default --set=train.steps=500 --set=data.batch_size=16 --workdir=runs/short

The same command again goes on where the last saved step was. The best model of the run, by a metric on the
validation split, lies in WORKDIR/best and is used with `deepscan detect --model_path=WORKDIR/best`. SIGTERM
or Ctrl-C finishes the step, saves and ends with exit code 0.

On several hosts, each starts the same command with --multihost, and with a --workdir that all of them share:

    deepscan train --multihost --workdir=/shared/run

TPU pods, Slurm, Open MPI and Kubernetes (with the package kubernetes) say by themselves who belongs together;
elsewhere add --coordinator_address=HOST0:8476 --num_processes=2 --process_id=0 (or 1, on the other host).
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
_MULTIHOST = flags.DEFINE_bool(
  "multihost", False, "Train together with the same command on other hosts.", allow_override=True
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator_address",
  None,
  "host:port of process 0, where the cluster does not tell; or JAX_COORDINATOR_ADDRESS.",
  allow_override=True,
)
_NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes",
  None,
  "How many processes train together, where the cluster does not tell; or JAX_NUM_PROCESSES.",
  lower_bound=1,
  allow_override=True,
)
_PROCESS_ID = flags.DEFINE_integer(
  "process_id",
  None,
  "Which of them this is, from 0 on, where the cluster does not tell; or JAX_PROCESS_ID.",
  lower_bound=0,
  allow_override=True,
)
_CONNECT_S = flags.DEFINE_integer(
  "connect_timeout_s", 300, "How long --multihost waits for the others.", lower_bound=1, allow_override=True
)

# A process that fails must not wait for the others at its end, nor they for it.
LEAVES_AT_ONCE = True


def main(argv: Sequence[str]) -> int:
  """Trains as the flags say; returns the exit code."""
  if argv[1:]:
    raise app.UsageError(
      f"Unexpected argument {argv[1]!r}; fields of the preset are changed by --set=path=value."
    )
  if not _WORKDIR.value:
    raise app.UsageError("Say where the run may write: --workdir=FOLDER.")
  _tell_what_training_logs()

  from deepscan_jax import compilation_cache, parallel
  from deepscan_jax.config import load_preset, override
  from deepscan_jax.evaluation import calibrate_model
  from deepscan_jax.training import TrainingError, fit

  if _MULTIHOST.value:
    parallel.connect(
      coordinator_address=_COORDINATOR.value,
      num_processes=_NUM_PROCESSES.value,
      process_id=_PROCESS_ID.value,
      timeout_s=_CONNECT_S.value,
    )
  elif _COORDINATOR.value or _NUM_PROCESSES.value is not None or _PROCESS_ID.value is not None:
    raise app.UsageError(
      "--coordinator_address, --num_processes and --process_id are for several hosts; add --multihost."
    )
  compilation_cache.switch_on()
  config = load_preset(_PRESET.value)
  for assignment in _SET.value:
    config = override(config, assignment)
  config = without_late_restarts(config)
  try:
    result = fit(config, workdir=_WORKDIR.value, data_dir=_DATA_DIR.value)
  except TrainingError as error:
    raise app.UsageError(str(error)) from error
  if parallel.is_first():
    if result.signal:
      print(f"{result.stopped}; the same command goes on.")
    else:
      calibrate_model(f"{_WORKDIR.value}/best", data_dir=_DATA_DIR.value)
      print(
        f"best {config.train.metric} {result.best:.4f} at step {result.best_step}; stopped: {result.stopped}"
      )
      print(f"the model: {_WORKDIR.value}/best")
  # The others wait here while the first one calibrates.
  parallel.disconnect()
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
