import dataclasses
import hashlib
import json
import math
import shutil
from pathlib import Path

import face_media
import media_files
import numpy as np
import pytest
import voices
from sklearn.metrics import roc_auc_score
from tiny import CALIBRATION, tiny_branch, tiny_config, write_model

from deepscan_jax import checkpoints, data, evaluation, examples, faces, media, protocols, scoring
from deepscan_jax.calibration import Calibration
from deepscan_jax.config import override
from deepscan_jax.inference import Detector, load_detector
from deepscan_jax.rooms import import_room

OF_SOUND = Calibration(scale=0.8, offset=-0.2, inconclusive=-40.0, manipulated=40.0, false_positive_rate=0.1)
DRAWS = 100


@pytest.fixture(autouse=True)
def tiny():
  with tiny_branch():
    yield


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
  """Its thresholds lie among the scores of the pictures."""
  folder = write_model(tmp_path_factory.mktemp("model") / "best")
  with tiny_branch():
    logit = float(load_detector(folder).detect_images(face_media.portrait()[None]).deepfake_probability)
  middle = (math.log(logit / (1 - logit)) - CALIBRATION.offset) / CALIBRATION.scale
  calibration = dataclasses.replace(CALIBRATION, inconclusive=middle - 0.01, manipulated=middle)
  return write_model(folder, calibration=calibration)


@pytest.fixture(scope="module")
def labelled_media(tmp_path_factory) -> Path:
  """Pictures in real/ and fake/, all of which a hash puts into the test split; two give no score."""
  root = tmp_path_factory.mktemp("mine") / "mine"
  names = iter(_names_in_test(root.name))
  views = (
    dict(turn_deg=-12, shift=(-12, 0)),
    dict(turn_deg=9, shift=(8, 4), mirrored=True),
    dict(turn_deg=2, zoom=1.15),
    dict(turn_deg=-5, zoom=0.85, mirrored=True, light=0.8),
  )
  for number, view in enumerate(views):
    folder = root / ("fake/swap" if number % 2 else "real")
    folder.mkdir(parents=True, exist_ok=True)
    media_files.picture(folder / f"{next(names)}.png", face_media.portrait(**view))
  media_files.write_video(root / "fake" / "swap" / f"{next(names)}.mp4", face_media.moving_portrait(8))
  media_files.picture(root / "fake" / "swap" / f"{next(names)}.png", face_media.no_face())
  media_files.text(root / "real" / f"{next(names)}.jpg")
  return root


def _names_in_test(root: str):
  split_of = import_room("datasets.media_builder").split_of
  return (str(number) for number in range(1000) if split_of(f"{root}/{number}") == "test")


def builder(root: Path, data_dir: Path, name: str = "real_fake_folder", **settings):
  module = import_room(f"datasets.{name}.{name}_dataset_builder")
  return module.Builder(media_paths=[root], frames_per_clip=4, data_dir=data_dir, **settings)


@pytest.fixture(scope="module")
def files(labelled_media, tmp_path_factory) -> list:
  return builder(labelled_media, tmp_path_factory.mktemp("unused")).split_files()["test"]


@pytest.fixture(scope="module")
def prepared(labelled_media, tmp_path_factory) -> Path:
  data_dir = tmp_path_factory.mktemp("data")
  builder(labelled_media, data_dir).prepare()
  return data_dir


@pytest.fixture(scope="module")
def of_prepared(model, prepared) -> dict:
  with tiny_branch():
    return scoring.evaluate_model(model, datasets=["real_fake_folder"], data_dir=prepared, draws=DRAWS)


@pytest.fixture(scope="module")
def of_media(model, files) -> dict:
  with tiny_branch():
    return scoring.evaluate_model(
      model, datasets=["real_fake_folder"], media_files=files, frames=4, draws=DRAWS
    )


def test_prepared_files_are_scored_as_the_detector_does(of_prepared, of_media):
  """No skew: one file, built or sent through the detector, has one score."""
  built, raw = of_prepared["scores"], of_media["scores"]
  assert sorted(built["id"]) == sorted(raw["id"]) and len(built["id"]) == 5
  by_id = dict(zip(raw["id"], zip(raw["label"], raw["score"], raw["called"], strict=True), strict=True))
  for name, label, score, called in zip(*(built[k] for k in ("id", "label", "score", "called")), strict=True):
    assert by_id[name] == (label, pytest.approx(score, abs=1e-4), called)
    assert label == ("/fake/" in name)


