import json

import numpy as np
import pytest

from deepscan_jax import checkpoints
from deepscan_jax.checkpoints import CheckpointError

FACTS = {"name": "small", "version": "1", "config": {}}


def parameters(seed: int = 0) -> dict:
  rng = np.random.default_rng(seed)
  kernel = rng.normal(size=(3, 4)).astype(np.float32)
  return {"params": {"dense": {"kernel": kernel}}, "batch_stats": {"norm": {"mean": kernel[0]}}}


@pytest.fixture
def folder(tmp_path):
  checkpoints.save_model(tmp_path / "best", params=parameters(), model=FACTS)
  return tmp_path / "best"


def data_file(folder):
  """The file of the parameters that holds the most."""
  return max((p for p in (folder / "params").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_a_model_comes_back_as_it_was_saved(folder):
  facts = checkpoints.read_model(folder)
  assert {key: facts[key] for key in FACTS} == FACTS and len(facts["sha256"]) == 64
  restored = checkpoints.read_params(folder)
  np.testing.assert_array_equal(
    restored["params"]["dense"]["kernel"], parameters()["params"]["dense"]["kernel"]
  )
  np.testing.assert_array_equal(
    restored["batch_stats"]["norm"]["mean"], parameters()["batch_stats"]["norm"]["mean"]
  )


def test_no_file_says_where_the_model_was_saved(folder):
  place = str(folder.parent).encode()
  assert not [path.name for path in folder.rglob("*") if path.is_file() and place in path.read_bytes()]


def test_a_single_changed_bit_is_found(folder):
  file = data_file(folder)
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 1
  file.write_bytes(content)
  with pytest.raises(
    CheckpointError, match=rf"damaged: params/.*{file.name} differ.*fetch or write it again"
  ):
    checkpoints.read_model(folder)


def test_a_missing_file_is_found(folder):
  data_file(folder).unlink()
  with pytest.raises(CheckpointError, match="damaged"):
    checkpoints.read_model(folder)


def test_a_file_too_many_is_found(folder):
  (folder / "params" / "more").write_text("")
  with pytest.raises(CheckpointError, match="params/more"):
    checkpoints.read_model(folder)


def test_changed_facts_are_found(folder):
  file = folder / checkpoints.MODEL_FILE
  file.write_text(file.read_text().replace("small", "large"))
  with pytest.raises(CheckpointError, match=r"model\.json"):
    checkpoints.read_model(folder)


@pytest.mark.parametrize("name", [checkpoints.MODEL_FILE, checkpoints.MANIFEST_FILE])
def test_a_folder_that_is_no_model_is_refused_in_one_sentence(folder, name):
  (folder / name).write_text("{")
  with pytest.raises(CheckpointError, match="damaged"):
    checkpoints.read_model(folder)
  (folder / name).unlink()
  with pytest.raises(CheckpointError, match=rf"No model at {folder}: a model folder holds"):
    checkpoints.read_model(folder)


def test_new_facts_change_the_hash_and_stay_valid(folder):
  before = checkpoints.read_model(folder)
  checkpoints.write_model_json(folder, {**FACTS, "calibration": {"scale": 2.0}})
  after = checkpoints.read_model(folder)
  assert after["calibration"] == {"scale": 2.0} and after["sha256"] != before["sha256"]


def test_the_hash_is_of_the_content_alone(folder, tmp_path):
  manifest = json.loads((folder / checkpoints.MANIFEST_FILE).read_text())
  assert set(manifest) == {
    p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json"
  }
  moved = folder.rename(tmp_path / "elsewhere")
  assert checkpoints.read_model(moved)["name"] == "small"


def test_a_model_is_replaced_whole_or_not_at_all(folder, monkeypatch):
  def fail(*_):
    raise OSError("no space left")

  with monkeypatch.context() as patch:
    patch.setattr(checkpoints, "write_model_json", fail)
    with pytest.raises(OSError, match="no space left"):
      checkpoints.save_model(folder, params=parameters(1), model={**FACTS, "name": "next"})
  assert checkpoints.read_model(folder)["name"] == "small"
  checkpoints.save_model(folder, params=parameters(1), model={**FACTS, "name": "next"})
  assert checkpoints.read_model(folder)["name"] == "next"
  assert [p.name for p in folder.parent.iterdir()] == ["best"]


def test_parameters_that_cannot_be_read_are_refused(folder):
  data_file(folder).unlink()
  with pytest.raises(CheckpointError, match="again"):
    checkpoints.read_params(folder / "nothing")
