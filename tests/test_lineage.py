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
  assert lineage.notes(trainings, {"dfdc": "1" * 64}, "test", division=never) == []
  (said,) = lineage.notes(trainings, {"celeb_df": None}, "all", division=never)
  assert "is not known" in said


def never(name: str) -> str:
  raise AssertionError(f"There is no need to read all of {name}.")


def test_what_a_model_knows_needs_no_folder(tmp_path):
  known = [{"name": "a", "version": "1", "datasets": {"celeb_df": {"build": "1" * 64, "division": "a" * 64}}}]
  first = model(tmp_path / "first", "celeb_df", known=known)
  of_this = {"version": "2", "builds": {"dfdc": "2" * 64}, "divisions": {"dfdc": "b" * 64}}
  config = config_of("dfdc", start_from=first)
  datasets = {"dfdc": {"build": "2" * 64, "division": "b" * 64}}
  assert lineage.begun(config, **of_this) == [
    {"name": config.name, "version": "2", "datasets": datasets},
    *known,
  ]
  with pytest.raises(checkpoints.CheckpointError):
    lineage.begun(config_of("dfdc", start_from="gone"), **of_this)
  assert lineage.begun(config_of("dfdc"), **of_this)[1:] == []


def test_another_division_of_what_a_model_was_trained_on_is_noted():
  def training(build: str, division: str) -> dict:
    known = {"build": build * 64, "division": division * 64}
    return {"name": "a", "version": "1", "datasets": {"celeb_df": known}}

  trainings = [training("1", "a"), training("1", "a")]
  assert lineage.notes(trainings, {"celeb_df": "1" * 64, "dfdc": "3" * 64}, "test", division=never) == []
  # Built on another machine, and divided alike or not.
  assert lineage.notes(trainings, {"celeb_df": "2" * 64}, "test", division=lambda _: "a" * 64) == []
  (said,) = lineage.notes(trainings, {"celeb_df": "2" * 64}, "test", division=lambda _: "b" * 64)
  assert "celeb_df as it was divided otherwise" in said
  (said,) = lineage.notes(
    [*trainings, training("2", "b")], {"celeb_df": "2" * 64}, "test", division=lambda _: "b" * 64
  )
  assert "divided otherwise" in said
