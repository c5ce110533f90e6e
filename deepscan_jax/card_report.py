"""Shows an evaluation card: tables in Markdown for a terminal, and one self-contained page of HTML.

Names of datasets, methods and sources come from whoever made them: they pass through `report.printable` and
`report.tag`.
"""

import datetime
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist

from deepscan_jax import perturb
from deepscan_jax.card import FIGURES, markdown_header, markdown_row, percent, with_interval
from deepscan_jax.report import Html, colophon, masthead, page, printable, round_ticks, tag

_SETS = {
  "labelled": "labelled files",
  "pairs": "real examples and their pseudo-fakes",
}
_BY = {
  "dataset": "By dataset",
  "source": "By source",
  "method": (
    "By method: its fakes against all real files of the datasets that hold it, or, where those have none, "
    "against all"
  ),
  "compression": "By compression, as the dataset's name says it",
  "face_size": "By size of the face",
  "sharpness": "By sharpness of the face at 96 px",
  "condition": "By condition: plain as the detector crops, degraded after the blur and codecs of training",
}
_TABLE = ("auc", "eer", "accuracy", "recall", "false_positive_rate")
_OF_PROBABILITIES = ("log_loss", "brier", "ece")
_LEVEL_TABLE = ("auc", "average_precision", *_TABLE[1:], "fpr_at_tpr95", "tpr_at_fpr1", "f1")
_STAGES = {
  "decode_s": "decoding",
  "faces_s": "finding faces",
  "model_s": "the model",
  "hash_s": "hashing",
  "compile_s": "compiling, once",
  "total_s": "in all, without compiling",
}
# A chart, in units of its own.
_SIDE, _LEFT, _TOP, _BOTTOM, _RIGHT = 260, 52, 12, 46, 14
_DET_TICKS = (0.001, 0.01, 0.05, 0.2, 0.5, 0.8)
_DET_ENDS = (0.0005, 0.9)
_STYLE = """
.curves {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(18rem, 100%), 1fr)); gap: 1rem 1.5rem;
}
.curves figcaption { color: var(--soft); font-size: .875rem; }
.curves svg { width: 100%; height: auto; font: 12px/1 var(--sans); }
.curves text { fill: var(--soft); }
.curves .grid { stroke: var(--grid); }
.curves .guess { stroke: var(--soft); stroke-dasharray: 2 4; }
.curves .line { fill: none; stroke: var(--link); stroke-width: 2; stroke-linejoin: round; }
.curves .at { fill: var(--red); stroke: var(--card); stroke-width: 1.5; }
.curves .bin { fill: var(--link); opacity: .75; }
.curves .gap { stroke: var(--red); stroke-width: 1.5; }
.curves .random { stroke: var(--soft); stroke-dasharray: 6 4; }
.curves .other { stroke: var(--red); stroke-dasharray: 2 3; }
.ladder {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(12.5rem, 100%), 1fr)); gap: 1rem;
}
.ladder figure { min-width: 0; }
.ladder figcaption { font-size: .8125rem; color: var(--soft); line-height: 1.35; }
.ladder figcaption b { color: var(--ink); font-weight: 600; display: block; }
.ladder svg { width: 100%; height: auto; font: 11px/1 var(--sans); display: block; }
.ladder text { fill: var(--soft); }
.ladder .grid { stroke: var(--grid); }
.ladder .guess { stroke: var(--soft); stroke-dasharray: 2 4; }
.ladder .span { fill: var(--link); opacity: .16; }
.ladder .line { fill: none; stroke: var(--link); stroke-width: 2; stroke-linejoin: round; }
.ladder circle { fill: var(--link); stroke: var(--card); stroke-width: 1.5; }
.numbers { font-size: .875rem; }
.numbers td, .numbers th { padding-right: .7rem; }
.numbers tbody th { min-width: 5rem; }
.numbers td { white-space: nowrap; }
.numbers small { color: var(--soft); display: block; font-size: .75rem; }
.pair .numbers { width: auto; min-width: 60%; }
.confusion td { text-align: right; }
"""


