import dataclasses

import cv2
import numpy as np
import pytest

from deepscan_jax import protocols
from deepscan_jax.faces.regions import LEFT_EYE, RIGHT_EYE
from deepscan_jax.media import SamplingPlan
from deepscan_jax.protocols import PRESETS

PROTOCOL = protocols.Protocol(
  train={"datasets": ["real_only"]},
  selection={"split": "validation", "metric": "auc"},
  media="prepared",
  preprocessing="own",
  frames=None,
  faces="who decides",
  aggregation="mean",
  level="video",
)


def facts(*datasets: str, start_from: str = "") -> dict:
  config = {
    "data": {"datasets": list(datasets), "pseudofakes": True},
    "train": {"metric": "auc", "start_from": start_from},
  }
  return {"config": config, "calibration": {"false_positive_rate": 0.05}}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(protocols.Protocol)])
def test_every_field_of_a_protocol_is_in_its_hash(field):
  changed = {"train": {"datasets": ["other"]}, "selection": {"split": "test"}, "frames": 16}.get(
    field, "other"
  )
  other = dataclasses.replace(PROTOCOL, **{field: changed})
  assert other.hash != PROTOCOL.hash
  assert any(text.startswith(field) for text in protocols.differences(PROTOCOL.to_dict(), other.to_dict()))
  assert dataclasses.replace(PROTOCOL).hash == PROTOCOL.hash


def test_pairs_that_are_made_in_another_way_are_another_protocol():
  model = facts("real_only")
  model["config"]["data"] |= {"blend": {"min_difference": 2.0}, "pseudofake_kinds": [["face", 1.0]]}
  same = facts("celeb_df", start_from="elsewhere")
  same["config"]["data"] |= {"pseudofake_kinds": [["face", 1.0]], "blend": {"min_difference": 2.0}}
  assert protocols.pairs_hash(model) == protocols.pairs_hash(same)
  for key, value in (("blend", {"min_difference": 10.0}), ("pseudofake_kinds", [["swap", 1.0]])):
    other = facts("real_only")
    other["config"]["data"] |= model["config"]["data"] | {key: value}
    assert protocols.pairs_hash(other) != protocols.pairs_hash(model)


def test_a_hash_does_not_depend_on_the_order_of_keys():
  values = PROTOCOL.to_dict()
  assert protocols.protocol_hash(dict(reversed(values.items()))) == PROTOCOL.hash


def test_a_model_is_not_evaluated_on_the_split_that_chose_it():
  for name in ("faceforensics/c23", "faceforensics/c40-clips"):
    with pytest.raises(
      ValueError, match=r"selected and calibrated with the validation split of faceforensics"
    ):
      protocols.check_split(["faceforensics/c23"], [name], "validation")
  with pytest.raises(ValueError, match=r"trained on the train split"):
    protocols.check_split(["real_only"], ["celeb_df", "real_only"], "train")
  with pytest.raises(ValueError, match=r"trained and selected with files of real_fake_folder"):
    protocols.check_split(["celeb_df", "real_fake_folder"], ["real_fake_folder"], "all")
  protocols.check_split(["faceforensics/c23"], ["faceforensics/c23"], "test")
  protocols.check_split(["faceforensics/c23"], ["av_deepfake1m"], "validation")


def test_the_protocol_of_a_model():
  train, selection = protocols.model_protocol(facts("b", "a"))
  assert train["datasets"] == ["a", "b"] and train["pseudofakes"]
  assert selection["split"] == "validation" and selection["threshold_false_positive_rates"] == {
    "calibration": 0.05
  }


def test_the_data_of_a_protocol_are_told_by_their_contents():
  def hashed(start_from: str, division: str, build: str = "0") -> str:
    datasets = {"real_only": {"build": build, "division": division}}
    trainings = [
      {"name": "x", "version": "1", "datasets": datasets},
      {"name": None, "version": None, "datasets": None},
    ]
    train, selection = protocols.model_protocol(
      facts("real_only", start_from=start_from) | {"lineage": trainings}
    )
    return dataclasses.replace(PROTOCOL, train=train, selection=selection).hash

  # Neither where it lay nor on which machine it was built.
  assert hashed("runs/a", "1" * 64) == hashed("elsewhere", "1" * 64, build="1")
  assert hashed("runs/a", "1" * 64) != hashed("runs/a", "2" * 64)


