import contextlib
import dataclasses
import functools
import itertools
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from absl.testing import flagsaver
from compiling import quick_jit
from flax import traverse_util
from tiny import CALIBRATION, TinyBranch, random_variables, tiny_batch, tiny_branch, tiny_config, write_model

from deepscan_jax import checkpoints, compilation_cache, data, train_state, training
from deepscan_jax.config import Config, DataConfig, ModelConfig, WindowConfig, override, to_dict
from deepscan_jax.inference import load_detector
from deepscan_jax.launch import train
from deepscan_jax.logs import untimed
from deepscan_jax.models.backbones import backbone, measured_statistics
from deepscan_jax.models.detector import BRANCHES, Detector


@pytest.fixture(autouse=True)
def tiny():
  with tiny_branch():
    yield


def scalars(workdir) -> list[dict]:
  """The rows of scalars.jsonl without the times."""
  return [untimed(json.loads(line)) for line in (workdir / "scalars.jsonl").read_text().splitlines()]


def logged_rates(workdir) -> dict[int, float]:
  """The learning rate of each step that was logged."""
  return {row["step"]: row["learning_rate"] for row in scalars(workdir) if "learning_rate" in row}


def assert_same_state(a: train_state.TrainState, b: train_state.TrainState) -> None:
  for one, other in zip(*map(jax.tree_util.tree_leaves_with_path, (a, b)), strict=True):
    np.testing.assert_array_equal(one[1], other[1], err_msg=jax.tree_util.keystr(one[0]))


@pytest.fixture(scope="module")
def whole_run(prepared_dataset, tmp_path_factory):
  """Four steps in one go: (result, workdir, names of what was compiled)."""
  workdir = tmp_path_factory.mktemp("whole")
  with tiny_branch(), compilations() as compiled:
    result = training.fit(tiny_config(), workdir=workdir, data_dir=prepared_dataset)
  return result, workdir, compiled


@contextlib.contextmanager
def compilations():
  """Yields a list to which a line is added for each program that is compiled inside."""
  compiled = []
  handler = logging.Handler()
  handler.addFilter(lambda record: "Finished XLA compilation" in record.getMessage())
  handler.emit = lambda record: compiled.append(record.getMessage())
  logger = logging.getLogger("jax._src.dispatch")
  logger.addHandler(handler)
  try:
    with jax.log_compiles():
      yield compiled
  finally:
    logger.removeHandler(handler)


@contextlib.contextmanager
def broken_off(*, at: int):
  """Inside, a run has to end with an error once it has shown this step."""

  class Broken(Exception):
    pass

  class Progress(training.Progress):
    def show(self, step, text):
      if step == at:
        raise Broken

  with pytest.MonkeyPatch.context() as patch, pytest.raises(Broken):
    patch.setattr(training, "Progress", Progress)
    yield


def test_a_resumed_run_repeats_an_uninterrupted_one_to_the_bit(whole_run, prepared_dataset, tmp_path):
  whole, workdir, _ = whole_run

  with broken_off(at=3):
    training.fit(tiny_config(), workdir=tmp_path, data_dir=prepared_dataset)
  resumed = training.fit(tiny_config(), workdir=tmp_path, data_dir=prepared_dataset)
  assert_same_state(resumed.state, whole.state)
  assert (resumed.best, resumed.best_step) == (whole.best, whole.best_step)
  assert scalars(tmp_path) == scalars(workdir)
  ours, theirs = (checkpoints.read_model(folder / "best") for folder in (tmp_path, workdir))
  assert ours["training"] == theirs["training"]


# A process of its own, that kills itself while it shows the step.
KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import jax
from absl import flags
from tiny import tiny_branch, tiny_config
from deepscan_jax import training

flags.FLAGS.mark_as_parsed()

class Progress(training.Progress):
  def show(self, step, text):
    if step == 3:
      os.kill(os.getpid(), signal.SIGKILL)

training.Progress = Progress
with tiny_branch():
  training.fit(tiny_config(), workdir=sys.argv[2], data_dir=sys.argv[3])
