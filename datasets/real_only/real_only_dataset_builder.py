"""real_only: pictures and videos that are known to be real, for training on pseudo-fakes."""

import re
from collections.abc import Iterable
from pathlib import Path

from deepscan_jax import examples

from ..media_builder import MediaBuilder, MediaFile, walk_media

# UTKFace: age_gender_race_date; pictures of one page were fetched within one minute (the date's first 12
# digits).
_UTKFACE = re.compile(r"^\d+_\d_(?:\d_)?(?P<minute>\d{12})\d*\.")
# Lists such as 0_0_lizi_0006.jpg carry a person's name.
_NAMED = re.compile(r"^\d+_\d+_(?P<person>[a-z]+)_\d+\.")


class Builder(MediaBuilder):
  """Folders or tar files of real media; the first folder level below a path is the source."""

  def media_files(self, paths: tuple[Path, ...]) -> Iterable[MediaFile]:
    """Every picture and video below the paths, each known to be real."""
    for root in paths:
      for name, path, read in walk_media(root):
        source = name.split("/")[0] if "/" in name else root.stem
        yield MediaFile(
          id=f"{root.stem}/{name}",
          path=path,
          read=read,
          label=examples.REAL,
          group=f"{source}/{group_of(name)}",
          source=source,
        )


def group_of(name: str) -> str:
  """What is known of the person or the occasion from a file's name; the name itself where nothing is."""
  file = name.rsplit("/", 1)[-1]
  if match := _UTKFACE.match(file):
    return match["minute"]
  if match := _NAMED.match(file):
    return match["person"]
  return name
