"""Judges all files of a folder, and goes on where it was stopped or killed.

    deepscan batch --directory=/media/evidence --file_ext=.mp4 --output_report=report.json
    deepscan batch --directory=clips --output_report=report.csv --output_report=report.html --workers=2
    deepscan batch --directory=/shared --database=postgresql://deepscan@db/deepscan --output_report=r.csv

What was found is kept in a ledger: the same command again judges only what has no answer yet, and files that
have changed since. Another model, another number of frames or another version of this program is another
batch. Several processes, on several machines with PostgreSQL, share one batch by being given the same
command; each ends when all of it is answered, and writes the whole report. A file that makes its process
crash is given up after three tries, and the others go on.
--output_report ends in .json, .jsonl, .csv or .html and may be given several times. Results go to stdout, a
line for each file (outcome, probability, path; JSON with --json), progress to stderr, as a bar on a terminal.
--runner=beam judges on a cluster that runs Apache Beam, without a ledger: see --beam_options.

Exit codes, of the batch as a whole with what earlier runs have found:
    0    every file was answered ("not applicable", where there is nothing to judge, is an answer)
    1    a defect of this program; files on which it did not show are answered
    2    wrong usage: a flag, a folder, a place that cannot be written, a database that cannot be used
    3    with --fail_on=manipulated (or fake): at least one file is likely manipulated
    4    some files could not be read, or were given up; the others were answered
    5    there are no files, or none could be read
    6    the model is missing or damaged
    130  stopped by the user (143: by the system); the same command goes on
"""

import dataclasses
import functools
import itertools
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from absl import app, flags

from .detect import (
  FLAGGED,
  INTERNAL_ERROR,
  NO_MODEL,
  PARTIAL,
  UNREADABLE,
  check_writable,
  wants_color,
)

_DIRECTORY = flags.DEFINE_string("directory", None, "The folder of the files.", allow_override=True)
_FILE_EXT = flags.DEFINE_multi_string(
  "file_ext",
  [],
  "Only files that end so, such as .mp4; several: a comma list, or the flag again. Without it all that "
  "`detect` opens.",
  allow_override=True,
)
_RECURSIVE = flags.DEFINE_boolean("recursive", True, "Look into folders in the folder.", allow_override=True)
_OUTPUT_REPORT = flags.DEFINE_multi_string(
  "output_report", [], "Write a report to this file; .json, .jsonl, .csv or .html.", allow_override=True
)
_MODEL_PATH = flags.DEFINE_string(
  "model_path",
  None,
  "A checkpoint folder; without it the model that comes with the package.",
  allow_override=True,
)
_FRAMES = flags.DEFINE_integer(
  "frames",
  32,
  "How many frames of a video are looked at.",
  lower_bound=1,
  upper_bound=4096,
  allow_override=True,
)
_WORKERS = flags.DEFINE_integer(
  "workers",
  1,
  "Processes that judge, each with a detector of its own; one uses all cores of a CPU for the model.",
  lower_bound=1,
  allow_override=True,
)
_LIMIT = flags.DEFINE_integer(
  "limit",
  None,
  "Stop after so many answers; the same command goes on with the next.",
  lower_bound=1,
  allow_override=True,
)
_DRY_RUN = flags.DEFINE_boolean(
  "dry_run", False, "Print the files that would be judged, and judge none.", allow_override=True
)
_RESUME = flags.DEFINE_boolean(
  "resume", True, "Go on with what earlier runs have found; --noresume forgets that.", allow_override=True
)
_RETRY = flags.DEFINE_boolean(
  "retry", False, "Try files again that could not be read or were given up.", allow_override=True
)
_DATABASE = flags.DEFINE_string(
  "database",
  None,
  "The ledger: an SQLite file on a disk of this machine, or postgresql://USER@HOST/NAME for several machines "
  "(default: deepscan_jax/batches.sqlite in the user's state folder).",
  allow_override=True,
)
_BATCH_NAME = flags.DEFINE_string(
  "batch_name",
  None,
  "By which the batch is found in the ledger (default: the folder's path); for machines that see the same "
  "folder under other paths.",
  allow_override=True,
)
_LEASE_S = flags.DEFINE_float(
  "lease_s",
  60.0,
  "Seconds after which a machine that is not heard of loses the files it was judging.",
  lower_bound=1.0,
  allow_override=True,
)
_ITEM_S = flags.DEFINE_float(
  "item_timeout_s",
  900.0,
  "Seconds after which the judging of one file counts as hanging.",
  lower_bound=1.0,
  allow_override=True,
)
_JSON = flags.DEFINE_boolean(
  "json", False, "Print a line of JSON for each file instead of words.", allow_override=True
)
_QUIET = flags.DEFINE_boolean(
  "quiet", False, "Print neither progress nor results; errors are still told.", allow_override=True
)
_FAIL_ON = flags.DEFINE_enum(
  "fail_on",
  None,
  ["manipulated", "fake"],
  "End with exit code 3 when a file is likely manipulated.",
  allow_override=True,
)
_CACHE = flags.DEFINE_string(
  "compilation_cache_dir",
  None,
  "Private folder that keeps compiled programs, so that the next start is fast; 'none' keeps nothing "
  "(default: deepscan_jax/compiled in the user's cache folder).",
  allow_override=True,
)
_RUNNER = flags.DEFINE_enum(
  "runner", "local", ["local", "beam"], "Where files are judged.", allow_override=True
)
_BEAM_OPTIONS = flags.DEFINE_string(
  "beam_options",
  "",
  "beam: flags of the pipeline, such as --runner=DirectRunner. Its workers see the folder under the same "
  "path. --output_report=NAME.jsonl writes NAME-00000-of-00009.jsonl and so on, files without a verdict to "
  "NAME.dead_letter-00000-of-00009.jsonl.",
  allow_override=True,
)

