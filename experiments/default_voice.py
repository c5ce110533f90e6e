"""A second step that is being worked on: the faces of `default`, and a branch that listens to the voice.

No model of this preset ships, and no score is promised: no run of it has been good enough yet.

    deepscan build_dataset --name=real_fake_folder --media=voices --data_dir=data
    deepscan train --preset=default_voice --data_dir=data --workdir=runs/default_voice
    deepscan calibrate --model_path=runs/default_voice/best --data_dir=data
    deepscan evaluate --model_path=runs/default_voice/best --data_dir=data --split=test

It begins with the faces of runs/default/best, which stay as they are to the bit, and trains the audio
branch alone: on real voices beside their copy synthesis, and on real voices beside synthetic ones. voices/
holds folders of your own, real/<speaker>/ and fake/<engine>/<voice>/. Cost: half an hour on two CPU cores.
"""

from deepscan_jax.config import Config, DataConfig, ModelConfig, TrainConfig
from deepscan_jax.pseudofakes.audio import VoiceConfig


def get_config() -> Config:
  """The second step of the default model."""
  return Config(
    name="default",
    seed=0,
    model=ModelConfig(branches=("spatial", "audio"), backbone="lite0"),
    data=DataConfig(
      datasets=("real_fake_folder",),
      plain_probability=0.25,
      labelled_share=0.5,
      voice=VoiceConfig(
        partial_probability=0.25,
        # Resampling, rumble and a floor of digital silence tell synthetic voices from recordings, and are not
        # what makes them synthetic.
        highpass_hz=(60.0, 120.0),
        lowpass_hz=(3600.0, 7600.0),
        noise_snr_db=(15.0, 40.0),
      ),
      batch_size=32,
      validation_limit=400,
    ),
    train=TrainConfig(
      start_from="runs/default/best",
      branches=("audio",),
      pretrained=False,
      steps=1000,
      learning_rate=1.5e-3,
      weight_decay=0.02,
      warmup_steps=100,
      ema_decay=0.995,
      validate_every=150,
      save_every=50,
      metric="mean_auc",
    ),
  )
