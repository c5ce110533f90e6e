"""One page about a training run: what was trained, how it went, and what to do with the model.

Made from the rows of scalars.jsonl and a few facts; shown as a self-contained page of HTML and as Markdown.
"""

import datetime
import itertools
import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from deepscan_jax.config import differences
from deepscan_jax.files import write_whole
from deepscan_jax.logs import TIMING, clock, is_validation
from deepscan_jax.report import (
  DASH,
  NOT_KNOWN,
  Html,
  colophon,
  masthead,
  page,
  printable,
  round_ticks,
  tag,
)

# A longer curve is drawn by the means of as many stretches of equal length.
POINTS = 300
_COLOURS = 4
_LABELS = ("real", "fake")
# What is logged beside the losses.
_NO_LOSSES = ("gradient_norm", "train_accuracy")
_MEASURES = {
  "auc": "AUC",
  "accuracy": "Accuracy",
  "video_auc": "AUC of files",
  "video_accuracy": "Accuracy of files",
  "paired_accuracy": "Fake above its twin",
}
_STYLE = """
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(19rem, 100%), 1fr));
  gap: .4rem 2rem; }
.plots > * + * { margin-top: 0; }
.plots .plot { height: 150px; }
.card > h3 { margin-top: 1.6rem; font: 600 1.0625rem/1.3 var(--serif); }
.timeline h3 { margin: 0 0 .7rem; font: 600 .9375rem/1.3 var(--sans); }
.timeline h3 b { font-weight: 400; color: var(--soft); margin-left: .5rem; }
.plot polyline { fill: none; stroke: var(--line); stroke-width: 1.8; stroke-linejoin: round;
  stroke-linecap: round; vector-effect: non-scaling-stroke; }
.plot .chance { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 2 3;
  vector-effect: non-scaling-stroke; }
.plot .best { stroke: var(--soft); stroke-width: 1.2; stroke-dasharray: 5 4;
  vector-effect: non-scaling-stroke; }
.line0 { --line: var(--link); } .line1 { --line: var(--red); } .line2 { --line: var(--green); }
.line3 { --line: var(--amber); }
.key i { display: inline-block; width: 1.1rem; height: 0; border-top: 3px solid var(--line);
  border-radius: 2px; margin-right: .4rem; vertical-align: .25em; }
.square { max-width: 21rem; }
.plots .square .plot { height: auto; aspect-ratio: 1; }
.confusion { width: auto; margin-top: .7rem; }
.confusion th, .confusion td { padding: .6rem .9rem; border: 0; }
.confusion td { min-width: 6.5rem; text-align: center; border: 3px solid var(--card); border-radius: 6px;
  font-weight: 650;
  background: color-mix(in srgb, var(--link) calc(var(--share) * 45%), var(--grey-tint)); }
.confusion td small { display: block; font-weight: 400; }
.confusion thead th { text-align: center; }
.band .words { flex-wrap: wrap; }
pre.command { margin: .3rem 0 0; padding: .6rem .8rem; overflow-x: auto; font: .8125rem/1.5 var(--mono);
  background: var(--grey-tint); border-radius: 5px; }
.settings td { font: .8125rem/1.5 var(--mono); overflow-wrap: anywhere; }
@media (max-width: 40rem) { .confusion th, .confusion td { padding: .45rem .5rem; min-width: 0; } }
"""

Points = Sequence[tuple[float, float]]


def write(workdir: Path, rows: Sequence[Mapping], facts: Mapping) -> None:
  """Writes summary.html and summary.md into a folder; each appears whole or not at all.

  Args:
    workdir: the folder.
    rows, facts: see `render_html`.

  Raises:
    OSError: they cannot be written.
  """
  write_whole(workdir / "summary.html", render_html(rows, facts))
  write_whole(workdir / "summary.md", render_markdown(rows, facts))


