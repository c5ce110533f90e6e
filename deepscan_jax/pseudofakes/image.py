"""Self-blended pairs: a face blended with a slightly changed copy of itself, beside its untouched twin.

Forged faces differ by who made them; what most share is that one picture was blended into another. A face
blended into itself carries that trace and no other (Shiohara & Yamasaki 2022, "Detecting Deepfakes with
Self-Blended Images", CVPR; masks of several facial regions after Li et al. 2020, "Face X-ray for More General
Face Forgery Detection"). Images are uint8 RGB [size, size, 3]; every random number comes from the Generator
passed in; nothing here calls JAX, for it runs in loader workers.
"""

import functools
from dataclasses import dataclass, field, replace

import cv2
import numpy as np

from deepscan_jax.augment import ColourConfig, draw_colour, scale_channels, warp
from deepscan_jax.faces import regions

MASK_KINDS = ("face", "face_below_brows", "inner_face", "mouth_and_chin", "parts")


@dataclass(frozen=True)
class BlendConfig:
  """How a self-blended pair is drawn. Pixels are those of a 256-pixel stored crop (a face of 172).

  Attributes:
    face, face_below_brows, inner_face, mouth_and_chin, parts: relative frequency of each kind of mask.
    hull_scale: (lowest, highest) scale of the mask's outline about its middle.
    jitter_target_probability: how often the target is the changed one of the two; otherwise the source is.
    colour: the change of one copy's colours.
    resample_probability, resample_factor: one copy goes down by the factor and back up.
    sharpen_probability, sharpen_amount: otherwise one copy is sharpened, by this weight of an unsharp mask.
    generator_probability, generator_face_px: the source passes through the small face that an autoencoder
      puts out, as face-swapping programs work.
    colour_transfer_probability: the source takes mean and spread of the target's colours inside the mask.
    shift_x, shift_y, scale: misalignment of source and mask: parts of the picture's side, and the smallest
      scale (the largest is its inverse).
    elastic_px, elastic_cell_px: standard deviation of the mask's elastic warp, and how far apart its random
      vectors lie.
    soften_size: the mask is softened at a random size between this and the picture's own.
    soften_kernel, soften_sigma: (lowest, highest) width and spread of the two blurs.
    ratios: blend ratios, drawn evenly.
    fill_probability: how often the black outside of the photograph is filled by its mirror image; otherwise
      it stays exactly black in both twins.
    min_difference: twins that differ by less than this inside the mask (grey levels, mean) are drawn again.
  """

  face: float = 0.45
  face_below_brows: float = 0.17
  inner_face: float = 0.18
  mouth_and_chin: float = 0.08
  parts: float = 0.12
  hull_scale: tuple[float, float] = (0.95, 1.08)
  jitter_target_probability: float = 0.5
  colour: ColourConfig = field(
    default_factory=lambda: ColourConfig(
      hue_shift_deg=5.0, saturation_shift=20.0, brightness=0.1, contrast=0.1
    )
  )
  resample_probability: float = 0.5
  resample_factor: tuple[float, float] = (2.0, 4.0)
  sharpen_probability: float = 0.4
  sharpen_amount: tuple[float, float] = (0.3, 1.0)
  generator_probability: float = 0.15
  generator_face_px: tuple[float, float] = (64.0, 128.0)
  colour_transfer_probability: float = 0.15
  shift_x: float = 0.03
  shift_y: float = 0.015
  scale: float = 0.95
  elastic_px: float = 1.5
  elastic_cell_px: int = 16
  soften_size: int = 192
  soften_kernel: tuple[int, int] = (5, 25)
  soften_sigma: tuple[float, float] = (5.0, 45.0)
  ratios: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)
  fill_probability: float = 0.7
  min_difference: float = 2.0


@dataclass(frozen=True, eq=False)
class BlendedPair:
  """A real face and its forged twin.

  Attributes:
    real: uint8 [size, size, 3].
    fake: uint8 [size, size, 3], equal to `real` wherever the mask is 0.
    mask: float32 [size, size] in 0..1: how much of each pixel came from the changed copy.
    kind: which of `MASK_KINDS` was drawn.
  """

  real: np.ndarray
  fake: np.ndarray
  mask: np.ndarray
  kind: str


