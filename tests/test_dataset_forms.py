"""The forms of datasets on small real media: faces, mouths and sound as they are stored, and their labels."""

import itertools
import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import dataset_layouts as layouts
import face_media
import media_files
import numpy as np
import pytest
import tensorflow_datasets as tfds
from voices import speech

from deepscan_jax import data, examples, media
from deepscan_jax.config import WindowConfig
from deepscan_jax.rooms import import_room

media_builder = import_room("datasets.media_builder")
EVERY_KEY = tuple(examples.input_shapes(WindowConfig()))
CLIPS = WindowConfig(frames=16)
FULL_S = 4.0
REAL, FAKE, UNKNOWN = examples.REAL, examples.FAKE, examples.UNKNOWN


def frames(count: int, *, side: int = 224) -> list[np.ndarray]:
  """Somebody who sways, and stays in the picture however long it lasts."""
  return [
    face_media.portrait(
      side=side, shift=(8 * np.sin(i / 9), 5 * np.cos(i / 7)), turn_deg=3 * float(np.sin(i / 11))
    )
    for i in range(count)
  ]


def talk(path: Path, *, seconds: float, seed: int = 0, sound: bool = True, **settings) -> Path:
  """A film of somebody, with a voice."""
  waveform = speech(seconds=seconds, seed=seed) if sound else None
  return media_files.write_video(
    path, frames(round(25 * seconds)), sound=waveform, sound_rate_hz=16_000, **settings
  )


def builder_of(name: str, *roots: Path, data_dir: Path, config: str | None = None, **settings):
  builder_class = import_room(f"datasets.{name}.{name}_dataset_builder").Builder
  return builder_class(config=config, media_paths=roots, data_dir=data_dir, **settings)


def built(name: str, *roots: Path, data_dir: Path, config: str | None = None, **settings):
  """(builder, {file: its examples in order}) of a dataset as training reads it; a file by its name alone."""
  builder = builder_of(name, *roots, data_dir=data_dir, config=config, **settings)
  builder.prepare()
  return builder, stored(f"{name}/{config}" if config else name, builder, data_dir)


def stored(name: str, builder, data_dir: Path) -> dict[str, list[dict]]:
  found: dict[str, list[dict]] = {}
  for split in builder.info.splits:
    source = data.ExampleSource([name], split, data_dir, inputs=EVERY_KEY)
    for row in (source[i] for i in range(len(source))):
      found.setdefault(row["id"].split("#")[0].rsplit("/", 1)[-1], []).append({**row, "split": split})
  return {file: sorted(rows, key=lambda row: float(row["start_s"])) for file, rows in sorted(found.items())}


def listed(builder) -> dict[str, str]:
  """{file: reason} of rejected.jsonl."""
  lines = (Path(builder.data_dir) / "rejected.jsonl").read_text().splitlines()
  return {row["id"].rsplit("/", 1)[-1]: row["reason"] for row in map(json.loads, lines)}


def holds(row: dict) -> tuple[int, int, float]:
  """How many faces, mouths and seconds of sound are there; a codec may add some hundredths of a second."""
  heard_s = round(len(row["sound"]) / media.SAMPLE_RATE_HZ, 1)
  return int(np.sum(row["face_mask"])), int(np.sum(row["mouth_mask"])), heard_s


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
  """Films, sound and files that cannot be used."""
  root = tmp_path_factory.mktemp("mixed")
  talk(root / "talk.mp4", seconds=4.4)
  talk(root / "mute.mp4", seconds=1, sound=False)
  media_files.write_video(
    root / "nobody.mp4", [face_media.no_face()] * 50, sound=speech(seconds=2, seed=3), sound_rate_hz=16_000
  )
  # Stored lying on its side; the display matrix turns it back.
  lying = [np.ascontiguousarray(np.rot90(frame)) for frame in frames(25)]
  media_files.write_video(root / "turned.mp4", lying, rotation_degrees=-90)
  odd = [frame[:223, :219] for frame in frames(25)]
  media_files.write_video(root / "odd.mp4", odd, pixel_format="yuv444p")
  uneven = np.cumsum([0, *itertools.islice(itertools.cycle((0.02, 0.05, 0.11)), 24)])
  media_files.write_video(root / "uneven.mp4", frames(25), times_s=uneven.tolist())
  media_files.without_index(root / "cut_off.mp4")
  media_files.text(root / "letter.wav")
  media_files.sound(root / "voice.flac", speech(seconds=9, seed=4), sample_rate_hz=16_000)
  media_files.sound(root / "short.wav", speech(seconds=0.5, seed=5), sample_rate_hz=16_000)
  media_files.sound(root / "hush.wav", np.zeros(32_000, np.float32), sample_rate_hz=16_000)
  return root


