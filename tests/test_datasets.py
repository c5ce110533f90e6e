import json
import tarfile
import tracemalloc
import types
from collections import Counter

import face_media
import numpy as np
import pytest
import tensorflow_datasets as tfds
from absl.testing import flagsaver
from media_files import picture

from deepscan_jax import data, examples
from deepscan_jax.launch import build_dataset
from deepscan_jax.rooms import import_room

media_builder = import_room("datasets.media_builder")
real_only = import_room("datasets.real_only.real_only_dataset_builder")
real_fake_folder = import_room("datasets.real_fake_folder.real_fake_folder_dataset_builder")
SPLITS = ("train", "validation", "test")


def rows(data_dir, name: str) -> dict[str, list[dict]]:
  """The examples of each split, texts as str."""
  builder = tfds.builder_from_directory(next((data_dir / name).glob("*/dataset_info.json")).parent)
  found = {}
  for split in builder.info.splits:
    found[split] = [
      {key: value.decode() if isinstance(value, bytes) else value for key, value in row.items()}
      for row in builder.as_data_source(split)
    ]
  return found


@pytest.fixture(scope="module")
def built(prepared_dataset):
  return rows(prepared_dataset, "real_only")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
  """(data folder, examples) of real_fake_folder; anna is there as herself and as a fake."""
  root = tmp_path_factory.mktemp("labelled") / "mine"
  for number, name in enumerate(("real/anna/a.png", "real/anna/b.png", "fake/swap/anna/a.png", "fake/c.png")):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    picture(
      root / name, face_media.portrait(turn_deg=7 * number - 9, shift=(9 * number, 0), mirrored=number == 3)
    )
  data_dir = tmp_path_factory.mktemp("labelled_data")
  real_fake_folder.Builder(media_paths=[root], data_dir=data_dir).prepare()
  return data_dir, rows(data_dir, "real_fake_folder")


def test_what_can_be_used_is_in_the_split_of_its_group(built):
  counts = {split: len([row for row in found if ".png" in row["id"]]) for split, found in built.items()}
  assert counts == {split: 2 * count for split, count in face_media.COUNTS.items()}
  for split, found in built.items():
    assert {row["source"] for row in found} == set(face_media.SOURCES)
    assert all(media_builder.split_of(row["group"]) == split for row in found)


def test_no_group_is_in_two_splits(built):
  groups = [{row["group"] for row in built[split]} for split in SPLITS]
  assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
  ids = [row["id"] for found in built.values() for row in found]
  assert len(ids) == len(set(ids))


def test_an_example_follows_the_schema(built):
  row = built["train"][0]
  assert np.stack(row["faces"]).shape == (1, 256, 256, 3)
  assert row["landmarks"].shape == (1, 468, 2)
  assert row["landmarks"].dtype == row["frame_times_s"].dtype == np.float32
  assert row["face_mask"].all() and row["label"] == examples.REAL and row["method"] == ""
  assert row["landmarks"].min() > 0 and row["landmarks"].max() < 256
  # A face fills about half of these pictures of 224 px.
  assert 80 < row["face_sizes_px"][0] < 180


def test_a_clip_gives_an_example_for_each_frame(built):
  clip = [row for row in built[face_media.CLIP_SPLIT] if ".mp4" in row["id"]]
  assert len(clip) == face_media.CLIP_SAMPLES and len({row["group"] for row in clip}) == 1
  times = sorted(float(row["frame_times_s"][0]) for row in clip)
  assert np.all(np.diff(times) > 0.05) and times[0] >= 0 and times[-1] < 12 / 25


def test_what_cannot_be_used_is_listed_with_the_reason(prepared_dataset):
  (file,) = prepared_dataset.rglob("rejected.jsonl")
  found = {row["id"].rsplit("/", 1)[-1]: row for row in map(json.loads, file.read_text().splitlines())}
  assert set(found) == {"nobody.png", "letter.jpg"}
  assert found["nobody.png"]["reason"] == "no_face"
  assert found["letter.jpg"]["reason"] in ("not_media", "unsupported_type", "unreadable")
  for name, row in found.items():
    assert row["label"] == examples.REAL and row["source"] == "street"
    assert row["split"] == media_builder.split_of(f"street/street/{name}")
  assert found["letter.jpg"]["message"].endswith(".")