def render_html(rows: Sequence[Mapping], facts: Mapping, *, created: datetime.datetime | None = None) -> str:
  """The page of a run.

  Args:
    rows: of its scalars.jsonl, in the order of their steps.
    facts: name, config, defaults (configurations as dicts), config_sha256, workdir, data_dir, best, best_step
      (0: there was no validation), stopped, step, examples (dataset -> split -> count), parameters,
      model_bytes (None: no model was kept), device, versions (package -> version).
    created: the time that the page names as its own; None is now.
  """
  article = tag(
    "article",
    tag("h1", "Training of ", tag("bdi", facts["name"]), class_="file-name"),
    _band(rows, facts),
    _validation_card(rows, facts),
    _losses_card(rows),
    _speed_card(rows, facts),
    _data_card(facts),
    _next_card(facts),
    _configuration_card(facts),
  )
  return page(
    masthead("Training summary", created or datetime.datetime.now(datetime.UTC)),
    tag("main", article, id="main"),
    colophon(),
    title=f"Training summary: {facts['name']}",
    style=_STYLE,
  )


def render_markdown(rows: Sequence[Mapping], facts: Mapping) -> str:
  """The same facts as text, without the curves."""
  lines = [
    f"# Training of {_cell(facts['name'])}",
    "",
    f"{_headline(facts)}.",
    "",
    *_sentences(rows, facts),
    "",
  ]
  lines += ["## Validation", ""]
  for title, row in _validations_told(rows, facts):
    header, *body = _figure_table(row)
    lines += [f"{title}:", "", *_table(header, body), ""]
    if counts := row.get("validation/confusion"):
      body = ((label, *map(str, of)) for label, of in zip(_LABELS, counts, strict=True))
      lines += [*_table(("", "called real", "called fake"), body), ""]
  if losses := _last_losses(rows):
    lines += ["## Training, at the last step logged", ""]
    lines += [*_table(("what", "value"), ((_words(name), f"{value:.4f}") for name, value in losses)), ""]
  for title, pairs in (
    ("Speed", _speed(rows, facts)),
    ("Model", _model(facts)),
    ("Versions", _versions(facts)),
  ):
    lines += [f"## {title}", "", *_table(("what", "value"), pairs), ""]
  splits = _splits(facts)
  lines += ["## Data", "", f"Read from `{_cell(facts['data_dir'])}`.", ""]
  lines += [*_table(("dataset", *splits), _counts(facts, splits)), ""]
  lines += ["## Next", "", *(f"    {command}" for _, command in _commands(facts)), ""]
  lines += ["## Configuration", "", f"SHA-256 {facts['config_sha256']}. {_SETTINGS}", ""]
  lines += _table(("field", "default", "this run"), _settings(facts))
  return "\n".join(lines) + "\n"


_SETTINGS = "What differs from the defaults of the fields; config.json beside this file holds all of it."


def _headline(facts: Mapping) -> str:
  if not facts["best_step"]:
    return "No validation was reached, so no model was kept"
  metric = _words(facts["config"]["train"]["metric"])
  return f"Best validation {metric} {facts['best']:.4f} at step {facts['best_step']:,}"


def _sentences(rows: Sequence[Mapping], facts: Mapping) -> list[str]:
  total = facts["config"]["train"]["steps"]
  sentences = [f"Stopped at step {facts['step']:,} of {total:,}: {facts['stopped']}."]
  if (run_s := _run_s(rows)) is not None:
    sentences.append(
      f"{clock(run_s)} of running time, validation and compiling with it, on {facts['device']}."
    )
  return sentences


def _band(rows: Sequence[Mapping], facts: Mapping) -> Html:
  tone = "not_applicable" if facts["best_step"] else "inconclusive"
  return tag(
    "section",
    tag("p", _headline(facts), class_="words"),
    *(tag("p", sentence, class_="reason") for sentence in _sentences(rows, facts)),
    class_=f"band {tone}",
  )