REJECTED = {"nobody.mp4": "no_face", "short.wav": "sound_too_short", "hush.wav": "silent"}


@pytest.fixture(scope="module")
def singles(mixed, tmp_path_factory):
  return built("real_only", mixed, data_dir=tmp_path_factory.mktemp("singles"), frames_per_clip=4)


@pytest.fixture(scope="module")
def clips(mixed, tmp_path_factory):
  """(builder, examples, data folder)."""
  data_dir = tmp_path_factory.mktemp("clips")
  return *built("real_only", mixed, data_dir=data_dir, config="clips", frames_per_clip=32), data_dir


def test_by_default_faces_are_single_and_sound_lies_apart(singles):
  builder, found = singles
  assert Path(builder.data_dir).parent.name == "real_only"
  assert [holds(row) for row in found["voice.flac"]] == [(0, 0, FULL_S)] * 3
  assert [holds(row) for row in found["nobody.mp4"]] == [(0, 0, 2)]
  of_film = Counter(holds(row) for row in found["talk.mp4"])
  assert of_film == {(1, 0, 0): 4, (0, 0, FULL_S): 2}
  for file in ("mute.mp4", "turned.mp4", "odd.mp4", "uneven.mp4"):
    assert [holds(row) for row in found[file]] == [(1, 0, 0)] * 4, file
  for row in itertools.chain.from_iterable(found.values()):
    assert (row["label"], row["face_label"], row["sound_label"]) == (REAL, REAL, REAL)


def test_windows_of_clips_hold_faces_mouths_and_the_sound_of_their_time(clips):
  builder, found, _ = clips
  assert Path(builder.data_dir).parent.name == "clips"
  first, second = found["talk.mp4"]
  assert holds(first) == (16, 50, FULL_S)
  assert np.diff(first["frame_times_s"]) == pytest.approx(0.08, abs=1e-5)
  assert first["frame_times_s"][0] == pytest.approx(float(first["start_s"]))
  # Two windows of two seconds in 4.4; the second one's sound ends with the film.
  assert float(second["start_s"]) - float(first["start_s"]) >= 2
  rest = 4.4 - float(second["start_s"])
  assert holds(second)[:2] == (16, 50) and holds(second)[2] == pytest.approx(rest, abs=0.11)
  # A frame is shown until the next one would come: one place more than there are frames.
  assert [holds(row) for row in found["mute.mp4"]] == [(13, 26, 0)]
  assert [holds(row) for row in found["turned.mp4"]] == [(13, 26, 0)]
  assert [holds(row) for row in found["odd.mp4"]] == [(13, 26, 0)]
  # Frames come at times of their own: some moments have none near, and none is shown twice.
  (uneven,) = found["uneven.mp4"]
  there = np.asarray(uneven["frame_times_s"])[np.asarray(uneven["face_mask"])]
  assert 8 <= len(there) <= 16 and np.all(np.diff(there) > 0)
  places = np.flatnonzero(uneven["face_mask"])
  np.testing.assert_array_less(np.abs(there - float(uneven["start_s"]) - places / 12.5), 0.0401)


def test_sound_without_faces_is_used_in_the_form_of_clips_too(clips):
  _, found, _ = clips
  assert [holds(row) for row in found["voice.flac"]] == [(0, 0, FULL_S)] * 3
  assert [holds(row) for row in found["nobody.mp4"]] == [(0, 0, 2)]


def test_what_cannot_be_used_is_listed_in_every_form(singles, clips):
  for builder in (singles[0], clips[0]):
    found = listed(builder)
    assert {name: found.pop(name) for name in REJECTED} == REJECTED
    assert set(found) == {"cut_off.mp4", "letter.wav"}


def test_a_file_that_is_gone_by_the_time_it_is_read_is_listed(mixed, tmp_path):
  builder = builder_of("real_only", mixed, data_dir=tmp_path)
  files = [
    media_builder.MediaFile(id=name, path=mixed / name, label=REAL, group=name, source="s")
    for name in ("gone.mp4", "gone.flac", "voice.flac")
  ]
  assert len(list(builder.encode_examples(files))) == 3
  assert {row["id"]: row["reason"] for row in builder.rejected} == dict.fromkeys(
    ("gone.mp4", "gone.flac"), "missing_file"
  )