# Without a terminal a line tells the progress so often.
_LINE_EVERY_S = 30.0


def main(argv: Sequence[str]) -> int:
  """Judges the folder of --directory, or argv[1]; returns the exit code."""
  folders = [*filter(None, [_DIRECTORY.value]), *argv[1:]]
  if len(folders) != 1:
    raise app.UsageError("Say which folder: `deepscan batch --directory=FOLDER`.")
  # Absolute, for workers on other machines; as bytes, for a name need not be text.
  directory = Path(os.path.realpath(folders[0]))
  if not directory.is_dir():
    raise NotADirectoryError(f"There is no folder {folders[0]}; --directory names one.")

  from deepscan_jax.serve import batch, batch_report, judging

  wanted = batch.extensions(_FILE_EXT.value)
  batch_report.check_names(_OUTPUT_REPORT.value)
  for path in _OUTPUT_REPORT.value:
    check_writable(Path(path))

  from deepscan_jax import checkpoints, inference

  try:
    facts = checkpoints.read_model(_MODEL_PATH.value or inference.DEFAULT_MODEL)
  except checkpoints.CheckpointError as error:
    print(f"deepscan: {error}", file=sys.stderr)
    return NO_MODEL
  settings = batch.Settings(
    model={key: facts[key] for key in ("name", "version", "sha256")},
    frames=_FRAMES.value,
    extensions=wanted,
    recursive=_RECURSIVE.value,
  )
  model_path = os.path.abspath(_MODEL_PATH.value) if _MODEL_PATH.value else None
  load = functools.partial(judging.load_detector_judge, model_path, frames=_FRAMES.value, cache=_CACHE.value)
  options = Options(
    workers=_WORKERS.value,
    limit=_LIMIT.value,
    resume=_RESUME.value,
    retry=_RETRY.value,
    reports=tuple(map(Path, _OUTPUT_REPORT.value)),
    as_json=_JSON.value,
    quiet=_QUIET.value,
    fail_on_manipulated=_FAIL_ON.value is not None,
    item_s=_ITEM_S.value,
    lease_s=_LEASE_S.value,
  )
  name = _BATCH_NAME.value or str(directory)
  if _RUNNER.value == "beam":
    return on_beam(directory, settings, load, options, flags_of_beam=_BEAM_OPTIONS.value)
  database = _DATABASE.value or default_database(make=not _DRY_RUN.value)
  if _DRY_RUN.value:
    return dry_run(database, directory, settings, name=name)
  return judge(database, directory, settings, load, options, name=name)


