"""The builders of the public datasets, on small folders in the official forms (dataset_layouts.py)."""

import itertools
import json
import logging
import re
import shutil
from collections import Counter
from pathlib import Path

import dataset_layouts as layouts
import face_media
import numpy as np
import pytest
from absl.testing import flagsaver
from media_files import sound, write_video
from voices import speech

from deepscan_jax import data, examples, media
from deepscan_jax.launch import build_dataset
from deepscan_jax.rooms import import_room

media_builder = import_room("datasets.media_builder")
celeb_df = import_room("datasets.celeb_df.celeb_df_dataset_builder")
faceforensics = import_room("datasets.faceforensics.faceforensics_dataset_builder")
OFFICIAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "official_splits"
ROOM = Path(celeb_df.__file__).parents[1]
WRITERS = {
  "celeb_df": layouts.celeb_df,
  "faceforensics": layouts.faceforensics,
  "dfdc": layouts.dfdc,
  "deepfake_timit": layouts.deepfake_timit,
  "wild_deepfake": layouts.wild_deepfake,
  "fakeavceleb": layouts.fakeavceleb,
  "lav_df": layouts.lav_df,
  "av_deepfake1m": layouts.av_deepfake1m,
  "asvspoof2019_la": layouts.asvspoof2019_la,
  "asvspoof2021": layouts.asvspoof2021,
}
# The parts of a dataset whose split is not an official list that is known to share people.
DISJOINT = {"celeb_df": ("train", "validation"), "av_deepfake1m": (), "asvspoof2021": ("test",)}
SPLITS = ("train", "validation", "test")


def listed(name: str, *roots: Path, tmp_path: Path, config: str | None = None, **settings):
  """(builder, {split: {id: file}}) of a dataset whose files are listed and not decoded."""
  builder = import_room(f"datasets.{name}.{name}_dataset_builder").Builder(
    config=config, media_paths=roots, data_dir=tmp_path / "data", **settings
  )
  return builder, {split: {f.id: f for f in files} for split, files in builder.split_files().items()}


def everything(splits: dict[str, dict]) -> dict:
  return {name: file for files in splits.values() for name, file in files.items()}


def rejected(builder) -> dict[str, set[str]]:
  """{reason: ids}."""
  found: dict[str, set[str]] = {}
  for row in builder.rejected:
    found.setdefault(row["reason"], set()).add(row["id"])
  return found


def people(files: dict) -> set[str]:
  return {identity for file in files.values() for identity in file.identities}


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> dict[str, Path]:
  """The root of each dataset; tests that change one make their own."""
  return {name: write(tmp_path_factory.mktemp(name)) for name, write in WRITERS.items()}


@pytest.mark.parametrize("name", WRITERS)
def test_no_identity_is_in_two_splits(name, roots, tmp_path):
  _, splits = listed(name, roots[name], tmp_path=tmp_path)
  chosen = [people(splits[split]) for split in DISJOINT.get(name, SPLITS)]
  assert all(chosen), "a split without anybody proves nothing"
  assert len(set().union(*chosen)) == sum(map(len, chosen))
  for files in splits.values():
    assert all(file.identities for file in files.values())


@pytest.mark.parametrize("name", WRITERS)
def test_ids_are_unique_stable_and_hold_no_path_of_this_machine(name, roots, tmp_path):
  moved = tmp_path / "elsewhere" / roots[name].name
  shutil.copytree(roots[name], moved)
  builder, splits = listed(name, roots[name], tmp_path=tmp_path)
  files = list(builder.media_files((roots[name],)))
  assert len({file.id for file in files}) == len(files) > 0
  _, again = listed(name, moved, tmp_path=tmp_path)
  assert {s: sorted(found) for s, found in splits.items()} == {s: sorted(found) for s, found in again.items()}
  assert not any(name.startswith("/") or str(tmp_path) in name for name in everything(splits))


@pytest.mark.parametrize("name", WRITERS)
def test_a_root_of_something_else_is_refused_with_the_layout(name, tmp_path):
  (tmp_path / "holiday").mkdir()
  with pytest.raises(FileNotFoundError, match=r"holiday has none of .*; expected .*\.$"):
    listed(name, tmp_path / "holiday", tmp_path=tmp_path)


@pytest.mark.parametrize("name", WRITERS)
def test_every_builder_says_how_to_get_the_files_and_whom_to_cite(name):
  readme = (ROOM / name / "README.md").read_text()
  assert f"--name={name}" in readme and re.search(r"https?://", readme) and "licen" in readme.lower()
  citations = (ROOM / name / "CITATIONS.bib").read_text()
  assert len(re.findall(r"^@\w+\{", citations, re.M)) == len(re.findall(r"^  year ", citations, re.M)) > 0
  kind = "audio" if name.startswith("asvspoof") else "video"
  assert f"content.data-type.{kind}" in (ROOM / name / "TAGS.txt").read_text()
  assert import_room(f"datasets.{name}.{name}_dataset_builder").Builder.get_metadata().citation


def test_celeb_df_turns_the_labels_of_its_test_list(roots, tmp_path):
  _, splits = listed("celeb_df", roots["celeb_df"], tmp_path=tmp_path)
  assert {name: file.label for name, file in splits["test"].items()} == {
    "YouTube-real/00000.mp4": examples.REAL,
    "Celeb-real/id0_0000.mp4": examples.REAL,
    "Celeb-synthesis/id0_id1_0000.mp4": examples.FAKE,
    "Celeb-synthesis/id2_id3_0000.mp4": examples.FAKE,
  }
  swap = everything(splits)["Celeb-synthesis/id0_id1_0000.mp4"]
  assert (swap.source, swap.method, swap.group) == ("Celeb-synthesis", "Celeb-synthesis", "id0")
  assert swap.identities == ("id0", "id1")


@pytest.mark.parametrize("config", ["v2", "v2_disjoint"])
def test_celeb_df_lists_the_swaps_between_splits(config, roots, tmp_path):
  builder, splits = listed("celeb_df", roots["celeb_df"], tmp_path=tmp_path, config=config)
  left_out = rejected(builder)["between_splits"]
  there = {f"{p.parent.name}/{p.name}" for p in roots["celeb_df"].rglob("*.mp4")}
  assert left_out and left_out | set(everything(splits)) == there and not left_out & set(everything(splits))
  homes = {p: split for split in SPLITS if split in splits for p in people(splits[split]) if split != "test"}
  for name in left_out:
    filmed, face = re.findall(r"id\d+", name)
    assert homes.get(filmed, "test") != homes.get(face, "test")


