"""Trains a detector, or goes on with a training that stopped.

    deepscan train --model_name=my_detector --epochs=100 --batch_size=32 --learning_rate=1e-4 \\
        --datasets=celeb_df,faceforensics,wild_deepfake --target_accuracy=0.99
    deepscan train --preset=default --data_dir=data --workdir=runs/default
    deepscan train --preset=default --set=train.steps=500 --set=data.batch_size=16 --workdir=runs/short
    deepscan train --preset=spatial_only --datasets=celeb_df --folds=5 --workdir=runs/folds

A preset says everything; flags change single fields of it, and --set any field. The same command again goes
on where the last saved step was; a workdir of other settings is refused, and they are named. Training stops
after its epochs or steps, at --target_accuracy, or after train.patience validations (20) without a better
train.metric: the AUC of whole videos, but for the preset `default` where it learns without labels, from
pictures, which has that of single ones. The model of the best validation lies in WORKDIR/best and is used
with `deepscan detect --model_path=WORKDIR/best`; WORKDIR/last is the model of the last step, to be calibrated
before it is used. The test split is never opened. SIGTERM or Ctrl-C finishes the step, saves, says how to go
on and ends with exit code 0, or the one of --stopped_exit_code.

What is learnt: a preset with pseudo-fakes makes forgeries of real examples, and needs no known ones. Where
--datasets names data that hold known forgeries, their labels are learnt instead, real and fake examples
drawn equally often (data.pseudofakes=false, data.balance_classes=true), by focal loss with weights 1.0 of
real and 1.5 of fake examples (train.focal_gamma=2, train.class_weights=[1,1.5]) and a weight decay of 1e-4,
and the model with the best AUC of whole videos is kept (train.metric=video_auc), whatever the preset says;
this is said, and --set sets any of it otherwise. To decide otherwise what is learnt,
--set=data.pseudofakes=true learns from the real examples alone, by the preset's own objective, and with
--set=data.labelled_share=0.5 half of the pairs hold a known forgery. A preset that learns labels anyway
stays as it is.

--folds=5 divides train and validation together into five parts that share no person and no source video,
trains a model without each in WORKDIR/fold_0 to fold_4, scores each part with the model that has not seen it,
and writes the figures of each and of all to WORKDIR/folds.json and as a table to stdout. It goes on like any
run; --fold=2 does that fold alone, so that several machines can share the work: bring the folders together,
and the command without --fold sums up.

On several hosts, each starts the same command with --multihost, and with a --workdir that all of them share:

    deepscan train --multihost --workdir=/shared/run

TPU pods, Slurm, Open MPI and Kubernetes (with the package kubernetes) say by themselves who belongs together;
elsewhere add --coordinator_address=HOST0:8476 --num_processes=2 --process_id=0 (or 1, on the other host).
"""

import dataclasses
import json
import logging
import re
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from absl import app, flags