def self_blend(
  image: np.ndarray, landmarks: np.ndarray, *, rng: np.random.Generator, config: BlendConfig
) -> BlendedPair:
  """Returns a real face and a forgery of it, made by blending the face with a changed copy of itself.

  Of two copies of the picture, source and target, exactly one is changed (colour; resolution or sharpness).
  The source is shifted and scaled a little together with the mask, the mask is bent and softened, and
  fake = mask * source + (1 - mask) * target. The target itself is the real twin.

  Args:
    image: uint8 [size, size, 3], one stored crop.
    landmarks: float [468, 2], mesh points in pixels of the crop.
    rng: the only source of randomness.
    config: what is drawn how often.

  Returns:
    BlendedPair.

  Raises:
    ValueError: image or landmarks have the wrong shape, type or non-finite values, or no part of the face
      lies inside the crop.
  """
  _check(image, landmarks)
  photograph = _find_photograph(image)
  keep_black = photograph is not None and rng.random() >= config.fill_probability
  if photograph is not None:
    image = _mirror_fill(image, photograph)
  for _ in range(_ATTEMPTS):
    kind = MASK_KINDS[rng.choice(len(MASK_KINDS), p=_kind_probabilities(config))]
    mask = face_mask(landmarks, image.shape[0], kind=kind, rng=rng, config=config)
    pair = _blend(image, mask, kind, rng=rng, config=config)
    if photograph is not None and keep_black:
      real, fake, mask = (cv2.copyTo(v, photograph.inside) for v in (pair.real, pair.fake, pair.mask))
      pair = replace(pair, real=real, fake=fake, mask=mask)
    if _difference(pair) >= config.min_difference:
      break
  if not pair.mask.any():
    raise ValueError(
      "The mask is empty: the landmarks do not lie inside the crop they are said to belong to."
    )
  return pair


def face_mask(
  landmarks: np.ndarray, size: int, *, kind: str, rng: np.random.Generator, config: BlendConfig
) -> np.ndarray:
  """Returns the hard mask of one kind, drawn from the mesh points.

  Args:
    landmarks: float [468, 2] in pixels.
    size: side of the mask in pixels.
    kind: one of `MASK_KINDS`. "face" is the oval with forehead, "face_below_brows" stops at the eyebrows,
      "inner_face" spans brows, eyes, nose and mouth, "mouth_and_chin" lips and chin, "parts" any of right
      eye, left eye and nose.
    rng: draws the scale, and which parts.
    config: for `hull_scale`.

  Returns:
    uint8 [size, size], 0 or 255.

  Raises:
    ValueError: unknown kind.
  """
  if kind == "parts":
    n_parts = rng.integers(1, len(_PARTS) + 1)
    outlines = [_PARTS[i] for i in rng.permutation(len(_PARTS))[:n_parts]]
    grow = _PART_GROWTH
  elif kind in _OUTLINES:
    outlines, grow = [_OUTLINES[kind]], 1.0
  else:
    raise ValueError(f"Unknown kind of mask {kind!r}; there are {', '.join(MASK_KINDS)}.")
  mask = np.zeros((size, size), np.uint8)
  for outline in outlines:
    hull = cv2.convexHull(landmarks[list(outline)].astype(np.float32))[:, 0]
    middle = (hull.min(axis=0) + hull.max(axis=0)) / 2
    hull = middle + (hull - middle) * grow * rng.uniform(*config.hull_scale)
    cv2.fillConvexPoly(mask, np.rint(hull * 16).astype(np.int32), 255, lineType=cv2.LINE_AA, shift=4)
  return (mask > 127).astype(np.uint8) * 255


