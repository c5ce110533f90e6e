"""Writes the public datasets' folders in their official forms, with a few bytes in place of each video.

Each function returns the root that a user would point at. `fill` makes the files; by default it writes a
placeholder, and a test of decoding passes its own.
"""

import csv
import io
import itertools
import json
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

Fill = Callable[[Path], object]
# 071 and 054 are in the official training list; the rest is made up in the same form.
FFPP_LISTS = {
  "train": [["071", "054"], ["087", "081"]],
  "val": [["720", "672"]],
  "test": [["953", "974"], ["012", "026"]],
}
FFPP_METHODS = ("Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures", "FaceShifter")
ACTORS = [f"{number:02d}" for number in range(1, 13)]
CELEBRITIES = [f"id{number}" for number in range(20)]
CELEB_DF_TEST = (
  "1 YouTube-real/00000.mp4",
  "1 Celeb-real/id0_0000.mp4",
  "0 Celeb-synthesis/id0_id1_0000.mp4",
  "0 Celeb-synthesis/id2_id3_0000.mp4",
)
WILD_ARCHIVES = range(12)
SPEAKERS = ("fadg0", "fram1", *(f"m{letter}bb{number}" for letter in "abcdefghijk" for number in (0, 1)))

# Part, letter of its files' names, ending of its protocol's name, speakers, attacks.
ASVSPOOF_2019 = (
  ("train", "T", "trn", ("LA_0079", "LA_0080"), ("A01", "A02", "A06")),
  ("dev", "D", "trl", ("LA_0069", "LA_0070"), ("A01", "A04", "A05")),
  ("eval", "E", "trl", ("LA_0001", "LA_0023"), ("A07", "A13", "A19")),
)
# The first line of each is official.
ASVSPOOF_2021 = {
  "LA": (
    "LA_0009 LA_E_9332881 alaw ita_tx A07 spoof notrim eval",
    "LA_0018 LA_E_7170765 g722 loc_tx bonafide bonafide notrim progress",
    "LA_0023 LA_E_5894728 none none A13 spoof trim hidden",
  ),
  "DF": (
    "LA_0023 DF_E_2000011 nocodec asvspoof A14 spoof notrim progress traditional_vocoder - - - -",
    "TEF2 DF_E_2000013 low_m4a vcc2020 Task1-team20 spoof notrim eval neural_vocoder Task1 team20 FF E",
    "TEM1 DF_E_2000026 mp3m4a vcc2020 bonafide bonafide notrim eval bonafide - - - -",
  ),
}


def placeholder(path: Path) -> None:
  # No two alike: equal files are copies.
  path.write_bytes(str(path).encode())


def write(root: Path, names: Iterable[str], fill: Fill = placeholder) -> Path:
  for name in names:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    fill(root / name)
  return root


def write_json(path: Path, content: object) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(content))


def celeb_df(
  root: Path, *, test_list: Iterable[str] | None = CELEB_DF_TEST, fill: Fill = placeholder
) -> Path:
  """Two videos of each celebrity, the swaps of each with the next three, and ten videos of strangers."""
  count = len(CELEBRITIES)
  swaps = [(CELEBRITIES[i], CELEBRITIES[(i + step) % count]) for i in range(count) for step in (1, 2, 3)]
  write(root, [f"Celeb-real/{person}_{take:04d}.mp4" for person in CELEBRITIES for take in (0, 1)], fill)
  write(root, [f"Celeb-synthesis/{filmed}_{face}_0000.mp4" for filmed, face in swaps], fill)
  write(root, [f"YouTube-real/{number:05d}.mp4" for number in range(10)], fill)
  if test_list is not None:
    # The official list's last line has no newline.
    (root / "List_of_testing_videos.txt").write_text("\n".join(test_list))
  return root


def faceforensics(
  root: Path,
  *,
  quality: str = "c23",
  lists: dict[str, list] | None = None,
  lists_in: str = "",
  actors: Iterable[str] = ACTORS,
  fill: Fill = placeholder,
) -> Path:
  """Ten videos of five pairs, their forgeries by five methods, and actors with swaps between all of them."""
  lists = FFPP_LISTS if lists is None else lists
  pairs = [tuple(pair) for split in FFPP_LISTS.values() for pair in split]
  videos = f"{quality}/videos"
  write(root, [f"original_sequences/youtube/{videos}/{video}.mp4" for p in pairs for video in p], fill)
  for method in FFPP_METHODS:
    forged = [f"{a}_{b}" for pair in pairs for a, b in (pair, pair[::-1])]
    write(root, [f"manipulated_sequences/{method}/{videos}/{stem}.mp4" for stem in forged], fill)
  # Masks are videos too, and no examples.
  write(root, [f"manipulated_sequences/Deepfakes/masks/videos/{a}_{b}.mp4" for a, b in pairs])
  write(root, [f"original_sequences/actors/{videos}/{a}__exit_phone_room.mp4" for a in actors], fill)
  swaps = [f"{a}_{b}__exit_phone_room__YVGY8LOK.mp4" for a, b in itertools.permutations(actors, 2)]
  write(root, [f"manipulated_sequences/DeepFakeDetection/{videos}/{name}" for name in swaps], fill)
  for split, pairs_of_split in lists.items():
    write_json(root / lists_in / f"{split}.json", pairs_of_split)
  return root