def test_pictures_as_jpeg_are_close_to_lossless_ones_and_the_folder_says_so(mixed, singles, tmp_path):
  builder, found = built("real_only", mixed, data_dir=tmp_path, config="jpeg95", frames_per_clip=4)
  folder = Path(builder.data_dir)
  assert folder.parent.name == "jpeg95" and folder.parent.parent.name == "real_only"
  kept = tfds.builder_from_directory(folder).as_data_source(
    next(iter(builder.info.splits)), decoders={"faces": data._KeptBytes()}
  )
  pictures = [face for row in kept for face in row["faces"]]
  assert pictures and all(picture[:3] == b"\xff\xd8\xff" for picture in pictures)
  assert set(found) == set(singles[1])
  different = 0
  for file, rows in found.items():
    for ours, theirs in zip(rows, singles[1][file], strict=True):
      if len(ours["face_mask"]):
        difference = np.abs(ours["faces"].astype(int) - theirs["faces"])
        assert difference.mean() < 4
        different += int(difference.any())
      else:
        np.testing.assert_array_equal(ours["sound"], theirs["sound"])
  assert different


def test_training_and_detection_see_the_same_of_a_window(mixed, clips):
  """The builder decodes in its own process and stores what it cut; detect decodes in the child process."""
  builder, found, data_dir = clips
  cut_of = {}
  for file in ("talk.mp4", "turned.mp4", "uneven.mp4"):
    clip = media.decode_clip(mixed / file, plan=examples.sampling_plan(CLIPS, frames=32))
    (person,) = examples.find_subjects(clip)
    cut_of[file] = examples.face_windows(person, clip, window=CLIPS)
    assert len(cut_of[file]) == len(found[file])
  compared = 0
  for split in builder.info.splits:
    source = data.ExampleSource(["real_only/clips"], split, data_dir, inputs=EVERY_KEY)
    held_out = data.HeldOutExamples(source, window=CLIPS)
    for row in (held_out[i] for i in range(len(held_out))):
      file, place = row["id"].rsplit("/", 1)[-1].split("#")
      if file in cut_of:
        cut = cut_of[file][int(place.removeprefix("0."))]
        expected = examples.model_inputs(cut, window=CLIPS.reading(EVERY_KEY), keys=EVERY_KEY)
        assert set(expected) == set(EVERY_KEY) and expected["crop_mask"].any()
        for key in EVERY_KEY:
          np.testing.assert_array_equal(row[key][0], expected[key], err_msg=f"{file} {key}")
        assert row["kind"] == "face"
        compared += 1
  assert compared == 4


def test_members_of_an_archive_are_the_files_that_were_packed(mixed, singles, clips, tmp_path):
  folder = tmp_path / mixed.name
  folder.mkdir()
  for name in ("voice.flac", "talk.mp4", "letter.wav"):
    shutil.copy(mixed / name, folder / name)
  media_files.picture(folder / "still.png", frames(1)[0])
  packed = tmp_path / f"{mixed.name}.tar"
  with tarfile.open(packed, "w") as archive:
    archive.add(folder, arcname=".")
  in_folder = builder_of("real_only", folder, data_dir=tmp_path / "a").split_files()
  in_tar = builder_of("real_only", packed, data_dir=tmp_path / "b").split_files()
  assert {s: [(f.id, f.group) for f in fs] for s, fs in in_tar.items()} == {
    s: [(f.id, f.group) for f in fs] for s, fs in in_folder.items()
  }
  _, found = built("real_only", packed, data_dir=tmp_path / "c", frames_per_clip=4)
  assert set(found) == {"voice.flac", "talk.mp4", "still.png"}
  for file in ("voice.flac", "talk.mp4"):
    for ours, theirs in zip(found[file], singles[1][file], strict=True):
      for key in ("faces", "landmarks", "sound", "start_s", "file_facts", "file_facts_mask"):
        np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)


