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

  Only some seconds of a fake are forged: faces outside of them are genuine and are not used. Videos whose
  sound alone is forged are left out and listed. A fake goes with the video that it was made from; the list
  does not say who is seen.
  """

  def media_files(self, paths: tuple[Path, ...]) -> Iterable[MediaFile]:
    """Every listed video whose faces are real or forged.

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
        if fake and not row["modify_video"]:
          self.leave_out_sound_only(name)
          continue
        group = row["original"] or name
        yield MediaFile(
          id=name,
          path=root / name,
          label=examples.FAKE if fake else examples.REAL,
          group=group,
          identities=(group,),
          source="LAV-DF",
          method=("picture and sound" if row["modify_audio"] else "picture") if fake else "",
          split=_SPLITS[row["split"]],
          forged_spans_s=tuple((start, end) for start, end in row["fake_periods"]) if fake else None,
        )
    warn_of_counts(self.name, counts, _OFFICIAL_COUNTS)