def summary(card: Mapping) -> str:
  """A card as lines for a terminal: its row, its levels, coverage, what calls are worth, and what to mind."""
  where = card["headline"]
  result = card["results"][where["set"]]
  lines = [markdown_header(), markdown_row(card), ""]
  words = ["level", "rows", "groups", "coverage", *(FIGURES[name][0] for name in _LEVEL_TABLE)]
  lines += [f"| {' | '.join(words)} |", f"|{'---|' * len(words)}"]
  for level, figures in result["levels"].items():
    cells = [
      level,
      str(figures["count"]["rows"]),
      str(figures["count"]["groups"]),
      percent(figures["coverage"]),
    ]
    lines.append(f"| {' | '.join([*cells, *(with_interval(figures[name]) for name in _LEVEL_TABLE)])} |")
  if "pairs" in card:
    lines += ["", legacy_tables(card)]
  if card.get("faithfulness"):
    lines += ["", _faithfulness_sentence(card["faithfulness"])]
  if "robustness" in card:
    lines += ["", robustness_markdown(card)]
  lines += ["", _coverage_sentence(card["coverage"])]
  lines += [_deployment_sentence(row) for row in card["deployment"]]
  lines += [printable(note) for note in card["notes"]]
  return "\n".join(lines)


def legacy_tables(figures: Mapping) -> str:
  """The figures of `evaluation.measure_model` as Markdown tables."""
  lines = [f"Model {figures['model']['name']} {figures['model']['version']}, split {figures['split']}.", ""]
  lines += ["| pairs | examples | AUC | 95 % | fake above twin | fakes found |", "|---|---|---|---|---|---|"]
  for kind, row in figures["pairs"].items():
    low, high = row["auc_interval"]
    twin = f"{row['paired_accuracy']:.3f}" if "paired_accuracy" in row else "-"
    found = percent(figures["detected"][kind])
    auc = ["-", "-"] if row["auc"] is None else [f"{row['auc']:.3f}", f"{low:.3f} to {high:.3f}"]
    lines.append(f"| {kind} | {row['count']} | {' | '.join(auc)} | {twin} | {found} |")
  lines += ["", "| real examples of | count | called manipulated | 95 % |", "|---|---|---|---|"]
  for source, row in figures["false_alarms"].items():
    low, high = row["interval"]
    lines.append(
      f"| {printable(source)} | {row['count']} | {100 * row['rate']:.1f} % | {100 * low:.1f} to "
      f"{100 * high:.1f} % |"
    )
  return "\n".join(lines)


def robustness_markdown(card: Mapping) -> str:
  """The AUC under each perturbation at each level, and what the threshold does at both ends, as a table."""
  levels = range(1, perturb.LEVELS + 1)
  last = perturb.LEVELS
  words = ["perturbation", "untouched", *map(str, levels)]
  words += [f"{what} at 0 / {last}" for what in ("detected", "false alarms")]
  lines = [_robustness_sentence(card), "", f"| {' | '.join(words)} |", f"|{'---|' * len(words)}"]
  for name, rungs in card["robustness"].items():
    cells = [_auc(row) for row in rungs]
    for key in ("detected", "false_alarms"):
      cells.append(" / ".join(percent(row[key]["value"]) for row in (rungs[0], rungs[-1])))
    lines.append(f"| {' | '.join([name, *cells])} |")
  return "\n".join(lines)


def _auc(row: Mapping) -> str:
  return with_interval({"value": row["auc"], "interval": row["interval"]})


def _robustness_sentence(card: Mapping) -> str:
  about = card["robustness_of"]
  spread = ", evenly spread" if about["examples"] < about["of_examples"] else ""
  unit = "plain pairs" if about["set"] == "pairs" else "examples"
  return (
    f"AUC at levels of growing damage, {about['level']} level, of {about['examples']} of "
    f"{about['of_examples']} {unit}{spread}; in brackets 95 % intervals, where there are groups enough."
  )


def cross_markdown(table: Mapping) -> str:
  """`card.cross_table` as a table of AUCs: a row for each train set, a column for each test set."""
  words = ["trained on", *map(printable, table["tests"]), "pooled", "mean of unseen"]
  lines = [f"| {' | '.join(words)} |", f"|{'---|' * len(words)}"]
  for row in table["rows"]:
    cells = [with_interval(row["tests"][n]["auc"]) if n in row["tests"] else "-" for n in table["tests"]]
    mean = row["mean_auc_unseen"]
    cells += [with_interval(row["pooled"]["auc"]), "-" if mean is None else f"{mean:.3f}"]
    lines.append(f"| {' | '.join([printable(row['train']), *cells])} |")
  return "\n".join(lines)


