"""The configuration of a run: frozen dataclasses, presets by name, overrides by text.

A preset is a Python file with `get_config() -> Config` in experiments/ (or anywhere: give its path).
Everything that a run depends on stands in its Config, which is stored as JSON in each checkpoint.
"""

import dataclasses
import importlib.util
import json
import math
import pkgutil
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path

from deepscan_jax.augment import AugmentConfig
from deepscan_jax.augment_audio import AudioAugmentConfig
from deepscan_jax.pseudofakes.audio import VoiceConfig
from deepscan_jax.pseudofakes.clip import ClipBlendConfig, MotionConfig
from deepscan_jax.pseudofakes.image import BlendConfig, SwapConfig
from deepscan_jax.pseudofakes.sync import SyncConfig
from deepscan_jax.rooms import import_room

# What networks may compute in, and how the learning rate may fall.
DTYPES = ("float32", "bfloat16")
SCHEDULES = ("cosine", "plateau")
# As lip-sync needs them; see WindowConfig.mouth_frames.
MOUTHS_PER_S = 25


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """What the network is made of.

  Attributes:
    branches: names of the branches, keys of `models.detector.BRANCHES`.
    backbone, densenet, xception: the picture networks of the branches "spatial", "spatial_densenet" and
      "spatial_xception"; any name of models/backbones.py.
    cnn3d_factorised: convolve in space, then in time, or False for both at once.
    audio_network: whether the audio branch has a convolutional network beside its statistics.
    whole_sound_s: seconds of sound from which on the audio branch's logit counts in full; of less it is
      multiplied by the root of the share. 0: always in full.
    features: width of a token.
    fusion: "attention", or "weighted" for the fixed ensemble that it has to beat.
    dropout: probability of dropping a feature of the pooled description in training.
    modality_dropout: probability of hiding a present branch from the fusion in training; the last one is
      never hidden.
    bottlenecks: shared tokens through which branches exchange before they are fused; 0 for none.
    dtype: "float32", or "bfloat16" for mixed precision: what convolutions and dense layers compute in. Norms,
      softmax, logits, losses, parameters and their gradients are float32; see models/interface.py.
  """

  branches: tuple[str, ...] = ("spatial",)
  backbone: str = "lite0"
  densenet: str = "densenet121"
  xception: str = "xception"
  cnn3d_factorised: bool = True
  audio_network: bool = True
  whole_sound_s: float = 0.0
  features: int = 256
  fusion: str = "attention"
  fusion_heads: int = 4
  dropout: float = 0.2
  modality_dropout: float = 0.0
  bottlenecks: int = 0
  dtype: str = "float32"

  def __post_init__(self):
    if self.dtype not in DTYPES:
      raise ValueError(f"Unknown model.dtype {self.dtype!r}; there are {', '.join(DTYPES)}.")


