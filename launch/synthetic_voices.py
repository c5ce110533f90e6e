"""Writes real voices and synthetic ones by many engines, to train and test detectors with.

    deepscan synthetic_voices --speech=real_speech.tar --speech=real_speech_extra.tar --output=voices
    deepscan build_dataset --name=real_fake_folder $(printf -- ' --media=%s' voices/*/) --data_dir=data_voices

--speech are folders or tars of recordings, in a folder for each speaker; those of LibriSpeech and EmoDB are
known by the names of their files. Prompts of free telephone systems and games are used where their packages
are installed. Below OUTPUT each kind of recordings has a folder of its own, with

  KIND/real/SPEAKER/             what was recorded, in parts of eight seconds
  KIND/fake/VOCODER/SPEAKER/     the same, taken apart and put together again: a speaker and all that was made
                                 of it is a group, and stays in one split
  engines/fake/ENGINE/VOICE/     text that engines speak

An engine with fewer than six voices gets others by playing them slower or faster, which moves pitch and
formants; they are named after the rate (joe_x0.93), and are groups of their own, though one person stands
behind them, as two stand behind a voice of Kokoro that lies between two others: of engines, what is kept for
a test is other voices, not always other people. Engines and vocoders that
are not installed are left out; `--list` says which there are, of what licence, and how to install them. None
of them is needed for anything else. The same flags, engines and recordings give the same files; what is there
already is not made again. About half an hour on one core.
"""

import hashlib
import itertools
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import app, flags

from deepscan_jax.augment_audio import SAMPLE_RATE_HZ
from deepscan_jax.files import claim_folder, whole_file