@pytest.mark.parametrize("which", ["of_prepared", "of_media"])
def test_files_without_a_score_are_counted_by_reason(which, request):
  coverage = request.getfixturevalue(which)["coverage"]
  assert (coverage["files"], coverage["scored"]) == (7, 5)
  assert coverage["reasons"]["no_face"] == 1 and sum(coverage["reasons"].values()) == 2
  assert coverage["real"] == {"files": 3, "scored": 2, "share": pytest.approx(2 / 3)}
  assert coverage["fake"] == {"files": 4, "scored": 3, "share": pytest.approx(3 / 4)}


def test_levels_of_files(of_prepared, of_media, labelled_media):
  for found in (of_prepared, of_media):
    counts = {level: f["count"]["rows"] for level, f in found["results"]["labelled"]["levels"].items()}
    # Four pictures, and a clip of four frames.
    assert counts == {"frame": 8, "window": 8, "track": 5, "video": 5}
    assert found["headline"] == {"set": "labelled", "level": "video"}
    main = found["results"]["labelled"]["levels"]["video"]
    expected = roc_auc_score(found["scores"]["label"], found["scores"]["score"])
    assert main["auc"]["value"] == pytest.approx(expected)
  assert of_media["results"]["labelled"]["levels"]["video"]["coverage"] == pytest.approx(5 / 7)
  assert set(of_media["cost"]["latency"]) >= {"decode_s", "faces_s", "model_s", "total_s"}
  assert set(of_prepared["cost"]["latency"]) <= {"model_s"}
  assert of_media["cost"]["peak_memory_bytes"] > 1e7 and of_media["model"]["parameters"] > 10


def test_the_threshold_is_that_of_validation_whatever_the_scores(of_prepared, model):
  calibration = Detector(model).calibration
  bound = calibration.scale * calibration.manipulated + calibration.offset
  assert of_prepared["thresholds"]["faces"]["manipulated"] == calibration.thresholds.manipulated
  called = np.array(of_prepared["scores"]["score"]) >= bound
  assert called.tolist() == of_prepared["scores"]["called"] and 0 < called.sum() < len(called)
  confusion = of_prepared["results"]["labelled"]["levels"]["video"]["confusion"]
  assert confusion["true_positives"] == (called & np.array(of_prepared["scores"]["label"], bool)).sum()
  # A threshold that was fitted on these files would call as many of them; that of a bolder model calls all.
  bold = dataclasses.replace(calibration, inconclusive=-60.0, manipulated=-50.0)
  assert bold.outcome(0.0) == "likely_manipulated"


def test_a_card_says_which_build_it_was_made_of(of_prepared, of_media, prepared):
  (manifest,) = prepared.rglob("manifest.json")
  expected = hashlib.sha256(manifest.read_bytes()).hexdigest()
  assert of_prepared["builds"] == {"real_fake_folder": expected} and of_media["builds"] == {}


def test_the_size_and_sharpness_of_faces_make_buckets(of_media, of_prepared):
  built, raw = (found["results"]["labelled"]["by"] for found in (of_prepared, of_media))
  assert built["face_size"].keys() == raw["face_size"].keys() == {"64 to 128 px", "128 to 256 px"}
  for by in (built, raw):
    for name in ("face_size", "sharpness"):
      assert "unknown" not in by.get(name, {})


def test_datasets_of_before_have_no_sizes_of_faces():
  element = {"face_sizes_px": np.array([0.0, 100.0, 120.0], np.float32)}
  assert data._face_size(element) == 110
  assert math.isnan(data._face_size({})) and math.isnan(data._face_size({"face_sizes_px": np.zeros(2)}))


def test_real_ones_alone_are_paired_with_pseudofakes_and_the_tables_stay(prepared_dataset, model):
  found = scoring.evaluate_model(model, data_dir=prepared_dataset, draws=DRAWS)
  assert found["datasets"] == ["real_only"] and found["headline"] == {"set": "pairs", "level": "video"}
  figures = evaluation.measure_model(load_detector(model), data_dir=prepared_dataset)
  for name in ("pairs", "false_alarms", "detected"):
    assert json.loads(json.dumps(figures[name])) == found[name]
  pairs = found["results"]["pairs"]["levels"]
  # Two pictures and a clip of four frames, plain and degraded, each with its twin.
  assert pairs["window"]["count"]["rows"] == 2 * 2 * 6 == found["pairs"]["all"]["count"]
  assert pairs["video"]["count"] | {"groups": 0, "real_groups": 0, "fake_groups": 0} == {
    "rows": 12,
    "real": 6,
    "fake": 6,
    "groups": 0,
    "real_groups": 0,
    "fake_groups": 0,
  }
  assert pairs["window"]["auc"]["value"] == pytest.approx(found["pairs"]["all"]["auc"])
  assert set(found["results"]["pairs"]["by"]["condition"]) == {"plain", "degraded"}
  # The region maps of all plain pairs were tested; too few groups for an interval.
  maps = found["faithfulness"]
  assert maps["pairs"] == 6 and maps["gain"]["deletion"]["random"]["interval"] is None
  assert np.isfinite(maps["deletion"]["other"]).all()
  alone = scoring.evaluate_model(model, data_dir=prepared_dataset, pairs=False, draws=DRAWS)
  assert set(alone["results"]) == {"labelled"} and "pairs" not in alone and alone["faithfulness"] is None


