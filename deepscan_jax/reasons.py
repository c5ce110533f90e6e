"""Why a verdict is what it is, and what to do about it: every reason there is, with its numbers.

A code stays what it is from version to version. Its facts are plain numbers by name, found_... and needed_...
where something falls short, most_... where something is too much, with the unit at the end of the name.
"""

from collections.abc import Sequence

from deepscan_jax.faces import FaceQuality
from deepscan_jax.faces import quality as gate
from deepscan_jax.verdict import Person, Reason, SoundWindow, Thresholds

# Codes and what to do about them; "" where the verdict's recommendation says it.
REMEDIES = {
  # Nothing could be judged.
  "no_face": f"Give one that shows a face from the front, {gate.MIN_SIZE_PX} px across or more.",
  "face_too_small": "Use a larger copy, or one in which the face is nearer.",
  "face_too_blurred": "Use a sharper copy: the original, not one that was shrunk or sent by a messenger.",
  "extreme_pose": "Use a passage or a picture in which the face is turned to the camera.",
  "bad_exposure": "Use another copy; making this one brighter or darker brings nothing back.",
  "no_sound": "Use a copy that has its sound.",
  "sound_too_short": "Use a longer copy.",
  "silent": "Use a copy with its sound, or turn up the recording, not the copy.",
  "no_speech": "Use a passage in which somebody speaks without music.",
  "clipped": "Use a copy that is not, such as the recording before it was made louder.",
  "narrow_band": "Use a copy that did not go through a telephone, sampled at 16 kHz or more from the start.",
  "audio_not_supported": "Give a video or a picture with a face, or use a model that judges sound.",
  "image_not_supported": "Give a video or a recording with sound, or use a model that judges faces.",
  # Something was.
  "blending_traces": "",
  "between_thresholds": "",
  "brief_person_suspicious": "Look at these frames, or give a longer passage with this person.",
  "few_judged_frames": "Use a larger, sharper or brighter copy, or one with more of the person.",
  "synthetic_voice_traces": "",
  "sound_between_thresholds": "",
}


def reason(code: str, message: str, **facts: float | int | str) -> Reason:
  """A reason with the remedy of its code; KeyError for a code that there is not."""
  return Reason(code=code, message=message, remedy=REMEDIES[code], facts=facts)


# Nothing could be judged --------------------------------------------------------------------------------


def no_face(*, hears: bool) -> Reason:
  """No face was found, by a model that hears too or does not."""
  return reason("no_face", f"No face was found{'' if hears else '; this model judges faces only'}.")


def unjudged_faces(codes: Sequence[str], qualities: Sequence[FaceQuality]) -> tuple[Reason, ...]:
  """Why none of the faces that were seen could be judged.

  Args:
    codes: of faces.quality, each once.
    qualities: of all sightings; a reason tells the numbers of the best of them.
  """
  made = {
    "face_too_small": _too_small,
    "face_too_blurred": _too_blurred,
    "extreme_pose": _turned_away,
    "bad_exposure": _badly_lit,
  }
  return tuple(made[code](qualities) for code in codes)


def _too_small(qualities: Sequence[FaceQuality]) -> Reason:
  found, needed = max(q.size_px for q in qualities), gate.MIN_SIZE_PX
  # Rounded down: 47.9 px are not the 48 that are needed.
  message = f"The largest face is {int(found)} px across; {needed} px are needed."
  return reason("face_too_small", message, found_px=round(found, 1), needed_px=needed)


def _too_blurred(qualities: Sequence[FaceQuality]) -> Reason:
  found, needed = max(q.sharpness for q in qualities), gate.MIN_SHARPNESS
  message = "The faces are too blurred to be judged"
  # The sharpest face may have been refused for something else.
  message += f" (sharpness {found:.4f}; {needed:g} is needed)." if found < needed else "."
  return reason("face_too_blurred", message, found_sharpness=round(found, 5), needed_sharpness=needed)


def _turned_away(qualities: Sequence[FaceQuality]) -> Reason:
  nearest = min(qualities, key=lambda q: max(abs(q.yaw) / gate.MAX_YAW, abs(q.pitch) / gate.MAX_PITCH))
  facts = {
    "found_yaw_degrees": round(nearest.yaw, 1),
    "most_yaw_degrees": gate.MAX_YAW,
    "found_pitch_degrees": round(nearest.pitch, 1),
    "most_pitch_degrees": gate.MAX_PITCH,
  }
  message = (
    "The faces are turned too far away from the camera to be judged: the least turned by "
    f"{abs(nearest.yaw):.0f}\N{DEGREE SIGN} aside and {abs(nearest.pitch):.0f}\N{DEGREE SIGN} up or down, of "
    f"{gate.MAX_YAW:.0f}\N{DEGREE SIGN} and {gate.MAX_PITCH:.0f}\N{DEGREE SIGN} at most."
  )
  return reason("extreme_pose", message, **facts)