def test_celeb_df_can_share_nobody_with_its_test(roots, tmp_path, caplog):
  with caplog.at_level(logging.WARNING):
    _, splits = listed("celeb_df", roots["celeb_df"], tmp_path=tmp_path, config="v2_disjoint")
  assert not people(splits["test"]) & (people(splits["train"]) | people(splits["validation"]))
  assert not people(splits["train"]) & people(splits["validation"])
  assert "identities are in" not in caplog.text


def test_celeb_df_warns_that_the_official_test_shares_its_people(roots, tmp_path, caplog):
  with caplog.at_level(logging.WARNING):
    _, splits = listed("celeb_df", roots["celeb_df"], tmp_path=tmp_path)
  shared = [people(splits["test"]) & people(splits[split]) for split in ("train", "validation")]
  told = {
    match[2]: int(match[1])
    for match in re.finditer(r"celeb_df: (\d+) of \d+ identities are in (\w+ and \w+)", caplog.text)
  }
  assert told.get("test and train", 0) == len(shared[0]) > 0
  assert told.get("test and validation", 0) == len(shared[1])


def test_celeb_df_names_what_is_missing(tmp_path, caplog):
  root = layouts.celeb_df(tmp_path, test_list=["0 Celeb-synthesis/id60_id61_0009.mp4"])
  with caplog.at_level(logging.WARNING):
    builder, splits = listed("celeb_df", root, tmp_path=tmp_path)
  assert rejected(builder)["absent"] == {"Celeb-synthesis/id60_id61_0009.mp4"} and "test" not in splits
  assert "1 files are named in the lists and are not there: Celeb-synthesis/id60_id61_0009.mp4" in caplog.text
  assert "Celeb-real 40 of 590, YouTube-real 10 of 300, Celeb-synthesis 60 of 5,639" in caplog.text


@pytest.mark.parametrize(
  ("line", "message"),
  [("0 Celeb-real/id0_0000.mp4", "1 stands for real"), ("Celeb-real/id0_0000.mp4", "expected lines such as")],
)
def test_celeb_df_refuses_a_list_that_contradicts_its_folders(line, message, tmp_path):
  root = layouts.celeb_df(tmp_path, test_list=[line])
  with pytest.raises(ValueError, match=message):
    listed("celeb_df", root, tmp_path=tmp_path)


def test_celeb_df_needs_its_list_only_for_the_official_split(tmp_path):
  root = layouts.celeb_df(tmp_path, test_list=None)
  with pytest.raises(FileNotFoundError, match=r"List_of_testing_videos.txt is not there"):
    listed("celeb_df", root, tmp_path=tmp_path)
  assert set(listed("celeb_df", root, tmp_path=tmp_path, config="v2_disjoint")[1]) == set(SPLITS)


def test_celeb_df_v1_has_its_own_counts(roots, tmp_path, caplog):
  with caplog.at_level(logging.WARNING):
    listed("celeb_df", roots["celeb_df"], tmp_path=tmp_path, config="v1")
  assert "Celeb-real 40 of 158, YouTube-real 10 of 250, Celeb-synthesis 60 of 795" in caplog.text


@pytest.mark.parametrize("lists_in", ["", "splits"])
def test_faceforensics_follows_the_lists_of_pairs(lists_in, tmp_path):
  root = layouts.faceforensics(tmp_path, lists_in=lists_in)
  builder, splits = listed("faceforensics", root, tmp_path=tmp_path)
  names = {"train": "train", "validation": "val", "test": "test"}
  for split, files in splits.items():
    youtube = {name: file for name, file in files.items() if file.source == "youtube"}
    pairs = layouts.FFPP_LISTS[names[split]]
    assert len(youtube) == len(pairs) * (2 + 2 * len(layouts.FFPP_METHODS))
    assert {video for pair in pairs for video in pair} == {
      Path(name).stem for name, file in youtube.items() if file.label == examples.REAL
    }
    methods = Counter(file.method for file in youtube.values() if file.label == examples.FAKE)
    assert methods == dict.fromkeys(layouts.FFPP_METHODS, 2 * len(pairs))
  forged = splits["train"]["manipulated_sequences/Deepfakes/c23/videos/071_054.mp4"]
  assert forged.identities == ("youtube/071", "youtube/054")
  assert forged.group == splits["train"]["original_sequences/youtube/c23/videos/054.mp4"].group
  assert not any("masks" in name for name in everything(splits))
  assert set(rejected(builder)) == {"between_splits"}


def test_faceforensics_splits_the_actors_by_actor(roots, tmp_path):
  builder, splits = listed("faceforensics", roots["faceforensics"], tmp_path=tmp_path)
  used = [file for file in everything(splits).values() if file.source == "actors"]
  reals = [file for file in used if file.label == examples.REAL]
  assert sorted(file.group for file in reals) == [f"actors/{actor}" for actor in layouts.ACTORS]
  swaps = [file for file in used if file.method == "DeepFakeDetection"]
  left_out = rejected(builder)["between_splits"]
  assert len(reals) + len(swaps) == len(used)
  assert len(swaps) + len(left_out) == len(layouts.ACTORS) * (len(layouts.ACTORS) - 1) and swaps and left_out


def test_the_actors_fall_as_the_readme_says():
  actors = Counter(media_builder.split_of(f"actors/{number:02d}") for number in range(1, 29))
  assert actors == {"train": 21, "validation": 5, "test": 2}
  assert "21, 5 and 2 of the 28" in (ROOM / "faceforensics" / "README.md").read_text()


def test_faceforensics_without_lists_keeps_pairs_together(tmp_path, caplog):
  root = layouts.faceforensics(tmp_path, lists={}, actors=())
  with caplog.at_level(logging.WARNING):
    builder, splits = listed("faceforensics", root, tmp_path=tmp_path)
  assert "pairs are split by hash" in caplog.text and not builder.rejected
  groups = Counter(file.group for file in everything(splits).values())
  assert len(groups) == 5 and set(groups.values()) == {2 + 2 * len(layouts.FFPP_METHODS)}