@dataclasses.dataclass(frozen=True)
class Options:
  """How a batch is run; nothing of it changes what is said of a file.

  Attributes:
    workers, limit, item_s, lease_s: as of batch.run.
    resume: False forgets earlier answers.
    retry: tries again what has no verdict.
    reports: where to write.
    as_json: lines on stdout are JSON.
    quiet: there are none.
    fail_on_manipulated: return FLAGGED where a file is likely manipulated.
  """

  workers: int = 1
  limit: int | None = None
  resume: bool = True
  retry: bool = False
  reports: tuple[Path, ...] = ()
  as_json: bool = False
  quiet: bool = False
  fail_on_manipulated: bool = False
  item_s: float = 900.0
  lease_s: float = 60.0


def judge(
  database: str | Path,
  directory: Path,
  settings,
  load: Callable,
  options: Options,
  *,
  name: str | None = None,
) -> int:
  """Judges what has no answer yet, prints and writes what is asked for, and returns the exit code.

  Args:
    database: of the ledger, see jobs.open_database.
    directory: real path of the folder.
    settings: batch.Settings.
    load: makes a batch.Judge in each worker.
    options: how.
    name: of the batch; None: the folder's path.
  """
  import sqlalchemy

  from deepscan_jax import stopping
  from deepscan_jax.serve import batch, batch_report, databases, jobs, judging

  ledger = jobs.Ledger(jobs.open_database(database))
  key = settings.key(name or str(directory))
  meter = Meter(options.quiet)
  out = Results(options, meter)
  try:
    with stopping.listening() as stop:
      job, trouble = open_batch(ledger, directory, settings, key, options, meter, stop)
      for answered in ledger.answers(job.id):
        out.show(answered)
      with meter:
        try:
          batch.run(
            ledger,
            job,
            load,
            workers=options.workers,
            limit=options.limit,
            item_s=options.item_s,
            lease_s=options.lease_s,
            stop=stop,
            on_answer=out.show,
            on_progress=meter.show,
            tell=meter.tell,
          )
        except judging.NoModelError as error:
          meter.tell(str(error))
          return NO_MODEL
      # Of other processes, since.
      for answered in ledger.answers(job.id):
        out.show(answered)
    counts, outcomes = ledger.counts(job.id), ledger.outcomes(job.id)
    about = batch_report.about(job, counts, outcomes, now=time.time())
    for path in options.reports:
      batch_report.write(path, about, ledger.answers(job.id))
      meter.say(f"Report written to {path}")
  except sqlalchemy.exc.DBAPIError as error:
    why = databases.first_line(error)
    meter.tell(f"The database fails: {why}. The same command goes on once it is back.")
    return INTERNAL_ERROR
  meter.say(summary(counts, outcomes))
  if stop:
    return 128 + stop.number
  return exit_code(counts, outcomes, trouble=trouble, fail_on_manipulated=options.fail_on_manipulated)


