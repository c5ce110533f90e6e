"""dfdc: the Deepfake Detection Challenge, its training parts, the sample set and the labelled test set."""

import csv
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from deepscan_jax import examples

from ..media_builder import (
  MediaBuilder,
  MediaFile,
  Shares,
  find_root,
  split_of,
  walk_media,
  warn_of_counts,
)

_LABELS = {"REAL": examples.REAL, "FAKE": examples.FAKE}
_TEST_LABELS = {"0": examples.REAL, "1": examples.FAKE}
_PARTS = 50
_SAMPLE = "train_sample_videos"
_SAMPLE_COUNTS = {"REAL": 77, "FAKE": 323}


class Builder(MediaBuilder):
  """The folders of videos with a metadata.json, and the test set with its labels.csv.

  A forgery goes with the video that it was made from (`original`), also where that video is not there. With
  the official test set, all else is divided 85/15 into train and validation; without it, 70/15/15.

  Who is seen is not published, and an actor was filmed several times: splits share no source video, but may
  share people. The challenge names no method of forgery, and does not say where only the sound was forged.
  """

  def media_files(self, paths: tuple[Path, ...]) -> Iterable[MediaFile]:
    """Every labelled video.

    Raises:
      FileNotFoundError: no metadata.json and no labels.csv are there.
      ValueError: a label is unknown.
    """
    folders = [folder for path in paths for folder in _labelled_folders(path)]
    has_test = any((folder / "labels.csv").is_file() for folder in folders)
    shares = self.train_splits if has_test else self.splits
    for folder in folders:
      if (folder / "labels.csv").is_file():
        yield from self._test_files(folder)
      else:
        yield from self._train_files(folder, shares)
    numbers = {int(match[1]) for f in folders if (match := re.fullmatch(r"dfdc_train_part_(\d+)", f.name))}
    if numbers and (missing := sorted(set(range(_PARTS)) - numbers)):
      logging.warning("%s: of the %d parts these are missing: %s.", self.name, _PARTS, missing)

  def _train_files(self, folder: Path, shares: Shares) -> Iterator[MediaFile]:
    listed = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
    found = {file.name: file for _, file, _ in walk_media(folder)}
    counts: Counter[str] = Counter()
    for name, facts in sorted(listed.items()):
      if facts["label"] not in _LABELS:
        raise ValueError(
          f"{folder / 'metadata.json'} calls {name} {facts['label']!r}; expected REAL or FAKE."
        )
      if name not in found:
        self.leave_out_absent(f"{folder.name}/{name}")
        continue
      counts[facts["label"]] += 1
      group = facts.get("original") or name
      yield self._file(folder, found.pop(name), _LABELS[facts["label"]], group, split_of(group, shares))
    self._leave_out_unlabelled(folder, found)
    if folder.name == _SAMPLE:
      warn_of_counts(f"{self.name} ({_SAMPLE})", counts, _SAMPLE_COUNTS)

  def _test_files(self, folder: Path) -> Iterator[MediaFile]:
    found = {file.name: file for _, file, _ in walk_media(folder)}
    with open(folder / "labels.csv", encoding="utf-8", newline="") as lines:
      for row in csv.DictReader(lines):
        name, label = row["filename"], row["label"]
        if label not in _TEST_LABELS:
          raise ValueError(f"{folder / 'labels.csv'} gives {name} the label {label!r}; expected 0 or 1.")
        if name in found:
          yield self._file(folder, found.pop(name), _TEST_LABELS[label], name, "test")
        else:
          self.leave_out_absent(f"{folder.name}/{name}")
    self._leave_out_unlabelled(folder, found)

  def _file(self, folder: Path, path: Path, label: int, group: str, split: str) -> MediaFile:
    return MediaFile(
      id=f"{folder.name}/{path.name}",
      path=path,
      label=label,
      group=group,
      identities=(group,),
      source=folder.name,
      method="unknown" if label else "",
      split=split,
    )

  def _leave_out_unlabelled(self, folder: Path, files: Iterable[str]) -> None:
    for name in sorted(files):
      self.leave_out(f"{folder.name}/{name}", "no_label", "The list beside it does not name it.")


def _labelled_folders(path: Path) -> list[Path]:
  """The path itself, or the folders right below it, that hold a list of labels."""
  lists = ("metadata.json", "labels.csv")
  below = sorted(folder.name for folder in path.iterdir() if folder.is_dir()) if path.is_dir() else []
  first = find_root(
    path,
    lists,
    below=below,
    layout=f"dfdc_train_part_0/metadata.json, {_SAMPLE}/metadata.json or test/labels.csv beside the videos.",
  )
  if first == path:
    return [path]
  return [path / name for name in below if any((path / name / file).is_file() for file in lists)]