def contact_sheet(pairs: list[BlendedPair]) -> np.ndarray:
  """Returns one picture of many pairs for the eye: a row each of real, fake, mask and |difference| times 4.

  Args:
    pairs: at least one, all of one size.

  Returns:
    uint8 [n * size, 4 * size, 3].

  Raises:
    ValueError: no pairs.
  """
  if not pairs:
    raise ValueError("A contact sheet needs at least one pair.")
  rows = []
  for pair in pairs:
    mask = cv2.cvtColor(np.rint(pair.mask * 255).astype(np.uint8), cv2.COLOR_GRAY2RGB)
    difference = cv2.absdiff(pair.real, pair.fake)
    rows.append(np.hstack([pair.real, pair.fake, mask, cv2.multiply(difference, (4.0, 4.0, 4.0, 4.0))]))
  return np.vstack(rows)


_BELOW_BROWS = (
  *regions.FACE_OVAL[7:30],  # down one cheek, round the chin and up the other
  *regions.RIGHT_EYEBROW,
  *regions.LEFT_EYEBROW,
)
_CHIN = regions.FACE_OVAL[14:23]
_OUTLINES = {
  "face": regions.FACE_OVAL,
  "face_below_brows": _BELOW_BROWS,
  "inner_face": (*regions.RIGHT_EYEBROW, *regions.LEFT_EYEBROW, *regions.NOSE, *regions.LIPS_OUTER),
  "mouth_and_chin": (*regions.LIPS_OUTER, *_CHIN),
}
_PARTS = (
  (*regions.RIGHT_EYE, *regions.RIGHT_EYEBROW),
  (*regions.LEFT_EYE, *regions.LEFT_EYEBROW),
  regions.NOSE,
)
_PART_GROWTH = 1.3  # outlines of eyes and nose are drawn tight around them
_REFERENCE_SIZE = 256  # the size in whose pixels BlendConfig speaks,
_REFERENCE_FACE = 172.3  # and the face's longer side in it
_ATTEMPTS = 4
_BLACK = 4  # grey levels; a stored crop may have been through a codec
_UNEXPLAINED = 0.12  # part of a photograph's rectangle that may be as black as the outside, such as dark hair


def _blend(
  image: np.ndarray, hard_mask: np.ndarray, kind: str, *, rng: np.random.Generator, config: BlendConfig
) -> BlendedPair:
  size = image.shape[0]
  jittered = _jitter(image, rng, config)
  source, target = (image, jittered) if rng.random() < config.jitter_target_probability else (jittered, image)
  if rng.random() < config.generator_probability:
    small = round(size * rng.uniform(*config.generator_face_px) / _REFERENCE_FACE)
    source = _through(source, small, cv2.INTER_AREA)
  if rng.random() < config.colour_transfer_probability:
    source = _match_colours(source, target, hard_mask)
  misalignment = _draw_misalignment(size, rng, config)
  together = warp(cv2.merge([*cv2.split(source), hard_mask]), matrix=misalignment, size=(size, size))
  *channels, mask = cv2.split(together)
  source, mask = cv2.merge(channels), _bend(mask, rng, config)
  mask = _soften(mask, rng, config) * np.float32(rng.choice(config.ratios))
  left, top, width, height = cv2.boundingRect((mask > 0).astype(np.uint8))
  box = np.s_[top : top + height, left : left + width]
  below = target[box].astype(np.float32)
  fake = target.copy()
  fake[box] = np.rint(below + mask[box][..., None] * (source[box] - below))
  return BlendedPair(real=target, fake=fake, mask=mask, kind=kind)


def _jitter(image: np.ndarray, rng: np.random.Generator, config: BlendConfig) -> np.ndarray:
  for step in draw_colour(rng, config=config.colour):
    image = step(image)
  draw = rng.random()
  if draw < config.resample_probability:
    down = (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_AREA)[rng.integers(3)]
    return _through(image, round(image.shape[0] / rng.uniform(*config.resample_factor)), down)
  if draw < config.resample_probability + config.sharpen_probability:
    amount = rng.uniform(*config.sharpen_amount)
    return cv2.addWeighted(image, 1 + amount, cv2.GaussianBlur(image, (0, 0), 1.0), -amount, 0)
  return image