def _badly_lit(qualities: Sequence[FaceQuality]) -> Reason:
  middle = (gate.MIN_BRIGHTNESS + gate.MAX_BRIGHTNESS) / 2
  best = min(qualities, key=lambda q: (q.clipped > gate.MAX_CLIPPED, abs(q.brightness - middle)))
  message = (
    f"The faces are too dark or too bright to be judged: brightness {best.brightness:.0f}, where "
    f"{gate.MIN_BRIGHTNESS} to {gate.MAX_BRIGHTNESS} of 255 are needed, and {100 * best.clipped:.0f} % of "
    f"the face black or white, of {100 * gate.MAX_CLIPPED:.0f} % at most."
  )
  return reason(
    "bad_exposure",
    message,
    found_brightness=round(best.brightness, 1),
    least_brightness=gate.MIN_BRIGHTNESS,
    most_brightness=gate.MAX_BRIGHTNESS,
    found_clipped_share=round(best.clipped, 3),
    most_clipped_share=gate.MAX_CLIPPED,
  )


_SOUND_MESSAGES = {
  "no_sound": "The file has no sound.",
  "sound_too_short": "The sound is {found_s:.2f} s long, shorter than the {needed_s:g} s that are needed.",
  "silent": "The sound is silent throughout.",
  "no_speech": "No speech was found in the sound; music, noise and the like are not judged.",
  "clipped": "The sound is overdriven: its peaks are cut off.",
  "narrow_band": "The sound ends at {found_band_hz:.0f} Hz, as that of a telephone does; "
  "{needed_band_hz:.0f} Hz are needed.",
}


def unjudged_sound(code: str, facts: dict[str, float]) -> Reason:
  """Why the sound could not be judged.

  Args:
    code: of examples.sound_problem.
    facts: of examples.sound_numbers.
  """
  return reason(code, _SOUND_MESSAGES[code].format(**facts), **facts)


def not_supported(kind: str) -> Reason:
  """The model judges nothing of a file of this kind, "audio" or "image"."""
  what = "Sound is" if kind == "audio" else "Pictures are"
  return reason(f"{kind}_not_supported", f"{what} not judged by this model.")


# Something was judged -----------------------------------------------------------------------------------


def blending_traces(person: Person, thresholds: Thresholds) -> Reason:
  """How much of a person is marked, and where most."""
  seen = [s for s in person.sightings if s.probability is not None]
  over = sum(s.probability >= thresholds.manipulated for s in seen)
  top = max(seen, key=lambda s: s.probability)
  message = (
    f"Traces of a blended or generated face in {over} of {len(seen)} judged frames of "
    f"person {person.id}, strongest at {top.time_s:.2f} s."
  )
  facts = {"person": person.id, "marked_frames": over, "judged_frames": len(seen), "strongest_s": top.time_s}
  return reason("blending_traces", message, **facts)


def brief_person_suspicious(person: Person) -> Reason:
  """Somebody looks manipulated and was seen too little to decide."""
  message = (
    f"Person {person.id} scores {person.deepfake_probability:.2f}, but was judged in {person.judged} frames "
    "only, too few to decide for the file."
  )
  return reason("brief_person_suspicious", message, person=person.id, judged_frames=person.judged)


def few_judged_frames(person: Person) -> Reason:
  """Most of what was seen of a person could not be judged."""
  count = len(person.sightings)
  message = f"Only {person.judged} of {count} sightings were good enough to judge."
  return reason("few_judged_frames", message, judged_frames=person.judged, seen_frames=count)


def synthetic_voice_traces(
  windows: Sequence[SoundWindow], moments: Sequence[SoundWindow], thresholds: Thresholds
) -> Reason:
  """How much of the sound is marked, and where most."""
  top = max(moments or windows, key=lambda w: w.probability)
  over = sum(w.probability >= thresholds.manipulated for w in windows)
  message = (
    f"Traces of a synthetic voice in {over} of {len(windows)} stretches of the sound, strongest at "
    f"{top.start_s:.1f} to {top.end_s:.1f} s."
  )
  facts = {"marked_stretches": over, "judged_stretches": len(windows), "strongest_s": top.start_s}
  return reason("synthetic_voice_traces", message, **facts)


def between_thresholds(probability: float, thresholds: Thresholds, *, sound: bool = False) -> Reason:
  """Neither authentic nor manipulated, of the faces or of the sound."""
  whose, what = ("The sound's", "sound") if sound else ("The faces'", "a face")
  message = (
    f"{whose} probability {probability:.2f} lies between {thresholds.inconclusive:.2f}, below which {what} "
    f"is called authentic, and {thresholds.manipulated:.2f}, from which on it is called manipulated."
  )
  return reason(
    f"{'sound_' * sound}between_thresholds",
    message,
    found_probability=round(probability, 6),
    authentic_below=round(thresholds.inconclusive, 6),
    manipulated_from=round(thresholds.manipulated, 6),
  )