def open_batch(ledger, directory: Path, settings, key: str, options: Options, meter: "Meter", stop):
  """Returns the job with all files of the folder added, and how much of the folder could not be looked at."""
  from deepscan_jax.serve import answers, batch, jobs

  root = os.fsencode(directory)
  if not options.resume and (old := ledger.job_of(key)):
    ledger.forget(old.id)
  job = ledger.open_job(key=key, settings=settings.to_dict(), directory=root)
  if options.retry:
    ledger.retry(job.id)
  trouble = []

  def note(path: bytes, error: OSError) -> None:
    trouble.append(path)
    meter.tell(f"{answers.path_text(path) or '.'} cannot be looked at: {error.strerror}.")

  files = batch.find_files(root, settings.extensions, recursive=settings.recursive, trouble=note)
  again = batch.add_files(ledger, job.id, root, itertools.takewhile(lambda _: not stop, files))
  counts = ledger.counts(job.id)
  answered, todo = sum(counts[s] for s in jobs.ANSWERED), sum(counts[s] for s in jobs.OPEN)
  if todo:
    ledger.go_on(job.id)
  changed = f", {again} of them changed since they were" if again else ""
  meter.say(f"{answered + todo} files: {answered} answered before, {todo} to judge{changed}.")
  # Where it lies now; a batch that has a name may have been begun elsewhere.
  return dataclasses.replace(job, directory=root), len(trouble)


def dry_run(database: str | Path, directory: Path, settings, *, name: str | None = None) -> int:
  """Prints the files that would be judged, and changes nothing."""
  from deepscan_jax import report
  from deepscan_jax.serve import answers, batch, jobs

  exists = "://" in str(database) or Path(database).exists()
  ledger = jobs.Ledger(jobs.open_database(database)) if exists else None
  job = ledger.job_of(settings.key(name or str(directory))) if ledger else None

  def note(path: bytes, error: OSError) -> None:
    told = report.printable(answers.path_text(path)) or "."
    print(f"deepscan: {told} cannot be looked at: {error.strerror}.", file=sys.stderr)

  files = batch.find_files(
    os.fsencode(directory), settings.extensions, recursive=settings.recursive, trouble=note
  )
  total = todo = 0
  for path, is_open in batch.unanswered(ledger, job, files):
    total, todo = total + 1, todo + is_open
    if is_open:
      print(report.printable(answers.path_text(path)))
  print(f"{total} files, {todo} of them would be judged.", file=sys.stderr)
  return 0 if total else UNREADABLE


def on_beam(directory: Path, settings, load: Callable, options: Options, *, flags_of_beam: str) -> int:
  """Judges as a Beam pipeline; returns the exit code."""
  from deepscan_jax.serve import batch_beam

  meter = Meter(options.quiet)
  if len(options.reports) != 1 or options.reports[0].suffix != ".jsonl":
    raise app.UsageError("--runner=beam writes lines: give one --output_report=NAME.jsonl.")
  counts, outcomes = batch_beam.run(
    directory,
    settings,
    load,
    output=options.reports[0],
    options=flags_of_beam,
    limit=options.limit,
    item_s=options.item_s,
  )
  meter.say(summary(counts, outcomes))
  return exit_code(counts, outcomes, trouble=0, fail_on_manipulated=options.fail_on_manipulated)


def exit_code(
  counts: Mapping[str, int], outcomes: Mapping[str, int], *, trouble: int, fail_on_manipulated: bool
) -> int:
  """The exit code for these answers, as the module's docstring lists them."""
  from deepscan_jax.serve import jobs, judging
  from deepscan_jax.verdict import LIKELY_MANIPULATED

  done, failed = counts[jobs.DONE], counts[jobs.FAILED]
  if fail_on_manipulated and outcomes.get(LIKELY_MANIPULATED):
    return FLAGGED
  if outcomes.get(judging.DEFECT):
    return INTERNAL_ERROR
  if not done:
    return UNREADABLE
  return PARTIAL if failed or trouble else 0


def summary(counts: Mapping[str, int], outcomes: Mapping[str, int]) -> str:
  """What came of it, in a sentence or two."""
  from deepscan_jax.serve import jobs

  total, waiting = sum(counts.values()), sum(counts[state] for state in jobs.OPEN)
  found = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in sorted(outcomes.items()))
  more = f" {waiting} wait; the same command goes on with them." if waiting else ""
  return f"{total} file{'s' * (total != 1)}: {found or 'no answers'}.{more}"


