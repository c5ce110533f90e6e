"""Writes a smaller copy of a model: its large kernels in bfloat16, half the size on disk.

    deepscan export --model_path=runs/full/best --output=full_bf16
    deepscan detect --model_path=full_bf16 clip.mp4

Probabilities of the default model move by less than 0.01; of others, compare both copies. Small kernels,
norms, biases and calibration stay float32, and so does all computing. The copy has a sha256 of its own;
golden scores are left behind, for they are of the original.
"""

from collections.abc import Sequence

from absl import app, flags

_MODEL_PATH = flags.DEFINE_string(
  "model_path", None, "The model's folder; without it the model of the package.", allow_override=True
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write; it must not exist.", allow_override=True)
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "How kernels are stored.")


def main(argv: Sequence[str]) -> int:
  """Exports as the flags say; returns the exit code."""
  if argv[1:] or not _OUTPUT.value:
    raise app.UsageError("Say where to write the copy: --output=FOLDER, and nothing else.")

  from deepscan_jax.checkpoints import export_model, folder_bytes
  from deepscan_jax.inference import DEFAULT_MODEL

  source = _MODEL_PATH.value or DEFAULT_MODEL
  export_model(source, _OUTPUT.value, dtype=_DTYPE.value)
  before, after = folder_bytes(source), folder_bytes(_OUTPUT.value)
  print(f"{_OUTPUT.value}: {after / 1e6:.1f} MB ({_DTYPE.value}), from {before / 1e6:.1f} MB")
  return 0


if __name__ == "__main__":
  from .__main__ import run_module

  run_module(__name__)