def test_faceforensics_lists_what_its_lists_do_not_fit(tmp_path, caplog):
  lists = {"train": [["071", "054"], ["087", "111"]], "val": [["081", "720"]], "test": [["953", "974"]]}
  root = layouts.faceforensics(tmp_path, lists=lists, actors=())
  with caplog.at_level(logging.WARNING):
    builder, splits = listed("faceforensics", root, tmp_path=tmp_path)
  found = rejected(builder)
  deepfakes = "manipulated_sequences/Deepfakes/c23/videos"
  assert f"{deepfakes}/087_081.mp4" in found["between_splits"]
  assert f"{deepfakes}/012_026.mp4" in found["not_listed"]
  assert {f"{deepfakes}/087_111.mp4", "original_sequences/youtube/c23/videos/111.mp4"} <= found["absent"]
  assert "FaceShifter 10 of 1,000, DeepFakeDetection 0 of 3,068" in caplog.text
  assert {Path(name).stem for name in splits["validation"]} == {"081", "720"}


def test_faceforensics_reads_the_quality_of_its_config(tmp_path):
  root = layouts.faceforensics(tmp_path, quality="c40")
  _, splits = listed("faceforensics", root, tmp_path=tmp_path, config="c40")
  assert all("/c40/videos/" in name for name in everything(splits))
  with pytest.raises(FileNotFoundError, match=r"expected original_sequences/youtube/c23/videos/000.mp4"):
    listed("faceforensics", root, tmp_path=tmp_path, config="c23")


@pytest.mark.parametrize(
  ("lists", "error", "message"),
  [
    ({"train": [], "val": []}, FileNotFoundError, "test.json are missing"),
    ({"train": [["1"]], "val": [], "test": []}, ValueError, r"names \['1'\]; expected a pair"),
    ({"train": [["1", "2"]], "val": [["2", "3"]], "test": []}, ValueError, "video 2, which has been in a"),
  ],
)
def test_faceforensics_refuses_lists_that_are_none(lists, error, message, tmp_path):
  root = layouts.faceforensics(tmp_path, lists=lists, actors=())
  with pytest.raises(error, match=message):
    listed("faceforensics", root, tmp_path=tmp_path)


def test_dfdc_keeps_a_fake_with_its_original(roots, tmp_path):
  _, splits = listed("dfdc", roots["dfdc"], tmp_path=tmp_path)
  homes = {name: split for split, files in splits.items() for name in files}
  files = everything(splits)
  for part in (0, 1):
    for number in range(20):
      names = [f"dfdc_train_part_{part}/{kind}{part}{number:02d}.mp4" for kind in ("real", "fakea", "fakeb")]
      assert len({homes[name] for name in names}) == 1
      assert [files[name].label for name in names] == [examples.REAL, examples.FAKE, examples.FAKE]
      assert {files[name].group for name in names} == {f"real{part}{number:02d}.mp4"}
  assert files["train_sample_videos/aagfhgtpmv.mp4"].group == "vudstovrck.mp4"
  # The unlabelled test set is not used.
  assert not any("test_videos" in name for name in files) and len(files) == 2 * 60 + 2 + 2


def test_dfdc_takes_the_official_test_set(roots, tmp_path):
  _, splits = listed("dfdc", roots["dfdc"], tmp_path=tmp_path)
  assert {name: file.label for name, file in splits["test"].items()} == {
    "test/zaa.mp4": examples.FAKE,
    "test/zbb.mp4": examples.REAL,
  }


def test_dfdc_without_the_official_test_set_makes_one(tmp_path):
  root = layouts.dfdc(tmp_path, with_test=False)
  _, splits = listed("dfdc", root, tmp_path=tmp_path)
  assert {split: len(splits[split]) > 0 for split in SPLITS} == dict.fromkeys(SPLITS, True)
  chosen = [people(splits[split]) for split in SPLITS]
  assert len(set().union(*chosen)) == sum(map(len, chosen)) == 42


def test_dfdc_takes_a_part_alone_and_lists_what_does_not_fit(tmp_path, caplog):
  part = layouts.dfdc(tmp_path, with_test=False) / "dfdc_train_part_1"
  (part / "fakea100.mp4").unlink()
  layouts.placeholder(part / "stranger.mp4")
  with caplog.at_level(logging.WARNING):
    builder, splits = listed("dfdc", part, tmp_path=tmp_path)
  assert rejected(builder) == {
    "absent": {"dfdc_train_part_1/fakea100.mp4"},
    "no_label": {"dfdc_train_part_1/stranger.mp4"},
  }
  assert len(everything(splits)) == 59 and "of the 50 parts these are missing: [0, 2, 3," in caplog.text


def test_dfdc_warns_of_an_incomplete_sample(roots, tmp_path, caplog):
  with caplog.at_level(logging.WARNING):
    listed("dfdc", roots["dfdc"] / "train_sample_videos", tmp_path=tmp_path)
  assert "dfdc (train_sample_videos)" in caplog.text and "REAL 1 of 77, FAKE 1 of 323" in caplog.text


@pytest.mark.parametrize("file", ["dfdc_train_part_0/metadata.json", "test/labels.csv"])
def test_dfdc_refuses_an_unknown_label(file, tmp_path):
  root = layouts.dfdc(tmp_path)
  text = (root / file).read_text()
  (root / file).write_text(text.replace('"REAL"', '"real"', 1).replace(",1", ",FAKE"))
  with pytest.raises(ValueError, match=r"'real'; expected REAL or FAKE|'FAKE'; expected 0 or 1"):
    listed("dfdc", root, tmp_path=tmp_path)


def test_deepfake_timit_joins_the_pairs_and_reads_vidtimit(roots, tmp_path, caplog):
  with caplog.at_level(logging.WARNING):
    builder, splits = listed("deepfake_timit", roots["deepfake_timit"], tmp_path=tmp_path)
  files = everything(splits)
  assert Counter(file.method for file in files.values()) == {
    "higher_quality": 48,
    "lower_quality": 48,
    "": 50,
  }
  fake = files["higher_quality/fadg0/sa1-video-fram1.avi"]
  assert fake.label == examples.FAKE and fake.identities == ("fadg0", "fram1")
  real = files["fram1/video/sx19"]
  assert real.label == examples.REAL and len(real.frames) == 12 and not real.is_image
  assert len({file.group for file in files.values()}) == 13, "twelve pairs, and a speaker without a fake"
  assert fake.group == real.group
  assert rejected(builder)["head_rotation"] == {f"{s}/video/head" for s in (*layouts.SPEAKERS, "fcft0")}
  assert "higher_quality 48 of 320, lower_quality 48 of 320" in caplog.text


