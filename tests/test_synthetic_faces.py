"""The verb that makes faces: what it needs, what it writes, and that it goes on where it stopped."""

import importlib.util

import cv2
import numpy as np
import pytest
from absl import app
from absl.testing import flagsaver

from deepscan_jax.launch import synthetic_faces


@pytest.fixture
def generator(monkeypatch):
  """A stand-in: a style is four numbers, its picture a square of their colours."""
  made = []

  def style(rng):
    return rng.standard_normal((1, 4)).astype(np.float32)

  def synthesise(own):
    made.append(own)
    return np.full((8, 8, 3), np.clip(128 + 40 * own[0, :3], 0, 255).astype(np.uint8))

  monkeypatch.setattr(synthetic_faces, "_networks", lambda: (style, synthesise))
  return made


def faces(output, count, seed=3):
  with flagsaver.flagsaver(output=str(output), count=count, seed=seed):
    assert synthetic_faces.main(["synthetic_faces"]) == 0
  return {path.name: cv2.imread(str(path)) for path in sorted(output.iterdir())}


def test_a_seed_gives_the_same_faces_and_what_is_there_is_not_made_again(generator, tmp_path):
  five = faces(tmp_path / "a", 5)
  assert list(five) == [f"3_000{i}.png" for i in range(5)]
  assert len({picture.tobytes() for picture in five.values()}) == 5
  faces(tmp_path / "b", 2)
  generator.clear()
  again = faces(tmp_path / "b", 5)
  assert len(generator) == 3
  for name, picture in five.items():
    np.testing.assert_array_equal(again[name], picture)
  other = faces(tmp_path / "c", 1, seed=4)
  assert not np.array_equal(other["4_0000.png"], five["3_0000.png"])


def test_what_is_missing_is_said(tmp_path):
  if importlib.util.find_spec("random_face"):
    pytest.skip("the generator is installed")
  with (
    flagsaver.flagsaver(output=str(tmp_path), count=1, seed=0),
    pytest.raises(app.UsageError, match="pip install --no-deps random-face"),
  ):
    synthetic_faces.main(["synthetic_faces"])
  with flagsaver.flagsaver(output=None), pytest.raises(app.UsageError, match="--output=FOLDER"):
    synthetic_faces.main(["synthetic_faces"])