def _validation_card(rows: Sequence[Mapping], facts: Mapping) -> Html | str:
  validated = [row for row in rows if is_validation(row)]
  if not validated:
    return ""
  total, best = facts["step"], facts["best_step"]
  plots = []
  for measure in _measures(validated[-1]):
    parts_of = [part for part, found in _figures(validated[-1]).items() if measure in found]
    # A plot has no more lines than there are colours.
    for first in range(0, len(parts_of), _COLOURS):
      some = parts_of[first : first + _COLOURS]
      curves = {_words(part) or "all": _curve(validated, _key(part, measure)) for part in some}
      high = 1.0 if measure in _MEASURES else math.inf
      plots.append(_plot(_title(measure), curves, end=total, mark=best, high=high))
  parts = [tag("h2", "Validation"), tag("div", *plots, class_="plots")]
  if best:
    text = f"Dashed: the best step, {best:,}, whose model was kept."
    parts.append(tag("p", text, class_="fine"))
  for title, row in _validations_told(rows, facts):
    cells = [_confusion(row)] if "validation/confusion" in row else []
    if "validation/roc" in row:
      points = list(zip(*row["validation/roc"], strict=True))
      name = f"AUC {row['validation/auc']:.4f}"
      cells.insert(0, _roc(points, name))
    header, *body = _figure_table(row)
    table = _html_table(header, body)
    parts += [tag("h3", title), table, tag("div", *cells, class_="plots")]
  text = (
    "Of single examples, or of whole files (videos, pictures, recordings), whose score is the mean of their "
    "examples' logits; called fake from logit 0 on. The ROC and the confusion matrix are of single examples. "
    "The thresholds that the model is shipped with are fixed after training, by deepscan train itself or "
    "deepscan calibrate."
  )
  parts.append(tag("p", text, class_="fine"))
  return tag("section", *parts, class_="card")


def _losses_card(rows: Sequence[Mapping]) -> Html | str:
  trained = [row for row in rows if not is_validation(row)]
  names = [name for name, _ in _last_losses(rows)]
  if not names:
    return ""
  end = rows[-1]["step"]
  plots = [_plot(_plain(name), {name: _curve(trained, f"train/{name}")}, end=end) for name in names]
  plots.append(_plot("Learning rate", {"learning_rate": _curve(trained, "learning_rate")}, end=end))
  text = f"Of the batches of single steps. More than {POINTS} points are drawn by means of equal stretches."
  return tag(
    "section",
    tag("h2", "Training"),
    tag("div", *plots, class_="plots"),
    tag("p", text, class_="fine"),
    class_="card",
  )


def _speed_card(rows: Sequence[Mapping], facts: Mapping) -> Html:
  trained = [row for row in rows if not is_validation(row)]
  curves = (("Examples a second", "examples_per_s", 1.0), ("Waiting for data, %", "data_wait", 100.0))
  plots = []
  for title, key, scale in curves:
    points = [(step, scale * value) for step, value in _curve(trained, f"{TIMING}{key}")]
    if points:
      plots.append(_plot(title, {key: points}, end=rows[-1]["step"], low=0.0))
  text = (
    "Waiting for data: the share of the training's time in which the devices had nothing to do because the "
    "next batch was not there. Compiling the first step and validation are no part of either curve."
  )
  return tag(
    "section",
    tag("h2", "Speed"),
    tag("div", *plots, class_="plots") if plots else "",
    _definitions(_speed(rows, facts)),
    tag("p", text, class_="fine"),
    class_="card",
  )


def _data_card(facts: Mapping) -> Html:
  splits = _splits(facts)
  return tag(
    "section",
    tag("h2", "Data"),
    _html_table(("Dataset", *splits), _counts(facts, splits)),
    tag("p", "Examples that are stored; a model leaves out those that hold nothing it reads.", class_="fine"),
    class_="card",
  )


def _next_card(facts: Mapping) -> Html:
  parts = [
    Html(tag("p", words) + tag("pre", command, class_="command")) for words, command in _commands(facts)
  ]
  return tag("section", tag("h2", "Next"), *parts, class_="card")


def _configuration_card(facts: Mapping) -> Html:
  settings = _settings(facts)
  return tag(
    "section",
    tag("div", tag("h2", "Configuration"), tag("p", _SETTINGS, class_="fine")),
    _html_table(("Field", "Default", "This run"), settings, class_="settings") if settings else "",
    _definitions([("SHA-256", facts["config_sha256"]), *_model(facts), *_versions(facts)]),
    class_="card",
  )


def _html_table(header: Sequence[str], body: Sequence[Sequence[str]], *, class_: str | None = None) -> Html:
  """A table whose first column names the rows."""
  lines = [
    tag("tr", tag("th", tag("bdi", name), scope="row"), *(tag("td", tag("bdi", cell)) for cell in cells))
    for name, *cells in body
  ]
  head = tag("thead", tag("tr", *(tag("th", word, scope="col") for word in header)))
  return tag("div", tag("table", head, tag("tbody", *lines), class_=class_), class_="scroll")


