"""asvspoof2019_la: the logical access part of ASVspoof 2019, synthetic and converted voices."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ..asvspoof import read_trials, sound_files
from ..media_builder import MediaBuilder, MediaFile, find_root, warn_of_counts

_PROTOCOLS = "ASVspoof2019_LA_cm_protocols"
_EXAMPLE = "LA_0079 LA_T_1000406 - A01 spoof"
# Official name, ending of the protocol's name, our split.
_PARTS = (("train", "trn", "train"), ("dev", "trl", "validation"), ("eval", "trl", "test"))
# As public implementations report that have read the protocols.
_OFFICIAL_COUNTS = {
  "train bonafide": 2_580,
  "train spoof": 22_800,
  "dev bonafide": 2_548,
  "dev spoof": 22_296,
  "eval bonafide": 7_355,
  "eval spoof": 63_882,
}


class Builder(MediaBuilder):
  """The trials of the three official protocols: train, dev as validation, and eval as test.

  No speaker is in two of them, and the attacks of eval (A07 to A19) are others than those of train and dev
  (A01 to A06); should lists share a speaker after all, a warning says how many.
  """

  def media_files(self, paths: tuple[Path, ...]) -> Iterable[MediaFile]:
    """Every sound file that a protocol lists.

    Raises:
      FileNotFoundError: the protocols are not there.
      ValueError: a line of theirs cannot be read.
    """
    counts: Counter[str] = Counter()
    for path in paths:
      root = find_root(
        path,
        (_PROTOCOLS,),
        below=("LA",),
        layout=f"{_PROTOCOLS}/ beside ASVspoof2019_LA_train/flac/LA_T_1000137.flac.",
      )
      for part, ending, split in _PARTS:
        protocol = root / _PROTOCOLS / f"ASVspoof2019.LA.cm.{part}.{ending}.txt"
        trials = read_trials(protocol, attack=3, key=4, least=5, example=_EXAMPLE)
        below = f"ASVspoof2019_LA_{part}/flac"
        for trial, file in sound_files(
          self, [root / below], trials, below=below, split=split, source=lambda _: "LA"
        ):
          counts[f"{part} {trial.key}"] += 1
          yield file
    warn_of_counts(self.name, counts, _OFFICIAL_COUNTS)
