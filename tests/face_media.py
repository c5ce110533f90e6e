"""Makes small real pictures and clips from one portrait: scikit-image's astronaut (NASA, public domain)."""

from pathlib import Path

import cv2
import numpy as np
import skimage.data
from media_files import picture, text, write_video

from deepscan_jax.rooms import import_room

CLIP_SAMPLES = 4
# Pictures in each split, for each of two sources.
COUNTS = {"train": 3, "validation": 2, "test": 1}
SOURCES = ("studio", "street")
CLIP_SPLIT = "test"
# Middle and size of the part of the portrait that the pictures show.
_MIDDLE, _SPAN = (222.0, 122.0), 200.0


def portrait(
  *,
  side: int = 224,
  shift: tuple[float, float] = (0.0, 0.0),
  zoom: float = 1.0,
  turn_deg: float = 0.0,
  mirrored: bool = False,
  light: float = 1.0,
) -> np.ndarray:
  """Returns a view of the portrait, uint8 RGB [side, side, 3]: one face, half as high as the picture."""
  matrix = cv2.getRotationMatrix2D(_MIDDLE, turn_deg, zoom * side / _SPAN)
  matrix[:, 2] += side / 2 - np.array(_MIDDLE) - np.array(shift)
  view = cv2.warpAffine(
    skimage.data.astronaut(), matrix, (side, side), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REFLECT
  )
  view = view[:, ::-1] if mirrored else view
  return np.clip(view * light, 0, 255).astype(np.uint8)


def two_people(*, side: int = 128) -> np.ndarray:
  """Returns uint8 RGB [side, 2 * side, 3] with a face in each half."""
  return np.concatenate([portrait(side=side), portrait(side=side, mirrored=True, turn_deg=4)], axis=1)


def no_face(*, side: int = 128) -> np.ndarray:
  """Returns a smooth picture of nobody."""
  ramp = np.linspace(40, 200, side)
  return np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], 128.0), axis=-1).astype(np.uint8)


def moving_portrait(count: int) -> list[np.ndarray]:
  """Returns the frames of a slow pan over the portrait."""
  return [portrait(shift=(1.5 * i, 0.5 * i), turn_deg=0.4 * i) for i in range(count)]


def write_real_media(root: Path) -> Path:
  """Writes pictures below root/studio and root/street, a clip, a picture of nobody and a text named .jpg.

  There are COUNTS pictures of each source in each split, and the clip lies in CLIP_SPLIT.
  """
  rng = np.random.default_rng(0)
  for source in SOURCES:
    (root / source).mkdir(parents=True)
    for split, count in COUNTS.items():
      for name in names_in(split, source, count=count, ending=".png"):
        view = portrait(
          shift=tuple(rng.uniform(-14, 14, 2)),
          zoom=rng.uniform(0.85, 1.2),
          turn_deg=rng.uniform(-12, 12),
          mirrored=bool(rng.integers(2)),
          light=rng.uniform(0.8, 1.1),
        )
        picture(root / source / name, view)
  (clip,) = names_in(CLIP_SPLIT, "studio", count=1, ending=".mp4")
  write_video(root / "studio" / clip, moving_portrait(12), options={"crf": "12"})
  picture(root / "street" / "nobody.png", no_face())
  text(root / "street" / "letter.jpg")
  return root


def names_in(split: str, source: str, *, count: int, ending: str) -> list[str]:
  """Returns the first `count` file names that real_only puts into a split."""
  split_of = import_room("datasets.media_builder").split_of
  names, number = [], 0
  while len(names) < count:
    name = f"{number:03d}{ending}"
    if split_of(f"{source}/{source}/{name}") == split:
      names.append(name)
    number += 1
  return names
