"""Forgeries made from real media, whose twin, place and kind are therefore known."""

from deepscan_jax.pseudofakes.audio import VOICE_KINDS, VoiceConfig, VoicePair, copy_synthesis, voice_pair
from deepscan_jax.pseudofakes.clip import (
  BlendedClip,
  ClipBlendConfig,
  MotionConfig,
  moving_still,
  self_blend_clip,
)
from deepscan_jax.pseudofakes.image import (
  MASK_KINDS,
  BlendConfig,
  BlendedPair,
  SwapConfig,
  contact_sheet,
  self_blend,
  swap_face,
)
from deepscan_jax.pseudofakes.sync import SYNC_KINDS, SyncConfig, SyncPair, sync_pair

__all__ = [
  "MASK_KINDS",
  "SYNC_KINDS",
  "VOICE_KINDS",
  "BlendConfig",
  "BlendedClip",
  "BlendedPair",
  "ClipBlendConfig",
  "MotionConfig",
  "SwapConfig",
  "SyncConfig",
  "SyncPair",
  "VoiceConfig",
  "VoicePair",
  "contact_sheet",
  "copy_synthesis",
  "moving_still",
  "self_blend",
  "self_blend_clip",
  "swap_face",
  "sync_pair",
  "voice_pair",
]