def test_a_model_is_not_shown_off_on_what_chose_it(prepared_dataset, model):
  with pytest.raises(ValueError, match="selected and calibrated with the validation split of real_only"):
    scoring.evaluate_model(model, data_dir=prepared_dataset, split="validation")


def test_a_folder_that_one_trained_on_is_no_test(tmp_path, files):
  config = override(override(tiny_config(), "data.datasets=real_fake_folder"), "data.pseudofakes=false")
  folder = write_model(tmp_path / "best", config=config)
  with pytest.raises(ValueError, match="trained and selected with files of real_fake_folder"):
    scoring.evaluate_model(folder, datasets=["real_fake_folder"], media_files=files, split="all")


def test_a_published_protocol_cuts_and_counts_its_own_way(model, files):
  found = scoring.evaluate_model(
    model, datasets=["real_fake_folder"], media_files=files, preprocessing="sbi", draws=DRAWS
  )
  assert found["protocol"]["preprocessing"] == "sbi" and found["protocol"]["frames"] == 32
  assert any("own detector" in note for note in found["notes"])
  assert found["as_published"]["files_that_got_it"] == 2 and found["as_published"]["missing_score"] == 0.5
  # A picture by hand: its largest face, cut with an eighth more on each side.
  file = next(f for f in files if f.id.endswith(".png") and f.label == 0)
  frame = media.decode_clip(file.path).frames[0]
  ((face,),) = faces.find_faces(frame[None])
  crop = protocols.cut_face(
    frame, box=face.box, landmarks=face.landmarks, preset=protocols.PRESETS["sbi"], size=224
  )
  detector = Detector(model)
  logit = detector.judge({"crops": crop[None, None], "crop_mask": np.ones((1, 1), bool)}).logits[0]
  at = found["scores"]["id"].index(f"real_fake_folder:{file.id}")
  expected = CALIBRATION.scale * logit + CALIBRATION.offset
  assert found["scores"]["score"][at] == pytest.approx(expected, abs=1e-5)
  frames = scoring.evaluate_model(
    model, datasets=["real_fake_folder"], media_files=files, preprocessing="deepfakebench", draws=DRAWS
  )
  assert frames["headline"]["level"] == "frame" and frames["as_published"] is None
  # Four pictures, and all eight frames of the clip, of which 32 were wanted.
  assert frames["results"]["labelled"]["levels"]["frame"]["count"]["rows"] == 12
  assert frames["protocol_hash"] != found["protocol_hash"]


@pytest.mark.parametrize("preprocessing", ["own", "sbi"])
def test_a_forgery_of_what_is_not_read_is_not_held_against_a_model(model, files, preprocessing, tmp_path):
  """As prepared datasets have it: a film with forged sound shows genuine faces."""
  file = next(f for f in files if f.id.endswith(".png") and f.label == 0)
  of_sound = dataclasses.replace(
    file, id="fake/sound.png", label=1, method="voice", face_label=0, sound_label=1
  )
  unknown = dataclasses.replace(file, id="fake/unknown.png", label=1, face_label=examples.UNKNOWN)
  found = scoring.evaluate_model(
    model, datasets=["celeb_df"], media_files=[of_sound, unknown], preprocessing=preprocessing, draws=DRAWS
  )
  assert (found["scores"]["id"], found["scores"]["label"]) == (["celeb_df:fake/sound.png"], [0])
  assert found["coverage"]["reasons"] == {"label_unknown": 1}
  if preprocessing == "sbi":
    assert found["as_published"]["files_that_got_it"] == 0
    # What shows no face is as real as what does.
    media_files.picture(tmp_path / "nobody.png", face_media.no_face())
    nobody = dataclasses.replace(of_sound, id="fake/nobody.png", path=tmp_path / "nobody.png")
    found = scoring.evaluate_model(
      model, datasets=["celeb_df"], media_files=[of_sound, nobody], preprocessing="sbi", draws=DRAWS
    )
    assert found["as_published"]["files_that_got_it"] == 1 and found["as_published"]["auc"] is None