def _definitions(pairs: Sequence[tuple[str, str]]) -> Html:
  return tag("dl", *(tag("div", tag("dt", name), tag("dd", tag("bdi", value))) for name, value in pairs))


def _figures(row: Mapping) -> dict[str, dict[str, float]]:
  """The numbers of a validation: part -> measure -> value; part "" is everything that was validated."""
  parts: dict[str, dict[str, float]] = {}
  for key, value in row.items():
    name = key.removeprefix("validation/")
    if name != key and not isinstance(value, list):
      # The longest, because one ends with another.
      measure = max((m for m in _MEASURES if f"_{name}".endswith(f"_{m}")), key=len, default=name)
      parts.setdefault(name.removesuffix(measure).removesuffix("_"), {})[measure] = value
  return parts


def _measures(row: Mapping) -> list[str]:
  """The measures of a validation, those that are known first."""
  found = dict.fromkeys(measure for of in _figures(row).values() for measure in of)
  return [*(m for m in _MEASURES if m in found), *(m for m in found if m not in _MEASURES)]


def _title(measure: str) -> str:
  return _MEASURES.get(measure) or _plain(measure)


def _key(part: str, measure: str) -> str:
  return f"validation/{part}_{measure}" if part else f"validation/{measure}"


def _figure_table(row: Mapping) -> list[tuple[str, ...]]:
  """A line of each part, below a line of the measures."""
  parts, measures = _figures(row), _measures(row)
  lines = [("Of", *map(_title, measures))]
  for part, found in parts.items():
    lines.append((_words(part) or "all", *(f"{found[m]:.4f}" if m in found else DASH for m in measures)))
  return lines


def _validations_told(rows: Sequence[Mapping], facts: Mapping) -> list[tuple[str, Mapping]]:
  """(title, row) of the best validation, and of the last one where that is another."""
  validated = {row["step"]: row for row in rows if is_validation(row)}
  told = []
  if facts["best_step"] in validated:
    told.append((f"At the best step, {facts['best_step']:,}", validated[facts["best_step"]]))
  if validated and (last := max(validated)) != facts["best_step"]:
    told.append((f"At the last validation, step {last:,}", validated[last]))
  return told


def _last_losses(rows: Sequence[Mapping]) -> list[tuple[str, float]]:
  trained = [row for row in rows if not is_validation(row)]
  if not trained:
    return []
  found = {k.removeprefix("train/"): v for k, v in trained[-1].items() if k.startswith("train/")}
  return sorted(found.items(), key=lambda item: (item[0] in _NO_LOSSES, item[0] != "fused", item[0]))


def _run_s(rows: Sequence[Mapping]) -> float | None:
  return max((row[f"{TIMING}run_s"] for row in rows if f"{TIMING}run_s" in row), default=None)


def mean_speed(rows: Sequence[Mapping]) -> tuple[float, float] | None:
  """(examples a second, share of the time without a batch) over all of the training; None where not logged.

  The rows stand for as many steps each, so a row's time is as one over its examples a second.
  """
  keys = (f"{TIMING}examples_per_s", f"{TIMING}data_wait")
  laps = [tuple(row[key] for key in keys) for row in rows if keys[0] in row]
  if not laps:
    return None
  times = [1 / rate for rate, _ in laps]
  waited = sum(time * wait for time, (_, wait) in zip(times, laps, strict=True))
  return len(laps) / sum(times), waited / sum(times)


def _speed(rows: Sequence[Mapping], facts: Mapping) -> list[tuple[str, str]]:
  rate = wait = NOT_KNOWN
  if (mean := mean_speed(rows)) is not None:
    rate, wait = f"{mean[0]:,.1f}", f"{100 * mean[1]:.1f} %"
  run_s = _run_s(rows)
  return [
    ("Examples a second", rate),
    ("Waiting for data", wait),
    ("Running time", NOT_KNOWN if run_s is None else clock(run_s)),
    ("Devices", facts["device"]),
  ]