def test_a_second_build_leaves_what_is_there(prepared_dataset, real_media, capsys):
  before = {path: path.stat().st_mtime_ns for path in prepared_dataset.rglob("*")}
  with flagsaver.flagsaver(name="real_only", media=[str(real_media)], data_dir=str(prepared_dataset)):
    assert build_dataset.main(["build_dataset"]) == 0
  told = capsys.readouterr()
  assert "is there already; --overwrite builds it again" in told.err
  assert "train" in told.out and "no_face: 1" in told.out
  assert {path: path.stat().st_mtime_ns for path in prepared_dataset.rglob("*")} == before


def files_of(root, *names, divided_by=None) -> dict:
  for name in names:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).touch()
  builder = types.SimpleNamespace(train_splits=divided_by)
  return {file.id: file for file in real_fake_folder.Builder.media_files(builder, (root,))}


def test_folders_called_like_splits_divide_the_files(tmp_path):
  root = tmp_path / "given"
  places = {
    "Train/real/a.png": "train",
    "Train/fake/swap/a.png": "train",
    "valid/fake/swap/b.png": "validation",
    "test/real/a.png": "test",
  }
  (root / "notes").mkdir(parents=True)
  files = files_of(root, *places)
  assert {name: files[f"given/{name}"].split for name in places} == places
  assert len(files) == len(places)
  twin, fake, other = (files[f"given/{name}"] for name in list(places)[:3])
  assert twin.group == fake.group and (fake.method, fake.label) == ("swap", examples.FAKE)
  assert other.label == examples.FAKE and {file.source for file in files.values()} == {"given"}
  # The same name in another split is of somebody else.
  assert files["given/test/real/a.png"].group != twin.group


def test_without_a_folder_for_validation_a_part_of_train_becomes_that(tmp_path):
  names = [f"train/{label}/{number}.png" for label in ("real", "fake") for number in range(40)]
  files = files_of(tmp_path, *names, "test/real/0.png", divided_by=media_builder.TRAIN_SPLITS)
  of_train = [file for file in files.values() if "/train/" in file.id]
  assert {file.split for file in of_train} == {"train", "validation"}
  assert len({(file.group, file.split) for file in of_train}) == 40


@pytest.mark.parametrize(
  ("names", "error", "message"),
  [
    (("real/a.png", "test/real/a.png"), ValueError, r"folders that have such too \(test\)"),
    (("train/real/a.png", "testing/real/a.png"), ValueError, "divided into testing, train; have one folder"),
    (("val/real/a.png", "valid/real/a.png"), ValueError, "divided into val, valid; have one folder"),
    (("train/a.png",), FileNotFoundError, "has no folder real/ or fake/, nor train/"),
  ],
)
def test_folders_that_could_mean_several_things_are_refused(names, error, message, tmp_path):
  with pytest.raises(error, match=message):
    files_of(tmp_path, *names)


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    ({"media": []}, "Say which media to read"),
    (
      {"media": ["x"], "name": "nothing"},
      "Unknown dataset 'nothing'; there are .*real_fake_folder, real_only",
    ),
    (
      {"media": ["x"], "name": "dfdc/mine"},
      "dfdc has no config 'mine'; .* dashes of clips and",
    ),
    (
      {"media": ["x"], "name": "real_only/My files"},
      "A collection cannot be called 'My files': .*real_only/mine",
    ),
    (
      {"media": ["x"], "name": "real_only/jpeg95-clips"},
      "A collection cannot be called 'jpeg95'",
    ),
    (
      {"media": ["x"], "name": "faceforensics/c99"},
      "faceforensics has no config 'c99'; .* one of c23, c40, raw",
    ),
  ],
)
def test_build_dataset_says_what_it_needs(flags, message, tmp_path):
  with (
    flagsaver.flagsaver(data_dir=str(tmp_path), **flags),
    pytest.raises((build_dataset.app.UsageError, ValueError), match=message),
  ):
    build_dataset.main(["build_dataset"])


