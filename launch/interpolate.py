"""Writes a model between two others, of which one went on from the other.

    deepscan interpolate --start=runs/before/best --end=runs/after/best --share=0.6 --output=runs/between/best
    deepscan calibrate --model_path=runs/between/best --data_dir=data

A model that goes on from another one learns the new and loses a little of the old; between the two lie models
that know most of both (Wortsman et al., CVPR 2022, arXiv:2109.01903). Try some shares, and choose by
validation, never by test. What changes has to be calibrated again.
"""

from collections.abc import Sequence

from absl import app, flags

_START = flags.DEFINE_string("start", None, "Folder of the model before.")
_END = flags.DEFINE_string("end", None, "Folder of the model that went on from it.")
_SHARE = flags.DEFINE_float("share", 0.5, "Of the way from start to end.", lower_bound=0.0, upper_bound=1.0)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write.", allow_override=True)


def main(argv: Sequence[str]) -> int:
  """Writes the model that the flags ask for; returns the exit code."""
  if argv[1:] or not (_START.value and _END.value and _OUTPUT.value):
    raise app.UsageError("Say --start=FOLDER, --end=FOLDER and --output=FOLDER, and nothing else than flags.")

  from pathlib import Path

  from deepscan_jax.checkpoints import read_model
  from deepscan_jax.inference import CALIBRATIONS
  from deepscan_jax.interpolation import between, interpolate
  from deepscan_jax.lineage import model_folder

  start, end = model_folder(_START.value), model_folder(_END.value)
  if Path(_OUTPUT.value).exists():
    if _facts(_OUTPUT.value).get("interpolation") == between(
      *map(read_model, (start, end)), share=_SHARE.value
    ):
      print(f"{_OUTPUT.value} is there already.")
      return 0
    raise app.UsageError(f"{_OUTPUT.value} holds something else; choose another folder, or remove it first.")
  made = interpolate(start, end, _OUTPUT.value, share=_SHARE.value)
  kept = [key for key in CALIBRATIONS if key in made]
  print(f"{_OUTPUT.value}; {' and '.join(kept) if kept else 'no calibration'} kept. Calibrate the rest.")
  return 0


def _facts(folder: str) -> dict:
  from deepscan_jax.checkpoints import CheckpointError, read_model

  try:
    return read_model(folder)
  except CheckpointError:
    return {}


if __name__ == "__main__":
  from .__main__ import run_module

  run_module(__name__)
