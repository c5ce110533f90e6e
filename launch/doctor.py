"""Checks that this installation works: versions, devices, model and its scores, sandbox, folders.

    deepscan doctor
    deepscan doctor --model_path=runs/mine/best --output_json=doctor.json
    deepscan doctor --preset=full

With --preset it prints what the model of that preset costs instead: parameters, size on disk and floating
point operations, by branch. Nothing is trained or loaded.

Exit codes: 0 nothing failed (warnings are told), 1 something failed, 2 wrong usage.

For maintainers: `deepscan doctor --model_path=deepscan_jax/weights/default --write_golden` stores what this
machine computes with the checkpoint, for every later doctor to compare its own scores with.
"""

import dataclasses
import json
from collections.abc import Sequence

from absl import app, flags

_MODEL_PATH = flags.DEFINE_string(
  "model_path", None, "A checkpoint folder; without it the model of the package.", allow_override=True
)
_OUTPUT_JSON = flags.DEFINE_string(
  "output_json", None, "Write the checks to this JSON file.", allow_override=True
)
_PRESET = flags.DEFINE_string(
  "preset", None, "Print the costs of this preset (in experiments/, or a path).", allow_override=True
)
_WRITE_GOLDEN = flags.DEFINE_boolean(
  "write_golden", False, "Store this machine's scores with the checkpoint."
)

SYMBOLS = {"ok": " ok ", "warn": "warn", "fail": "FAIL"}


def main(argv: Sequence[str]) -> int:
  """Prints one line per check; returns the exit code."""
  if argv[1:]:
    raise app.UsageError(f"doctor takes no files, got {argv[1]!r}.")
  from deepscan_jax import doctor, report

  if _PRESET.value:
    costs = _costs(_PRESET.value)
    if _OUTPUT_JSON.value:
      rows = [dataclasses.asdict(cost) for cost in costs]
      report.write_whole(_OUTPUT_JSON.value, json.dumps(rows, indent=2) + "\n")
    return 0
  if _WRITE_GOLDEN.value:
    if not _MODEL_PATH.value:
      raise app.UsageError("--write_golden needs --model_path: the folder of the checkpoint to write to.")
    print(f"Written: {doctor.write_golden(_MODEL_PATH.value)}")
    return 0
  checks = []
  for check in doctor.examine(_MODEL_PATH.value):
    checks.append(check)
    print(f"[{SYMBOLS[check.status]}] {check.name:<18} {check.detail}", flush=True)
    if check.remedy:
      print(f"{'':26}{check.remedy}", flush=True)
  if _OUTPUT_JSON.value:
    rows = [dataclasses.asdict(check) for check in checks]
    report.write_whole(_OUTPUT_JSON.value, json.dumps(rows, indent=2) + "\n")
  failed = sum(check.status == doctor.FAIL for check in checks)
  print(f"{failed} of {len(checks)} checks failed." if failed else "Nothing failed.")
  return 1 if failed else 0


def _costs(preset: str) -> list:
  """Prints and returns what the preset's model costs."""
  from deepscan_jax.checkpoints import NARROW_FROM
  from deepscan_jax.config import load_preset
  from deepscan_jax.models.costs import model_costs
  from deepscan_jax.train_state import abstract_batch

  config = load_preset(preset)
  costs = model_costs(config.model, abstract_batch(1, config), narrow_from=NARROW_FROM)
  print(f"{'':<18}{'parameters':>12}{'float32':>12}{'bfloat16':>12}{'a window':>15}")
  for cost in costs:
    sizes = f"{cost.float32_bytes / 1e6:9.1f} MB{cost.bfloat16_bytes / 1e6:9.1f} MB"
    print(f"{cost.name:<18}{cost.parameters:>12,}{sizes}{cost.flops / 1e9:10.2f} GFLOP")
  return costs


if __name__ == "__main__":
  from .__main__ import run_module

  run_module(__name__)