def test_deepfake_timit_says_that_fakes_alone_lack_reals(roots, tmp_path, caplog):
  root = roots["deepfake_timit"]
  with caplog.at_level(logging.WARNING):
    _, fakes = listed("deepfake_timit", root / "DeepfakeTIMIT", tmp_path=tmp_path)
  assert len(everything(fakes)) == 96 and "there is no real video; give VidTIMIT as well" in caplog.text
  caplog.clear()
  _, both = listed("deepfake_timit", root / "DeepfakeTIMIT", root / "VidTIMIT", tmp_path=tmp_path)
  assert len(everything(both)) == 146 and "no real video" not in caplog.text


def test_wild_deepfake_takes_each_folder_of_pictures_for_a_clip(tmp_path):
  root = layouts.wild_deepfake(tmp_path, frame=lambda number: str(number).encode())
  _, splits = listed("wild_deepfake", root, tmp_path=tmp_path)
  assert set(splits["test"]) == {
    f"{label}_test/{a}/{a}/{label}/{sequence}"
    for label in ("real", "fake")
    for a in (0, 1)
    for sequence in (0, 1)
  }
  files = everything(splits)
  assert Counter(file.label for file in files.values()) == {examples.REAL: 28, examples.FAKE: 28}
  # In order of the frame's number, and read from the archive in any order.
  for name in reversed(sorted(files)):
    assert [read() for read in files[name].frames] == [b"2", b"9", b"10", b"101"]
  homes = {}
  for split, found in splits.items():
    for name in found:
      homes.setdefault("/".join(name.split("/")[:2]), set()).add(split)
  assert set(map(len, homes.values())) == {1} and len(homes) == 2 * (len(layouts.WILD_ARCHIVES) + 2)


def test_wild_deepfake_is_the_same_with_blanks_in_names_and_unpacked(roots, tmp_path, caplog):
  spaced = layouts.wild_deepfake(tmp_path / "spaced", between=" ")
  with caplog.at_level(logging.WARNING):
    _, expected = listed("wild_deepfake", roots["wild_deepfake"], tmp_path=tmp_path)
  assert "real 28 of 3,805, fake 28 of 3,509" in caplog.text
  _, found = listed("wild_deepfake", spaced, tmp_path=tmp_path)
  assert {s: set(files) for s, files in found.items()} == {s: set(files) for s, files in expected.items()}
  for archive in sorted(spaced.glob("*/*.tar.gz")):
    shutil.unpack_archive(archive, archive.with_name(archive.name.removesuffix(".tar.gz")), filter="data")
    archive.unlink()
  _, found = listed("wild_deepfake", spaced.parent, tmp_path=tmp_path)
  assert {s: set(files) for s, files in found.items()} == {s: set(files) for s, files in expected.items()}


def test_fakeavceleb_follows_its_list(roots, tmp_path, caplog):
  with caplog.at_level(logging.WARNING):
    builder, splits = listed("fakeavceleb", roots["fakeavceleb"], tmp_path=tmp_path)
  files, left_out = everything(splits), rejected(builder)
  assert len(files) + len(left_out["between_splits"]) == 5 * 24
  assert {"RealVideo-RealAudio/African/men/id00003/00109_real.mp4"} <= set(files)
  for name, file in files.items():
    kind = name.split("/")[0]
    forged = {"face_label": "FakeVideo" in kind, "sound_label": "FakeAudio" in kind}
    assert file.labels == {key: examples.FAKE if fake else examples.REAL for key, fake in forged.items()}
    assert file.label == max(file.labels.values())
    assert file.path.is_file() and file.source == "African, men" and file.group == name.split("/")[3]
    assert file.method == ("" if file.label == examples.REAL else file.path.stem.removeprefix("00109_"))
    assert len(file.identities) == (2 if file.method in ("faceswap", "fsgan-wav2lip") else 1)
  assert "RealVideo-RealAudio 24 of 500, RealVideo-FakeAudio 24 of 500" in caplog.text


def test_fakeavceleb_lists_what_is_absent_and_refuses_unknown_types(tmp_path):
  root = layouts.fakeavceleb(tmp_path)
  absent = "RealVideo-RealAudio/African/men/id00003/00109_real.mp4"
  (root / absent).unlink()
  builder, splits = listed("fakeavceleb", tmp_path, tmp_path=tmp_path)
  assert rejected(builder)["absent"] == {absent} and absent not in everything(splits)
  table = root / "meta_data.csv"
  table.write_text(table.read_text().replace(",RealVideo-RealAudio,", ",Real,", 1))
  with pytest.raises(ValueError, match=r"the type 'Real'; expected one of RealVideo-RealAudio"):
    listed("fakeavceleb", root, tmp_path=tmp_path)


def test_lav_df_follows_its_list(roots, tmp_path, caplog):
  with caplog.at_level(logging.WARNING):
    builder, splits = listed("lav_df", roots["lav_df"], tmp_path=tmp_path)
  assert {split: set(files) for split, files in splits.items()} == {
    split: {f"{folder}/00000{number}.mp4" for number in range(4)}
    for split, folder in (("train", "train"), ("validation", "dev"), ("test", "test"))
  }
  assert not rejected(builder)
  for split, files in splits.items():
    real, seen, heard, both = (files[name] for name in sorted(files))
    found = (real, seen, heard, both)
    assert [file.label for file in found] == [0, 1, 1, 1], split
    assert [file.labels["face_label"] for file in found] == [0, 1, 0, 1]
    assert [file.labels["sound_label"] for file in found] == [0, 0, 1, 1]
    assert [file.method for file in found] == [
      "",
      "picture",
      "sound",
      "picture and sound",
    ]
    assert real.group == seen.group == heard.group == both.group == real.id
    assert real.forged_spans_s is None and seen.forged_spans_s == ((1.2, 1.9),)
    assert heard.forged_spans_s is None and heard.forged_sound_spans_s == ((1.2, 1.9),)
  assert "real 3 of 36,431, fake 9 of 99,873" in caplog.text


