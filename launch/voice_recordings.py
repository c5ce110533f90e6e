"""Recordings of real speech: whose they are, and parts of them of one length."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from deepscan_jax import media
from deepscan_jax.augment_audio import SAMPLE_RATE_HZ
from deepscan_jax.datasets.media_builder import SOUND_SUFFIXES, walk_media

PART_S = 8.0
# The folder beside those of recordings, for what engines say.
ENGINES_KIND = "engines"
# A shorter rest is no part: no detector judges it (sound_too_short).
_LEAST_S = 2.0
# This hides the seam where short recordings are joined.
_FADE_S = 0.01
# Audible, of the loudest 16-bit sample.
_LEAST_PEAK = 0.01
# By corpus what a file's name says of its speaker.
_NAMED = {
  # Chapters have three digits at least, so that a day is none.
  "librispeech": re.compile(r"(.*/)?(?P<speaker>\d+)-\d{3,}-\d{4}\.flac"),
  "emodb": re.compile(r"(.*/)?(?P<speaker>\d\d)[ab]\d\d[A-Z][a-z]?\.wav"),
  "fsdd": re.compile(r"(.*/)?fsdd/(.*/)?\d_(?P<speaker>[a-z]+)_\d+\.wav"),
}
# Sentences of two seconds.
_SHORT = ("emodb",)
# Spoken digits at 8 kHz: no detector judges those (narrow_band), and none should learn from them.
_LEFT_OUT = ("fsdd",)
_ASTERISK, _TUXPAINT = Path("/usr/share/asterisk/sounds"), Path("/usr/share/tuxpaint/stamps")
_KTUBERLING = Path("/usr/share/ktuberling/sounds")
PROMPTS = (
  "apt install asterisk-core-sounds-en-g722 asterisk-core-sounds-es-g722 asterisk-core-sounds-fr-g722 "
  "asterisk-core-sounds-it-g722 asterisk-core-sounds-ru-g722 tuxpaint-stamps-default ktuberling-data"
)


@dataclasses.dataclass(frozen=True)
class Recording:
  """A file of one speaker.

  Attributes:
    kind: of recordings: librispeech, emodb, prompts, games, or the name of a folder or tar.
    speaker: a folder's name.
    file: its name.
    read: () -> float32 [sample] in -1..1 at 16 kHz; raises media.MediaError.
    joined: whether it is short, and is joined with others of its speaker.
  """

  kind: str
  speaker: str
  file: str
  read: Callable[[], np.ndarray]
  joined: bool = False


def recordings_in(path: Path) -> list[Recording]:
  """Those of a folder or tar, in order of name; files of LibriSpeech and EmoDB are known by their names.

  Others lie in a folder of each speaker's, and their kind is named as the folder or tar is.

  Raises:
    FileNotFoundError: there is no such folder or tar.
    ValueError: it is a damaged tar, holds a sound file in no folder, or two folders of one name.
  """
  if not (path.is_dir() or (path.is_file() and tarfile.is_tarfile(path))):
    raise FileNotFoundError(f"There is no folder or tar {path}; name one that holds recordings of speech.")
  found, folders = [], {}
  for name, file, read in walk_media(path):
    if not name.lower().endswith(SOUND_SUFFIXES):
      continue
    matches = {corpus: match for corpus, pattern in _NAMED.items() if (match := pattern.fullmatch(name))}
    kind, match = next(iter(matches.items()), (_kind_of(path), None))
    if kind in _LEFT_OUT:
      continue
    if match:
      speaker = match["speaker"]
    else:
      folder = Path(name).parent
      speaker = folder.name
      if speaker in ("", ".."):
        raise ValueError(f"{path} has {name} beside its folders; put recordings into one for each speaker.")
      if (other := folders.setdefault(speaker, folder)) != folder:
        raise ValueError(
          f"{path} has two folders called {speaker}, {other} and {folder}; let the folder that holds the "
          "files be named after the speaker."
        )
    content = file.read_bytes if file else read
    sound = functools.partial(_decoded, content)
    found.append(Recording(kind, speaker, name, sound, joined=kind in _SHORT))
  return found


def installed_prompts() -> list[Recording]:
  """Speech that comes with free programs: telephone prompts at 16 kHz (G.722), and games that speak."""
  found = []
  for file in sorted(_ASTERISK.rglob("*.g722")):
    folders = file.relative_to(_ASTERISK).parts[:-1]
    if folders and "silence" not in folders:
      # en_US_f_Allison and es_MX_f_Allison are one person.
      speaker = folders[0].rpartition("_")[2]
      found.append(Recording("prompts", speaker, str(file), functools.partial(_telephone, file), joined=True))
  for file in sorted(_TUXPAINT.rglob("*_desc_*.ogg")):
    found.append(_game(file, f"tuxpaint_{file.stem.partition('_desc_')[2].partition('.')[0]}"))
  for file in sorted(_KTUBERLING.rglob("*.ogg")):
    language = file.relative_to(_KTUBERLING).parts[0]
    # Another spelling of a language has the same sounds.
    if "@" not in language:
      found.append(_game(file, f"ktuberling_{language}"))
  return found


def kinds(speech: Iterable[Path]) -> list[str]:
  """The folders that `deepscan synthetic_voices` makes of some recordings, and of what is installed.

  Raises:
    FileNotFoundError, ValueError: as `recordings_in`.
  """
  recordings = [recording for path in speech for recording in recordings_in(path)]
  return sorted({recording.kind for recording in recordings + installed_prompts()} | {ENGINES_KIND})


def parts_of(recordings: Iterable[Recording], *, most: int) -> Iterator[np.ndarray]:
  """What one speaker says, in parts of PART_S and shorter rests.

  Args:
    recordings: all of one speaker, of one kind.
    most: parts that are enough.

  Yields:
    float32 [sample] in -1..1 at 16 kHz, of at least two seconds.
  """
  length, least = (round(s * SAMPLE_RATE_HZ) for s in (PART_S, _LEAST_S))
  recordings = list(recordings)
  sounds = (sound for recording in recordings for sound in _audible(recording))
  if any(recording.joined for recording in recordings):
    sounds = _joined(sounds, length)
  pieces = (sound[i : i + length] for sound in sounds for i in range(0, len(sound), length))
  yield from itertools.islice((piece for piece in pieces if len(piece) >= least), most)


def _audible(recording: Recording) -> Iterator[np.ndarray]:
  """Its sound, where it can be read and heard."""
  try:
    sound = recording.read()
  except media.MediaError as error:
    logging.warning("Left out: %s, which cannot be read: %s", recording.file, error)
    return
  if len(sound) and np.abs(sound).max() >= _LEAST_PEAK:
    yield sound


def _joined(sounds: Iterable[np.ndarray], length: int) -> Iterator[np.ndarray]:
  """One after the other, as many as a part takes."""
  ramp = np.linspace(0, 1, round(_FADE_S * SAMPLE_RATE_HZ), dtype=np.float32)
  together: list[np.ndarray] = []
  for sound in sounds:
    if len(sound) <= 2 * len(ramp):
      continue
    faded = sound.copy()
    faded[: len(ramp)] *= ramp
    faded[-len(ramp) :] *= ramp[::-1]
    together.append(faded)
    if sum(map(len, together)) >= length:
      yield np.concatenate(together)[:length]
      together = []
  if together:
    yield np.concatenate(together)


def _kind_of(path: Path) -> str:
  name = re.sub(r"[^a-z0-9]+", "_", path.name.lower().partition(".")[0]).strip("_") or "speech"
  # Others have these.
  return f"{name}_speech" if name in (ENGINES_KIND, "prompts", "games", *_NAMED) else name


def _game(file: Path, speaker: str) -> Recording:
  return Recording("games", speaker, str(file), functools.partial(_decoded, file.read_bytes), joined=True)


def _decoded(content: Callable[[], bytes]) -> np.ndarray:
  return media.decode_bytes(content()).waveform


def _telephone(file: Path) -> np.ndarray:
  """A file of G.722, which has no header that would say so."""
  import av

  try:
    with av.open(str(file), format="g722") as container:
      frames = [frame.to_ndarray().ravel() for frame in container.decode(audio=0)]
  except av.FFmpegError as error:
    raise media.MediaError("damaged", f"{file} is no G.722") from error
  return np.concatenate([np.zeros(0, np.int16), *frames]).astype(np.float32) / 32768


def by_speaker(recordings: Sequence[Recording]) -> dict[tuple[str, str], list[Recording]]:
  """By (kind, speaker) the recordings, in their order."""
  found: dict[tuple[str, str], list[Recording]] = {}
  for recording in recordings:
    found.setdefault((recording.kind, recording.speaker), []).append(recording)
  return dict(sorted(found.items()))
