"""How far the verdict on one file holds when the file is damaged before it is judged again.

The decoded frames and sound go through perturb.py, level by level, and then through all that a file goes
through: faces are looked for again, and may be lost. So an outcome may also become not_applicable.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from deepscan_jax import examples, media, perturb
from deepscan_jax.config import WindowConfig
from deepscan_jax.inference import Detector
from deepscan_jax.perturb import FRAMES, SOUND
from deepscan_jax.verdict import NOT_APPLICABLE, Ladder, Rescored, Stability

DEFAULT_FRAMES = 16
# Of longer files so much of the sound, from its beginning on, where it is judged apart from the faces: going
# through codecs takes time.
_SOUND_S = 60.0
# What is drawn is the same for every file.
_SEED = 0


def measure(
  detector: Detector,
  clip: media.Clip,
  *,
  frames: int = DEFAULT_FRAMES,
  names: Sequence[str] = (perturb.ALL,),
  report_progress: Callable[[int, int], None] | None = None,
) -> Stability | None:
  """Judges a clip again under every perturbation that changes what the model reads of it.

  Args:
    detector: that judged it.
    clip: as it was decoded for that detector.
    frames: how many frames of a video are damaged and judged, evenly spread over those of the clip; by a
      model that looks at windows of several, one window for eight of them. More take longer.
    names: of perturb.PERTURBATIONS, or perturb.ALL.
    report_progress: f(done, total) after each step.

  Returns:
    None where the untouched clip holds nothing that can be judged.

  Raises:
    ValueError: an unknown name, or none of those named changes what the model reads.
  """
  if not perturb.readable(detector.inputs):
    return None
  names = perturb.chosen(names, inputs=detector.inputs)
  clip = thinned(clip, window=detector.window, frames=frames)
  untouched = detector.detect_clip(clip)
  there = {FRAMES: len(clip.frames) > 0, SOUND: len(clip.waveform) > 0}
  names = [name for name in names if there[perturb.find(name).of]]
  if untouched.outcome == NOT_APPLICABLE or not names:
    return None
  ladders = {}
  for number, name in enumerate(names):
    kind, steps = perturb.find(name), []
    for level in range(1, perturb.LEVELS + 1):
      found = detector.detect_clip(damaged(clip, perturb.Rung(name, level)))
      steps.append(Rescored(level, kind.say(level), found.outcome, found.deepfake_probability))
      if report_progress:
        report_progress(number * perturb.LEVELS + level, len(names) * perturb.LEVELS)
    ladders[name] = Ladder(kind.title, kind.words, steps=tuple(steps), outcome=untouched.outcome)
  return Stability(
    outcome=untouched.outcome,
    deepfake_probability=untouched.deepfake_probability,
    frames=len(clip.frames),
    ladders=ladders,
  )


def damaged(clip: media.Clip, rung: perturb.Rung) -> media.Clip:
  """The clip after one step of damage; what its container says stays as it is."""
  if rung.of == FRAMES:
    return dataclasses.replace(clip, frames=rung.frames(clip.frames, seed=_SEED))
  return dataclasses.replace(clip, waveform=rung.sound(clip.waveform, seed=_SEED))


def thinned(clip: media.Clip, *, window: WindowConfig, frames: int) -> media.Clip:
  """The clip with so many of its frames, evenly spread; whole runs of frames where windows last.

  Args:
    clip: decoded as `examples.sampling_plan` says for the window.
    window: what the model reads.
    frames: as of `measure`.
  """
  run = examples.sampling_plan(window, frames=frames).window_frames if window.is_sequence else 1
  runs = -(-len(clip.frames) // run)
  wanted = min(examples.windows_to_look_at(window, frames=frames), runs)
  # The middle of so many equal parts.
  first = ((np.arange(wanted) + 0.5) * runs / max(wanted, 1)).astype(int) * run
  kept = (first[:, None] + np.arange(run)).ravel()
  kept = kept[kept < len(clip.frames)]
  waveform = clip.waveform
  if not window.is_sequence:
    waveform = waveform[: round(_SOUND_S * media.SAMPLE_RATE_HZ)]
  return dataclasses.replace(
    clip, frames=clip.frames[kept], frame_times_s=clip.frame_times_s[kept], waveform=waveform
  )