def test_lav_df_lists_what_is_absent_and_refuses_unknown_splits(tmp_path):
  root = layouts.lav_df(tmp_path)
  (root / "dev" / "000001.mp4").unlink()
  assert rejected(listed("lav_df", root, tmp_path=tmp_path)[0])["absent"] == {"dev/000001.mp4"}
  table = root / "metadata.min.json"
  table.write_text(table.read_text().replace('"split": "dev"', '"split": "val"', 1))
  with pytest.raises(ValueError, match=r"into 'val'; expected train, dev, test"):
    listed("lav_df", root, tmp_path=tmp_path)


@pytest.mark.parametrize("facts", ["list", "folder", "beside"])
@pytest.mark.parametrize("both", ["both_modified", "both-modified"])
def test_av_deepfake1m_reads_its_three_forms(facts, both, tmp_path, caplog):
  root = layouts.av_deepfake1m(tmp_path, facts=facts, both=both)
  with caplog.at_level(logging.WARNING):
    builder, splits = listed("av_deepfake1m", root, tmp_path=tmp_path)
  assert {split: people(files) for split, files in splits.items()} == {
    "train": {"id00012", "id00015"},
    "validation": {"id00015", "id00018"},
  }
  assert "1 of 3 identities are in train and validation" in caplog.text
  assert "train 8 of 746,180, val 8 of 57,340" in caplog.text
  clip = "train/id00012/21Uxsk56VDQ/00001"
  found = {n.removeprefix(f"{clip}/"): f for n, f in splits["train"].items() if n.startswith(clip)}
  assert {n: (f.label, f.method, f.forged_spans_s) for n, f in found.items()} == {
    "real.mp4": (examples.REAL, "", None),
    "fake_video_real_audio.mp4": (examples.FAKE, "picture", ((3.28, 3.46),)),
    "real_video_fake_audio.mp4": (examples.FAKE, "sound", None),
    "fake_video_fake_audio.mp4": (examples.FAKE, "picture and sound", ((3.28, 3.46),)),
  }
  assert len({f.group for f in found.values()}) == 1
  heard = {n.removesuffix(".mp4"): f.forged_sound_spans_s for n, f in found.items()}
  assert heard["real_video_fake_audio"] and heard["fake_video_fake_audio"]
  assert heard["real"] is None and heard["fake_video_real_audio"] is None
  assert not rejected(builder)


def test_av_deepfake1m_lists_what_is_absent_and_refuses_unknown_types(tmp_path):
  root = layouts.av_deepfake1m(tmp_path)
  absent = "val/id00018/21Uxsk56VDQ/00002/real.mp4"
  (root / absent).unlink()
  assert rejected(listed("av_deepfake1m", root, tmp_path=tmp_path)[0])["absent"] == {absent}
  table = root / "train_metadata.json"
  table.write_text(table.read_text().replace('"visual_modified"', '"morphed"', 1))
  with pytest.raises(ValueError, match="modify_type 'morphed'; expected one of real"):
    listed("av_deepfake1m", root, tmp_path=tmp_path)


def test_asvspoof2019_la_follows_its_protocols(roots, tmp_path, caplog):
  with caplog.at_level(logging.WARNING):
    builder, splits = listed("asvspoof2019_la", roots["asvspoof2019_la"], tmp_path=tmp_path)
  official_names = {"train": "train", "dev": "validation", "eval": "test"}
  for part, letter, _, speakers, attacks in layouts.ASVSPOOF_2019:
    files = splits[official_names[part]]
    assert set(files) == {
      f"ASVspoof2019_LA_{part}/flac/LA_{letter}_{1000137 + 7 * n}.flac" for n in range(10)
    }
    assert Counter((f.group, f.method) for f in files.values()) == {
      (speaker, method): 1 if method else 2 for speaker in speakers for method in ("", *attacks)
    }
  for file in everything(splits).values():
    forged = examples.FAKE if file.method else examples.REAL
    assert file.is_sound and file.label == file.labels["sound_label"] == forged
    assert (file.identities, file.source) == ((file.group,), "LA")
  # Official lines, genuine and forged.
  assert splits["train"]["ASVspoof2019_LA_train/flac/LA_T_1000137.flac"].label == examples.REAL
  assert splits["train"]["ASVspoof2019_LA_train/flac/LA_T_1000151.flac"].method == "A01"
  assert rejected(builder) == {
    "no_label": {f"ASVspoof2019_LA_{p}/flac/LA_{p[0].upper()}_A0001.flac" for p in ("dev", "eval")}
  }
  assert (
    "train bonafide 4 of 2,580, train spoof 6 of 22,800, dev bonafide 4 of 2,548, dev spoof 6 of 22,296, "
    "eval bonafide 4 of 7,355, eval spoof 6 of 63,882"
  ) in caplog.text
  assert "identities are in" not in caplog.text


def test_asvspoof2019_la_is_silent_where_the_counts_are_official(roots, tmp_path, caplog, monkeypatch):
  module = import_room("datasets.asvspoof2019_la.asvspoof2019_la_dataset_builder")
  kinds = {
    f"{part} {key}": n for part, *_ in layouts.ASVSPOOF_2019 for key, n in (("bonafide", 4), ("spoof", 6))
  }
  assert set(kinds) == set(module._OFFICIAL_COUNTS)
  monkeypatch.setattr(module, "_OFFICIAL_COUNTS", kinds)
  with caplog.at_level(logging.WARNING):
    listed("asvspoof2019_la", roots["asvspoof2019_la"], tmp_path=tmp_path)
  assert not caplog.text


def test_asvspoof2019_la_warns_of_a_speaker_in_two_lists_and_names_what_is_absent(tmp_path, caplog):
  root = layouts.asvspoof2019_la(tmp_path)
  protocol = root / "ASVspoof2019_LA_cm_protocols" / "ASVspoof2019.LA.cm.dev.trl.txt"
  protocol.write_text(protocol.read_text().replace("LA_0070", "LA_0079"))
  absent = "ASVspoof2019_LA_eval/flac/LA_E_1000137.flac"
  (root / absent).unlink()
  with caplog.at_level(logging.WARNING):
    builder, splits = listed("asvspoof2019_la", tmp_path, tmp_path=tmp_path)
  assert "1 of 5 identities are in train and validation" in caplog.text
  assert rejected(builder)["absent"] == {absent} and absent not in everything(splits)
  assert f"1 files are named in the lists and are not there: {absent}" in caplog.text


