"""Makes synthetic pictures take after real ones, so that the generator alone tells them apart.

    deepscan match_media --synthetic=stylegan/ --real=photos/ --real=portraits/ --output=media/fake/stylegan
    deepscan build_dataset --name=real_fake_folder --media=media --data_dir=data

Each synthetic picture takes after a real one, drawn evenly from the --real folders: its face gets the same
place, size and lean in a picture of the same size, becomes no sharper, and is stored with the same JPEG
quality and chroma subsampling. Pictures without a face, or that do not fill the frame of any real picture
that was tried, are left out and counted. matches.jsonl beside the copies says which took after which.
`deepscan audit` then says whether size, sharpness or compression still give the label away.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

_SYNTHETIC = flags.DEFINE_multi_string("synthetic", [], "A folder of synthetic pictures; several: again.")
_REAL = flags.DEFINE_multi_string("real", [], "A folder of real pictures of one kind; several: again.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the matched copies.", allow_override=True)
_SEED = flags.DEFINE_integer("seed", 0, "Of who takes after whom.", lower_bound=0, allow_override=True)
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def main(argv: Sequence[str]) -> int:
  """Matches the pictures that the flags name; returns the exit code."""
  if argv[1:] or not (_SYNTHETIC.value and _REAL.value and _OUTPUT.value):
    raise app.UsageError("Say --synthetic=FOLDER, --real=FOLDER and --output=FOLDER, and nothing else.")

  from deepscan_jax import compilation_cache, matching

  compilation_cache.switch_on()
  counts = matching.match_folder(
    [path for folder in _SYNTHETIC.value for path in _pictures(folder)],
    [_pictures(folder) for folder in _REAL.value],
    Path(_OUTPUT.value),
    seed=_SEED.value,
    say=lambda line: print(line, file=sys.stderr, flush=True),
  )
  print(
    f"{counts['written']} written, {counts['no_face']} without a face that can be seen, "
    f"{counts['no_frame']} that filled no real picture's frame"
  )
  return 0


def _pictures(folder: str) -> list[Path]:
  if not Path(folder).is_dir():
    raise FileNotFoundError(f"There is no folder {folder}; name one that holds pictures.")
  return sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES)


if __name__ == "__main__":
  from .__main__ import run_module

  run_module(__name__)
