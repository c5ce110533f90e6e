"""Self-blended clips: one face blended with a changed copy of itself along a window of frames.

A swapped face of a video is made frame by frame, by one program: what was blended stays the same, but where
its edge runs, how it sits and what colour it has wander and flicker a little. A clip here is one
self-blend (`image.py`) along all of its frames, with such a drift and no other difference from its real twin
(self-blended videos, whose parameters stay and whose boundary wanders: FakeSTormer, Nguyen et al. 2025,
https://arxiv.org/abs/2501.01184; self-blended images: Shiohara & Yamasaki 2022,
https://arxiv.org/abs/2204.08376).

Where there are pictures only, `moving_still` makes a clip of one by a camera that moves a little. It is meant
to run before `self_blend_clip`: then both twins went through the same interpolation of the same camera, and
the drift is relative to the face that moves, as in a real video.

Crops are uint8 RGB [frame, size, size, 3], landmarks in pixels of their crop with the first pixel's centre at
0.5; every random number comes from the Generator passed in; nothing here calls JAX, for it runs in loader
workers.
"""

import functools
import math
from dataclasses import dataclass, field

import cv2
import numpy as np

from deepscan_jax.augment import add_noise, warp
from deepscan_jax.pseudofakes.image import (
  BlendConfig,
  Drift,
  Recipe,
  apply_recipe,
  check_face,
  draw_blend,
  fill_outside,
  make_canvases,
)


@dataclass(frozen=True)
class ClipBlendConfig:
  """How a self-blended clip is drawn. Pixels are those of a 256-pixel stored crop (a face of 172).

  The drift of each thing is a smooth random walk about the clip's own value, plus a little noise that is new
  in each frame. Its standard deviation is `amplitude`, drawn once, times what stands here.

  Attributes:
    blend: how the blend itself is drawn, as for pictures.
    amplitude: (least, most) of the whole drift; (0, 0) for none.
    smooth_frames: (fewest, most) frames over which the walk forgets where it was.
    flicker: the noise of each frame, as a part of the walk.
    shift_px, scale: of the misalignment.
    bend_px: of the mask's outline.
    gain, offset: of the source's channels: a part of one, and grey levels.
    grey_share: how much of the change of colour all three channels have in common.
  """

  blend: BlendConfig = field(default_factory=BlendConfig)
  amplitude: tuple[float, float] = (0.0, 1.0)
  smooth_frames: tuple[float, float] = (2.0, 10.0)
  flicker: float = 0.3
  shift_px: float = 0.8
  scale: float = 0.006
  bend_px: float = 0.8
  gain: float = 0.03
  offset: float = 3.0
  grey_share: float = 0.8


@dataclass(frozen=True)
class MotionConfig:
  """How a still is moved, as the standard deviations of smooth random walks.

  Attributes:
    shift_px: in pixels of a 256-pixel stored crop, in x and y each.
    zoom: about the middle, as a part of one.
    rotation_deg: about the middle.
    smooth_frames: (fewest, most) frames over which the walk forgets where it was.
    noise_probability, noise_level: how often the frames get a sensor's noise, new in each, and its (least,
      most) standard deviation in grey levels.
  """

  shift_px: float = 2.0
  zoom: float = 0.012
  rotation_deg: float = 0.8
  smooth_frames: tuple[float, float] = (4.0, 16.0)
  noise_probability: float = 0.5
  noise_level: tuple[float, float] = (0.5, 2.5)


@dataclass(frozen=True, eq=False)
class BlendedClip:
  """A real face and its forged twin along a window of frames.

  Attributes:
    real: uint8 [frame, size, size, 3].
    fake: uint8 [frame, size, size, 3], equal to `real` wherever the mask is 0.
    mask: float32 [frame, size, size] in 0..1: how much of each pixel came from the changed copy.
    kind: which of `MASK_KINDS` was drawn.
  """

  real: np.ndarray
  fake: np.ndarray
  mask: np.ndarray
  kind: str


