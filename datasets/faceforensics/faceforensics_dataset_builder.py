"""faceforensics: FaceForensics++ with FaceShifter and DeepFakeDetection, in three qualities."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from deepscan_jax import examples

from ..media_builder import MediaBuilder, MediaFile, common_split, find_root, walk_media, warn_of_counts

PAIRED_METHODS = ("Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures", "FaceShifter")
_ACTORS_METHOD = "DeepFakeDetection"
_LISTS = {"train": "train.json", "validation": "val.json", "test": "test.json"}
_OFFICIAL_COUNTS = {
  "youtube": 1000,
  "actors": 363,
  **dict.fromkeys(PAIRED_METHODS, 1000),
  _ACTORS_METHOD: 3068,
}


class Builder(MediaBuilder):
  """FaceForensics++ by its official pairs; the actors of DeepFakeDetection by actor.

  The official lists hold pairs of YouTube videos, and a pair was forged both ways, so no list shares a video
  with another: train, validation and test hold 720, 140 and 140 of the 1,000. Without the lists the pairs are
  read off the names of the forgeries and split 70/15/15.

  DeepFakeDetection has no official split. Its 28 actors were swapped with one another, so each actor is
  hashed, and a forgery of two actors in different splits is left out and listed.
  """

  BUILDER_CONFIGS: ClassVar = [
    tfds.core.BuilderConfig(name="c23", description="H.264 at constant rate factor 23 (high quality)."),
    tfds.core.BuilderConfig(name="c40", description="H.264 at constant rate factor 40 (low quality)."),
    tfds.core.BuilderConfig(name="raw", description="Without recompression."),
  ]

  def media_files(self, paths: tuple[Path, ...]) -> Iterable[MediaFile]:
    """Every video of the config's quality.

    Raises:
      FileNotFoundError: the folders are not there, or some of the three lists but not all.
    """
    quality = self.form.variant
    youtube = f"original_sequences/youtube/{quality}/videos"
    actors = f"original_sequences/actors/{quality}/videos"
    forged = {
      method: f"manipulated_sequences/{method}/{quality}/videos"
      for method in (*PAIRED_METHODS, _ACTORS_METHOD)
    }
    counts: Counter[str] = Counter()
    for path in paths:
      root = find_root(
        path,
        (youtube, actors, *forged.values()),
        below=("FaceForensics++",),
        layout=f"{youtube}/000.mp4 and {forged['Deepfakes']}/000_003.mp4.",
      )
      lists = read_pairs(root)
      if lists is None:
        logging.warning(
          "%s: %s has no %s; pairs are split by hash, and figures cannot be compared with published ones.",
          self.name,
          root,
          ", ".join(_LISTS.values()),
        )
      for kind, folder in {"youtube": youtube, "actors": actors, **forged}.items():
        if not (root / folder).is_dir():
          continue
        found = {file.stem: file for _, file, _ in walk_media(root / folder)}
        counts[kind] += len(found)
        method = kind if kind in forged else ""
        if kind in ("actors", _ACTORS_METHOD):
          yield from self._of_actors(folder, found, method)
        else:
          yield from self._of_pairs(folder, found, method, lists)
    warn_of_counts(self.name, counts, _OFFICIAL_COUNTS)

  def _of_pairs(
    self, folder: str, found: dict[str, Path], method: str, lists: dict[str, tuple[str, str]] | None
  ) -> Iterator[MediaFile]:
    for stem, file in found.items():
      name, videos = f"{folder}/{file.name}", stem.split("_")  # 071, or 071_054: target and source.
      split = group = None
      if lists is not None:
        if unknown := [video for video in videos if video not in lists]:
          self.leave_out(name, "not_listed", f"The lists of pairs do not name {' and '.join(unknown)}.")
          continue
        if len({lists[video][0] for video in videos}) > 1:
          self.leave_out_between_splits(name, videos)
          continue
        split, group = lists[videos[0]]
      yield MediaFile(
        id=name,
        path=file,
        label=examples.FAKE if method else examples.REAL,
        group=f"youtube/{group or videos[0]}",
        identities=tuple(f"youtube/{video}" for video in videos),
        source="youtube",
        method=method,
        split=split,
      )
    expected = set(lists or ())
    if method:
      pairs = {tuple(pair.split("_")) for _, pair in (lists or {}).values()}
      expected = {f"{a}_{b}" for a, b in pairs} | {f"{b}_{a}" for a, b in pairs}
    for stem in sorted(expected - set(found)):
      self.leave_out_absent(f"{folder}/{stem}.mp4")

  def _of_actors(self, folder: str, found: dict[str, Path], method: str) -> Iterator[MediaFile]:
    for stem, file in found.items():
      # 01__exit_phone_room, or 01_02__exit_phone_room__YVGY8LOK: target and source.
      actors = tuple(f"actors/{number}" for number in stem.split("__")[0].split("_"))
      split = common_split(actors, self.splits)
      if split is None:
        self.leave_out_between_splits(f"{folder}/{file.name}", actors)
        continue
      yield MediaFile(
        id=f"{folder}/{file.name}",
        path=file,
        label=examples.FAKE if method else examples.REAL,
        group=actors[0],
        identities=actors,
        source="actors",
        method=method,
        split=split,
      )


def read_pairs(root: Path) -> dict[str, tuple[str, str]] | None:
  """{video: (split, pair)} from the official lists in the root or in its folder splits/; None without lists.

  Raises:
    FileNotFoundError: some of the lists are there and others are not.
    ValueError: a list is not one of pairs, or a video is named twice.
  """
  for folder in (root, root / "splits"):
    missing = [name for name in _LISTS.values() if not (folder / name).is_file()]
    if len(missing) == len(_LISTS):
      continue
    if missing:
      raise FileNotFoundError(f"{folder} has not all lists of pairs; {' and '.join(missing)} are missing.")
    videos: dict[str, tuple[str, str]] = {}
    for split, name in _LISTS.items():
      for pair in json.loads((folder / name).read_text(encoding="utf-8")):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(video, str) for video in pair)):
          raise ValueError(
            f'{folder / name} names {pair!r}; expected a pair of videos such as ["071", "054"].'
          )
        for video in pair:
          if video in videos:
            raise ValueError(f"{folder / name} names video {video}, which has been in a list already.")
          videos[video] = (split, "_".join(sorted(pair)))
    return videos
  return None