def default_database(*, make: bool) -> Path:
  """Where the ledger is unless the user says otherwise: below XDG_STATE_HOME, or ~/.local/state.

  Args:
    make: whether its folder is made.

  Raises:
    FileNotFoundError: this user has no home folder.
  """
  root = os.environ.get("XDG_STATE_HOME", "")
  if not os.path.isabs(root):
    try:
      root = Path.home() / ".local" / "state"
    except RuntimeError as error:
      raise FileNotFoundError(
        "This user has no home folder; say where the ledger is: --database=FILE."
      ) from error
  folder = Path(root) / "deepscan_jax"
  if make:
    try:
      folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
      raise PermissionError(
        f"The ledger cannot be kept in {folder} ({error.strerror}); --database=FILE says where else."
      ) from error
  return folder / "batches.sqlite"


class Results:
  """Prints each answer once, whoever has found it.

  Args:
    options: of the batch.
    meter: whose bar is on the same terminal.
  """

  def __init__(self, options: Options, meter: "Meter"):
    self._options, self._meter = options, meter
    self._shown: set[int] = set()

  def show(self, answered) -> None:
    """Prints a jobs.Answered, unless it was printed."""
    from deepscan_jax.serve import batch_report

    if self._options.quiet or answered.item in self._shown:
      return
    self._shown.add(answered.item)
    if self._options.as_json:
      line = batch_report.json_line(answered)
    else:
      line = batch_report.text_line(answered.path, answered.answer)
    self._meter.print(line)


class Meter:
  """Files done, their rate and the time left, on stderr: a bar on a terminal, else a line now and then.

  Args:
    quiet: whether only what goes wrong is told.
  """

  def __init__(self, quiet: bool):
    self._quiet = quiet
    self._bar = None
    self._first = self._last_line_s = None
    self._on_terminal = sys.stderr.isatty()

  def __enter__(self) -> "Meter":
    return self

  def __exit__(self, *_) -> None:
    if self._bar is not None:
      self._bar.close()
      self._bar = None

  def show(self, progress) -> None:
    """Shows a batch.Progress."""
    if self._quiet or not progress.total:
      return
    from tqdm import tqdm

    told = f"{progress.flagged} likely manipulated, {progress.failed} without a verdict"
    if self._on_terminal:
      if self._bar is None:
        self._bar = tqdm(total=progress.total, initial=progress.answered, unit=" files", file=sys.stderr)
      self._bar.total = progress.total
      self._bar.set_postfix_str(told, refresh=False)
      self._bar.update(progress.answered - self._bar.n)
      return
    now = time.monotonic()
    if self._first is None:
      self._first = self._last_line_s = now
      self._before = progress.answered
    if now - self._last_line_s >= _LINE_EVERY_S:
      self._last_line_s = now
      line = tqdm.format_meter(
        progress.answered,
        progress.total,
        now - self._first,
        unit=" files",
        initial=self._before,
        ncols=0,
        postfix=told,
      )
      print(line.strip(), file=sys.stderr, flush=True)

  def say(self, sentence: str) -> None:
    """Tells how it goes."""
    if not self._quiet:
      dim, plain = ("\x1b[2m", "\x1b[0m") if wants_color(sys.stderr) else ("", "")
      self._write(f"{dim}{_printable(sentence)}{plain}", sys.stderr)

  def tell(self, sentence: str) -> None:
    """Tells what goes wrong."""
    self._write(f"deepscan: {_printable(sentence)}", sys.stderr)

  def print(self, line: str) -> None:
    """Prints a result."""
    self._write(line, sys.stdout)

  def _write(self, line: str, stream) -> None:
    # tqdm takes its bar away for the moment.
    if self._bar is not None and stream.isatty():
      self._bar.write(line, file=stream)
    else:
      print(line, file=stream, flush=True)


def _printable(sentence: str) -> str:
  from deepscan_jax.report import printable

  return printable(sentence)


if __name__ == "__main__":
  from .__main__ import run_module

  run_module(__name__)
