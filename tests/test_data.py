import dataclasses

import numpy as np
import pytest
from face_media import COUNTS, SOURCES

from deepscan_jax import data, examples
from deepscan_jax.config import DataConfig

CONFIG = DataConfig(batch_size=4)
WINDOW = CONFIG.window.reading(data.FACE_INPUTS)
LABELS = ("label", "face_label", "sound_label")
MADE = ("crops", "crop_mask", *LABELS, "example_mask", "region")


def first_batches(data_dir, *, count=2, seed=0, config=CONFIG) -> list[dict]:
  iterator = iter(data.train_dataset(config, data_dir=data_dir, seed=seed))
  batches = [next(iterator) for _ in range(count)]
  iterator.close()
  return batches


def assert_same(a: dict, b: dict) -> None:
  assert a.keys() == b.keys()
  for key in a:
    np.testing.assert_array_equal(a[key], b[key], err_msg=key)


@pytest.fixture(scope="module")
def held_out(prepared_dataset):
  return data.ExampleSource(CONFIG.datasets, "validation", prepared_dataset)


def test_a_batch_holds_real_faces_and_their_twins_in_turn(prepared_dataset):
  (batch,) = first_batches(prepared_dataset, count=1)
  assert tuple(sorted(batch)) == tuple(sorted(MADE))
  assert batch["crops"].shape == (4, 1, 224, 224, 3) and batch["crops"].dtype == np.uint8
  assert batch["region"].shape == (4, 1, 14, 14) and batch["region"].dtype == np.float32
  np.testing.assert_array_equal(batch["label"], [0, 1, 0, 1])
  assert batch["example_mask"].all() and batch["crop_mask"].all()
  np.testing.assert_array_equal(batch["region"][::2], 0)
  assert (batch["region"][1::2].max(axis=(1, 2, 3)) > 0.1).all() and batch["region"].max() <= 1
  for real, fake in zip(batch["crops"][::2].astype(int), batch["crops"][1::2], strict=True):
    difference = np.abs(real - fake).mean()
    assert 0 < difference < 30


def test_the_seed_decides_what_is_drawn(prepared_dataset):
  first, again = first_batches(prepared_dataset), first_batches(prepared_dataset)
  for a, b in zip(first, again, strict=True):
    assert_same(a, b)
  assert not np.array_equal(first[0]["crops"], first_batches(prepared_dataset, seed=1)[0]["crops"])


def test_an_iterator_goes_on_where_its_state_was_taken(prepared_dataset):
  dataset = data.train_dataset(CONFIG, data_dir=prepared_dataset, seed=0)
  iterator = iter(dataset)
  next(iterator)
  state = iterator.get_state()
  expected = [next(iterator) for _ in range(2)]
  fresh = iter(dataset)
  fresh.set_state(state)
  for batch in expected:
    assert_same(next(fresh), batch)
  iterator.close()
  fresh.close()


def test_labelled_data_keep_their_labels(prepared_dataset):
  config = dataclasses.replace(CONFIG, pseudofakes=False, batch_size=3)
  (batch,) = first_batches(prepared_dataset, count=1, config=config)
  assert sorted(batch) == sorted(["crop_mask", "crops", "example_mask", *LABELS])
  assert batch["crops"].shape == (3, 1, 224, 224, 3)
  np.testing.assert_array_equal(batch["label"], 0)


def test_held_out_pairs_do_not_depend_on_the_order(held_out):
  pairs = data.HeldOutPairs(held_out, CONFIG, draws=2)
  assert len(pairs) == 2 * len(held_out)
  forward = [pairs[i] for i in range(3)]
  fresh = data.HeldOutPairs(held_out, CONFIG, draws=2)
  for i in (2, 0, 1):
    assert_same(fresh[i], forward[i])
  assert forward[0]["id"] == forward[1]["id"] != forward[2]["id"]
  assert not np.array_equal(forward[0]["crops"], forward[1]["crops"])


def test_plain_pairs_are_the_crops_that_the_detector_sees(held_out):
  # Without black: where a crop reaches beyond its photograph, blending may fill it.
  element = {**held_out[0], "faces": np.maximum(held_out[0]["faces"], 30)}
  pair = data.HeldOutPairs([element], CONFIG, degraded=False)[0]
  np.testing.assert_array_equal(pair["crops"][0], examples.model_inputs(element, window=WINDOW)["crops"])
  changed = (pair["crops"][0] != pair["crops"][1]).any(axis=-1)[0]
  blended = pair["region"][1, 0].repeat(16, axis=0).repeat(16, axis=1) > 0
  assert changed.any() and not (changed & ~blended).any()


