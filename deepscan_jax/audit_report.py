"""Shows what an audit found: lines for a terminal, and one self-contained page of HTML.

Names of files come from whoever made the dataset: they pass through `report.printable` and `report.tag`.
"""

import datetime
from collections.abc import Mapping, Sequence

from deepscan_jax.report import Html, colophon, masthead, page, printable, tag

_ALL = "all facts together"
# The chart, in units of its own: a row for each fact, the axis from 0 to 1.
_ROW, _LEFT, _ACROSS, _RIGHT, _TOP, _BOTTOM = 26, 330, 460, 150, 8, 30
_STYLE = """
.chart { width: 100%; height: auto; font: 13px/1 var(--sans); }
.chart text { fill: var(--ink); }
.chart .soft { fill: var(--soft); }
.chart .grid { stroke: var(--grid); }
.chart .guess { stroke: var(--soft); stroke-dasharray: 2 3; }
.chart .limit { stroke: var(--red); stroke-dasharray: 5 4; }
.chart .auc { fill: var(--grey); opacity: .45; }
.chart .auc.leak { fill: var(--red); }
.chart .interval { stroke: var(--ink); stroke-width: 1.6; }
"""


def summary(result: Mapping) -> str:
  """The result of `audit.audit_dataset` as lines for a terminal."""
  lines = [f"Audit of {printable(result['dataset'])}", ""]
  lines += ["| split | real files | groups | fake files | groups |", "|---|---|---|---|---|"]
  for split, row in result["counts"].items():
    real, fake = row["real"], row["fake"]
    lines.append(f"| {split} | {real['files']} | {real['groups']} | {fake['files']} | {fake['groups']} |")
  lines += ["", *(printable(note) for note in result["notes"])]
  if rows := _measured(result):
    lines += ["", _protocol_sentence(result), ""]
    lines += ["| fact | AUC | 95 % | typical, real | typical, fake | lack it |", "|---|---|---|---|---|---|"]
    for row in rows:
      low, high = row["interval"]
      cells = [row["words"], f"{row['auc']:.3f}", f"{low:.3f} to {high:.3f}", *_cells(row)]
      lines.append(f"| {' | '.join(cells)} |")
    if result["constant_facts"]:
      lines += ["", f"The same in all fitted files: {', '.join(result['constant_facts'])}."]
  lines += ["", _copies_sentence(result)]
  for first, second in result["duplicates"]["examples"]:
    lines.append(f"  {_place(first)}  =  {_place(second)}")
  if result["left_out"]:
    lines += ["", _left_out_sentence(result)]
  for row in result["unreadable"]:
    lines.append(f"  {printable(row['id'])}: {printable(row['message'])}")
  lines += ["", *(result["warnings"] or [_no_warning(result)])]
  return "\n".join(lines)


def render_html(result: Mapping, *, created: datetime.datetime | None = None) -> str:
  """One page that shows a result and asks for nothing else.

  Args:
    result: of `audit.audit_dataset`.
    created: the time that the page names as its own; None is now.
  """
  leaks = bool(result["warnings"])
  verdict = "Labels can be guessed without looking at a face" if leaks else _no_warning(result)
  details = [warning.partition(": ")[2] for warning in result["warnings"]]
  band = tag(
    "section",
    tag("p", verdict, class_="words"),
    # The heading says already what every warning begins with.
    *(tag("p", f"{text[:1].upper()}{text[1:]}", class_="reason") for text in details),
    *(tag("p", note, class_="fine") for note in result["notes"]),
    class_=f"band {'likely_manipulated' if leaks else 'not_applicable'}",
  )
  rows = _measured(result)
  article = tag(
    "article",
    tag("h1", "Audit of ", tag("bdi", result["dataset"]), class_="file-name"),
    band,
    _chart_card(result, rows) if rows else "",
    _files_card(result),
    _copies_card(result),
    _unreadable_card(result),
  )
  head = masthead("Dataset audit", created or datetime.datetime.now(datetime.UTC))
  return page(
    head,
    tag("main", article, id="main"),
    colophon(),
    title=f"Dataset audit: {result['dataset']}",
    style=_STYLE,
  )


