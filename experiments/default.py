"""The model that ships: one spatial branch, trained on self-blended pairs of real pictures only."""

from deepscan_jax.config import Config, DataConfig, ModelConfig, TrainConfig


def get_config() -> Config:
  """The default preset."""
  return Config(
    name="default",
    seed=0,
    model=ModelConfig(branches=("spatial",), backbone="lite0"),
    data=DataConfig(
      datasets=("real_only",),
      # The sharpest pictures, and the fewest: 211 of 7,900.
      source_weights=(("ffhq512", 4),),
      batch_size=16,
      validation_limit=400,
    ),
    train=TrainConfig(
      steps=2600,
      learning_rate=3e-4,
      warmup_steps=100,
      ema_decay=0.998,
      validate_every=260,
      save_every=130,
    ),
  )
