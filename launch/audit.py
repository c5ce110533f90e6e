"""Looks for shortcuts in a dataset: whether its labels can be guessed without looking at a face.

    deepscan audit --media=/path/with/real/and/fake
    deepscan audit --name=faceforensics/c23 --media=/path/to/FaceForensics++ --output_html=audit.html

Small models are fitted on facts that have nothing to do with forgery (resolution, duration, codec, bit rate,
JPEG tables, leading silence, loudness, brightness, sharpness and so on), one for each fact and one for all.
The table gives the AUC that each reaches on files that it was not fitted on, with a 95 % interval by a
bootstrap over groups; where the interval lies above 0.6, a sentence warns. Then come files of different
splits that look nearly the same, and files that cannot be read.

The dataset's own split is kept: fitted on train, measured on validation and test. Where a part of it has
fewer than ten groups of a class, five-fold cross-validation over groups takes its place; with fewer than ten
in all, there are no figures.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

_NAME = flags.DEFINE_string(
  "name",
  "real_fake_folder",
  "A builder: a folder in datasets/, and a config of it after a slash.",
  allow_override=True,
)
_MEDIA = flags.DEFINE_multi_string(
  "media", [], "A folder or tar file of media; may be given several times.", allow_override=True
)
_FRAMES = flags.DEFINE_integer(
  "frames",
  4,
  "Frames looked at in each video, for brightness, sharpness and copies; 0 looks at no picture of it.",
  lower_bound=0,
  upper_bound=4096,
  allow_override=True,
)
_LIMIT = flags.DEFINE_integer(
  "limit", None, "About how many files to read at most, in whole groups.", lower_bound=1, allow_override=True
)
_OUTPUT_JSON = flags.DEFINE_string(
  "output_json", None, "Write the result to this JSON file.", allow_override=True
)
_OUTPUT_HTML = flags.DEFINE_string(
  "output_html", None, "Write a report to this HTML file.", allow_override=True
)
# A line on stderr after so many files.
_FILES_PER_LINE = 200


def main(argv: Sequence[str]) -> int:
  """Audits the dataset that the flags name; returns the exit code."""
  if argv[1:]:
    raise app.UsageError(f"Unexpected argument {argv[1]!r}; media go into --media=.")
  if not _MEDIA.value:
    raise app.UsageError("Say which media to read: --media=FOLDER_OR_TAR (may be given several times).")
  for output in (_OUTPUT_JSON.value, _OUTPUT_HTML.value):
    if output and not Path(output).parent.is_dir():
      # Before the minutes that reading takes.
      raise app.UsageError(f"Cannot write {output}: there is no such folder.")

  from deepscan_jax import audit, audit_report, report
  from deepscan_jax.rooms import find_builder

  builder_class, config = find_builder(_NAME.value)
  # Nothing is prepared, but a builder wants a folder of its own.
  with tempfile.TemporaryDirectory() as data_dir:
    builder = builder_class(config=config, media_paths=_MEDIA.value, data_dir=data_dir)
    result = audit.audit_dataset(
      builder.split_files(),
      dataset=_NAME.value,
      left_out=builder.rejected,
      frames=_FRAMES.value,
      limit=_LIMIT.value,
      report_progress=_say_progress,
    )
  print(audit_report.summary(result))
  if _OUTPUT_JSON.value:
    report.write_whole(_OUTPUT_JSON.value, json.dumps(result, indent=2, allow_nan=False) + "\n")
  if _OUTPUT_HTML.value:
    report.write_whole(_OUTPUT_HTML.value, audit_report.render_html(result))
  return 0


def _say_progress(done: int, total: int) -> None:
  if done % _FILES_PER_LINE == 0 and done < total:
    print(f"{done} of {total} files read", file=sys.stderr, flush=True)


if __name__ == "__main__":
  from .__main__ import run_module

  run_module(__name__)
