import datetime
import html.parser
import json
import math

import pytest
from tiny import tiny_config

from deepscan_jax import training_report
from deepscan_jax.config import Config, to_dict
from deepscan_jax.logs import read_scalars

CREATED = datetime.datetime(2026, 11, 5, 9, 30, tzinfo=datetime.UTC)
VOID = {"meta", "img", "line", "polyline", "rect"}


class Reader(html.parser.HTMLParser):
  """The text of a page and of each of its elements; an element that is not closed fails."""

  def __init__(self, page):
    super().__init__()
    self.open, self.found, self.attributes = [], [], []
    self.feed(page)
    self.close()
    assert not self.open, f"not closed: {self.open}"

  def handle_starttag(self, name, attributes):
    self.attributes.append((name, dict(attributes)))
    if name not in VOID:
      self.open.append(name)
      self.found.append([name, ""])

  def handle_startendtag(self, name, attributes):
    self.attributes.append((name, dict(attributes)))

  def handle_endtag(self, name):
    assert self.open.pop() == name

  def handle_data(self, text):
    for entry in self.found[-1:]:
      entry[1] += text

  def texts(self, name):
    return [text for kind, text in self.found if kind == name]


def rows():
  """Of a run of 100 steps, logged at every 20 and validated at 60 and 100."""
  told = []
  for step in range(20, 101, 20):
    told.append(
      {
        "step": step,
        "time_s": 1e9 + step,
        "train/branch_tiny": 0.7 - step / 1234,
        "train/fused": 0.69 - step / 321,
        "train/gradient_norm": 1.5,
        "learning_rate": 5e-4 * (1 - step / 100),
        "time/examples_per_s": 10.0 if step == 20 else 40.0,
        "time/data_wait": 0.5 if step == 20 else 0.0,
        "time/run_s": 2.0 * step,
      }
    )
    if step in (60, 100):
      told.append(
        {
          "step": step,
          "time_s": 1e9 + step,
          "validation/auc": 0.8123 if step == 60 else 0.7321,
          "validation/accuracy": 0.7,
          "validation/video_auc": 0.8345,
          "validation/video_accuracy": 0.7123,
          "validation/plain_auc": 0.9,
          "validation/plain_video_auc": 0.9234,
          "validation/plain_accuracy": 0.75,
          "validation/plain_paired_accuracy": 0.95,
          "validation/equal_error_rate": 0.21,
          "validation/confusion": [[30, 10], [5, 1235]],
          "validation/roc": [[0.0, 0.25, 1.0], [0.0, 0.9, 1.0]],
          "time/run_s": 2.0 * step + 1,
        }
      )
  return told


def facts(**changes):
  config = to_dict(tiny_config(steps=200))
  return {
    "name": "tiny",
    "config": config,
    "config_sha256": "0123abcd" * 8,
    "defaults": to_dict(Config()),
    "workdir": "runs/my run",
    "data_dir": "data",
    "best": 0.8123,
    "best_step": 60,
    "stopped": "no better auc in 2 validations",
    "step": 100,
    "examples": {"real_only": {"train": 7421, "validation": 391, "test": 404}},
    "parameters": 3456789,
    "model_bytes": 13_800_000,
    "device": "8 \N{MULTIPLICATION SIGN} NVIDIA H100",
    "versions": {"jax": "0.10.2", "flax": "0.12.8"},
  } | changes


def test_the_page_is_whole_and_asks_for_nothing():
  page = training_report.render_html(rows(), facts(), created=CREATED)
  reader = Reader(page)
  assert page == training_report.render_html(rows(), facts(), created=CREATED)
  for _, attributes in reader.attributes:
    assert not {"src", "href"} & set(attributes) and "//" not in (attributes.get("style") or "")
  assert "prefers-color-scheme: dark" in page and "5 November 2026, 09:30 UTC" in page
  assert reader.texts("h2") == ["Validation", "Training", "Speed", "Data", "Next", "Configuration"]


def test_the_page_says_how_it_went_in_the_numbers_of_the_log():
  page = training_report.render_html(rows(), facts(), created=CREATED)
  reader = Reader(page)
  words = " ".join(reader.texts("p"))
  assert "Of single examples, or of whole files" in words
  assert "Best validation AUC 0.8123 at step 60" in words
  assert "Stopped at step 100 of 200: no better auc in 2 validations." in words
  assert f"03:21 of running time, validation and compiling with it, on {facts()['device']}." in words
  best = rows()[3]
  assert best["step"] == 60
  cells = reader.texts("bdi")
  for key in ("auc", "accuracy", "plain_auc", "plain_paired_accuracy", "equal_error_rate"):
    assert f"{best[f'validation/{key}']:.4f}" in cells
  # Confusion matrix: counts, and shares of a label.
  assert {"30", "10", "5", "1,235"} <= set(reader.texts("td"))
  assert {"75.0 %", "25.0 %", "0.4 %", "99.6 %"} <= set(reader.texts("small"))
  assert {"7,421", "391", "404", "3,456,789", "13.8 MB", "0.10.2", "0123abcd" * 8} <= set(cells)
  assert f"{rows()[-2]['train/fused']:.4g} at last" in reader.texts("b")
  # The harmonic mean: five rows of as many steps each.
  rate = 5 / (1 / 10 + 4 / 40)
  assert f"{rate:,.1f}" in cells and f"{100 * 0.5 * (1 / 10) / (1 / 10 + 4 / 40):.1f} %" in cells


