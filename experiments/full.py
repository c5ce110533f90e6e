"""Every branch over what is seen, heard and how both fit, joined by attention.

    deepscan train --preset=full --data_dir=data --workdir=runs/full --set='data.datasets=["mine"]'

Needs datasets whose examples hold windows of frames, mouth crops and sound. Cost: made for accelerators;
three large image networks look at all 16 frames of each window. No score is promised: none has been
measured. What a file's container tells (the branch "provenance") is left out, because it gives away the
labels of public datasets; name it in --set=model.branches=[...] where that is wanted.
"""

from deepscan_jax.config import Config, DataConfig, ModelConfig, TrainConfig, WindowConfig


def get_config() -> Config:
  """The full ensemble."""
  return Config(
    name="full",
    model=ModelConfig(
      branches=(
        "spatial",
        "spatial_densenet",
        "spatial_xception",
        "cnn3d",
        "temporal",
        "autoencoder",
        "audio",
        "lipsync",
      ),
      backbone="b3",
      dropout=0.35,
      modality_dropout=0.2,
      bottlenecks=4,
    ),
    data=DataConfig(
      datasets=("real_fake_folder",), pseudofakes=False, batch_size=32, window=WindowConfig(frames=16)
    ),
    train=TrainConfig(
      epochs=150,
      learning_rate=1e-4,
      weight_decay=1e-4,
      focal_gamma=2.0,
      class_weights=(1.0, 1.5),
      patience=20,
    ),
  )
