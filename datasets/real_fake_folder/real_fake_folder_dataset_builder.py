"""real_fake_folder: your own labelled media in `real/` and `fake/`, any nesting below."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from deepscan_jax import examples

from ..media_builder import MediaBuilder, MediaFile, join_copies, split_of, walk_media

_LABELS = {"real": examples.REAL, "fake": examples.FAKE}
_SPLIT_FOLDERS = {
  "train": "train",
  "validation": "validation",
  "valid": "validation",
  "val": "validation",
  "test": "test",
}


class Builder(MediaBuilder):
  """A root with `real/` and `fake/`; a folder right below `fake/` names the method.

  A root with train/, validation/ (or valid/, or val/) and test/ in place of these, each with `real/`, `fake/`
  or both, is split as they say; without a validation/, a part of train/ becomes that.

  Files in folders of one name, such as real/anna/ and fake/faceswap/anna/, are one group; a file outside of
  such folders is grouped by its own name, so that real/7.mp4 and fake/faceswap/7.mp4 stay together.
  """

  COLLECTIONS = True

  def media_files(self, paths: tuple[Path, ...]) -> Iterable[MediaFile]:
    """Every picture, video and sound file below `real/` and `fake/` of each root, or of its splits.

    Raises:
      FileNotFoundError: a root has neither of the two folders.
      ValueError: it cannot be told which split some of them are meant for.
    """
    for root in paths:
      splits = _split_folders(root)
      if not splits:
        yield from _files_below(root, name=root.name, source=root.name)
      for split, part in splits.items():
        files = _files_below(part, name=f"{root.name}/{part.name}", source=root.name)
        shared = split == "train" and "validation" not in splits
        # Copies are joined first, or they would be on both sides.
        for file in join_copies(files) if shared else files:
          of = split_of(file.group, self.train_splits) if shared else split
          yield dataclasses.replace(file, split=of)


def _split_folders(root: Path) -> dict[str, Path]:
  """By split the folder that holds its real/ and fake/; empty where the root holds them itself."""

  def labelled(folder: Path) -> bool:
    return any((folder / label).is_dir() for label in _LABELS)

  children = sorted(root.iterdir()) if root.is_dir() else []
  divided = [child for child in children if child.name not in _LABELS and labelled(child)]
  names = ", ".join(child.name for child in divided)
  if labelled(root):
    if divided:
      raise ValueError(
        f"{root} has real/ or fake/ and beside them folders that have such too ({names}); move one of both."
      )
    return {}
  if not divided:
    raise FileNotFoundError(
      f"{root} has no folder real/ or fake/, nor train/, validation/ and test/ with such folders; put the "
      "media there, or use real_only."
    )
  splits = {_SPLIT_FOLDERS.get(child.name.lower(), ""): child for child in divided}
  if "" in splits or len({child.resolve() for child in splits.values()}) < len(divided):
    raise ValueError(
      f"{root} is divided into {names}; have one folder each for train, validation (or valid, or val) and "
      "test."
    )
  return splits


def _files_below(part: Path, *, name: str, source: str) -> Iterable[MediaFile]:
  for folder, label in _LABELS.items():
    if not (part / folder).is_dir():
      continue
    for file, path, _ in walk_media(part / folder):
      below = file.split("/")
      folders = below[:-1]
      # fake/<method>/: the method is nobody's name, unless a folder in real/ says that it is one.
      if label == examples.FAKE and folders and not (part / "real" / folders[0]).is_dir():
        folders = folders[1:]
      yield MediaFile(
        id=f"{name}/{folder}/{file}",
        path=path,
        label=label,
        group=f"{name}/{folders[-1] if folders else Path(file).stem}",
        source=source,
        method=below[0] if label == examples.FAKE and len(below) > 1 else ("unknown" if label else ""),
      )
