"""The model that ships: one spatial branch, trained on self-blended pairs of real pictures only."""

from deepscan_jax.config import Config, DataConfig, ModelConfig, TrainConfig


def get_config() -> Config:
  """The default preset."""
  return Config(
    name="default",
    seed=0,
    model=ModelConfig(branches=("spatial",), backbone="lite0"),
    data=DataConfig(datasets=("real_only",), batch_size=32),
    train=TrainConfig(steps=4000),
  )