def test_fakes_are_labelled_one_and_carry_their_method(labelled):
  found = [row for split in labelled[1].values() for row in split]
  assert {row["id"]: (int(row["label"]), row["method"]) for row in found} == {
    "mine/real/anna/a.png#0.0": (examples.REAL, ""),
    "mine/real/anna/b.png#0.0": (examples.REAL, ""),
    "mine/fake/swap/anna/a.png#0.0": (examples.FAKE, "swap"),
    "mine/fake/c.png#0.0": (examples.FAKE, "unknown"),
  }


def test_a_person_stays_in_one_split_whether_real_or_fake(labelled):
  homes = {split for split, found in labelled[1].items() for row in found if "/anna/" in row["id"]}
  assert len(homes) == 1


def test_a_split_without_a_group_is_left_out_and_said_to_be_empty(labelled):
  data_dir, found = labelled
  missing = [split for split in SPLITS if split not in found]
  assert missing, "two groups cannot fill three splits"
  with pytest.raises(ValueError, match=f"Split '{missing[0]}' of real_fake_folder has no example"):
    data.ExampleSource(["real_fake_folder"], missing[0], data_dir)


def test_a_dataset_of_unusable_files_is_refused_with_the_reasons(tmp_path):
  picture(tmp_path / "nobody.png", face_media.no_face())
  with pytest.raises(ValueError, match=r"None of the 1 files of a split can be used \(no_face: 1\)"):
    real_only.Builder(media_paths=[tmp_path], data_dir=tmp_path / "data").prepare()


def test_a_root_without_real_or_fake_is_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match="no folder real/ or fake/"):
    list(real_fake_folder.Builder(data_dir=tmp_path / "data").media_files((tmp_path,)))


def test_nothing_to_build_from_is_refused(tmp_path):
  with pytest.raises(ValueError, match="No pictures, videos or sound in"):
    real_only.Builder(media_paths=[tmp_path], data_dir=tmp_path / "data").prepare()


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_folders_and_tar_files_give_the_same_pictures(tmp_path, ending):
  root, packed = tmp_path / "faces", tmp_path / f"faces.{ending}"
  for name in ("b/2.png", "a/1.jpg", "a/deep/3.webp", "a/notes.txt"):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(name.encode())
  with tarfile.open(packed, "w:gz" if ending.endswith("gz") else "w") as archive:
    archive.add(root, arcname=".")
  in_folder = list(media_builder.walk_media(root))
  in_tar = list(media_builder.walk_media(packed))
  assert [name for name, _, _ in in_folder] == ["a/1.jpg", "a/deep/3.webp", "b/2.png"]
  assert [name for name, _, _ in in_tar] == ["a/1.jpg", "a/deep/3.webp", "b/2.png"]
  # Read in any order, and again.
  for (_, path, _), (_, _, read) in [*zip(in_folder, in_tar, strict=True)][::-1] * 2:
    assert read() == path.read_bytes()
  (tmp_path / "text").write_text("no archive")
  with pytest.raises(FileNotFoundError, match="neither a folder nor a tar file"):
    list(media_builder.walk_media(tmp_path / "text"))


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_a_tar_file_that_is_cut_off_is_said_to_be(tmp_path, mode):
  picture, packed = tmp_path / "a.png", tmp_path / "faces.tar"
  picture.write_bytes(np.random.default_rng(0).bytes(60_000))
  with tarfile.open(packed, mode) as archive:
    archive.add(picture, "a.png")
  packed.write_bytes(packed.read_bytes()[:30_000])
  with pytest.raises(ValueError, match="damaged or cut off"):
    list(media_builder.walk_media(packed))


