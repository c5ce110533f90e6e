"""lav_df: LAV-DF, talks in which a few words were forged in picture, sound or both."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from deepscan_jax import examples

from ..media_builder import MediaBuilder, MediaFile, find_root, warn_of_counts

_LIST = "metadata.min.json"
_SPLITS = {"train": "train", "dev": "validation", "test": "test"}
_OFFICIAL_COUNTS = {"real": 36_431, "fake": 99_873}


class Builder(MediaBuilder):
  """The videos that metadata.min.json lists, in their official splits (dev is validation).

  Only some seconds of a fake are forged, in picture, sound or both: examples are cut there, and what is
  genuine of it is not used. A fake goes with the video that it was made from; the list does not say who is
  seen.
  """

  def media_files(self, paths: tuple[Path, ...]) -> Iterable[MediaFile]:
    """Every listed video.

    Raises:
      FileNotFoundError: metadata.min.json is not there.
      ValueError: it names a split that is none of train, dev and test.
    """
    counts: Counter[str] = Counter()
    for path in paths:
      root = find_root(path, (_LIST,), below=("LAV-DF",), layout=f"{_LIST} beside train/, dev/ and test/.")
      for row in json.loads((root / _LIST).read_text(encoding="utf-8")):
        name = row["file"]
        if row["split"] not in _SPLITS:
          raise ValueError(
            f"{root / _LIST} puts {name} into {row['split']!r}; expected {', '.join(_SPLITS)}."
          )
        if not (root / name).is_file():
          self.leave_out_absent(name)
          continue
        fake = row["n_fakes"] > 0
        counts["fake" if fake else "real"] += 1
        spans = tuple((start, end) for start, end in row["fake_periods"])
        forged = {kind: fake and bool(row[f"modify_{kind}"]) for kind in ("video", "audio")}
        group = row["original"] or name
        yield MediaFile(
          id=name,
          path=root / name,
          label=examples.FAKE if fake else examples.REAL,
          group=group,
          identities=(group,),
          source="LAV-DF",
          method=" and ".join(
            word for kind, word in (("video", "picture"), ("audio", "sound")) if forged[kind]
          ),
          split=_SPLITS[row["split"]],
          face_label=examples.FAKE if forged["video"] else examples.REAL,
          sound_label=examples.FAKE if forged["audio"] else examples.REAL,
          forged_spans_s=spans if forged["video"] else None,
          forged_sound_spans_s=spans if forged["audio"] else None,
        )
    warn_of_counts(self.name, counts, _OFFICIAL_COUNTS)
