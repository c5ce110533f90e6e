"""Synthetic pictures that take after real ones: place, size, softness and compression, and nothing else."""

import json

import cv2
import face_media
import numpy as np
import pytest

from deepscan_jax import matching, media


def write(path, picture, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  flags = [v for pair in options.items() for v in (getattr(cv2, pair[0]), pair[1])]
  assert cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), flags)
  return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A sharp synthetic picture, and real ones: a soft JPEG, a PNG, a view that is too wide, and of nobody."""
  root = tmp_path_factory.mktemp("match")
  write(root / "synthetic/one.png", face_media.portrait(side=512, zoom=0.95))
  write(root / "synthetic/nobody.png", face_media.no_face(side=128))
  (root / "synthetic/torn.png").write_bytes(b"no picture")
  soft = cv2.GaussianBlur(face_media.portrait(side=200, zoom=1.6, turn_deg=7), (0, 0), 2.5)
  write(root / "soft/a.jpg", soft, IMWRITE_JPEG_QUALITY=61, IMWRITE_JPEG_SAMPLING_FACTOR=0x111111)
  write(root / "png/b.png", face_media.portrait(side=180, zoom=2.3))
  write(
    root / "wide/c.png", cv2.copyMakeBorder(face_media.portrait(side=160), *[240] * 4, cv2.BORDER_CONSTANT)
  )
  return root


def pictures(folder):
  return sorted(folder.iterdir())


def seen(path):
  return matching._see([path])[path]


def test_a_match_has_the_place_the_softness_and_the_compression_of_the_real_picture(folder, tmp_path):
  counts = matching.match_folder(pictures(folder / "synthetic"), [pictures(folder / "soft")], tmp_path)
  assert counts == {"written": 1, "no_face": 2, "no_frame": 0}
  (line,) = (tmp_path / "matches.jsonl").read_text().splitlines()
  facts = json.loads(line)
  assert (facts["name"], facts["synthetic"], facts["takes_after"]) == ("one.jpg", "one.png", "a.jpg")
  assert facts["softened"] < 1
  copy, real, sharp = (
    seen(tmp_path / "one.jpg"),
    seen(folder / "soft/a.jpg"),
    seen(folder / "synthetic/one.png"),
  )
  assert copy.picture.shape == real.picture.shape
  for fact in ("jpeg_quality", "chroma_subsampling"):
    assert copy.facts[fact] == real.facts[fact], fact
  # The same portrait: its landmarks lie where the real one's do, to some pixels of 200.
  assert np.abs(copy.landmarks[:, :2] - real.landmarks[:, :2]).mean() < 4
  assert abs(np.log(copy.sharpness / real.sharpness)) < abs(np.log(sharp.sharpness / real.sharpness)) / 2


def test_what_is_no_jpeg_gives_none_and_a_soft_picture_is_not_sharpened(folder):
  soft, plain = seen(folder / "soft/a.jpg"), seen(folder / "png/b.png")
  large = np.ascontiguousarray(cv2.resize(soft.picture, (600, 600)))
  big = matching.Seen(soft.path, large, soft.landmarks * 3, soft.sharpness, soft.facts)
  data, suffix, softened = matching.match(big, plain)
  assert suffix == ".png" and softened == 1.0
  assert media.decode_image_bytes(data).frames.shape[1:3] == plain.picture.shape[:2]


def test_a_picture_that_does_not_fill_the_frame_is_left_out(folder, tmp_path):
  counts = matching.match_folder([folder / "synthetic/one.png"], [pictures(folder / "wide")], tmp_path)
  assert counts == {"written": 0, "no_face": 0, "no_frame": 1}
  assert not list(tmp_path.glob("*.png"))


def test_a_seed_says_who_takes_after_whom(folder, tmp_path):
  real = [pictures(folder / "soft"), pictures(folder / "png")]
  for name in ("x", "y"):
    matching.match_folder([folder / "synthetic/one.png"], real, tmp_path / name, seed=4)
  first, second = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("x", "y"))
  assert first == second


def test_nothing_to_match_is_said(folder, tmp_path):
  with pytest.raises(ValueError, match="no synthetic picture"):
    matching.match_folder([], [pictures(folder / "soft")], tmp_path)
  with pytest.raises(ValueError, match="no real picture"):
    matching.match_folder([folder / "synthetic/one.png"], [[]], tmp_path)
