"""The smallest run there is, for tests: a few steps from random weights, seconds on a CPU, no useful
score."""

from deepscan_jax.config import Config, DataConfig, TrainConfig


def get_config() -> Config:
  """Four steps of four pairs on real_only, without ImageNet weights."""
  return Config(
    name="testing",
    data=DataConfig(batch_size=8, validation_limit=4),
    train=TrainConfig(steps=4, warmup_steps=1, validate_every=4, save_every=2, pretrained=False),
  )