def test_sound_of_ones_own_is_labelled_by_its_folder(tmp_path):
  root = tmp_path / "mine"
  for number, name in enumerate(("real/anna/a.wav", "fake/cloned/anna/a.flac", "fake/b.mp3")):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    media_files.sound(root / name, speech(seconds=1.5, seed=number), sample_rate_hz=16_000)
  (root / "fake/swapped/anna").mkdir(parents=True)
  talk(root / "fake/swapped/anna/c.mp4", seconds=1.2)
  builder, found = built("real_fake_folder", root, data_dir=tmp_path / "data", frames_per_clip=1)
  assert {
    file: [(int(r["label"]), int(r["face_label"]), int(r["sound_label"]), r["method"]) for r in rows]
    for file, rows in found.items()
  } == {
    "a.wav": [(REAL, REAL, REAL, "")],
    "a.flac": [(FAKE, FAKE, FAKE, "cloned")],
    "b.mp3": [(FAKE, FAKE, FAKE, "unknown")],
    # Whether the voice of a forged film is forged as well, nobody has said.
    "c.mp4": [(FAKE, FAKE, UNKNOWN, "swapped")] * 2,
  }
  assert len({row["split"] for file, rows in found.items() if file != "b.mp3" for row in rows}) == 1
  # What reads sound alone gets no example whose sound is unknown.
  heard = set()
  for split in builder.info.splits:
    try:
      source = data.ExampleSource(
        ["real_fake_folder"],
        split,
        tmp_path / "data",
        inputs=("waveform", "waveform_mask"),
        labels=(REAL, FAKE),
      )
    except ValueError:
      continue
    heard |= {source[i]["id"].split("#")[0].rsplit("/", 1)[-1] for i in range(len(source))}
  assert heard == {"a.wav", "a.flac", "b.mp3"}


def timit(tmp_path: Path) -> Path:
  """One pair of DeepfakeTIMIT and VidTIMIT with films, pictures and sound."""
  root = tmp_path / "root"
  fakes = root / "DeepfakeTIMIT" / "higher_quality" / "fadg0"
  fakes.mkdir(parents=True)
  for number, sentence in enumerate(("sa1", "sa2", "sx9", "sx19")):
    talk(fakes / f"{sentence}-video-fram1.avi", seconds=1.2, sound=False, seed=number, codec="mpeg4")
  (root / "DeepfakeTIMIT" / "lower_quality").mkdir()
  media_files.sound(fakes / "sa1.wav", speech(seconds=1.2, seed=1), sample_rate_hz=16_000)
  media_files.sound(fakes / "sx9-audio.wav", speech(seconds=1.2, seed=2), sample_rate_hz=16_000)
  media_files.text(fakes / "sx19.wav")
  person = root / "VidTIMIT" / "fram1"
  for sentence in ("sa1", "sa2"):
    (person / "video" / sentence).mkdir(parents=True)
    for number, frame in enumerate(frames(30), start=1):
      data_of = media_builder.Form(quality=95).encode(frame)
      (person / "video" / sentence / f"{number:03d}").write_bytes(data_of)
  (person / "audio").mkdir()
  media_files.sound(person / "audio" / "sa1.wav", speech(seconds=1.2, seed=3), sample_rate_hz=16_000)
  return root


@pytest.mark.parametrize("form", [None, "clips"])
def test_deepfake_timit_is_heard_from_the_files_beside_it(form, tmp_path):
  builder, found = built(
    "deepfake_timit", timit(tmp_path), data_dir=tmp_path / "data", config=form, frames_per_clip=2
  )
  labels = {
    (int(r["label"]), int(r["face_label"]), int(r["sound_label"])) for rs in found.values() for r in rs
  }
  assert labels == {(FAKE, FAKE, REAL), (REAL, REAL, REAL)}
  sa1, sa2, sx9, sx19 = (found[f"{name}-video-fram1.avi"] for name in ("sa1", "sa2", "sx9", "sx19"))
  real, quiet = found["sa1"], found["sa2"]
  heard = {"sa1": sa1, "sx9": sx9, "real": real}
  for name, rows in {**heard, "sa2": sa2, "sx19": sx19, "quiet": quiet}.items():
    heard_s = 1.2 if name in heard else 0
    if form == "clips":
      assert [holds(row) for row in rows] == [(16, 31, heard_s)], name
    else:
      assert Counter(map(holds, rows)) == Counter([(1, 0, 0)] * 2 + [(0, 0, heard_s)] * (heard_s > 0)), name
  for rows, wav in ((sa1, "sa1.wav"), (sx9, "sx9-audio.wav")):
    (sound,) = (row["sound"] for row in rows if len(row["sound"]))
    (path,) = (tmp_path / "root").rglob(f"higher_quality/fadg0/{wav}")
    expected = np.round(media.decode_clip(path).waveform * 32767).astype(np.int16)
    np.testing.assert_array_equal(sound, expected)
  (line,) = builder.rejected
  assert line["id"] == "higher_quality/fadg0/sx19-video-fram1.avi" and line["reason"].startswith("sound_")
  assert line["message"].startswith("It is used without sx19.wav: ")


