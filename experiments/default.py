"""The model that ships: one spatial branch, trained on self-blended pairs of real pictures only."""

from deepscan_jax.config import Config, DataConfig, ModelConfig, TrainConfig


def get_config() -> Config:
  """The default preset."""
  return Config(
    name="default",
    seed=0,
    model=ModelConfig(branches=("spatial",), backbone="lite0"),
    data=DataConfig(datasets=("real_only",), source_weights=(("ffhq512", 4),), batch_size=32),
    train=TrainConfig(steps=1800, learning_rate=4e-4, warmup_steps=100, save_every=100, validate_every=200),
  )
