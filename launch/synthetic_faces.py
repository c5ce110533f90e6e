"""Writes faces of people who do not exist, by a published generator, to train and test detectors with.

    pip install --no-deps random-face && pip install openvino
    deepscan synthetic_faces --output=stylegan --count=1300 --seed=7

The generator is MobileStyleGAN (Belousov, "MobileStyleGAN: A Lightweight Convolutional Neural Network for
High-Fidelity Image Synthesis", arXiv:2104.04767), 1024 px, whose weights the package random-face carries; it
was distilled from StyleGAN2, which was trained on FFHQ, whose pictures are licensed for non-commercial use.
Each face has a truncation of its own, drawn evenly from 0.4 to 1.0. The same count and seed give the same
faces on one machine. Half a second a face on one core, 1.3 MB each. What is there already is not made again.
`deepscan match_media` then gives them the size, softness and compression of real pictures.
"""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from absl import app, flags

_OUTPUT = flags.DEFINE_string("output", None, "Folder for the faces.", allow_override=True)
_COUNT = flags.DEFINE_integer("count", 200, "How many.", lower_bound=1, allow_override=True)
_SEED = flags.DEFINE_integer("seed", 0, "Which.", lower_bound=0, allow_override=True)
# Of styles whose mean is the face that truncation leads to.
_STYLES = 2000
_TRUNCATION = (0.4, 1.0)
_LATENT = 512
_FACES_PER_LINE = 50
NEEDED = (
  "This needs the generator and what runs it: pip install --no-deps random-face && pip install openvino"
)


def main(argv: Sequence[str]) -> int:
  """Makes the faces that the flags ask for; returns the exit code."""
  if argv[1:] or not _OUTPUT.value:
    raise app.UsageError("Say where to write the faces: --output=FOLDER, and nothing else.")
  style, synthesise = _networks()
  output = Path(_OUTPUT.value)
  output.mkdir(parents=True, exist_ok=True)
  rng = np.random.default_rng(0)
  mean = np.mean([style(rng) for _ in range(_STYLES)], axis=0)
  rng = np.random.default_rng(_SEED.value)
  for number in range(_COUNT.value):
    # Drawn whether or not the face is there, so that the next one is the same.
    truncation = rng.uniform(*_TRUNCATION)
    own = mean + truncation * (style(rng) - mean)
    path = output / f"{_SEED.value}_{number:04d}.png"
    if not path.exists():
      _write(path, synthesise(own))
    if number % _FACES_PER_LINE == _FACES_PER_LINE - 1:
      print(f"{number + 1} of {_COUNT.value} faces", file=sys.stderr, flush=True)
  return 0


def _networks():
  """The two parts of the generator: rng -> style [1, 512], and style -> uint8 RGB [1024, 1024, 3]."""
  found = importlib.util.find_spec("random_face")
  if found is None or not found.submodule_search_locations or importlib.util.find_spec("openvino") is None:
    raise app.UsageError(NEEDED)
  import openvino

  data = Path(next(iter(found.submodule_search_locations))) / "data"
  # One thread sums in one order.
  settings = {"INFERENCE_NUM_THREADS": 1}
  mapping, synthesis = (
    openvino.Core().compile_model(str(data / f"{name}Network.xml"), "CPU", settings)
    for name in ("Mapping", "Synthesis")
  )

  def style(rng: np.random.Generator) -> np.ndarray:
    latent = rng.standard_normal((1, _LATENT)).astype(np.float32)
    return mapping({0: latent})[mapping.output(0)].copy()

  def synthesise(own: np.ndarray) -> np.ndarray:
    picture = synthesis({0: own.astype(np.float32)})[synthesis.output(0)][0]
    return ((np.clip(picture, -1, 1) + 1) / 2 * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0)

  return style, synthesise


def _write(path: Path, picture: np.ndarray) -> None:
  from deepscan_jax.files import whole_file

  data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 1])[1]
  with whole_file(path, durable=False) as file:
    file.write(data.tobytes())


if __name__ == "__main__":
  from .__main__ import run_module

  run_module(__name__)
