import contextlib
import dataclasses
import io
import json
import logging
import os
import struct
import subprocess
import sys

import cv2
import numpy as np
import pytest
from test_logs import FakeFinishes
from tiny import tiny_branch, tiny_config

from deepscan_jax import logs, run_watch, training
from deepscan_jax.evaluation import Scores

pytest.importorskip("tensorboardX")
from tensorboardX.proto import event_pb2


@pytest.fixture(autouse=True)
def tiny():
  with tiny_branch():
    yield


def events(folder):
  """All events of a folder in the order in which TensorBoard reads them; the files hold TFRecords."""
  for path in sorted(folder.glob("events.out.tfevents.*")):
    record = path.read_bytes()
    while record:
      (length,) = struct.unpack_from("<Q", record)
      # Eight bytes of length and four of its checksum before, four of the data's behind.
      yield event_pb2.Event.FromString(record[12 : 12 + length])
      record = record[16 + length :]


def shown(folder):
  """(tag, step) -> values as TensorBoard shows them, which forgets what a restart takes back."""
  kept = []
  for event in events(folder):
    if event.HasField("session_log") and event.session_log.status == event_pb2.SessionLog.START:
      kept = [(step, value) for step, value in kept if step < event.step]
    kept += [(event.step, value) for value in event.summary.value]
  found = {}
  for step, value in kept:
    found.setdefault((value.tag, step), []).append(value)
  return found