def test_a_part_of_the_training_pairs_is_left_plain(held_out):
  def made(share: float, seed: int) -> dict:
    maker = data.PairMaker(dataclasses.replace(CONFIG, plain_probability=share))
    return maker.random_map(held_out[0], np.random.default_rng(seed))

  def drawn(seed: int, *, degraded: bool) -> dict:
    rng = np.random.default_rng(seed)
    rng.random()
    pair = data.make_pair(held_out[0], rng=rng, config=CONFIG, degraded=degraded)
    assert pair.pop("kind") == "face"
    return pair

  seeds = range(4)
  plain = [np.array_equal(made(0.5, s)["crops"], drawn(s, degraded=False)["crops"]) for s in seeds]
  assert plain == [np.random.default_rng(s).random() < 0.5 for s in seeds]
  assert 0 < sum(plain) < len(seeds)
  assert_same(made(1.0, 0), drawn(0, degraded=False))
  assert_same(made(0.0, 0), drawn(0, degraded=True))


def test_a_limit_takes_evenly_spread_pairs_as_they_are(held_out):
  pairs = data.HeldOutPairs(held_out, CONFIG)
  every = {}
  for batch, facts in data.held_out_batches(pairs, limit=0, batch_size=4):
    for row, fact in enumerate(facts):
      every[fact["id"]] = batch["crops"][2 * row : 2 * row + 2]
  assert list(every) == [held_out[i]["id"] for i in range(len(held_out))]
  ((batch, facts),) = data.held_out_batches(pairs, limit=2, batch_size=8)
  assert [fact["id"] for fact in facts] == [held_out[0]["id"], held_out[len(held_out) - 1]["id"]]
  for row, fact in enumerate(facts):
    np.testing.assert_array_equal(batch["crops"][2 * row : 2 * row + 2], every[fact["id"]])


def test_the_last_batch_is_padded_and_says_so(held_out):
  source = data.HeldOutExamples(held_out)
  batches = list(data.held_out_batches(source, limit=0, batch_size=3))
  assert all(batch["crops"].shape[0] == 3 for batch, _ in batches)
  valid = np.concatenate([batch["example_mask"] for batch, _ in batches])
  assert valid.sum() == len(held_out) == sum(len(facts) for _, facts in batches)
  last, facts = batches[-1]
  np.testing.assert_array_equal(last["example_mask"], np.arange(3) < len(facts))
  np.testing.assert_array_equal(last["crops"][~last["example_mask"]], 0)
  assert not last["crop_mask"][~last["example_mask"]].any()


def test_sources_are_seen_as_often_as_they_are_weighted(prepared_dataset, caplog):
  def sources(**weights):
    source = data.ExampleSource(
      ["real_only"], "train", prepared_dataset, source_weights=tuple(weights.items())
    )
    found = [source[i]["source"] for i in range(len(source))]
    return {name: found.count(name) for name in set(found)}

  assert sources() == dict.fromkeys(SOURCES, COUNTS["train"])
  assert sources(street=3) == {"studio": COUNTS["train"], "street": 3 * COUNTS["train"]}
  assert sources(street=0) == {"studio": COUNTS["train"]}
  assert not caplog.records
  assert sources(beach=2) == sources() and "No example comes from 'beach'" in caplog.text


def test_an_odd_batch_of_pairs_is_refused(prepared_dataset):
  with pytest.raises(ValueError, match="Batch size 5 must be even"):
    data.train_dataset(dataclasses.replace(CONFIG, batch_size=5), data_dir=prepared_dataset, seed=0)


def test_a_dataset_that_is_not_there_is_named_with_the_command_that_builds_it(prepared_dataset):
  with pytest.raises(
    FileNotFoundError, match=r"'mine/one' is not in .*found there: real_only.*--name=mine/one "
  ):
    data.ExampleSource(["mine/one"], "train", prepared_dataset)


def test_the_newest_version_is_read_by_number_and_unfinished_builds_are_not(tmp_path):
  for name in ("9.0.0", "10.0.0", "2.11.0", "10.0.1.incomplete3F"):
    (tmp_path / "real_only" / name).mkdir(parents=True)
    (tmp_path / "real_only" / name / "dataset_info.json").touch()
  assert data._directory("real_only", tmp_path).name == "10.0.0"
