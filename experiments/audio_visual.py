"""A face over time, its voice, and whether the lips fit the sound.

    deepscan train --preset=audio_visual --data_dir=data --workdir=runs/av --set='data.datasets=["mine"]'

Needs datasets whose examples hold windows of frames, mouth crops and sound. The image network is the small
one of the default preset. No score is promised: none has been measured.
"""

from deepscan_jax.config import Config, DataConfig, ModelConfig, TrainConfig, WindowConfig


def get_config() -> Config:
  """Spatial, temporal, audio and lip-sync branches."""
  return Config(
    name="audio_visual",
    model=ModelConfig(
      branches=("spatial", "temporal", "audio", "lipsync"),
      backbone="lite0",
      dropout=0.3,
      modality_dropout=0.2,
      bottlenecks=4,
    ),
    data=DataConfig(
      datasets=("real_fake_folder",), pseudofakes=False, batch_size=16, window=WindowConfig(frames=16)
    ),
    train=TrainConfig(
      epochs=100,
      learning_rate=1e-4,
      weight_decay=1e-4,
      focal_gamma=2.0,
      class_weights=(1.0, 1.5),
      patience=20,
    ),
  )