def picture(value):
  return cv2.imdecode(np.frombuffer(value.image.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)


def scores():
  return Scores(
    labels=np.array([0, 1, 0, 1]),
    logits=np.array([-1.0, 2.0, 0.5, 0.3]),
    group=np.array(list("abcd")),
    source=np.array(list("ssss")),
    kind=np.array(["face"] * 4),
    has_faces=np.ones(4, bool),
    paired=True,
  )


class Watched:
  """A watch whose steps take a second, and whose batches three more."""

  def __init__(self, workdir, *, step=0, **train):
    self.now_s, self.stream, self.finishes = 0.0, io.StringIO(), FakeFinishes()
    config = tiny_config(steps=100, validate_every=30, **train)
    self.watch = run_watch.RunWatch(
      workdir,
      config=config,
      step=step,
      examples=8,
      log=logs.ScalarLog(workdir / "scalars.jsonl"),
      progress=logs.Progress(100, stream=self.stream, every_s=0.0),
      pace=logs.Pace(8, finishes=self.finishes, clock=lambda: self.now_s),
    )
    self.finishes.close = lambda: None

  def __iter__(self):
    return self

  def __next__(self):
    self.now_s += 3.0
    return {"batch": self.now_s}

  def steps(self, count):
    for _ in range(count):
      assert self.watch.next(self) == {"batch": self.now_s}
      self.now_s += 1.0
      self.finishes.done(self.now_s)
      self.watch.began({"fused": np.ones(())})

  def validate(self, step):
    with self.watch.validating():
      self.watch.scored(scores())
      self.now_s += 50.0
    self.watch.validated(step, {"auc": 0.75, "accuracy": 0.75})


def test_the_line_says_how_far_how_fast_and_how_long_still(tmp_path):
  run = Watched(tmp_path)
  run.steps(1)
  run.watch.show(1)
  run.steps(19)
  run.watch.trained(20, {"branch_tiny": 0.6, "fused": 0.5}, learning_rate=0.1)
  run.watch.show(20)
  run.steps(10)
  run.validate(30)
  run.watch.show(30)
  run.watch.close()
  assert run.stream.getvalue().splitlines() == [
    "step 1/100  --:-- left",
    # Eighty steps of four seconds; how long a validation takes is not known yet.
    "step 20/100  fused 0.500  2.0 examples/s  data wait 75 %  05:20 left  branch_tiny 0.600",
    # Seventy steps, and the validations at 60, 90 and 100.
    "step 30/100  fused 0.500  auc 0.750  accuracy 0.750  2.0 examples/s  data wait 75 %  07:10 left  "
    "branch_tiny 0.600",
  ]


def test_the_line_shows_what_chooses_the_model_first(tmp_path):
  run = Watched(tmp_path, metric="video_auc")
  run.steps(1)
  run.watch.trained(1, {"branch_tiny": 0.6, "fused": 0.5}, learning_rate=0.1)
  figures = {"auc": 0.75, "accuracy": 0.5, "video_auc": 0.875, "video_accuracy": 0.25}
  run.watch.validated(30, figures)
  run.watch.show(30)
  run.watch.close()
  (line,) = run.stream.getvalue().splitlines()
  assert line.startswith("step 30/100  fused 0.500  video_auc 0.875  auc 0.750  accuracy 0.500  ")
  assert "video_accuracy" not in line


def test_rows_hold_pace_and_curves_and_tensorboard_the_same(tmp_path):
  run = Watched(tmp_path)
  run.steps(20)
  run.watch.trained(20, {"fused": 0.5}, learning_rate=0.1)
  run.validate(20)
  run.watch.drew(20, np.zeros((8, 9, 3), np.uint8))
  run.watch.close()
  trained, validated = logs.read_scalars(tmp_path / "scalars.jsonl")
  assert logs.untimed(trained) == {"step": 20, "train/fused": 0.5, "learning_rate": 0.1}
  assert (trained["time/examples_per_s"], trained["time/data_wait"]) == (2.0, 0.75)
  assert validated["validation/confusion"] == [[1, 1], [0, 2]] and validated["time/validation_s"] == 50.0
  assert validated["validation/roc"] == [[0.0, 0.0, 0.5, 0.5, 1.0], [0.0, 0.5, 0.5, 1.0, 1.0]]
  found = shown(tmp_path / "tensorboard")
  for row in (trained, validated):
    for key, value in row.items():
      if key not in ("step", "time_s") and not isinstance(value, list):
        assert any(entry.simple_value == pytest.approx(value) for entry in found[key, 20])
  for name in ("confusion", "roc", "samples"):
    (entry,) = found[name, 20]
    assert picture(entry).shape == (entry.image.height, entry.image.width, 3)


def test_a_run_that_goes_on_knows_what_it_has_taken_so_far(tmp_path):
  log = logs.ScalarLog(tmp_path / "scalars.jsonl")
  log.write(30, {"train/fused": 0.5, "time/run_s": 1000.0})
  log.write(30, {"validation/auc": 0.5, "time/run_s": 1100.0, "time/validation_s": 100.0})
  # After the step that it goes on from, so not part of it.
  log.write(60, {"validation/auc": 0.5, "time/run_s": 9000.0, "time/validation_s": 9.0})
  log.close()
  run = Watched(tmp_path, step=30)
  run.steps(1)
  run.watch.show(31)
  run.steps(1)
  run.watch.show(32)
  run.watch.trained(32, {"fused": 0.5}, learning_rate=0.1)
  run.watch.close()
  first, second = run.stream.getvalue().splitlines()
  assert first == "step 31/100  --:-- left"
  # 68 steps of four seconds, and three validations as long as the last one.
  assert second.endswith(f"  {logs.clock(68 * 4 + 3 * 100)} left")
  (row,) = [row for row in logs.read_scalars(tmp_path / "scalars.jsonl") if row["step"] == 32]
  assert 1100 <= row["time/run_s"] < 1200


@pytest.mark.parametrize(
  ("step", "steps", "every", "expected"),
  [(0, 100, 30, 4), (30, 100, 30, 3), (95, 100, 30, 1), (100, 100, 30, 0), (0, 100, 50, 2), (50, 100, 50, 1)],
)
def test_validations_that_are_left_are_counted(tmp_path, step, steps, every, expected):
  run = Watched(tmp_path)
  train = dataclasses.replace(tiny_config().train, steps=steps, validate_every=every)
  run.watch._config = dataclasses.replace(tiny_config(), train=train)
  passed = [n for n in range(step + 1, steps + 1) if n % every == 0 or n == steps]
  assert run.watch._validations_after(step) == len(passed) == expected
  run.watch.close()


def test_without_tensorboardx_one_line_says_so(tmp_path, monkeypatch, caplog):
  monkeypatch.setitem(sys.modules, "tensorboardX", None)
  with caplog.at_level(logging.INFO):
    run = Watched(tmp_path)
  assert [r.getMessage() for r in caplog.records if "tensorboardX" in r.getMessage()] == [
    "No files for TensorBoard are written: they need tensorboardX (pip install tensorboardX)."
  ]
  assert not run.watch.draws
  run.steps(20)
  run.validate(20)
  run.watch.close()
  assert [path.name for path in tmp_path.iterdir()] == ["scalars.jsonl"]


def test_another_process_of_the_same_run_writes_nothing(tmp_path):
  run = Watched(tmp_path)
  run.watch.close()
  config = tiny_config()
  stream, log = io.StringIO(), logs.ScalarLog(tmp_path / "scalars.jsonl")
  silent = run_watch.RunWatch(
    tmp_path,
    config=config,
    step=0,
    examples=8,
    log=log,
    progress=logs.Progress(4, stream=stream, every_s=0.0),
    tells=False,
  )
  assert silent.next(iter([{"label": 1}])) == {"label": 1} and not silent.draws
  silent.began({"fused": np.ones(())})
  silent.trained(1, {"fused": 0.5}, learning_rate=0.1)
  with silent.validating():
    silent.scored(scores())
  silent.drew(1, np.zeros((8, 9, 3), np.uint8))
  silent.validated(1, {"auc": 0.75, "accuracy": 0.75})
  silent.show(4)
  silent.summarise(record={}, stopped="", step=1, params={}, data_dir="")
  silent.close()
  assert stream.getvalue() == "" and [path.name for path in tmp_path.iterdir()] == ["scalars.jsonl"]
  assert (tmp_path / "scalars.jsonl").read_text() == ""


def test_pytorch_is_not_imported_for_tensorboard(tmp_path):
  (tmp_path / "torch.py").write_text("raise SystemExit('PyTorch was imported')\n")
  program = (
    "import pathlib, sys\n"
    "from deepscan_jax.event_files import EventFiles\n"
    "assert EventFiles(pathlib.Path(sys.argv[1]), after=0).wanted and 'torch' not in sys.modules\n"
    "import torch\n"
  )
  path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
  done = subprocess.run(
    [sys.executable, "-c", program, str(tmp_path)],
    env={**os.environ, "PYTHONPATH": path},
    capture_output=True,
    text=True,
    check=False,
  )
  # Afterwards it can be imported as ever.
  assert done.stderr.strip() == "PyTorch was imported"


def test_a_run_is_seen_once_however_often_it_was_interrupted(prepared_dataset, tmp_path, monkeypatch):
  config = tiny_config(steps=4, validate_every=2, save_every=2)

  class Interrupted(Exception):
    pass

  def stop_at(number):
    show = run_watch.RunWatch.show

    def stopping(self, step):
      show(self, step)
      if step == number:
        raise Interrupted

    return stopping

  monkeypatch.setattr(training, "_LOG_EVERY", 1)
  with monkeypatch.context() as patch:
    patch.setattr(run_watch.RunWatch, "show", stop_at(3))
    with contextlib.suppress(Interrupted):
      training.fit(config, workdir=tmp_path, data_dir=prepared_dataset)
  assert not (tmp_path / "summary.html").exists()
  result = training.fit(config, workdir=tmp_path, data_dir=prepared_dataset)
  found = shown(tmp_path / "tensorboard")
  rows = logs.read_scalars(tmp_path / "scalars.jsonl")
  assert [(row["step"], logs.is_validation(row)) for row in rows] == [
    (1, False),
    (2, False),
    (2, True),
    (3, False),
    (4, False),
    (4, True),
  ]
  for row in rows:
    for key, value in logs.untimed(row).items():
      if key != "step" and not isinstance(value, list):
        (entry,) = found[key, row["step"]]
        assert entry.simple_value == pytest.approx(value, nan_ok=True)
  # The first step of a process is not timed: step 1, and step 3 of the one that goes on.
  timed = {row["step"]: row["time/data_wait"] for row in rows if "time/examples_per_s" in row}
  assert list(timed) == [2, 4] and all(0 <= wait <= 1 for wait in timed.values())
  for step in (2, 4):
    (sheet,) = found["samples", step]
    # Four pairs: both twins, what was blended in, and the map of each.
    assert picture(sheet).shape == (4 * 188 + 6, 5 * 166 + 6, 3)
    counts = next(row for row in rows if row["step"] == step and logs.is_validation(row))[
      "validation/confusion"
    ]
    assert np.sum(counts, axis=1).tolist() == [8, 8]
  # The summary is that of the log, and of a run with nothing more to do.
  summary = (tmp_path / "summary.md").read_text()
  assert f"Best validation AUC {result.best:.4f} at step {result.best_step}." in summary
  assert "Stopped at step 4 of 4: all steps done." in summary and "| real_only | 6 | 4 | " in summary
  assert str(sum(x.size for x in map(np.asarray, _leaves(result.state.params)))) in summary
  files = sorted(path.name for path in (tmp_path / "tensorboard").iterdir())
  assert len(files) == 2
  (tmp_path / "summary.md").unlink()
  training.fit(config, workdir=tmp_path, data_dir=prepared_dataset)
  assert (tmp_path / "summary.md").read_text() == summary
  assert sorted(path.name for path in (tmp_path / "tensorboard").iterdir()) == files
  assert json.loads((tmp_path / "best" / "model.json").read_text())["training"]["best"] == result.best


def _leaves(tree):
  return [
    leaf for value in tree.values() for leaf in (_leaves(value) if isinstance(value, dict) else [value])
  ]
