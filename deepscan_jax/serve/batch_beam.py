"""A batch as an Apache Beam pipeline, for millions of files on a cluster that runs one anyway.

Each of Beam's worker processes judges in a process of its own, as `deepscan batch` does, so a file that
makes it crash costs three tries and not the bundle. What has a verdict is written to NAME-*.jsonl; what has
none, with the reason in its place, to the dead letters, NAME.dead_letter-*.jsonl. There is no ledger: Beam
itself does a bundle again whose worker is lost, and counts its results once.
"""

import functools
import importlib.util
import os
import shlex
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from deepscan_jax.serve import answers, batch, batch_report, jobs, judging

_NAMESPACE = "deepscan batch"


def run(
  directory: Path,
  settings: batch.Settings,
  load: Callable[[], judging.Judge],
  *,
  output: Path,
  options: str,
  limit: int | None = None,
  item_s: float = judging.ITEM_S,
) -> tuple[dict[str, int], dict[str, int]]:
  """Judges the files of a folder; returns how many items are in each state, and have each outcome.

  Args:
    directory: as all workers see it.
    settings: which files, and how they are judged.
    load: makes a worker's Judge.
    output: NAME.jsonl.
    options: flags of the pipeline.
    limit: judges so many files at most.
    item_s: as of batch.run.

  Raises:
    ValueError: Beam is not installed, or one of the options is no flag.
  """
  if importlib.util.find_spec("apache_beam") is None:
    raise ValueError("Apache Beam is not installed; `pip install 'deepscan_jax[beam]'` adds it.")
  import apache_beam as beam
  from apache_beam.options.pipeline_options import PipelineOptions

  given = shlex.split(options)
  # Beam passes over what it does not know; a word without dashes can only be a slip.
  if wrong := [word for word in given if not word.startswith("--")]:
    raise ValueError(f"--beam_options takes flags such as --runner=DirectRunner, not {wrong[0]!r}.")
  root, prefix = os.fsencode(directory), str(output.with_suffix(""))

  class JudgeFiles(beam.DoFn):
    """Yields a line for each file: verdicts in the main output, the rest tagged "dead"."""

    def process(self, path: bytes):
      answer, tries = _careful(load, item_s).answer(root, path)
      answered = jobs.Answered(0, path, jobs.FAILED if "error" in answer else jobs.DONE, tries, answer)
      outcome = answer.get("outcome") or answer["error"]["code"]
      beam.metrics.Metrics.counter(_NAMESPACE, f"{answered.state} {outcome}").inc()
      line = batch_report.json_line(answered)
      yield line if answered.state == jobs.DONE else beam.pvalue.TaggedOutput("dead", line)

  # Leaving the block would wait for the end, and give no result to ask for the counters.
  pipeline = beam.Pipeline(options=PipelineOptions(given))
  # Looked for on the cluster: the graph of a pipeline has no room for a million names.
  listed = functools.partial(_files, settings=settings, limit=limit)
  judged = (
    pipeline
    | "Folder" >> beam.Create([root])
    | "Files" >> beam.FlatMap(listed)
    | "Spread" >> beam.Reshuffle()
    | "Judge" >> beam.ParDo(JudgeFiles()).with_outputs("dead", main="judged")
  )
  for lines, name in ((judged.judged, prefix), (judged.dead, f"{prefix}.dead_letter")):
    _ = lines | f"Write {name}" >> beam.io.WriteToText(name, file_name_suffix=".jsonl")
  result = pipeline.run()
  result.wait_until_finish()
  wanted = beam.metrics.metric.MetricsFilter().with_namespace(_NAMESPACE)
  counts, outcomes = dict.fromkeys(jobs.ITEM_STATES, 0), {}
  for counter in result.metrics().query(wanted)["counters"]:
    state, outcome = counter.key.metric.name.split(" ", 1)
    number = counter.committed if counter.committed is not None else counter.attempted
    counts[state] += number
    outcomes[outcome] = outcomes.get(outcome, 0) + number
  return counts, outcomes


def _files(root: bytes, *, settings: batch.Settings, limit: int | None) -> Iterator[bytes]:
  def trouble(path: bytes, error: OSError) -> None:
    raise OSError(error.errno, f"{answers.path_text(path) or '.'} cannot be looked at: {error.strerror}")

  found = batch.find_files(root, settings.extensions, recursive=settings.recursive, trouble=trouble)
  for number, (path, _) in enumerate(found):
    if limit is not None and number == limit:
      return
    yield path


# Of a process of Beam's, whose threads share it.
_judges: dict[str, judging.Careful] = {}
_making = threading.Lock()


def _careful(load: Callable[[], judging.Judge], item_s: float) -> judging.Careful:
  with _making:
    return _judges.setdefault(f"{load!r} {item_s}", judging.Careful(load, item_s=item_s))