def render_html(card: Mapping, *, created: datetime.datetime | None = None) -> str:
  """One page that shows a card and asks for nothing else.

  Args:
    card: of `card.make_card`.
    created: the time that the page names as its own; None is the card's.
  """
  where = card["headline"]
  result = card["results"][where["set"]]
  main = result["levels"][where["level"]]
  name = f"{card['model']['name']} {card['model']['version']}"
  article = tag(
    "article",
    tag("h1", "Evaluation of ", tag("bdi", name), class_="file-name"),
    _band(card, main),
    _curves_card(result["curves"].get(where["level"]), card, main),
    _figures_card(card, main),
    _levels_card(card),
    _faithfulness_card(card.get("faithfulness")),
    _robustness_card(card),
    *(_breakdown_card(name, parts) for name, parts in result["by"].items()),
    _cross_card(card["cross_dataset"]),
    _coverage_card(card["coverage"]),
    _deployment_card(card["deployment"]),
    _cost_card(card),
    _protocol_card(card),
  )
  stamp = created or datetime.datetime.fromisoformat(card["created"])
  return page(
    masthead("Evaluation card", stamp),
    tag("main", article, id="main"),
    colophon(),
    title=f"Evaluation: {name}",
    style=_STYLE,
  )


def _band(card: Mapping, main: Mapping) -> Html:
  where, auc = card["headline"], main["auc"]
  words = "One class is missing" if auc["value"] is None else f"AUC {auc['value']:.3f}"
  about = (
    f"{where['level'].capitalize()} level, {_SETS[where['set']]}: {main['count']['fake']} fake and "
    f"{main['count']['real']} real, of {main['count']['groups']} groups; {' + '.join(card['datasets'])}, "
    f"split {card['split']}."
  )
  inside = [tag("p", words, class_="words")]
  if auc["interval"]:
    low, high = auc["interval"]
    inside.append(
      tag("p", f"95 % interval {low:.3f} to {high:.3f}, by bootstrap over groups.", class_="reason")
    )
  inside += [tag("p", tag("bdi", about), class_="reason")]
  inside += [tag("p", _coverage_sentence(card["coverage"]), class_="reason")]
  inside += [tag("p", note, class_="reason") for note in card["notes"]]
  doubt = where["set"] == "pairs" or auc["value"] is None
  return tag("section", *inside, class_=f"band {'inconclusive' if doubt else 'not_applicable'}")


# Tables -------------------------------------------------------------------------------------------------


def _table(header: Sequence[str], rows: Sequence[Sequence[object]], *, class_: str = "numbers") -> Html:
  head = tag("thead", tag("tr", *(tag("th", text, scope="col") for text in header)))
  body = [
    tag("tr", tag("th", tag("bdi", first), scope="row"), *(tag("td", cell) for cell in rest))
    for first, *rest in rows
  ]
  return tag("div", tag("table", head, tag("tbody", *body), class_=class_), class_="scroll")


def _figure(figure: Mapping) -> Html:
  """A value with its interval below it."""
  if figure["value"] is None:
    return Html("-")
  inside = [tag("span", f"{figure['value']:.3f}")]
  if figure["interval"]:
    low, high = figure["interval"]
    inside.append(tag("small", f"{low:.3f} to {high:.3f}"))
  return Html("".join(inside))


def _card(title: str, *inside: object) -> Html:
  return tag("section", tag("h2", title), *inside, class_="card")


def _figures_card(card: Mapping, main: Mapping) -> Html:
  rows = {name: (words, _figure(main[name])) for name, (words, _) in FIGURES.items()}
  of_probabilities = [rows.pop(name) for name in list(rows) if name.startswith(_OF_PROBABILITIES)]
  counts = {key: f"{value:.0f}" for key, value in main["confusion"].items()}
  confusion = _table(
    ("", "called manipulated", "not called so"),
    [
      ("fake", counts["true_positives"], counts["false_negatives"]),
      ("real", counts["false_positives"], counts["true_negatives"]),
    ],
    class_="numbers confusion",
  )
  said = [
    f"{part}, at most {100 * values['false_positive_rate']:.2g} % of real validation examples of any source"
    for part, values in card["thresholds"].items()
  ]
  return _card(
    "Figures of the headline",
    tag(
      "div",
      tag("div", _table(("Figure", "Value and 95 %"), list(rows.values()))),
      tag(
        "div",
        confusion,
        _table(("Of probabilities", "Value and 95 %"), of_probabilities),
        tag(
          "p",
          f"Counts and rates are at the threshold that validation fixed ({'; '.join(said)}). Nothing was "
          "fitted on these files. A probability is calibrated for classes of equal frequency; where they are "
          "not equally frequent, the figures with classes weighted alike are the fair ones.",
          class_="fine",
        ),
      ),
      class_="pair",
    ),
  )