def dfdc(root: Path, *, with_test: bool = True, fill: Fill = placeholder) -> Path:
  """Two parts of 20 real videos and 40 fakes each, the sample set, and the labelled and unlabelled tests."""
  for part in (0, 1):
    facts: dict[str, dict] = {}
    for number in range(20):
      real = f"real{part}{number:02d}.mp4"
      facts[real] = {"label": "REAL", "split": "train", "original": None}
      for fake in (f"fakea{part}{number:02d}.mp4", f"fakeb{part}{number:02d}.mp4"):
        facts[fake] = {"label": "FAKE", "split": "train", "original": real}
    write(root / f"dfdc_train_part_{part}", facts, fill)
    write_json(root / f"dfdc_train_part_{part}" / "metadata.json", facts)
  sample = {
    "aagfhgtpmv.mp4": {"label": "FAKE", "split": "train", "original": "vudstovrck.mp4"},
    "abarnvbtwb.mp4": {"label": "REAL", "split": "train", "original": None},
  }
  write(root / "train_sample_videos", sample, fill)
  write_json(root / "train_sample_videos" / "metadata.json", sample)
  write(root / "test_videos", ["aassnaulhq.mp4"], fill)
  if with_test:
    write(root / "test", ["zaa.mp4", "zbb.mp4"], fill)
    (root / "test" / "labels.csv").write_text("filename,label\nzaa.mp4,1\nzbb.mp4,0\n")
  return root


def deepfake_timit(root: Path, *, frame: bytes = b".", frames: int = 12, fill: Fill = placeholder) -> Path:
  """Twelve pairs of speakers in two qualities, and their real sentences and head rotations in VidTIMIT."""
  for quality in ("higher_quality", "lower_quality"):
    for filmed, other in zip(SPEAKERS, _neighbours(SPEAKERS), strict=True):
      folder = root / "DeepfakeTIMIT" / quality / filmed
      write(folder, [f"{sentence}-video-{other}.avi" for sentence in ("sa1", "sx19")], fill)
      write(folder, ["sa1.wav", "sx19.wav"])
  for speaker in (*SPEAKERS, "fcft0"):
    for sentence in ("sa1", "sx19", "head"):
      folder = root / "VidTIMIT" / speaker / "video" / sentence
      write(
        folder, [f"{number:03d}" for number in range(1, frames + 1)], lambda path: path.write_bytes(frame)
      )
    write(root / "VidTIMIT" / speaker / "audio", ["sa1.wav"])
  return root


def wild_deepfake(
  root: Path,
  *,
  between: str = "_",
  frame: Callable[[int], bytes] = lambda _: b".",
  train: Iterable[int] = WILD_ARCHIVES,
  test: Iterable[int] = (0, 1),
) -> Path:
  """Archives of two sequences each; the frames' numbers have gaps and no leading zeros."""
  root = root / "deepfake_in_the_wild"
  for label in ("real", "fake"):
    for split, archives in (("train", train), ("test", test)):
      folder = root / f"{label}{between}{split}"
      folder.mkdir(parents=True)
      for number in archives:
        with tarfile.open(folder / f"{number}.tar.gz", "w:gz", compresslevel=1) as archive:
          for sequence, frame_number in itertools.product((0, 1), (2, 10, 9, 101)):
            name = f"./{number}/{label}/{sequence}/{frame_number}.png"
            _add(archive, name, frame(frame_number))
  return root


def fakeavceleb(root: Path, *, people: int = 24, fill: Fill = placeholder) -> Path:
  """One video of each person and type, and a face swap with the next person."""
  root = root / "FakeAVCeleb_v1.2"
  rows = []
  for number in range(people):
    source, other = f"id{number:05d}", f"id{(number + 1) % people:05d}"
    for category, kind, method, target in (
      ("A", "RealVideo-RealAudio", "real", "-"),
      ("B", "RealVideo-FakeAudio", "rtvc", "-"),
      ("C", "FakeVideo-RealAudio", "faceswap", other),
      ("C", "FakeVideo-RealAudio", "wav2lip", "-"),
      ("D", "FakeVideo-FakeAudio", "fsgan-wav2lip", other),
    ):
      file = f"00109_{method}.mp4"
      folder = f"{kind}/African/men/{source}"
      write(root / folder, [file], fill)
      rows.append(
        [source, target, "10", method, category, kind, "African", "men", file, f"FakeAVCeleb/{folder}"]
      )
  with open(root / "meta_data.csv", "w", newline="") as lines:
    header = ["source", "target1", "target2", "method", "category", "type", "race", "gender", "path", ""]
    csv.writer(lines).writerows([header, *rows])
  return root


