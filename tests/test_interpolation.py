"""A model between two others: its parameters, and what is known of it."""

import dataclasses

import jax
import numpy as np
import pytest
from absl import app
from absl.testing import flagsaver
from tiny import CALIBRATION, tiny_branch, tiny_config, write_model

from deepscan_jax import checkpoints
from deepscan_jax.config import override
from deepscan_jax.interpolation import interpolate
from deepscan_jax.launch import interpolate as verb

TWO = dataclasses.replace(
  tiny_config(), model=dataclasses.replace(tiny_config().model, branches=("tiny", "tiny_voice"))
)


def changed(source, folder, *branches):
  """A copy of a model of which these parts have other parameters."""
  facts = {key: value for key, value in checkpoints.read_model(source).items() if key != "sha256"}
  variables = checkpoints.read_params(source)
  params = dict(variables["params"])
  for name in branches:
    params[name] = jax.tree.map(lambda x: x + 1, params[name])
  training = {"name": "after", "version": "1", "datasets": {"more": {"build": None, "division": None}}}
  facts |= {"lineage": [training, *facts.get("lineage", [])], "training": {"auc": 0.9}}
  checkpoints.save_model(folder, params={**variables, "params": params}, model=facts)
  return folder


@pytest.fixture
def start(tmp_path):
  with tiny_branch():
    yield write_model(tmp_path / "start", config=TWO, sound_calibration=CALIBRATION)


def test_parameters_lie_on_the_line(start, tmp_path):
  end = changed(start, tmp_path / "end", "tiny")
  interpolate(start, end, tmp_path / "between", share=0.25)
  before, between = (checkpoints.read_params(path)["params"] for path in (start, tmp_path / "between"))
  for name in before:
    by = 0.25 if name == "tiny" else 0.0
    jax.tree.map(
      lambda a, b, by=by: np.testing.assert_allclose(b, a + by, atol=1e-6), before[name], between[name]
    )


@pytest.mark.parametrize(
  ("parts", "kept"),
  [
    (("tiny",), {"sound_calibration"}),
    (("tiny_voice",), {"calibration"}),
    (("fusion",), set()),
    ((), {"calibration", "sound_calibration"}),
  ],
)
def test_what_did_not_change_keeps_its_calibration(parts, kept, start, tmp_path):
  made = interpolate(start, changed(start, tmp_path / "end", *parts), tmp_path / "between", share=0.5)
  assert {key for key in ("calibration", "sound_calibration") if key in made} == kept
  written = checkpoints.read_model(tmp_path / "between")
  assert written["interpolation"]["share"] == 0.5 and written["training"] == {}
  assert written["interpolation"]["start"] == checkpoints.read_model(start)["sha256"]
  # It knows what both were shown.
  assert [training["name"] for training in written["lineage"]] == ["after", "tiny"]


def test_what_cannot_be_is_said(start, tmp_path):
  with pytest.raises(ValueError, match="share of the way must be 0 to 1; got 2"):
    interpolate(start, start, tmp_path / "between", share=2)
  with tiny_branch():
    other = write_model(tmp_path / "other", config=override(TWO, "model.features=32"))
  with pytest.raises(ValueError, match="are of different networks"):
    interpolate(start, other, tmp_path / "between", share=0.5)
  with (
    flagsaver.flagsaver(start=None, end=None, output=None),
    pytest.raises(app.UsageError, match="--end=FOLDER"),
  ):
    verb.main(["interpolate"])
  paths = {"start": str(start), "end": str(start), "output": str(tmp_path)}
  with (
    flagsaver.flagsaver(**paths),
    pytest.raises(app.UsageError, match="holds something else; choose another folder"),
  ):
    verb.main(["interpolate"])


def test_the_verb_says_what_is_to_be_calibrated(start, tmp_path, capsys):
  end, output = changed(start, tmp_path / "end", "tiny"), tmp_path / "between"
  with flagsaver.flagsaver(start=str(start), end=str(end), share=0.6, output=str(output)):
    assert verb.main(["interpolate"]) == 0
  assert capsys.readouterr().out == f"{output}; sound_calibration kept. Calibrate the rest.\n"
  assert checkpoints.read_model(output)["interpolation"]["share"] == 0.6
  # Once more, as when what came after it was stopped.
  with flagsaver.flagsaver(start=str(start), end=str(end), share=0.6, output=str(output)):
    assert verb.main(["interpolate"]) == 0
  assert capsys.readouterr().out == f"{output} is there already.\n"