def test_fakeavceleb_labels_faces_and_sound_apart(tmp_path):
  seeds = itertools.count()
  root = layouts.fakeavceleb(
    tmp_path / "root", people=1, fill=lambda path: talk(path, seconds=1.2, seed=next(seeds))
  )
  _, found = built("fakeavceleb", root, data_dir=tmp_path / "data", frames_per_clip=1)
  labels = {
    file: {(int(r["face_label"]), int(r["sound_label"]), int(r["label"])) for r in rows}
    for file, rows in found.items()
  }
  assert labels == {
    "00109_real.mp4": {(REAL, REAL, REAL)},
    "00109_rtvc.mp4": {(REAL, FAKE, FAKE)},
    "00109_faceswap.mp4": {(FAKE, REAL, FAKE)},
    "00109_wav2lip.mp4": {(FAKE, REAL, FAKE)},
    "00109_fsgan-wav2lip.mp4": {(FAKE, FAKE, FAKE)},
  }
  for rows in found.values():
    assert Counter(map(holds, rows)) == {(1, 0, 0): 1, (0, 0, 1.2): 1}


# A word of 0.3 s in a talk of 11.6, so that a window of sound holds much that is genuine.
WORD = (7.0, 7.3)
SPOKEN_S = 11.6


@pytest.fixture(scope="module")
def spoken(tmp_path_factory) -> Path:
  return talk(tmp_path_factory.mktemp("spoken") / "talk.mp4", seconds=SPOKEN_S)


def lav_df(root: Path, spoken: Path) -> Path:
  layouts.lav_df(root, fake_periods=[WORD])
  rows = [row for row in json.loads((root / "metadata.min.json").read_text()) if row["split"] == "train"]
  for row in rows:
    shutil.copy(spoken, root / row["file"])
  layouts.write_json(root / "metadata.min.json", rows)
  return root


def av_deepfake1m(root: Path, spoken: Path) -> Path:
  """The same four kinds of film."""
  layouts.av_deepfake1m(root)
  table = root / "train_metadata.json"
  rows = [row for row in json.loads(table.read_text()) if row["file"].startswith("id00012")]
  for row in rows:
    for key in ("fake_segments", "audio_fake_segments", "visual_fake_segments"):
      row[key] = [list(WORD)] if row[key] else []
    shutil.copy(spoken, root / "train" / row["file"])
  layouts.write_json(table, rows)
  layouts.write_json(root / "val_metadata.json", [])
  return root


@pytest.mark.parametrize("write", [lav_df, av_deepfake1m])
@pytest.mark.parametrize("form", [None, "clips"])
def test_of_forged_words_what_is_forged_is_used(write, form, spoken, tmp_path):
  root = write(tmp_path / "root", spoken)
  _, found = built(write.__name__, root, data_dir=tmp_path / "data", config=form, frames_per_clip=8)
  of = {method: [] for method in ("", "picture", "sound", "picture and sound")}
  for rows in found.values():
    of[rows[0]["method"]] += rows

  def labels(rows) -> tuple[set[int], set[int]]:
    """Of faces and of sound, where there are any."""
    return (
      {int(row["face_label"]) for row in rows if len(row["face_mask"])},
      {int(row["sound_label"]) for row in rows if len(row["sound"])},
    )

  def hears(row) -> bool:
    start = float(row["start_s"])
    return start <= WORD[0] and WORD[1] <= start + len(row["sound"]) / 16_000

  def shows(row) -> int:
    times = np.asarray(row["frame_times_s"])[np.asarray(row["face_mask"])]
    return int(np.sum((times >= WORD[0]) & (times <= WORD[1])))

  assert labels(of[""]) == ({REAL}, {REAL})
  if form is None:
    assert Counter(map(holds, of[""])) == {(1, 0, 0): 8, (0, 0, FULL_S): 3}
    # Genuine sound of a forgery is genuine wherever it is taken; so are genuine faces.
    assert Counter(map(holds, of["picture"])) == {(1, 0, 0): 8, (0, 0, FULL_S): 3}
    assert Counter(map(holds, of["sound"])) == {(1, 0, 0): 8, (0, 0, FULL_S): 1}
    assert Counter(map(holds, of["picture and sound"])) == {(1, 0, 0): 8, (0, 0, FULL_S): 1}
    for method in ("picture", "picture and sound"):
      assert all(shows(row) for row in of[method] if len(row["face_mask"]))
    for method in ("sound", "picture and sound"):
      (word,) = (row for row in of[method] if len(row["sound"]))
      assert float(word["start_s"]) + 2 == pytest.approx(np.mean(WORD), abs=0.01)
  else:
    for method in ("picture", "sound", "picture and sound"):
      # One window of eight frames' worth, around the word.
      (row,) = of[method]
      assert holds(row) == (16, 50, FULL_S) and hears(row) and shows(row) >= 3, method
      middle = float(row["start_s"]) + 1
      assert middle == pytest.approx(np.mean(WORD), abs=0.1)
  assert labels(of["picture"]) == ({FAKE}, {REAL})
  assert labels(of["sound"]) == ({REAL}, {FAKE})
  assert labels(of["picture and sound"]) == ({FAKE}, {FAKE})