def test_another_division_of_what_a_model_was_trained_on_is_noted(prepared_dataset, model, tmp_path):
  own = tmp_path / "own"
  shutil.copytree(model, own)
  facts = {key: value for key, value in checkpoints.read_model(own).items() if key != "sha256"}
  division = data.division("real_only", data_dir=prepared_dataset)

  def card_of(datasets: dict) -> dict:
    lineage = [{"name": "tiny", "version": "1", "datasets": datasets}]
    checkpoints.write_model_json(own, {**facts, "lineage": lineage})
    return scoring.evaluate_model(own, data_dir=prepared_dataset, pairs=False, draws=DRAWS)

  unknown = {"build": None, "division": None}
  same = card_of({"real_only": {"build": "0" * 64, "division": division}})
  other = card_of({"real_only": {"build": "0" * 64, "division": "0" * 64}, "celeb_df": unknown})
  assert not any("divided otherwise" in note for note in same["notes"])
  assert any("real_only as it was divided otherwise" in note for note in other["notes"])
  assert same["protocol_hash"] != other["protocol_hash"]
  (row,) = other["cross_dataset"]["rows"]
  assert row["train"] == "celeb_df + real_only" and row["tests"]["real_only"]["seen_in_training"]


def test_what_cannot_be_had_is_told(model, prepared, tmp_path):
  with pytest.raises(ValueError, match="prepared datasets have been cut already"):
    scoring.evaluate_model(model, datasets=["real_fake_folder"], data_dir=prepared, preprocessing="sbi")
  with pytest.raises(ValueError, match="Unknown level"):
    scoring.evaluate_model(model, datasets=["real_fake_folder"], data_dir=prepared, level="clip")
  config = override(tiny_config(), 'model.branches=["tiny", "tiny_lips"]')
  clips = Detector(write_model(tmp_path / "lips", config=config))
  with pytest.raises(ValueError, match="cuts single faces"):
    scoring.score_media(clips, [], dataset="x", preset=protocols.PRESETS["sbi"])


def test_sound_is_scored_at_its_own_levels(tmp_path):
  config = override(tiny_config(), 'model.branches=["tiny_voice"]')
  config = override(override(config, "data.window.samples=32000"), 'data.pseudofake_kinds=[["voice", 1.0]]')
  folder = write_model(tmp_path / "voice", calibration=None, sound_calibration=OF_SOUND, config=config)
  root = tmp_path / "mine"
  for folder_name, seed in (("real", 1), ("fake/vocoder", 2)):
    (root / folder_name).mkdir(parents=True)
    speech = voices.speech(seconds=5.0, seed=seed)
    media_files.sound(root / folder_name / f"{seed}.wav", speech, sample_rate_hz=voices.RATE_HZ)
  media_files.sound(root / "real" / "music.wav")
  files = [f for chosen in builder(root, tmp_path / "unused").split_files().values() for f in chosen]
  found = scoring.evaluate_model(folder, datasets=["real_fake_folder"], media_files=files, draws=DRAWS)
  counts = {level: f["count"]["rows"] for level, f in found["results"]["labelled"]["levels"].items()}
  assert counts == {"window": 6, "track": 2, "video": 2}
  assert found["coverage"]["scored"] == 2 and found["coverage"]["files"] == 3
  assert found["thresholds"].keys() == {"sound"}


def test_a_build_of_before_says_what_it_does_not_know(model, prepared, tmp_path):
  """rejected.jsonl of older builds does not say the split."""
  file = next(prepared.rglob("rejected.jsonl"))
  before = file.read_text()
  try:
    rows = [json.loads(line) for line in before.splitlines()]
    file.write_text("".join(json.dumps({k: r[k] for k in ("id", "reason", "message")}) + "\n" for r in rows))
    found = scoring.evaluate_model(model, datasets=["real_fake_folder"], data_dir=prepared, draws=DRAWS)
  finally:
    file.write_text(before)
  assert found["coverage"]["share"] == 1.0
  assert any("2 files could not be used" in note for note in found["notes"])


