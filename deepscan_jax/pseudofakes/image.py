"""Self-blended pairs: a face blended with a slightly changed copy of itself, beside its untouched twin.

Forged faces differ by who made them; what most share is that one picture was blended into another. A face
blended into itself carries that trace and no other (Shiohara & Yamasaki 2022, "Detecting Deepfakes with
Self-Blended Images", CVPR; masks of several facial regions after Li et al. 2020, "Face X-ray for More General
Face Forgery Detection"). `swap_face` blends in the face of another person instead, as that paper does, which
brings differences of light, colour and resolution that no change of one picture has. Images are uint8 RGB
[size, size, 3]; every random number comes from the Generator passed in; nothing here calls JAX, for it runs
in loader workers.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from deepscan_jax.augment import Change, ColourConfig, draw_colour, scale_channels, warp
from deepscan_jax.faces import regions

Outlines = tuple[tuple[tuple[int, ...], float], ...]

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
  clone_probability: how often the source's gradients are put into the target in place of its colours (Perez
    et al. 2003, "Poisson Image Editing"), where the whole of the source goes in.
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
  clone_probability: float = 0.0


@dataclass(frozen=True)
class SwapConfig:
  """How a face of another person is put into a picture.

  Attributes:
    blend: the blend; by default with colours that are matched more often, single features more often, and
      sharper edges than where a face is blended into itself.
    candidates: of so many other faces the one that fits best goes in, see `best_donor`.
    synthetic_share: how often the face that goes in is a synthetic one, of the labelled forgeries that
      training reads, as what face-swapping networks put in is. Held-out pairs have none.
  """

  blend: BlendConfig = field(
    default_factory=lambda: BlendConfig(
      face=0.35,
      face_below_brows=0.13,
      inner_face=0.17,
      mouth_and_chin=0.12,
      parts=0.23,
      resample_probability=0.25,
      sharpen_probability=0.2,
      generator_probability=0.3,
      colour_transfer_probability=0.75,
      shift_x=0.01,
      shift_y=0.01,
      scale=0.97,
      soften_kernel=(3, 25),
      ratios=(0.75, 1.0, 1.0, 1.0),
      clone_probability=0.15,
    )
  )
  candidates: int = 8
  synthetic_share: float = 0.0


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
  check_face(image, landmarks)
  (canvas,) = make_canvases([image], rng=rng, config=config)
  return draw_blend(canvas, landmarks, rng=rng, config=config)[0]


def swap_face(
  image: np.ndarray,
  landmarks: np.ndarray,
  donor: np.ndarray,
  donor_landmarks: np.ndarray,
  *,
  rng: np.random.Generator,
  config: BlendConfig,
) -> BlendedPair:
  """Returns a real face and a forgery of it, into which the face of another person was blended.

  As `self_blend`, with the donor's picture as the source, laid on the face by the affine map that brings its
  mesh points closest (least squares).

  Args:
    image: uint8 [size, size, 3], one stored crop.
    landmarks: float [468, 2], its mesh points in pixels.
    donor: uint8 [size, size, 3], a stored crop of another person.
    donor_landmarks: float [468, 2], the donor's mesh points.
    rng: the only source of randomness.
    config: what is drawn how often.

  Raises:
    ValueError: as `self_blend`; or the crops differ in size.
  """
  check_face(image, landmarks)
  check_face(donor, donor_landmarks)
  if donor.shape != image.shape:
    raise ValueError(f"Face and donor must be of one size, got {image.shape[0]} and {donor.shape[0]} px.")
  (canvas,) = make_canvases([image], rng=rng, config=config)
  points = np.column_stack([donor_landmarks, np.ones(len(donor_landmarks))])
  matrix = np.linalg.lstsq(points, landmarks, rcond=None)[0].T
  laid = warp(fill_outside(donor), matrix=matrix, size=donor.shape[:2])
  return draw_blend(canvas, landmarks, rng=rng, config=config, donor=laid)[0]


def best_donor(
  image: np.ndarray, landmarks: np.ndarray, donors: Sequence[tuple[np.ndarray, np.ndarray]]
) -> int:
  """Which of several faces fits best: the lowest sum of two ranks, of mesh points after the best affine map
  and of the mean colour of the inner face.

  Forgers choose alike; of faces at random most would be told by anybody.

  Args:
    image, landmarks: uint8 [size, size, 3] and float [468, 2] of the face that is replaced.
    donors: the same of each that could replace it.
  """
  misfits, strangeness, own = [], [], _inner_colour(image, landmarks)
  for picture, points in donors:
    flat = np.column_stack([points, np.ones(len(points))])
    laid = flat @ np.linalg.lstsq(flat, landmarks, rcond=None)[0]
    misfits.append(float(np.square(laid - landmarks).sum()))
    strangeness.append(float(np.linalg.norm(_inner_colour(picture, points) - own)))
  ranks = [np.argsort(np.argsort(values, kind="stable")) for values in (misfits, strangeness)]
  return int(np.argmin(ranks[0] + ranks[1]))


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
  return _fill_outlines(landmarks, size, _draw_outlines(kind, rng, config))


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


@dataclass(frozen=True, eq=False)
class Recipe:
  """All that is drawn for a forgery before a pixel is touched. Pixels are those of the crop.

  Attributes:
    kind: one of `MASK_KINDS`.
    outlines: mesh points and scale of each convex outline of the mask.
    jitter: changes of one of the two copies, in order.
    jitters_target: whether the target is the changed copy; otherwise the source is.
    generator_px: side at which the source passes through a generator, None where it does not.
    transfers_colour: whether the source takes the target's colours.
    misalignment: float64 [2, 3], where source and mask go.
    bend: float32 [cell, cell, 2], displacements of the mask, in pixels, spread evenly over the crop.
    soften_size: (width, height) at which the mask is softened.
    soften_kernels: greatest windows of erosion and of the soft edge.
    soften_sigma: of the soft edge.
    ratio: how much of the source goes in.
    clones: whether its gradients go in, and not its colours.
  """

  kind: str
  outlines: Outlines
  jitter: tuple[Change, ...]
  jitters_target: bool
  generator_px: int | None
  transfers_colour: bool
  misalignment: np.ndarray
  bend: np.ndarray
  soften_size: tuple[int, int]
  soften_kernels: tuple[int, int]
  soften_sigma: float
  ratio: float
  clones: bool = False


@dataclass(frozen=True, eq=False)
class Held:
  """What a recipe leaves to be measured on a frame; measured on one, and held for the others of its clip.

  Attributes:
    colours: float64 [2, 3], gain and offset of the source's channels, None where no colours are transferred.
    windows: widths of erosion and soft edge, which the mask bears.
  """

  colours: np.ndarray | None
  windows: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Drift:
  """How one frame departs from the recipe of its clip.

  Attributes:
    motion: float64 [2, 3], where the face of the frame that was measured has gone in this one; the
      misalignment and the bend go along with it.
    slip: float64 [2, 3], what source and mask are moved by beside the misalignment.
    bend: float32 [cell, cell, 2], added to the recipe's.
    gain, offset: float64 [3], of the source's channels; None where the colours stay.
  """

  motion: np.ndarray
  slip: np.ndarray
  bend: np.ndarray
  gain: np.ndarray | None
  offset: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Canvas:
  """A picture without black borders.

  Attributes:
    image: uint8 [size, size, 3], filled by its mirror image where it reached beyond its photograph.
    inside: uint8 [size, size], 0 where both twins shall be black again, None where they need not.
  """

  image: np.ndarray
  inside: np.ndarray | None


def make_canvases(
  images: Sequence[np.ndarray], *, rng: np.random.Generator, config: BlendConfig
) -> list[Canvas]:
  """Finds and fills what is black because a stored crop reaches beyond its photograph.

  In a clip it is done in every frame or in none, for what is filled in one and black in the next flickers.

  Args:
    images: uint8 [size, size, 3] of one clip, at least one.
    rng: draws whether the black comes back in both twins, for all of them.
    config: for `fill_probability`.
  """
  found = []
  for image in images:
    photograph = _find_photograph(image)
    if photograph is None:
      return [Canvas(image, None) for image in images]
    found.append((image, photograph))
  keep_black = rng.random() >= config.fill_probability
  return [Canvas(_mirror_fill(i, p), p.inside if keep_black else None) for i, p in found]


def fill_outside(image: np.ndarray) -> np.ndarray:
  """Returns a stored crop whose black outside of the photograph is filled by its mirror image."""
  photograph = _find_photograph(image)
  return image if photograph is None else _mirror_fill(image, photograph)


def draw_blend(
  canvas: Canvas,
  landmarks: np.ndarray,
  *,
  rng: np.random.Generator,
  config: BlendConfig,
  donor: np.ndarray | None = None,
) -> tuple[BlendedPair, Recipe, Held]:
  """Draws a recipe whose twins differ enough, and returns the twins too.

  Args:
    canvas: the picture.
    landmarks: float [468, 2], mesh points in pixels of the crop.
    rng: the only source of randomness.
    config: what is drawn how often.
    donor: as of `apply_recipe`.

  Raises:
    ValueError: no part of the face lies inside the crop.
  """
  for _ in range(_ATTEMPTS):
    recipe = _draw_recipe(canvas.image.shape[0], rng, config)
    pair, held = apply_recipe(canvas, landmarks, recipe, donor=donor)
    if _difference(pair) >= config.min_difference:
      break
  if not pair.mask.any():
    raise ValueError(
      "The mask is empty: the landmarks do not lie inside the crop they are said to belong to."
    )
  return pair, recipe, held


def apply_recipe(
  canvas: Canvas,
  landmarks: np.ndarray,
  recipe: Recipe,
  *,
  held: Held | None = None,
  drift: Drift | None = None,
  donor: np.ndarray | None = None,
) -> tuple[BlendedPair, Held]:
  """Makes the twins that a recipe describes of one frame.

  Args:
    canvas: the frame.
    landmarks: float [468, 2], mesh points in pixels of the crop.
    recipe: what was drawn.
    held: what was measured on another frame of the clip; None measures it on this one.
    drift: how this frame departs from the recipe; None for not at all.
    donor: uint8 [size, size, 3], what is blended in, already laid on the face; None: the face itself.

  Returns:
    The twins, and what was measured or held.
  """
  image = canvas.image
  size = image.shape[0]
  hard_mask = _fill_outlines(landmarks, size, recipe.outlines)
  given = image if donor is None else donor
  changed = image if recipe.jitters_target else given
  jittered = functools.reduce(lambda seen, change: change(seen), recipe.jitter, changed)
  source, target = (given, jittered) if recipe.jitters_target else (jittered, image)
  if recipe.generator_px is not None:
    source = _through(source, small=recipe.generator_px, down=cv2.INTER_AREA)
  colours = held.colours if held else None
  if recipe.transfers_colour:
    colours = _measure_colours(source, target, hard_mask) if colours is None else colours
    source = scale_channels(source, gain=colours[0], offset=colours[1])
  misalignment, bend, motion = recipe.misalignment, recipe.bend, None
  if drift is not None:
    motion, bend = drift.motion, recipe.bend + drift.bend
    misalignment = _chain(drift.slip, motion, misalignment, cv2.invertAffineTransform(motion))
    if drift.gain is not None:
      source = scale_channels(source, gain=drift.gain, offset=drift.offset)
  together = cv2.cvtColor(source, cv2.COLOR_RGB2RGBA)
  together = warp(cv2.insertChannel(hard_mask, together, 3), matrix=misalignment, size=(size, size))
  source = cv2.cvtColor(together, cv2.COLOR_RGBA2RGB)
  mask, windows = _soften(_bend(cv2.extractChannel(together, 3), bend, motion), recipe, held)
  mask *= np.float32(recipe.ratio)
  if recipe.clones and (cloned := _clone(source, target, mask)) is not None:
    real, fake = target, cloned
  else:
    real, fake = target, _mix(source, target, mask)
  if canvas.inside is not None:
    real, fake, mask = (cv2.copyTo(v, canvas.inside) for v in (real, fake, mask))
  return BlendedPair(real, fake, mask, recipe.kind), Held(colours, windows)


def check_face(image: np.ndarray, landmarks: np.ndarray) -> None:
  """Raises ValueError unless these are uint8 [size, size, 3] and finite [468, 2]."""
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[0] != image.shape[1] or image.shape[2] != 3:
    raise ValueError(f"A stored crop must be uint8 [size, size, 3], got {image.dtype} {list(image.shape)}.")
  if landmarks.shape != (regions.N_LANDMARKS, 2) or not np.isfinite(landmarks).all():
    raise ValueError(
      f"Landmarks must be finite and [{regions.N_LANDMARKS}, 2], got {list(landmarks.shape)} "
      f"with {np.count_nonzero(~np.isfinite(landmarks))} values that are not finite."
    )


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


def _draw_recipe(size: int, rng: np.random.Generator, config: BlendConfig) -> Recipe:
  kind = MASK_KINDS[rng.choice(len(MASK_KINDS), p=_kind_probabilities(config))]
  outlines = _draw_outlines(kind, rng, config)
  jitter = _draw_jitter(size, rng, config)
  jitters_target = bool(rng.random() < config.jitter_target_probability)
  generator_px = None
  if rng.random() < config.generator_probability:
    generator_px = round(size * rng.uniform(*config.generator_face_px) / _REFERENCE_FACE)
  transfers_colour = bool(rng.random() < config.colour_transfer_probability)
  misalignment = _draw_misalignment(size, rng, config)
  cells = max(2, round(_REFERENCE_SIZE / config.elastic_cell_px)) + 1
  bend = rng.standard_normal((cells, cells, 2), np.float32)
  bend *= np.float32(config.elastic_px * size / _REFERENCE_SIZE)
  width, height = (round(v * size / _REFERENCE_SIZE) for v in rng.integers(config.soften_size, 257, 2))
  widest = rng.integers(config.soften_kernel[0], config.soften_kernel[1] + 1, 2)
  return Recipe(
    kind=kind,
    outlines=outlines,
    jitter=jitter,
    jitters_target=jitters_target,
    generator_px=generator_px,
    transfers_colour=transfers_colour,
    misalignment=misalignment,
    bend=bend,
    soften_size=(width, height),
    soften_kernels=(int(widest[0]), int(widest[1])),
    soften_sigma=rng.uniform(*config.soften_sigma),
    ratio=float(rng.choice(config.ratios)),
    # Nothing is drawn where nothing is cloned: what is drawn after this stays what it was.
    clones=bool(config.clone_probability and rng.random() < config.clone_probability),
  )


def _draw_outlines(kind: str, rng: np.random.Generator, config: BlendConfig) -> Outlines:
  if kind == "parts":
    n_parts = rng.integers(1, len(_PARTS) + 1)
    outlines = [_PARTS[i] for i in rng.permutation(len(_PARTS))[:n_parts]]
    grow = _PART_GROWTH
  elif kind in _OUTLINES:
    outlines, grow = [_OUTLINES[kind]], 1.0
  else:
    raise ValueError(f"Unknown kind of mask {kind!r}; there are {', '.join(MASK_KINDS)}.")
  return tuple((outline, grow * rng.uniform(*config.hull_scale)) for outline in outlines)


def _fill_outlines(landmarks: np.ndarray, size: int, outlines: Outlines) -> np.ndarray:
  mask = np.zeros((size, size), np.uint8)
  for indices, grow in outlines:
    hull = cv2.convexHull(landmarks[list(indices)].astype(np.float32))[:, 0]
    middle = (hull.min(axis=0) + hull.max(axis=0)) / 2
    hull = middle + (hull - middle) * grow
    cv2.fillConvexPoly(mask, np.rint(hull * 16).astype(np.int32), 255, lineType=cv2.LINE_AA, shift=4)
  return cv2.threshold(mask, 127, 255, cv2.THRESH_BINARY, dst=mask)[1]


def _draw_jitter(size: int, rng: np.random.Generator, config: BlendConfig) -> tuple[Change, ...]:
  changes = draw_colour(rng, config=config.colour)
  draw = rng.random()
  if draw < config.resample_probability:
    down = (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_AREA)[rng.integers(3)]
    small = round(size / rng.uniform(*config.resample_factor))
    changes.append(functools.partial(_through, small=small, down=down))
  elif draw < config.resample_probability + config.sharpen_probability:
    changes.append(functools.partial(_sharpen, amount=rng.uniform(*config.sharpen_amount)))
  return tuple(changes)


def _sharpen(image: np.ndarray, *, amount: float) -> np.ndarray:
  return cv2.addWeighted(image, 1 + amount, cv2.GaussianBlur(image, (0, 0), 1.0), -amount, 0)


def _through(image: np.ndarray, *, small: int, down: int) -> np.ndarray:
  size = image.shape[0]
  return cv2.resize(cv2.resize(image, (small, small), interpolation=down), (size, size))


def _measure_colours(source: np.ndarray, target: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """The (gain, offset) that give each source channel the target's mean and spread inside the mask."""
  source_mean, source_spread = (v[:, 0] for v in cv2.meanStdDev(source, mask=mask))
  target_mean, target_spread = (v[:, 0] for v in cv2.meanStdDev(target, mask=mask))
  gain = np.clip(target_spread / np.maximum(source_spread, 1.0), 0.5, 2.0)
  return np.stack([gain, target_mean - gain * source_mean])


