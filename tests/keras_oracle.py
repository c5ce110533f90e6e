"""Keras' own picture networks as oracles: filled with our parameters, their maps, their weight files.

Both sides are filled layer by layer in the order of the network, so a parameter that reached the wrong layer,
or a convolution that is padded on the wrong side, moves the maps.
"""

import functools
import importlib.util
import json
import math
import os
from pathlib import Path

# With torch Keras runs at once; with JAX it compiles every initialiser first, and says the same.
os.environ.setdefault("KERAS_BACKEND", "torch" if importlib.util.find_spec("torch") else "jax")

import jax
import numpy as np
import pytest
from compiling import quick_jit

from deepscan_jax.models import pretrained
from deepscan_jax.models.backbones import backbone

GOLDENS = Path(__file__).parent / "goldens" / "backbones.json"
APPLICATIONS = {
  "b0": "EfficientNetB0",
  "b3": "EfficientNetB3",
  "densenet121": "DenseNet121",
  "xception": "Xception",
}
# An odd height and an even width meet both ways of padding.
SHAPE = (107, 96, 3)
CLASSES = 5
MEAN, DEVIATION = (np.array(value, np.float32) for value in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


@functools.cache
def variables(name: str) -> dict:
  """Random variables, batch statistics too, drawn in the order of the network: Keras' order of numbers."""
  rng = np.random.default_rng(0)
  shapes = pretrained._shapes(name, CLASSES)
  tree: dict = {}
  for layer in pretrained.network_layers(name):
    for path in pretrained._paths(layer):
      shape, leaf = shapes[path], path.rpartition("/")[2]
      if leaf in ("scale", "var"):
        values = rng.uniform(0.8, 1.2, shape)
      elif leaf in ("bias", "mean"):
        values = 0.1 * rng.normal(size=shape)
      else:
        fan_in = math.prod(shape[:-1]) if len(shape) != 3 else math.prod(shape[:2])
        values = rng.normal(size=shape) / math.sqrt(fan_in)
      pretrained._put(tree, path, values.astype(np.float32))
  return tree


def images() -> np.ndarray:
  """Two pictures of noise, 0..255."""
  return np.random.default_rng(1).uniform(0, 255, (2, *SHAPE)).astype(np.float32)


@functools.cache
def our_maps(name: str) -> dict[str, np.ndarray]:
  network = backbone(name)
  module = network.make(num_classes=CLASSES)
  apply = quick_jit(lambda v, x: module.apply(v, network.normalise(x), train=False))
  return jax.device_get(apply(variables(name), images()))


@functools.cache
def keras_model(name: str):
  """Keras' network with classifier, filled with `variables`; skips where Keras is not installed."""
  keras = pytest.importorskip("keras")
  make = getattr(keras.applications, APPLICATIONS[name])
  model = make(weights=None, input_shape=SHAPE, classes=CLASSES, classifier_activation=None)
  layers = [layer for layer in model.layers if layer.weights]
  if name.startswith("b"):
    colours = layers.pop(0)
    colours.set_weights([MEAN, DEVIATION**2, *colours.get_weights()[2:]])
    colours.finalize_state()
  ours = pretrained.network_layers(name)
  assert len(layers) == len(ours)
  for layer, mine in zip(layers, ours, strict=True):
    values = [get(variables(name), path) for path in pretrained._paths(mine)]
    layer.set_weights([v.reshape(w.shape) for v, w in zip(values, layer.get_weights(), strict=True)])
  return model


def keras_maps(name: str) -> dict[str, np.ndarray]:
  import keras

  model = keras_model(name)
  outputs = {key: layer.output for key, layer in _map_layers(name, model).items()}
  network = keras.Model(model.input, outputs)
  inputs = images() if name.startswith("b") else np.asarray(backbone(name).normalise(images()))
  if keras.backend.backend() != "jax":
    outputs = network(inputs, training=False)
    return {key: keras.ops.convert_to_numpy(value) for key, value in outputs.items()}
  # One program; called layer by layer, every operation would be compiled by itself.
  trained, untrained = (
    [variable.value for variable in each]
    for each in (network.trainable_variables, network.non_trainable_variables)
  )
  call = jax.jit(lambda t, u, x: network.stateless_call(t, u, x, training=False)[0])
  return jax.device_get(call(trained, untrained, inputs))


def get(tree: dict, path: str) -> np.ndarray:
  """What lies at a path such as "params|stem/kernel"."""
  return functools.reduce(lambda node, key: node[key], path.replace("|", "/").split("/"), tree)


def _map_layers(name: str, model) -> dict:
  """Keras' layer of each of our maps."""
  ends = ("stride4", "stride8", "stride16", "stride32", "head", "logits")
  if name.startswith("b"):
    stages = ("block2", "block3", "block5", "block7")
    last = [[layer for layer in model.layers if layer.name.startswith(stage)][-1] for stage in stages]
    head = model.get_layer("top_activation")
  elif name.startswith("densenet"):
    last = [model.get_layer(key) for key in ("pool2_relu", "pool3_relu", "pool4_relu", "relu")]
    head = last[-1]
  else:
    sums = [layer for layer in model.layers if type(layer).__name__ == "Add"]
    last = [sums[index] for index in (0, 1, 10, 11)]
    head = model.get_layer("block14_sepconv2_act")
  return dict(zip(ends, (*last, head, model.layers[-1]), strict=True))


def digest(maps: dict[str, np.ndarray]) -> dict[str, list[float]]:
  """A few numbers of each map that a wrong padding, order or epsilon would move."""
  return {
    key: [float(x) for x in (value.mean(), value.std(), *value.reshape(2, -1)[:, [0, -1]].ravel())]
    for key, value in maps.items()
  }


def check_goldens(name: str) -> None:
  """Our maps against numbers that Keras gave once."""
  golden = json.loads(GOLDENS.read_text())[name]
  for key, numbers in digest(our_maps(name)).items():
    scale = np.abs(our_maps(name)[key]).max()
    np.testing.assert_allclose(numbers, golden[key], rtol=1e-4, atol=1e-4 * scale, err_msg=key)


def check_parity(name: str) -> None:
  """Every map within 1e-4 of its largest value of Keras', on the same pictures and parameters."""
  pytest.importorskip("keras")
  ours = our_maps(name)
  theirs = keras_maps(name)
  for key, value in theirs.items():
    assert ours[key].shape == value.shape, key
    difference = np.abs(ours[key] - value).max() / np.abs(value).max()
    assert difference < 1e-4, (key, difference)


if __name__ == "__main__":  # writes the goldens: python tests/keras_oracle.py
  GOLDENS.write_text(json.dumps({name: digest(keras_maps(name)) for name in APPLICATIONS}, indent=1) + "\n")
