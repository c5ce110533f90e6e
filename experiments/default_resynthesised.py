"""The fourth step of the model that ships: pictures that small decoders rebuilt, whole and swapped in.

    deepscan resynthesise --media=real_faces.tar --data_dir=data --output=resynthesised
    deepscan build_dataset --name=real_fake_folder/resynthesised --media=resynthesised --data_dir=data
    deepscan train --preset=default_resynthesised --data_dir=data --workdir=runs/default_resynthesised
    deepscan interpolate --start=runs/default_degraded/best --end=runs/default_resynthesised/best \\
        --share=0.75 --output=runs/default_faces/best
    deepscan calibrate --model_path=runs/default_faces/best --data_dir=data
    deepscan evaluate --checkpoint=runs/default_faces/best --data_dir=data --split=test --workdir=card

It begins with runs/default_degraded/best, and reads its datasets and one more. The generator of the second
step is one; decoders of several builds are here so that the model learns what they have in common. Of the
pairs 35 in a hundred are a real face beside a synthetic or rebuilt one, and of the faces that are swapped
into pictures half are such ones, as are those that face-swapping networks put in. The fusion stays as it is.

At its end it knew decoders best and blends a little less than before; three quarters of the way, it knew
most of both. That was chosen on validation pictures, of 0.6, 0.75 and 1. The figures, and the expected scores
on the test split, are in deepscan_jax/weights/MODEL_CARD.md.
Cost: about half an hour on two CPU cores (28,800 pictures seen).
"""

import dataclasses

from deepscan_jax.config import Config
from deepscan_jax.experiments import default_degraded


def get_config() -> Config:
  """The preset."""
  third = default_degraded.get_config()
  return dataclasses.replace(
    third,
    seed=2,
    data=dataclasses.replace(
      third.data,
      datasets=(*third.data.datasets, "real_fake_folder/resynthesised"),
      labelled_share=0.35,
      swap=dataclasses.replace(third.data.swap, synthetic_share=0.5),
    ),
    train=dataclasses.replace(
      third.train,
      start_from="runs/default_degraded/best",
      branches=("spatial",),
      steps=1800,
      learning_rate=2e-4,
      validate_every=600,
    ),
  )
