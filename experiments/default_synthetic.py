"""The second step of the model that ships: swapped and wholly synthetic faces beside self-blended ones.

    pip install --no-deps random-face && pip install openvino
    deepscan synthetic_faces --output=stylegan --count=1300 --seed=7
    deepscan match_media --synthetic=stylegan --real=real_faces/utkface --real=real_faces/web_faces \\
        --real=real_faces/ffhq512 --output=media/fake/mobilestylegan --seed=1
    deepscan build_dataset --name=real_fake_folder --media=media --data_dir=data
    deepscan train --preset=default_synthetic --data_dir=data --workdir=runs/default_synthetic
    deepscan evaluate --checkpoint=runs/default_synthetic/best --data_dir=data --split=test --workdir=card

It begins with runs/default/best, the model of the preset `default`, whose dataset real_only it needs as well.
Cost: about forty minutes on two CPU cores (41,600 pictures seen). Of the pairs 44 in a hundred are blended
with themselves, 36 with the face of another person, and in 20 a real face stands beside one that a generator
made. `default_degraded` goes on from here.
"""

import dataclasses

from deepscan_jax.augment import AugmentConfig
from deepscan_jax.config import Config
from deepscan_jax.experiments import default


def get_config() -> Config:
  """The preset."""
  first = default.get_config()
  return dataclasses.replace(
    first,
    data=dataclasses.replace(
      first.data,
      datasets=("real_only", "real_fake_folder"),
      labelled_share=0.2,
      pseudofake_kinds=(("face", 1.0), ("swap", 0.8)),
      augment=AugmentConfig(),
      validation_limit=300,
    ),
    train=dataclasses.replace(
      first.train,
      start_from="runs/default/best",
      pretrained=False,
      steps=2600,
      restarts=(),
      validate_every=400,
      save_every=100,
      metric="mean_auc",
    ),
  )