def _model(facts: Mapping) -> list[tuple[str, str]]:
  size = facts["model_bytes"]
  return [
    ("Branches", ", ".join(facts["config"]["model"]["branches"])),
    ("Parameters", f"{facts['parameters']:,}"),
    ("Model on disk", "none was kept" if size is None else f"{size / 1e6:,.1f} MB"),
  ]


def _versions(facts: Mapping) -> list[tuple[str, str]]:
  return list(facts["versions"].items())


def _splits(facts: Mapping) -> list[str]:
  """The splits of all datasets, those that training reads first."""
  order = ("train", "validation", "test")
  found = {split for of in facts["examples"].values() for split in of}
  return [*(split for split in order if split in found), *sorted(found - {*order})]


def _counts(facts: Mapping, splits: Sequence[str]) -> list[tuple[str, ...]]:
  return [
    (name, *(f"{of[split]:,}" if split in of else DASH for split in splits))
    for name, of in facts["examples"].items()
  ]


def _settings(facts: Mapping) -> list[tuple[str, str, str]]:
  found = differences(facts["defaults"], facts["config"])
  return [(path, _value(default), _value(value)) for path, default, value in found]


def _value(value: object) -> str:
  """As --set takes it."""
  return value if isinstance(value, str) and value else json.dumps(value)


def _commands(facts: Mapping) -> list[tuple[str, str]]:
  """(what for, command) of what to do next."""
  model, data_dir = (shlex.quote(printable(p)) for p in (f"{facts['workdir']}/best", facts["data_dir"]))
  curves = f"tensorboard --logdir={shlex.quote(printable(facts['workdir'] + '/tensorboard'))}"
  looked = [("Look at curves and pictures (needs tensorboard):", curves)]
  if not facts["best_step"]:
    return looked
  evaluate = f"deepscan evaluate --model_path={model} --data_dir={data_dir} --split=test"
  return [
    ("Judge a file with the model:", f"deepscan detect --model_path={model} your_video.mp4"),
    ("Measure it on the test split, once:", evaluate),
    *looked,
  ]


def _curve(rows: Sequence[Mapping], key: str) -> Points:
  """(step, value) of a key; of many, means of stretches of equal length."""
  points = [(row["step"], row[key]) for row in rows if math.isfinite(row.get(key, math.nan))]
  if len(points) <= POINTS:
    return points
  bounds = [round(i * len(points) / POINTS) for i in range(POINTS + 1)]
  parts = [points[a:b] for a, b in itertools.pairwise(bounds)]
  return [(sum(s for s, _ in part) / len(part), sum(v for _, v in part) / len(part)) for part in parts]


def _words(name: str) -> str:
  """A name of a figure for people."""
  return " ".join("AUC" if word == "auc" else word for word in name.split("_"))


def _plain(name: str) -> str:
  text = _words(name)
  return text[:1].upper() + text[1:]


def _plot(
  title: str,
  curves: Mapping[str, Points],
  *,
  end: int,
  mark: int = 0,
  low: float | None = None,
  high: float = math.inf,
) -> Html:
  """Curves over steps, from 0 to `end`.

  Args:
    title: of the plot.
    curves: by name.
    end: the last step.
    mark: a step to point out; 0: none.
    low: where the upright axis begins; None: below the values.
    high: what the values cannot exceed.
  """
  values = [value for points in curves.values() for _, value in points] or [0.0]
  bottom, top = _range(min(values), max(values), low=low, high=high)
  last = {name: points[-1][1] for name, points in curves.items() if points}
  single = len(curves) == 1
  heading = [_plain(title) if single else title]
  if single and last:
    heading.append(tag("b", f"{_number(next(iter(last.values())))} at last"))
  keys = [
    tag("span", tag("i", class_=f"line{i}"), f"{name} {_number(last[name])}", class_="key")
    for i, name in enumerate(curves)
    if name in last
  ]
  marks = [tag("line", x1=_of(mark, end), x2=_of(mark, end), y1=0, y2=100, class_="best")] if mark else []
  return _axes(
    heading,
    curves,
    (0.0, float(max(end, 1))),
    (bottom, top),
    marks=marks,
    keys=[] if single else keys,
    label=f"{title} over steps; at last " + ", ".join(f"{n} {_number(v)}" for n, v in last.items()),
    words=lambda step: f"{step:,.0f}",
  )