def test_curves_are_drawn_where_their_values_lie():
  reader = Reader(training_report.render_html(rows(), facts(), created=CREATED))
  lines, plot = {}, ""
  for name, attributes in reader.attributes:
    plot = attributes["aria-label"].partition(" over ")[0] if name == "svg" else plot
    if name == "polyline":
      lines.setdefault(plot, []).append(attributes["points"])
  assert lines["ROC curve, AUC 0.8123"] == ["0.00,100.00 25.00,10.00 100.00,0.00"]
  (rate,) = lines["Learning rate"]
  places = [place.split(",") for place in rate.split()]
  assert [x for x, _ in places] == ["20.00", "40.00", "60.00", "80.00", "100.00"]
  # Straight down to the axis, as the learning rate here.
  heights = [100 - float(y) for _, y in places]
  assert heights[-1] == 0 and heights[:4] == pytest.approx(
    [heights[0] * (1 - i / 4) for i in range(4)], abs=0.02
  )
  assert [len(lines[name]) for name in ("AUC", "Accuracy", "Fake above its twin")] == [2, 2, 1]
  assert [len(lines[name]) for name in ("AUC of files", "Accuracy of files")] == [2, 1]
  marks = [a for name, a in reader.attributes if name == "line" and a["class"] == "best"]
  assert marks and all(mark["x1"] == mark["x2"] == "60.00" for mark in marks)


def test_long_curves_are_drawn_by_means():
  count = 10 * training_report.POINTS
  many = [{"step": step, "train/fused": float(step % 2)} for step in range(count)]
  reader = Reader(training_report.render_html(many, facts(best_step=0, step=count), created=CREATED))
  (line,) = [a["points"].split() for name, a in reader.attributes if name == "polyline" and a["points"]]
  assert len(line) == training_report.POINTS
  assert len({place.split(",")[1] for place in line}) == 1


def test_the_same_facts_stand_in_markdown():
  text = training_report.render_markdown(rows(), facts())
  for line in (
    "Best validation AUC 0.8123 at step 60.",
    "| Of | AUC | Accuracy | AUC of files | Accuracy of files | Fake above its twin | Equal error rate |",
    "| all | 0.8123 | 0.7000 | 0.8345 | 0.7123 | \N{EN DASH} | 0.2100 |",
    "| plain | 0.9000 | 0.7500 | 0.9234 | \N{EN DASH} | 0.9500 | \N{EN DASH} |",
    "| fake | 5 | 1235 |",
    f"| fused | {rows()[-2]['train/fused']:.4f} |",
    "| real_only | 7,421 | 391 | 404 |",
    '| model.branches | ["spatial"] | ["tiny"] |',
    "    deepscan detect --model_path='runs/my run/best' your_video.mp4",
    "    deepscan evaluate --model_path='runs/my run/best' --data_dir=data --split=test",
  ):
    assert line in text.splitlines(), line


@pytest.mark.parametrize("some", [[], rows()[:1]])
def test_a_run_without_a_validation_or_a_log_has_a_page_too(some):
  without = facts(best=-math.inf, best_step=0, model_bytes=None, stopped="told to stop", step=3)
  page = training_report.render_html(some, without, created=CREATED)
  text = training_report.render_markdown(some, without)
  for told in (page, text):
    assert "No validation was reached, so no model was kept" in told and "none was kept" in told
    assert "deepscan detect" not in told and "Stopped at step 3 of 200: told to stop." in told
    assert ("not known" in told) == (not some)
  assert Reader(page).texts("h2")[0] == ("Training" if some else "Speed")


def test_names_are_shown_as_text():
  hostile = facts(name="<b>|x", data_dir="$(reboot)", examples={"<i>": {"train": 1}})
  page = training_report.render_html(rows(), hostile, created=CREATED)
  assert "<b>|x" not in page and "<i>" not in page and "&lt;b&gt;|x" in page
  assert "--data_dir=&#x27;$(reboot)&#x27;" in page
  assert "# Training of <b>\\|x" in training_report.render_markdown(rows(), hostile)


def test_both_files_are_written_from_the_log(tmp_path):
  (tmp_path / "scalars.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
  training_report.write(tmp_path, read_scalars(tmp_path / "scalars.jsonl"), facts())
  assert (tmp_path / "summary.md").read_text() == training_report.render_markdown(rows(), facts())
  Reader((tmp_path / "summary.html").read_text())


@pytest.mark.parametrize(
  ("values", "low", "high"), [([0.5, 0.5], None, 1.0), ([1.0], None, 1.0), ([0.0], 0.0, math.inf)]
)
def test_an_axis_has_room_for_equal_values(values, low, high):
  bottom, top = training_report._range(min(values), max(values), low=low, high=high)
  assert bottom < top and bottom <= min(values) and max(values) <= top and bottom >= 0
