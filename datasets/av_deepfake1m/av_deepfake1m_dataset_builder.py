"""av_deepfake1m: AV-Deepfake1M and 1M++, talks in which a few words were forged in picture, sound or both."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from deepscan_jax import examples

from ..media_builder import MediaBuilder, MediaFile, find_root, warn_of_counts

_SPLITS = {"train": "train", "val": "validation"}
_OFFICIAL_COUNTS = {"train": 746_180, "val": 57_340}
# modify_type, written with - or _: whether picture and sound are forged, and the method's name here.
_TYPES = {
  "real": (False, False, ""),
  "visual_modified": (True, False, "picture"),
  "audio_modified": (False, True, "sound"),
  "both_modified": (True, True, "picture and sound"),
}
_PERSON = re.compile(r"id\d+")


class Builder(MediaBuilder):
  """The labelled videos in their official splits: train, and val as validation. The test set has no labels.

  Where a path names a person (id00012/...), that is an identity; a warning says how many are in both of the
  official splits. A fake goes with the video that it was made from. Only some seconds of a fake are forged,
  in picture, sound or both: examples are cut there, and what is genuine of it is not used.
  """

  def media_files(self, paths: tuple[Path, ...]) -> Iterable[MediaFile]:
    """Every listed video.

    Raises:
      FileNotFoundError: there are neither lists nor videos.
      ValueError: a modify_type is unknown.
    """
    counts: Counter[str] = Counter()
    for path in paths:
      root = find_root(
        path,
        [f"{split}{ending}" for split in _SPLITS for ending in ("_metadata.json", "_metadata", "")],
        below=("AV-Deepfake1M", "AV-Deepfake1M-PlusPlus"),
        layout="train_metadata.json and train/, val_metadata.json and val/.",
      )
      for official, split in _SPLITS.items():
        for row in read_facts(root, official):
          below = row["file"].removeprefix(f"{official}/")
          name = f"{official}/{below}"
          if not (root / name).is_file():
            self.leave_out_absent(name)
            continue
          counts[official] += 1
          kind = row["modify_type"].replace("-", "_")
          if kind not in _TYPES:
            raise ValueError(
              f"{name} has the modify_type {row['modify_type']!r}; expected one of {', '.join(_TYPES)}."
            )
          seen, heard, method = _TYPES[kind]
          original = (row.get("original") or below).removeprefix(f"{official}/")
          people = tuple(part for part in PurePosixPath(below).parts if _PERSON.fullmatch(part))
          yield MediaFile(
            id=name,
            path=root / name,
            label=examples.FAKE if seen or heard else examples.REAL,
            group=original,
            identities=people or (original,),
            source="AV-Deepfake1M",
            method=method,
            split=split,
            face_label=examples.FAKE if seen else examples.REAL,
            sound_label=examples.FAKE if heard else examples.REAL,
            forged_spans_s=_spans(row, "visual") if seen else None,
            forged_sound_spans_s=_spans(row, "audio") if heard else None,
          )
    warn_of_counts(self.name, counts, _OFFICIAL_COUNTS)


def read_facts(root: Path, split: str) -> Iterator[dict]:
  """What is known of each video of a split, from the first that is there of three places.

  One list {split}_metadata.json (the minimal one, without modify_type, says too little), a folder
  {split}_metadata/ of one file a video, or (1M++) a file beside each video. A file of one video need not say
  which: then its own place does.
  """
  if (root / f"{split}_metadata.json").is_file():
    rows = json.loads((root / f"{split}_metadata.json").read_text(encoding="utf-8"))
    if all("modify_type" in row for row in rows):
      yield from rows
      return
  for folder in (root / f"{split}_metadata", root / split):
    found = sorted(folder.rglob("*.json")) if folder.is_dir() else []
    for path in found:
      own = path.relative_to(folder).with_suffix(".mp4").as_posix()
      yield {"file": own, **json.loads(path.read_text(encoding="utf-8"))}
    if found:
      return


def _spans(row: dict, kind: str) -> tuple[tuple[float, float], ...]:
  spans = row.get(f"{kind}_fake_segments")
  return tuple((start, end) for start, end in (row["fake_segments"] if spans is None else spans))