def _levels_card(card: Mapping) -> Html:
  inside = []
  header = ("Level", "Rows", "Groups", "Coverage", *(FIGURES[name][0] for name in _LEVEL_TABLE))
  for name, result in card["results"].items():
    inside.append(tag("p", f"{_SETS[name].capitalize()}.", class_="fine"))
    inside.append(
      _table(
        header,
        [
          (
            level,
            figures["count"]["rows"],
            figures["count"]["groups"],
            percent(figures["coverage"]),
            *(_figure(figures[key]) for key in _LEVEL_TABLE),
          )
          for level, figures in result["levels"].items()
        ],
      )
    )
  return _card("By level", *inside)


def _faithfulness_sentence(found: Mapping) -> str:
  """What deletion and insertion say of the region maps."""
  told = [
    f"{words} by {_gain(found, 'deletion', order)} and {_gain(found, 'insertion', order)}"
    for order, words in (("random", "a random order"), ("other", "another face's map"))
    if order in found["gain"]["deletion"]
  ]
  return (
    f"Region maps of {found['pairs']} held-out pseudo-fakes, by deletion and insertion: on the way between "
    f"the fake (mean logit {found['logit_fake']:.2f}) and its real twin ({found['logit_real']:.2f}), the "
    f"most marked places first, the logit is ahead of {', of '.join(told)}."
  )


def _gain(found: Mapping, way: str, order: str) -> str:
  return with_interval(found["gain"][way][order], digits=2)


# Of an order of places: (how its line is drawn, words).
_ORDERS = {
  "map": ("solid", "the order of the map"),
  "random": ("dashed", "random order"),
  "other": ("dotted", "the order of another face's map"),
}


def _faithfulness_card(found: Mapping | None) -> Html | str:
  """Both curves, how far the map is ahead of other orders, and what that means."""
  if not found:
    return ""
  heights = [y for way in ("deletion", "insertion") for curve in found[way].values() for y in curve]
  low, high = min(heights), max(heights)
  span = high - low or 1.0
  ticks = [((tick - low) / span, f"{tick:g}") for tick in round_ticks(low, low + span)]
  shares = [(tick, f"{100 * tick:g}") for tick in (0, 0.25, 0.5, 0.75, 1)]
  figures = []
  for way, x_words in (
    ("deletion", "% of the fake replaced by its twin"),
    ("insertion", "% of the fake put in"),
  ):
    lines = [
      _line(zip(found["shares"], ((y - low) / span for y in curve), strict=True), order=order)
      for order, curve in found[way].items()
    ]
    area = found["area"][way]
    caption = (
      f"{way.capitalize()}: mean logit "
      + ", ".join(f"{area[order]:.2f} in {_ORDERS[order][1]} ({_ORDERS[order][0]})" for order in area)
      + f". The map should be the {'lowest' if way == 'deletion' else 'highest'}."
    )
    # Nothing is guessed here; the line lies on the axis.
    nothing = ((0, 0), (0, 0))
    figures.append(
      _plot(way, lines, x_words, "fused logit", shares, y_ticks=ticks, guess=nothing, caption=caption)
    )
  rows = [
    (way, _ORDERS[order][1], with_interval(gain, digits=3))
    for way in ("deletion", "insertion")
    for order, gain in found["gain"][way].items()
  ]
  return _card(
    "Do the region maps show what the model goes by?",
    tag("div", *figures, class_="curves"),
    _table(("", "The map against", "Ahead by, in logits, and 95 %"), rows),
    tag(
      "p",
      f"Of {found['pairs']} held-out pseudo-fakes of {found['groups']} groups, plain as the detector crops "
      "them. A pseudo-fake and its real twin differ in the blend alone; places of the map, in its order, are "
      "exchanged between them. Above 0 the map is better than that order. Another face's map knows where "
      "faces are blended as a rule, and nothing of the picture. What holds of pseudo-fakes may not hold of "
      "other forgeries.",
      class_="fine",
    ),
  )


# A small chart of the ladder, in units of its own.
_LADDER_WIDTH, _LADDER_HEIGHT, _LADDER_LEFT, _LADDER_TOP, _LADDER_BOTTOM = 190, 110, 30, 8, 20


