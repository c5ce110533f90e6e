"""The tables of the model card and the README are those of the evaluation card in the repository."""

import hashlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from deepscan_jax import checkpoints, lineage
from deepscan_jax.inference import DEFAULT_MODEL
from deepscan_jax.launch import voice_engines
from deepscan_jax.launch.resynthesise import HELD_OUT
from deepscan_jax.resynthesis import BUILDS

ROOT = Path(__file__).resolve().parents[1]
CARD = ROOT / "deepscan_jax/weights/cards/faces_test.json"
VOICE_CARD = ROOT / "deepscan_jax/weights/cards/voice_test.json"
# The model that the faces' cards are of, version 0.4.0, and a hash of all that it judges faces by.
FACES_CARD_MODEL = "a9061817c1573e751e79e8490e36062c0d3e42a234730cb64931d2a4c698ebc5"
FACES = "439bf1be97bd836e2f7272b713d7f7970869ba26da8cc1f1fa0e3a6d40ffa014"
REBUILT_CARD = ROOT / "deepscan_jax/weights/cards/rebuilt_test.json"
# What `deepscan benchmark voices --output_json=...` wrote.
LEFT_OUT = ROOT / "deepscan_jax/weights/cards/voices_left_out.json"
MODEL_CARD, README = ROOT / "deepscan_jax/weights/MODEL_CARD.md", ROOT / "README.md"
PAIRS = {
  "plain, face": "blended into itself, plain",
  "degraded, face": "blended into itself, degraded",
  "plain, swap": "another person's face, plain",
  "degraded, swap": "another person's face, degraded",
  "all": "all",
}


@pytest.fixture(scope="module")
def card():
  return json.loads(CARD.read_text(encoding="utf-8"))


def pair_row(card: dict, kind: str) -> str:
  figures = card["pairs"][kind]
  low, high = figures["auc_interval"]
  found = card["detected"][kind]
  return (
    f"| {PAIRS[kind]} | {figures['count']} | {figures['auc']:.3f} | {low:.3f} to {high:.3f} | "
    f"{figures['paired_accuracy']:.3f} | {100 * found:.1f} % |"
  )


def alarm_row(card: dict, source: str) -> str:
  figures = card["false_alarms"][source]
  low, high = (100 * end for end in figures["interval"])
  return f"| {source} | {figures['count']} | {100 * figures['rate']:.1f} % | {low:.1f} to {high:.1f} % |"


def synthetic_row(card: dict) -> str:
  # All fakes of the test split are of this generator.
  figures = card["results"]["labelled"]["levels"]["video"]
  auc, recall = figures["auc"], figures["recall"]
  low, high = auc["interval"]
  least, most = (100 * end for end in recall["interval"])
  return (
    f"| MobileStyleGAN | {figures['count']['fake']} | {auc['value']:.3f} | {low:.3f} to {high:.3f} | "
    f"{100 * recall['value']:.1f} % | {least:.1f} to {most:.1f} % |"
  )


def ladder_row(card: dict, damage: str) -> str:
  return f"| {damage} | " + " | ".join(f"{rung['auc']:.2f}" for rung in card["robustness"][damage]) + " |"


def ladder_alarms(card: dict, damage: str) -> str:
  rates = (rung["false_alarms"]["value"] for rung in card["robustness"][damage])
  return f"| {damage} | " + " | ".join(f"{100 * rate:.0f} %" for rate in rates) + " |"


def test_the_card_is_of_the_faces_that_ship(card):
  assert card["model"]["sha256"] == FACES_CARD_MODEL
  assert card["split"] == "test"


def test_the_model_knows_what_it_was_trained_on(card):
  known = lineage.trained_on(checkpoints.read_model(DEFAULT_MODEL)["lineage"])
  assert (
    set(card["datasets"]) < set(known) == {"real_only", "real_fake_folder", "real_fake_folder/resynthesised"}
  )
  assert all(any(training["division"] for training in trainings) for trainings in known.values())


def rebuilt_row(name: str, figures: dict) -> str:
  only = f" ({HELD_OUT[name]} only)" if name in HELD_OUT else ""
  auc, recall = figures["auc"]["value"], figures["recall"]["value"]
  return f"| {name}{only} | {figures['count']['fake']} | {auc:.2f} | {100 * recall:.0f} % |"


def test_rebuilt_pictures():
  card, said = json.loads(REBUILT_CARD.read_text(encoding="utf-8")), MODEL_CARD.read_text(encoding="utf-8")
  readme = README.read_text(encoding="utf-8")
  assert card["model"]["sha256"] == FACES_CARD_MODEL
  assert card["split"] == "test" and card["datasets"] == ["real_only", "real_fake_folder/resynthesised"]
  builds = card["results"]["labelled"]["by"]["method"]
  assert set(builds) == set(BUILDS) - {"shuffle4"}
  for name, figures in builds.items():
    assert rebuilt_row(name, figures) in said
  assert rebuilt_row("bilinear8", builds["bilinear8"]) in readme


@pytest.mark.parametrize("kind", PAIRS)
def test_pairs(card, kind):
  assert pair_row(card, kind) in MODEL_CARD.read_text(encoding="utf-8")


@pytest.mark.parametrize("source", ["ffhq512", "utkface", "web_faces"])
def test_false_alarms(card, source):
  assert alarm_row(card, source) in MODEL_CARD.read_text(encoding="utf-8")


def test_synthetic_faces(card):
  assert synthetic_row(card) in MODEL_CARD.read_text(encoding="utf-8")