@pytest.mark.parametrize(
  ("name", "protocol", "old", "new", "message"),
  [
    (
      "asvspoof2019_la",
      "LA/*/*train.trn.txt",
      "- bonafide",
      "- genuine",
      "line 1 has the key 'genuine'; exp",
    ),
    ("asvspoof2019_la", "LA/*/*train.trn.txt", " - - bonafide", "", "line 1 is 'LA_0079 LA_T_1000137'; exp"),
    (
      "asvspoof2019_la",
      "LA/*/*eval.trl.txt",
      "1000144",
      "1000137",
      "line 2 names LA_E_1000137, which an earl",
    ),
    ("asvspoof2021", "keys/LA/CM/*.txt", " bonafide notrim", " real notrim", "line 2 has the key 'real'"),
    ("asvspoof2021", "keys/LA/CM/*.txt", " hidden", " secret", "LA_E_5894728 into 'secret'; expected eval"),
    (
      "asvspoof2021",
      "keys/LA/CM/*.txt",
      " notrim eval",
      "",
      "line 1 is 'LA_0009 .* expected 8 words or more",
    ),
  ],
)
def test_asvspoof_refuses_lines_that_it_cannot_read(name, protocol, old, new, message, tmp_path):
  root = WRITERS[name](tmp_path / "root")
  (path,) = (tmp_path / "root").glob(protocol)
  text = path.read_text()
  assert old in text
  path.write_text(text.replace(old, new, 1))
  with pytest.raises(ValueError, match=f"{path.name}.*{message}"):
    listed(name, root, tmp_path=tmp_path)


def test_asvspoof2019_la_needs_all_three_protocols(tmp_path):
  root = layouts.asvspoof2019_la(tmp_path)
  (root / "ASVspoof2019_LA_cm_protocols" / "ASVspoof2019.LA.cm.dev.trl.txt").unlink()
  with pytest.raises(
    FileNotFoundError, match=r"cm.dev.trl.txt is not there; it holds lines such as 'LA_0079"
  ):
    listed("asvspoof2019_la", root, tmp_path=tmp_path)


@pytest.mark.parametrize("track", ["la", "df"])
def test_asvspoof2021_tests_on_every_subset(track, roots, tmp_path, caplog):
  with caplog.at_level(logging.WARNING):
    builder, splits = listed("asvspoof2021", roots["asvspoof2021"], tmp_path=tmp_path, config=track)
  assert set(splits) == {"test"} and not builder.rejected
  found = {Path(n).stem: (f.label, f.group, f.source, f.method) for n, f in splits["test"].items()}
  assert (
    found
    == {
      "la": {
        "LA_E_9332881": (examples.FAKE, "LA_0009", "LA, alaw, ita_tx", "A07"),
        "LA_E_7170765": (examples.REAL, "LA_0018", "LA, g722, loc_tx, progress", ""),
        "LA_E_5894728": (examples.FAKE, "LA_0023", "LA, none, none, hidden", "A13"),
      },
      "df": {
        "DF_E_2000011": (examples.FAKE, "LA_0023", "DF, nocodec, asvspoof, progress", "A14"),
        "DF_E_2000013": (examples.FAKE, "TEF2", "DF, low_m4a, vcc2020", "Task1-team20"),
        "DF_E_2000026": (examples.REAL, "TEM1", "DF, mp3m4a, vcc2020", ""),
      },
    }[track]
  )
  counts = {
    "la": "bonafide 1 of 18,452, spoof 2 of 163,114",
    "df": "bonafide 1 of 22,617, spoof 2 of 589,212",
  }
  assert f"asvspoof2021/{track}: not as many files as the official set has: {counts[track]}" in caplog.text


@pytest.mark.parametrize("keys_in", ["keys", "LA-keys-full/keys", "ASVspoof2021_LA_eval/keys", "apart"])
def test_asvspoof2021_finds_its_keys(keys_in, tmp_path):
  root = layouts.asvspoof2021(tmp_path / "root", keys_in=keys_in)
  paths = [root, root / "apart"] if keys_in == "apart" else [root]
  _, splits = listed("asvspoof2021", *paths, tmp_path=tmp_path)
  assert set(splits["test"]) == {
    f"ASVspoof2021_LA_eval/flac/{line.split()[1]}.flac" for line in layouts.ASVSPOOF_2021["LA"]
  }


def test_asvspoof2021_says_how_to_get_its_keys_and_lists_what_they_do_not_fit(tmp_path):
  root = layouts.asvspoof2021(tmp_path / "bare", keys_in="")
  with pytest.raises(FileNotFoundError, match=r"come without labels. Unpack https://.*/LA-keys-full.tar.gz"):
    listed("asvspoof2021", root, tmp_path=tmp_path)
  root = layouts.asvspoof2021(tmp_path / "root")
  flac = root / "ASVspoof2021_LA_eval" / "flac"
  (flac / "LA_E_9332881.flac").rename(flac / "LA_E_1.flac")
  builder, splits = listed("asvspoof2021", root, tmp_path=tmp_path)
  assert rejected(builder) == {
    "absent": {"ASVspoof2021_LA_eval/flac/LA_E_9332881.flac"},
    "no_label": {"ASVspoof2021_LA_eval/flac/LA_E_1.flac"},
  }
  assert len(splits["test"]) == 2


