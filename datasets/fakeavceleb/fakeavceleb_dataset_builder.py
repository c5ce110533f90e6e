"""fakeavceleb: FakeAVCeleb v1.2, celebrities' faces and voices forged apart and together."""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from deepscan_jax import examples

from ..media_builder import MediaBuilder, MediaFile, common_split, find_root, warn_of_counts

_LIST = "meta_data.csv"
# Type: whether (picture, sound) are forged.
_FORGED = {
  "RealVideo-RealAudio": (False, False),
  "RealVideo-FakeAudio": (False, True),
  "FakeVideo-RealAudio": (True, False),
  "FakeVideo-FakeAudio": (True, True),
}
_OFFICIAL_COUNTS = {"RealVideo-RealAudio": 500, "RealVideo-FakeAudio": 500}
_PERSON = re.compile(r"id\d+")


class Builder(MediaBuilder):
  """The videos that meta_data.csv lists; 70/15/15 by people, as there is no official split.

  A forgery names the person who was filmed and up to two whose face or voice was taken. These links tie
  nearly everyone together, so each person is hashed, and a forgery of people in different splits is left out
  and listed.
  """

  def media_files(self, paths: tuple[Path, ...]) -> Iterable[MediaFile]:
    """Every listed video.

    Raises:
      FileNotFoundError: meta_data.csv is not there.
      ValueError: it has a type that is none of the four.
    """
    counts: Counter[str] = Counter()
    for path in paths:
      root = find_root(
        path,
        (_LIST,),
        below=("FakeAVCeleb_v1.2", "FakeAVCeleb"),
        layout=f"{_LIST} beside RealVideo-RealAudio/African/men/id00076/00109.mp4.",
      )
      for row in read_list(root / _LIST):
        name, kind = row["name"], row["type"]
        if not (root / name).is_file():
          self.leave_out_absent(name)
          continue
        counts[kind] += 1
        picture_forged, sound_forged = _FORGED[kind]
        people = tuple(
          dict.fromkeys(
            row[key] for key in ("source", "target1", "target2") if _PERSON.fullmatch(row[key] or "")
          )
        ) or (name,)
        split = common_split(people, self.splits)
        if split is None:
          self.leave_out_between_splits(name, people)
          continue
        yield MediaFile(
          id=name,
          path=root / name,
          label=examples.FAKE if picture_forged or sound_forged else examples.REAL,
          face_label=examples.FAKE if picture_forged else examples.REAL,
          sound_label=examples.FAKE if sound_forged else examples.REAL,
          group=people[0],
          identities=people,
          source=f"{row['race']}, {row['gender']}",
          method=row["method"] if picture_forged or sound_forged else "",
          split=split,
        )
    warn_of_counts(self.name, counts, _OFFICIAL_COUNTS)


def read_list(path: Path) -> Iterator[dict[str, str]]:
  """The rows of meta_data.csv, each with `name`, the file's path below the root, added.

  The list's last column has no name and holds the folder, which starts with FakeAVCeleb/; the column `path`
  holds the file's name alone.

  Raises:
    ValueError: a type is none of the four.
  """
  with open(path, encoding="utf-8", newline="") as lines:
    for row in csv.DictReader(lines):
      if row["type"] not in _FORGED:
        raise ValueError(f"{path} has the type {row['type']!r}; expected one of {', '.join(_FORGED)}.")
      folder = PurePosixPath(row[""].removeprefix("FakeAVCeleb/"))
      yield {**row, "name": (folder / row["path"]).as_posix()}
