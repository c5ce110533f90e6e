"""wild_deepfake: WildDeepfake, sequences of face pictures from videos of the internet."""

import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from deepscan_jax import examples

from ..media_builder import (
  MediaBuilder,
  MediaFile,
  find_root,
  split_of,
  walk_media,
  warn_of_counts,
)

_LABELS = {"real": examples.REAL, "fake": examples.FAKE}
# Sequences of both official splits together.
_OFFICIAL_COUNTS = {"real": 3805, "fake": 3509}
_FOLDERS = {
  f"{label}{between}{split}": (label, split)
  for label in _LABELS
  for split in ("train", "test")
  for between in ("_", " ")
}


class Builder(MediaBuilder):
  """The face sequences in the archives of WildDeepfake, each as one clip and one group.

  test is official; the official training set is divided 85/15 into train and validation by archive, as the
  sequences of an archive may come from one video. Who is seen is not known: splits share no archive, but may
  share people. Archives are read in place, and folders that were unpacked from them are read as well.
  """

  def media_files(self, paths: tuple[Path, ...]) -> Iterable[MediaFile]:
    """Every lowest folder of pictures, whatever is above it in its archive.

    Raises:
      FileNotFoundError: none of the four folders is there.
      ValueError: an archive is damaged.
    """
    counts: Counter[str] = Counter()
    for path in paths:
      root = find_root(
        path,
        _FOLDERS,
        below=("deepfake_in_the_wild",),
        layout="real_train/1.tar.gz, fake_test/1.tar.gz and so on.",
      )
      for folder, (label, official) in _FOLDERS.items():
        for archive in sorted((root / folder).iterdir()) if (root / folder).is_dir() else ():
          if not archive.is_dir() and not (archive.is_file() and tarfile.is_tarfile(archive)):
            self.leave_out(f"{folder}/{archive.name}", "not_media", "Neither an archive nor a folder.")
            continue
          unpacked = f"{label}_{official}/{archive.name.removesuffix('.gz').removesuffix('.tar')}"
          for name, frames in _sequences(archive):
            counts[label] += 1
            sequence = f"{unpacked}/{name}".rstrip("/")
            yield MediaFile(
              id=sequence,
              path=None,
              label=_LABELS[label],
              group=sequence,
              identities=(unpacked,),
              source="WildDeepfake",
              method="unknown" if label == "fake" else "",
              split="test" if official == "test" else split_of(unpacked, self.train_splits),
              frames=frames,
            )
    warn_of_counts(self.name, counts, _OFFICIAL_COUNTS)


def _sequences(archive: Path) -> Iterator[tuple[str, tuple[Callable[[], bytes], ...]]]:
  """The folders of pictures in an archive or a folder: (name, readers of the pictures by frame number)."""
  folders: dict[str, list[tuple[str, Callable[[], bytes]]]] = {}
  for name, path, read in walk_media(archive):
    if name.lower().endswith(".png"):
      above, _, file = name.rpartition("/")
      folders.setdefault(above, []).append((file.rpartition(".")[0], read or path.read_bytes))
  for above, pictures in sorted(folders.items()):
    # 2 before 10; what is no number goes last, by name.
    pictures.sort(
      key=lambda item: (not item[0].isdecimal(), int(item[0]) if item[0].isdecimal() else 0, item[0])
    )
    yield above, tuple(read for _, read in pictures)
