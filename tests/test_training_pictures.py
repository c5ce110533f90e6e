import numpy as np
import pytest
from tiny import random_variables, tiny_branch, tiny_config

from deepscan_jax import training, training_pictures
from deepscan_jax.config import override
from deepscan_jax.models.detector import Detector
from deepscan_jax.train_state import abstract_batch


def darkness(picture):
  return 255 - picture.astype(float).mean(axis=-1)


def test_the_larger_share_of_a_label_is_the_darker_cell():
  picture = darkness(training_pictures.confusion_picture(np.array([[90, 10], [40, 60]]), threshold="x"))
  # In a corner of each cell, beside the numbers.
  corners = [[picture[top + 12, left + 12] for left in (90, 240)] for top in (70, 220)]
  assert corners[0][0] > corners[1][1] > corners[1][0] > corners[0][1]


def test_the_roc_curve_goes_where_its_points_are():
  blue = np.array(training_pictures._BLUE)
  picture = training_pictures.roc_picture((np.array([0, 0.2, 1]), np.array([0, 0.8, 1])), auc=0.8)
  at = {
    (x, y): picture[round(44 + (1 - y) * 300), round(72 + x * 300)]
    for x, y in ((0.1, 0.4), (0.2, 0.8), (0.5, 0.3))
  }
  assert np.abs(at[0.1, 0.4] - blue).max() < 40 and np.abs(at[0.2, 0.8] - blue).max() < 40
  assert np.abs(at[0.5, 0.3].astype(int) - 255).max() < 40


def test_a_map_colours_a_crop_where_it_is_high_and_leaves_it_grey_where_it_is_zero():
  crop = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
  region = np.zeros((14, 14))
  region[:, 7:] = 1
  drawn = training_pictures.with_region(crop, region)
  spread = np.ptp(drawn.astype(int), axis=-1)
  assert spread[:, :90].max() == 0 and spread[:, 140:].min() > 30


@pytest.mark.parametrize("pseudofakes", [True, False])
def test_samples_are_the_same_ones_each_time_with_the_maps_of_the_model(prepared_dataset, pseudofakes):
  config = override(tiny_config(), f"data.pseudofakes={str(pseudofakes).lower()}")
  with tiny_branch():
    variables = random_variables(Detector(config.model), abstract_batch(1, config), train=False)
    predict = training.make_predict(config)
    sheets = [
      training_pictures.sample_sheet(
        config, predict, variables, data_dir=prepared_dataset, batch_size=8, count=2
      )
      for _ in range(2)
    ]
    batch = {"crops": np.zeros((8, 1, 224, 224, 3), np.uint8), "crop_mask": np.ones((8, 1), bool)}
    logits, maps = predict.with_regions(variables, batch)
  np.testing.assert_array_equal(*sheets)
  columns = 5 if pseudofakes else 2
  assert sheets[0].shape == (2 * 188 + 6, columns * 166 + 6, 3) and sheets[0].std() > 20
  assert logits.shape == (8,) and maps.shape == (8, 1, 14, 14) and 0 < maps.min() <= maps.max() < 1


def test_a_model_that_sees_no_faces_has_no_samples(prepared_dataset):
  config = override(tiny_config(), "model.branches=tiny_voice")
  with tiny_branch():
    assert training_pictures.sample_sheet(config, None, {}, data_dir=prepared_dataset, batch_size=8) is None
