"""celeb_df: Celeb-DF v1 and v2, interviews of celebrities and face swaps between them."""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from deepscan_jax import examples

from ..media_builder import (
  MediaBuilder,
  MediaFile,
  common_split,
  find_root,
  walk_media,
  warn_of_counts,
)

_LABELS = {"Celeb-real": examples.REAL, "YouTube-real": examples.REAL, "Celeb-synthesis": examples.FAKE}
_OFFICIAL_COUNTS = {
  "v1": {"Celeb-real": 158, "YouTube-real": 250, "Celeb-synthesis": 795},
  "v2": {"Celeb-real": 590, "YouTube-real": 300, "Celeb-synthesis": 5639},
}
_TEST_LIST = "List_of_testing_videos.txt"
# In the official list 1 stands for real, the other way round than here.
_LISTED_LABELS = {"1": examples.REAL, "0": examples.FAKE}
_PERSON = re.compile(r"id\d+")
_LAYOUT = "Celeb-real/id0_0000.mp4, YouTube-real/00000.mp4 and Celeb-synthesis/id0_id1_0000.mp4."


class Builder(MediaBuilder):
  """Celeb-DF with the official test list, or with splits that share nobody.

  `v1` and `v2`: test is the official list, so that figures can be compared with published ones. That list
  shares its people with the rest: it names 56 of the 59 celebrities, so a training set without any of them
  would be empty. The rest is divided 85/15 into train and validation, which share nobody.

  `v2_disjoint`: train, validation and test share nobody, 70/15/15; the official list is not looked at.

  A swap shows the scene and the hair of one celebrity and the face of another. Nearly all celebrities are
  linked by swaps, so each one is hashed, and a swap between people of different splits is left out and
  listed. Nobody's name is known of a video in YouTube-real; it counts as a person of its own.
  """

  BUILDER_CONFIGS: ClassVar = [
    tfds.core.BuilderConfig(name="v2", description="Celeb-DF v2, official test list."),
    tfds.core.BuilderConfig(name="v1", description="Celeb-DF v1, official test list."),
    tfds.core.BuilderConfig(name="v2_disjoint", description="Celeb-DF v2, nobody in two splits."),
  ]

  def media_files(self, paths: tuple[Path, ...]) -> Iterable[MediaFile]:
    """Every video of the three folders.

    Raises:
      FileNotFoundError: the folders or the list of test videos are not there.
      ValueError: the list contradicts the folder of a video.
    """
    version, _, disjoint = self.form.variant.partition("_")
    counts: Counter[str] = Counter()
    for path in paths:
      root = find_root(path, _LABELS, below=("Celeb-DF-v2", "Celeb-DF"), layout=_LAYOUT)
      in_test = set() if disjoint else read_test_list(root / _TEST_LIST)
      for folder, label in _LABELS.items():
        found = walk_media(root / folder) if (root / folder).is_dir() else ()
        for name, file, _ in found:
          counts[folder] += 1
          name = f"{folder}/{name}"
          people = tuple(_PERSON.findall(file.stem)) or (name,)
          if name in in_test:
            in_test.remove(name)
            split = "test"
          else:
            split = common_split(people, self.splits if disjoint else self.train_splits)
          if split is None:
            self.leave_out_between_splits(name, people)
            continue
          yield MediaFile(
            id=name,
            path=file,
            label=label,
            group=people[0],
            identities=people,
            source=folder,
            method="Celeb-synthesis" if label else "",
            split=split,
          )
      for name in sorted(in_test):
        self.leave_out_absent(name)
    warn_of_counts(self.name, counts, _OFFICIAL_COUNTS[version])


def read_test_list(path: Path) -> set[str]:
  """The names `<folder>/<file>` of the official test videos.

  Raises:
    FileNotFoundError: the list is not there.
    ValueError: a line is none of the list's, or calls a video real that lies among the fakes.
  """
  if not path.is_file():
    raise FileNotFoundError(
      f"{path} is not there; it comes with Celeb-DF and says which videos are for testing "
      "(celeb_df/v2_disjoint does without it)."
    )
  names = set()
  for line in filter(None, path.read_text(encoding="utf-8").splitlines()):
    listed, _, name = line.strip().partition(" ")
    folder = name.partition("/")[0]
    if listed not in _LISTED_LABELS or folder not in _LABELS:
      raise ValueError(f"{path} has the line {line!r}; expected lines such as 1 YouTube-real/00170.mp4.")
    if _LISTED_LABELS[listed] != _LABELS[folder]:
      raise ValueError(f"{path} has the line {line!r}; there, 1 stands for real and 0 for fake.")
    names.add(name)
  return names
