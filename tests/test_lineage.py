"""What a model was trained on, by itself and before."""

import dataclasses

import pytest
import tiny

from deepscan_jax import checkpoints, lineage
from deepscan_jax.config import Config


def model(folder, *datasets: str, start_from: str = "", known: list | None = None):
  """A model as older versions wrote it, or with a lineage; returns its folder."""
  config = config_of(*datasets, start_from=start_from)
  tiny.write_model(folder, config=config)
  if known is not None:
    checkpoints.write_model_json(folder, {**_facts(folder), "lineage": known})
  return folder


def config_of(*datasets: str, start_from="") -> Config:
  config = tiny.tiny_config(start_from=str(start_from))
  return dataclasses.replace(config, data=dataclasses.replace(config.data, datasets=datasets))


def _facts(folder) -> dict:
  return {key: value for key, value in checkpoints.read_model(folder).items() if key != "sha256"}


def names(folder) -> list:
  found = lineage.trainings(checkpoints.read_model(folder))
  return [training["datasets"] and list(training["datasets"]) for training in found]


def test_of_older_models_the_last_training_is_known(tmp_path):
  first = model(tmp_path / "first", "celeb_df", "dfdc")
  assert names(first) == [["celeb_df", "dfdc"]]
  # What lies in that folder now may be another model.
  assert names(model(tmp_path / "second", "lav_df", start_from=first)) == [["lav_df"], None]


def test_what_is_not_known_is_said(tmp_path):
  own = model(tmp_path / "own", "dfdc", start_from=tmp_path / "gone")
  assert names(own) == [["dfdc"], None]
  trainings = lineage.trainings(checkpoints.read_model(own))
  assert set(lineage.trained_on(trainings)) == {"dfdc"}
  assert lineage.notes(trainings, {"celeb_df": None}, "test") == []
  (said,) = lineage.notes(trainings, {"celeb_df": None}, "all")
  assert "is not known" in said


def test_what_a_model_knows_needs_no_folder(tmp_path):
  known = [{"name": "a", "version": "1", "datasets": {"celeb_df": "1" * 64}}]
  first = model(tmp_path / "first", "celeb_df", known=known)
  config = config_of("dfdc", start_from=first)
  now = lineage.begun(config, version="2", builds={"dfdc": "2" * 64})
  assert now == [{"name": config.name, "version": "2", "datasets": {"dfdc": "2" * 64}}, *known]
  with pytest.raises(checkpoints.CheckpointError):
    lineage.begun(config_of("dfdc", start_from="gone"), version="2", builds={})
  assert lineage.begun(config_of("dfdc"), version="2", builds={})[1:] == []


def test_another_build_of_what_a_model_was_trained_on_is_noted():
  trainings = [
    {"name": "a", "version": "1", "datasets": {"celeb_df": "1" * 64, "dfdc": None}},
    {"name": "b", "version": "1", "datasets": {"celeb_df": "2" * 64}},
  ]
  for known in ("1", "2"):
    assert lineage.notes(trainings, {"celeb_df": known * 64, "dfdc": "3" * 64}, "test") == []
  (said,) = lineage.notes(trainings, {"celeb_df": "3" * 64, "lav_df": "4" * 64}, "test")
  assert "another build of celeb_df" in said
