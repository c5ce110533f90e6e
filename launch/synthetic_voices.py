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
formants; they are named after the rate (joe_x0.93). Engines and vocoders that are not installed are left out;
`--list` says which there are, of what licence, and how to install them. None of them is needed for anything
else. The same flags, engines and recordings give the same files, but for engines that draw for themselves.
What is there already is not made again. About half an hour on one core.
"""

import itertools
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import app, flags

from deepscan_jax.files import whole_file

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
_ENGINES_KIND = "engines"


def main(argv: Sequence[str]) -> int:
  """Makes what the flags ask for; returns the exit code."""
  if argv[1:] or not (_LIST.value or (_SPEECH.value and _OUTPUT.value)):
    raise app.UsageError("Say --speech=FOLDER_OR_TAR and --output=FOLDER, or --list, and no more than flags.")

  from . import voice_engines, voice_recordings

  known = {**voice_engines.ENGINES, **voice_engines.VOCODERS}
  if unknown := [name for name in _ENGINES.value if name not in known]:
    raise app.UsageError(f"There is no engine {', '.join(unknown)}; there are {', '.join(known)}.")
  names = _ENGINES.value or list(known)
  engines = _ready({n: e.voices for n, e in voice_engines.ENGINES.items() if n in names})
  vocoders = _ready({n: v.prepare for n, v in voice_engines.VOCODERS.items() if n in names})
  if _LIST.value:
    for name, engine in known.items():
      there = "installed" if name in engines or name in vocoders else f"to install: {engine.install}"
      print(f"{name}: {engine.what}; {there}")
    return 0
  recordings = [r for path in _SPEECH.value for r in voice_recordings.recordings_in(Path(path))]
  if not recordings:
    raise app.UsageError("--speech holds no recording that can be used; give folders or tars of sound files.")
  if missing := [name for name in names if name not in engines and name not in vocoders]:
    _say(f"Left out, for they are not installed: {', '.join(missing)}. `--list` says how to get them.")
  prompts = voice_recordings.installed_prompts()
  if not prompts:
    _say(f"There are no prompts of telephone systems and games: {voice_recordings.PROMPTS}")
  output = Path(_OUTPUT.value)
  real = write_real(recordings + prompts, output)
  for name, copy in vocoders.items():
    write_copies(name, copy, real, output, count=_count(known[name]))
  for name, voices in engines.items():
    write_spoken(name, voices, output, count=_count(known[name]))
  return 0


def kinds(speech: Sequence[Path]) -> list[str]:
  """The folders of the output that are made of some recordings and of what is installed.

  Raises:
    FileNotFoundError, ValueError: as `voice_recordings.recordings_in`.
  """
  from . import voice_engines, voice_recordings

  recordings = [r for path in speech for r in voice_recordings.recordings_in(path)]
  found = {recording.kind for recording in recordings + voice_recordings.installed_prompts()}
  speaking = _ready({name: engine.voices for name, engine in voice_engines.ENGINES.items()})
  return sorted(found | ({_ENGINES_KIND} if speaking else set()))


def write_real(recordings: Sequence, output: Path) -> list[Path]:
  """Writes KIND/real/SPEAKER/; returns the parts, relative to the output.

  Args:
    recordings: of voice_recordings.
    output: the folder of all.
  """
  from . import voice_recordings

  written = []
  for (kind, speaker), own in voice_recordings.by_speaker(recordings).items():
    folder = Path(kind, "real", speaker)
    for number, part in enumerate(voice_recordings.parts_of(own, most=_PARTS.value)):
      written.append(folder / f"{number:03d}.flac")
      _write(output / written[-1], part, 16000)
  _say(f"real: {len(written)} parts of {len({path.parent for path in written})} speakers")
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
  for part in chosen:
    kind, _, *rest = part.parts
    path = output.joinpath(kind, "fake", name, *rest)
    if not path.exists():
      made = copy(_read(output / part), _rng(name, str(part)))
      _write(path, made.waveform, made.sample_rate_hz)
  _say(f"{name}: {len(chosen)} copies")


def write_spoken(name: str, voices: Sequence, output: Path, *, count: int) -> None:
  """Writes engines/fake/ENGINE/VOICE/, each voice in turn.

  Args:
    name: of the engine.
    voices: its voice_engines.Voice.
    output: the folder of all.
    count: of files.
  """
  from . import voice_texts

  rates = _RATES[: -(-_LEAST_VOICES // len(voices))] if len(voices) < _LEAST_VOICES else (1.0,)
  tuned = [(voice, rate) for rate in rates for voice in voices]
  failed = 0
  for number in range(count):
    voice, rate = tuned[number % len(tuned)]
    folder = f"{name}_{voice.name}" + (f"_x{rate}" if rate != 1 else "")
    path = output / _ENGINES_KIND / "fake" / name / folder / f"{number // len(tuned):03d}.flac"
    if path.exists():
      continue
    rng = _rng(name, voice.name, str(number))
    made = voice.speak(voice_texts.sentences(voice.language, rng), rng)
    # A few engines say nothing to what they cannot read.
    if len(made.waveform) < made.sample_rate_hz or np.abs(made.waveform).max() < 0.01:
      failed += 1
      continue
    _write(path, made.waveform, round(made.sample_rate_hz * rate))
  _say(f"{name}: {count - failed} files, {len(tuned)} voices")


def _count(engine) -> int:
  """Files of an engine: networks are what most forgers use."""
  return _FILES.value * (2 if engine.neural else 1)


def _ready(makers: Mapping[str, Callable]) -> dict:
  """What those that are installed make."""
  from .voice_engines import NotInstalled

  found = {}
  for name, make in makers.items():
    try:
      found[name] = make()
    except NotInstalled:
      continue
  return found


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