def _robustness_card(card: Mapping) -> Html | str:
  """A small chart of the AUC for each perturbation, all on one scale, and the figures behind them."""
  if "robustness" not in card:
    return ""
  ladder = card["robustness"]
  lowest = [min(row["auc"], (row["interval"] or [1])[0]) for r in ladder.values() for row in r if _known(row)]
  inside = [tag("p", _robustness_sentence(card), class_="fine")]
  if lowest:
    # In steps of a tenth, and half is always seen: it is guessing.
    bottom = min(int(10 * min(lowest)) / 10, 0.4)
    charts = [_ladder_chart(name, rungs, bottom) for name, rungs in ladder.items()]
    inside.append(tag("div", *charts, class_="ladder"))
    inside.append(
      tag(
        "p",
        "From untouched (0) to strong (5); the shaded part is the 95 % interval, the dotted line guessing. "
        "Faces were damaged as they are stored and not looked for again; a file that was damaged so might "
        "lose its face as well.",
        class_="fine",
      )
    )
  else:
    inside.append(tag("p", "A class is missing, so there is no AUC.", class_="fine"))
  header = ("Perturbation", "Level", "AUC", "Fakes detected", "False alarms")
  rows = [
    (
      f"{name}, {row['setting']}",
      row["level"],
      _figure({"value": row["auc"], "interval": row["interval"]}),
      _figure(row["detected"]),
      _figure(row["false_alarms"]),
    )
    for name, rungs in ladder.items()
    for row in rungs
    # What is untouched is the same for all.
    if row["level"] or name == next(iter(ladder))
  ]
  rows[0] = ("untouched", *rows[0][1:])
  table = tag(
    "details",
    tag("summary", "All figures, at the threshold that validation fixed"),
    _table(header, rows),
  )
  return _card("Robustness: the score under damage", *inside, table)


def _known(row: Mapping) -> bool:
  return row["auc"] is not None


def _ladder_chart(name: str, rungs: Sequence[Mapping], bottom: float) -> Html:
  width, height = _LADDER_WIDTH - _LADDER_LEFT - 8, _LADDER_HEIGHT - _LADDER_TOP - _LADDER_BOTTOM

  def across(level: int) -> str:
    return f"{_LADDER_LEFT + width * level / perturb.LEVELS:.1f}"

  def up(auc: float) -> str:
    return f"{_LADDER_TOP + height * (1 - (auc - bottom) / (1 - bottom)):.1f}"

  known = [row for row in rungs if _known(row)]
  spans = [(row["level"], *row["interval"]) for row in known if row["interval"]]
  ends = {"x1": across(0), "x2": across(perturb.LEVELS)}
  drawn = []
  for tick in dict.fromkeys((bottom, 0.5, 0.75, 1.0)):
    drawn.append(tag("line", **ends, y1=up(tick), y2=up(tick), class_="guess" if tick == 0.5 else "grid"))
    if tick == bottom and 0.5 - bottom <= 0.1:
      continue  # Its label would touch that of guessing.
    place = f"{float(up(tick)) + 4:.1f}"
    drawn.append(tag("text", f"{tick:g}", x=_LADDER_LEFT - 5, y=place, text_anchor="end"))
  for level in range(perturb.LEVELS + 1):
    drawn.append(tag("text", level, x=across(level), y=_LADDER_HEIGHT - 4, text_anchor="middle"))
  if spans:
    outline = [f"{across(level)},{up(high)}" for level, _, high in spans]
    outline += [f"{across(level)},{up(low)}" for level, low, _ in reversed(spans)]
    drawn.append(tag("polygon", points=" ".join(outline), class_="span"))
  points = " ".join(f"{across(row['level'])},{up(row['auc'])}" for row in known)
  drawn.append(tag("polyline", points=points, class_="line"))
  drawn += [
    tag(
      "circle",
      tag("title", f"level {row['level']} ({row['setting']}): {_auc(row)}"),
      cx=across(row["level"]),
      cy=up(row["auc"]),
      r=3,
    )
    for row in known
  ]
  kind = perturb.find(name)
  told = f"{known[0]['auc']:.3f} untouched, {known[-1]['auc']:.3f} at level {known[-1]['level']}"
  svg = tag(
    "svg",
    *drawn,
    viewBox=f"0 0 {_LADDER_WIDTH} {_LADDER_HEIGHT}",
    role="img",
    aria_label=f"AUC against level of {kind.title}: {told}",
  )
  caption = tag("figcaption", tag("b", kind.title), f"{kind.words}: {told}")
  return tag("figure", svg, caption)