# By flag the field that it stands for.
_FIELDS = {
  "model_name": "name",
  "epochs": "train.epochs",
  "batch_size": "data.batch_size",
  "learning_rate": "train.learning_rate",
  "target_accuracy": "train.target_accuracy",
  "datasets": "data.datasets",
}
_PRESET = flags.DEFINE_string(
  "preset", "default", "A preset in experiments/, or the path of a Python file.", allow_override=True
)
_SET = flags.DEFINE_multi_string(
  "set", [], "Change one field: train.steps=500; may be given several times.", allow_override=True
)
_MODEL_NAME = flags.DEFINE_string(
  "model_name", None, "The model's name in verdicts: letters, digits and ._-.", allow_override=True
)
_WORKDIR = flags.DEFINE_string(
  "workdir",
  None,
  "Folder of this run: checkpoints, scalars, models. Without it, runs/MODEL_NAME.",
  allow_override=True,
)
_DATA_DIR = flags.DEFINE_string(
  "data_dir", "data", "Where build_dataset wrote the datasets.", allow_override=True
)
_DATASETS = flags.DEFINE_list(
  "datasets",
  None,
  "Names of prepared datasets, with commas between; a name alone is the builder's first config (celeb_df is "
  "celeb_df/v2). They replace those of the preset, and the weights that it gives to them and their sources.",
  allow_override=True,
)
_EPOCHS = flags.DEFINE_integer(
  "epochs", None, "Passes over the training split, in place of the preset's steps.", allow_override=True
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Examples in a batch.", allow_override=True)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", None, "Its highest value.", allow_override=True)
_TARGET_ACCURACY = flags.DEFINE_float(
  "target_accuracy",
  None,
  "Stop when so many of the validation examples, 0 to 1, are told right.",
  allow_override=True,
)
_PRETRAINED_DIR = flags.DEFINE_string(
  "pretrained_dir",
  None,
  "What to start from: a folder with ImageNet weight files of the picture networks (efficientnetb3*.h5, "
  "densenet121*.h5, xception*.h5, or .pth of EfficientNets), searched in place of where they are installed; "
  "or a model's folder, such as WORKDIR/best of another run.",
  allow_override=True,
)
_RESUME = flags.DEFINE_boolean(
  "resume", True, "Go on with the run in the workdir; --noresume refuses one.", allow_override=True
)
_FOLDS = flags.DEFINE_integer(
  "folds", 0, "Cross-validate with so many folds of train and validation.", allow_override=True
)
_FOLD = flags.DEFINE_integer(
  "fold", -1, "With --folds: only this one, from 0 on; -1: all.", allow_override=True
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
_STOPPED_EXIT_CODE = flags.DEFINE_integer(
  "stopped_exit_code",
  0,
  "Exit code after a signal; a scheduler that counts 0 as done, and would not start the run again, needs "
  "another, such as 143.",
  lower_bound=0,
  upper_bound=255,
  allow_override=True,
)

# A process that fails must not wait for the others at its end, nor they for it.
LEAVES_AT_ONCE = True


def main(argv: Sequence[str]) -> int:
  """Trains as the flags say; returns the exit code."""
  if argv[1:]:
    raise app.UsageError(
      f"Unexpected argument {argv[1]!r}; fields of the preset are changed by --set=path=value."
    )
  # build_dataset has the flag too, with another default.
  fold = None if flags.FLAGS["fold"].using_default_value or _FOLD.value == -1 else _FOLD.value
  if fold is not None and not _FOLDS.value:
    raise app.UsageError("--fold says which fold of a cross-validation: give --folds too.")
  if _FOLDS.value and _MULTIHOST.value:
    raise app.UsageError(
      "--folds is for one host at a time; give each host its own --fold in place of --multihost."
    )
  workdir = chosen_workdir(_WORKDIR.value, _MODEL_NAME.value)
  _tell_what_training_logs()

  from deepscan_jax import stopping

  # From here on, for imports, the other hosts and calibration take their time too.
  with stopping.listening() as request:
    try:
      return _trained(workdir, fold=fold, request=request)
    except stopping.Interrupted as interrupted:
      return _stopped(f"stopped by {stopping.name(interrupted.number)}")


def _stopped(how: str) -> int:
  """Says how a run was stopped; returns the exit code."""
  print(f"{how}; the same command goes on.")
  return _STOPPED_EXIT_CODE.value


def _stopped_together(how: str) -> int:
  """The same where several processes may have stopped at once, of which one speaks."""
  from deepscan_jax import parallel

  code = _stopped(how) if parallel.is_first() else _STOPPED_EXIT_CODE.value
  parallel.disconnect()
  return code


def _trained(workdir: str, *, fold: int | None, request) -> int:
  """What is done while signals are listened to; returns the exit code.

  Raises:
    Interrupted: a signal was there before this process knew the others.
  """
  from deepscan_jax import compilation_cache, cross_validation, evaluation, parallel, stopping
  from deepscan_jax.inference import Detector
  from deepscan_jax.training import TrainingError, fit

  if _MULTIHOST.value:
    parallel.connect(
      coordinator_address=_COORDINATOR.value,
      num_processes=_NUM_PROCESSES.value,
      process_id=_PROCESS_ID.value,
      timeout_s=_CONNECT_S.value,
      request=request,
    )
  elif _COORDINATOR.value or _NUM_PROCESSES.value is not None or _PROCESS_ID.value is not None:
    raise app.UsageError(
      "--coordinator_address, --num_processes and --process_id are for several hosts; add --multihost."
    )
  compilation_cache.switch_on()
  given = {name: flags.FLAGS[name].value for name in _FIELDS if flags.FLAGS[name].value is not None}
  with parallel.all_or_none():
    config = configured(
      _PRESET.value, given, _SET.value, pretrained_dir=_PRETRAINED_DIR.value, data_dir=_DATA_DIR.value
    )
  if number := max(parallel.of_each_process(request.number)):
    return _stopped_together(f"stopped by {stopping.name(number)}")
  where = {"workdir": workdir, "data_dir": _DATA_DIR.value, "resume": _RESUME.value, "request": request}
  try:
    if _FOLDS.value:
      summary = cross_validation.cross_validate(config, **where, folds=_FOLDS.value, fold=fold)
      done = [cross_validation.fold_figures(workdir, number) for number in range(_FOLDS.value)]
      if any(done):
        print(cross_validation.markdown([row for row in done if row], summary))
      if summary:
        print(f"\nthe figures: {workdir}/{cross_validation.SUMMARY_FILE}")
      wanted = done if fold is None else [done[fold]]
      # Nothing but a signal ends this early.
      return 0 if all(wanted) else _stopped(f"stopped by {stopping.name(request.number)}")
    if any(Path(workdir).glob("fold_*/config.json")):
      raise app.UsageError(f"{workdir} holds a cross-validation; give its --folds, or another --workdir.")
    result = fit(config, **where)
  except TrainingError as error:
    raise app.UsageError(str(error)) from error
  stopped = result.stopped if result.signal else ""
  if parallel.is_first() and not stopped:
    model, data_dir = f"{workdir}/best", _DATA_DIR.value
    try:
      scores = evaluation.held_out_scores(
        Detector(model, calibrated=False), data_dir=data_dir, split="validation", request=request
      )
      evaluation.calibrate_model(model, data_dir=data_dir, scores=scores)
      print(
        f"best {config.train.metric} {result.best:.4f} at step {result.best_step}; stopped: {result.stopped}"
      )
      print(f"the model: {model}")
      print(f"how it went: {workdir}/summary.html")
    except stopping.Interrupted as interrupted:
      # Trained it is; the same command only calibrates.
      stopped = f"stopped by {stopping.name(interrupted.number)} before the model was calibrated"
  # The others wait here while the first one calibrates.
  if stopped := parallel.of_each_process(stopped)[0]:
    return _stopped_together(stopped)
  parallel.disconnect()
  return 0


def chosen_workdir(workdir: str | None, model_name: str | None) -> str:
  """Where the run is written; says so where only the model's name tells.

  Raises:
    UsageError: neither is given, or the name is none.
  """
  if model_name is not None and not re.fullmatch(r"\w[\w.-]*", model_name):
    raise app.UsageError(
      f"--model_name must be letters, digits and ._- and begin with none of . and -; got {model_name!r}."
    )
  if workdir:
    return workdir
  if not model_name:
    raise app.UsageError("Say where the run may write: --workdir=FOLDER, or --model_name for runs/NAME.")
  _say(f"The run is written to runs/{model_name}.")
  return f"runs/{model_name}"


def configured(
  preset: str,
  given: dict,
  assignments: Sequence[str],
  *,
  pretrained_dir: str | None = None,
  data_dir: str = "data",
):
  """Returns the Config of a preset changed by flags, then by assignments; says what follows from them.

  Args:
    preset: its name or path.
    given: values of the flags in _FIELDS, by flag.
    assignments: of --set, "train.steps=500".
    pretrained_dir: the flag.
    data_dir: where the datasets are looked for.

  Raises:
    ValueError: an unknown field or value; two of them contradict each other.
    FileNotFoundError: a dataset has not been built.
  """
  from deepscan_jax.config import load_preset, override

  config = load_preset(preset)
  names = {assignment.partition("=")[0].strip() for assignment in assignments}
  if given.get("epochs", 1) < 1:
    raise ValueError(f"--epochs must be 1 or more, got {given['epochs']}.")
  if "datasets" in given:
    resolved = dict.fromkeys(resolved_dataset(name, data_dir) for name in given["datasets"])
    given = {**given, "datasets": tuple(resolved)}
    # They speak of what the preset names.
    config = _with_data(config, dataset_weights=(), source_weights=())
  if not given.get("datasets", True):
    raise ValueError("--datasets names none; give the names of prepared datasets with commas between.")
  for flag, value in given.items():
    config = _replaced(config, _FIELDS[flag], value)
  if pretrained_dir:
    config = _starting_from(config, pretrained_dir, names)
  before = config
  for assignment in assignments:
    config = override(config, assignment)
  for flag in given:
    if _FIELDS[flag] in names and (set_to := _at(config, _FIELDS[flag])) != _at(before, _FIELDS[flag]):
      raise ValueError(
        f"--{flag}={_shown(given[flag])} and --set={_FIELDS[flag]}={_shown(set_to)} contradict each other; "
        "give one of them."
      )
  if "epochs" in given and "train.steps" in names:
    raise ValueError(
      f"--epochs={given['epochs']} and --set=train.steps={config.train.steps} both say how long to train; "
      "give one of them."
    )
  if "train.steps" in names and "train.epochs" not in names and config.train.epochs:
    _say(f"train.steps={config.train.steps} takes the place of the preset's {config.train.epochs} epochs.")
    config = _with_train(config, epochs=0)
  if "datasets" in given and not names & {"data.pseudofakes", "data.labelled_share"}:
    config = learning_labels(config, data_dir=data_dir, kept=names)
  return without_late_restarts(config)


def resolved_dataset(name: str, data_dir: str) -> str:
  """The name under which a dataset was built: that of the builder's first config where it has any.

  Raises:
    ValueError: there is neither such a builder nor such a folder.
  """
  from deepscan_jax.rooms import find_builder

  if any((Path(data_dir) / name).glob("*/dataset_info.json")):
    return name
  builder_class, config = find_builder(name)
  own = builder_class.BUILDER_CONFIGS
  return f"{name}/{own[0].name}" if own and config is None else name


# The objective where labels are learnt; a preset for pseudo-fakes has another. Lin et al. 2017
# (arXiv:1708.02002) for focal_gamma.
_OF_LABELS = {
  "metric": "video_auc",
  "focal_gamma": 2.0,
  "class_weights": (1.0, 1.5),
  "weight_decay": 1e-4,
}


def learning_labels(config, *, data_dir: str, kept: Collection[str] = ()):
  """Returns the config with the labels of its datasets learnt, where there are known forgeries; says so.

  A preset that learns labels anyway, or mixes them with pseudo-fakes, stays as it is. Others get the
  objective for labels (_OF_LABELS) and draw real and fake examples equally often.

  Args:
    config: with its datasets.
    data_dir: where they are looked for.
    kept: fields that stay as they are, "train.metric".

  Raises:
    FileNotFoundError: a dataset has not been built.
  """
  from deepscan_jax import data, examples
  from deepscan_jax.models.detector import detector_inputs
  from deepscan_jax.train_state import trained_part

  if not config.data.pseudofakes or config.data.labelled_share:
    return config
  inputs = detector_inputs(trained_part(config).model)
  counts = data.label_counts(config.data, "train", data_dir=data_dir, inputs=inputs)
  real, fake = counts[examples.REAL], counts[examples.FAKE]
  if not fake:
    return config
  balance = "data.balance_classes" not in kept
  _say(
    f"The labels of {', '.join(config.data.datasets)} are learnt ({real:,} real and {fake:,} fake examples"
    + (", drawn equally often)" if balance else ")")
    + "; --set=data.pseudofakes=true learns from the real ones alone."
  )
  own = {
    name: value
    for name, value in _OF_LABELS.items()
    if f"train.{name}" not in kept and getattr(config.train, name) != value
  }
  if own:
    settings = (f"train.{n}={json.dumps(v, separators=(',', ':'))}" for n, v in own.items())
    _say(f"As labels are learnt, not the preset but this counts: {', '.join(settings)}; --set changes it.")
  config = _with_train(config, **own)
  return _with_data(config, pseudofakes=False, balance_classes=balance or config.data.balance_classes)


def without_late_restarts(config):
  """Returns the config without the restarts that a smaller train.steps left behind its end, and says so.

  Where epochs count, without any: their steps are those of another length.
  """
  late = [step for step in config.train.restarts if config.train.epochs or step >= config.train.steps]
  if not late:
    return config
  why = "counts epochs" if config.train.epochs else f"ends at step {config.train.steps}"
  _say(f"The learning rate does not restart at {', '.join(map(str, late))}: the run {why}.")
  return _with_train(config, restarts=tuple(step for step in config.train.restarts if step not in late))


def _starting_from(config, folder: str, names: set[str]):
  """The config of a run that starts from a model's folder, or from the weight files in a folder."""
  from deepscan_jax.checkpoints import MODEL_FILE

  if not Path(folder).is_dir():
    raise FileNotFoundError(f"--pretrained_dir={folder} is no folder.")
  is_model = (Path(folder) / MODEL_FILE).exists()
  for name in ("train.start_from", "train.imagenet_dir", "train.pretrained"):
    if name in names:
      raise ValueError(f"--pretrained_dir and --set={name} both say what to start from; give one of them.")
  if is_model:
    return _with_train(config, start_from=folder)
  return _with_train(config, start_from="", pretrained=True, imagenet_dir=folder)


def _with_data(config, **changes):
  return dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))


def _with_train(config, **changes):
  return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))


def _replaced(config, path: str, value):
  room, _, name = path.rpartition(".")
  change: dict[str, Callable] = {"data": _with_data, "train": _with_train}
  return change[room](config, **{name: value}) if room else dataclasses.replace(config, **{name: value})


def _at(config, path: str):
  for name in path.split("."):
    config = getattr(config, name)
  return config


def _shown(value) -> str:
  return ",".join(value) if isinstance(value, tuple | list) else str(value)


def _say(sentence: str) -> None:
  print(f"deepscan: {sentence}", file=sys.stderr)


def _tell_what_training_logs() -> None:
  """Shows what this library logs; of others, which log every step that they take, only warnings."""
  handler = logging.StreamHandler()
  handler.addFilter(lambda record: record.name == "root" or record.levelno >= logging.WARNING)
  logging.basicConfig(level=logging.INFO, format="deepscan: %(message)s", handlers=[handler])


if __name__ == "__main__":
  from .__main__ import run_module

  run_module(__name__)
