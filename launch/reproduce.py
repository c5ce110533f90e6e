"""Judges the files of a report again, and says whether each gets the same verdict.

    deepscan reproduce report.json
    deepscan reproduce report.json --media=/where/the/files/are/now --model_path=runs/mine/best

A report is what `deepscan detect --output_json` wrote, of one file or of several. File and model must be
those of the report, by their sha256. Outcomes, codes and the number of things must be equal, and every
probability within 0.001; the largest difference is told, and so are versions and devices that are others than
then.
Places in the report are relative to the folder where detect ran: start this there, or in the report's own.
How far a verdict holds under damage (--stability) is not measured again.

Exit codes:
    0    every verdict of the report was reproduced
    1    a defect of this program
    2    wrong usage: a flag, or what was given is no report
    3    a verdict differs, or its file cannot be read any more
    4    a file is missing or is another one; the verdicts of the others were reproduced
    5    the report holds no verdict of a file: nothing could be compared
    6    the model is missing, damaged, or another one
    130  stopped by the user
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

# Read by __main__, as in detect.
LEAVES_AT_ONCE = True
DIFFERS, NO_FILE, NOTHING, NO_MODEL = 3, 4, 5, 6
# Of what differs, so much is printed; --output_json holds all.
_SHOWN = 8
# What reports of schema version 1.1 do not tell.
_USUAL_FRAMES = 32

_MEDIA = flags.DEFINE_multi_string(
  "media",
  [],
  "A file of the report that lies elsewhere now, or a folder with it; may be given several times.",
  allow_override=True,
)
_MODEL_PATH = flags.DEFINE_string(
  "model_path", None, "The model's folder; without it that of the report.", allow_override=True
)
_FRAMES = flags.DEFINE_integer(
  "frames",
  None,
  f"Frames looked at in a video, for old reports that do not say (then {_USUAL_FRAMES} without it).",
  lower_bound=1,
  upper_bound=4096,
  allow_override=True,
)
_OUTPUT_JSON = flags.DEFINE_string(
  "output_json", None, "Write what was compared to this file.", allow_override=True
)


class NoFileError(ValueError):
  """The file of a verdict is not where it was, or is another one; the message says which."""


def main(argv: Sequence[str]) -> int:
  """Reproduces the report argv[1]; returns the exit code."""
  if len(argv) != 2:
    raise app.UsageError("Give one report: `deepscan reproduce report.json`.")
  from deepscan_jax import reproduction

  report_path = Path(argv[1])
  entries = reproduction.read_report(report_path)
  media = [Path(name) for name in _MEDIA.value]
  for path in media:
    if not path.exists():
      raise FileNotFoundError(f"There is no {path}; --media names a file or a folder.")
  if _OUTPUT_JSON.value:
    from .detect import Input as Given
    from .detect import check_outputs

    check_outputs([Path(_OUTPUT_JSON.value)], [Given(path) for path in (report_path, *media)])

  from deepscan_jax import checkpoints, compilation_cache

  try:
    detector = find_model(entries, _MODEL_PATH.value)
  except checkpoints.CheckpointError as error:
    print(f"deepscan: {error}", file=sys.stderr)
    return NO_MODEL
  if warning := compilation_cache.keep_programs(None):
    print(f"deepscan: {warning}", file=sys.stderr)
  return reproduce(
    detector, entries, report_path, media=media, frames=_FRAMES.value, output_json=_OUTPUT_JSON.value
  )


def reproduce(
  detector,
  entries: Sequence[dict],
  report_path: Path,
  *,
  media: Sequence[Path] = (),
  frames: int | None = None,
  output_json: str | None = None,
) -> int:
  """Judges the file of each entry again, prints what came of it, and returns the exit code.

  Args:
    detector: what `load_detector` returns, of the report's model; None where no entry has a verdict.
    entries: of `reproduction.read_report`.
    report_path: where they were read from.
    media: files and folders in which files of the report may lie now.
    frames: of entries that do not say how many; None: the usual number.
    output_json: where to write what was compared.
  """
  from deepscan_jax import compilation_cache, report, reproduction

  rows, changed = [], {}
  for entry in entries:
    row = _again(detector, entry, report_path, media=media, frames=frames, single=len(entries) == 1)
    changed |= row.pop("changed", {})
    rows.append(row)
    print(_words(row), flush=True)
  counts = {status: sum(row["status"] == status for row in rows) for status in _STATUSES}
  if changed:
    told = "; ".join(f"{name} {then} then, {now} now" for name, (then, now) in changed.items())
    print(report.printable(f"Other than then: {told}."))
  print(_summary(rows, counts))
  if output_json:
    answer = {
      "tolerance": reproduction.TOLERANCE,
      "reproduces": counts["reproduces"] == len(rows) - counts["was_not_read"] > 0,
      "changed": {name: list(pair) for name, pair in changed.items()},
      "files": rows,
    }
    report.write_whole(output_json, json.dumps(answer, indent=2) + "\n")
  compilation_cache.finish()
  if counts["differs"] or counts["unreadable"]:
    return DIFFERS
  if counts["no_file"]:
    return NO_FILE
  return 0 if counts["reproduces"] else NOTHING


def find_model(entries: Sequence[dict], model_path: str | None):
  """Returns the detector that made the verdicts; None where there is no verdict.

  Raises:
    ValueError: they are of several models.
    CheckpointError: the model is missing or damaged, or is another one.
  """
  from deepscan_jax import checkpoints, inference

  verdicts = [entry for entry in entries if "outcome" in entry]
  if not verdicts:
    return None
  models = {entry["model"].get("sha256"): entry for entry in verdicts}
  if len(models) > 1:
    raise ValueError(
      f"The report holds verdicts of {len(models)} models; write a report for each, and reproduce them "
      "one by one."
    )
  ((wanted, entry),) = models.items()
  folder = model_path or (entry.get("run") or {}).get("model_path")
  try:
    found = checkpoints.read_model(inference.DEFAULT_MODEL if folder is None else folder)
  except checkpoints.CheckpointError as error:
    hint = "" if model_path else " If it lies elsewhere now, say where with --model_path."
    raise checkpoints.CheckpointError(f"{error}{hint}") from error
  if found["sha256"] != wanted:
    raise checkpoints.CheckpointError(
      f"The report was made by the model {_named(entry['model'])}, and "
      f"{folder or 'that of this package'} is {_named(found)}; give the folder of that one with --model_path."
    )
  return inference.load_detector(folder)


def find_file(entry: dict, report_path: Path, *, media: Sequence[Path] = (), single: bool = True) -> Path:
  """Where the file of a verdict lies now; its bytes are those of the report.

  Args:
    entry: a verdict as JSON.
    report_path: of the report; the file may lie beside it.
    media: files and folders to look in.
    single: the report has no other file, so that a file in `media` can only be this one.

  Raises:
    NoFileError: there is none.
  """
  from deepscan_jax import provenance

  facts = entry["file"]
  name, wanted = facts.get("name"), facts.get("sha256")
  if not wanted:
    raise NoFileError("The verdict is of pictures from memory, not of a file; they cannot be judged again.")
  recorded = Path((entry.get("run") or {}).get("path") or name)
  places = [path for given in media for path in _files_of(given)]
  if not (media and single):
    places += [recorded, report_path.parent / recorded, report_path.parent / str(name)]
  there = [path for path in places if path.is_file()]
  alike = [path for path in there if path.stat().st_size == facts.get("bytes")]
  found = next((path for path in alike if provenance.file_sha256(path) == wanted), None)
  if found:
    return found
  if len(set(there)) == 1:
    raise NoFileError(
      f"{there[0]} is another file than that of the report: its sha256 is "
      f"{provenance.file_sha256(there[0])}, that of the report {wanted}."
    )
  if there:
    raise NoFileError(
      f"None of the {len(set(there))} files that were found has the sha256 of the report, {wanted}."
    )
  raise NoFileError(f"There is no {recorded} any more; say where the file lies now with --media=FILE.")


_STATUSES = ("reproduces", "differs", "unreadable", "no_file", "was_not_read")


def _again(detector, entry: dict, report_path: Path, *, media, frames: int | None, single: bool) -> dict:
  """What came of one entry, as plain values for JSON."""
  from deepscan_jax import media as decoding
  from deepscan_jax import reproduction

  row = {"name": entry["file"].get("name"), "status": "", "message": "", "path": None}
  if "outcome" not in entry:
    code = entry["error"].get("code")
    return {**row, "status": "was_not_read", "message": f"The file could not be read then ({code})."}
  looked_at = (entry.get("run") or {}).get("frames") or frames or _USUAL_FRAMES
  try:
    path = find_file(entry, report_path, media=media, single=single)
    row["path"] = str(path)
    now = json.loads(json.dumps(detector.detect(path, frames=looked_at).to_dict()))
  except NoFileError as error:
    return {**row, "status": "no_file", "message": str(error)}
  except decoding.MediaError as error:
    return {**row, "status": "unreadable", "message": f"It cannot be read any more: {error}"}
  found = reproduction.compare(entry, now)
  plain = {
    name: [{"place": d.place, "then": d.then, "now": d.now} for d in getattr(found, name)]
    for name in ("differences", "asides")
  }
  lines = [f"    {d}" for d in found.differences[:_SHOWN]]
  lines += [f"    and {len(found.differences) - _SHOWN} more"] * (len(found.differences) > _SHOWN)
  lines += [f"    besides, {d}" for d in found.asides[:_SHOWN]]
  lines += [f"    and {len(found.asides) - _SHOWN} more"] * (len(found.asides) > _SHOWN)
  at = f" ({found.largest_place})" if found.largest_place else ""
  said = "reproduces" if found.reproduces else "does NOT reproduce"
  return {
    **row,
    "status": "reproduces" if found.reproduces else "differs",
    "message": "\n".join(
      [f"{said}; the largest of {found.scores} differences of scores is {found.largest:.6f}{at}", *lines]
    ),
    "largest_difference": found.largest,
    "largest_place": found.largest_place,
    "scores": found.scores,
    **plain,
    "changed": reproduction.changed_run(entry, now),
  }


def _words(row: dict) -> str:
  from deepscan_jax import report

  first, *rest = row["message"].split("\n")
  lines = [f"{row['name'] or 'pictures'}: {first}", *rest]
  return "\n".join(report.printable(line) for line in lines)


def _summary(rows: Sequence[dict], counts: dict[str, int]) -> str:
  verdicts = len(rows) - counts["was_not_read"]
  if not verdicts:
    return "The report holds no verdict of a file, so nothing was compared."
  text = f"{counts['reproduces']} of {verdicts} verdict{'s' * (verdicts != 1)} reproduced"
  told = {
    "differs": "differ",
    "unreadable": "cannot be read any more",
    "no_file": "without the file",
    "was_not_read": "not read then",
  }
  more = [f"{counts[status]} {words}" for status, words in told.items() if counts[status]]
  return f"{text}{': ' * bool(more)}{', '.join(more)}."


def _files_of(path: Path) -> list[Path]:
  return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def _named(model: dict) -> str:
  return f"{model.get('name')} {model.get('version')} with sha256 {model.get('sha256')}"


if __name__ == "__main__":
  from .__main__ import run_module

  run_module(__name__)