def _breakdown_card(name: str, parts: Mapping) -> Html:
  rows = [
    (
      part,
      f"{figures['count']['real']} / {figures['count']['fake']}",
      figures["count"]["groups"],
      percent(figures["coverage"]),
      *(_figure(figures[key]) for key in _TABLE),
    )
    for part, figures in parts.items()
  ]
  header = ("", "Real / fake", "Groups", "Coverage", *(FIGURES[key][0] for key in _TABLE))
  return _card(_BY[name], _table(header, rows))


def _cross_card(table: Mapping) -> Html:
  header = ("Trained on", *table["tests"], "Pooled", "Mean of unseen")
  rows = []
  for row in table["rows"]:
    cells = []
    for name in table["tests"]:
      test = row["tests"].get(name)
      seen = tag("small", "trained on others of it") if test and test["seen_in_training"] else ""
      cells.append(Html(_figure(test["auc"]) + seen) if test else "-")
    mean = row["mean_auc_unseen"]
    rows.append((row["train"], *cells, _figure(row["pooled"]["auc"]), "-" if mean is None else f"{mean:.3f}"))
  return _card(
    "Across datasets",
    _table(header, rows),
    tag(
      "p",
      "AUC. Pooled puts all files on one scale, as one threshold would: it falls where scores move between "
      "datasets, which figures of single datasets hide.",
      class_="fine",
    ),
  )


def _coverage_sentence(coverage: Mapping) -> str:
  if not coverage["files"]:
    return "No files were counted."
  said = f"{coverage['scored']} of {coverage['files']} files got a score ({percent(coverage['share'])})."
  if coverage["reasons"]:
    reasons = ", ".join(f"{printable(reason)}: {count}" for reason, count in coverage["reasons"].items())
    said += f" The others are in no figure ({reasons})."
  return said


def _coverage_card(coverage: Mapping) -> Html:
  rows = []
  for name, part in {"all": coverage, **coverage["by_dataset"]}.items():
    reasons = ", ".join(f"{reason}: {count}" for reason, count in part["reasons"].items()) or "-"
    rows.append(
      (
        name,
        f"{part['scored']} of {part['files']}",
        percent(part["share"]),
        percent(part["real"]["share"]),
        percent(part["fake"]["share"]),
        tag("bdi", reasons),
      )
    )
  return _card(
    "Coverage: files that got a score",
    _table(("Dataset", "Files", "Coverage", "Of real", "Of fake", "Why not"), rows),
  )


def _deployment_sentence(row: Mapping) -> str:
  where, ppv = f"Where {100 * row['prevalence']:g} % are fakes", row["ppv"]
  if row["npv"]["value"] is None:
    return f"{where}: not known, for a class is missing in these files."
  called = "nothing is called manipulated"
  if ppv["value"] is not None:
    low, high = ppv["interval"]
    called = (
      f"of what is called manipulated {percent(ppv['value'])} ({percent(low)} to {percent(high)}) is fake"
    )
  return (
    f"{where}: {called}, of the rest {percent(row['npv']['value'])} is real; of 10,000 files "
    f"{row['false_alarms_per_10000']['value']:.0f} are false alarms and "
    f"{row['missed_per_10000']['value']:.0f} fakes are missed."
  )


def _deployment_card(rows: Sequence[Mapping]) -> Html:
  def of(figure: Mapping, *, share: bool) -> Html:
    if figure["value"] is None:
      return Html("-")
    show: Callable[[float], str] = percent if share else "{:.0f}".format
    inside = tag("span", show(figure["value"]))
    if figure["interval"]:
      inside += tag("small", f"{show(figure['interval'][0])} to {show(figure['interval'][1])}")
    return Html(inside)

  table = _table(
    ("Fakes among what comes in", "PPV", "NPV", "False alarms per 10,000", "Found", "Missed"),
    [
      (
        f"{100 * row['prevalence']:g} %",
        of(row["ppv"], share=True),
        of(row["npv"], share=True),
        of(row["false_alarms_per_10000"], share=False),
        of(row["found_per_10000"], share=False),
        of(row["missed_per_10000"], share=False),
      )
      for row in rows
    ],
  )
  return _card(
    "What a call is worth",
    table,
    tag(
      "p",
      "PPV is the share of fakes among what is called manipulated, NPV that of real ones among the rest; "
      "small figures are the worst and the best that the intervals of both rates allow.",
      class_="fine",
    ),
  )


