"""Audits of datasets made on the fly, each with one leak or with none."""

import datetime
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import cv2
import dataset_layouts
import media_files
import numpy as np
import pytest
from absl import app
from absl.testing import flagsaver
from sklearn.linear_model import LogisticRegression

from deepscan_jax import audit, audit_report, media
from deepscan_jax.launch import __main__ as dispatcher
from deepscan_jax.launch import audit as verb
from deepscan_jax.rooms import find_builder, import_room

MediaFile = import_room("datasets.media_builder").MediaFile
ROOT = Path(__file__).resolve().parents[1]
DRAWS = 200
LABELS = ("real", "fake")
CREATED = datetime.datetime(2024, 5, 6, 7, 8, tzinfo=datetime.UTC)


def scenery(rng: np.random.Generator, *, count: int = 1, side: int = 64) -> np.ndarray:
  """Returns a random soft picture that moves a little, uint8 RGB [count, side, side, 3]."""
  coarse = rng.integers(0, 256, (8, 8, 3), np.uint8)
  wide = cv2.resize(coarse, (side + count, side), interpolation=cv2.INTER_CUBIC)
  wide = np.clip(wide + rng.normal(0, rng.uniform(1, 6), wide.shape), 0, 255).astype(np.uint8)
  return np.stack([wide[:, i : i + side] for i in range(count)])


def splits_of(root: Path, name: str = "real_fake_folder") -> tuple[dict, tuple]:
  """(files by split, what was left out), as the dataset's builder gives them."""
  builder_class, config = find_builder(name)
  builder = builder_class(config=config, media_paths=[root], data_dir=root.parent / "unused")
  return builder.split_files(), builder.rejected


def audited(root: Path, name: str = "real_fake_folder", **settings) -> dict:
  splits, left_out = splits_of(root, name)
  return audit.audit_dataset(splits, dataset=name, left_out=left_out, **{"draws": DRAWS, **settings})


def names(result: dict) -> list[str]:
  return [row["fact"] for row in result["facts"]]


def row_of(result: dict, name: str) -> dict:
  return next(row for row in result["facts"] if row["fact"] == name)


def write_videos(root: Path, count: int, **of_class) -> Path:
  """Writes `count` tiny videos of each class; of_class are settings of write_video, f(label, rng) each."""
  rng = np.random.default_rng(7)
  for number in range(count):
    for label in LABELS:
      folder = root / label
      folder.mkdir(parents=True, exist_ok=True)
      settings = {key: make(label, rng) for key, make in of_class.items()}
      side = settings.pop("side", 64)
      media_files.write_video(folder / f"{number:03d}.mp4", scenery(rng, count=6, side=side), **settings)
  return root


@pytest.fixture(scope="module")
def small_fakes(tmp_path_factory):
  """The audit of videos whose fakes are smaller, with two files that cannot be read."""
  root = write_videos(
    tmp_path_factory.mktemp("small") / "mine", 45, side=lambda label, rng: 64 if label == "real" else 48
  )
  media_files.text(root / "real" / "letter.mp4")
  media_files.empty(root / "fake" / "empty.mp4")
  return root, audited(root)


@pytest.fixture(scope="module")
def equal_pictures(tmp_path_factory):
  """A root of pictures of two classes that are made alike, too few for the split."""
  root, rng = tmp_path_factory.mktemp("equal") / "mine", np.random.default_rng(3)
  for number in range(30):
    for label in LABELS:
      (root / label).mkdir(parents=True, exist_ok=True)
      quality = int(rng.integers(60, 96))
      media_files.picture(root / label / f"{number:03d}.jpg", scenery(rng)[0], quality=quality)
  return root


def test_fakes_of_another_size_are_caught_and_the_size_is_named_first(small_fakes):
  _, result = small_fakes
  assert names(result)[0] == "width" and names(result)[-1] == "brightness"
  assert result["facts"][0]["auc"] == 1 and result["facts"][0]["interval"] == [1, 1]
  assert result["facts"][0]["typical"] == {"real": 64, "fake": 48}
  assert result["together"]["auc"] > 0.98
  assert result["warnings"][0].startswith(
    "Labels can be guessed without looking at a face: all facts together"
  )
  assert any(": width alone reaches AUC 1.00 (95 % interval 1.00 to 1.00)" in w for w in result["warnings"])
  assert row_of(result, "brightness")["interval"][0] < audit.WARNING_AUC
  assert {"fps", "codec", "extension"} <= set(result["constant_facts"])
  assert {"loudness_db", "jpeg_quality"} <= set(result["absent_facts"])
  parts = (names(result), result["constant_facts"], result["absent_facts"])
  assert sorted(name for part in parts for name in part) == sorted(audit.FACTS)


