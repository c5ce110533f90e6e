"""The smallest run there is, for tests: a few steps of a tiny network from random weights, no useful score.

deepscan train --preset=testing --data_dir=data --workdir=runs/testing
"""

from deepscan_jax.config import Config, DataConfig, ModelConfig, TrainConfig


def get_config() -> Config:
  """Four steps of four pairs on real_only, without ImageNet weights."""
  return Config(
    name="testing",
    model=ModelConfig(backbone="pico", features=32),
    data=DataConfig(batch_size=8, validation_limit=4),
    train=TrainConfig(steps=4, warmup_steps=1, validate_every=4, save_every=2, pretrained=False),
  )