def lav_df(root: Path, *, fill: Fill = placeholder, fake_periods: Iterable = ((1.2, 1.9),)) -> Path:
  """In each split a real video and three made from it: by picture, by sound and by both."""
  rows = []
  for split in ("train", "dev", "test"):
    for number, (video, audio) in enumerate(((False, False), (True, False), (False, True), (True, True))):
      fake = video or audio
      rows.append(
        {
          "file": f"{split}/{number:06d}.mp4",
          "n_fakes": int(fake),
          "fake_periods": [list(period) for period in fake_periods] if fake else [],
          "duration": 4.0,
          "original": f"{split}/000000.mp4" if fake else None,
          "modify_video": video,
          "modify_audio": audio,
          "split": split,
          "video_frames": 100,
          "audio_channels": 1,
          "audio_frames": 64000,
        }
      )
  write(root, [row["file"] for row in rows], fill)
  write_json(root / "metadata.min.json", rows)
  return root


def av_deepfake1m(root: Path, *, facts: str = "list", both: str = "both_modified") -> Path:
  """Clips of three people, each as four files; one of the people is in both splits.

  Args:
    root: where to.
    facts: "list", "folder" or (as in 1M++) "beside".
    both: how the list writes that picture and sound are forged.
  """
  for split, people in (("train", ("id00012", "id00015")), ("val", ("id00015", "id00018"))):
    rows = []
    for person in people:
      clip = f"{person}/21Uxsk56VDQ/0000{1 if split == 'train' else 2}"
      for name, kind in (
        ("real", "real"),
        ("fake_video_real_audio", "visual_modified"),
        ("real_video_fake_audio", "audio_modified"),
        ("fake_video_fake_audio", both),
      ):
        seen, heard = kind in ("visual_modified", both), kind in ("audio_modified", both)
        rows.append(
          {
            "file": f"{clip}/{name}.mp4",
            "original": None if kind == "real" else f"{clip}/real.mp4",
            "split": split,
            "modify_type": kind,
            "audio_model": "yourtts" if heard else "",
            "fake_segments": [[3.0, 3.5]] if seen or heard else [],
            "audio_fake_segments": [[3.0, 3.5]] if heard else [],
            "visual_fake_segments": [[3.28, 3.46]] if seen else [],
            "video_frames": 100,
            "audio_frames": 64000,
          }
        )
    write(root / split, [row["file"] for row in rows])
    folder = {"folder": f"{split}_metadata", "beside": split}.get(facts)
    for row in rows if folder else ():
      write_json((root / folder / row["file"]).with_suffix(".json"), row)
    if facts == "list":
      write_json(root / f"{split}_metadata.json", rows)
    else:
      write_json(root / f"{split}_metadata.json", [{"file": row["file"], "split": split} for row in rows])
  write(root, ["test/000000.mp4", "test_files.txt"])
  return root


def asvspoof2019_la(root: Path, *, fill: Fill = placeholder) -> Path:
  """In each official set two genuine and three forged sentences of each of two speakers, and an enrolment."""
  root = root / "LA"
  protocols = root / "ASVspoof2019_LA_cm_protocols"
  protocols.mkdir(parents=True)
  for part, letter, ending, people, attacks in ASVSPOOF_2019:
    lines = []
    for speaker in people:
      for attack in ("-", "-", *attacks):
        name = f"LA_{letter}_{1000137 + 7 * len(lines)}"
        lines.append(f"{speaker} {name} - {attack} {'bonafide' if attack == '-' else 'spoof'}")
    (protocols / f"ASVspoof2019.LA.cm.{part}.{ending}.txt").write_text("\n".join(lines) + "\n")
    folder = root / f"ASVspoof2019_LA_{part}" / "flac"
    write(folder, [f"{line.split()[1]}.flac" for line in lines], fill)
    if part != "train":
      write(folder, [f"LA_{letter}_A0001.flac"])
  return root


def asvspoof2021(root: Path, *, keys_in: str = "keys", fill: Fill = placeholder) -> Path:
  """Both tracks with three trials each, one of each subset, and a list of trials without labels."""
  for track, lines in ASVSPOOF_2021.items():
    folder = root / f"ASVspoof2021_{track}_eval"
    names = [line.split()[1] for line in lines]
    write(folder / "flac", [f"{name}.flac" for name in names], fill)
    (folder / f"ASVspoof2021.{track}.cm.eval.trl.txt").write_text("\n".join(names) + "\n")
    if keys_in:
      keys = root / keys_in / track / "CM"
      keys.mkdir(parents=True)
      (keys / "trial_metadata.txt").write_text("\n".join(lines) + "\n")
  return root


def _neighbours(names: tuple[str, ...]) -> list[str]:
  """The other one of each pair: (a, b, c, d) gives b, a, d, c."""
  return [names[index ^ 1] for index in range(len(names))]


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
  member = tarfile.TarInfo(name)
  member.size = len(data)
  archive.addfile(member, io.BytesIO(data))
