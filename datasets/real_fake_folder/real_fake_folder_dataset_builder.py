"""real_fake_folder: your own labelled media in `real/` and `fake/`, any nesting below."""

from collections.abc import Iterable
from pathlib import Path

from deepscan_jax import examples

from ..media_builder import MediaBuilder, MediaFile, walk_media

_LABELS = {"real": examples.REAL, "fake": examples.FAKE}


class Builder(MediaBuilder):
  """A root with `real/` and `fake/`; a folder right below `fake/` names the method.

  Files in folders of one name, such as real/anna/ and fake/faceswap/anna/, are one group; a file outside of
  such folders is grouped by its own name, so that real/7.mp4 and fake/faceswap/7.mp4 stay together.
  """

  def media_files(self, paths: tuple[Path, ...]) -> Iterable[MediaFile]:
    """Every picture, video and sound file below `real/` and `fake/` of each root.

    Raises:
      FileNotFoundError: a root has neither of the two folders.
    """
    for root in paths:
      if not any((root / folder).is_dir() for folder in _LABELS):
        raise FileNotFoundError(
          f"{root} has no folder real/ or fake/; put the media there, or use real_only."
        )
      for folder, label in _LABELS.items():
        if not (root / folder).is_dir():
          continue
        for name, path, _ in walk_media(root / folder):
          below = name.split("/")
          folders = below[:-1]
          # fake/<method>/: the method is nobody's name, unless a folder in real/ says that it is one.
          if label == examples.FAKE and folders and not (root / "real" / folders[0]).is_dir():
            folders = folders[1:]
          yield MediaFile(
            id=f"{root.name}/{folder}/{name}",
            path=path,
            label=label,
            group=f"{root.name}/{folders[-1] if folders else Path(name).stem}",
            source=root.name,
            method=below[0] if label == examples.FAKE and len(below) > 1 else ("unknown" if label else ""),
          )
