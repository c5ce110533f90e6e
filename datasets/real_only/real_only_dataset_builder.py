"""real_only: pictures, videos and voices that are known to be real, for training on pseudo-fakes."""

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
# Speakers: of LibriSpeech (speaker-chapter-sentence), the Berlin database of emotional speech (03a01Fa) and
# the Free Spoken Digit Dataset (digit_speaker_take).
_SPEAKERS = (
  re.compile(r"^(?P<person>\d+)-\d+-\d+\.(?:flac|wav)$"),
  re.compile(r"^(?P<person>\d\d)[a-z]\d\d[A-Z][a-z]\.wav$"),
  re.compile(r"^\d_(?P<person>[a-z]+)_\d+\.wav$"),
)


class Builder(MediaBuilder):
  """Folders or tar files of real media; the first folder level below a path is the source."""

  COLLECTIONS = True

  def media_files(self, paths: tuple[Path, ...]) -> Iterable[MediaFile]:
    """Every picture, video and sound file below the paths, each known to be real."""
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
  for known in (_NAMED, *_SPEAKERS):
    if match := known.match(file):
      return match["person"]
  return name