def test_examples_that_a_model_cannot_use_are_listed(prepared):
  of_sound = data.listed_examples("real_fake_folder", "test", data_dir=prepared, inputs=("waveform",))
  of_faces = data.listed_examples("real_fake_folder", "test", data_dir=prepared)
  assert len(of_sound) == len(of_faces) == 8
  assert all(row["held"] for row in of_faces) and not any(row["held"] for row in of_sound)
  assert {row["method"] for row in of_faces if row["label"]} == {"swap"}


def test_labelled_files_are_scored_again_under_damage(model, prepared):
  told = []
  found = scoring.evaluate_model(
    model,
    datasets=["real_fake_folder"],
    data_dir=prepared,
    draws=DRAWS,
    perturbations=["contrast", "noise"],
    perturb_limit=0,
    report_step=lambda *counts: told.append(counts),
  )
  assert told[-1] == (11, 11) and list(found["robustness"]) == ["contrast", "noise"]
  about = found["robustness_of"]
  assert (about["set"], about["level"], about["examples"], about["of_examples"]) == (
    "labelled",
    "video",
    8,
    8,
  )
  plain = scoring.evaluate_model(model, datasets=["real_fake_folder"], data_dir=prepared, draws=DRAWS)
  # Nothing else of the card is touched.
  assert found["protocol_hash"] == plain["protocol_hash"] and found["results"] == plain["results"]
  assert "robustness" not in plain
  main = plain["results"]["labelled"]["levels"]["video"]
  for rungs in found["robustness"].values():
    assert [row["level"] for row in rungs] == [0, 1, 2, 3, 4, 5]
    assert rungs[0]["auc"] == main["auc"]["value"] and rungs[0]["detected"] == main["recall"]
  # One step by hand: every example damaged as it is stored, windows put together by file.
  detector = Detector(model)
  held_out = data.held_out(
    dataclasses.replace(detector.config.data, datasets=("real_fake_folder",)), "test", data_dir=prepared
  )
  of_file: dict[str, list[float]] = {}
  labels = {}
  for i in range(len(held_out)):
    element = held_out.source[i]
    dark = np.clip(np.rint(element["faces"] * 0.35), 0, 255).astype(np.uint8)
    crops = faces.eval_crop(dark)[None]
    logit = detector.judge({"crops": crops, "crop_mask": np.ones((1, 1), bool)}).logits[0]
    file = element["id"].rpartition("#")[0]
    of_file.setdefault(file, []).append(logit)
    labels[file] = int(element["face_label"])
  expected = roc_auc_score(list(labels.values()), [np.mean(of_file[file]) for file in labels])
  assert found["robustness"]["contrast"][5]["auc"] == pytest.approx(expected)


def test_pairs_are_scored_under_damage_and_a_limit_is_kept(model, prepared_dataset):
  found = scoring.evaluate_model(
    model, data_dir=prepared_dataset, draws=DRAWS, perturbations=["blur"], perturb_limit=3
  )
  about = found["robustness_of"]
  assert (about["set"], about["examples"], about["of_examples"]) == ("pairs", 3, 6)
  assert about["count"]["real"] == about["count"]["fake"] <= 3
  assert len(found["robustness"]["blur"]) == 6


def test_damage_to_sound_is_left_out_where_there_is_none(prepared, tmp_path):
  config = override(tiny_config(), 'model.branches=["tiny", "tiny_voice"]')
  folder = write_model(tmp_path / "both", sound_calibration=OF_SOUND, config=config)
  found = scoring.evaluate_model(
    folder,
    datasets=["real_fake_folder"],
    data_dir=prepared,
    draws=DRAWS,
    perturbations=["noise", "mp3"],
    perturb_limit=2,
  )
  assert list(found["robustness"]) == ["noise"]


def test_damage_that_cannot_be_done_is_told_before_anything_is_scored(model, files, prepared):
  settings = {"datasets": ["real_fake_folder"], "data_dir": prepared}
  with pytest.raises(ValueError, match="Unknown perturbation 'fog'"):
    scoring.evaluate_model(model, perturbations=["fog"], **settings)
  with pytest.raises(ValueError, match="changes what this model reads"):
    scoring.evaluate_model(model, perturbations=["opus"], **settings)
  with pytest.raises(ValueError, match="detect --stability"):
    scoring.evaluate_model(model, perturbations=["blur"], media_files=files, **settings)


def test_of_files_of_ones_own_it_is_told_that_nothing_is_known(model, files):
  of_own = scoring.evaluate_model(
    model, datasets=[protocols.OWN_FILES], media_files=files, split="all", frames=4, draws=DRAWS
  )
  assert "is not known" in of_own["notes"][0]
  assert of_own["cost"]["decoder_peak_memory_bytes"] > 1e7
