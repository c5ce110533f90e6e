import jax
import numpy as np
import pytest
from tiny import tiny_batch, tiny_branch, write_model

from deepscan_jax import checkpoints
from deepscan_jax.inference import load_detector


def test_a_bfloat16_copy_is_smaller_and_gives_nearly_the_same_scores(tmp_path):
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
