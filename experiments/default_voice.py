"""The fifth step of the model that ships: the faces of `default_resynthesised`, and a branch that listens.

    deepscan synthetic_voices --speech=real_speech.tar --output=voices
    deepscan build_dataset --name=real_fake_folder --media=voices/engines --media=voices/librispeech \\
        --data_dir=data_voices
    deepscan train --preset=default_voice --data_dir=data_voices --workdir=runs/default_voice
    deepscan calibrate --model_path=runs/default_voice/best --data_dir=data_voices --false_positive_rate=0.002
    deepscan evaluate --model_path=runs/default_voice/best --data_dir=data_voices --split=test

It begins with those faces, which stay as they are to the bit, and trains the audio branch alone: on
real voices beside their copy synthesis, and on real voices beside synthetic ones. voices/ has a folder for
engines and for each kind of recordings (librispeech, emodb, prompts, games); --media names each of them, so
that the calibration holds its rate for each. The branch is a linear function of statistics of the spectrum:
with a dozen engines to learn from, a hidden layer heard those it was shown and less of others.

The rate of 0.002 is no mistake. Real recordings of a kind that was neither trained on nor calibrated with
exceed a threshold more often than those it was set on: `deepscan benchmark voices` says how often. Where a
kind has fewer than 500 stretches, 0.2 % puts the threshold above the highest of them.

The voice that ships was made so, of all kinds of recordings and engines that the model card names, beside
the faces of version 0.4.0.

Cost: about seven minutes on two CPU cores. The model card has what was measured of engines and recordings
that were never shown; `deepscan benchmark voices` measures it of yours.
"""

from deepscan_jax.augment_audio import AudioAugmentConfig
from deepscan_jax.config import Config, DataConfig, ModelConfig, TrainConfig
from deepscan_jax.pseudofakes.audio import VoiceConfig


def get_config() -> Config:
  """The fifth step of the default model."""
  return Config(
    name="default",
    seed=0,
    model=ModelConfig(
      branches=("spatial", "audio"), backbone="lite0", audio_network=False, whole_sound_s=4.0, dropout=0.4
    ),
    data=DataConfig(
      datasets=("real_fake_folder",),
      plain_probability=0.35,
      labelled_share=0.75,
      voice=VoiceConfig(
        griffin_lim=0.35,
        mel=0.1,
        phase=0.2,
        pitch=0.15,
        formant=0.1,
        partial_probability=0.2,
        # Resampling, rumble and a floor of digital silence tell synthetic voices from recordings, and are not
        # what makes them synthetic.
        highpass_hz=(60.0, 120.0),
        lowpass_hz=(4500.0, 7400.0),
        noise_snr_db=(20.0, 50.0),
      ),
      augment_audio=AudioAugmentConfig(
        noise_probability=0.3,
        noise_snr_db=(10.0, 40.0),
        band_probability=0.15,
        codec_probability=0.3,
        second_codec_probability=0.0,
      ),
      batch_size=32,
      validation_limit=160,
    ),
    train=TrainConfig(
      start_from="runs/default_faces/best",
      branches=("audio",),
      pretrained=False,
      steps=1200,
      learning_rate=1e-3,
      weight_decay=0.1,
      warmup_steps=30,
      ema_decay=0.99,
      validate_every=400,
      save_every=100,
      metric="mean_auc",
    ),
  )