def _cost_card(card: Mapping) -> Html:
  cost, model = card["cost"], card["model"]
  rows = [
    (
      _STAGES.get(stage, stage),
      f"{1000 * row['median']:.1f} ms",
      f"{1000 * row['p95']:.1f} ms",
      row["count"],
    )
    for stage, row in cost["latency"].items()
  ]
  facts = []
  if model.get("bytes"):
    facts.append(f"The model takes {model['bytes'] / 1e6:.1f} MB and has {model['parameters']:,} parameters.")
  if cost.get("peak_memory_bytes"):
    facts.append(f"The process took {cost['peak_memory_bytes'] / 1e6:,.0f} MB at its peak.")
  if cost.get("decoder_peak_memory_bytes"):
    facts.append(f"A decoder beside it took {cost['decoder_peak_memory_bytes'] / 1e6:,.0f} MB at most.")
  if cost.get("device_peak_bytes"):
    facts.append(f"The accelerator took {cost['device_peak_bytes'] / 1e6:,.0f} MB at its peak.")
  if cost.get("device"):
    facts.append(f"Measured on {cost['device']}.")
  what = "Of a file" if "decode_s" in cost["latency"] else "Of a window; decoding and faces were done before"
  return _card(
    "What it costs",
    _table((what, "Median", "95th percentile", "Measured"), rows) if rows else "",
    tag("p", " ".join(facts), class_="fine") if facts else "",
  )


def _protocol_card(card: Mapping) -> Html:
  protocol = card["protocol"]
  entries = {}
  for key, value in protocol.items():
    if isinstance(value, Mapping):
      entries |= {f"{key}, {inner}": shown for inner, shown in value.items()}
    else:
      entries[key] = value
  rows = [
    tag("div", tag("dt", key.replace("_", " ")), tag("dd", tag("bdi", _shown(value))))
    for key, value in entries.items()
  ]
  said = ""
  if published := card["as_published"]:
    auc = "-" if published["auc"] is None else f"{published['auc']:.3f}"
    said = (
      f"As the published protocol counts, with {published['missing_score']:g} for the "
      f"{published['files_that_got_it']} files without a score: AUC {auc}."
    )
  return _card(
    "Protocol",
    tag("dl", *rows),
    tag("p", f"Protocol {card['protocol_hash']}", class_="hash"),
    tag("p", f"Model {card['model']['sha256']}", class_="hash"),
    tag("p", said, class_="fine") if said else "",
    tag("p", "Cards of different protocols are not compared unless asked.", class_="fine"),
  )


def _shown(value: object) -> str:
  if value is None:
    return "as prepared"
  if isinstance(value, Mapping):
    return ", ".join(f"{key} {inner:g}" for key, inner in value.items()) or "none"
  if isinstance(value, bool):
    return "yes" if value else "no"
  return ", ".join(map(str, value)) if isinstance(value, list) else str(value) or "nothing"


# Charts -------------------------------------------------------------------------------------------------


