"""What a batch has found, as JSON, JSON lines, CSV or one page of HTML; by the ending of the file's name.

Each file of the batch has one row, whatever the number of runs that it took. Names of files are hostile:
what is no UTF-8, or steers terminals, is spelled out (`path_base64` holds the bytes of a name that is no
UTF-8), and no cell of the CSV is a formula.
"""

import base64
import csv
import datetime
import heapq
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from deepscan_jax.files import whole_file
from deepscan_jax.serve import answers, jobs
from deepscan_jax.serve.jobs import Answered, Job
from deepscan_jax.verdict import INCONCLUSIVE, LIKELY_AUTHENTIC, LIKELY_MANIPULATED, NOT_APPLICABLE

SCHEMA_VERSION = "1.0"
# What a page shows of a batch: more rows than that nobody reads, and no browser likes.
PAGE_ROWS = 2000
COLUMNS = (
  "path",
  "outcome",
  "deepfake_probability",
  "is_deepfake",
  "confidence",
  "decided_by",
  "reasons",
  "error_code",
  "error_message",
  "kind",
  "bytes",
  "sha256",
  "model",
  "tries",
)
UNREAD = "unread"
# The most suspicious first.
_ORDER = (LIKELY_MANIPULATED, INCONCLUSIVE, UNREAD, LIKELY_AUTHENTIC, NOT_APPLICABLE)


def writer_of(path: str | Path) -> Callable[[BinaryIO, Mapping, Iterable[Answered]], None]:
  """The function that writes a report of this name.

  Raises:
    ValueError: the name's ending is none of .json, .jsonl, .csv, .html.
  """
  ending = Path(path).suffix.lower()
  if ending not in WRITERS:
    raise ValueError(
      f"{path} ends in none of {', '.join(WRITERS)}, which say what kind of report is written."
    )
  return WRITERS[ending]


def write(path: str | Path, batch: Mapping, found: Iterable[Answered]) -> None:
  """Writes a report; the file appears whole or not at all.

  Args:
    path: of the report.
    batch: what `about` gives.
    found: in order.

  Raises:
    ValueError: as of `writer_of`.
    OSError: it cannot be written.
  """
  writer = writer_of(path)
  with whole_file(path) as file:
    writer(file, batch, found)


def about(job: Job, counts: Mapping[str, int], outcomes: Mapping[str, int], *, now: float) -> dict:
  """What a report says of the batch as a whole.

  Args:
    job: of the batch.
    counts, outcomes: as of the Ledger.
    now: seconds since 1970.
  """
  total, answered = sum(counts.values()), sum(counts[state] for state in jobs.ANSWERED)
  return {
    "schema_version": SCHEMA_VERSION,
    "id": job.id,
    "directory": answers.path_text(job.directory or b""),
    **job.settings,
    "begun_at": stamp(job.created_at),
    "written_at": stamp(now),
    "complete": answered == total,
    "files": total,
    "judged": counts[jobs.DONE],
    "without_verdict": counts[jobs.FAILED],
    "waiting": total - answered,
    "outcomes": dict(sorted(outcomes.items())),
  }