def self_blend_clip(
  crops: np.ndarray, landmarks: np.ndarray, *, rng: np.random.Generator, config: ClipBlendConfig
) -> BlendedClip:
  """Returns a window of a real face and a forgery of it, one self-blend along all of its frames.

  Kind of mask, changes of the copies, misalignment, softness and ratio are drawn once, and what is measured
  (colours, the widths that the mask bears) is measured on the first frame. Masks follow each frame's
  landmarks; the misalignment and the bend of the outline go along with the face. Beside that only the drift
  differs from frame to frame, and it touches the forgery alone. Its mean over the clip is nought, so a clip
  of one frame is what `self_blend` draws.

  Args:
    crops: uint8 [frame, size, size, 3], stored crops of one face, without padding.
    landmarks: float [frame, 468, 2], mesh points in pixels of each crop.
    rng: the only source of randomness.
    config: what is drawn how often, and how far it drifts.

  Returns:
    BlendedClip.

  Raises:
    ValueError: crops or landmarks have the wrong shape, type, number or non-finite values, or no part of the
      first frame's face lies inside its crop.
  """
  _check_clip(crops, landmarks)
  canvases = make_canvases(crops, rng=rng, config=config.blend)
  first, recipe, held = draw_blend(canvases[0], landmarks[0], rng=rng, config=config.blend)
  pairs = [first]
  if len(crops) > 1:
    drifts = _draw_drifts(recipe, landmarks, crops.shape[1], rng, config)
    pairs = [
      apply_recipe(canvas, points, recipe, held=held, drift=drift)[0]
      for canvas, points, drift in zip(canvases, landmarks, drifts, strict=True)
    ]
  return BlendedClip(
    real=np.stack([pair.real for pair in pairs]),
    fake=np.stack([pair.fake for pair in pairs]),
    mask=np.stack([pair.mask for pair in pairs]),
    kind=recipe.kind,
  )