def _curves_card(curves: Mapping | None, card: Mapping, main: Mapping) -> Html | str:
  if not curves:
    return ""
  roc, pr = curves["roc"], curves["pr"]
  at = (main["false_positive_rate"]["value"], main["recall"]["value"])
  normal = NormalDist()

  def probit(rate: float) -> float:
    low, high = (normal.inv_cdf(end) for end in _DET_ENDS)
    return (normal.inv_cdf(min(max(rate, _DET_ENDS[0]), _DET_ENDS[1])) - low) / (high - low)

  unit = [(tick, f"{tick:g}") for tick in (0, 0.25, 0.5, 0.75, 1)]
  rates = [(probit(tick), f"{100 * tick:g} %") for tick in _DET_TICKS]
  eer = main["eer"]["value"]
  share = main["count"]["fake"] / max(main["count"]["rows"], 1)
  figures = [
    _plot(
      "ROC",
      [_line(zip(roc["fpr"], roc["tpr"], strict=True)), _point(*at)],
      "share of real called fake",
      "share of fakes found",
      unit,
      guess=((0, 0), (1, 1)),
      caption=f"ROC: AUC {with_interval(main['auc'])}. The dot is the threshold of validation.",
    ),
    _plot(
      "DET",
      [
        _line((probit(f), probit(1 - t)) for f, t in zip(roc["fpr"], roc["tpr"], strict=True)),
        _point(probit(at[0]), probit(1 - at[1])),
      ],
      "real called fake",
      "fakes missed",
      rates,
      guess=((0, 0), (1, 1)),
      caption=f"DET: both errors on normal scales; equal at {percent(eer)}.",
    ),
    _plot(
      "PR",
      [_line(zip(pr["recall"], pr["precision"], strict=True))],
      "share of fakes found (recall)",
      "precision",
      unit,
      guess=((0, share), (1, share)),
      caption=f"Precision and recall: AP {with_interval(main['average_precision'])}. "
      f"Guessing has a precision of {percent(share)}.",
    ),
    _plot(
      "Reliability",
      _bins(curves["reliability_balanced"]),
      "probability that was given",
      "share of fakes",
      unit,
      guess=((0, 0), (1, 1)),
      caption=f"Reliability, classes weighted alike: ECE {with_interval(main['ece_balanced'])}.",
    ),
  ]
  where = card["headline"]
  return _card(f"Curves, {where['level']} level", tag("div", *figures, class_="curves"))


def _across(x: float) -> str:
  return f"{_LEFT + _SIDE * x:.1f}"


def _up(y: float) -> str:
  return f"{_TOP + _SIDE * (1 - y):.1f}"


def _line(points, *, order: str = "") -> Html:
  places = " ".join(f"{_across(x)},{_up(y)}" for x, y in points)
  return tag("polyline", points=places, class_=f"line {order}".rstrip())


def _point(x: float | None, y: float | None) -> Html:
  if x is None or y is None:
    return Html("")
  return tag("circle", cx=_across(x), cy=_up(y), r=5, class_="at")


def _bins(reliability: Mapping) -> list[Html]:
  """A dot for each bin, larger with more examples, and how far it is from the diagonal."""
  found, most = [], max(reliability["weight"]) or 1.0
  columns = zip(reliability["weight"], reliability["predicted"], reliability["observed"], strict=True)
  for weight, predicted, observed in columns:
    if predicted is None or observed is None:
      continue
    place = {"x1": _across(predicted), "x2": _across(predicted), "y1": _up(predicted), "y2": _up(observed)}
    found.append(tag("line", **place, class_="gap"))
    radius = f"{2.5 + 7 * (weight / most) ** 0.5:.1f}"
    found.append(tag("circle", cx=_across(predicted), cy=_up(observed), r=radius, class_="bin"))
  return found


def _plot(
  name: str,
  inside: Sequence[Html],
  x_words: str,
  y_words: str,
  ticks: Sequence[tuple[float, str]],
  *,
  guess: tuple[tuple[float, float], tuple[float, float]],
  caption: str,
  y_ticks: Sequence[tuple[float, str]] | None = None,
) -> Html:
  drawn = []
  for place, words in ticks:
    drawn += [
      tag("line", x1=_across(place), x2=_across(place), y1=_up(0), y2=_up(1), class_="grid"),
      tag("text", words, x=_across(place), y=_TOP + _SIDE + 17, text_anchor="middle"),
    ]
  for place, words in ticks if y_ticks is None else y_ticks:
    drawn += [
      tag("line", x1=_across(0), x2=_across(1), y1=_up(place), y2=_up(place), class_="grid"),
      tag("text", words, x=_LEFT - 7, y=f"{float(_up(place)) + 4:.1f}", text_anchor="end"),
    ]
  (x1, y1), (x2, y2) = guess
  drawn.append(tag("line", x1=_across(x1), x2=_across(x2), y1=_up(y1), y2=_up(y2), class_="guess"))
  middle = _TOP + _SIDE / 2
  drawn += [
    *inside,
    tag("text", x_words, x=_across(0.5), y=_TOP + _SIDE + 38, text_anchor="middle"),
    tag("text", y_words, x=12, y=middle, text_anchor="middle", transform=f"rotate(-90 12 {middle:.0f})"),
  ]
  svg = tag(
    "svg",
    *drawn,
    viewBox=f"0 0 {_LEFT + _SIDE + _RIGHT} {_TOP + _SIDE + _BOTTOM}",
    role="img",
    aria_label=f"{name} curve; {caption}",
  )
  return tag("figure", svg, tag("figcaption", caption))