def test_the_datasets_own_split_is_kept(small_fakes):
  root, result = small_fakes
  splits, _ = splits_of(root)
  assert result["protocol"]["kind"] == "split" and result["protocol"]["fitted"] == ["train"]
  assert result["protocol"]["measured"] == ["validation", "test"]
  held_out = {file.group for split in ("validation", "test") for file in splits[split]}
  broken = {f"mine/{name}" for name in ("letter", "empty")}
  assert result["protocol"]["groups"] == dict.fromkeys(LABELS, len(held_out - broken))
  for split, files in splits.items():
    for label in LABELS:
      own = [f for f in files if audit._label_name(f.label) == label and f.group not in broken]
      assert result["counts"][split][label] == {"files": len(own), "groups": len({f.group for f in own})}


def test_broken_files_are_counted_and_named(small_fakes):
  _, result = small_fakes
  found = {row["id"]: (row["label"], row["reason"]) for row in result["unreadable"]}
  assert found == {
    "mine/real/letter.mp4": ("real", "not_media"),
    "mine/fake/empty.mp4": ("fake", "empty_file"),
  }
  assert "2 of 92 files cannot be read (1 real, 1 fake)." in result["notes"]
  text = audit_report.summary(result)
  assert "mine/fake/empty.mp4: The file is empty" in text and "2 of 92 files cannot be read" in text


def test_fakes_of_another_bit_rate_are_caught(tmp_path):
  root = write_videos(
    tmp_path / "mine", 14, options=lambda label, rng: {"crf": "18" if label == "real" else "40"}
  )
  result = audited(root, frames=0)
  assert set(names(result)[:3]) == {"bits_per_pixel", "bit_rate", "file_bytes"}
  assert min(row["auc"] for row in result["facts"][:3]) > 0.95
  assert any("bits per pixel and frame alone reaches" in warning for warning in result["warnings"])
  assert not {"brightness", "sharpness"} & set(names(result))
  assert result["duplicates"]["compared"] == 0
  assert any("no copies were searched for" in note for note in result["notes"])


def test_equal_facts_give_no_warning_and_an_interval_around_guessing(equal_pictures):
  result = audited(equal_pictures)
  assert result["protocol"]["kind"] == "cross_validation" and result["protocol"]["folds"] == 5
  assert any("5-fold cross-validation over the groups" in note for note in result["notes"])
  assert result["warnings"] == []
  assert {"jpeg_quality", "file_bytes", "bits_per_pixel", "brightness", "sharpness"} == set(names(result))
  low, high = result["together"]["interval"]
  assert low < 0.5 < high
  # An interval of one fact lies below 0.5 now and then, which is no leak.
  assert max(row["interval"][0] for row in result["facts"]) < 0.5
  assert "No fact guesses the labels" in audit_report.summary(result)


def test_only_scores_of_one_fold_are_compared():
  rng = np.random.default_rng(0)
  labels, folds = rng.integers(0, 2, 60), rng.integers(0, 3, 60)
  scores = rng.normal(size=60) + 10 * folds
  pairs = [
    float(scores[fake] > scores[real])
    for fake in np.flatnonzero(labels == 1)
    for real in np.flatnonzero(labels == 0)
    if folds[fake] == folds[real]
  ]
  assert audit._auc_within_folds(labels, scores, folds) == pytest.approx(np.mean(pairs))
  assert np.isnan(audit._auc_within_folds(np.array([0, 1]), np.zeros(2), np.array([0, 1])))


def test_facts_that_tell_nothing_hardly_ever_warn():
  rng = np.random.default_rng(0)
  found = []
  for _ in range(60):
    labels = rng.permutation(np.repeat([0, 1], 20))
    rows = [
      audit._Row(str(i), "train", int(label), str(i), "image", facts, *_no_frames())
      for i, (label, facts) in enumerate(zip(labels, _random_facts(rng, 40), strict=True))
    ]
    table = audit._Table(rows)
    _, folds, _ = audit._protocol(table)
    bins = [audit._Bins(table.values["width"], fitted) for fitted, _ in folds]
    found.append(audit._measure(table, folds, [bins], draws=60))
  assert np.mean([row["auc"] for row in found]) == pytest.approx(0.5, abs=0.05)
  assert sum(row["interval"][0] > audit.WARNING_AUC for row in found) <= 3


