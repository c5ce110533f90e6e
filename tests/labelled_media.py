"""Small prepared datasets with known forgeries: pictures by person, and three public sets in miniature."""

from pathlib import Path

import dataset_layouts as layouts
import face_media
import numpy as np
from media_files import picture, write_video

from deepscan_jax import folds
from deepscan_jax.rooms import import_room

FOLDS = 2
_TAKES = 2


def pictures_of_people(root: Path, data_dir: Path) -> dict[str, str]:
  """Builds real_fake_folder: two real and two forged pictures each of two people in train and two in
  validation, of which one falls into each of FOLDS folds, and of one in test.

  Returns:
    {group: split}.
  """
  split_of = import_room("datasets.media_builder").split_of
  wanted = [(split, fold) for split in ("train", "validation") for fold in range(FOLDS)] + [("test", 0)]
  people, number = {}, 0
  while wanted:
    group, number = f"{root.name}/person{number}", number + 1
    place = (split_of(group), folds.fold_of(f"real_fake_folder/{group}", FOLDS))
    if place in wanted:
      wanted.remove(place)
      people[group] = place[0]
  rng = np.random.default_rng(0)
  for group in people:
    for label, take in ((label, take) for label in ("real", "fake/swap") for take in range(_TAKES)):
      view = face_media.portrait(
        shift=tuple(rng.uniform(-14, 14, 2)),
        zoom=rng.uniform(0.9, 1.2),
        turn_deg=rng.uniform(-12, 12),
        mirrored=bool(rng.integers(2)),
        # What a network of means can tell.
        light=0.6 if label != "real" else 1.0,
      )
      path = root / label / group.partition("/")[2] / f"{take}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      picture(path, view)
  _build("real_fake_folder", root, data_dir)
  return people


def three_public_sets(root: Path, data_dir: Path) -> None:
  """Builds celeb_df, faceforensics and wild_deepfake, each with real and forged faces in train and
  validation."""
  frames = face_media.moving_portrait(2)

  def fill(path: Path) -> None:
    write_video(path, frames)

  builder = import_room("datasets.media_builder")

  def in_split(split: str, names: list[str]) -> list[str]:
    return [name for name in names if builder.split_of(name, builder.TRAIN_SPLITS) == split]

  celebrities, videos = [f"id{number}" for number in range(60)], ["YouTube-real/00000.mp4"]
  for split in ("train", "validation"):
    a, b = in_split(split, celebrities)[:2]
    videos += [f"Celeb-real/{a}_0000.mp4", f"Celeb-synthesis/{a}_{b}_0000.mp4"]
  layouts.write(root / "celeb", videos, fill)
  (root / "celeb" / "List_of_testing_videos.txt").write_text("1 YouTube-real/00000.mp4")
  _build("celeb_df", root / "celeb", data_dir)

  lists = {"train": [["071", "054"]], "val": [["720", "672"]], "test": [["953", "974"]]}
  for ((a, b),) in lists.values():
    names = [f"original_sequences/youtube/c23/videos/{a}.mp4"]
    names += [f"manipulated_sequences/Deepfakes/c23/videos/{a}_{b}.mp4"]
    layouts.write(root / "ff", names, fill)
  for split, pairs in lists.items():
    layouts.write_json(root / "ff" / f"{split}.json", pairs)
  _build("faceforensics", root / "ff", data_dir)

  def frame(number: int) -> bytes:
    return builder.Form().encode(face_media.portrait(shift=(number / 10, 0), turn_deg=number / 20))

  # Archives that are train, and validation, of both labels.
  archives = [
    next(n for n in range(200) if all(in_split(split, [f"{label}_train/{n}"]) for label in ("real", "fake")))
    for split in ("train", "validation")
  ]
  layouts.wild_deepfake(root / "wild", frame=frame, train=archives, test=(0,))
  _build("wild_deepfake", root / "wild", data_dir)


def _build(name: str, root: Path, data_dir: Path) -> None:
  builder = import_room(f"datasets.{name}.{name}_dataset_builder").Builder
  builder(media_paths=[root], frames_per_clip=1, data_dir=data_dir).prepare()
