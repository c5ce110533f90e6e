"""How datasets are built: in parts, by several processes, on Beam, and from where a build was stopped."""

import io
import json
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import crashing_builder
import face_media
import pytest
from absl.testing import flagsaver
from media_files import picture

from deepscan_jax.launch import build_dataset
from deepscan_jax.rooms import import_room

building = import_room("datasets.building")
media_builder = import_room("datasets.media_builder")
Builder = import_room("datasets.real_only.real_only_dataset_builder").Builder
VERSION = str(Builder.VERSION)
TWO_ON_BEAM = "--runner=DirectRunner --direct_num_workers=2 --direct_running_mode=multi_processing"


def manifest(data_dir: Path) -> str:
  (found,) = data_dir.rglob(building.MANIFEST)
  return found.read_text()


def rejected(data_dir: Path) -> list[dict]:
  (found,) = data_dir.rglob(building.REJECTED)
  return [json.loads(line) for line in found.read_text().splitlines()]


def builder_of(media: Path, data_dir: Path):
  return Builder(media_paths=[media], frames_per_clip=face_media.CLIP_SAMPLES, data_dir=data_dir)


def test_several_processes_give_the_same_bytes_as_one(prepared_dataset, real_media, tmp_path, capsys):
  builder_of(real_media, tmp_path).prepare(workers=2)
  assert manifest(tmp_path) == manifest(prepared_dataset)
  assert "15/15" in capsys.readouterr().err
  assert [path.name for path in (tmp_path / "real_only").iterdir()] == [VERSION]


def test_beam_gives_the_same_bytes(prepared_dataset, real_media, tmp_path):
  pytest.importorskip("apache_beam")
  builder_of(real_media, tmp_path).prepare(beam_options=TWO_ON_BEAM)
  assert manifest(tmp_path) == manifest(prepared_dataset)


def test_beam_that_is_not_there_and_options_that_are_none_are_said_to_be(real_media, tmp_path, monkeypatch):
  monkeypatch.setattr(building.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match=r"Apache Beam is not installed; `pip install 'deepscan_jax\[beam\]'`"):
    builder_of(real_media, tmp_path).prepare(beam_options="--runner=DirectRunner")
  assert not list(tmp_path.iterdir())


KILLED = """
import os, signal
from deepscan_jax import compilation_cache
from deepscan_jax.rooms import import_room

compilation_cache.switch_on({cache!r})
building = import_room("datasets.building")
calls = 0

def killing(function):
  def call(*args):
    global calls
    calls += 1
    if calls == {call}:
      os.kill(os.getpid(), signal.SIGKILL)
    return function(*args)
  return call

{target} = killing({target})
import_room("datasets.real_only.real_only_dataset_builder").Builder(
  media_paths=[{media!r}], frames_per_clip={frames}, data_dir={data_dir!r}
).prepare()
"""