def _no_frames() -> tuple[np.ndarray, np.ndarray]:
  return np.zeros((0, 32), np.uint8), np.zeros(0, bool)


def _random_facts(rng: np.random.Generator, count: int) -> list[dict]:
  return [{**dict.fromkeys(audit.FACTS), "width": float(rng.integers(4))} for _ in range(count)]


def test_a_leading_silence_is_caught(tmp_path):
  def sound(label: str, rng: np.random.Generator) -> np.ndarray:
    noise = rng.normal(0, rng.uniform(0.02, 0.2), 8000)
    noise[: 1600 if label == "fake" else 0] = 0
    return noise.astype(np.float32)

  root = write_videos(tmp_path / "mine", 14, sound=sound, sound_rate_hz=lambda label, rng: 16_000)
  result = audited(root, frames=0)
  assert names(result)[0] == "leading_silence_s"
  assert result["facts"][0]["auc"] > 0.98 and result["facts"][0]["interval"][0] > 0.9
  typical = result["facts"][0]["typical"]
  assert typical["fake"] - typical["real"] == pytest.approx(0.1, abs=0.03)
  assert any(": leading silence alone reaches" in warning for warning in result["warnings"])
  assert not any("loudness" in warning for warning in result["warnings"])


def test_what_only_one_class_lacks_is_told(tmp_path):
  root = write_videos(
    tmp_path / "mine",
    12,
    sound=lambda label, rng: media_files.tone(0.24) if label == "real" else None,
  )
  result = audited(root, frames=0)
  assert row_of(result, "has_sound")["auc"] == 1
  assert row_of(result, "loudness_db")["known"] == {"real": 1, "fake": 0}
  assert row_of(result, "loudness_db")["typical"]["fake"] is None
  assert any("It is there in 100 % of real files and 0 % of fakes." in w for w in result["warnings"])


def test_copies_across_official_splits_are_found(tmp_path):
  rng = np.random.default_rng(1)

  def fill(path: Path) -> None:
    media_files.write_video(path, scenery(rng, count=4))

  root = dataset_layouts.faceforensics(tmp_path / "FaceForensics++", actors=(), fill=fill)
  videos = root / "original_sequences" / "youtube" / "c23" / "videos"
  (videos / "953.mp4").write_bytes((videos / "071.mp4").read_bytes())
  result = audited(root, "faceforensics/c23", draws=1)
  assert result["duplicates"]["compared"] == 60
  assert (result["duplicates"]["files"], result["duplicates"]["pairs"]) == (2, 1)
  (pair,) = result["duplicates"]["examples"]
  assert {(Path(row["id"]).name, row["split"]) for row in pair} == {("071.mp4", "train"), ("953.mp4", "test")}
  # Five pairs of videos are far too few for figures, and that is said in place of them.
  assert result["protocol"]["kind"] == "none" and result["together"] is None and result["facts"] == []
  assert any(note.startswith("Too few groups for figures: 5 hold real") for note in result["notes"])
  assert "No figures" in audit_report.summary(result)


def test_dark_frames_are_nobodys_copies():
  flat = [np.full((48, 48, 3), level, np.uint8) for level in (0, 3)]
  seen = np.random.default_rng(0).integers(0, 255, (48, 48, 3), np.uint8)
  rows = [
    audit._row(split, _file(i), audit.Sample("a.mp4", "video", {}, 1.0, frames, np.zeros(0, np.float32)))
    for i, (split, frames) in enumerate(
      [("train", flat), ("test", flat), ("train", [flat[0], seen]), ("test", [flat[1], seen])]
    )
  ]
  found = audit._copies_across_splits(rows)
  assert [[row["id"] for row in pair] for pair in found["examples"]] == [["2", "3"]]
  assert found["compared"] == 2