"""


def next_batch(workdir, data_dir) -> dict:
  """What a run goes on with after its last checkpoint."""
  run, config = training.RunCheckpoints(workdir), tiny_config()
  batches = iter(data.train_dataset(config.data, data_dir=data_dir, seed=config.seed))
  state = train_state.create_state(config)
  training._restore(run, run.latest_step(), state, batches)
  batch = next(batches)
  for open_thing in (batches, run):
    open_thing.close()
  return batch


def test_a_killed_run_goes_on_as_if_nothing_had_been(whole_run, prepared_dataset, tmp_path):
  whole, workdir, _ = whole_run
  arguments = [str(Path(__file__).parent), str(tmp_path), str(prepared_dataset)]
  cache = {"JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir)}
  ended = subprocess.run([sys.executable, "-c", KILLED, *arguments], env=os.environ | cache, timeout=300)
  assert ended.returncode == -signal.SIGKILL
  with (tmp_path / "scalars.jsonl").open("a") as log:
    log.write('{"step": 3, "time_s": 1.0, "train/fused": 0.5}\n{"step": 3, "tra')
  resumed = training.fit(tiny_config(), workdir=tmp_path, data_dir=prepared_dataset)
  assert_same_state(resumed.state, whole.state)
  assert scalars(tmp_path) == scalars(workdir)
  ours, theirs = (training.RunCheckpoints(folder) for folder in (tmp_path, workdir))
  assert ours.latest_step() == theirs.latest_step() == 4
  for one, other in zip(
    *(jax.tree_util.tree_leaves_with_path(run.read(4)) for run in (ours, theirs)), strict=True
  ):
    np.testing.assert_array_equal(one[1], other[1], err_msg=jax.tree_util.keystr(one[0]))
  for key, value in next_batch(tmp_path, prepared_dataset).items():
    np.testing.assert_array_equal(value, next_batch(workdir, prepared_dataset)[key], err_msg=key)
  models = [checkpoints.read_params(folder / "best") for folder in (tmp_path, workdir)]
  jax.tree.map(np.testing.assert_array_equal, *models)


def test_a_damaged_checkpoint_costs_its_steps_and_nothing_else(whole_run, prepared_dataset, tmp_path, caplog):
  whole, workdir, _ = whole_run
  shutil.copytree(workdir, tmp_path / "run")
  largest = max((tmp_path / "run" / "checkpoints" / "4" / "train").rglob("*"), key=lambda p: p.stat().st_size)
  content = bytearray(largest.read_bytes())
  content[len(content) // 2] ^= 1
  largest.write_bytes(content)
  (tmp_path / "run" / "best").rename(tmp_path / "run" / "best.old")
  resumed = training.fit(tiny_config(), workdir=tmp_path / "run", data_dir=prepared_dataset)
  told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
  assert any("step 4" in text and "step 2 is used instead" in text for text in told)
  assert_same_state(resumed.state, whole.state)
  assert scalars(tmp_path / "run") == scalars(workdir)
  assert (
    checkpoints.read_model(tmp_path / "run" / "best")["training"]
    == (checkpoints.read_model(workdir / "best")["training"])
  )


def asked_to_stop(monkeypatch, where: str) -> None:
  """Sends this process SIGTERM once, where its name says."""
  asked = itertools.count()

  def ask():
    if next(asked) == 0:
      os.kill(os.getpid(), signal.SIGTERM)

  def when(number: int, function):
    calls = itertools.count(1)

    def called(*args, **kwargs):
      if next(calls) == number:
        ask()
      return function(*args, **kwargs)

    return called

  place, number = where.split()
  number = int(number)
  if place == "start":
    monkeypatch.setattr(training, "create_state", when(number, training.create_state))
  elif place == "step":
    step = training.parallel_step
    monkeypatch.setattr(training, "parallel_step", lambda *args: when(number, step(*args)))
  elif place == "validation":
    monkeypatch.setattr(training.Predict, "__call__", when(number, training.Predict.__call__))
  elif place == "save":
    monkeypatch.setattr(training.RunCheckpoints, "save", when(number, training.RunCheckpoints.save))


@pytest.mark.parametrize(
  ("where", "step", "validated"),
  [
    ("start 1", 0, []),
    # While it is compiled.
    ("step 1", 1, []),
    ("step 3", 3, [2]),
    # Two batches are predicted at each validation: before the second of them, and at the end of the run.
    ("validation 1", 2, []),
    ("validation 3", 4, [2, 4]),
    ("save 1", 2, [2]),
  ],
)
def test_a_run_that_is_asked_to_stop_goes_on_to_the_bit(
  where, step, validated, whole_run, prepared_dataset, tmp_path, monkeypatch, capfd
):
  whole, workdir, _ = whole_run
  before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
  with monkeypatch.context() as patch:
    asked_to_stop(patch, where)
    result = training.fit(tiny_config(), workdir=tmp_path, data_dir=prepared_dataset)
  assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
  assert (result.signal, result.stopped) == ("SIGTERM", f"stopped by SIGTERM at step {step}")
  assert "deepscan: SIGTERM: the run is saved" in capfd.readouterr().err
  kept = training.RunCheckpoints(tmp_path)
  assert kept.latest_step() == (step or None) and int(result.state.step) == step
  kept.close()
  log = tmp_path / "scalars.jsonl"
  assert [row["step"] for row in scalars(tmp_path) if "validation/auc" in row] == validated, log.read_text()
  resumed = training.fit(tiny_config(), workdir=tmp_path, data_dir=prepared_dataset)
  assert (resumed.signal, resumed.stopped) == ("", "all steps done")
  assert_same_state(resumed.state, whole.state)
  assert (resumed.best, resumed.best_step) == (whole.best, whole.best_step)
  assert scalars(tmp_path) == scalars(workdir)
  ours, theirs = (checkpoints.read_model(folder / "best") for folder in (tmp_path, workdir))
  assert ours["training"] == theirs["training"]


def test_a_signal_after_the_last_step_is_not_lost(whole_run, prepared_dataset, tmp_path, monkeypatch, capfd):
  whole, workdir, _ = whole_run
  shutil.copytree(workdir, tmp_path / "run")

  def asked(function):
    def called(*args, **kwargs):
      os.kill(os.getpid(), signal.SIGTERM)
      return function(*args, **kwargs)

    return called

  with monkeypatch.context() as patch:
    patch.setattr(training.RunWatch, "summarise", asked(training.RunWatch.summarise))
    result = training.fit(tiny_config(), workdir=tmp_path / "run", data_dir=prepared_dataset)
  assert (result.signal, result.stopped) == ("SIGTERM", "stopped by SIGTERM at step 4")
  # Later still, it is for whoever listens after the run; or for the caller who listens already.
  handed_on = []
  before = signal.signal(signal.SIGTERM, lambda number, frame: handed_on.append(number))
  try:
    with monkeypatch.context() as patch:
      patch.setattr(training, "_fit", asked(lambda *_, **__: whole))
      assert training.fit(tiny_config(), workdir=tmp_path, data_dir=prepared_dataset) is whole
      assert handed_on == [signal.SIGTERM]
      with training.listening() as request:
        training.fit(tiny_config(), workdir=tmp_path, data_dir=prepared_dataset, request=request)
      assert request.number == signal.SIGTERM and handed_on == [signal.SIGTERM]
  finally:
    signal.signal(signal.SIGTERM, before)


def test_a_validation_that_was_broken_off_and_then_killed_is_written_once(
  whole_run, prepared_dataset, tmp_path, monkeypatch
):
  whole, workdir, _ = whole_run
  with monkeypatch.context() as patch:
    asked_to_stop(patch, "validation 1")
    training.fit(tiny_config(), workdir=tmp_path, data_dir=prepared_dataset)

  class Killed(Exception):
    pass

  def killed(*_, **__):
    raise Killed

  with monkeypatch.context() as patch, pytest.raises(Killed):
    patch.setattr(training, "_after_validation", killed)
    training.fit(tiny_config(), workdir=tmp_path, data_dir=prepared_dataset)
  assert [row["step"] for row in scalars(tmp_path) if "validation/auc" in row] == [2]
  resumed = training.fit(tiny_config(), workdir=tmp_path, data_dir=prepared_dataset)
  assert_same_state(resumed.state, whole.state)
  assert scalars(tmp_path) == scalars(workdir)


def test_changed_data_are_not_gone_on_with(whole_run, prepared_dataset, tmp_path):
  whole, workdir, _ = whole_run
  shutil.copytree(workdir, tmp_path / "run")
  shutil.copytree(prepared_dataset, tmp_path / "data")
  again = training.fit(tiny_config(), workdir=tmp_path / "run", data_dir=tmp_path / "data")
  assert_same_state(again.state, whole.state)
  (manifest,) = (tmp_path / "data").rglob("manifest.json")
  manifest.write_text(manifest.read_text() + " ")
  with pytest.raises(ValueError, match=r"run have changed, .* another build of real_only; put the old data"):
    training.fit(tiny_config(), workdir=tmp_path / "run", data_dir=tmp_path / "data")
  # Checkpoints of before this was noted, and builds that have no manifest, say only how many they are.
  config = tiny_config(epochs=1)
  for meta, builds in (({}, {"real_only": "a"}), ({"builds": {"real_only": "a"}}, {"real_only": None})):
    meta["config"] = to_dict(config)
    training._check_same_data(meta, config, builds, tmp_path)
    longer = override(config, "train.steps=7")
    with pytest.raises(ValueError, match="1 epochs were 4 steps and are 7 now"):
      training._check_same_data(meta, longer, builds, tmp_path)


def test_a_file_that_another_host_wrote_may_take_a_while_to_appear(tmp_path):
  late = threading.Timer(0.3, (tmp_path / "late").touch)
  late.start()
  assert training._appears(tmp_path / "late", wait_s=60)
  late.join()
  assert not training._appears(tmp_path / "never", wait_s=0.1)


def test_a_best_model_of_a_later_step_than_the_checkpoint_is_told(
  whole_run, prepared_dataset, tmp_path, caplog
):
  whole, workdir, _ = whole_run
  shutil.copytree(workdir, tmp_path / "run")
  shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
  best = checkpoints.read_model(tmp_path / "run" / "best")
  best["training"]["best_step"] = 3
  checkpoints.write_model_json(tmp_path / "run" / "best", {k: v for k, v in best.items() if k != "sha256"})
  resumed = training.fit(tiny_config(), workdir=tmp_path / "run", data_dir=prepared_dataset)
  assert "run/best is of step 3, and the run goes on at step 2" in caplog.text
  assert_same_state(resumed.state, whole.state)


def test_a_loss_that_is_not_finite_is_not_saved_by_a_signal_either(prepared_dataset, tmp_path, monkeypatch):
  asked_to_stop(monkeypatch, "step 1")
  step = training.parallel_step

  def poisoned(*args):
    take = step(*args)
    return lambda state, batch: take(state, {**batch, "region": batch["region"] * np.float32(math.nan)})

  monkeypatch.setattr(training, "parallel_step", poisoned)
  with pytest.raises(training.TrainingError, match="not finite at step 1"):
    training.fit(tiny_config(), workdir=tmp_path, data_dir=prepared_dataset)
  kept = training.RunCheckpoints(tmp_path)
  assert kept.latest_step() is None
  kept.close()


def test_a_batch_that_cannot_be_split_is_refused_before_anything_is_written(prepared_dataset, tmp_path):
  message = "Batch size 12 must be divisible by the number of devices, 8; try 8 or 16."
  with pytest.raises(ValueError, match=message):
    training.fit(
      override(tiny_config(), "data.batch_size=12"), workdir=tmp_path / "run", data_dir=prepared_dataset
    )
  assert not (tmp_path / "run").exists()


def test_statistics_are_measured_once_where_no_imagenet_weights_bring_them(
  prepared_dataset, tmp_path, monkeypatch
):
  measured = []

  def measure(config, variables, batch):
    measured.append(batch["crops"])
    return variables["batch_stats"]

  monkeypatch.setattr(training, "first_statistics", measure)
  config = tiny_config()
  for _ in range(2):  # The second one goes on where the first has stopped.
    training.fit(config, workdir=tmp_path, data_dir=prepared_dataset)
  (first,) = measured
  batches = iter(data.train_dataset(config.data, data_dir=prepared_dataset, seed=config.seed))
  np.testing.assert_array_equal(first, next(batches)["crops"])
  batches.close()


def test_first_statistics_are_those_of_every_picture_network():
  config = Config(model=ModelConfig(branches=("spatial", "autoencoder"), backbone="pico"))
  variables = random_variables(Detector(config.model), train_state.abstract_batch(2, config), train=False)
  crops = np.random.default_rng(0).integers(0, 256, (2, 1, 64, 64, 3)).astype(np.uint8)
  measured = train_state.first_statistics(config, variables, {"crops": crops})
  assert jax.tree.structure(measured) == jax.tree.structure(variables["batch_stats"])
  ours = {key: variables[key]["spatial"]["backbone"] for key in ("params", "batch_stats")}
  expected = quick_jit(functools.partial(measured_statistics, backbone("pico")))(ours, crops[:, 0])
  for a, b in zip(*map(jax.tree.leaves, (measured["spatial"]["backbone"], expected)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
  for name, statistics in measured.items():
    if name != "spatial":
      jax.tree.map(np.testing.assert_array_equal, statistics, variables["batch_stats"][name])


def test_a_finished_run_is_not_trained_again(whole_run, prepared_dataset):
  whole, workdir, _ = whole_run
  before = scalars(workdir)
  again = training.fit(tiny_config(), workdir=workdir, data_dir=prepared_dataset)
  assert_same_state(again.state, whole.state)
  assert again.best == whole.best and scalars(workdir) == before


def test_a_run_trains_and_keeps_its_best_model(whole_run):
  whole, workdir, _ = whole_run
  assert int(whole.state.step) == 4 and whole.stopped == "all steps done"
  start = train_state.create_state(tiny_config())
  moved = [
    np.abs(a - b).max()
    for a, b in zip(*map(jax.tree.leaves, (start.params, whole.state.params)), strict=True)
  ]
  assert max(moved) > 1e-4
  for a, b in zip(*map(jax.tree.leaves, (start.batch_stats, whole.state.batch_stats)), strict=True):
    np.testing.assert_array_equal(a, b)
  rows = scalars(workdir)
  validated = {row["step"]: row["validation/auc"] for row in rows if "validation/auc" in row}
  assert set(validated) == {2, 4} and validated[whole.best_step] == whole.best == max(validated.values())
  model = checkpoints.read_model(workdir / "best")
  assert model["config"] == to_dict(tiny_config()) and model["training"]["best_step"] == whole.best_step
  assert {"plain_auc", "degraded_auc", "paired_accuracy"} <= set(model["training"])
  assert json.loads((workdir / "config.json").read_text()) == to_dict(tiny_config())


def test_the_model_of_the_last_step_is_kept_too(whole_run):
  whole, workdir, _ = whole_run
  assert checkpoints.read_model(workdir / "last")["training"]["step"] == 4
  last = checkpoints.read_params(workdir / "last")
  for a, b in zip(*map(jax.tree.leaves, (last["params"], whole.state.ema)), strict=True):
    np.testing.assert_array_equal(a, b)


def test_the_step_is_compiled_once(whole_run):
  """pmap calls what it maps _fun: here the step, and the prediction of validation."""
  _, _, compiled = whole_run
  assert compiled and len([line for line in compiled if "(_fun)" in line]) == 2, compiled


def test_a_workdir_of_another_configuration_is_refused(whole_run, prepared_dataset):
  _, workdir, _ = whole_run
  other = override(override(tiny_config(), "train.learning_rate=0.1"), "data.batch_size=16")
  with pytest.raises(ValueError, match=r"data\.batch_size: 8 -> 16, train\.learning_rate: 0\.0005 -> 0\.1"):
    training.fit(other, workdir=workdir, data_dir=prepared_dataset)
  other = override(tiny_config(), 'train.start_from="runs/first"')
  with pytest.raises(ValueError, match=r"\(train\.start_from: '' -> 'runs/first'\); give the same settings"):
    training.fit(other, workdir=workdir, data_dir=prepared_dataset)


def test_a_damaged_configuration_in_the_workdir_is_named(prepared_dataset, tmp_path):
  (tmp_path / "config.json").write_text('{"name": "ti')
  with pytest.raises(ValueError, match=r"config\.json is damaged \(.*put it back from a copy, or choose"):
    training.fit(tiny_config(), workdir=tmp_path, data_dir=prepared_dataset)


def test_a_workdir_of_before_a_field_was_there_goes_on(whole_run, prepared_dataset, tmp_path):
  whole, workdir, _ = whole_run
  shutil.copytree(workdir, tmp_path / "run")
  there = json.loads((workdir / "config.json").read_text())
  del there["data"]["folds"], there["data"]["fold"], there["train"]["imagenet_dir"]
  (tmp_path / "run" / "config.json").write_text(json.dumps(there))
  again = training.fit(tiny_config(), workdir=tmp_path / "run", data_dir=prepared_dataset)
  assert_same_state(again.state, whole.state)


def test_a_single_checkpoint_would_be_too_few(prepared_dataset, tmp_path):
  with pytest.raises(ValueError, match=r"train\.keep_checkpoints must be 2 or more"):
    training.fit(tiny_config(keep_checkpoints=1), workdir=tmp_path, data_dir=prepared_dataset)
  assert not list(tmp_path.iterdir())


def test_training_stops_when_validation_no_longer_gets_better(prepared_dataset, tmp_path, monkeypatch):
  figures = iter([0.6, 0.7, 0.7, 0.65, 0.9])
  monkeypatch.setattr(training, "validate", lambda *_, **__: {"auc": next(figures), "accuracy": 0.5})
  config = tiny_config(steps=9, validate_every=1, save_every=9, patience=2)
  result = training.fit(config, workdir=tmp_path, data_dir=prepared_dataset)
  assert (result.best, result.best_step, int(result.state.step)) == (0.7, 2, 4)
  assert result.stopped == "no better auc in 2 validations"
  # What stopped is finished: it is not trained again, though no step was due to be saved.
  again = training.fit(config, workdir=tmp_path, data_dir=prepared_dataset)
  assert_same_state(again.state, result.state)
  assert (again.best, again.best_step, again.stopped) == (0.7, 2, result.stopped)
  assert next(figures) == 0.9


def test_on_a_plateau_the_rate_falls_as_worked_out_by_hand_also_in_a_run_that_was_resumed(
  prepared_dataset, tmp_path, monkeypatch
):
  aucs = {1: 0.5, 2: 0.6, 3: 0.6, 4: 0.6, 5: 0.55, 6: 0.6, 7: 0.7, 8: 0.7}
  rates = {1: 0.0, 2: 0.1, 3: 0.1, 4: 0.1, 5: 0.05, 6: 0.05, 7: 0.025, 8: 0.025}
  config = tiny_config(
    steps=8,
    validate_every=1,
    schedule="plateau",
    plateau_patience=2,
    learning_rate=0.1,
    optimizer="sgd",
  )
  monkeypatch.setattr(training, "_LOG_EVERY", 1)
  monkeypatch.setattr(
    training, "validate", lambda _, __, state, **___: {"auc": aucs[int(state.step)], "accuracy": 0.5}
  )
  # Its forward pass would be a program of its own.
  monkeypatch.setattr(training, "sample_sheet", lambda *_, **__: None)
  with compilations() as compiled:
    whole = training.fit(config, workdir=tmp_path / "whole", data_dir=prepared_dataset)
  assert len([line for line in compiled if "(_fun)" in line]) == 1, compiled
  assert logged_rates(tmp_path / "whole") == pytest.approx(rates)
  assert (whole.best, whole.best_step) == (0.7, 7)

  with broken_off(at=5):
    training.fit(config, workdir=tmp_path / "resumed", data_dir=prepared_dataset)
  resumed = training.fit(config, workdir=tmp_path / "resumed", data_dir=prepared_dataset)
  assert_same_state(resumed.state, whole.state)
  assert float(resumed.state.opt_state[-1].scale) == 0.25
  assert logged_rates(tmp_path / "resumed") == pytest.approx(rates)


def test_settings_that_contradict_each_other_are_refused_before_anything_is_written(tmp_path):
  for config, message in (
    (tiny_config(accumulate=3), r"data\.batch_size=8 must be divisible by train\.accumulate=3 times 8"),
    (tiny_config(schedule="plateau", restarts=(2,)), r"train\.restarts is \(2,\)"),
  ):
    with pytest.raises(ValueError, match=message):
      training.fit(config, workdir=tmp_path / "run", data_dir=tmp_path)
  assert not (tmp_path / "run").exists()


def test_training_stops_at_its_target(prepared_dataset, tmp_path, monkeypatch):
  monkeypatch.setattr(training, "validate", lambda *_, **__: {"auc": 0.9, "accuracy": 0.8})
  config = tiny_config(steps=9, validate_every=2, save_every=9, target_accuracy=0.75)
  result = training.fit(config, workdir=tmp_path, data_dir=prepared_dataset)
  assert int(result.state.step) == 2 and result.stopped == "validation accuracy reached 0.75"


def test_a_metric_that_is_not_measured_is_refused(prepared_dataset, tmp_path):
  with pytest.raises(ValueError, match=r"train\.metric is 'recall'; validation measures accuracy, auc"):
    training.fit(tiny_config(metric="recall", steps=2), workdir=tmp_path / "run", data_dir=prepared_dataset)
  assert not (tmp_path / "run").exists()


def test_the_names_of_metrics_are_those_that_validation_measures(whole_run):
  config = tiny_config().data
  measured = set(checkpoints.read_model(whole_run[1] / "best")["training"]) - {"best", "best_step", "waited"}
  kinds = tuple(f"{kind}_" for kind, _ in config.pseudofake_kinds)
  names = training.metric_names(config)
  # The data hold faces alone, and one kind by itself is not told apart.
  assert {name for name in names if not name.startswith(kinds)} == measured
  mixed = training.metric_names(dataclasses.replace(config, labelled_share=0.5))
  assert mixed - names == {f"labelled_{name}" for name in ("auc", "accuracy", "video_auc", "video_accuracy")}
  plain = training.metric_names(dataclasses.replace(config, pseudofakes=False))
  assert plain == {"auc", "accuracy", "video_auc", "video_accuracy"}


def test_a_loss_that_is_not_finite_ends_the_run_naming_the_step(prepared_dataset, tmp_path, monkeypatch):
  def broken(config):
    state = create_state(config)
    return state.replace(params=jax.tree.map(lambda x: x * math.nan, state.params))

  create_state = train_state.create_state
  monkeypatch.setattr(training, "create_state", broken)
  message = r"not finite at step 1 \(branch_tiny, fused, gradient_norm, region\); nothing of steps 1 to 2 was"
  with pytest.raises(training.TrainingError, match=message):
    training.fit(tiny_config(steps=2), workdir=tmp_path, data_dir=prepared_dataset)


def test_what_broke_between_two_saves_is_not_saved(prepared_dataset, tmp_path, monkeypatch):
  parallel_step, numbers = training.parallel_step, itertools.count(1)

  def poisoned(step):
    step = parallel_step(step)
    return lambda state, batch: step(
      state, {**batch, "region": batch["region"] * np.float32(math.nan if next(numbers) == 3 else 1)}
    )

  monkeypatch.setattr(training, "parallel_step", poisoned)
  message = r"not finite at step 3 \(gradient_norm, region\); nothing of steps 3 to 4 was saved"
  with pytest.raises(training.TrainingError, match=message) as raised:
    training.fit(tiny_config(steps=6), workdir=tmp_path, data_dir=prepared_dataset)
  noted = json.loads((tmp_path / "non_finite_step_3.json").read_text())
  assert noted["step"] == 3 and noted["not_finite"] == ["gradient_norm", "region"]
  drawn = data.batch_facts(tiny_config().data, data_dir=prepared_dataset, seed=0, step=3)
  assert noted["examples"] == drawn and len(drawn) == 8
  assert f"made of {drawn[0]['id']}, " in str(raised.value) and "non_finite_step_3.json" in str(raised.value)
  kept = training.RunCheckpoints(tmp_path)
  assert kept.latest_step() == checkpoints.read_model(tmp_path / "best")["training"]["best_step"] == 2
  kept.close()


def test_the_average_of_parameters_follows_its_formula():
  config = tiny_config(optimizer="sgd", learning_rate=0.5, warmup_steps=0, ema_decay=0.15)
  state = train_state.create_state(config)
  step = functools.partial(
    train_state.train_step,
    model=Detector(config.model),
    optimizer=train_state.create_optimizer(config.train),
    config=config,
  )
  after, _ = jax.jit(step)(state, tiny_batch(4))
  # Few steps: (1 + n) / (10 + n) is below the decay, here 1 / 10.
  for ema, old, new in zip(*map(jax.tree.leaves, (after.ema, state.ema, after.params)), strict=True):
    np.testing.assert_allclose(ema, 0.1 * old + 0.9 * new, atol=1e-6)
  assert int(after.step) == 1


def test_the_seed_decides_where_training_starts():
  a, b, c = (train_state.create_state(override(tiny_config(), f"seed={seed}")) for seed in (0, 0, 1))
  assert_same_state(a, b)
  assert any(
    not np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a.params, c.params)), strict=True)
  )
  np.testing.assert_array_equal(jax.tree.leaves(a.ema)[0], jax.tree.leaves(a.params)[0])


def test_imagenet_weights_go_into_the_backbone_and_nowhere_else(monkeypatch):
  config = override(
    override(override(tiny_config(), "model.branches=spatial"), "model.backbone=pico"), "model.features=32"
  )
  fake = random_variables(Detector(config.model), train_state.abstract_batch(1, config), train=False)
  imagenet = {kind: dict(fake[kind]["spatial"]["backbone"], classifier=np.ones(3)) for kind in fake}
  asked = []
  monkeypatch.setattr(train_state, "load_imagenet", lambda name, folder: asked.append(name) or imagenet)
  state = train_state.create_state(override(config, "train.pretrained=true"))
  assert asked == ["pico"]
  for ours, kind in ((state.params, "params"), (state.batch_stats, "batch_stats")):
    backbone = ours["spatial"]["backbone"]
    assert "classifier" not in backbone
    for path, value in jax.tree_util.tree_leaves_with_path(backbone):
      theirs = imagenet[kind]
      for key in path:
        theirs = theirs[key.key]
      np.testing.assert_array_equal(value, theirs)
  assert jax.tree.structure(state.params) == jax.tree.structure(fake["params"])


def test_the_verb_trains_calibrates_and_says_where_the_model_is(
  prepared_dataset, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(compilation_cache, "switch_on", lambda: "")
  (tmp_path / "preset.py").write_text(
    "from tiny import tiny_config\n\n\ndef get_config():\n  return tiny_config()\n"
  )
  run, fit = tmp_path / "run", training.fit

  def late_signal(*args, **kwargs):
    result = fit(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGTERM)
    return result

  with flagsaver.flagsaver(
    preset=str(tmp_path / "preset.py"),
    set=["train.steps=2"],
    data_dir=str(prepared_dataset),
    workdir=str(run),
    stopped_exit_code=143,
  ):
    with monkeypatch.context() as patch:
      patch.setattr(training, "fit", late_signal)
      assert train.main(["train"]) == 143
    told = "stopped by SIGTERM before the model was calibrated; the same command goes on.\n"
    assert capsys.readouterr().out == told
    assert train.main(["train"]) == 0
  assert f"the model: {run}/best" in capsys.readouterr().out
  assert load_detector(run / "best").config == tiny_config(steps=2)


def test_the_verb_says_how_a_stopped_run_goes_on(monkeypatch, tmp_path, capsys):
  stopped = training.FitResult(
    state=None, best=0.5, best_step=2, stopped="stopped by SIGINT at step 3", signal="SIGINT"
  )
  monkeypatch.setattr(compilation_cache, "switch_on", lambda: "")
  monkeypatch.setattr(training, "fit", lambda *_, **__: stopped)
  # Calibrating would fail, for there is no model. Another verb may have the flag with another default.
  with flagsaver.flagsaver(workdir=str(tmp_path), preset="default"):
    assert train.main(["train"]) == 0
  assert capsys.readouterr().out == "stopped by SIGINT at step 3; the same command goes on.\n"


@pytest.mark.parametrize(
  ("arguments", "flags", "message"),
  [
    ([], {"workdir": None}, "Say where the run may write: --workdir"),
    (["train.steps=2"], {"workdir": "x"}, "Unexpected argument 'train.steps=2'; fields .* by --set"),
  ],
)
def test_the_verb_says_what_it_needs(arguments, flags, message):
  with flagsaver.flagsaver(**flags), pytest.raises(train.app.UsageError, match=message):
    train.main(["train", *arguments])


def test_a_branch_is_added_while_all_else_stays_to_the_bit(prepared_dataset, tmp_path, monkeypatch):
  monkeypatch.setitem(BRANCHES, "tiny_too", lambda config, axis: TinyBranch(config.features, name="tiny_too"))
  first = write_model(tmp_path / "first")
  base = tiny_config()
  config = dataclasses.replace(
    base,
    model=dataclasses.replace(base.model, branches=("tiny", "tiny_too")),
    train=dataclasses.replace(base.train, start_from=str(first), branches=("tiny_too",)),
  )
  result = training.fit(config, workdir=tmp_path / "run", data_dir=prepared_dataset)
  # It knows what the first one was shown, without its folder.
  build = data.fingerprint("real_only", data_dir=prepared_dataset)
  known = {"build": build, "division": data.division("real_only", data_dir=prepared_dataset)}
  unknown = {"build": None, "division": None}
  for name in ("best", "last"):
    lineage = checkpoints.read_model(tmp_path / "run" / name)["lineage"]
    assert [training["datasets"] for training in lineage] == [{"real_only": known}, {"real_only": unknown}]
  given = checkpoints.read_params(first)["params"]
  for name in ("tiny", "fusion"):
    for path, value in traverse_util.flatten_dict(given[name]).items():
      for ours in (result.state.params, result.state.ema):
        found = functools.reduce(lambda tree, key: tree[key], path, ours[name])
        np.testing.assert_array_equal(found, value, err_msg=f"{name} {path}")
  before = train_state.create_state(config).params
  moved = [
    path
    for path, value in traverse_util.flatten_dict(before).items()
    if not np.array_equal(value, functools.reduce(lambda tree, key: tree[key], path, result.state.params))
  ]
  assert ("fusion", "kind_tiny_too") in moved and {path[0] for path in moved} == {"fusion", "tiny_too"}
  for wrong, message in (
    ({"branches": ("nobody",)}, r"train\.branches names nobody; the model has tiny, tiny_too"),
    ({"start_from": ""}, r"train\.branches needs train\.start_from"),
  ):
    changed = dataclasses.replace(config, train=dataclasses.replace(config.train, **wrong))
    with pytest.raises(ValueError, match=message):
      training.fit(changed, workdir=tmp_path / "other", data_dir=prepared_dataset)


@pytest.mark.parametrize(
  ("named", "kept"),
  [("tiny", "sound_calibration"), ("tiny_voice", "calibration"), ("tiny fusion", None), ("", None)],
)
def test_what_is_not_trained_keeps_its_calibration(named, kept, tmp_path):
  base = tiny_config()
  model = dataclasses.replace(base.model, branches=("tiny", "tiny_voice"))
  sound = dataclasses.replace(CALIBRATION, scale=2.5)
  calibrations = {"calibration": CALIBRATION, "sound_calibration": sound}
  folder = write_model(tmp_path / "first", config=dataclasses.replace(base, model=model), **calibrations)
  train = dataclasses.replace(base.train, start_from=str(folder), branches=tuple(named.split()))
  facts = training.model_facts(dataclasses.replace(base, model=model, train=train), {})
  found = {key: facts[key]["scale"] for key in calibrations if key in facts}
  assert found == ({kept: calibrations[kept].scale} if kept else {})


def test_what_a_trained_branch_reads_of_another_is_computed_and_stays(tmp_path):
  model = ModelConfig(branches=("spatial", "audio", "temporal"), backbone="pico", features=16, fusion_heads=2)
  config = Config(model=model, data=DataConfig(window=WindowConfig(frames=3)))
  config = override(override(config, "train.pretrained=false"), "train.warmup_steps=0")
  config = override(config, f"train.start_from={write_model(tmp_path / 'first', config=config)}")
  for named, moves in (
    ('["temporal"]', {"temporal"}),
    ('["fusion", "temporal"]', {"temporal", "fusion"}),
  ):
    config = override(config, f"train.branches={named}")
    part = train_state.trained_part(config)
    assert part.model.branches == ("spatial", "temporal")
    state = train_state.abstract_state(config)
    frozen = train_state.frozen_parameters(config)
    assert {path[0] for path in traverse_util.flatten_dict(state.params)} - {
      path[0] for path in frozen
    } == moves
    step = functools.partial(
      train_state.train_step,
      model=Detector(part.model),
      optimizer=train_state.create_optimizer(config.train),
      config=part,
      frozen=frozen,
    )
    _, sums = jax.eval_shape(step, state, train_state.abstract_training_batch(2, part))
    assert {"fused", "branch_spatial", "branch_temporal"} <= set(sums)
  with pytest.raises(ValueError, match=r"train\.branches names no branch; give some of spatial, audio"):
    train_state.trained_part(override(config, 'train.branches=["fusion"]'))


def test_parameters_of_another_shape_are_refused_by_name(tmp_path):
  config = tiny_config(start_from=str(write_model(tmp_path / "first")))
  config = dataclasses.replace(config, model=dataclasses.replace(config.model, features=12))
  with pytest.raises(ValueError, match=r"train\.start_from has \w+/.* the model needs"):
    train_state.create_state(config)