def _through(image: np.ndarray, small: int, down: int) -> np.ndarray:
  size = image.shape[0]
  return cv2.resize(cv2.resize(image, (small, small), interpolation=down), (size, size))


def _match_colours(source: np.ndarray, target: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """Moves mean and spread of each source channel to the target's, as measured inside the mask."""
  source_mean, source_spread = (v[:, 0] for v in cv2.meanStdDev(source, mask=mask))
  target_mean, target_spread = (v[:, 0] for v in cv2.meanStdDev(target, mask=mask))
  gain = np.clip(target_spread / np.maximum(source_spread, 1.0), 0.5, 2.0)
  return scale_channels(source, gain=gain, offset=target_mean - gain * source_mean)


def _draw_misalignment(size: int, rng: np.random.Generator, config: BlendConfig) -> np.ndarray:
  """A shift, and a scale about the middle of the picture, as a 2x3 matrix from old to new pixels."""
  scale = rng.uniform(config.scale, 1 / config.scale)
  shift = rng.uniform(-1, 1, 2) * (config.shift_x, config.shift_y) * size
  middle = (size - 1) / 2
  return np.column_stack([np.eye(2) * scale, middle * (1 - scale) + shift])


def _bend(mask: np.ndarray, rng: np.random.Generator, config: BlendConfig) -> np.ndarray:
  """Bends the mask's outline by a smooth random field."""
  size = mask.shape[0]
  cells = max(2, round(_REFERENCE_SIZE / config.elastic_cell_px)) + 1
  field = rng.standard_normal((cells, cells, 2), np.float32)
  field *= np.float32(config.elastic_px * size / _REFERENCE_SIZE)
  field = cv2.resize(field, (size, size), interpolation=cv2.INTER_CUBIC)
  return cv2.remap(mask, _pixel_grid(size) + field, None, cv2.INTER_LINEAR)


def _soften(mask: np.ndarray, rng: np.random.Generator, config: BlendConfig) -> np.ndarray:
  """Returns the mask with a soft edge inside and around its outline, float32 in 0..1.

  A blur whose result is dropped wherever it is not full is an erosion by the blur's window; the second blur
  makes the edge. Both windows stay well below the size of the mask, or an eye would vanish.
  """
  size = mask.shape[0]
  width, height = (round(v * size / _REFERENCE_SIZE) for v in rng.integers(config.soften_size, 257, 2))
  mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_LINEAR)
  _, mask = cv2.threshold(mask, 127, 255, cv2.THRESH_BINARY)
  largest = np.sqrt(cv2.countNonZero(mask)) / 2
  erode, soften = (
    _odd(min(v, largest)) for v in rng.integers(config.soften_kernel[0], config.soften_kernel[1] + 1, 2)
  )
  mask = cv2.erode(mask, np.ones((erode, erode), np.uint8), borderType=cv2.BORDER_REPLICATE)
  soft = cv2.GaussianBlur(mask.astype(np.float32), (soften, soften), rng.uniform(*config.soften_sigma))
  soft = cv2.resize(soft, (size, size), interpolation=cv2.INTER_LINEAR)
  return soft / np.float32(max(soft.max(), 1.0))