def test_asvspoof2019_la_is_built_and_heard_as_the_detector_hears_it(tmp_path):
  seeds = itertools.count()

  def fill(path: Path) -> None:
    number = next(seeds)
    if path.stem == "LA_T_1000144":
      path.write_bytes(b"fLaC and no more")
    else:
      sound(path, speech(seconds=9.3 if number == 0 else 1.2, seed=number), sample_rate_hz=16_000)

  root = layouts.asvspoof2019_la(tmp_path, fill=fill)
  builder = import_room("datasets.asvspoof2019_la.asvspoof2019_la_dataset_builder").Builder(
    media_paths=[root], data_dir=tmp_path / "data"
  )
  builder.prepare()
  (line,) = [
    row
    for row in map(json.loads, (Path(builder.data_dir) / "rejected.jsonl").read_text().splitlines())
    if row["reason"] != "no_label"
  ]
  assert line["id"] == "ASVspoof2019_LA_train/flac/LA_T_1000144.flac" and line["message"].endswith(".")
  keys = ("waveform", "waveform_mask", "file_facts", "file_facts_mask")
  names = {"train": "train", "validation": "dev", "test": "eval"}
  for split, part in names.items():
    source = data.ExampleSource(["asvspoof2019_la"], split, tmp_path / "data", inputs=keys)
    held_out = data.HeldOutExamples(source)
    heard = {row["id"]: row for row in (held_out[i] for i in range(len(held_out)))}
    labels = Counter(int(row["label"][0]) for row in heard.values())
    assert labels == {examples.REAL: 5 if part == "train" else 4, examples.FAKE: 6}
    for path in sorted((root / f"ASVspoof2019_LA_{part}" / "flac").glob("LA_[TDE]_1*.flac")):
      if path.stem == "LA_T_1000144":
        continue
      clip = media.decode_clip(path)
      cut = examples.sound_windows(clip, window=held_out.window, most=8)
      assert len(cut) == (3 if path.stem == "LA_T_1000137" else 1)
      for index, example in enumerate(cut):
        row = heard.pop(f"ASVspoof2019_LA_{part}/flac/{path.name}#sound.{index}")
        expected = examples.model_inputs(example, window=held_out.window.reading(keys), keys=keys)
        for key in keys:
          np.testing.assert_array_equal(row[key][0], expected[key], err_msg=key)
        assert int(row["sound_label"][0]) == int(row["label"][0]) and row["kind"] == "voice"
    assert not heard


def official(name: str) -> Path:
  if not (OFFICIAL / name).is_file():
    pytest.skip(f"the official {name} is not here")
  return OFFICIAL / name


def test_the_official_list_of_celeb_df(tmp_path):
  names = celeb_df.read_test_list(official("celebdf_v2_List_of_testing_videos.txt"))
  assert Counter(name.split("/")[0] for name in names) == {
    "Celeb-synthesis": 340,
    "Celeb-real": 108,
    "YouTube-real": 70,
  }
  # Why a training set without the people of the test is no choice.
  assert len({person for name in names for person in re.findall(r"id\d+", name)}) == 56
  # What splits that share nobody cost, as the README says.
  swaps = [re.findall(r"id\d+", name) for name in names if name.startswith("Celeb-synthesis")]
  assert Counter(map(media_builder.common_split, swaps)) == {
    "train": 186,
    "validation": 3,
    "test": 5,
    None: 146,
  }


def test_the_official_lists_of_faceforensics(tmp_path):
  for split in ("train", "val", "test"):
    shutil.copy(official(f"ffpp_{split}.json"), tmp_path / f"{split}.json")
  videos = faceforensics.read_pairs(tmp_path)
  assert set(videos) == {f"{number:03d}" for number in range(1000)}
  assert Counter(split for split, _ in videos.values()) == {"train": 720, "validation": 140, "test": 140}
  assert set(Counter(videos.values()).values()) == {2}


def test_the_official_list_of_the_dfdc_sample(tmp_path, caplog):
  folder = tmp_path / "train_sample_videos"
  folder.mkdir()
  shutil.copy(official("dfdc_train_sample_metadata.json"), folder / "metadata.json")
  layouts.write(folder, json.loads((folder / "metadata.json").read_text()))
  with caplog.at_level(logging.WARNING):
    builder, splits = listed("dfdc", folder, tmp_path=tmp_path)
  assert Counter(file.label for file in everything(splits).values()) == {
    examples.REAL: 77,
    examples.FAKE: 323,
  }
  assert not builder.rejected and not caplog.text


def built(name: str, data_dir: Path, split: str) -> list[dict]:
  """The examples of a split, as training reads them."""
  source = data.ExampleSource([name], split, data_dir)
  return [source[index] for index in range(len(source))]


def test_a_config_is_built_from_the_command_line_and_found_under_its_name(tmp_path, capsys):
  lists = {"train": [["071", "054"]], "val": [], "test": [["953", "974"]]}
  videos = [f"original_sequences/youtube/c23/videos/{name}.mp4" for name in ("054", "974")]
  videos += [f"manipulated_sequences/Deepfakes/c23/videos/{name}.mp4" for name in ("071_054", "953_974")]
  frames = face_media.moving_portrait(2)
  root = layouts.write(tmp_path / "root", videos, lambda path: write_video(path, frames))
  for split, pairs in lists.items():
    layouts.write_json(root / "splits" / f"{split}.json", pairs)
  data_dir = tmp_path / "data"
  with flagsaver.flagsaver(
    name="faceforensics/c23",
    media=[str(root)],
    data_dir=str(data_dir),
    frames_per_clip=1,
    overwrite=False,
    folds=5,
    fold=2,
  ):
    assert build_dataset.main(["build_dataset"]) == 0
  told = capsys.readouterr().out
  data_dir = data_dir / "fold_2_of_5"
  assert str(data_dir / "faceforensics" / "c23") in told and "absent: 4" in told
  for split, pair in (("train", "youtube/054_071"), ("test", "youtube/953_974")):
    rows = sorted(built("faceforensics/c23", data_dir, split), key=lambda row: int(row["label"]))
    assert [int(row["label"]) for row in rows] == [examples.REAL, examples.FAKE]
    assert [row["method"] for row in rows] == ["", "Deepfakes"]
    assert {row["group"] for row in rows} == {pair} and {row["source"] for row in rows} == {"youtube"}
    assert rows[0]["faces"].shape == (1, 256, 256, 3) and rows[0]["faces"].any()
  with pytest.raises(FileNotFoundError, match=r"build_dataset --name=faceforensics/c40 --media"):
    data.ExampleSource(["faceforensics/c40"], "train", data_dir)


def test_clips_of_pictures_become_examples_in_order_of_time(tmp_path):
  def frame(number: int) -> bytes:
    view = face_media.portrait(shift=(number / 10, 0), turn_deg=number / 20)
    return media_builder.Form().encode(view)

  root = layouts.wild_deepfake(tmp_path, frame=frame, train=(), test=(0,))
  builder = import_room("datasets.wild_deepfake.wild_deepfake_dataset_builder").Builder(
    media_paths=[root], frames_per_clip=2, data_dir=tmp_path / "data"
  )
  builder.prepare()
  rows = built("wild_deepfake", tmp_path / "data", "test")
  # The first and the third of the four pictures, 2 and 10, of two real and two fake sequences.
  assert Counter(int(row["label"]) for row in rows) == {examples.REAL: 4, examples.FAKE: 4}
  for group in {row["group"] for row in rows}:
    times = [float(row["frame_times_s"][0]) for row in rows if row["group"] == group]
    assert sorted(times) == pytest.approx([0, 2 / 25])
  assert not builder.rejected