def moving_still(
  crop: np.ndarray, landmarks: np.ndarray, *, frames: int, rng: np.random.Generator, config: MotionConfig
) -> tuple[np.ndarray, np.ndarray]:
  """Returns a clip of one still, seen by a camera that shifts, zooms and turns a little and smoothly.

  No frame is the still itself: each is resampled once, at a place of its own between the pixels. The still is
  first enlarged twice, from which bilinear weights are nearly as sharp as bicubic ones at every place, at a
  sixth of their cost; so sharpness does not pulse as the camera crosses pixels. Mirrored beyond the borders,
  also those of a photograph that ends within the crop: found in each frame anew, they would tremble.

  Args:
    crop: uint8 [size, size, 3], a stored crop.
    landmarks: float [468, 2], mesh points in pixels of the crop.
    frames: how many, at least 1.
    rng: the only source of randomness.
    config: how far it moves.

  Returns:
    crops uint8 [frame, size, size, 3] and landmarks float32 [frame, 468, 2].

  Raises:
    ValueError: crop or landmarks have the wrong shape, type or non-finite values, or there is no frame.
  """
  check_face(crop, landmarks)
  if frames < 1:
    raise ValueError(f"A moving still must have at least 1 frame, got {frames}.")
  size = crop.shape[0]
  walk = _walk(rng, frames, (4,), smooth_frames=rng.uniform(*config.smooth_frames))
  noise_level = np.float32(0)
  if rng.random() < config.noise_probability:
    noise_level = np.float32(rng.uniform(*config.noise_level))
  large = cv2.resize(fill_outside(crop), None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
  large = cv2.cvtColor(large, cv2.COLOR_RGB2RGBA)
  crops, points = [], []
  for shift_x, shift_y, zoom, turn in walk:
    matrix = _about_middle(
      size,
      scale=math.exp(config.zoom * zoom),
      angle=math.radians(config.rotation_deg * turn),
      shift=np.array([shift_x, shift_y]) * config.shift_px * size / _REFERENCE_SIZE,
    )
    # Whole numbers are the centres of pixels for `warp`: half a pixel off, in either picture.
    from_large = matrix @ np.array([[0.5, 0, 0.25], [0, 0.5, 0.25], [0, 0, 1]])
    from_large[:, 2] -= 0.5
    frame = cv2.cvtColor(warp(large, matrix=from_large, size=(size, size)), cv2.COLOR_RGBA2RGB)
    if noise_level:
      noise = rng.standard_normal(crop.shape, np.float32)
      frame = add_noise(
        frame, np.rint(np.multiply(noise, noise_level, out=noise), out=noise).astype(np.int16)
      )
    crops.append(frame)
    points.append(landmarks @ matrix[:, :2].T + matrix[:, 2])
  return np.stack(crops), np.stack(points).astype(np.float32)


_REFERENCE_SIZE = 256  # the size in whose pixels the configs speak


def _draw_drifts(
  recipe: Recipe, landmarks: np.ndarray, size: int, rng: np.random.Generator, config: ClipBlendConfig
) -> list[Drift]:
  frames = len(landmarks)
  amplitude = rng.uniform(*config.amplitude)
  smooth_frames = rng.uniform(*config.smooth_frames)

  def wander(*shape: int) -> np.ndarray:
    """Of mean 0 over the clip."""
    path = _walk(rng, frames, shape, smooth_frames=smooth_frames)
    path += np.float32(config.flicker) * rng.standard_normal(path.shape, np.float32)
    return (path - path.mean(axis=0)) * np.float32(amplitude)

  pixels = size / _REFERENCE_SIZE
  shifts, scales = wander(2) * (config.shift_px * pixels), np.exp(wander(1)[:, 0] * config.scale)
  bends = wander(*recipe.bend.shape) * np.float32(config.bend_px * pixels)
  grey = math.sqrt(config.grey_share)
  own = math.sqrt(1 - config.grey_share)
  gains = 1 + config.gain * (grey * wander(1) + own * wander(3))
  offsets = config.offset * (grey * wander(1) + own * wander(3))
  colours_stay = not amplitude or not (config.gain or config.offset)
  return [
    Drift(
      motion=_similarity(landmarks[0], landmarks[i]),
      slip=_about_middle(size, scale=scales[i], angle=0.0, shift=shifts[i]),
      bend=bends[i],
      gain=None if colours_stay else gains[i],
      # About mid-grey, or a change of contrast would be one of brightness.
      offset=None if colours_stay else offsets[i] + 127.5 * (1 - gains[i]),
    )
    for i in range(frames)
  ]


def _walk(
  rng: np.random.Generator, frames: int, shape: tuple[int, ...], *, smooth_frames: float
) -> np.ndarray:
  """float32 [frame, *shape]: Gaussian noise smoothed over frames, of standard deviation 1 in every frame."""
  weights = _smoothing(frames, max(round(smooth_frames, 1), 0.1))  # in steps, to be computed seldom
  noise = rng.standard_normal((weights.shape[1], math.prod(shape)), np.float32)
  return (weights @ noise).reshape(frames, *shape)


@functools.lru_cache(maxsize=256)
def _smoothing(frames: int, smooth_frames: float) -> np.ndarray:
  """float32 [frame, noise]: Gaussian weights whose squares sum to 1 in each row."""
  reach = math.ceil(3 * smooth_frames)
  distance = np.arange(frames)[:, None] + reach - np.arange(frames + 2 * reach)
  weights = np.exp(-0.5 * (distance / smooth_frames) ** 2)
  return (weights / np.sqrt(np.square(weights).sum(axis=1, keepdims=True))).astype(np.float32)


def _about_middle(size: int, *, scale: float, angle: float, shift: np.ndarray) -> np.ndarray:
  """float64 [2, 3]: scaled and turned about the middle of a crop, then shifted."""
  cosine, sine = scale * math.cos(angle), scale * math.sin(angle)
  turn = np.array([[cosine, -sine], [sine, cosine]])
  return np.column_stack([turn, size / 2 - turn @ np.full(2, size / 2) + shift])


def _similarity(before: np.ndarray, after: np.ndarray) -> np.ndarray:
  """float64 [2, 3]: the rotation, scale and shift that bring points [n, 2] nearest to others.

  The closed form in the plane of Umeyama 1991, "Least-squares estimation of transformation parameters between
  two point patterns", IEEE TPAMI 13(4). As pictures count: whole numbers are the centres of pixels.
  """
  before, after = before.astype(np.float64) - 0.5, after.astype(np.float64) - 0.5
  middle, middle_after = before.mean(axis=0), after.mean(axis=0)
  x, y = (before - middle).T
  u, v = (after - middle_after).T
  spread = max(float((x * x + y * y).sum()), 1e-9)
  cosine, sine = (x * u + y * v).sum() / spread, (x * v - y * u).sum() / spread
  turn = np.array([[cosine, -sine], [sine, cosine]])
  return np.column_stack([turn, middle_after - turn @ middle])


def _check_clip(crops: np.ndarray, landmarks: np.ndarray) -> None:
  if crops.ndim != 4 or len(crops) == 0:
    raise ValueError(
      f"A clip must be uint8 [frame, size, size, 3] with at least one frame, got {crops.dtype} "
      f"{list(crops.shape)}."
    )
  if len(landmarks) != len(crops):
    raise ValueError(
      f"Each frame must have its landmarks, got {len(crops)} crops and landmarks {list(landmarks.shape)}."
    )
  for crop, points in zip(crops, landmarks, strict=True):
    check_face(crop, points)
