"""deepfake_timit: DeepfakeTIMIT in two qualities, and its real videos from VidTIMIT."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from deepscan_jax import examples

from ..media_builder import (
  SOUND_SUFFIXES,
  MediaBuilder,
  MediaFile,
  find_root,
  walk_media,
  warn_of_counts,
)

_QUALITIES = ("higher_quality", "lower_quality")
_OFFICIAL_COUNTS = dict.fromkeys(_QUALITIES, 320)
# sa1-video-fram1.avi, in the folder of the speaker who was filmed.
_FAKE = re.compile(r"(?P<sentence>[a-z0-9]+)-video-(?P<person>[a-z]+\d+)")
_FRAME = re.compile(r"\d+(\.jpe?g)?")
_LAYOUT = (
  "higher_quality/fadg0/sa1-video-fram1.avi (DeepfakeTIMIT) or fadg0/video/sa1/001 (VidTIMIT), or both in "
  "folders DeepfakeTIMIT and VidTIMIT."
)


class Builder(MediaBuilder):
  """Fakes of both qualities, and the sentences of VidTIMIT as real clips.

  There is no official split: 70/15/15 by hash. The 32 forged speakers are pairs of people who look alike,
  swapped both ways, so joining those who meet in a forgery gives pairs. The head rotations of VidTIMIT are
  left out and listed: no forgery shows a head that turns away.
  """

  def media_files(self, paths: tuple[Path, ...]) -> Iterable[MediaFile]:
    """Every fake, and every sentence of VidTIMIT as one clip.

    Raises:
      FileNotFoundError: a path holds neither dataset.
    """
    counts: Counter[str] = Counter()
    for path in paths:
      subjects = _subjects(path) or _subjects(path / "VidTIMIT")
      if not subjects or any((path / name).is_dir() for name in ("DeepfakeTIMIT", *_QUALITIES)):
        root = find_root(path, _QUALITIES, below=("DeepfakeTIMIT",), layout=_LAYOUT)
        for file in self._fakes(root):
          counts[file.method] += 1
          yield file
      for subject in subjects:
        for file in self._reals(subject):
          counts["real"] += 1
          yield file
    warn_of_counts(self.name, counts, _OFFICIAL_COUNTS)
    if not counts["real"]:
      logging.warning("%s: there is no real video; give VidTIMIT as well.", self.name)

  def _fakes(self, root: Path) -> Iterator[MediaFile]:
    for quality in _QUALITIES:
      for name, file, _ in walk_media(root / quality) if (root / quality).is_dir() else ():
        if file.suffix.lower() in SOUND_SUFFIXES:
          continue  # Of the film beside it.
        named = _FAKE.fullmatch(file.stem)
        if named is None:
          self.leave_out(f"{quality}/{name}", "unknown_name", "Expected a name such as sa1-video-fram1.avi.")
          continue
        filmed = file.parent.name
        yield MediaFile(
          id=f"{quality}/{name}",
          path=file,
          label=examples.FAKE,
          group=filmed,
          identities=(filmed, named["person"]),
          source="DeepfakeTIMIT",
          method=quality,
          # The forgers kept the voice of whoever was filmed.
          sound_label=examples.REAL,
          sound_path=next(
            (p for p in sorted(file.parent.glob(f"{named['sentence']}*.wav")) if _is_sound_of(p, named)), None
          ),
        )

  def _reals(self, subject: Path) -> Iterator[MediaFile]:
    for folder in sorted(path for path in (subject / "video").iterdir() if path.is_dir()):
      name = f"{subject.name}/video/{folder.name}"
      if folder.name.startswith("head"):
        self.leave_out(name, "head_rotation", "A head rotation, which no forgery shows.")
        continue
      pictures = sorted((p for p in folder.iterdir() if _FRAME.fullmatch(p.name)), key=lambda p: int(p.stem))
      if not pictures:
        self.leave_out(name, "no_frames", "Expected pictures such as 001 in it.")
        continue
      yield MediaFile(
        id=name,
        path=None,
        label=examples.REAL,
        group=subject.name,
        identities=(subject.name,),
        source="VidTIMIT",
        frames=tuple(picture.read_bytes for picture in pictures),
        sound_path=sound if (sound := subject / "audio" / f"{folder.name}.wav").is_file() else None,
      )


def _is_sound_of(path: Path, named: re.Match) -> bool:
  """Whether a wav file belongs to a forged film: sa1.wav or sa1-anything.wav, but not sa10.wav."""
  return path.stem == named["sentence"] or path.stem.startswith(f"{named['sentence']}-")


def _subjects(root: Path) -> list[Path]:
  """The people's folders of VidTIMIT below a root: those with a folder video/."""
  return sorted(path for path in root.iterdir() if (path / "video").is_dir()) if root.is_dir() else []