_SPEECH = flags.DEFINE_multi_string(
  "speech", [], "Folder or tar of recordings; several: again.", allow_override=True
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the voices.", allow_override=True)
_ENGINES = flags.DEFINE_list("engines", [], "Engines and vocoders to use; none: all that are installed.")
_FILES = flags.DEFINE_integer(
  "files", 120, "Of each engine and vocoder; of networks twice as many.", lower_bound=1
)
_PARTS = flags.DEFINE_integer("parts", 24, "Of each speaker, at most.", lower_bound=1)
_LIST = flags.DEFINE_bool("list", False, "Say which engines there are, and make nothing.")
_SEED = flags.DEFINE_integer("seed", 0, "Of all that is drawn.", lower_bound=0, allow_override=True)
# Voices that an engine has at least, and the rates they are played at for that.
_LEAST_VOICES = 6
_RATES = (1.0, 0.93, 1.08, 0.87, 1.15, 0.9, 1.11)
_LEAST_S, _LEAST_PEAK = 2.0, 0.01


def main(argv: Sequence[str]) -> int:
  """Makes what the flags ask for; returns the exit code."""
  if argv[1:] or not (_LIST.value or (_SPEECH.value and _OUTPUT.value)):
    raise app.UsageError("Say --speech=FOLDER_OR_TAR and --output=FOLDER, or --list, and no more than flags.")

  from . import voice_engines, voice_recordings

  known = {**voice_engines.ENGINES, **voice_engines.VOCODERS}
  if unknown := [name for name in _ENGINES.value if name not in known]:
    raise app.UsageError(f"There is no engine {', '.join(unknown)}; there are {', '.join(known)}.")
  names = _ENGINES.value or list(known)
  engines, broken = _ready({n: e.voices for n, e in voice_engines.ENGINES.items() if n in names})
  vocoders, wrong = _ready({n: v.prepare for n, v in voice_engines.VOCODERS.items() if n in names})
  broken |= wrong
  if _LIST.value:
    for name in names:
      there = "installed" if name in engines or name in vocoders else f"to install: {known[name].install}"
      if name in broken:
        there = f"cannot be used ({broken[name]}); {there}"
      print(f"{name}: {known[name].what}; {there}")
    return 0
  recordings = [r for path in _SPEECH.value for r in voice_recordings.recordings_in(Path(path))]
  if not recordings:
    raise app.UsageError("--speech holds no recording that can be used; give folders or tars of sound files.")
  for name, reason in broken.items():
    _say(f"Left out, for it cannot be used: {name} ({reason}).")
  if missing := [name for name in names if name not in {*engines, *vocoders, *broken}]:
    _say(f"Left out, for they are not installed: {', '.join(missing)}. `--list` says how to get them.")
  prompts = voice_recordings.installed_prompts()
  if not prompts:
    _say(f"There are no prompts of telephone systems and games: {voice_recordings.PROMPTS}")
  output = Path(_OUTPUT.value)
  _claim(output, recordings + prompts)
  real = write_real(recordings + prompts, output)
  for name, copy in vocoders.items():
    write_copies(name, copy, real, output, count=_count(known[name]))
  (output / voice_recordings.ENGINES_KIND / "fake").mkdir(parents=True, exist_ok=True)
  for name, voices in engines.items():
    write_spoken(name, voices, output, count=_count(known[name]))
  return 0


def write_real(recordings: Sequence, output: Path) -> list[Path]:
  """Writes KIND/real/SPEAKER/; returns the parts, relative to the output.

  Args:
    recordings: of voice_recordings.
    output: the folder of all.
  """
  from . import voice_recordings

  speakers, written = voice_recordings.by_speaker(recordings), []
  for (kind, speaker), own in speakers.items():
    folder = Path(kind, "real", speaker)
    # Of a kind with nothing that can be used, too, for build_dataset is told of all.
    (output / kind / "real").mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(voice_recordings.parts_of(own, most=_PARTS.value)):
      written.append(folder / f"{number:03d}.flac")
      _write(output / written[-1], part, SAMPLE_RATE_HZ)
  if not written:
    raise app.UsageError("No recording can be read, is loud enough and two seconds long; give others.")
  heard = len({path.parent for path in written})
  short = f", and of {len(speakers) - heard} none that can be used" if heard < len(speakers) else ""
  _say(f"real: {len(written)} parts of {heard} speakers{short}")
  return written


def write_copies(name: str, copy: Callable, real: Sequence[Path], output: Path, *, count: int) -> None:
  """Writes KIND/fake/VOCODER/SPEAKER/, of speakers of all kinds in turn.

  Args:
    name: of the vocoder.
    copy: (waveform, rng) -> voice_engines.Sound.
    real: as `write_real` returns it.
    output: the folder of all.
    count: of copies.
  """
  rng = _rng(name)
  kinds: dict[str, list[Path]] = {}
  for place in rng.permutation(len(real)):
    kinds.setdefault(real[place].parts[0], []).append(real[place])
  turns = itertools.chain.from_iterable(itertools.zip_longest(*(kinds[kind] for kind in sorted(kinds))))
  chosen = list(itertools.islice((part for part in turns if part is not None), count))
  failures: list[str] = []
  for part in chosen:
    kind, _, *rest = part.parts
    path = output.joinpath(kind, "fake", name, *rest)
    if path.exists():
      continue
    try:
      made = copy(_read(output / part), _rng(name, str(part)))
    except Exception as error:
      failures.append(f"{type(error).__name__}: {error}")
      continue
    _write(path, made.waveform, made.sample_rate_hz)
  _say(f"{name}: {len(chosen) - len(failures)} copies{_told(failures)}")


def write_spoken(name: str, voices: Sequence, output: Path, *, count: int) -> None:
  """Writes engines/fake/ENGINE/VOICE/, each voice in turn.

  Args:
    name: of the engine.
    voices: its voice_engines.Voice.
    output: the folder of all.
    count: of files.
  """
  from . import voice_texts
  from .voice_recordings import ENGINES_KIND

  rates = _RATES[: -(-_LEAST_VOICES // len(voices))] if len(voices) < _LEAST_VOICES else (1.0,)
  tuned = [(voice, rate) for rate in rates for voice in voices]
  failures: list[str] = []
  for number in range(count):
    voice, rate = tuned[number % len(tuned)]
    folder = f"{name}_{voice.name}" + (f"_x{rate}" if rate != 1 else "")
    path = output / ENGINES_KIND / "fake" / name / folder / f"{number // len(tuned):03d}.flac"
    if path.exists():
      continue
    rng = _rng(name, voice.name, str(number))
    try:
      made = voice.speak(voice_texts.sentences(voice.language, rng), rng)
    except Exception as error:
      failures.append(f"{type(error).__name__}: {error}")
      continue
    played_hz = round(made.sample_rate_hz * rate)
    # A few engines say little or nothing to what they cannot read.
    if len(made.waveform) < _LEAST_S * played_hz or np.abs(made.waveform).max() < _LEAST_PEAK:
      failures.append("less than two seconds, or silence")
      continue
    _write(path, made.waveform, played_hz)
  _say(f"{name}: {count - len(failures)} files, {len(tuned)} voices{_told(failures)}")


def _told(failures: Sequence[str]) -> str:
  return f"; {len(failures)} failed, the last with: {failures[-1]}" if failures else ""


def _count(engine) -> int:
  """Files of an engine: networks are what most forgers use."""
  return _FILES.value * (2 if engine.neural else 1)


def _ready(makers: Mapping[str, Callable]) -> tuple[dict, dict[str, str]]:
  """What those that are installed make, and of those that are there but fail the reason."""
  from .voice_engines import NotInstalled

  found, broken = {}, {}
  for name, make in makers.items():
    try:
      found[name] = make()
    except NotInstalled:
      continue
    except Exception as error:
      broken[name] = f"{type(error).__name__}: {error}"
  return found, broken


def _claim(output: Path, recordings: Sequence) -> None:
  """Raises where the folder holds what other flags, or other recordings, have made."""
  listed = sorted(f"{recording.kind}/{recording.speaker}/{recording.file}" for recording in recordings)
  wanted = {
    "files": _FILES.value,
    "parts": _PARTS.value,
    "seed": _SEED.value,
    "choice of recordings": hashlib.sha256("\n".join(listed).encode()).hexdigest(),
  }
  claim_folder(output, wanted, what="voices")


def _rng(*names: str) -> np.random.Generator:
  return np.random.default_rng([_SEED.value, *(zlib.crc32(name.encode()) for name in names)])


def _read(path: Path) -> np.ndarray:
  import soundfile

  return soundfile.read(path, dtype="float32")[0]


def _write(path: Path, waveform: np.ndarray, sample_rate_hz: int) -> None:
  import soundfile

  if path.exists():
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  with whole_file(path, durable=False) as file:
    soundfile.write(file, np.clip(waveform, -1, 1), sample_rate_hz, format="FLAC", subtype="PCM_16")


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
  from .__main__ import run_module

  run_module(__name__)