def stamp(time_s: float) -> str:
  """Seconds since 1970 as a time of day, UTC."""
  return datetime.datetime.fromtimestamp(time_s, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def result(answered: Answered) -> dict:
  """The row of one file: {"path", "tries"} and the verdict, or the error in its place."""
  return {**names(answered.path), "tries": answered.tries, **answered.answer}


def names(path: bytes) -> dict:
  """{"path"} as text, and {"path_base64"} where it is not all of the truth."""
  try:
    return {"path": path.decode()}
  except UnicodeDecodeError:
    return {"path": answers.path_text(path), "path_base64": base64.b64encode(path).decode()}


def json_line(answered: Answered) -> str:
  """One line of JSON, without its end."""
  return json.dumps(result(answered), allow_nan=False)


def text_line(path: bytes, answer: Mapping) -> str:
  """One line for a terminal: outcome, probability, path, with tabs between them."""
  from deepscan_jax.report import printable

  outcome = answer["error"]["code"] if "error" in answer else answer["outcome"]
  probability = answer.get("deepfake_probability")
  told = "-" if probability is None else f"{probability:.3f}"
  return f"{outcome}\t{told}\t{printable(answers.path_text(path))}"


def cell(value: object) -> str:
  """What stands in the CSV: never a formula, never a second line, nothing that steers a terminal.

  A text that a spreadsheet would take for a formula begins with an apostrophe (OWASP, CSV injection).
  """
  from deepscan_jax.report import printable

  if value is None:
    return ""
  if isinstance(value, bool):
    return "true" if value else "false"
  if isinstance(value, int | float):
    return repr(value)
  text = str(value)
  # Those of full width are read as the others by some.
  dangerous = text.lstrip()[:1] in tuple("=+-@\uff1d\uff0b\uff0d\uff20") or text[:1] in tuple("\t\r\n")
  return ("'" if dangerous and text else "") + printable(text)


def _write_json(file: BinaryIO, batch: Mapping, found: Iterable[Answered]) -> None:
  head = json.dumps({"batch": dict(batch), "results": []}, indent=2, allow_nan=False)
  file.write(head.removesuffix("]\n}").encode())
  between = "\n"
  for answered in found:
    file.write((between + json_line(answered)).encode())
    between = ",\n"
  file.write(b"\n]}\n")


def _write_jsonl(file: BinaryIO, batch: Mapping, found: Iterable[Answered]) -> None:
  del batch
  for answered in found:
    file.write((json_line(answered) + "\n").encode())


def _write_csv(file: BinaryIO, batch: Mapping, found: Iterable[Answered]) -> None:
  del batch
  text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
  # Every cell in quotes, so that those that read other separators see the same cells.
  rows = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
  rows.writerow(COLUMNS)
  for answered in found:
    row = _columns(answered)
    rows.writerow([cell(row[column]) for column in COLUMNS])
  text.detach()


def _columns(answered: Answered) -> dict:
  answer = answered.answer
  error, file, model = (answer.get(key) or {} for key in ("error", "file", "model"))
  return {
    "path": answers.path_text(answered.path),
    "outcome": UNREAD if error else answer["outcome"],
    **{key: answer.get(key) for key in ("deepfake_probability", "is_deepfake", "confidence", "decided_by")},
    "reasons": " ".join(reason["code"] for reason in answer.get("reasons", ())),
    "error_code": error.get("code"),
    "error_message": error.get("message"),
    **{key: file.get(key) for key in ("kind", "bytes", "sha256")},
    "model": model.get("sha256"),
    "tries": answered.tries,
  }


def _write_html(file: BinaryIO, batch: Mapping, found: Iterable[Answered]) -> None:
  from deepscan_jax import report

  tag = report.tag
  shown = heapq.nsmallest(PAGE_ROWS, _rows(found), key=lambda row: row[:3])
  body = [_table_row(answered, outcome) for _, _, _, outcome, answered in shown]
  header = ("File", "Verdict", "Probability", "Why")
  table = tag(
    "table",
    tag("thead", tag("tr", *(tag("th", text, scope="col") for text in header))),
    tag("tbody", *body),
    class_="overview",
  )
  facts = [
    ("Folder", batch["directory"]),
    ("Files", f"{batch['files']}, of which {batch['judged']} were judged"),
    ("Without a verdict", str(batch["without_verdict"])),
    *([("Still waiting", str(batch["waiting"]))] if batch["waiting"] else []),
    ("Model", " ".join(str(batch["model"][key]) for key in ("name", "version", "sha256"))),
    ("Frames of a video", str(batch["frames"])),
    ("Begun", batch["begun_at"]),
  ]
  known = tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in facts))
  rest = batch["judged"] + batch["without_verdict"] - len(shown)
  more = f"The {len(shown)} most suspicious files; {rest} more stand in the JSON and the CSV."
  limits = tag("ul", *(tag("li", sentence) for sentence in report.LIMITS))
  page = report.page(
    tag("a", "Skip to the table", href="#main", class_="skip"),
    report.masthead("Deepfake analysis of a batch", datetime.datetime.now(datetime.UTC)),
    tag(
      "main",
      tag(
        "section",
        tag("h1", f"{batch['files']} files"),
        known,
        tag("p", more) if rest else "",
        table,
        class_="card",
      ),
      tag("section", tag("h2", "What this can and cannot tell"), limits, class_="card limits"),
      id="main",
    ),
    report.colophon(),
    title=f"Deepfake report: {batch['files']} files",
  )
  file.write(page.encode())


def _rows(found: Iterable[Answered]) -> Iterator[tuple[int, float, int, str, Answered]]:
  for answered in found:
    outcome = UNREAD if "error" in answered.answer else answered.answer["outcome"]
    probability = answered.answer.get("deepfake_probability")
    yield _ORDER.index(outcome), -(probability or 0.0), answered.item, outcome, answered


def _table_row(answered: Answered, outcome: str):
  from deepscan_jax import report

  tag, answer = report.tag, answered.answer
  probability = answer.get("deepfake_probability")
  if outcome == UNREAD:
    words, why = "Could not be read", answer["error"]["message"]
  else:
    words = report.OUTCOME_WORDS[outcome]
    why = " ".join(reason["message"] for reason in answer["reasons"])
  return tag(
    "tr",
    tag("th", tag("bdi", answers.path_text(answered.path)), scope="row"),
    tag("td", words, class_=f"mark {outcome}"),
    tag("td", report.DASH if probability is None else report.percent(probability), class_="number"),
    tag("td", why),
  )


WRITERS = {".json": _write_json, ".jsonl": _write_jsonl, ".csv": _write_csv, ".html": _write_html}


def check_names(paths: Sequence[str | Path]) -> None:
  """Raises ValueError where one of the names says no kind of report."""
  for path in paths:
    writer_of(path)
