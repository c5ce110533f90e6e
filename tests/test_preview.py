"""The page that shows a dataset: what is chosen, what is on it, and that it is the same each time."""

import base64
import dataclasses
import datetime
import io
import re
import wave

import cv2
import face_media
import numpy as np
import pytest
import voices
from absl import app
from absl.testing import flagsaver
from face_media import COUNTS, SOURCES

from deepscan_jax import data, examples, media, preview
from deepscan_jax.config import DataConfig, WindowConfig
from deepscan_jax.launch import build_dataset as verb

CREATED = datetime.datetime(2024, 5, 6, 7, 8, tzinfo=datetime.UTC)
CONFIG = DataConfig(window=WindowConfig(samples=32_000))


@pytest.fixture(scope="module")
def talking() -> dict:
  """A window of two views of a face, mouths of noise and a voice, whose name is no friend of HTML."""
  found = []
  for i in range(2):
    picture = face_media.portrait(side=256, shift=(2.0 * i, i))[None]
    clip = media.Clip("image", picture, np.zeros(1), np.zeros(0, np.float32), 16_000, {}, ())
    found += examples.find_subjects(clip)
  rng = np.random.default_rng(0)
  return {
    "faces": np.stack([person.crops[0] for person in found]),
    "face_mask": np.ones(2, bool),
    "landmarks": np.stack([person.landmarks[0] for person in found]),
    "frame_times_s": np.array([1, 1.08], np.float32),
    "mouths": rng.integers(0, 256, (50, 96, 96, 3), dtype=np.uint8),
    "mouth_mask": np.ones(50, bool),
    "sound": np.round(voices.voice(seconds=2.0, seed=1) * 32767).astype(np.int16),
    "start_s": np.float32(1),
    "file_facts": np.zeros(3, np.float32),
    "file_facts_mask": np.zeros(3, bool),
    "face_label": np.int32(0),
    "sound_label": np.int32(0),
    "id": "<b>one</b>",
    "group": "g",
    "source": "s",
    "method": "",
  }


class Listed:
  """Examples in the place of a prepared dataset."""

  def __init__(self, *elements: dict, inputs=preview.EVERYTHING):
    self.elements, self.inputs = elements, inputs
    self.groups = {("s", ("faces", "mouths", "sound")): list(range(len(elements)))}

  def __len__(self) -> int:
    return len(self.elements)

  def __getitem__(self, index: int) -> dict:
    return self.elements[index]


def page_of(monkeypatch, element: dict, config=CONFIG, **settings) -> str:
  monkeypatch.setattr(
    preview,
    "ExampleSource",
    lambda *_, inputs, labels: Listed(element, inputs=tuple(inputs)),
  )
  return preview.render_html(config, data_dir="", created=CREATED, **settings)


def sounds(html: str) -> list[bytes]:
  return [base64.b64decode(text) for text in re.findall(r'"data:audio/wav;base64,([^"]+)"', html)]


def test_a_page_of_faces_holds_all_that_it_shows(prepared_dataset):
  html = preview.render_html(DataConfig(), data_dir=prepared_dataset, count=3, created=CREATED)
  assert html == preview.render_html(DataConfig(), data_dir=prepared_dataset, count=3, created=CREATED)
  assert "3 of 6 training examples" in html and preview.WARNING in html
  assert not re.search(r'(src|href)="(?!data:)', html)
  # Stored and plain, and five pictures of each draw.
  assert html.count("<img ") == 3 * (2 + 5 * preview.DRAWS)
  assert "<audio" not in html


def test_examples_of_every_group_are_chosen_and_spread_evenly(prepared_dataset):
  source = data.ExampleSource(["real_only"], "train", prepared_dataset)
  assert {key: len(of) for key, of in source.groups.items()} == {
    (name, ("faces",)): COUNTS["train"] for name in SOURCES
  }
  groups = {("a", ("faces",)): list(range(100)), ("a", ("sound",)): [100], ("b", ("faces",)): [101, 102]}
  source.groups = groups
  assert preview.choose(source, 6) == [0, 49, 99, 100, 101, 102]
  assert preview.choose(source, 2) == [0, 101]
  assert sorted(preview.choose(source, 500)) == list(range(103))