def test_unknown_names_are_told():
  assert protocols.find_preset("own") is None
  assert protocols.find_preset("sbi").frames == 32
  with pytest.raises(ValueError, match="own, ffpp, deepfakebench, sbi, dfdc"):
    protocols.find_preset("ff++")
  with pytest.raises(ValueError, match="largest"):
    protocols.chosen_faces(np.zeros((2, 4)), faces="smallest")


@pytest.mark.parametrize("available", [1, 2, 31, 32, 33, 100, 299, 300, 751, 1799])
def test_frames_of_published_protocols_are_those_of_linspace(available):
  plan = SamplingPlan(frame_count=32, ends=True)
  count = min(32, available)
  assert plan.choose(available) == np.linspace(0, available - 1, count, dtype=int).tolist()


def test_departures_are_told():
  for preset in PRESETS.values():
    said = preset.departures(size_px=224)
    assert "own detector" in said[0] and f"not at {preset.size_px} px" in said[1]
  assert len(PRESETS["sbi"].departures(size_px=380)) == 1


def test_which_faces_count():
  boxes = [[0, 0, 10, 10], [0, 0, 20, 20], [5, 5, 20, 19], [0, 0, 20, 20]]
  assert protocols.chosen_faces(boxes, faces="largest").tolist() == [False, True, False, False]
  assert protocols.chosen_faces(boxes, faces="half_of_largest").tolist() == [False, True, True, True]
  assert protocols.chosen_faces(boxes, faces="all").all()
  assert protocols.chosen_faces(np.zeros((0, 4)), faces="largest").shape == (0,)


def rectangle(name: str, box, *, width: int = 200, height: int = 150) -> tuple[int, int, int, int]:
  return protocols.rectangle(box, preset=PRESETS[name], width=width, height=height)


def test_rectangles_of_published_crops():
  box = (60.0, 40.0, 100.0, 90.0)
  # 1.3 times the longer side, 50: 65, around (80, 65).
  assert rectangle("ffpp", box) == (47, 32, 112, 97)
  # An eighth of 40 and of 50 on each side.
  assert rectangle("sbi", box) == (55, 33, 105, 96)
  # A third of 40 and of 50 on each side.
  assert rectangle("dfdc", box) == (46, 23, 113, 106)
  # At the edges of the frame: the square moves in and shrinks, the box is cut off.
  assert rectangle("ffpp", (0.0, 0.0, 40.0, 50.0)) == (0, 0, 65, 65)
  assert rectangle("ffpp", (170.0, 100.0, 200.0, 150.0)) == (152, 92, 200, 140)
  assert rectangle("sbi", (190.0, 140.0, 220.0, 160.0)) == (186, 137, 200, 150)


def picture(width: int = 200, height: int = 150) -> np.ndarray:
  rng = np.random.default_rng(0)
  return cv2.GaussianBlur(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), (9, 9), 3)


def mesh() -> np.ndarray:
  """Landmarks of which only what `five_points` reads is somewhere."""
  points = np.zeros((468, 3))
  points[list(RIGHT_EYE), :2] = (80, 60)
  points[list(LEFT_EYE), :2] = (110, 62)
  points[1, :2], points[61, :2], points[291, :2] = (95, 78), (84, 92), (106, 93)
  return points


@pytest.mark.parametrize("name", ["ffpp", "sbi"])
def test_crops_are_the_rectangle_at_another_size(name):
  frame, box = picture(), np.array([60.0, 40.0, 100.0, 90.0])
  crop = protocols.cut_face(frame, box=box, landmarks=mesh(), preset=PRESETS[name], size=112)
  left, top, right, bottom = rectangle(name, box)
  expected = cv2.resize(frame[top:bottom, left:right], (112, 112), interpolation=cv2.INTER_LINEAR)
  inside = np.s_[4:-4, 4:-4]
  assert np.abs(crop[inside].astype(int) - expected[inside]).max() <= 2


