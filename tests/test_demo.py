import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deepscan_jax import media
from deepscan_jax.launch import demo

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def portrait():
  return demo.sample_portrait()


@pytest.fixture(scope="module")
def forged(portrait):
  return demo.forge_face(portrait, seed=demo.SEED)


def test_the_forgery_changes_the_face_and_nothing_else(portrait, forged):
  difference = np.abs(forged.astype(int) - portrait).max(-1)
  rows, columns = np.flatnonzero(difference.max(1)), np.flatnonzero(difference.max(0))
  # The face of the portrait spans about x 290 to 420 and y 90 to 280.
  assert 40 < rows[0] < 140 and 230 < rows[-1] < 330
  assert 220 < columns[0] < 320 and 380 < columns[-1] < 480
  assert difference[120:250, 310:400].mean() > 2


def test_a_seed_makes_the_same_forgery_and_another_seed_another_one(portrait, forged):
  assert np.array_equal(demo.forge_face(portrait, seed=demo.SEED), forged)
  assert not np.array_equal(demo.forge_face(portrait, seed=demo.SEED + 1), forged)


def test_a_picture_without_a_face_is_refused():
  with pytest.raises(ValueError, match="one face, found 0"):
    demo.forge_face(np.full((200, 200, 3), 128, np.uint8), seed=0)


def test_the_camera_moves_slowly_and_shows_only_the_picture(portrait):
  frames = demo.move_camera(portrait)
  assert len(frames) == 75
  assert all(frame.shape == (480, 480, 3) and frame.dtype == np.uint8 for frame in frames)
  steps = [np.abs(b.astype(int) - a).mean() for a, b in itertools.pairwise(frames)]
  assert 0.5 < np.mean(steps) < 12 and max(steps) < 20


def test_a_clip_reads_back_as_it_was_written(portrait, tmp_path):
  frames = demo.move_camera(portrait)
  demo.write_clip(tmp_path / "a.mp4", frames)
  clip = media.decode_clip(tmp_path / "a.mp4", plan=media.SamplingPlan(frame_count=3))
  assert clip.frames.shape == (3, 480, 480, 3)
  for frame, time_s in zip(clip.frames, clip.frame_times_s, strict=True):
    original = frames[round(time_s * demo.FRAMES_PER_SECOND)]
    assert np.abs(frame.astype(int) - original).mean() < 4


@pytest.mark.parametrize(
  ("real", "forged", "code"), [(0.1, 0.9, 0), (0.1, 0.1, 1), (0.9, 0.1, 1), (None, 0.9, 1), (0.1, None, 1)]
)
def test_the_demo_fails_unless_the_forged_clip_scores_higher(real, forged, code, capsys):
  assert demo.judge(real, forged) == code
  told = capsys.readouterr()
  assert bool(told.out) == (code == 0) and bool(told.err) == (code == 1)


def test_the_demo_from_end_to_end(tmp_path):
  done = subprocess.run(
    [sys.executable, "-m", "launch", "demo", f"--output-dir={tmp_path}"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  scores = {}
  for name in (demo.REAL, demo.FORGED):
    facts = json.loads((tmp_path / f"{name}.json").read_text())
    scores[name] = facts["deepfake_probability"]
    assert facts["people"][0]["frames_judged"] >= 20
    page = (tmp_path / f"{name}.html").read_text()
    assert f"{name}.mp4" in page and page.count("data:image/jpeg") >= 20
    assert str(tmp_path / f"{name}.html") in done.stdout
  assert scores[demo.FORGED] > scores[demo.REAL]