def _measured(result: Mapping) -> list[Mapping]:
  """All facts together first, then each; empty where nothing was measured."""
  together = result["together"]
  return [{"words": _ALL, **together}, *result["facts"]] if together else []


def _is_leak(result: Mapping, row: Mapping) -> bool:
  return row["interval"][0] > result["settings"]["warning_auc"]


def _no_warning(result: Mapping) -> str:
  if not _measured(result):
    return "No figures: whether the facts tell the labels is not known."
  return f"No fact guesses the labels with an interval above AUC {result['settings']['warning_auc']:g}."


def _protocol_sentence(result: Mapping) -> str:
  protocol = result["protocol"]
  groups = f"{protocol['groups']['real']} groups with real files and {protocol['groups']['fake']} with fakes"
  if protocol["kind"] == "split":
    return f"Fitted on train, measured on {' and '.join(protocol['measured'])} ({groups})."
  return f"Measured by {protocol['folds']}-fold cross-validation over groups ({groups})."


def _copies_sentence(result: Mapping) -> str:
  found = result["duplicates"]
  if not found["compared"]:
    return "No pictures were compared, so copies across splits were not searched for."
  if not found["pairs"]:
    return f"No copies across splits among {found['compared']} compared files."
  return (
    f"{found['files']} of {found['compared']} compared files look nearly the same as a file of another split "
    f"({found['pairs']} pairs)."
  )


def _left_out_sentence(result: Mapping) -> str:
  counts = ", ".join(f"{reason}: {count}" for reason, count in result["left_out"].items())
  return f"Not used by the builder: {counts}."


def _place(row: Mapping) -> str:
  return f"{printable(row['id'])} ({row['split']}, {row['label']})"


def _cells(row: Mapping) -> tuple[str, str, str]:
  """Typical values of real and fake, and the shares that lack the fact where any do."""
  if "typical" not in row:
    return "", "", ""
  typical = [_value(row["typical"][label], row["unit"]) for label in ("real", "fake")]
  lacking = [100 * (1 - row["known"][label]) for label in ("real", "fake")]
  absent = f"{lacking[0]:.0f} % real, {lacking[1]:.0f} % fake" if any(lacking) else ""
  return typical[0], typical[1], absent


def _value(value: float | str | None, unit: str) -> str:
  if value is None:
    return "-"
  if isinstance(value, str):
    return printable(value)
  shown = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
  return f"{shown} {unit}" if unit and unit != "0..255" else shown


def _chart_card(result: Mapping, rows: Sequence[Mapping]) -> Html:
  header = ("Fact", "AUC", "95 %", "Typical, real", "Typical, fake", "Lack it")
  lines = []
  for row in rows:
    low, high = row["interval"]
    cells = (f"{row['auc']:.3f}", f"{low:.3f} to {high:.3f}", *_cells(row))
    mark = f"mark {'likely_manipulated' if _is_leak(result, row) else ''}".strip()
    name = tag("th", row["words"], scope="row", class_=mark if _is_leak(result, row) else None)
    lines.append(tag("tr", name, *(tag("td", tag("bdi", cell)) for cell in cells)))
  table = tag(
    "table",
    tag("thead", tag("tr", *(tag("th", text, scope="col") for text in header))),
    tag("tbody", *lines),
  )
  constant = result["constant_facts"]
  return tag(
    "section",
    tag("h2", "What each fact tells of the labels"),
    tag("p", _protocol_sentence(result), class_="fine"),
    _chart(result, rows),
    tag(
      "p",
      "Bars are areas under the ROC curve, lines their 95 % intervals over groups. 0.5 is guessing; a "
      f"warning is given where the interval lies above {result['settings']['warning_auc']:g}, the red line.",
      class_="fine",
    ),
    tag("div", table, class_="scroll"),
    tag("p", f"The same in all fitted files: {', '.join(constant)}.", class_="fine") if constant else "",
    class_="card",
  )