def test_a_padded_crop_keeps_its_shape_and_is_black_beside():
  frame, box = np.full((150, 200, 3), 200, np.uint8), np.array([80.0, 30.0, 110.0, 90.0])
  crop = protocols.cut_face(frame, box=box, landmarks=mesh(), preset=PRESETS["dfdc"], size=100)
  # 30 x 60 with a third of each on both sides: 50 x 100, so half of the crop is the face.
  assert (crop[:, :23] == 0).all() and (crop[:, -23:] == 0).all()
  assert (crop[2:-2, 30:70] == 200).all()


def test_the_template_is_that_of_the_published_alignment():
  # Its steps one by one: 112 px and 8 more to the right, scaled to 256, then drawn in by a margin of 0.3.
  template = np.array([[30.29, 51.70], [65.53, 51.50], [48.03, 71.74], [33.55, 92.37], [62.73, 92.20]])
  template[:, 0] += 8
  template = template * 256 / 112
  margin = 256 * 0.3 / 2
  expected = (template + margin) * 256 / (256 + 2 * margin)
  np.testing.assert_allclose(protocols.template(256, enlargement=1.3), expected)


def test_the_similarity_is_that_of_least_squares():
  rng = np.random.default_rng(0)
  source = rng.uniform(0, 100, (5, 2))
  angle = 0.4
  turn = 1.7 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
  target = source @ turn.T + (5, -3) + rng.normal(size=(5, 2))
  # x' = a x - b y + c and y' = b x + a y + d.
  (x, y), one, none = source.T, np.ones(5), np.zeros(5)
  system = np.concatenate([np.stack([x, -y, one, none], axis=1), np.stack([y, x, none, one], axis=1)])
  (a, b, c, d), *_ = np.linalg.lstsq(system, target.T.ravel(), rcond=None)
  np.testing.assert_allclose(protocols.similarity(source, target), [[a, -b, c], [b, a, d]], atol=1e-9)


def test_an_aligned_crop_has_its_points_at_the_template():
  points = protocols.five_points(mesh())
  matrix = protocols.similarity(points, protocols.template(224, enlargement=1.3))
  moved = points @ matrix[:, :2].T + matrix[:, 2]
  assert np.abs(moved - protocols.template(224, enlargement=1.3)).max() < 12
  crop = protocols.cut_face(
    picture(), box=np.zeros(4), landmarks=mesh(), preset=PRESETS["deepfakebench"], size=224
  )
  assert crop.shape == (224, 224, 3) and crop.dtype == np.uint8 and crop.std() > 5


def test_how_faces_and_frames_become_one_score():
  frames = [np.array([0.2, 0.9]), np.array([]), np.array([0.1])]
  np.testing.assert_allclose(protocols.frame_scores(frames, preset=PRESETS["sbi"]), [0.9, np.nan, 0.1])
  assert protocols.video_score(frames, preset=PRESETS["sbi"]) == pytest.approx(0.5)
  np.testing.assert_allclose(protocols.frame_scores(frames, preset=PRESETS["dfdc"]), [0.2, 0.9, 0.1])
  assert protocols.video_score(frames, preset=PRESETS["dfdc"]) == pytest.approx(0.4)
  # Nobody to judge is no score; certainly not one half.
  for preset in PRESETS.values():
    assert protocols.video_score([np.array([])] * 3, preset=preset) is None


@pytest.mark.parametrize(
  ("sure_fakes", "others", "expected"),
  [
    (13, [0.4] * 19, 0.9),  # 13 of 32 are more than 12 and more than 11
    (12, [0.4] * 20, (12 * 0.9 + 20 * 0.4) / 32),  # 12 are not more than 12
    (0, [0.1] * 30 + [0.7] * 2, 0.1),  # 30 of 32 are sure of none
    (0, [0.1] * 28 + [0.7] * 4, (2.8 + 2.8) / 32),
    (10, [], 0.9),  # not more than 11: the mean of all, which are these
  ],
)
def test_the_confident_mean_of_the_winner_of_the_dfdc(sure_fakes, others, expected):
  assert protocols.confident_mean([0.9] * sure_fakes + others) == pytest.approx(expected)
