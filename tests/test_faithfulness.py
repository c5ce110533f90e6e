import numpy as np
import pytest

from deepscan_jax import data, faithfulness
from deepscan_jax.inference import Judgement

SIDE, CELLS = 56, 14
INPUTS = ("crops", "crop_mask")


class Pairs:
  """Held-out pairs of noise whose fakes are brighter in one patch each; groups of two."""

  rows = 2

  def __init__(self, count: int, *, kind: str = "face"):
    self.count, self.kind = count, kind

  def __len__(self) -> int:
    return self.count

  def __getitem__(self, index: int) -> dict:
    rng = np.random.default_rng(index)
    real = rng.integers(90, 110, (1, SIDE, SIDE, 3), dtype=np.uint8)
    fake = real.copy()
    top, left = 4 * rng.integers(0, CELLS - 5, 2)
    fake[:, top : top + 20, left : left + 20] += 100
    facts = {key: f"{index // 2}" for key in data._FACT_KEYS}
    return {
      "crops": np.stack([real, fake]),
      "crop_mask": np.ones((2, 1), bool),
      "example_mask": np.ones(2, bool),
      **facts,
      "kind": self.kind,
      "face_size_px": 100.0,
    }


def judge_by(mapped):
  """A model that goes by how much is bright, and whose region map is f(cells of that)."""

  def judge(inputs: dict) -> Judgement:
    assert set(inputs) == set(INPUTS)
    bright = (inputs["crops"].astype(np.float32).mean(axis=-1) - 100) / 100
    cells = bright.reshape(*bright.shape[:2], CELLS, SIDE // CELLS, CELLS, SIDE // CELLS).mean(axis=(3, 5))
    logits = 4 * bright.mean(axis=(1, 2, 3)).astype(np.float64)
    return Judgement(logits, {}, {}, logits[:, None], mapped(cells), None)

  return judge


def traced(mapped, *, count: int = 12, **settings):
  return faithfulness.trace(judge_by(mapped), Pairs(count, **settings), inputs=INPUTS, limit=count)


@pytest.fixture(scope="module")
def faithful() -> dict:
  return faithfulness.figures(traced(lambda cells: cells), draws=200)


def test_a_map_of_what_the_model_goes_by_is_ahead_of_all_other_orders(faithful):
  assert faithful["pairs"] == 12 and faithful["groups"] == 6
  for way in ("deletion", "insertion"):
    for gain in faithful["gain"][way].values():
      assert gain["interval"][0] > 0.05 < gain["value"] < gain["interval"][1]
  # 25 of 196 cells hold everything: after a quarter of the places nothing of it is left.
  assert faithful["deletion"]["map"][2] == pytest.approx(faithful["logit_real"], abs=0.03)
  assert faithful["insertion"]["map"][2] == pytest.approx(faithful["logit_fake"], abs=0.03)
  span = faithful["logit_fake"] - faithful["logit_real"]
  assert 0.35 < faithful["gain"]["deletion"]["random"]["value"] / span < 0.5


def test_all_orders_have_the_same_ends(faithful):
  ends = (faithful["logit_fake"], faithful["logit_real"])
  assert ends[0] > 0.3 > ends[1]
  for curve in faithful["deletion"].values():
    assert (curve[0], curve[-1]) == pytest.approx(ends)
  for curve in faithful["insertion"].values():
    assert (curve[-1], curve[0]) == pytest.approx(ends)
  # A random order is read from both ends: it deletes as it inserts.
  assert faithful["deletion"]["random"] == pytest.approx(faithful["insertion"]["random"][::-1])


def test_a_map_that_marks_the_wrong_places_is_behind():
  wrong = faithfulness.figures(traced(lambda cells: -cells), draws=100)
  for way in ("deletion", "insertion"):
    assert wrong["gain"][way]["random"]["interval"][1] < 0


def test_a_map_that_knows_nothing_of_the_picture_is_not_ahead_of_anothers():
  def centre(cells):
    middle = np.abs(np.arange(CELLS) - 6.5)
    return np.broadcast_to(-(middle[:, None] + middle), cells.shape)

  same = faithfulness.figures(traced(centre), draws=100)
  for way in ("deletion", "insertion"):
    assert same["gain"][way]["other"]["value"] == pytest.approx(0, abs=1e-9)


def test_it_is_the_same_each_time_and_few_groups_have_no_interval():
  one, other = (traced(lambda cells: cells, count=4) for _ in range(2))
  for key, rows in one.logits.items():
    np.testing.assert_array_equal(rows, other.logits[key])
  gains = faithfulness.figures(one)["gain"]["deletion"]
  assert gains["random"]["interval"] is None and gains["random"]["value"] > 0


def test_areas_are_those_of_the_trapezoids():
  rng = np.random.default_rng(0)
  logits = {
    (way, order): rng.normal(size=(7, 9)) for way in ("deletion", "insertion") for order in ("map", "random")
  }
  found = faithfulness.figures(faithfulness.Curves(logits, np.arange(7).astype(str)), draws=50)
  for (way, order), rows in logits.items():
    expected = np.mean([np.trapezoid(row, faithfulness.SHARES) for row in rows])
    assert found["area"][way][order] == pytest.approx(expected)
  area = found["area"]["deletion"]
  assert found["gain"]["deletion"]["random"]["value"] == pytest.approx(area["random"] - area["map"])


def test_what_has_no_map_or_no_forged_face_is_not_traced():
  assert traced(lambda cells: None) is None
  assert traced(lambda cells: cells, kind="voice") is None
  assert faithfulness.join([None]) is None
  parts = [traced(lambda cells: cells, count=count) for count in (2, 3)]
  joined = faithfulness.join([*parts, None])
  assert len(joined) == 5 and joined.logits["insertion", "map"].shape == (5, 9)


def test_one_pair_alone_has_no_other_map():
  found = faithfulness.figures(traced(lambda cells: cells, count=1))
  assert set(found["gain"]["deletion"]) == {"random"}


def test_ranks_begin_at_the_highest():
  values = np.random.default_rng(0).normal(size=(2, 3, 4))
  for frame, found in zip(values, faithfulness.ranks(values), strict=True):
    ordered = sorted(frame.ravel(), reverse=True)
    assert [ordered.index(v) for v in frame.ravel()] == found.ravel().tolist()


def test_mixing_is_soft_at_seams_and_exact_elsewhere():
  real, fake = np.full((1, 56, 56, 3), 50, np.uint8), np.full((1, 56, 56, 3), 150, np.uint8)
  kept = np.zeros((1, 14, 14), bool)
  kept[:, 4:9, 4:9] = True
  mixed = faithfulness.mix(real, fake, kept)[0, ..., 0]
  assert mixed[26, 26] == 150 and mixed[2, 2] == 50 and 50 < mixed[26, 35] < 150
  np.testing.assert_array_equal(faithfulness.mix(real, fake, np.ones_like(kept)), fake)
  np.testing.assert_array_equal(faithfulness.mix(real, fake, np.zeros_like(kept)), real)