def test_files_that_are_no_pictures_are_nobodys_copies(tmp_path):
  files = []
  for name, content in (("empty", b""), ("text", b"no picture"), ("other", b"nor this")):
    (tmp_path / f"{name}.jpg").write_bytes(content)
    files.append(
      media_builder.MediaFile(
        id=f"{name}.jpg", path=tmp_path / f"{name}.jpg", label=0, group=name, source="s"
      )
    )
  assert [file.group for file in media_builder.join_copies(files)] == ["empty", "text", "other"]


def test_pictures_keep_ids_groups_and_splits_in_a_tar_file_which_is_not_held_in_memory(tmp_path):
  root, packed = tmp_path / "folder" / "faces", tmp_path / "faces.tar"
  for number in range(3):
    (root / f"source{number}").mkdir(parents=True)
  noise = np.random.default_rng(0).integers(0, 256, (4, 512, 512, 3), dtype=np.uint8)
  for number in range(12):
    # Every picture is there three times: copies are one group.
    picture(root / f"source{number % 3}" / f"{number:02d}.png", noise[number // 3])
  with tarfile.open(packed, "w") as archive:
    archive.add(root, arcname=".")

  def found(path) -> list:
    files = real_only.Builder(data_dir=tmp_path / "data").media_files((path,))
    return [
      (f.id, f.group, f.source, media_builder.split_of(f.group)) for f in media_builder.join_copies(files)
    ]

  tracemalloc.start()
  in_tar = found(packed)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert in_tar == found(root) and len(in_tar) == 12 and len({group for _, group, *_ in in_tar}) == 4
  assert peak < packed.stat().st_size / 2


def test_files_of_one_source_come_from_its_first_folder(tmp_path):
  (tmp_path / "web" / "x").mkdir(parents=True)
  (tmp_path / "web" / "x" / "1.png").write_bytes(b"")
  (tmp_path / "2.png").write_bytes(b"")
  files = real_only.Builder(data_dir=tmp_path / "data").media_files((tmp_path,))
  assert {file.id.split("/", 1)[1]: file.source for file in files} == {
    "web/x/1.png": "web",
    "2.png": tmp_path.stem,
  }


@pytest.mark.parametrize(
  ("name", "group"),
  [
    ("part1/25_0_2_20170116174525125.jpg.chip.jpg", "201701161745"),
    ("part1/61_1_20170109150557335.jpg", "201701091505"),
    ("0_0_lizi_0006.jpg", "lizi"),
    ("holiday/beach.jpg", "holiday/beach.jpg"),
  ],
)
def test_groups_are_what_a_name_tells_of_the_occasion_or_person(name, group):
  assert real_only.group_of(name) == group


def test_the_shares_of_the_splits():
  counts = Counter(media_builder.split_of(f"group {i}") for i in range(4000))
  for name, share in media_builder.SPLITS:
    assert counts[name] / 4000 == pytest.approx(share, abs=0.03)


def test_clips_alone_need_no_pictures_to_be_grouped(tmp_path):
  file = media_builder.MediaFile(id="a.mp4", path=tmp_path / "a.mp4", label=0, group="a", source="s")
  assert media_builder.join_copies([file]) == [file]


def test_copies_share_a_group(tmp_path):
  original = face_media.portrait(side=160)
  pictures = {
    "a": original,
    "b": original[::2, ::2],
    "c": np.clip(original * 0.7 + 20, 0, 255).astype(np.uint8),
    "d": original[:, ::-1],
    "e": face_media.no_face(),
  }
  files = []
  for name, pixels in pictures.items():
    path = picture(tmp_path / f"{name}.jpg", pixels, quality=70)
    files.append(media_builder.MediaFile(id=path.name, path=path, label=0, group=name, source="s"))
  groups = {file.id[0]: file.group for file in media_builder.join_copies(files)}
  assert groups["a"] == groups["b"] == groups["c"]
  assert len({groups["a"], groups["d"], groups["e"]}) == 3


def test_pngs_are_lossless():
  image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
  decoded = media_builder.cv2.imdecode(np.frombuffer(media_builder.Form().encode(image), np.uint8), 1)
  assert (decoded[..., ::-1] == image).all()