def test_pictures_of_a_clip_that_differ_in_size_or_are_damaged_are_listed(tmp_path):
  files = [
    media_builder.MediaFile(
      id=name,
      path=None,
      label=examples.FAKE,
      group=name,
      source="s",
      frames=tuple(lambda d=d: d for d in frames),
    )
    for name, frames in {
      "unequal": [
        media_builder.Form().encode(np.zeros(shape, np.uint8)) for shape in ((40, 40, 3), (40, 42, 3))
      ],
      "damaged": [b"no picture"],
    }.items()
  ]
  builder = celeb_df.Builder(data_dir=tmp_path / "data")
  assert not list(builder.encode_examples(files))
  reasons = {row["id"]: row["reason"] for row in builder.rejected}
  assert reasons["unequal"] == "unequal_frames" and reasons["damaged"] in ("not_media", "unsupported_type")


def test_only_the_forged_seconds_of_a_fake_become_examples(tmp_path):
  frames = face_media.moving_portrait(10)
  root = layouts.lav_df(tmp_path / "root", fake_periods=[[0.1, 0.18], [5.0, 6.0]])
  rows = [row for row in json.loads((root / "metadata.min.json").read_text()) if row["split"] == "train"][:2]
  rows.append({**rows[1], "file": "train/000009.mp4", "fake_periods": [[5.0, 6.0]]})
  for row in rows:
    write_video(root / row["file"], frames)
  layouts.write_json(root / "metadata.min.json", rows)
  builder = import_room("datasets.lav_df.lav_df_dataset_builder").Builder(
    media_paths=[root], frames_per_clip=5, data_dir=tmp_path / "data"
  )
  builder.prepare()
  times: dict[int, list[float]] = {examples.REAL: [], examples.FAKE: []}
  for row in built("lav_df", tmp_path / "data", "train"):
    times[int(row["label"])].append(float(row["frame_times_s"][0]))
  assert len(times[examples.REAL]) == 5
  assert sorted(times[examples.FAKE]) == pytest.approx([0.12, 0.16])  # at 25 a second, all that lie in a span
  assert [(row["id"], row["reason"]) for row in builder.rejected] == [("train/000009.mp4", "no_forged_frame")]


def media_file(name: str, group: str, identities=(), split=None):
  return media_builder.MediaFile(
    id=name, path=Path(name), label=0, group=group, source="s", identities=identities, split=split
  )


def test_groups_that_share_an_identity_directly_or_not_are_joined():
  files = [
    media_file("a.mp4", "g3", ("x", "y")),
    media_file("b.mp4", "g2", ("y", "z")),
    media_file("c.mp4", "g1", ("z",)),
    media_file("d.mp4", "g0", ("w",)),
    media_file("e.mp4", "g4"),
    media_file("f.mp4", "g5", ("x",), split="test"),
  ]
  assert [file.group for file in media_builder.join_identities(files)] == ["g1", "g1", "g1", "g0", "g4", "g5"]
  assert media_builder.join_identities(files[3:]) == files[3:]


def test_people_have_a_common_split_only_where_their_hashes_agree():
  names = [f"person {number}" for number in range(60)]
  for a, b in itertools.pairwise(names):
    splits = {media_builder.split_of(a), media_builder.split_of(b)}
    expected = splits.pop() if len(splits) == 1 else None
    assert media_builder.common_split((a, b)) == media_builder.common_split((b, a)) == expected
  counts = Counter(media_builder.split_of(f"group {i}", media_builder.TRAIN_SPLITS) for i in range(4000))
  assert counts["validation"] / 4000 == pytest.approx(0.15, abs=0.02) and set(counts) == {
    "train",
    "validation",
  }


@pytest.mark.parametrize("name", ["fakeavceleb", "deepfake_timit", "faceforensics", "dfdc", "celeb_df"])
def test_each_identity_is_tested_and_validated_in_one_fold_each_and_splits_are_disjoint(name, tmp_path):
  # Nothing official in the way: no lists, no labelled test set.
  settings = {"dfdc": {"with_test": False}, "faceforensics": {"lists": {}}}
  root = WRITERS[name](tmp_path / name, **settings.get(name, {}))
  config = "v2_disjoint" if name == "celeb_df" else None
  tested, validated = Counter(), Counter()
  for fold in range(1, 6):
    _, splits = listed(name, root, tmp_path=tmp_path, config=config, folds=5, fold=fold)
    chosen = [people(splits.get(split, {})) for split in SPLITS]
    assert len(set().union(*chosen)) == sum(map(len, chosen))
    validated.update(chosen[1])
    tested.update(chosen[2])
  for times in (validated, tested):
    assert set(times.values()) == {1} and set(times) == set().union(*chosen)


@pytest.mark.parametrize("name", ["wild_deepfake", "celeb_df"])
def test_folds_leave_an_official_test_set_as_it_is(name, roots, tmp_path):
  _, fixed = listed(name, roots[name], tmp_path=tmp_path)
  held_out: Counter[str] = Counter()
  for fold in range(1, 6):
    _, splits = listed(name, roots[name], tmp_path=tmp_path, folds=5, fold=fold)
    assert set(splits["test"]) == set(fixed["test"])
    held_out.update(people(splits.get("validation", {})))
  assert set(held_out.values()) == {1}
  rest = people(fixed["train"]) | people(fixed["validation"])
  # A celebrity whose every video is in the official test set is never held out.
  assert set(held_out) == rest if name == "wild_deepfake" else set(held_out) >= rest - people(fixed["test"])


@pytest.mark.parametrize(("folds", "fold"), [(2, 1), (5, 0), (5, 6)])
def test_folds_that_cannot_be_are_refused(folds, fold, tmp_path):
  with pytest.raises(ValueError, match=f"no fold {fold} of {folds}"):
    celeb_df.Builder(data_dir=tmp_path, folds=folds, fold=fold)