def _chart(result: Mapping, rows: Sequence[Mapping]) -> Html:
  height = _ROW * len(rows)

  def across(auc: float) -> str:
    return f"{_LEFT + _ACROSS * auc:.2f}"

  def upright(auc: float, kind: str) -> Html:
    return tag("line", x1=across(auc), x2=across(auc), y1=_TOP, y2=_TOP + height, class_=kind)

  inside = [upright(auc, "grid") for auc in (0, 0.25, 0.75, 1)]
  inside += [upright(0.5, "guess"), upright(result["settings"]["warning_auc"], "limit")]
  for number, row in enumerate(rows):
    middle = _TOP + _ROW * (number + 0.5)
    low, high = row["interval"]
    bar = tag(
      "rect",
      x=_LEFT,
      y=f"{middle - 7:.1f}",
      width=f"{_ACROSS * row['auc']:.2f}",
      height=14,
      class_="auc leak" if _is_leak(result, row) else "auc",
    )
    ends = (
      tag("line", x1=across(end), x2=across(end), y1=middle - 4, y2=middle + 4, class_="interval")
      for end in (low, high)
    )
    numbers = f"{row['auc']:.2f} ({low:.2f} to {high:.2f})"
    inside += [
      tag("text", row["words"], x=_LEFT - 10, y=f"{middle + 4.5:.1f}", text_anchor="end"),
      bar,
      tag("line", x1=across(low), x2=across(high), y1=middle, y2=middle, class_="interval"),
      *ends,
      tag("text", numbers, x=_LEFT + _ACROSS + 12, y=f"{middle + 4.5:.1f}"),
    ]
  inside += [
    tag("text", f"{auc:g}", x=across(auc), y=_TOP + height + 20, text_anchor="middle", class_="soft")
    for auc in (0, 0.25, 0.5, 0.75, 1)
  ]
  return tag(
    "svg",
    *inside,
    viewBox=f"0 0 {_LEFT + _ACROSS + _RIGHT} {_TOP + height + _BOTTOM}",
    class_="chart",
    role="img",
    aria_label="Area under the ROC curve of each fact, with its interval; the table below has the numbers",
  )


def _files_card(result: Mapping) -> Html:
  header = ("Split", "Real files", "Groups", "Fake files", "Groups")
  rows = [
    tag(
      "tr",
      tag("th", split, scope="row"),
      *(tag("td", str(row[label][what])) for label in ("real", "fake") for what in ("files", "groups")),
    )
    for split, row in result["counts"].items()
  ]
  head = tag("thead", tag("tr", *(tag("th", text, scope="col") for text in header)))
  return tag(
    "section",
    tag("h2", "What was read"),
    tag("table", head, tag("tbody", *rows)),
    tag("p", _left_out_sentence(result), class_="fine") if result["left_out"] else "",
    class_="card",
  )


def _copies_card(result: Mapping) -> Html:
  examples = (
    tag("li", tag("bdi", _place(first)), " and ", tag("bdi", _place(second)))
    for first, second in result["duplicates"]["examples"]
  )
  return tag(
    "section",
    tag("h2", "Copies across splits"),
    tag("p", _copies_sentence(result)),
    tag("ul", *examples) if result["duplicates"]["examples"] else "",
    class_="card limits",
  )


def _unreadable_card(result: Mapping) -> Html | str:
  if not result["unreadable"]:
    return ""
  items = (
    tag("li", tag("bdi", _place(row)), ": ", tag("bdi", row["message"])) for row in result["unreadable"]
  )
  return tag("section", tag("h2", "Files that cannot be read"), tag("ul", *items), class_="card limits")
