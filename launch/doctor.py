"""Checks that this installation works: versions, devices, model and its scores, sandbox, folders.

    deepscan doctor
    deepscan doctor --model_path=runs/mine/best --output_json=doctor.json

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
_WRITE_GOLDEN = flags.DEFINE_boolean(
  "write_golden", False, "Store this machine's scores with the checkpoint."
)

SYMBOLS = {"ok": " ok ", "warn": "warn", "fail": "FAIL"}


def main(argv: Sequence[str]) -> int:
  """Prints one line per check; returns the exit code."""
  if argv[1:]:
    raise app.UsageError(f"doctor takes no files, got {argv[1]!r}.")
  from deepscan_jax import doctor, report

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


if __name__ == "__main__":
  from .__main__ import run_module

  run_module(__name__)
