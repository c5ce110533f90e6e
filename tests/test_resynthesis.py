"""Pictures as decoders put them out: what decoders learn, what is kept of the original, the verb."""

import cv2
import face_media
import numpy as np
import pytest
from absl import app
from absl.testing import flagsaver

from deepscan_jax import data, media, resynthesis
from deepscan_jax.launch import resynthesise
from deepscan_jax.resynthesis import Build

TINY = Build("shuffle", levels=1, code=8, width=4)


@pytest.fixture(scope="module", autouse=True)
def _small_batches():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(resynthesis, "CROP", 32)
    patch.setattr(resynthesis, "BATCH", 4)
    yield


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
  return face_media.portrait()


@pytest.fixture(scope="module")
def decoder(portrait) -> resynthesis.Decoder:
  params, errors = resynthesis.train(TINY, [portrait], steps=200)
  assert np.mean(errors[-5:]) < 0.5 * np.mean(errors[:5])
  return resynthesis.Decoder(TINY, params)


@pytest.mark.parametrize("side", [3, 4])
def test_a_transposed_convolution_is_what_its_definition_says(side):
  rng = np.random.default_rng(0)
  x, kernel = rng.standard_normal((2, 3, 4, 2)), rng.standard_normal((side, side, 2, 3))
  wanted = np.zeros((2, 6, 8, 3))
  for i, j, u, v in np.ndindex(3, 4, side, side):
    row, column = 2 * i + u - 1, 2 * j + v - 1
    if 0 <= row < 6 and 0 <= column < 8:
      wanted[:, row, column] += x[:, i, j] @ kernel[u, v]
  np.testing.assert_allclose(resynthesis.transposed_conv(x, kernel), wanted, atol=1e-5)


@pytest.mark.parametrize("name", ["nearest8", "bilinear4", "transposed8"])
def test_every_way_of_upsampling_learns(name, portrait):
  small = Build(resynthesis.BUILDS[name].upsampling, levels=1, code=8, width=4, kernel=3)
  _, errors = resynthesis.train(small, [portrait], steps=120)
  assert np.mean(errors[-5:]) < 0.8 * np.mean(errors[:5])


def test_builds_are_checked():
  with pytest.raises(ValueError, match="no upsampling 'fractal'; there are nearest"):
    Build("fractal")


@pytest.mark.parametrize("shape", [(70, 101), (224, 224)])
def test_a_picture_of_any_size_is_rebuilt_in_its_place(decoder, portrait, shape):
  picture = np.ascontiguousarray(portrait[: shape[0], : shape[1]])
  rebuilt = decoder(picture, rng=np.random.default_rng(0))
  assert rebuilt.shape == picture.shape and rebuilt.dtype == np.uint8

  def error(down: int) -> float:
    moved = np.roll(rebuilt, down, axis=0).astype(float)
    return float(np.abs(moved - picture)[8:-8].mean())

  assert 0 < error(0) < min(error(-3), error(3))


def test_sharpness_comes_back(decoder, portrait):
  soft = cv2.GaussianBlur(portrait, (0, 0), 1.2)
  finished = resynthesis.finish(soft, portrait, rng=np.random.default_rng(0))
  details = [resynthesis._detail(picture) for picture in (soft, finished, portrait)]
  assert details[0] < 0.7 * details[2] and details[1] == pytest.approx(details[2], rel=0.25)
  # What has all of it gets no more.
  same = resynthesis.finish(portrait, portrait, rng=np.random.default_rng(0))
  np.testing.assert_array_equal(same, portrait)


