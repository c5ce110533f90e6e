"""One image network, EfficientNet-B3, over single face crops.

    deepscan train --preset=spatial_only --data_dir=data --workdir=runs/spatial --set='data.datasets=["mine"]'

Trains on the labels of the datasets; with --set=data.pseudofakes=true on self-blended twins of their real
faces. Cost: made for accelerators. No score is promised: none has been measured.
"""

from deepscan_jax.config import Config, DataConfig, ModelConfig, TrainConfig


def get_config() -> Config:
  """The spatial branch alone."""
  return Config(
    name="spatial_only",
    model=ModelConfig(branches=("spatial",), backbone="b3", dropout=0.3),
    data=DataConfig(datasets=("real_fake_folder",), pseudofakes=False, batch_size=32),
    train=TrainConfig(
      epochs=150,
      learning_rate=1e-4,
      weight_decay=1e-4,
      focal_gamma=2.0,
      class_weights=(1.0, 1.5),
      patience=20,
    ),
  )