def test_a_window_shows_each_kind_of_forgery_and_its_sound(talking, monkeypatch):
  html = page_of(monkeypatch, talking)
  assert "&lt;b&gt;one" in html and "<b>one" not in html
  assert "blended: " in html and "forged from" in html and re.search(r"sound (of another|a little out)", html)
  assert "media-src data:" in html
  heard = sounds(html)
  assert len(heard) == 5  # as stored, two forged by voice, two by sync
  with wave.open(io.BytesIO(heard[0])) as wav:
    assert (wav.getframerate(), wav.getnchannels(), wav.getnframes()) == (16_000, 1, 32_000)
    stored = np.frombuffer(wav.readframes(32_000), "<i2")
  np.testing.assert_array_equal(stored, talking["sound"][:32_000])
  assert heard[1] != heard[2]
  marks = re.findall(r'class="forged" style="left:([\d.]+)%;width:([\d.]+)%"', html)
  assert len(marks) == 1 and float(marks[0][1]) > 0


def test_a_preset_shows_what_its_model_reads(talking, monkeypatch):
  html = page_of(monkeypatch, talking, inputs=("waveform", "waveform_mask"), preset="mine")
  assert "as the preset mine" in html and "Stored crop" not in html and "Mouths" not in html
  assert len(sounds(html)) == 1 + 2 * preview.DRAWS
  labelled = dataclasses.replace(CONFIG, pseudofakes=False)
  html = page_of(
    monkeypatch, {**talking, "sound_label": np.int32(1)}, labelled, inputs=("waveform", "waveform_mask")
  )
  assert "sound fake" in html and "makes no pseudo-fakes" in html and len(sounds(html)) == 1 + preview.DRAWS


def test_how_a_pair_was_forged_fits_its_rows(talking):
  def drawn(kind: str):
    config = dataclasses.replace(
      CONFIG, window=WindowConfig(frames=2, samples=32_000), pseudofake_kinds=((kind, 1.0),)
    )
    rng = np.random.default_rng(5)
    return data.draw_pair(talking, rng=rng, config=config, degraded=False, inputs=preview.EVERYTHING)

  rows, forgery = drawn("face")
  assert forgery.kind == "face" and forgery.method in preview.METHODS
  for mask, region in zip(forgery.mask, rows["region"][1], strict=True):
    np.testing.assert_array_equal(cv2.resize(mask, (14, 14), interpolation=cv2.INTER_AREA), region)
  rows, forgery = drawn("voice")
  ((start, end),) = forgery.segments_s
  differs = np.flatnonzero(rows["waveform"][0] != rows["waveform"][1]) / 16_000
  assert start <= differs[0] and differs[-1] <= end and forgery.mask is None
  rows, forgery = drawn("sync")
  late = round(forgery.late_s * 16_000)
  real, fake = (sound[: int(rows["waveform_mask"][0].sum())] for sound in rows["waveform"])
  shifted = (fake[late:], real[:-late]) if late > 0 else (fake[:late], real[-late:])
  np.testing.assert_array_equal(*shifted)


def test_masks_and_meshes_are_drawn_where_they_are():
  grey = np.full((1, 64, 64, 3), 90, np.uint8)
  mask = np.zeros((1, 64, 64), np.float32)
  mask[0, 10:20, 30:40] = 1
  shown = preview.with_mask(grey, mask)
  np.testing.assert_array_equal(shown[0, ..., 0] != 90, mask[0] > 0)
  points = np.full((468, 2), 100.5)
  drawn = preview.with_mesh(np.zeros((256, 256, 3), np.uint8), points)
  assert drawn.shape == (512, 512, 3)
  rows, columns = np.nonzero(drawn.any(axis=-1))
  assert 198 <= rows.min() <= rows.mean() == pytest.approx(200.5, abs=0.6) and columns.max() <= 203


def test_the_command_shows_what_was_built(prepared_dataset, tmp_path, capsys):
  target = tmp_path / "page.html"
  with flagsaver.flagsaver(
    data_dir=str(prepared_dataset),
    preview=str(target),
    preview_count=1,
    media=[],
    name="real_only",
    preset="testing",
  ):
    assert verb.main(["build_dataset"]) == 0
  assert "it holds pictures or voices of people" in capsys.readouterr().out
  assert "as the preset testing" in target.read_text(encoding="utf-8")
  with (
    flagsaver.flagsaver(data_dir=str(tmp_path), preview=str(target), media=[], name="mine", preset=None),
    pytest.raises(FileNotFoundError, match="'mine' is not in"),
  ):
    verb.main(["build_dataset"])
  with flagsaver.flagsaver(preview=None, media=[]), pytest.raises(app.UsageError, match="which media"):
    verb.main(["build_dataset"])