def _inner_colour(image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
  """Mean of each channel between brows and mouth, float64 [3]."""
  mask = _fill_outlines(landmarks, image.shape[0], ((_OUTLINES["inner_face"], 1.0),))
  return np.array(cv2.mean(image, mask=mask)[:3])


def _draw_misalignment(size: int, rng: np.random.Generator, config: BlendConfig) -> np.ndarray:
  """A shift, and a scale about the middle of the picture, as a 2x3 matrix from old to new pixels."""
  scale = rng.uniform(config.scale, 1 / config.scale)
  shift = rng.uniform(-1, 1, 2) * (config.shift_x, config.shift_y) * size
  middle = (size - 1) / 2
  return np.column_stack([np.eye(2) * scale, middle * (1 - scale) + shift])


def _bend(mask: np.ndarray, field: np.ndarray, motion: np.ndarray | None) -> np.ndarray:
  """Bends the mask's outline by a smooth field of vectors, which goes along with the face."""
  size = mask.shape[0]
  field = cv2.resize(field, (size, size), interpolation=cv2.INTER_CUBIC)
  if motion is not None:
    field = warp(field, matrix=motion, size=(size, size))
  # No part of the mask comes from farther than the longest vector, so beyond that nothing is looked for.
  reach = math.ceil(cv2.norm(field, cv2.NORM_INF)) + 1
  left, top, width, height = cv2.boundingRect(mask)
  left, top, right, bottom = left - reach, top - reach, left + width + reach, top + height + reach
  box = np.s_[max(top, 0) : bottom, max(left, 0) : right]
  bent = np.zeros_like(mask)
  bent[box] = cv2.remap(mask, cv2.add(_pixel_grid(size)[box], field[box]), None, cv2.INTER_LINEAR)
  return bent


def _soften(mask: np.ndarray, recipe: Recipe, held: Held | None) -> tuple[np.ndarray, tuple[int, int]]:
  """Returns the mask with a soft edge inside and around its outline, float32 in 0..1, and the two windows.

  A blur whose result is dropped wherever it is not full is an erosion by the blur's window; the second blur
  makes the edge. Both windows stay well below the size of the mask, or an eye would vanish.
  """
  size = mask.shape[0]
  mask = cv2.resize(mask, recipe.soften_size, interpolation=cv2.INTER_LINEAR)
  _, mask = cv2.threshold(mask, 127, 255, cv2.THRESH_BINARY, dst=mask)
  if held is None:
    largest = np.sqrt(cv2.countNonZero(mask)) / 2
    erode, soften = (_odd(min(v, largest)) for v in recipe.soften_kernels)
  else:
    erode, soften = held.windows
  mask = cv2.erode(mask, np.ones((erode, erode), np.uint8), borderType=cv2.BORDER_REPLICATE)
  soft = cv2.GaussianBlur(mask.astype(np.float32), (soften, soften), recipe.soften_sigma)
  soft = cv2.resize(soft, (size, size), interpolation=cv2.INTER_LINEAR)
  soft /= np.float32(max(cv2.minMaxLoc(soft)[1], 1.0))
  return soft, (erode, soften)


def _mix(source: np.ndarray, target: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """target + mask * (source - target), rounded."""
  left, top, width, height = cv2.boundingRect((mask > 0).astype(np.uint8))
  fake = target.copy()
  if width:
    box = np.s_[top : top + height, left : left + width]
    below = target[box].astype(np.float32)
    change = cv2.subtract(source[box], target[box], dtype=cv2.CV_32F)
    change = cv2.multiply(change, cv2.cvtColor(mask[box], cv2.COLOR_GRAY2RGB), dst=change)
    fake[box] = cv2.add(below, change, dtype=cv2.CV_8U)
  return fake


def _clone(source: np.ndarray, target: np.ndarray, mask: np.ndarray) -> np.ndarray | None:
  """The target with the source's gradients where the mask is over a half of its highest, and then mixed by
  the mask, which keeps what is outside of it as it was; None where so little is left that it has no inside.
  """
  hard = (mask > 0.5 * cv2.minMaxLoc(mask)[1]).astype(np.uint8) * 255
  # OpenCV solves inside of the outline, and takes what lies on the picture's edge for outside.
  hard[:2] = hard[-2:] = 0
  hard[:, :2] = hard[:, -2:] = 0
  left, top, width, height = cv2.boundingRect(hard)
  if min(width, height) < 8:
    return None
  middle = (left + width // 2, top + height // 2)
  cloned = cv2.seamlessClone(source, target, hard, middle, cv2.NORMAL_CLONE)
  return _mix(cloned, target, mask)


def _chain(*matrices: np.ndarray) -> np.ndarray:
  """The [2, 3] matrix that applies several, the last one first."""
  square = [np.vstack([matrix, [0, 0, 1]]) for matrix in matrices]
  return functools.reduce(np.matmul, square)[:2]


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
  # Four channels: OpenCV warps them in half the time of three.
  whole = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA)
  upright = warp(whole, matrix=photograph.upright, size=(photograph.width, photograph.height))
  filled = warp(upright, matrix=photograph.upright, size=(size, size), inverse=True)
  return cv2.copyTo(image, photograph.inside, cv2.cvtColor(filled, cv2.COLOR_RGBA2RGB))


def _kind_probabilities(config: BlendConfig) -> np.ndarray:
  weights = np.array([getattr(config, kind) for kind in MASK_KINDS], float)
  return weights / weights.sum()


def _difference(pair: BlendedPair) -> float:
  """Mean difference of the twins in grey levels, over the pixels of the mask."""
  touched = cv2.countNonZero(pair.mask)
  return float(cv2.norm(pair.real, pair.fake, cv2.NORM_L1) / (3 * touched)) if touched else 0.0
