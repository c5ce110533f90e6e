import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time

import cv2
import face_media
import numpy as np
import psutil
import pytest
import voices
from face_media import COUNTS, SOURCES

from deepscan_jax import data, examples, media
from deepscan_jax.config import DataConfig, WindowConfig
from deepscan_jax.faces.align import eval_crop
from deepscan_jax.perturb import Rung
from deepscan_jax.pseudofakes.image import BlendConfig

CONFIG = DataConfig(batch_size=4)
WINDOW = CONFIG.window.reading(data.FACE_INPUTS)
LABELS = ("label", "face_label", "sound_label")
MADE = ("crops", "crop_mask", *LABELS, "example_mask", "region", "region_mask")


def first_batches(data_dir, *, count=2, seed=0, config=CONFIG) -> list[dict]:
  iterator = iter(data.train_dataset(config, data_dir=data_dir, seed=seed))
  batches = [next(iterator) for _ in range(count)]
  iterator.close()
  return batches


class Elements(list):
  """Examples in place of an ExampleSource of a model that looks at faces."""

  inputs = data.FACE_INPUTS


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


# Draws a batch from two workers, tells their ids and is killed.
KILLED = """
import dataclasses, os, signal, sys
import psutil
from absl import flags
from deepscan_jax import data
from deepscan_jax.config import DataConfig

if __name__ == "__main__":
  flags.FLAGS.mark_as_parsed()
  batches = iter(data.train_dataset(DataConfig(batch_size=4, workers=2), data_dir=sys.argv[1], seed=0))
  next(batches)
  print(*(child.pid for child in psutil.Process().children(recursive=True)), flush=True)
  os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_a_process_that_is_killed(prepared_dataset, tmp_path):
  script = tmp_path / "killed.py"
  script.write_text(KILLED)
  ended = subprocess.run(
    [sys.executable, script, prepared_dataset], stdout=subprocess.PIPE, text=True, timeout=300
  )
  assert ended.returncode == -signal.SIGKILL
  workers = [int(number) for number in ended.stdout.split()]
  assert len(workers) >= 2
  deadline = time.monotonic() + 60
  while alive := [number for number in workers if running(number)]:
    assert time.monotonic() < deadline, alive
    time.sleep(0.1)


def running(process: int) -> bool:
  """Whether a process is there and not merely waits for its parent to be told of its end."""
  try:
    return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
  except psutil.NoSuchProcess:
    return False


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
  pair = data.HeldOutPairs(Elements([element]), CONFIG, degraded=False)[0]
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


class Files:
  """As an ExampleSource of files with so many examples each, in turn as far as they go."""

  def __init__(self, *sizes: int):
    self._files = [file for turn in range(max(sizes)) for file, size in enumerate(sizes) if turn < size]

  def __len__(self) -> int:
    return len(self._files)

  def files(self) -> list[int]:
    return self._files


def test_a_limit_takes_several_examples_of_each_file_it_chooses():
  source = Files(*[10] * 1000)
  chosen = data.chosen_examples(data.HeldOutExamples(source), limit=400)
  files = np.array(source.files())[chosen]
  # More files than the limit: were examples chosen, each would be of another file.
  assert len(chosen) == 400 and chosen == sorted(set(chosen))
  found, counts = np.unique(files, return_counts=True)
  assert (counts == 4).all() and (found == np.linspace(0, 999, 100).astype(int)).all()
  # Spread in each file: its first and its last one are there.
  first, last = (sorted(files[turn]) for turn in (slice(100), slice(-100, None)))
  assert first == last == found.tolist() and chosen[-1] == len(source) - 1


def test_a_limit_that_allows_all_files_takes_more_of_each():
  sizes = [1, 3, 20, 20, 7]
  source = Files(*sizes)

  def counts(limit: int) -> list[int]:
    chosen = data.chosen_examples(data.HeldOutExamples(source), limit=limit)
    return np.bincount(np.array(source.files())[chosen], minlength=5).tolist()

  assert counts(0) == counts(51) == counts(1000) == sizes
  assert counts(50) == [1, 3, 19, 19, 7]
  assert counts(34) == [1, 3, 11, 11, 7]
  assert counts(32) == [1, 3, 10, 10, 7]
  # Of few, one each.
  assert counts(5) == [1] * 5 and counts(2) == [1, 0, 0, 0, 1] and counts(1) == [1, 0, 0, 0, 0]
  pairs = data.HeldOutPairs(source, CONFIG, draws=2)
  assert data.chosen_examples(pairs, limit=5) == [0, 2, 4, 6, 8]
  for limit in range(1, 52):
    assert 1 <= sum(counts(limit)) <= limit


@pytest.mark.parametrize("count", [1, 7, 399, 400])
def test_a_limit_on_files_of_one_example_each_spreads_over_them(count):
  expected = np.linspace(0, 1016, count).astype(int).tolist()
  assert data.chosen_examples(data.HeldOutExamples(Files(*[1] * 1017)), limit=count) == expected


def test_examples_of_a_clip_are_of_one_file(prepared_dataset):
  source = data.ExampleSource(["real_only"], "test", prepared_dataset)
  ids = [source[i]["id"] for i in range(len(source))]
  files = source.files()
  for i, one in enumerate(ids):
    for j, other in enumerate(ids):
      assert (files[i] == files[j]) == (one.rpartition("#")[0] == other.rpartition("#")[0])
  clip = [name for name in ids if ".mp4" in name]
  assert len(clip) > 1 and len(set(files)) == len(ids) - len(clip) + 1


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


@pytest.mark.skipif(sys.platform != "linux", reason="Only Linux has priorities of threads.")
def test_what_reads_ahead_makes_way_for_what_judges():
  seen = []

  class Watched:
    rows, source = 1, None

    def __len__(self) -> int:
      return 6

    def __getitem__(self, index: int) -> dict:
      seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
      facts = dict.fromkeys(("dataset", "id", "group", "source", "method", "kind"), "") | {
        "face_size_px": 1.0
      }
      return {"label": np.zeros(1, np.int32), "example_mask": np.ones(1, bool), **facts}

  before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
  assert len(list(data.held_out_batches(Watched(), limit=0, batch_size=2))) == 3
  assert seen == [19] * 6
  assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


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


WINDOWS = WindowConfig(frames=4, frame_rate_hz=12.5, mouth_frames=50, samples=48_000)
ALL_INPUTS = ("crops", "crop_mask", "landmarks", "frame_times_s", "mouth_crops", "mouth_mask", "waveform",
              "waveform_mask")  # fmt: skip
WINDOW_CONFIG = DataConfig(batch_size=4, window=WINDOWS)
WINDOW_CONFIG_SWAP = dataclasses.replace(WINDOW_CONFIG, pseudofake_kinds=(("swap", 1.0),))


@pytest.fixture(scope="module")
def talking() -> dict:
  """A window of four views of one face, mouths of noise and a voice, as a builder stores it."""
  faces, points = [], []
  for i in range(4):
    clip = media.Clip("image", face_media.portrait(side=256, shift=(2.0 * i, i))[None], np.zeros(1),
                      np.zeros(0, np.float32), 16_000, {}, ())  # fmt: skip
    (person,) = examples.find_subjects(clip)
    faces.append(person.crops[0])
    points.append(person.landmarks[0])
  rng = np.random.default_rng(0)
  return {
    "faces": np.stack(faces),
    "face_mask": np.ones(4, bool),
    "landmarks": np.stack(points),
    "frame_times_s": (1 + np.arange(4) / 12.5).astype(np.float32),
    "mouths": rng.integers(0, 256, (50, 96, 96, 3), dtype=np.uint8),
    "mouth_mask": np.ones(50, bool),
    "sound": np.round(voices.voice(seconds=3.0, seed=1) * 32767).astype(np.int16),
    "start_s": np.float32(1),
    "file_facts": np.zeros(3, np.float32),
    "file_facts_mask": np.zeros(3, bool),
    "face_label": np.int32(0),
    "sound_label": np.int32(0),
    "id": "one",
    "group": "g",
    "source": "s",
    "method": "",
  }


def pair_of(element: dict, kind: str, *, degraded: bool = False, inputs=ALL_INPUTS, **changes) -> dict:
  config = dataclasses.replace(WINDOW_CONFIG, pseudofake_kinds=((kind, 1.0),), **changes)
  pair = data.make_pair(
    element, rng=np.random.default_rng(3), config=config, degraded=degraded, inputs=inputs
  )
  assert pair.pop("kind") == kind
  return pair


@pytest.mark.parametrize("degraded", [False, True])
@pytest.mark.parametrize("kind", ["face", "voice", "sync"])
def test_a_twin_differs_only_in_what_was_forged(talking, kind, degraded):
  pair = pair_of(talking, kind, degraded=degraded)
  shapes = examples.input_shapes(WINDOWS)
  for key in ALL_INPUTS:
    assert pair[key].shape == (2, *shapes[key][0]) and pair[key].dtype == shapes[key][1], key
  differs = {key for key in ALL_INPUTS if not np.array_equal(pair[key][0], pair[key][1])}
  assert differs == {"face": {"crops"}, "voice": {"waveform"}, "sync": {"waveform"}}[kind]
  np.testing.assert_array_equal(pair["label"], [0, 1])
  np.testing.assert_array_equal(pair["face_label"], [0, int(kind == "face")])
  np.testing.assert_array_equal(pair["sound_label"], [0, int(kind == "voice")])
  assert pair["region"].shape == (2, 4, 14, 14) and bool(pair["region"].any()) == (kind == "face")
  assert not pair["region"][0].any()
  assert_same(pair, pair_of(talking, kind, degraded=degraded))


def test_the_face_of_another_is_swapped_into_single_pictures(talking):
  config = dataclasses.replace(CONFIG, window=WindowConfig(), pseudofake_kinds=(("swap", 1.0),))
  still = {**talking, **{k: talking[k][:1] for k in ("faces", "face_mask", "landmarks", "frame_times_s")}}
  other = {**still, "id": "two", "group": "h", "faces": still["faces"][:, :, ::-1] // 2}
  other["landmarks"] = still["landmarks"] * (-1, 1) + (255, 0)

  def swapped(donors, degraded=False, element=still, config=config):
    return data.make_pair(
      element, rng=np.random.default_rng(3), config=config, degraded=degraded, donors=donors
    )

  for degraded in (False, True):
    pair = swapped(Elements([other, still]), degraded)
    assert pair["kind"] == "swap" and list(pair["face_label"]) == [0, 1]
    assert not np.array_equal(*pair["crops"]) and pair["region"][1].any() and not pair["region"][0].any()
    np.testing.assert_array_equal(pair["crops"], swapped(Elements([other, still]), degraded)["crops"])
  # The face itself is no other, whatever is drawn beside it.
  np.testing.assert_array_equal(
    swapped(Elements([other, still]))["crops"], swapped(Elements([other, other]))["crops"]
  )
  with pytest.raises(ValueError, match=r"None of the pseudo-fakes swap .* allows face"):
    swapped(None)
  with pytest.raises(ValueError, match="None of the pseudo-fakes swap"):
    data.make_pair(
      talking, rng=np.random.default_rng(3), config=WINDOW_CONFIG_SWAP, degraded=False, inputs=ALL_INPUTS,
      donors=Elements([other]),
    )  # fmt: skip
  with pytest.raises(ValueError, match="None of the examples that were drawn to swap faces"):
    swapped(Elements([{**other, **NOBODY}]))


def test_swaps_are_drawn_in_training_and_in_evaluation(prepared_dataset):
  config = dataclasses.replace(CONFIG, pseudofake_kinds=(("face", 1.0), ("swap", 1.0)))
  (batch,) = first_batches(prepared_dataset, count=1, config=config)
  assert batch["region"][1::2].any(axis=(1, 2, 3)).all()
  held_out = data.held_out(config, "validation", data_dir=prepared_dataset, degraded=False)
  kinds = {held_out[i]["kind"] for i in range(min(len(held_out), 12))}
  assert kinds == {"face", "swap"}


def test_synthetic_faces_are_swapped_in_as_often_as_asked(talking):
  config = dataclasses.replace(CONFIG, window=WindowConfig(), pseudofake_kinds=(("swap", 1.0),))
  still = {**talking, **{k: talking[k][:1] for k in ("faces", "face_mask", "landmarks", "frame_times_s")}}
  still |= {"face_label": np.int32(0), "sound_label": np.int32(0)}
  bright, dark = (
    {**still, "id": name, "group": name, "faces": faces}
    for name, faces in (("bright", still["faces"] // 2 + 128), ("dark", still["faces"] // 8))
  )

  def drawn(share: float) -> list[bytes]:
    swap = dataclasses.replace(config.swap, synthetic_share=share)
    make = data.PairMaker(
      dataclasses.replace(config, swap=swap, plain_probability=1.0),
      reals=Elements([dark]),
      fakes=Elements([bright]) if share else None,
    )
    rows = [make.random_map(still, np.random.default_rng(seed)) for seed in range(12)]
    return [float(row["crops"][1].mean() - row["crops"][0].mean()) for row in rows]

  lighter = [np.mean(np.array(drawn(share)) > 0) for share in (0.0, 0.5, 1.0)]
  assert lighter[0] < lighter[1] < lighter[2]


def test_synthetic_faces_to_swap_in_come_from_known_forgeries(prepared_dataset):
  swap = dataclasses.replace(CONFIG.swap, synthetic_share=0.5)
  with pytest.raises(ValueError, match=r"set data\.labelled_share too, and have swap in"):
    first_batches(prepared_dataset, count=1, config=dataclasses.replace(CONFIG, swap=swap))


def test_a_plain_real_twin_is_what_the_detector_sees(talking):
  talking = {**talking, "faces": np.maximum(talking["faces"], 30)}  # black beyond a photograph may be filled
  untouched = BlendConfig(jitter_target_probability=0.0)
  for kind in ("face", "voice"):
    pair = pair_of(talking, kind, blend=untouched)
    inputs = examples.model_inputs(talking, window=WINDOWS, keys=ALL_INPUTS)
    for key in ALL_INPUTS:
      if (kind, key) != ("voice", "waveform"):  # both voices lose the band that copy synthesis cannot make
        np.testing.assert_array_equal(pair[key][0], inputs[key], err_msg=key)


def test_what_is_shifted_is_cut_shorter_in_both_twins(talking):
  pair = pair_of(talking, "sync")
  np.testing.assert_array_equal(pair["mouth_mask"].sum(axis=1), 35)
  np.testing.assert_array_equal(pair["waveform_mask"].sum(axis=1), 35 * 640)


def test_kinds_are_drawn_as_often_as_they_weigh_and_only_where_they_can_be_made(talking):
  config = dataclasses.replace(WINDOW_CONFIG, pseudofake_kinds=(("face", 0.0), ("voice", 3.0), ("sync", 1.0)))

  def drawn(element: dict, inputs=ALL_INPUTS, config=config) -> list[str]:
    return [
      data.make_pair(element, rng=np.random.default_rng(seed), config=config, degraded=False, inputs=inputs)[
        "kind"
      ]
      for seed in range(12)
    ]

  kinds = drawn(talking)
  assert set(kinds) == {"voice", "sync"} and kinds.count("voice") > kinds.count("sync")
  gap = {**talking, "mouth_mask": np.arange(50) != 30}
  assert set(drawn(gap)) == {"voice"}  # too short a run of mouths to shift in
  with pytest.raises(ValueError, match=r"None of the pseudo-fakes face, voice, sync .* allows face"):
    drawn({**talking, "sound": talking["sound"][:0]})
  odd = dataclasses.replace(WINDOW_CONFIG, pseudofake_kinds=(("nose", 1.0),))
  with pytest.raises(ValueError, match="'nose' with 1; there are face, swap, voice, sync"):
    drawn(talking, config=odd)


NOBODY = {
  "faces": (),
  "face_mask": np.zeros(0, bool),
  "landmarks": np.zeros((0, 468, 2), np.float32),
  "frame_times_s": np.zeros(0, np.float32),
  "mouths": (),
  "mouth_mask": np.zeros(0, bool),
}


def test_sound_alone_goes_into_a_batch_with_faces(talking):
  sound = {**talking, **NOBODY}
  pair = pair_of(sound, "voice", degraded=True)
  assert not pair["crop_mask"].any() and not pair["crops"].any() and not pair["region"].any()
  np.testing.assert_array_equal(pair["sound_label"], [0, 1])
  np.testing.assert_array_equal(pair["face_label"], [-1, -1])
  both = examples.stack([pair, pair_of(talking, "face", degraded=True)])
  assert both["crops"].shape == (2, 2, 4, 224, 224, 3)


def test_a_single_picture_moves_where_windows_are_read(talking):
  still = {key: talking[key][:1] for key in ("faces", "face_mask", "landmarks", "frame_times_s")}
  element = {**talking, **still, "mouths": (), "mouth_mask": np.zeros(0, bool), "sound": talking["sound"][:0]}
  moved = pair_of(element, "face", moving_stills=1.0)
  assert moved["crop_mask"].all()
  np.testing.assert_allclose(np.diff(moved["frame_times_s"][0]), 0.08, atol=1e-6)
  changes = np.abs(np.diff(moved["crops"][0].astype(int), axis=0)).mean(axis=(1, 2, 3))
  assert (changes > 0).all()
  assert np.abs(np.diff(moved["landmarks"][0], axis=0)).max() > 0
  kept = pair_of(element, "face", moving_stills=0.0)
  np.testing.assert_array_equal(kept["crop_mask"], [[True, False, False, False]] * 2)
  single = pair_of(element, "face", inputs=data.FACE_INPUTS, window=WindowConfig())
  np.testing.assert_array_equal(kept["crops"][:, :1], single["crops"])


def test_own_labels_and_augmentation_reach_every_modality(talking):
  element = {**talking, "sound_label": np.int32(1)}
  maker = data.SingleMaker(dataclasses.replace(WINDOW_CONFIG, pseudofakes=False), ALL_INPUTS)
  row = maker.random_map(element, np.random.default_rng(1))
  assert {key: int(row[key][0]) for key in LABELS} == {"label": 1, "face_label": 0, "sound_label": 1}
  shapes = examples.input_shapes(WINDOWS)
  assert {key: (row[key].shape[1:], row[key].dtype) for key in ALL_INPUTS} == {
    key: shapes[key] for key in ALL_INPUTS
  }
  plain = examples.model_inputs(element, window=WINDOWS, keys=ALL_INPUTS)
  assert not np.array_equal(row["crops"][0], plain["crops"])


def labels_drawn(
  config: DataConfig, sources: dict, monkeypatch, *, shard=(0, 1), count: int = 8
) -> list[dict]:
  """Batches of tiny examples in place of prepared datasets: {name: [(label, number)]}."""

  class Listed:
    def __init__(self, names, split, data_dir, *, inputs, labels, source_weights=(), fold=None):
      del split, data_dir, inputs, source_weights, fold
      self.rows = [row for name in names for row in sources[name] if row[0] in labels]

    def __len__(self):
      return len(self.rows)

    def __getitem__(self, index):
      label, number = self.rows[index]
      side = np.full((1, 256, 256, 3), number, np.uint8)
      return {
        **dict.fromkeys(("mouths", "sound"), ()), "mouth_mask": np.zeros(0, bool), "faces": side,
        "face_mask": np.ones(1, bool), "landmarks": np.zeros((1, 468, 2), np.float32),
        "frame_times_s": np.zeros(1, np.float32), "face_label": label, "sound_label": -1,
        "id": str(number), "group": "g", "source": "s", "method": "",
      }  # fmt: skip

  monkeypatch.setattr(data, "ExampleSource", Listed)
  # Untouched crops carry their number.
  never = {f.name: 0.0 for f in dataclasses.fields(config.augment) if f.name.endswith("_probability")}
  colour = {f.name: 0.0 for f in dataclasses.fields(config.augment.colour) if f.name.endswith("_probability")}
  never |= {"exact_scale_probability": 1.0, "colour": dataclasses.replace(config.augment.colour, **colour)}
  maker = dataclasses.replace(config.augment, **never)
  config = dataclasses.replace(config, augment=maker, pseudofakes=False)
  iterator = iter(data.train_dataset(config, data_dir="", seed=0, shard=shard))
  batches = [next(iterator) for _ in range(count)]
  iterator.close()
  return batches


def numbers(batches: list[dict]) -> list[int]:
  return [int(crop.mean()) for batch in batches for crop in batch["crops"]]


@pytest.mark.parametrize(
  ("changes", "processes"),
  [
    ({}, 1),
    ({}, 2),
    ({"balance_classes": True}, 1),
    ({"dataset_weights": (3.0, 1.0), "balance_classes": True}, 3),
  ],
)
def test_the_examples_of_a_batch_are_found_again(monkeypatch, changes, processes):
  sources = {"a": [(0, 10 + i) for i in range(8)] + [(1, 30)] * 2, "b": [(1, 50)] * 4 + [(0, 60)] * 2}
  config = DataConfig(datasets=("a", "b"), batch_size=6, **changes)
  parts = [
    labels_drawn(config, sources, monkeypatch, shard=(index, processes), count=9)
    for index in range(processes)
  ]
  config = dataclasses.replace(config, pseudofakes=False)
  for step in (1, 2, 9):
    facts = data.batch_facts(config, data_dir="", seed=0, step=step)
    assert len(facts) == config.batch_size
    for index, batches in enumerate(parts):
      rows = facts[index::processes]
      assert [int(row["id"]) for row in rows] == numbers(batches[step - 1 : step])
      assert [row["label"] for row in rows] == batches[step - 1]["label"].tolist()
    assert all(row["pseudofake"] == "" and row["not_finite"] == [] for row in facts)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_examples_of_a_batch_of_pairs_are_found_again(prepared_dataset, workers):
  config = dataclasses.replace(CONFIG, plain_probability=1.0, workers=workers)
  (*_, batch) = first_batches(prepared_dataset, count=3, config=config)
  facts = data.batch_facts(config, data_dir=prepared_dataset, seed=0, step=3)
  source = data.ExampleSource(config.datasets, "train", prepared_dataset)
  plain = {
    e["id"]: examples.model_inputs(e, window=WINDOW)["crops"]
    for e in map(source.__getitem__, range(len(source)))
  }
  assert [row["label"] for row in facts] == [0, 1, 0, 1]
  for row, crops in zip(facts[::2], batch["crops"][::2], strict=True):
    # Blending shifts the colours of the real twin as well, but not as far as to another picture's.
    far = {name: np.abs(other - crops.astype(float)).mean() for name, other in plain.items()}
    assert min(far, key=far.get) == row["id"]
    assert row["source"] in SOURCES and row["pseudofake"] == ""
  for real, fake in zip(facts[::2], facts[1::2], strict=True):
    assert fake["id"] == real["id"] and fake["pseudofake"].startswith("face (")


def test_a_known_forgery_is_named_beside_its_real_example(talking):
  config = dataclasses.replace(WINDOW_CONFIG, labelled_share=0.5)
  talking = {**talking, "id": "real", "method": ""}
  maker = data.PairMaker(config, ("waveform", "waveform_mask"), reals=Elements([talking]))
  rows = data._Described(maker).random_map(talking, np.random.default_rng(0))
  assert [row["id"] for row in rows] == ["real", "real"] and rows[1]["pseudofake"].startswith("voice (")
  rows = data._Described(maker).random_map(other_voice(talking) | {"id": "forged"}, np.random.default_rng(0))
  assert [(row["id"], row["sound_label"], row["pseudofake"]) for row in rows] == [
    ("real", 0, ""),
    ("forged", 1, ""),
  ]


def test_classes_and_datasets_are_drawn_as_often_as_they_weigh(monkeypatch):
  sources = {"a": [(0, 10 + i) for i in range(8)] + [(1, 30)] * 2, "b": [(1, 50)] * 40 + [(0, 60)] * 2}
  config = DataConfig(datasets=("a", "b"), batch_size=10)
  plain = numbers(labels_drawn(config, sources, monkeypatch, count=26))
  assert np.mean([n == 50 for n in plain]) == pytest.approx(40 / 52, abs=0.05)
  balanced = dataclasses.replace(config, balance_classes=True)
  batches = labels_drawn(balanced, sources, monkeypatch, count=20)
  assert np.concatenate([batch["label"] for batch in batches]).mean() == 0.5
  weighted = dataclasses.replace(config, dataset_weights=(3.0, 1.0))
  drawn = numbers(labels_drawn(weighted, sources, monkeypatch, count=20))
  assert np.mean([n < 50 for n in drawn]) == pytest.approx(0.75, abs=0.01)
  both = dataclasses.replace(weighted, balance_classes=True)
  drawn = labels_drawn(both, sources, monkeypatch, count=20)
  shares = {n: np.mean(np.array(numbers(drawn)) == n) for n in (30, 50, 60)}
  assert shares == pytest.approx({30: 0.375, 50: 0.125, 60: 0.125}, abs=0.01)
  for wrong in ((1.0,), (-1.0, 2.0), (0.0, 0.0)):
    with pytest.raises(ValueError, match="needs one weight of 0 or more for each of a, b"):
      labels_drawn(dataclasses.replace(config, dataset_weights=wrong), sources, monkeypatch)


def test_processes_share_a_pass_without_overlap(monkeypatch):
  sources = {"a": [(0, 10 + i) for i in range(24)]}
  config = DataConfig(datasets=("a",), batch_size=4)
  alone = numbers(labels_drawn(config, sources, monkeypatch, count=6))
  assert sorted(alone) == list(range(10, 34))
  parts = [labels_drawn(config, sources, monkeypatch, shard=(i, 2), count=6) for i in (0, 1)]
  # Step by step the batch of both together is the batch of one process alone.
  for step, ours in enumerate(zip(*parts, strict=True)):
    assert sorted(numbers(list(ours))) == sorted(alone[4 * step : 4 * step + 4])
    assert [len(batch["label"]) for batch in ours] == [2, 2]


def test_a_batch_that_processes_cannot_share_is_refused():
  config = DataConfig(datasets=("a",), batch_size=6)
  for pseudofakes, count, message in (
    (True, 2, "Batch size 6 must be a multiple of 4, so that each of 2 processes reads whole pairs"),
    (False, 4, "Batch size 6 must be a multiple of 4, so that each of 4 processes reads as many examples"),
  ):
    with pytest.raises(ValueError, match=message):
      data.train_dataset(
        dataclasses.replace(config, pseudofakes=pseudofakes), data_dir="", seed=0, shard=(0, count)
      )


def other_voice(talking: dict, *, seconds: float = 2.0) -> dict:
  """Another example, known to be forged: a voice without a face."""
  sound = np.round(0.2 * voices.voice(seconds=seconds, seed=8) * 32767).astype(np.int16)
  return {**talking, **NOBODY, "sound": sound, "sound_label": np.int32(1), "method": "engine"}


@pytest.mark.parametrize("degraded", [False, True])
def test_a_known_forgery_stands_beside_a_real_example_without_what_tells_recordings_apart(talking, degraded):
  inputs = ("waveform", "waveform_mask")
  fake = other_voice(talking)
  pair = data.make_pair(
    talking,
    rng=np.random.default_rng(2),
    config=WINDOW_CONFIG,
    degraded=degraded,
    inputs=inputs,
    forged=fake,
  )
  assert pair.pop("kind") == "labelled"
  np.testing.assert_array_equal(pair["sound_label"], [0, 1])
  np.testing.assert_array_equal(pair["label"], [0, 1])
  # As long as the shorter one, and equally loud, though it came a good deal softer.
  np.testing.assert_array_equal(pair["waveform_mask"].sum(axis=1), 32_000)
  levels = pair["waveform"][:, :32_000].std(axis=1)
  assert 0.5 < levels[1] / levels[0] < 2
  assert not np.array_equal(pair["waveform"][0], pair["waveform"][1])


def test_known_forgeries_come_as_often_as_asked_each_after_a_real_example(talking):
  config = dataclasses.replace(WINDOW_CONFIG, labelled_share=0.5)
  reals = Elements([talking])
  maker = data.PairMaker(config, ("waveform", "waveform_mask"), reals=reals)
  rows, forgery, _ = maker.draw(other_voice(talking), np.random.default_rng(0))
  assert (forgery.kind, forgery.method) == ("labelled", "engine")
  np.testing.assert_array_equal(rows["sound_label"], [0, 1])
  rows, forgery, _ = maker.draw(talking, np.random.default_rng(0))
  assert forgery.kind == "voice"


def test_shares_of_known_forgeries_that_make_no_sense_are_refused():
  for changes, message in (
    ({"labelled_share": 1.0}, "must be 0 or, with data.pseudofakes, below 1; got 1"),
    ({"labelled_share": 0.5, "pseudofakes": False}, "below 1; got 0.5"),
    ({"labelled_share": 0.5, "dataset_weights": (1.0,)}, "cannot be had together"),
    ({"balance_classes": True}, "has no meaning with data.pseudofakes"),
  ):
    with pytest.raises(ValueError, match=message):
      data.train_dataset(dataclasses.replace(CONFIG, **changes), data_dir="", seed=0)


def test_the_sizes_of_all_splits_are_told_without_opening_one(prepared_dataset, monkeypatch):
  monkeypatch.setattr(data, "_open", None)
  sizes = data.split_sizes(CONFIG, data_dir=prepared_dataset)
  expected = {split: len(SOURCES) * count for split, count in COUNTS.items()}
  # With the clip's examples.
  expected[face_media.CLIP_SPLIT] += face_media.CLIP_SAMPLES
  assert sizes == {"real_only": expected}
  with pytest.raises(FileNotFoundError, match=r"build it with"):
    data.split_sizes(dataclasses.replace(CONFIG, datasets=("nothing",)), data_dir=prepared_dataset)


def test_the_sizes_of_a_fold_are_those_that_its_sources_have(prepared_dataset):
  (whole,) = data.split_sizes(CONFIG, data_dir=prepared_dataset).values()
  held = []
  for number in range(2):
    config = dataclasses.replace(CONFIG, folds=2, fold=number)
    (sizes,) = data.split_sizes(config, data_dir=prepared_dataset).values()
    for split in ("train", "validation"):
      source = data.ExampleSource(["real_only"], split, prepared_dataset, fold=data.Fold.of(config))
      assert sizes[split] == len(source) != whole[split]
    assert sizes["test"] == whole["test"]
    held.append(sizes["validation"])
  assert sum(held) == whole["train"] + whole["validation"]


def test_damage_is_done_before_the_crop_is_cut(prepared_dataset):
  plain, blurred = (
    data.held_out(CONFIG, "validation", data_dir=prepared_dataset, rung=rung)
    for rung in (Rung("blur", 0), Rung("blur", 5))
  )
  untouched = data.held_out(CONFIG, "validation", data_dir=prepared_dataset)
  assert_same(plain[0], untouched[0])
  stored = plain.source[0]["faces"]
  expected = eval_crop(Rung("blur", 5).frames(stored, seed=0))
  np.testing.assert_array_equal(blurred[0]["crops"][0], expected)
  # At the borders of the crop it is not what a blur of the crop alone would be.
  alone = Rung("blur", 5).frames(untouched[0]["crops"][0], seed=0)
  assert (alone[:, 20:-20, 20:-20] == expected[:, 20:-20, 20:-20]).mean() > 0.99
  assert (alone[:, 0] != expected[:, 0]).any()


@pytest.mark.parametrize("name", ["blur", "noise", "block"])
def test_both_twins_are_damaged_alike_and_are_the_same_twins(prepared_dataset, name):
  plain, damaged = (
    data.held_out(CONFIG, "validation", data_dir=prepared_dataset, degraded=False, rung=rung)[0]
    for rung in (None, Rung(name, 1))
  )
  for key in ("region", "label", "kind", "id"):
    np.testing.assert_array_equal(plain[key], damaged[key])
  before, after = plain["crops"][:, 0].astype(int), damaged["crops"][:, 0].astype(int)
  assert (before[0] != before[1]).any() and (before != after).any()
  same = (before[0] == before[1]).all(axis=-1)[20:-20, 20:-20]
  if name == "blur":
    # Only what a pixel's surroundings hold can make its damage differ.
    same = cv2.erode(same.astype(np.uint8), np.ones((7, 7), np.uint8), borderValue=0).astype(bool)
  assert same.mean() > 0.05
  np.testing.assert_array_equal(after[0, 20:-20, 20:-20][same], after[1, 20:-20, 20:-20][same])


def test_sound_and_mouths_are_damaged_where_they_are_there():
  rng = np.random.default_rng(0)
  speech = voices.speech(seconds=2.0, seed=1)
  mouths = rng.integers(0, 256, (3, 96, 96, 3), dtype=np.uint8)
  element = {
    "faces": (),
    "face_mask": np.zeros(0, bool),
    "mouths": mouths,
    "mouth_mask": np.array([True, False, True]),
    "sound": np.round(speech * 32767).astype(np.int16),
  }
  seen = data.perturbed(element, Rung("blur", 3), seed=5)
  np.testing.assert_array_equal(seen["mouths"][[0, 2]], Rung("blur", 3).frames(mouths[[0, 2]], seed=5))
  np.testing.assert_array_equal(seen["mouths"][1], mouths[1])
  assert seen["sound"] is element["sound"]
  heard = data.perturbed(element, Rung("sound_noise", 3), seed=5)
  np.testing.assert_array_equal(heard["mouths"], mouths)
  expected = Rung("sound_noise", 3).sound(element["sound"].astype(np.float32) / 32767, seed=5)
  np.testing.assert_allclose(heard["sound"] / 32767, expected, atol=1e-4)
  assert data.perturbed(element, Rung("sound_noise", 0), seed=5)["sound"] is element["sound"]


def test_a_division_is_of_files_and_of_where_they_are(prepared_dataset, monkeypatch):
  found, index = data.division("real_only", data_dir=prepared_dataset), data._index
  monkeypatch.setattr(data, "_index", lambda *place: index(*place)[::-1] + index(*place)[:1])
  assert data.division("real_only", data_dir=prepared_dataset) == found
  other = {"train": "validation", "validation": "train"}
  monkeypatch.setattr(data, "_index", lambda name, split, folder: index(name, other[split], folder))
  assert data.division("real_only", data_dir=prepared_dataset) != found
