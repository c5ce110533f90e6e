"""What a verdict stands on, as JSON: the judged faces, their region maps, and where they are in the frame."""

import numpy as np

from deepscan_jax import report
from deepscan_jax.verdict import Verdict


def evidence_json(verdict: Verdict) -> list[dict]:
  """The evidence of a verdict as plain values for JSON, in its order.

  Returns:
    One object per judged face: `person` (id), `time_s` (of the frame), `probability` (of this face alone,
    calibrated), `box` (x_min, y_min, x_max, y_max in pixels of the frame as shown; None where the sighting is
    not in the verdict), `place` ([[a, b, c], [d, e, f]], which takes x, y in the crop to a x + b y + c,
    d x + e y + f in the frame; None where it is not known), `crop` and `region_map`: addresses
    "data:image/...;base64,..." of a JPEG of 224 x 224 pixels, and of a small PNG that covers the crop and is
    transparent where the model sees nothing.
  """
  boxes = {(person.id, s.time_s): list(s.box) for person in verdict.people for s in person.sightings}
  return [
    {
      "person": e.person,
      "time_s": round(e.time_s, 6),
      "probability": round(float(e.probability), 6),
      "box": boxes.get((e.person, e.time_s)),
      "place": None if e.place is None else np.round(e.place, 6).tolist(),
      "crop": report.jpeg_uri(e.crop),
      "region_map": report.map_uri(e.region_map),
    }
    for e in verdict.evidence
  ]