def test_clips_are_copies_only_if_all_their_frames_are():
  rng = np.random.default_rng(0)
  first, second, third = (rng.integers(0, 255, (48, 48, 3), np.uint8) for _ in range(3))
  rows = [
    audit._row(split, _file(i), audit.Sample("a.mp4", "video", {}, 1.0, frames, np.zeros(0, np.float32)))
    for i, (split, frames) in enumerate(
      [
        ("train", [first, second]),
        ("test", [first, third]),
        ("validation", [first, second]),
        ("test", [first]),
      ]
    )
  ]
  found = audit._copies_across_splits(rows)
  assert [[row["id"] for row in pair] for pair in found["examples"]] == [["0", "2"]]
  assert found["compared"] == 4


def _file(name: object, **places):
  return MediaFile(**{"id": str(name), "path": None, "label": 0, "group": "a", "source": "s", **places})


def test_pictures_in_archives_and_clips_of_pictures_have_the_facts_of_files(tmp_path):
  pixels = scenery(np.random.default_rng(0))[0]
  path = media_files.picture(tmp_path / "a.jpg", pixels, quality=80, subsampling="4:2:2")
  in_folder, in_archive = _file("a.jpg", path=path), _file("a.jpg", read=path.read_bytes)
  clip = _file("clip", frames=(path.read_bytes,) * 9)
  facts = [
    {name: fact.read(audit.read_sample(file, frames=4)) for name, fact in audit.FACTS.items()}
    for file in (in_folder, in_archive, clip)
  ]
  assert facts[0] == facts[1]
  assert (facts[0]["jpeg_quality"], facts[0]["chroma_subsampling"]) == (80, "4:2:2")
  assert facts[0]["bits_per_pixel"] == 8 * path.stat().st_size / 64**2
  differing = {name for name in facts[0] if facts[0][name] != facts[2][name]}
  assert differing == {"kind", "extension", "frame_count"} and facts[2]["frame_count"] == 9
  assert len(audit.read_sample(clip, frames=4).frames) == 4 and not audit.read_sample(clip, frames=0).frames


@pytest.mark.parametrize(
  ("samples", "silence_s"),
  [(0, 0.0), (159, 0.0), (160, 0.01), (4000, 0.25), (16_000, 1.0)],
)
def test_leading_silence_is_measured_in_steps_of_ten_milliseconds(samples, silence_s):
  waveform = np.full(16_000, 0.1, np.float32)
  waveform[:samples] = 1e-4
  assert audit.leading_silence_s(waveform) == pytest.approx(silence_s)
  level = -120.0 if samples == 16_000 else -20.0
  if samples != 159:
    assert audit.loudness_db(waveform) == pytest.approx(level, abs=0.01)
  assert audit.leading_silence_s(np.zeros(0, np.float32)) is None
  assert audit.loudness_db(np.zeros(0, np.float32)) is None


def test_a_number_is_cut_where_its_values_change():
  assert audit._edges(np.array([25.0] * 30 + [30.0] * 30)).tolist() == [27.5]
  mixed = np.concatenate([np.full(60, 25.0), np.arange(40) / 4.0 + 20.1])
  bins = np.searchsorted(audit._edges(mixed), mixed, side="right")
  alone = bins[np.flatnonzero(mixed == 25.0)[0]]
  assert (bins[mixed == 25.0] == alone).all() and not (bins[mixed != 25.0] == alone).any()
  evenly = np.searchsorted(audit._edges(np.arange(800.0)), np.arange(800.0), side="right")
  assert np.bincount(evenly).tolist() == [100] * 8


def test_the_model_is_a_ridge_logistic_regression():
  rng = np.random.default_rng(0)
  columns, labels = (rng.random((80, 6)) < 0.4).astype(float), (rng.random(80) < 0.3).astype(int)
  oracle = LogisticRegression(C=1.0, fit_intercept=False, class_weight="balanced", tol=1e-10, max_iter=1000)
  np.testing.assert_allclose(
    audit._fit(columns, labels), oracle.fit(columns, labels).coef_[0], rtol=1e-4, atol=1e-6
  )


def test_a_limit_takes_whole_groups_of_every_split(small_fakes):
  root, _ = small_fakes
  splits, _ = splits_of(root)
  files = [(split, file) for split, chosen in splits.items() for file in chosen]
  chosen = audit._limited(files, 40)
  assert 40 <= len(chosen) <= 41 and {split for split, _ in chosen} == set(splits)
  groups = {file.group for _, file in chosen}
  assert [file.id for _, file in files if file.group in groups] == [file.id for _, file in chosen]