def _roc(points: Points, name: str) -> Html:
  chance = tag("line", x1=0, x2=100, y1=100, y2=0, class_="chance")
  return _axes(
    ["ROC", tag("b", name)],
    {"": points},
    (0.0, 1.0),
    (0.0, 1.0),
    marks=[chance],
    keys=[tag("span", "Fakes called fake (up) over reals called fake (across).")],
    label=f"ROC curve, {name}",
    words=lambda rate: f"{rate:g}",
    class_="timeline square",
  )


def _axes(
  heading: Sequence[object],
  curves: Mapping[str, Points],
  across: tuple[float, float],
  upright: tuple[float, float],
  *,
  marks: Sequence[Html],
  keys: Sequence[Html],
  label: str,
  words: Callable[[float], str],
  class_: str = "timeline",
) -> Html:
  """Lines in a frame of axes, with `words` for what stands below."""

  def place(x: float, y: float) -> str:
    low, high = upright
    return f"{_of(x - across[0], across[1] - across[0])},{100 - float(_of(y - low, high - low)):.2f}"

  levels = round_ticks(*upright, least=2)
  heights = [float(_of(y - upright[0], upright[1] - upright[0])) for y in levels]
  inside = [
    tag("line", x1=0, x2=100, y1=f"{100 - y:.2f}", y2=f"{100 - y:.2f}", class_="grid") for y in heights
  ]
  inside += marks
  for i, points in enumerate(curves.values()):
    # A line to itself is a dot.
    places = [place(*point) for point in (points if len(points) != 1 else [*points, *points])]
    inside.append(tag("polyline", points=" ".join(places), class_=f"line{i}"))
  svg = tag("svg", *inside, viewBox="0 0 100 100", preserveAspectRatio="none", role="img", aria_label=label)
  names = [
    tag("span", _number(level), class_="level", style=f"bottom:{height:.2f}%")
    for level, height in zip(levels, heights, strict=True)
  ]
  below = []
  for x in round_ticks(*across, least=2):
    at = float(_of(x - across[0], across[1] - across[0]))
    below.append(tag("span", words(x), style=f"left:{at:.2f}%"))
  return tag(
    "figure",
    tag("h3", *heading),
    tag("div", svg, *names, class_="plot"),
    tag("div", *below, class_="axis", aria_hidden="true"),
    tag("figcaption", *keys) if keys else "",
    class_=class_,
  )


def _of(part: float, whole: float) -> str:
  """In percent."""
  return f"{100 * part / whole:.2f}"


def _range(least: float, most: float, *, low: float | None, high: float) -> tuple[float, float]:
  """Where an axis begins and ends that has to show all from least to most, with some room."""
  bottom = least if low is None else min(low, least)
  room = 0.06 * (most - bottom) or 0.05 * abs(most) or 1.0
  if low is None:
    # What is never negative needs no room there.
    bottom = max(bottom - room, 0.0) if least >= 0 else bottom - room
  return bottom, min(most + room, max(high, most))


def _number(value: float) -> str:
  return f"{value:.4g}"


def _confusion(row: Mapping) -> Html:
  """The counts of a validation; the darker, the larger the share of a label."""
  body = []
  for label, counts in zip(_LABELS, row["validation/confusion"], strict=True):
    cells = []
    for count in counts:
      share = count / max(sum(counts), 1)
      cells.append(
        tag("td", f"{count:,}", tag("small", f"{100 * share:.1f} %"), style=f"--share:{share:.3f}")
      )
    body.append(tag("tr", tag("th", label, scope="row"), *cells))
  head = tag("thead", tag("tr", tag("td"), *(tag("th", f"called {label}", scope="col") for label in _LABELS)))
  return tag(
    "figure",
    tag("h3", "Confusion matrix"),
    tag("table", head, tag("tbody", *body), class_="confusion"),
    class_="timeline",
  )


def _table(header: Sequence[str], body) -> list[str]:
  """Lines of a table in Markdown."""
  rows = [header, ["---"] * len(header), *body]
  return [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows]


def _cell(text: object) -> str:
  return printable(text).replace("|", "\\|")