@dataclasses.dataclass(frozen=True)
class WindowConfig:
  """What one example holds, where a branch reads it.

  Attributes:
    frames: crops of one person; 0: none.
    frame_rate_hz: how many of them fill a second, where there is more than one.
    mouth_frames: mouth crops, at 25 a second; 0: none.
    samples: of the waveform, at 16 kHz; 0: none.
  """

  frames: int = 1
  frame_rate_hz: float = 12.5
  mouth_frames: int = 50
  samples: int = 64_000

  def __post_init__(self):
    if min(self.frames, self.mouth_frames, self.samples) < 0 or self.frame_rate_hz <= 0:
      raise ValueError(
        "A window needs frames, mouth_frames and samples of 0 or more and a frame_rate_hz above 0; got "
        f"{self.frames}, {self.mouth_frames}, {self.samples} and {self.frame_rate_hz:g}."
      )

  @property
  def is_sequence(self) -> bool:
    """Whether it shows a person over time, and not in single frames."""
    return self.frames > 1 or self.mouth_frames > 0

  @property
  def seen_s(self) -> float:
    """Seconds from the first frame or mouth crop to where the one after the last would be."""
    shown_s = self.frames / self.frame_rate_hz if self.frames > 1 else 0.0
    return max(shown_s, self.mouth_frames / MOUTHS_PER_S)

  def reading(self, keys: Iterable[str]) -> "WindowConfig":
    """The same without what nothing reads that reads these keys (models.detector.detector_inputs)."""
    keys = set(keys)
    return dataclasses.replace(
      self,
      frames=self.frames if keys & {"crops", "mouth_crops"} else 0,
      mouth_frames=self.mouth_frames if "mouth_crops" in keys else 0,
      samples=self.samples if "waveform" in keys else 0,
    )


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """What is read, and how it is turned into batches.

  Attributes:
    datasets: names of prepared datasets under the data folder.
    dataset_weights: how often each of them is drawn, relative to the others; empty: all examples are
      equally frequent.
    balance_classes: draw real and fake examples equally often, whatever their number.
    pseudofakes: make one forged twin of each real example; batches then hold pairs, real and fake in turn.
      Without it the examples' own labels are used.
    labelled_share: how many of the pairs are a real example and, in place of a twin, another that is known to
      be forged, 0 to 1; 0 leaves out of training with pseudo-fakes whatever is not known to be real.
    pseudofake_kinds: (kind, relative frequency) pairs of what is forged, where an example allows it and the
      model reads it: "face" (self-blended), "swap" (the face of another person blended in; single pictures),
      "voice" (copy synthesis), "sync" (sound of another moment).
    moving_stills: how often an example of one picture becomes a window of frames by a camera that moves,
      where the model looks at windows.
    plain_probability: how often a training pair is cut as for evaluation and not degraded.
    source_weights: (source, times) pairs: how often the examples of a source are seen in one pass; 1 where
      not named.
    batch_size: examples in a batch, both twins counted.
    workers: loader processes; 0 reads in a thread.
    validation_limit: at most so many validation examples, always the same: of evenly spread files, several of
      each file that has several; 0 = all.
    folds, fold: of a cross-validation (deepscan_jax.folds): train and validation together are divided into
      `folds` parts by person or source video; validation is then part number `fold`, from 0 on, and train
      whatever shows nobody of it. 0 folds: the splits as they were built. The test split is never divided.
    window: the size of an example.
    blend, clip_blend, swap, motion, voice, sync, augment, augment_audio: how pseudo-fakes and augmentations
      are drawn; the blend of clip_blend is `blend`.
  """

  datasets: tuple[str, ...] = ("real_only",)
  dataset_weights: tuple[float, ...] = ()
  balance_classes: bool = False
  pseudofakes: bool = True
  labelled_share: float = 0.0
  pseudofake_kinds: tuple[tuple[str, float], ...] = (("face", 1.0), ("voice", 1.0), ("sync", 1.0))
  moving_stills: float = 1.0
  plain_probability: float = 0.0
  source_weights: tuple[tuple[str, int], ...] = ()
  batch_size: int = 32
  workers: int = 0
  validation_limit: int = 400
  folds: int = 0
  fold: int = 0
  window: WindowConfig = dataclasses.field(default_factory=WindowConfig)
  blend: BlendConfig = dataclasses.field(default_factory=BlendConfig)
  clip_blend: ClipBlendConfig = dataclasses.field(default_factory=ClipBlendConfig)
  swap: SwapConfig = dataclasses.field(default_factory=SwapConfig)
  motion: MotionConfig = dataclasses.field(default_factory=MotionConfig)
  voice: VoiceConfig = dataclasses.field(default_factory=VoiceConfig)
  # Windows of stored examples are cut again, so that there is sound and picture to shift.
  sync: SyncConfig = dataclasses.field(default_factory=lambda: SyncConfig(mouth_frames=35))
  augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
  augment_audio: AudioAugmentConfig = dataclasses.field(default_factory=AudioAugmentConfig)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """How the parameters are found.

  Attributes:
    steps: optimiser steps in all.
    epochs: passes over the training split, in place of `steps`; 0: `steps` counts.
    learning_rate: peak of the schedule, reached by a linear warm-up over `warmup_steps`.
    schedule: what comes after the warm-up: "cosine", half of one to 0 at the end; or "plateau", constant
      while validation gets better.
    restarts: steps at which the cosine begins again from its warm-up.
    plateau_factor, plateau_patience, plateau_min: of "plateau": after so many validations in a row without a
      better `metric` the rate is multiplied by the factor, but never falls below plateau_min. Validations
      during the warm-up do not count. `patience`, where it is not 0, has to be the longer one.
    optimizer: "adamw" or "sgd" (momentum 0.9).
    weight_decay: decoupled, on matrices and kernels only; see optimizer.create_optimizer.
    clip_norm: bound on the gradient's global norm.
    sam_rho: radius of sharpness-aware minimisation, which computes two gradients a step; 0 is off. Shiohara
      and Yamasaki's self-blended training uses 0.05 with SGD.
    accumulate: in how many equal parts, one after the other, a device goes through its share of a batch: the
      same step with the memory of a part.
    focal_gamma: 0 is plain cross entropy.
    focal_alpha: weight of a fake's classification loss, 1 - focal_alpha that of a real's (Lin et al. 2017);
      0 is off, 1 for both.
    class_weights: weight of a real and of a fake example in the classification losses' means. Unlike
      focal_alpha it is part of the denominator, so the size of the loss stays; where both are set, they
      multiply.
    region_weight, branch_weight: of the region-map loss and of each branch's own loss beside the fused one.
    reconstruction_weight, sync_weight: of the autoencoder's and of the lip-sync branch's own losses.
    freeze_all_but_last: how many layers of each pretrained network are trained, the last ones; 0: all.
    start_from: folder of a model, or "default" for the one that comes with the package: parameters that it
      has too start from its values; "": all are new.
    branches: train these branches alone, on what they read; all else that start_from holds stays as it is, to
      the bit. "fusion" among them: what joins them is trained too, which changes what is said of inputs that
      none of these branches reads. Empty: train all.
    ema_decay: of the average of parameters that is validated and shipped; 0 switches it off.
    validate_every, save_every: steps.
    keep_checkpoints: how many of the last ones are kept, 2 or more.
    patience: validations without a better `metric` before training stops; 0 never stops early.
    metric: the validation metric that chooses the checkpoint; see training.validate.
    target_accuracy: stop when validation accuracy reaches it; 0 is off.
    pretrained: start the picture networks from ImageNet weights.
    imagenet_dir: folder with the files of those weights (models.pretrained.weight_file); "": where they are
      installed.
  """

  steps: int = 1000
  epochs: int = 0
  learning_rate: float = 5e-4
  warmup_steps: int = 60
  schedule: str = "cosine"
  restarts: tuple[int, ...] = ()
  plateau_factor: float = 0.5
  plateau_patience: int = 3
  plateau_min: float = 0.0
  optimizer: str = "adamw"
  weight_decay: float = 0.01
  clip_norm: float = 2.0
  sam_rho: float = 0.0
  accumulate: int = 1
  focal_gamma: float = 0.0
  focal_alpha: float = 0.0
  label_smoothing: float = 0.0
  class_weights: tuple[float, float] = (1.0, 1.0)
  region_weight: float = 0.5
  branch_weight: float = 0.5
  reconstruction_weight: float = 1.0
  sync_weight: float = 0.5
  freeze_all_but_last: int = 0
  start_from: str = ""
  branches: tuple[str, ...] = ()
  ema_decay: float = 0.99
  validate_every: int = 200
  save_every: int = 100
  keep_checkpoints: int = 2
  patience: int = 20
  metric: str = "video_auc"
  target_accuracy: float = 0.0
  pretrained: bool = True
  imagenet_dir: str = ""

  def __post_init__(self):
    if self.schedule not in SCHEDULES:
      raise ValueError(f"Unknown train.schedule {self.schedule!r}; there are {', '.join(SCHEDULES)}.")
    for name, wanted, right in (
      ("plateau_factor", "between 0 and 1", 0 < self.plateau_factor < 1),
      ("plateau_patience", "1 validation or more", self.plateau_patience >= 1),
      ("plateau_min", "0 or more", self.plateau_min >= 0),
      ("sam_rho", "0 (off) or more", 0 <= self.sam_rho < math.inf),
      ("accumulate", "1 (the whole batch at once) or more", self.accumulate >= 1),
      ("focal_gamma", "0 (cross entropy) or more", 0 <= self.focal_gamma < math.inf),
      ("focal_alpha", "0 (off) or between 0 and 1", 0 <= self.focal_alpha < 1),
    ):
      if not right:
        raise ValueError(f"train.{name} must be {wanted}, got {getattr(self, name)}.")