def test_a_window_of_a_forgery_without_its_forged_word_is_not_known_to_be_forged(spoken, tmp_path):
  file = media_builder.MediaFile(
    id="talk.mp4",
    path=spoken,
    label=FAKE,
    face_label=REAL,
    sound_label=FAKE,
    group="g",
    source="s",
    method="sound",
    forged_sound_spans_s=((11.2, 11.5),),
  )
  builder = builder_of("real_only", data_dir=tmp_path, config="clips", frames_per_clip=8)
  # As if the word had been looked for elsewhere: a window that ends before it.
  clip = media.decode_clip(spoken, plan=media.SamplingPlan(frame_count=50, window_frames=50, rate_hz=25.0))
  rows = dict(builder._subject_examples(file, clip, examples.find_subjects(clip)))
  assert rows and {int(row["sound_label"]) for row in rows.values()} == {UNKNOWN}
  assert {int(row["face_label"]) for row in rows.values()} == {REAL}


@pytest.mark.parametrize(
  ("name", "speaker"),
  [
    ("librispeech/100-121669-0000.flac", "100"),
    ("1034-121119-0005.flac", "1034"),
    ("emodb/03a01Fa.wav", "03"),
    ("16b10Wb.wav", "16"),
    ("fsdd/0_george_0.wav", "george"),
    ("9_yweweler_49.wav", "yweweler"),
    ("notes/9_yweweler_49.txt.wav", "notes/9_yweweler_49.txt.wav"),
    ("03a01Fa_copy.wav", "03a01Fa_copy.wav"),
  ],
)
def test_voices_are_grouped_by_speaker_where_their_names_tell(name, speaker):
  assert import_room("datasets.real_only.real_only_dataset_builder").group_of(name) == speaker


def test_equal_clips_and_sound_files_share_a_group(tmp_path):
  contents = {
    "a.wav": b"one",
    "b.mp4": b"one",
    "c.wav": b"two",
    "d.wav": b"three",
    "e.wav": b"",
    "f.wav": b"",
  }
  for name, content in contents.items():
    (tmp_path / name).write_bytes(content)
  packed = tmp_path / "more.tar"
  with tarfile.open(packed, "w") as archive:
    archive.add(tmp_path / "d.wav", "g.wav")
  files = list(
    import_room("datasets.real_only.real_only_dataset_builder")
    .Builder(data_dir=tmp_path)
    .media_files((tmp_path, packed))
  )
  groups = {file.id.rsplit("/", 1)[-1]: file.group for file in media_builder.join_copies(files)}
  assert groups["a.wav"] == groups["b.mp4"] and groups["d.wav"] == groups["g.wav"]
  assert len(set(groups.values())) == 5  # Empty files are nobody's copies.


def test_copies_of_files_whose_split_is_decided_are_not_looked_for(tmp_path):
  files = []
  for name, split in (("a.wav", "train"), ("b.wav", "test"), ("c.wav", None)):
    (tmp_path / name).write_bytes(b"one")
    files.append(
      media_builder.MediaFile(id=name, path=tmp_path / name, label=REAL, group=name, source="s", split=split)
    )
  assert media_builder.join_copies(files) == files
