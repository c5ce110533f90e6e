import numpy as np
import pytest

from deepscan_jax import levels
from deepscan_jax.inference import deciding_person
from deepscan_jax.levels import FACES, SOUND, Rows


def row(example_id: str, score: float, *, label: int = 0, dataset: str = "set", **facts) -> dict:
  """A window of an example of this id; "~" before "#" stands for nothing."""
  file, place = f"{dataset}:{levels.file_of(example_id)}", example_id.rpartition("#")[2]
  return {
    "id": f"{file}#{place}",
    "file": file,
    "dataset": dataset,
    "group": f"{dataset}/{file}",
    "source": "source",
    "method": "swap" if label else "",
    "part": levels.part_of_track(levels.track_of(example_id)),
    "condition": "untouched",
    "label": label,
    "score": score,
    "called": score >= 2,
    "doubtful": 1 <= score < 2,
    "face_size_px": np.nan,
    "sharpness": np.nan,
  } | facts


def outcome(part: str, score: float) -> tuple[bool, bool]:
  """Sound is called manipulated earlier than faces are."""
  manipulated = 2 if part == FACES else 1
  return score >= manipulated, manipulated - 1 <= score < manipulated


def put_together(*rows: dict) -> dict[str, Rows]:
  return levels.aggregate(Rows.of(rows), decide=deciding_person, outcome=outcome)


@pytest.mark.parametrize(
  ("example_id", "file", "track"),
  [
    ("real/anna/1.mp4#0.12", "real/anna/1.mp4", "0"),
    ("a#b/take#2.mp4#11.0", "a#b/take#2.mp4", "11"),
    ("voices/x.wav#sound.3", "voices/x.wav", "sound"),
  ],
)
def test_an_id_says_its_file_and_its_track(example_id, file, track):
  assert levels.file_of(example_id) == file and levels.track_of(example_id) == track


def test_clips_of_one_name_in_different_folders_and_datasets_are_different_videos():
  found = put_together(
    row("real/anna/001.mp4#0.0", 0.0),
    row("real/ben/001.mp4#0.0", 1.0),
    row("fake/swap/anna/001.mp4#0.0", 3.0, label=1),
    row("real/anna/001.mp4#0.0", 4.0, dataset="other"),
  )
  assert found["video"].score.tolist() == [0.0, 1.0, 3.0, 4.0]
  assert len(set(found["video"].file)) == 4


def test_scores_of_a_track_are_means_and_the_highest_person_decides():
  found = put_together(
    *(row(f"a.mp4#0.{i}", score) for i, score in enumerate((0.0, 1.0, 2.0, 3.0))),
    *(row(f"a.mp4#1.{i}", score) for i, score in enumerate((2.0, 2.0, 3.0, 3.0))),
    row("b.mp4#0.0", -1.0),
  )
  assert found["track"].score.tolist() == [1.5, 2.5, -1.0]
  assert found["video"].score.tolist() == [2.5, -1.0]
  assert found["video"].called.tolist() == [True, False]
  assert len(found["window"]) == len(found["frame"]) == 9


def test_somebody_who_is_seen_for_a_moment_does_not_decide():
  found = put_together(*(row(f"a.mp4#0.{i}", 0.0) for i in range(20)), row("a.mp4#1.0", 9.0))
  assert found["video"].score.tolist() == [0.0]
  assert not found["video"].called[0]


@pytest.mark.parametrize(
  ("face", "sound", "part"),
  [(0.5, 1.2, SOUND), (2.5, 1.2, FACES), (-3.0, -1.0, FACES), (1.5, 0.5, FACES), (-3.0, 0.5, FACES)],
)
def test_sound_decides_only_where_it_alone_is_called(face, sound, part):
  found = put_together(row("a.mp4#0.0", face), row("a.mp4#sound.0", sound, label=1))
  video = found["video"]
  assert video.part.tolist() == [part]
  assert video.score.tolist() == [face if part == FACES else sound]
  # Whatever decides: a video with a forged voice is a forgery.
  assert video.label.tolist() == [1] and video.method.tolist() == ["swap"]


def test_frames_are_faces_alone():
  found = put_together(row("a.mp4#0.0", 0.0), row("a.mp4#sound.0", 0.0))
  assert found["frame"].part.tolist() == [FACES] and len(found["window"]) == 2


def test_each_twin_is_a_video():
  names = {
    levels.twin_file("set:a.png", condition=c, label=label) for c in ("plain", "degraded") for label in (0, 1)
  }
  assert len(names) == 4


def test_buckets():
  values = np.array([10.0, 64.0, 255.9, 256.0, np.nan])
  assert levels.bucket(values, levels.FACE_SIZE_BUCKETS).tolist() == [
    "below 64 px",
    "64 to 128 px",
    "128 to 256 px",
    "256 px or more",
    "unknown",
  ]


def test_rows_can_be_joined_though_some_are_none():
  rows = Rows.of([row("a.mp4#0.0", 1.0)])
  assert len(Rows.join([rows, Rows.of([]), rows.take(np.array([False]))])) == 1
  assert len(levels.join([levels.empty(), levels.empty()])["video"]) == 0