def test_what_cannot_be_audited_is_said(tmp_path):
  (tmp_path / "mine" / "real").mkdir(parents=True)
  media_files.text(tmp_path / "mine" / "real" / "a.mp4")
  with pytest.raises(
    ValueError, match=r"None of the 1 files of real_fake_folder can be read \(not_media: 1\)"
  ):
    audited(tmp_path / "mine")
  with pytest.raises(ValueError, match=r"limit >= 1; got frames=4, limit=0"):
    audit.audit_dataset({}, dataset="x", limit=0)


def test_the_page_shows_the_facts_and_asks_for_nothing_else(small_fakes):
  _, result = small_fakes
  hostile = {**result, "dataset": "<script>alert(1)</script>"}
  text = audit_report.render_html(hostile, created=CREATED)
  page = _Page()
  page.feed(text)
  assert "<script>" not in text and "6 May 2024, 07:08 UTC" in text
  assert not [a for _, a in page.elements if {"src", "href", "xlink:href"} & set(a)]
  policy = next(a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
  assert "default-src 'none'" in policy and "script-src" not in policy
  assert "url(" not in text and "@import" not in text
  bars = [a for tag, a in page.elements if tag == "rect"]
  assert len(bars) == len(result["facts"]) + 1
  leaks = [row for row in (result["together"], *result["facts"]) if row["interval"][0] > audit.WARNING_AUC]
  assert sum("leak" in bar["class"] for bar in bars) == len(leaks) == len(result["warnings"])
  for row in result["facts"]:
    assert row["words"] in page.text
  assert "mine/fake/empty.mp4" in page.text and "Fitted on train" in page.text


class _Page(HTMLParser):
  def __init__(self):
    super().__init__()
    self.elements, self.text = [], ""

  def handle_starttag(self, tag, attributes):
    self.elements.append((tag, dict(attributes)))

  def handle_data(self, data):
    self.text += data


def test_the_command_writes_what_the_library_finds_twice_the_same(equal_pictures, tmp_path):
  table, page = tmp_path / "a.json", tmp_path / "a.html"
  arguments = [f"--media={equal_pictures}", "--limit=24", f"--output-json={table}", f"--output-html={page}"]
  environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
  told = subprocess.run(
    [sys.executable, "-m", "launch", "audit", *arguments],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert told.returncode == 0, told.stderr
  splits, left_out = splits_of(equal_pictures)
  again = audit.audit_dataset(splits, dataset="real_fake_folder", left_out=left_out, limit=24)
  assert table.read_text() == json.dumps(again, indent=2, allow_nan=False) + "\n"
  assert again["schema_version"] == 1 and again["settings"]["limit"] == 24
  assert told.stdout.startswith("Audit of real_fake_folder")
  assert page.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    ({"media": []}, "Say which media to read"),
    ({"name": "nothing"}, "Unknown dataset 'nothing'; there are .*real_fake_folder, real_only"),
    (
      {"name": "faceforensics/c99"},
      "faceforensics has no config 'c99'; .* one of c23, c40, raw",
    ),
    ({"name": "real_fake_folder"}, "has no folder real/ or fake/"),
    ({"name": "faceforensics/c23"}, "has none of original_sequences/youtube/c23/videos"),
    ({"output_html": "nowhere/a.html"}, "Cannot write nowhere/a.html: there is no such folder"),
  ],
)
def test_mistakes_cost_one_sentence(flags, words, tmp_path, capsys):
  with flagsaver.flagsaver(**{"media": [str(tmp_path)], "name": "real_fake_folder", **flags}):
    assert dispatcher._guard(verb.main, ["audit"], debug=False) == 2
    told = capsys.readouterr()
  assert told.out == "" and told.err.count("\n") == 1
  assert re.search(words, told.err)


def test_an_argument_that_is_no_flag_is_refused():
  with pytest.raises(app.UsageError, match=r"Unexpected argument 'a\.mp4'"):
    verb.main(["audit", "a.mp4"])


def test_a_file_that_is_gone_is_reported_not_dropped(tmp_path):
  with pytest.raises(media.MediaError, match=r"There is no file gone\.mp4"):
    audit.read_sample(_file("gone.mp4", path=tmp_path / "gone.mp4"), frames=1)