def test_grey_stays_grey(decoder, portrait):
  grey = cv2.cvtColor(cv2.cvtColor(portrait, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2BGR)
  original = media.decode_image_bytes(cv2.imencode(".png", grey)[1].tobytes())
  content, _ = resynthesis.resynthesise(original, decoder, seed=0, name="grey")
  made = media.decode_image_bytes(content).frames[0]
  assert (made == made[..., :1]).all() and not np.array_equal(made, original.frames[0])


def test_it_is_stored_as_the_original_is(decoder, portrait):
  for suffix, options in ((".jpg", [cv2.IMWRITE_JPEG_QUALITY, 61]), (".png", [])):
    content = cv2.imencode(suffix, portrait, options)[1].tobytes()
    original = media.decode_image_bytes(content)
    made = [resynthesis.resynthesise(original, decoder, seed=1, name=name) for name in ("a", "a", "b")]
    assert made[0] == made[1] != made[2] and made[0][1] == suffix
    again = media.decode_image_bytes(made[0][0])
    assert again.facts.get("jpeg_quality") == original.facts.get("jpeg_quality")
    assert again.frames[0].shape == original.frames[0].shape


def test_choice_is_even_among_kinds_as_far_as_they_go():
  rng = np.random.default_rng(0)
  many, few = [f"many{i}" for i in range(20)], ["few0", "few1"]
  chosen = resynthesise.choose([many, few], 10, rng)
  assert len(chosen) == len(set(chosen)) == 10 and {"few0", "few1"} <= set(chosen)
  assert len(resynthesise.choose([many, few], 99, rng)) == 22


def make(real_media, data_dir, output, **flags) -> int:
  flags = {
    "media": [str(real_media)],
    "of": "real_only",
    "count": 24,
    "decoder_steps": 1,
    "seed": 0,
  } | flags
  with flagsaver.flagsaver(data_dir=str(data_dir), output=str(output), **flags):
    return resynthesise.main(["resynthesise"])


def made_in(output) -> dict:
  return {path.relative_to(output): path.stat().st_mtime_ns for path in output.rglob("*.[jp]*g")}


def test_pictures_stay_in_their_split_and_some_builds_are_of_one_split_alone(
  prepared_dataset, real_media, tmp_path, monkeypatch
):
  monkeypatch.setattr(resynthesis, "BUILDS", {name: TINY for name in ("nearest4", *resynthesise.HELD_OUT)})
  assert make(real_media, prepared_dataset, tmp_path) == 0
  files = made_in(tmp_path)
  builds = {}
  for path in files:
    split, fake, build, name = path.parts
    assert fake == "fake"
    builds.setdefault(split, set()).add(build)
    listed = data.listed_examples("real_only", split, data_dir=prepared_dataset)
    names = {row["id"].rpartition("#")[0].replace("/", "__") for row in listed}
    assert name.rpartition("-")[0] in names
  assert builds["train"] == {"nearest4"}
  for build, split in resynthesise.HELD_OUT.items():
    assert all((build in found) == (of == split) for of, found in builds.items())
  # What is there is not made again; of the rest a decoder is trained that is the same.
  gone = tmp_path / next(path for path in files if path.parts[0] == "train")
  content = gone.read_bytes()
  gone.unlink()
  assert make(real_media, prepared_dataset, tmp_path) == 0
  assert gone.read_bytes() == content
  kept = made_in(tmp_path)
  assert [path for path in files if kept[path] != files[path]] == [gone.relative_to(tmp_path)]
  # A folder is of one set of flags.
  with pytest.raises(ValueError, match="made with another count; choose another --output"):
    make(real_media, prepared_dataset, tmp_path, count=25)
  with pytest.raises(ValueError, match="holds something else; choose another --output"):
    make(real_media, prepared_dataset, tmp_path / "train")
  assert made_in(tmp_path) == kept


def test_what_is_missing_is_said(prepared_dataset, real_media, tmp_path):
  with pytest.raises(app.UsageError, match=r"media has none of the .* train pictures of real_only"):
    make(tmp_path, prepared_dataset, tmp_path / "out")
  with pytest.raises(app.UsageError, match="Two of --media have a file"):
    make(real_media, prepared_dataset, tmp_path / "twice", media=[str(real_media)] * 2)
  with flagsaver.flagsaver(media=[], output=None), pytest.raises(app.UsageError, match="--output=FOLDER"):
    resynthesise.main(["resynthesise"])
