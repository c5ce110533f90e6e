"""real_fake_folder: your own labelled media in `real/` and `fake/`, any nesting below."""

from collections.abc import Iterable
from pathlib import Path

from deepscan_jax import examples

from ..media_builder import MediaBuilder, MediaFile, walk_media

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

  A root whose folders are called train, validation (or valid, or val) and test, each with `real/`, `fake/` or
  both, is split as they say.

  Files in folders of one name, such as real/anna/ and fake/faceswap/anna/, are one group; a file outside of
  such folders is grouped by its own name, so that real/7.mp4 and fake/faceswap/7.mp4 stay together.
  """

  COLLECTIONS = True

  def media_files(self, paths: tuple[Path, ...]) -> Iterable[MediaFile]:
    """Every picture, video and sound file below `real/` and `fake/` of each root.

    Raises:
      FileNotFoundError: a root has neither of the two folders.
    """
    for root in paths:
      divided = not any((root / folder).is_dir() for folder in _LABELS)
      parts = [root / name for name in _SPLIT_FOLDERS] if divided else [root]
      parts = [part for part in parts if any((part / folder).is_dir() for folder in _LABELS)]
      if not parts:
        raise FileNotFoundError(
          f"{root} has no folder real/ or fake/; put the media there, or use real_only."
        )
      for part in parts:
        name = f"{root.name}/{part.name}" if divided else root.name
        yield from _files_below(
          part, name=name, source=root.name, split=_SPLIT_FOLDERS.get(part.name) if divided else None
        )


def _files_below(part: Path, *, name: str, source: str, split: str | None) -> Iterable[MediaFile]:
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
        split=split,
      )