def _odd(value: float) -> int:
  return max(1, int(value) // 2 * 2 + 1)


@functools.lru_cache(maxsize=4)
def _pixel_grid(size: int) -> np.ndarray:
  rows, columns = np.indices((size, size), np.float32)
  return np.stack([columns, rows], axis=-1)


@dataclass(frozen=True, eq=False)
class _Photograph:
  """The rectangle that a photograph fills in its stored crop.

  Attributes:
    upright: [2, 3] matrix from pixels of the crop to those of the photograph, stood upright.
    width, height: of the upright photograph, in pixels of the crop.
    inside: uint8 [size, size], 255 where the crop shows the photograph, 0 where it reaches beyond.
  """

  upright: np.ndarray
  width: int
  height: int
  inside: np.ndarray


def _find_photograph(image: np.ndarray) -> _Photograph | None:
  """Finds where the stored crop reaches beyond its photograph; None if nowhere.

  The crop is black there. Black that comes in from the corners and leaves a rectangle (as far as the crop
  shows it) is taken for the outside; any other black is a dark background.
  """
  size = image.shape[0]
  dark = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) <= _BLACK).astype(np.uint8)
  for corner in ((0, 0), (size - 1, 0), (0, size - 1), (size - 1, size - 1)):
    if dark[corner[::-1]] == 1:
      cv2.floodFill(dark, None, corner, 2)
  lit = cv2.compare(dark, 2, cv2.CMP_NE)
  if lit.all():
    return None
  lit = cv2.morphologyEx(lit, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
  outlines, _ = cv2.findContours(lit, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
  if not outlines:
    return None
  hull = cv2.approxPolyDP(cv2.convexHull(max(outlines, key=cv2.contourArea)), 1.5, True)[:, 0].astype(float)
  edges = np.roll(hull, -1, axis=0) - hull
  at_border = (hull <= 0) | (hull >= size - 1)
  of_crop = (at_border & np.roll(at_border, -1, axis=0) & (edges == 0)).any(axis=1)
  lengths = np.where(of_crop, 0, np.hypot(*edges.T))
  if lengths.max() < 1:
    return None
  along = edges[lengths.argmax()] / lengths.max()
  turn = np.array([along, [-along[1], along[0]]])
  corners = hull @ turn.T
  limits = []
  for extreme, give_up in ((corners.min(axis=0), 2), (corners.max(axis=0), -2)):
    near = abs(corners - extreme) < 3
    is_edge = (near & np.roll(near, -1, axis=0) & ~of_crop[:, None]).any(axis=0)
    # The outermost pixels were mixed with black when the crop was resampled, so they are given up too.
    limits.append(extreme + give_up * is_edge)
  low, high = limits
  width, height = (int(v) for v in np.rint(high - low) + 1)
  if min(width, height) < 2:
    return None
  outline = np.array([low, [high[0], low[1]], high, [low[0], high[1]]]) @ turn
  inside = np.zeros((size, size), np.uint8)
  cv2.fillConvexPoly(inside, np.rint(outline * 16).astype(np.int32), 255, shift=4)
  unexplained = cv2.countNonZero(cv2.bitwise_and(inside, cv2.bitwise_not(lit)))
  if unexplained > _UNEXPLAINED * cv2.countNonZero(inside):
    return None
  return _Photograph(np.column_stack([turn, -low]), width, height, inside)


def _mirror_fill(image: np.ndarray, photograph: _Photograph) -> np.ndarray:
  """Fills the outside with the photograph mirrored at its own edges."""
  size = image.shape[0]
  upright = warp(image, matrix=photograph.upright, size=(photograph.width, photograph.height))
  filled = warp(upright, matrix=photograph.upright, size=(size, size), inverse=True)
  return cv2.copyTo(image, photograph.inside, filled)


def _kind_probabilities(config: BlendConfig) -> np.ndarray:
  weights = np.array([getattr(config, kind) for kind in MASK_KINDS], float)
  return weights / weights.sum()


def _difference(pair: BlendedPair) -> float:
  """Mean difference of the twins in grey levels, over the pixels of the mask."""
  touched = cv2.countNonZero(pair.mask)
  return float(cv2.norm(pair.real, pair.fake, cv2.NORM_L1) / (3 * touched)) if touched else 0.0


def _check(image: np.ndarray, landmarks: np.ndarray) -> None:
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[0] != image.shape[1] or image.shape[2] != 3:
    raise ValueError(f"A stored crop must be uint8 [size, size, 3], got {image.dtype} {list(image.shape)}.")
  if landmarks.shape != (regions.N_LANDMARKS, 2) or not np.isfinite(landmarks).all():
    raise ValueError(
      f"Landmarks must be finite and [{regions.N_LANDMARKS}, 2], got {list(landmarks.shape)} "
      f"with {np.count_nonzero(~np.isfinite(landmarks))} values that are not finite."
    )
