"""Every branch at once, small enough to be compiled and trained in a test; clips of noise for it to read."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import tree_map_with_path

from deepscan_jax import examples, train_state
from deepscan_jax.config import Config, DataConfig, ModelConfig, TrainConfig, WindowConfig
from deepscan_jax.models import detector
from deepscan_jax.models.audio import AudioBranch
from deepscan_jax.models.autoencoder import AutoencoderBranch
from deepscan_jax.models.cnn3d import CNN3DBranch
from deepscan_jax.models.lipsync import LipSyncBranch
from deepscan_jax.models.temporal import TemporalBranch
from deepscan_jax.optimizer import create_optimizer

SIDE, MOUTH_SIDE = 64, 32  # 64 pixels are the least that the region map's sixteen strongest places need.
WINDOW = WindowConfig(frames=2, mouth_frames=12, samples=8_000)
MASK_OF = {
  "crops": "crop_mask",
  "landmarks": "crop_mask",
  "frame_times_s": "crop_mask",
  "mouth_crops": "mouth_mask",
  "waveform": "waveform_mask",
  "file_facts": "file_facts_mask",
}

# The branches that no configuration makes small.
_SMALL = {
  "cnn3d": functools.partial(CNN3DBranch, widths=(8, 8, 16, 16)),
  "temporal": functools.partial(TemporalBranch, hidden=16),
  "autoencoder": functools.partial(AutoencoderBranch, widths=(8, 16)),
  "audio": functools.partial(AudioBranch, widths=(8, 16), depths=(1, 1)),
  "lipsync": functools.partial(
    LipSyncBranch, embedding=16, video_widths=(8, 16, 16), audio_widths=(8, 16), max_shift=3, least_moments=6
  ),
}


@contextlib.contextmanager
def small_branches():
  """Inside, the branches over windows and sound have a few channels each."""

  def smaller(name):
    def make(config: ModelConfig, axis_name: str | None):
      del axis_name
      return _SMALL[name](features=config.features, dropout=config.dropout, dtype=config.dtype, name=name)

    return make

  with pytest.MonkeyPatch.context() as patch:
    for name in _SMALL:
      patch.setitem(detector.BRANCHES, name, smaller(name))
    yield


def small_config(*, dtype: str = "float32", **train) -> Config:
  """The full preset with every branch there is, small; train changes fields of its TrainConfig."""
  return Config(
    model=ModelConfig(
      branches=tuple(detector.BRANCHES),
      backbone="pico",
      densenet="pico_densenet",
      xception="pico_xception",
      features=16,
      fusion_heads=2,
      dropout=0.0,
      bottlenecks=2,
      dtype=dtype,
    ),
    data=DataConfig(window=WINDOW),
    train=TrainConfig(pretrained=False, **train),
  )


def clips(size: int, *, seed: int) -> dict[str, np.ndarray]:
  """A batch of clips of coloured noise with all that a branch may read, their labels drawn at random."""
  rng = np.random.default_rng(seed)
  shapes = {key: shape for key, (shape, _) in examples.input_shapes(WINDOW).items()}
  frames, mouths = WINDOW.frames, WINDOW.mouth_frames

  def pictures(count: int, side: int) -> np.ndarray:
    coarse = rng.uniform(0, 255, (size, count, 4, 4, 3)).repeat(side // 4, axis=2).repeat(side // 4, axis=3)
    return np.clip(coarse + rng.normal(size=coarse.shape) * 20, 0, 255).astype(np.uint8)

  seconds = np.arange(WINDOW.samples) / 16_000
  tones = np.sin(2 * np.pi * rng.uniform(200, 4000, (size, 1)) * seconds)
  batch = {
    "crops": pictures(frames, SIDE),
    "landmarks": rng.uniform(0, SIDE, (size, *shapes["landmarks"])),
    "frame_times_s": np.broadcast_to(np.arange(frames) / 12.5, (size, frames)),
    "mouth_crops": pictures(mouths, MOUTH_SIDE),
    "waveform": 0.3 * tones + 0.05 * rng.normal(size=(size, WINDOW.samples)),
    "file_facts": rng.uniform(-1, 1, (size, *shapes["file_facts"])),
  }
  batch = {key: x if x.dtype == np.uint8 else x.astype(np.float32) for key, x in batch.items()}
  masks = {mask: np.ones((size, *shapes[mask]), bool) for mask in MASK_OF.values()}
  labels = rng.permutation(np.arange(size) % 2).astype(np.int32)
  return batch | masks | {"label": labels, "example_mask": np.ones(size, bool)}


def first_state(config: Config, batch: dict[str, np.ndarray]) -> train_state.TrainState:
  """Where training begins; drawn by numpy: compiling the initialisers takes longer than what is tested."""
  model = detector.Detector(config.model)
  shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), batch)
  rng = np.random.default_rng(0)

  def draw(path, shape) -> np.ndarray:
    name = path[-1].key
    if name in ("scale", "var"):
      return np.ones(shape.shape, np.float32)
    if len(shape.shape) < 2:
      return np.zeros(shape.shape, np.float32)
    # Depthwise kernels have no axis of inputs.
    inputs = shape.shape if any(key.key == "depthwise" for key in path) else shape.shape[:-1]
    return (rng.normal(size=shape.shape) * np.sqrt(2 / np.prod(inputs))).astype(np.float32)

  variables = tree_map_with_path(draw, shapes)
  return train_state.TrainState(
    step=jnp.zeros((), jnp.int32),
    params=variables["params"],
    batch_stats=variables["batch_stats"],
    ema=variables["params"],
    # One program: called as it is, it would be one for each shape.
    opt_state=jax.jit(create_optimizer(config.train).init)(variables["params"]),
  )
