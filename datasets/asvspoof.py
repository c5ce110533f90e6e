"""What the ASVspoof builders share: the lines of a protocol become sound files with labels."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from deepscan_jax import examples

from .media_builder import MediaBuilder, MediaFile

# What ASVspoof calls genuine and forged speech.
LABELS = {"bonafide": examples.REAL, "spoof": examples.FAKE}


@dataclasses.dataclass(frozen=True)
class Trial:
  """One line of a protocol.

  Attributes:
    name: of the sound file, without its ending.
    speaker: who speaks, or is imitated.
    key: "bonafide" or "spoof".
    attack: such as "A07"; "" where the speech is genuine.
    words: the whole line.
  """

  name: str
  speaker: str
  key: str
  attack: str
  words: tuple[str, ...]


def read_trials(path: Path, *, attack: int, key: int, least: int, example: str) -> list[Trial]:
  """The trials that a protocol lists, in its order; blank lines are passed over.

  Args:
    path: of the protocol: words between blanks, of which the first is the speaker and the second the file.
    attack, key: which words, from 0 on, tell them.
    least: how many words a line has at least.
    example: of a line, for people.

  Raises:
    FileNotFoundError: it is not there.
    ValueError: a line is too short, has an unknown key, or names a file that an earlier line names.
  """
  if not path.is_file():
    raise FileNotFoundError(f"{path} is not there; it holds lines such as {example!r}.")
  trials: dict[str, Trial] = {}
  for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
    words = tuple(line.split())
    if not words:
      continue
    place = f"{path}, line {number}"
    if len(words) < least:
      raise ValueError(f"{place} is {line!r}; expected {least} words or more, such as {example!r}.")
    if words[key] not in LABELS:
      raise ValueError(f"{place} has the key {words[key]!r}; expected {' or '.join(LABELS)}.")
    if words[1] in trials:
      raise ValueError(f"{place} names {words[1]}, which an earlier line has named.")
    forged = LABELS[words[key]] == examples.FAKE
    trials[words[1]] = Trial(words[1], words[0], words[key], words[attack] if forged else "", words)
  return list(trials.values())


def sound_files(
  builder: MediaBuilder,
  folders: Iterable[Path],
  trials: Iterable[Trial],
  *,
  below: str,
  split: str,
  source: Callable[[Trial], str],
) -> Iterator[tuple[Trial, MediaFile]]:
  """Each trial with its sound file; the builder lists absent files, and files that no trial names.

  Args:
    builder: whose `leave_out` is told.
    folders: that the FLAC files lie in; each file in one of them.
    trials: in order.
    below: the official place of the files, which ids begin with.
    split: theirs.
    source: of a trial, for figures by source.
  """
  # Looked up by name: to ask the file system for each of hundreds of thousands takes longer.
  there = {path.stem: path for folder in folders for path in folder.glob("*.flac")}
  for trial in trials:
    path = there.pop(trial.name, None)
    if path is None:
      builder.leave_out_absent(f"{below}/{trial.name}.flac")
      continue
    yield (
      trial,
      MediaFile(
        id=f"{below}/{path.name}",
        path=path,
        label=LABELS[trial.key],
        group=trial.speaker,
        identities=(trial.speaker,),
        source=source(trial),
        method=trial.attack,
        split=split,
      ),
    )
  for path in sorted(there.values()):
    builder.leave_out(
      f"{below}/{path.name}",
      "no_label",
      "No line of the protocol names it; recordings that speakers are enrolled with are such files.",
    )