def test_faces_under_damage(card):
  said, about = MODEL_CARD.read_text(encoding="utf-8"), card["robustness_of"]
  assert about["set"] == "labelled" and card["datasets"] == ["real_only", "real_fake_folder"]
  fakes, reals = about["count"]["fake"], about["count"]["real"]
  assert f"beside real ones, {fakes} and {reals} of them" in " ".join(said.split())
  for damage in card["robustness"]:
    assert ladder_row(card, damage) in said
    assert ladder_alarms(card, damage) in said


def test_the_readme_says_the_same(card):
  readme = README.read_text(encoding="utf-8")
  for kind in PAIRS:
    assert pair_row(card, kind) in readme
  assert synthetic_row(card) in readme
  for source in ("ffhq512", "utkface", "web_faces"):
    assert alarm_row(card, source) in readme


def test_what_is_said_of_region_maps(card):
  gains, readme = card["faithfulness"]["gain"], " ".join(README.read_text(encoding="utf-8").split())
  for way in ("deletion", "insertion"):
    for against in ("random", "other"):
      value, (low, high) = gains[way][against]["value"], gains[way][against]["interval"]
      assert f"{value:.2f} ({low:.2f} to {high:.2f})" in readme, (way, against)


def test_the_model_makes_pseudo_fakes_of_all_that_it_judges():
  config = checkpoints.read_model(DEFAULT_MODEL)["config"]
  assert {"spatial", "audio"} == set(config["model"]["branches"])
  assert {"face", "voice"} <= {kind for kind, weight in config["data"]["pseudofake_kinds"] if weight}


def test_what_the_voice_calls_on_validation():
  rates = checkpoints.read_model(DEFAULT_MODEL)["sound_calibration"]["rates"]
  (_, fake_doubtful, fake_called), (_, real_doubtful, real_called) = rates["fake"], rates["real"]
  said = " ".join(MODEL_CARD.read_text(encoding="utf-8").split())
  assert (
    f"{100 * fake_called:.1f} % of the synthetic stretches of 4 s are called manipulated and "
    f"{100 * fake_doubtful:.1f} % are *inconclusive*; of the real ones {100 * real_called:.1f} % and "
    f"{100 * real_doubtful:.1f} %"
  ) in said


def test_the_faces_are_the_ones_that_their_cards_are_of():
  """The voice is another since; all that a face is judged by has not changed by a bit."""
  facts, variables = checkpoints.read_model(DEFAULT_MODEL), checkpoints.read_params(DEFAULT_MODEL)
  digest = hashlib.sha256()
  for part in ("params.spatial", "params.fusion", "batch_stats.spatial"):
    collection, name = part.split(".")
    for path, value in jax.tree_util.tree_leaves_with_path(variables[collection][name]):
      digest.update(f"{part}{jax.tree_util.keystr(path)}".encode() + np.asarray(value).tobytes())
  digest.update(json.dumps(facts["calibration"], sort_keys=True).encode())
  assert digest.hexdigest() == FACES


def test_the_voice_on_its_test_split():
  card = json.loads(VOICE_CARD.read_text(encoding="utf-8"))
  said = MODEL_CARD.read_text(encoding="utf-8")
  assert card["model"]["sha256"] == checkpoints.read_model(DEFAULT_MODEL)["sha256"]
  assert card["split"] == "test"
  found = card["results"]["labelled"]
  for name, figures in {**found["by"]["method"], "all": found["levels"]["video"]}.items():
    assert voice_row(name, figures) in said
  real = found["levels"]["video"]
  assert f"{real['count']['real']} real files" in " ".join(said.split())
  assert real["false_positive_rate"]["value"] == 0 and "none of them was called manipulated" in " ".join(
    said.split()
  )


def voice_row(name: str, figures: dict) -> str:
  auc, recall, count = figures["auc"], figures["recall"]["value"], figures["count"]["fake"]
  auc = auc["value"] if isinstance(auc, dict) else auc
  return f"| {name} | {count} | {auc:.2f} | {100 * recall:.0f} % |"


def test_voices_of_engines_and_recordings_that_were_left_out():
  said, readme = MODEL_CARD.read_text(encoding="utf-8"), " ".join(README.read_text(encoding="utf-8").split())
  rows = json.loads(LEFT_OUT.read_text(encoding="utf-8"))
  engines = [row for row in rows if "engine" in row]
  kinds = [row for row in rows if "source" in row]
  assert len(engines) == 21 and len(kinds) == 4
  for row in engines:
    name = row["engine"] + (f" ({', '.join(row['related'])})" if row["related"] else "")
    # Each is the mean of the seeds, the least and the most.
    (auc, low, high), recall = row["auc"], row["recall"][0]
    assert f"| {name} | {row['files']} | {auc:.2f} | {low:.2f} to {high:.2f} | {100 * recall:.0f} % |" in said
  for row in kinds:
    rate, low, high = (100 * value for value in row["false_alarms"])
    assert f"| {row['source']} | {row['files']} | {rate:.1f} % | {low:.1f} to {high:.1f} % |" in said
  auc, recall = (sum(row[key][0] for row in engines) / len(engines) for key in ("auc", "recall"))
  assert f"with an AUC of {auc:.2f} in the mean of 21 engines" in readme
  assert f"it finds {100 * recall:.0f} % of the synthetic ones" in readme


def test_how_many_engines_there_are():
  readme = " ".join(README.read_text(encoding="utf-8").split())
  engines, vocoders = len(voice_engines.ENGINES), len(voice_engines.VOCODERS)
  assert (
    f"{engines} speech engines, from formants to networks, and copies of the recordings by {vocoders}"
    in readme
  )
  rows = json.loads(LEFT_OUT.read_text(encoding="utf-8"))
  assert {row["engine"] for row in rows if "engine" in row} == {
    *voice_engines.ENGINES,
    *voice_engines.VOCODERS,
  }