@dataclasses.dataclass(frozen=True)
class Config:
  """One run: `name` is the model's name in checkpoints and verdicts."""

  name: str = "default"
  seed: int = 0
  model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
  data: DataConfig = dataclasses.field(default_factory=DataConfig)
  train: TrainConfig = dataclasses.field(default_factory=TrainConfig)


def load_preset(name_or_path: str) -> Config:
  """Returns the Config of a preset, by its name in experiments/ or by the path of a Python file.

  Raises:
    ValueError: unknown name (the message lists the known ones), or a file without get_config().
    FileNotFoundError: no such file.
  """
  if name_or_path.endswith(".py"):
    path = Path(name_or_path)
    if not path.is_file():
      raise FileNotFoundError(f"Preset file {path} does not exist.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
  else:
    known = preset_names()
    if name_or_path not in known:
      raise ValueError(
        f"Unknown preset {name_or_path!r}; known presets: {', '.join(known)}, or a path ending in .py."
      )
    module = import_room(f"experiments.{name_or_path}")
  if not hasattr(module, "get_config"):
    raise ValueError(f"Preset {name_or_path} has no function get_config() that returns a Config.")
  return module.get_config()


def preset_names() -> list[str]:
  """The names of the presets that are installed, sorted."""
  return sorted(info.name for info in pkgutil.iter_modules(import_room("experiments").__path__))


def override(config: Config, assignment: str) -> Config:
  """Returns a copy of config with one field changed.

  Args:
    config: any Config.
    assignment: "train.batch_size=64": a dotted path, and a value written as JSON or as a plain word.

  Raises:
    ValueError: no "=", no such field (the message lists the fields), or a value of another type.
  """
  path, sign, text = assignment.partition("=")
  if not sign:
    raise ValueError(f"Override {assignment!r} must have the form path.to.field=value.")
  try:
    value = json.loads(text)
  except json.JSONDecodeError:
    value = text
  return _replace_at(config, path.strip().split("."), value, path)


def differences(a, b, path: str = "") -> Iterator[tuple[str, object, object]]:
  """Where two of `to_dict` differ: (dotted path, value of a, value of b)."""
  if isinstance(a, dict) and isinstance(b, dict):
    for key in sorted(a.keys() | b.keys()):
      yield from differences(a.get(key), b.get(key), f"{path}.{key}" if path else key)
  elif a != b:
    yield path, a, b


def to_dict(config) -> dict:
  """A dataclass (or a tree of them) as plain dicts and lists that JSON can hold."""
  return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(values: dict, cls: type = Config):
  """The inverse of `to_dict`; a missing field takes its default, an unknown one is a ValueError."""
  hints = typing.get_type_hints(cls)
  unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
  if unknown:
    raise ValueError(f"Unknown fields of {cls.__name__}: {', '.join(unknown)}.")
  return cls(**{name: _coerce(value, hints[name], name) for name, value in values.items()})


def _replace_at(node, path: list[str], value, full_path: str):
  fields = {field.name for field in dataclasses.fields(node)}
  head, *rest = path
  if head not in fields:
    raise ValueError(
      f"No field {head!r} in {full_path!r}; {type(node).__name__} has {', '.join(sorted(fields))}."
    )
  if rest:
    child = getattr(node, head)
    if not dataclasses.is_dataclass(child):
      raise ValueError(f"{full_path!r} goes on after {head!r}, which is a plain value.")
    return dataclasses.replace(node, **{head: _replace_at(child, rest, value, full_path)})
  hint = typing.get_type_hints(type(node))[head]
  return dataclasses.replace(node, **{head: _coerce(value, hint, full_path)})


def _coerce(value, hint, name: str):
  if dataclasses.is_dataclass(hint):
    return value if isinstance(value, hint) else from_dict(value, hint)
  origin = typing.get_origin(hint)
  if origin is tuple:
    if not isinstance(value, list | tuple):
      value = (value,)
    args = typing.get_args(hint)
    inner = [args[0]] * len(value) if len(args) == 2 and args[1] is Ellipsis else args
    if len(inner) != len(value):
      raise ValueError(f"{name} must have {len(inner)} values, got {value!r}.")
    return tuple(_coerce(v, h, name) for v, h in zip(value, inner, strict=True))
  if origin in (typing.Union, types.UnionType):
    if value is None:
      return None
    hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if isinstance(hint, type) and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
    raise ValueError(f"{name} must be {hint.__name__}, got {value!r}.")
  return value
