"""asvspoof2021: the evaluation sets of ASVspoof 2021, voices over telephone (LA) and in lossy files (DF)."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from ..asvspoof import Trial, read_trials, sound_files
from ..media_builder import MediaBuilder, MediaFile, find_root, warn_of_counts

_EXAMPLE = "LA_0009 LA_E_9332881 alaw ita_tx A07 spoof notrim eval"
_CODEC, _TRANSMISSION, _ATTACK, _KEY, _SUBSET = 2, 3, 4, 5, 7
_SUBSETS = ("eval", "progress", "hidden")
# Of the three subsets together, as public reports give that have counted the official keys: 181,566 and
# 611,829 trials.
_OFFICIAL_COUNTS = {
  "la": {"bonafide": 18_452, "spoof": 163_114},
  "df": {"bonafide": 22_617, "spoof": 589_212},
}


class Builder(MediaBuilder):
  """The trials of one track with published keys, all of them in the test split: there is nothing to train on.

  The source of an example is its track, codec and transmission (DF: the corpus that it was taken from), and
  the subset where that is not "eval", the one that published figures are of.
  """

  BUILDER_CONFIGS: ClassVar = [
    tfds.core.BuilderConfig(name="la", description="Logical access: sent through telephone networks."),
    tfds.core.BuilderConfig(name="df", description="Deepfake: compressed by lossy codecs."),
  ]

  def media_files(self, paths: tuple[Path, ...]) -> Iterable[MediaFile]:
    """Every sound file that the keys list.

    Raises:
      FileNotFoundError: the sound files or the keys are not there.
      ValueError: a line of the keys cannot be read.
    """
    track = self.form.variant
    name = f"ASVspoof2021_{track.upper()}_eval"
    roots = [root for path in paths for root in (path, path / name) if (root / "flac").is_dir()]
    if not roots:
      for path in paths:
        find_root(path, ("flac",), below=(name,), layout=f"{name}/flac/ and keys/{track.upper()}/CM/.")
    keys = _keys(paths, name, track.upper())
    trials = read_trials(keys, attack=_ATTACK, key=_KEY, least=_SUBSET + 1, example=_EXAMPLE)
    for trial in trials:
      if trial.words[_SUBSET] not in _SUBSETS:
        raise ValueError(
          f"{keys} puts {trial.name} into {trial.words[_SUBSET]!r}; expected {', '.join(_SUBSETS)}."
        )
    counts: Counter[str] = Counter()
    for trial, file in sound_files(
      self, [root / "flac" for root in roots], trials, below=f"{name}/flac", split="test", source=self._source
    ):
      counts[trial.key] += 1
      yield file
    warn_of_counts(f"{self.name}/{track}", counts, _OFFICIAL_COUNTS[track])

  def _source(self, trial: Trial) -> str:
    words = [self.form.variant.upper(), trial.words[_CODEC], trial.words[_TRANSMISSION]]
    subset = trial.words[_SUBSET]
    return ", ".join(words if subset == "eval" else [*words, subset])


def _keys(paths: tuple[Path, ...], name: str, track: str) -> Path:
  """The keys of a track, which come apart from the sound.

  Raises:
    FileNotFoundError: they are nowhere; the sentence says how to get them.
  """
  below = f"{track}/CM/trial_metadata.txt"
  for path in paths:
    for folder in ("keys", "", f"{track}-keys-full/keys", f"{name}/keys"):
      if (path / folder / below).is_file():
        return path / folder / below
  raise FileNotFoundError(
    f"The keys of {name} are in none of {', '.join(map(str, paths))}: the sound files come without labels. "
    f"Unpack https://www.asvspoof.org/asvspoof2021/{track}-keys-full.tar.gz there, so that keys/{below} "
    "exists, or give its folder as one more --media."
  )
