"""The voice alone, four seconds at a time.

    deepscan train --preset=audio_only --data_dir=data --workdir=runs/audio --set='data.datasets=["mine"]'

Needs datasets whose examples hold sound. No score is promised: none has been measured.
"""

from deepscan_jax.config import Config, DataConfig, ModelConfig, TrainConfig


def get_config() -> Config:
  """The audio branch alone."""
  return Config(
    name="audio_only",
    model=ModelConfig(branches=("audio",), dropout=0.3),
    data=DataConfig(datasets=("real_fake_folder",), pseudofakes=False, batch_size=32),
    train=TrainConfig(
      epochs=100,
      learning_rate=1e-3,
      weight_decay=1e-2,
      focal_gamma=2.0,
      class_weights=(1.0, 1.5),
      patience=20,
      pretrained=False,
    ),
  )
