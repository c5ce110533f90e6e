import jax
import numpy as np
import pytest
from skimage import data
from tiny import tiny_batch, tiny_branch, write_model

from deepscan_jax import checkpoints
from deepscan_jax.inference import DEFAULT_MODEL, load_detector


def test_a_bfloat16_copy_of_all_kernels_gives_nearly_the_same_scores(tmp_path, monkeypatch):
  monkeypatch.setattr(checkpoints, "NARROW_FROM", 2)
  source = write_model(tmp_path / "model")
  checkpoints.export_model(source, tmp_path / "small", dtype="bfloat16")
  batch = {key: tiny_batch(4)[key] for key in ("crops", "crop_mask")}
  with tiny_branch():
    before, after = load_detector(source), load_detector(tmp_path / "small")
    ours, theirs = before.judge(batch).logits, after.judge(batch).logits
  assert before.metadata["sha256"] != after.metadata["sha256"]
  np.testing.assert_allclose(theirs, ours, atol=0.02)
  assert (theirs != ours).any()
  assert before.calibration == after.calibration
  params = checkpoints.read_params(tmp_path / "small")
  assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype(np.float32)}


def test_a_bfloat16_copy_of_the_default_model_is_half_as_large_and_its_probabilities_stay(tmp_path):
  checkpoints.export_model(DEFAULT_MODEL, tmp_path / "small", dtype="bfloat16")
  assert checkpoints.folder_bytes(tmp_path / "small") < 0.6 * checkpoints.folder_bytes(DEFAULT_MODEL)
  portrait = data.astronaut()[0:224, 110:334]
  rng = np.random.default_rng(0)
  crops = np.stack([np.roll(portrait, shift, axis=(0, 1)) for shift in rng.integers(-20, 20, (8, 2))])
  batch = {"crops": crops[:, None], "crop_mask": np.ones((8, 1), bool)}
  before, after = load_detector(), load_detector(tmp_path / "small")
  ours, theirs = (d.calibration.probability(d.judge(batch).logits) for d in (before, after))
  assert 0 < np.abs(ours - theirs).max() < 0.01


def test_a_float32_copy_gives_the_same_scores(tmp_path):
  source = write_model(tmp_path / "model")
  checkpoints.export_model(source, tmp_path / "copy", dtype="float32")
  for ours, theirs in zip(
    *(jax.tree.leaves(checkpoints.read_params(f)) for f in (source, tmp_path / "copy")), strict=True
  ):
    np.testing.assert_array_equal(ours, theirs)


def test_nothing_is_overwritten(tmp_path):
  source = write_model(tmp_path / "model")
  (tmp_path / "there").mkdir()
  with pytest.raises(checkpoints.CheckpointError, match="exists"):
    checkpoints.export_model(source, tmp_path / "there", dtype="bfloat16")