def test_a_build_that_is_killed_goes_on_where_it_was(
  prepared_dataset, real_media, tmp_path, monkeypatch, capsys
):
  import jax

  def build_until(target: str, call: int) -> None:
    code = KILLED.format(
      target=target,
      call=call,
      cache=str(Path(jax.config.jax_compilation_cache_dir).parent),
      media=str(real_media),
      frames=face_media.CLIP_SAMPLES,
      data_dir=str(tmp_path),
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr

  # In the middle of the second part: the first fsync is the fingerprint's.
  build_until("building.os.fsync", 3)
  work = tmp_path / "real_only" / f"{VERSION}.parts"
  assert [path.name for path in work.glob("*.part")] == ["train-000000.part"]
  assert len(list(work.glob(".*.tmp"))) == 1
  # While TFDS writes, when all parts are there.
  build_until("building.writer.Writer.finalize", 2)
  assert {path.name for path in tmp_path.rglob("*.part")} == {
    *(f"{split}-000000.part" for split in ("train", "validation", "test")),
    "test-000001.part",
  }
  monkeypatch.setattr(building, "compute_part", None)  # Nothing is left to decode.
  builder_of(real_media, tmp_path).prepare()
  assert "Going on with a build that was stopped: 15 files are done." in capsys.readouterr().err
  assert manifest(tmp_path) == manifest(prepared_dataset)
  assert [path.name for path in (tmp_path / "real_only").iterdir()] == [VERSION]


def test_a_build_of_something_else_is_begun_anew(tmp_path, capsys):
  folder = tmp_path / VERSION
  facts = {"media": "a", "settings": {"frames_per_clip": "32"}}
  with building._working_folder(folder, facts) as work:
    (work / "train-000000.part").touch()
  with building._working_folder(folder, facts) as work:
    assert (work / "train-000000.part").exists() and not capsys.readouterr().err
  with building._working_folder(folder, {**facts, "media": "b"}) as work:
    assert not (work / "train-000000.part").exists()
  assert "begun anew, because of other media." in capsys.readouterr().err


def test_what_a_part_depends_on_is_in_the_fingerprint(tmp_path):
  path = picture(tmp_path / "a.png", face_media.no_face())
  file = media_builder.MediaFile(id="a.png", path=path, label=0, group="g", source="s")

  def of(file=file, split="train", **settings) -> dict:
    return building.fingerprint(Builder(data_dir=tmp_path / "data", **settings), {split: [file]})

  assert of() == of(media_paths=[tmp_path])
  assert of()["settings"] != of(frames_per_clip=3)["settings"] != of(folds=3)["settings"]
  replace = media_builder.dataclasses.replace
  moved = shutil.copy2(path, tmp_path / "b.png")
  assert of()["media"] == of(replace(file, path=Path(moved)))["media"]
  for other in ({"label": 1}, {"group": "h"}, {"method": "m"}, {"forged_spans_s": ((0.0, 1.0),)}):
    assert of()["media"] != of(replace(file, **other))["media"]
  assert of()["media"] != of(split="test")["media"]
  # The sound beside a film, wherever both lie.
  heard = of(replace(file, sound_path=path))["media"]
  assert of()["media"] != heard == of(replace(file, sound_path=Path(moved)))["media"]
  before = of()
  path.write_bytes(path.read_bytes() + b".")
  assert of()["media"] != before["media"]


def test_two_processes_do_not_build_one_dataset(tmp_path):
  with (
    building._working_folder(tmp_path / VERSION, {}),
    pytest.raises(ValueError, match="Another process is building"),
    building._working_folder(tmp_path / VERSION, {}),
  ):
    pass


def test_a_file_that_crashes_the_decoder_is_rejected_and_the_others_are_not(tmp_path, capsys):
  media = tmp_path / "media"
  media.mkdir()
  for number in (1, 2, 3):
    # One person, so one split; and unlike each other.
    view = face_media.portrait(turn_deg=8 * number - 17, mirrored=number == 2)
    picture(media / f"0_0_anna_{number}.png", view)
  builder = crashing_builder.CrashingBuilder(media_paths=[media], data_dir=tmp_path / "data")
  builder.prepare(workers=2)
  told = capsys.readouterr().err
  assert "A worker process was ended by SIGSEGV while it decoded" in told
  (row,) = rejected(tmp_path / "data")
  assert row["id"] == "media/0_0_anna_1.png" and row["reason"] == "decoder_crash"
  assert row["message"] == (
    "The decoder crashed on this file, also when it was alone: A worker process was ended by SIGSEGV."
  )
  assert sum(info.num_examples for info in builder.info.splits.values()) == 2


def test_mistakes_of_a_worker_reach_its_parent(tmp_path):
  worker = building._Worker(Builder(data_dir=tmp_path))
  try:
    with pytest.raises(FileNotFoundError):
      worker.run((), tmp_path / "no folder" / "x.part")
    with pytest.raises(RuntimeError, match="AttributeError"):
      worker.run((None,), tmp_path / "x.part")
    assert not list(tmp_path.rglob("*.part*"))
  finally:
    worker.close()


def test_a_worker_that_cannot_start_blames_no_file(tmp_path, monkeypatch):
  monkeypatch.setattr(building, "_compilation_cache", lambda: str(tmp_path / "a file" / "below"))
  (tmp_path / "a file").touch()
  worker = building._Worker(Builder(data_dir=tmp_path))
  with pytest.raises(ValueError, match="ended with code 1 before it could begin; fewer --workers"):
    worker.run((), None)


def test_builders_and_files_go_to_other_processes(tmp_path):
  picture(tmp_path / "a.png", face_media.no_face())
  with tarfile.open(tmp_path / "a.tar", "w") as archive:
    archive.add(tmp_path / "a.png", "a.png")
  (name, _, read), *_ = media_builder.walk_media(tmp_path / "a.tar")
  faceforensics = import_room("datasets.faceforensics.faceforensics_dataset_builder").Builder
  builder = faceforensics(config="c40", media_paths=[tmp_path], folds=4, fold=2, data_dir=tmp_path / "data")
  again, read_again = pickle.loads(pickle.dumps((builder, read)))
  assert name == "a.png" and read_again() == (tmp_path / "a.png").read_bytes()
  assert again.settings == builder.settings and again.splits == builder.splits
  assert again.data_dir == builder.data_dir and again.builder_config.name == "c40"


def test_parts_hold_pictures_or_few_clips_in_order():
  names = [f"{number}.{ending}" for number in range(40) for ending in ("png", "mp4")][:70]
  files = [
    media_builder.MediaFile(id=name, path=Path(name), label=0, group="g", source="s") for name in names
  ]
  parts = building.divide({"train": files, "test": files[:1]})
  assert [part.name for part in parts[-2:]] == ["train-000010.part", "test-000000.part"]
  assert [len(part.files) for part in parts] == [32, 3, *[4] * 8, 3, 1]
  in_order = [file.id for part in parts if part.split == "train" for file in part.files]
  assert in_order == [n for n in names if n.endswith("png")] + [n for n in names if n.endswith("mp4")]


def test_a_damaged_part_is_said_to_be(real_media, tmp_path):
  (file, *_) = builder_of(real_media, tmp_path).split_files()["train"]
  path = tmp_path / "x.part"
  building.compute_part(builder_of(real_media, tmp_path), [file], path)
  ((key, example),) = building.read_part(path)
  assert key == f"{file.id}#0.0" and len(example) > 10_000
  data = bytearray(path.read_bytes())
  data[100] ^= 1
  path.write_bytes(data)
  with pytest.raises(ValueError, match=r"x.part is damaged; remove it and build again"):
    list(building.read_part(path))


@pytest.fixture
def copied(prepared_dataset, tmp_path) -> Path:
  """A copy of a dataset's folder that may be damaged."""
  shutil.copytree(prepared_dataset, tmp_path / "data")
  return tmp_path / "data" / "real_only" / VERSION


def verify(copied: Path) -> int:
  with flagsaver.flagsaver(name="real_only", media=[], data_dir=str(copied.parents[1]), verify=True):
    return build_dataset.main(["build_dataset"])


def test_a_dataset_as_it_was_built_is_said_to_be(copied, capsys):
  assert verify(copied) == 0
  assert f"{copied} is as it was built: 7 files" in capsys.readouterr().out


def test_damaged_missing_and_extra_files_are_named(copied):
  shards = sorted(copied.glob("*.array_record*"))
  data = bytearray(shards[0].read_bytes())
  data[5000] ^= 1
  shards[0].write_bytes(data)
  shards[1].unlink()
  (copied / "notes.txt").write_text("mine")
  with pytest.raises(ValueError) as caught:
    verify(copied)
  assert str(caught.value) == (
    f"{copied} is not as it was built (damaged: {shards[0].name}; missing: {shards[1].name}; extra:"
    " notes.txt); copy those files again or build again with --overwrite."
  )


def test_what_cannot_be_verified_is_said_to_be(copied):
  (copied / "notes.txt").write_text("mine")
  with pytest.raises(ValueError, match=r"\(extra: notes.txt\); remove what does not belong there\."):
    verify(copied)
  (copied / building.MANIFEST).write_text("{")
  with pytest.raises(ValueError, match=r"manifest.json is damaged; copy it again, or build again"):
    verify(copied)
  (copied / building.MANIFEST).unlink()
  with pytest.raises(FileNotFoundError, match=r"has no manifest.json to compare with; --overwrite builds it"):
    verify(copied)
  shutil.rmtree(copied)
  with pytest.raises(FileNotFoundError, match="There is no dataset in"):
    verify(copied)


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_progress_tells_files_rate_and_time_left(stream, monkeypatch):
  files = tuple(
    media_builder.MediaFile(id=str(i), path=Path("x"), label=0, group="g", source="s") for i in range(4)
  )
  parts = [building.Part(f"{i}", "train", files) for i in range(3)]
  monkeypatch.setattr(sys, "stderr", stream())
  with building._Progress(parts, parts[1:]) as progress:
    # As if forty seconds had passed, and a line was due.
    for clock in ("_started", "_shown"):
      setattr(progress, clock, time.monotonic() - 40)
    progress.add(parts[1])
  told = sys.stderr.getvalue()
  assert "8/12" in told or stream is Terminal
  assert "files" in told and ("\r" in told) == (stream is Terminal)
  assert stream is Terminal or told == "67% 8/12 [00:40<00:40, 10.00s/ files]\n"


def test_there_is_a_worker_for_each_core_that_we_may_use_and_have_memory_for(monkeypatch):
  monkeypatch.setattr(building.os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
  memory = {"free": 64e9}
  monkeypatch.setattr(
    building.psutil, "virtual_memory", lambda: type("Memory", (), {"available": memory["free"]})
  )
  assert building.default_workers() == 6
  memory["free"] = 4e9
  assert building.default_workers() == 2
  memory["free"] = 1e8
  assert building.default_workers() == 1
