"""The third step of the model that ships: the second's pairs again, under more noise and stronger codecs.

    deepscan train --preset=default_degraded --data_dir=data --workdir=runs/default_degraded
    deepscan evaluate --checkpoint=runs/default_degraded/best --data_dir=data --split=test --workdir=card

It begins with runs/default_synthetic/best, on the same datasets, with other twins (seed 1). Noise reaches
twice as far as in the second step and H.264 a little further, for both hid synthetic faces from the model of
that step sooner than anything else. What it scores on validation is the row "0, the third step" of a
table in deepscan_jax/weights/MODEL_CARD.md.
Cost: about an hour and a quarter on two CPU cores (80,000 pictures seen).
"""

import dataclasses

from deepscan_jax.config import Config
from deepscan_jax.experiments import default_synthetic


def get_config() -> Config:
  """The preset."""
  second = default_synthetic.get_config()
  return dataclasses.replace(
    second,
    seed=1,
    data=dataclasses.replace(
      second.data,
      augment=dataclasses.replace(
        second.data.augment,
        noise_probability=0.2,
        noise_level=(1.0, 12.0),
        h264_probability=0.25,
        h264_qp=(18, 36),
      ),
    ),
    train=dataclasses.replace(second.train, start_from="runs/default_synthetic/best", steps=5000),
  )
