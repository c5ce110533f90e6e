"""What happens to a face crop on its way to the network: another crop, a worse camera, a worse codec.

Images are uint8 RGB [height, width, 3], masks float32 [height, width] in 0..1; clips have an axis of frames
in front. A picture is the clip of one frame. Every random number comes from
the `numpy.random.Generator` that is passed in, nothing is mutated, and nothing here calls JAX: it runs in
loader workers. All parameters of one augmentation are drawn before the first pixel is touched, so the two
twins of a pair go through exactly the same steps: same warp, same noise field, same quantiser.

OpenCV starts a thread per core by default. At this size that gains nothing, so a loader that runs beside a
training step calls `cv2.setNumThreads(1)` once per process.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

from deepscan_jax.faces import regions

Change = Callable[[np.ndarray], np.ndarray]
Twins = list[list[np.ndarray]]
Step = Callable[[Twins], Twins]

_KEY_FRAME_EVERY = 250  # frames; as x264 and most others do
# Conversions have a thread per core since PyAV 17, which costs more than it gains at this size.
_ONE_THREAD = {"threads": 1} if int(av.__version__.split(".")[0]) >= 18 else {}


@dataclass(frozen=True)
class ColourConfig:
  """How colours change.

  Attributes:
    rgb_shift_probability, rgb_shift: one offset in grey levels for each of the three channels.
    hsv_probability, hue_shift_deg, saturation_shift, value_shift: offsets; the last two in grey levels.
    brightness_contrast_probability, brightness, contrast: largest offset as a part of 255, and largest change
      of slope as a part of one, about mid-grey.
    gamma_probability, gamma: (lowest, highest) exponent of the tone curve, as displays, cameras and
      conversions between standards bend it; drawn evenly in its logarithm.
  """

  rgb_shift_probability: float = 0.3
  rgb_shift: float = 20.0
  hsv_probability: float = 0.3
  hue_shift_deg: float = 8.0
  saturation_shift: float = 25.0
  value_shift: float = 15.0
  brightness_contrast_probability: float = 0.3
  brightness: float = 0.2
  contrast: float = 0.3
  gamma_probability: float = 0.0
  gamma: tuple[float, float] = (0.7, 1.4)


@dataclass(frozen=True)
class AugmentConfig:
  """How a stored crop becomes a training crop.

  Attributes:
    crop_size: side of the result in pixels, as the network takes it.
    eval_margin: margin around the face at evaluation, as a part of the face's longer side; it fixes the size
      of the face in the stored crop: crop_size / (1 + 2 * eval_margin) pixels.
    exact_scale_probability: how often no pixel is resampled: a window of crop_size at whole-pixel offsets,
      the scale of evaluation. Otherwise one affine warp.
    margin: (lowest, highest) margin around the face that the warp draws.
    translation: largest shift of the window, as a part of crop_size.
    rotation_deg: largest rotation of the warp.
    flip_probability: left-right mirror.
    colour: the change of colours.
    shrink_probability, shrink_face_px: the face's side in pixels as a poor camera or a small video sees it;
      noise and codec then act at that size, before the way back up.
    blur_probability, blur_sigma_px: Gaussian, in pixels of the shrunk picture.
    noise_probability, noise_level: standard deviation of Gaussian noise, grey levels.
    h264_probability, h264_qp: a real H.264 key frame at a constant quantiser (18 fine, 40 coarse).
    jpeg_probability, jpeg_quality, jpeg_full_colour_probability: a real JPEG at a random place of its grid;
      4:2:0 chroma unless full colour.
    second_jpeg_probability: one more JPEG pass at the final size, as from a re-upload.
  """

  crop_size: int = 224
  eval_margin: float = 0.15
  exact_scale_probability: float = 0.35
  margin: tuple[float, float] = (0.04, 0.2429)
  translation: float = 0.04
  rotation_deg: float = 5.0
  flip_probability: float = 0.5
  colour: ColourConfig = field(default_factory=lambda: ColourConfig(gamma_probability=0.15))
  shrink_probability: float = 0.35
  shrink_face_px: tuple[float, float] = (60.0, 150.0)
  blur_probability: float = 0.15
  blur_sigma_px: tuple[float, float] = (0.3, 1.2)
  noise_probability: float = 0.15
  noise_level: tuple[float, float] = (1.0, 6.0)
  h264_probability: float = 0.2
  h264_qp: tuple[int, int] = (18, 34)
  jpeg_probability: float = 0.5
  jpeg_quality: tuple[int, int] = (40, 100)
  jpeg_full_colour_probability: float = 0.2
  second_jpeg_probability: float = 0.15


def augment_pair(
  real: np.ndarray, fake: np.ndarray, mask: np.ndarray, *, rng: np.random.Generator, config: AugmentConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns both twins after one and the same augmentation, and the mask still registered with them.

  Args:
    real, fake: uint8 [stored, stored, 3], two stored crops of one face, or clips [frame, stored, stored, 3].
    mask: float32 [stored, stored] or [frame, stored, stored] in 0..1.
    rng: the only source of randomness.
    config: what is drawn how often.

  Returns:
    (real, fake, mask): uint8 [crop_size, crop_size, 3] twice and float32 [crop_size, crop_size], with the
    frames of a clip in front.

  Raises:
    ValueError: an image is not uint8 RGB, too small for the crop, or the three differ in size.
  """
  _check_image(real, config)
  _check_image(fake, config)
  if fake.shape != real.shape or mask.shape != real.shape[:-1]:
    raise ValueError(f"Twins and mask must agree in size, got {real.shape}, {fake.shape} and {mask.shape}.")
  augmentation = draw_augmentation(rng, real.shape[-2], frames=_count_frames(real), config=config)
  real, fake = augmentation.pictures(real, fake)
  return real, fake, augmentation.mask(mask)


def augment_one(image: np.ndarray, *, rng: np.random.Generator, config: AugmentConfig) -> np.ndarray:
  """Returns one stored crop, or a clip, after a random augmentation, as `augment_pair` gives to each twin.

  Args:
    image: uint8 [stored, stored, 3] or [frame, stored, stored, 3].
    rng: the only source of randomness.
    config: what is drawn how often.

  Returns:
    uint8 [crop_size, crop_size, 3] or [frame, crop_size, crop_size, 3].

  Raises:
    ValueError: the image is not uint8 RGB or too small for the crop.
  """
  _check_image(image, config)
  augmentation = draw_augmentation(rng, image.shape[-2], frames=_count_frames(image), config=config)
  return augmentation.pictures(image)[0]


@dataclass(frozen=True, eq=False)
class Crop:
  """One window that is cut out of every stored image or mask; it never leaves the stored crop.

  Attributes:
    inverse: float64 [2, 3], from (x, y) of the result to (x, y) of the stored crop, pixel centres at whole
      numbers.
    size: side of the result in pixels.
    flip: whether `inverse` mirrors left and right.
    corner: (left, top) of the window where no pixel is resampled, None where one affine warp does it.
  """

  inverse: np.ndarray
  size: int
  flip: bool
  corner: tuple[int, int] | None

  def __call__(self, image: np.ndarray) -> np.ndarray:
    """[size, size] or [size, size, channel] of an image or mask [stored, stored] or with channels."""
    if self.corner is None:
      return warp(image, matrix=self.inverse, size=(self.size, self.size), inverse=True)
    left, top = self.corner
    window = image[top : top + self.size, left : left + self.size]
    return cv2.flip(window, 1) if self.flip else window.copy()

  def landmarks(self, points: np.ndarray) -> np.ndarray:
    """Where mesh points lie in the result.

    Args:
      points: float [..., 468, 2] in pixels of the stored crop, the first pixel's centre at 0.5.

    Returns:
      float32 [..., 468, 2]; in a mirrored picture the person's right eye is on the other side, and so are its
      indices.
    """
    if self.flip:
      points = points[..., regions.MIRRORED, :]
    matrix = cv2.invertAffineTransform(self.inverse)
    return ((points - 0.5) @ matrix[:, :2].T + matrix[:, 2] + 0.5).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Augmentation:
  """All that was drawn for one window of frames, to be applied alike to whatever belongs to it.

  Attributes:
    crop: the window.
    degradation: steps in order, each from twins (a list of clips, each a list of frames) to twins.
    frames: how many frames each clip has.
  """

  crop: Crop
  degradation: tuple[Step, ...]
  frames: int

  def pictures(self, *twins: np.ndarray) -> list[np.ndarray]:
    """The twins after the augmentation: uint8 [stored, stored, 3] or [frame, stored, stored, 3] each."""
    clips = [[self.crop(frame) for frame in (twin if twin.ndim == 4 else twin[None])] for twin in twins]
    if any(len(clip) != self.frames for clip in clips):
      raise ValueError(
        f"This augmentation was drawn for {self.frames} frames, got {[len(clip) for clip in clips]}."
      )
    for step in self.degradation:
      clips = step(clips)
    return [np.stack(clip) if t.ndim == 4 else clip[0] for clip, t in zip(clips, twins, strict=True)]

  def mask(self, mask: np.ndarray) -> np.ndarray:
    """The mask cut as the pictures are: float32 [stored, stored] or [frame, stored, stored]."""
    return self.crop(mask) if mask.ndim == 2 else np.stack([self.crop(frame) for frame in mask])

  def landmarks(self, points: np.ndarray) -> np.ndarray:
    """The mesh points cut as the pictures are, see `Crop.landmarks`."""
    return self.crop.landmarks(points)


def draw_augmentation(
  rng: np.random.Generator, stored_size: int, *, frames: int = 1, config: AugmentConfig
) -> Augmentation:
  """Draws the augmentation of one window of frames; all frames get the same, but for the sensor's noise.

  Args:
    rng: the only source of randomness.
    stored_size: side of the stored crops in pixels.
    frames: in the window, at least 1; one frame is augmented as a picture.
    config: what is drawn how often.
  """
  crop = draw_crop(rng, stored_size, config=config)
  return Augmentation(crop, draw_degradation(rng, frames=frames, config=config), frames)


def draw_crop(rng: np.random.Generator, stored_size: int, *, config: AugmentConfig) -> Crop:
  """Draws the window that is cut out of every stored image or mask of one size.

  The window never leaves the stored crop, so no invented border enters the picture.
  """
  size = config.crop_size
  flip = bool(rng.random() < config.flip_probability)
  shift = rng.uniform(-config.translation, config.translation, 2) * size
  if rng.random() < config.exact_scale_probability:
    spare = stored_size - size
    left, top = (int(v) for v in np.clip(np.rint(spare / 2 + shift), 0, spare))
    across = [-1, 0, left + size - 1] if flip else [1, 0, left]
    return Crop(np.array([across, [0, 1, top]], float), size, flip, (left, top))

  angle = np.deg2rad(rng.uniform(-config.rotation_deg, config.rotation_deg))
  cos, sin = np.cos(angle), np.sin(angle)
  reach = cos + abs(sin)  # the upright box around a turned square is this much larger
  face_px = size / (1 + 2 * config.eval_margin)
  side = min(face_px * (1 + 2 * rng.uniform(*config.margin)), stored_size / reach)
  room = max(stored_size - side * reach, 0) / 2
  centre = stored_size / 2 + np.clip(shift * side / size, -room, room)
  step = side / size
  turn = np.array([[cos, -sin], [sin, cos]]) * step
  turn[:, 0] *= -1 if flip else 1
  # Pixel centres lie at whole numbers, hence the halves: window centre (size - 1) / 2 goes to centre - 1/2.
  offset = centre - 0.5 - turn @ np.full(2, (size - 1) / 2)
  return Crop(np.column_stack([turn, offset]), size, flip, None)


def warp(
  image: np.ndarray, *, matrix: np.ndarray, size: tuple[int, int], inverse: bool = False
) -> np.ndarray:
  """Returns an affine, bilinear warp of an image or mask, mirrored where the result reaches beyond it.

  Args:
    image: uint8 or float32 [height, width] or [height, width, channel].
    matrix: [2, 3], from (x, y) of `image` to (x, y) of the result, pixel centres at whole numbers.
    size: (width, height) of the result.
    inverse: `matrix` leads from the result to `image` instead.

  Returns:
    [height, width] or [height, width, channel] of the same dtype.
  """
  flags = cv2.INTER_LINEAR | (cv2.WARP_INVERSE_MAP if inverse else 0)
  is_rgb = image.ndim == 3 and image.shape[2] == 3
  if is_rgb:  # OpenCV warps four channels in half the time of three
    image = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA)
  warped = cv2.warpAffine(image, matrix, size, flags=flags, borderMode=cv2.BORDER_REFLECT_101)
  return cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB) if is_rgb else warped


def draw_degradation(rng: np.random.Generator, *, frames: int = 1, config: AugmentConfig) -> tuple[Step, ...]:
  """Draws the steps that give every cropped frame of all twins the same colours, camera and codec.

  Args:
    rng: the only source of randomness.
    frames: in a clip; each gets its own field of noise, and more than one are encoded as one video.
    config: what is drawn how often.
  """
  size = config.crop_size
  steps = [_each(change) for change in draw_colour(rng, config=config.colour)]
  small = size
  if rng.random() < config.shrink_probability:
    small = round(rng.uniform(*config.shrink_face_px) * (1 + 2 * config.eval_margin))
    small = min(small, size)
    down = _choose(rng, (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC))
    steps.append(_each(functools.partial(_resize, size=small, interpolation=down)))
  if rng.random() < config.blur_probability:
    sigma = rng.uniform(*config.blur_sigma_px)
    steps.append(_each(lambda image: cv2.GaussianBlur(image, (0, 0), sigma)))
  if rng.random() < config.noise_probability:
    noise = rng.standard_normal((frames, small, small, 3), np.float32)
    noise *= np.float32(rng.uniform(*config.noise_level))
    noise = np.rint(noise, out=noise).astype(np.int16)
    steps.append(
      lambda twins: [[add_noise(*pair) for pair in zip(clip, noise, strict=True)] for clip in twins]
    )
  if rng.random() < config.h264_probability:
    steps.append(functools.partial(_h264_twins, qp=_whole(rng, config.h264_qp)))
  if rng.random() < config.jpeg_probability:
    steps.append(_each(_draw_jpeg(rng, config)))
  if small != size:
    up = _choose(rng, (cv2.INTER_LINEAR, cv2.INTER_CUBIC))
    steps.append(_each(functools.partial(_resize, size=size, interpolation=up)))
  if rng.random() < config.second_jpeg_probability:
    steps.append(_each(_draw_jpeg(rng, config)))
  return tuple(steps)


def draw_colour(rng: np.random.Generator, *, config: ColourConfig) -> list[Change]:
  """Returns the steps that were drawn of: channel offsets, HSV, brightness and contrast, gamma."""
  steps: list[Change] = []
  if rng.random() < config.rgb_shift_probability:
    steps.append(functools.partial(scale_channels, offset=rng.uniform(-1, 1, 3) * config.rgb_shift))
  if rng.random() < config.hsv_probability:
    amounts = (config.hue_shift_deg, config.saturation_shift, config.value_shift)
    steps.append(functools.partial(shift_hsv, shift=rng.uniform(-1, 1, 3) * amounts))
  if rng.random() < config.brightness_contrast_probability:
    gain = 1 + rng.uniform(-1, 1) * config.contrast
    offset = rng.uniform(-1, 1) * config.brightness * 255 + 127.5 * (1 - gain)
    steps.append(functools.partial(scale_channels, gain=np.full(3, gain), offset=np.full(3, offset)))
  # Nothing is drawn where it never happens, so that a run without it draws what runs drew before it came.
  if config.gamma_probability and rng.random() < config.gamma_probability:
    steps.append(functools.partial(bend_tones, gamma=float(np.exp(rng.uniform(*np.log(config.gamma))))))
  return steps


def bend_tones(image: np.ndarray, *, gamma: float) -> np.ndarray:
  """Returns 255 * (image / 255) ** gamma, rounded to uint8; above 1 it darkens what lies between the ends."""
  return cv2.LUT(image, np.rint(255 * (np.arange(256) / 255) ** gamma).astype(np.uint8))


def scale_channels(
  image: np.ndarray, *, offset: np.ndarray, gain: np.ndarray | tuple[float, ...] = (1.0, 1.0, 1.0)
) -> np.ndarray:
  """Returns gain * image + offset per colour channel, rounded and clipped to uint8."""
  # A table for three channels takes twice the time of a sum, or of a table that they have in common.
  if np.all(np.asarray(gain) == 1):
    return cv2.add(image, (*np.rint(offset).tolist(), 0.0))
  table = np.clip(np.rint(np.arange(256.0)[:, None] * np.asarray(gain) + offset), 0, 255).astype(np.uint8)
  shared = (table == table[:, :1]).all()
  return cv2.LUT(image, table[:, 0] if shared else table[None])


def shift_hsv(image: np.ndarray, *, shift: np.ndarray) -> np.ndarray:
  """Returns the image with hue turned by shift[0] degrees, saturation and value moved by grey levels."""
  hue, saturation, value = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV))
  turned = np.rint(np.arange(256.0) + shift[0] / 2) % 180  # OpenCV counts hue in steps of 2 degrees
  hue = cv2.LUT(hue, turned.astype(np.uint8))
  saturation, value = (
    cv2.add(channel, (float(np.rint(move)), 0.0, 0.0, 0.0))
    for channel, move in ((saturation, shift[1]), (value, shift[2]))
  )
  return cv2.cvtColor(cv2.merge([hue, saturation, value]), cv2.COLOR_HSV2RGB)


def jpeg(
  image: np.ndarray, *, quality: int, full_colour: bool = False, grid: tuple[int, int] = (0, 0)
) -> np.ndarray:
  """Returns the image after a real JPEG round trip whose 8x8 blocks start `grid` (rows, columns) before it.

  Rows and columns are 0..15: with 4:2:0 chroma the pattern repeats every 16 pixels.
  """
  down, right = grid
  padded = cv2.copyMakeBorder(image, down, 0, right, 0, cv2.BORDER_REFLECT_101)
  sampling = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444 if full_colour else cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420
  options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
  # OpenCV takes the channels for BGR; luma and chroma come out right only in that order.
  _, data = cv2.imencode(".jpg", cv2.cvtColor(padded, cv2.COLOR_RGB2BGR), options)
  decoded = cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
  return np.ascontiguousarray(decoded[down:, right:])


def add_noise(image: np.ndarray, noise: np.ndarray) -> np.ndarray:
  """Returns a uint8 image with int16 noise on it, clipped."""
  return np.clip(image + noise, 0, 255).astype(np.uint8)


def h264(image: np.ndarray, *, qp: int) -> np.ndarray:
  """Returns the image after a real H.264 key frame (4:2:0, deblocked) at the constant quantiser `qp`, 0..51.

  A constant quantiser, not a quality target: the encoder must not give one twin more bits than the other.
  """
  return h264_clip([image], qp=qp)[0]


def h264_clip(
  frames: Sequence[np.ndarray],
  *,
  qp: int | None = None,
  crf: int | None = None,
  key_frames_only: bool = False,
) -> list[np.ndarray]:
  """Returns frames after one real H.264 stream (4:2:0, deblocked).

  Args:
    frames: uint8 [height, width, 3], at least one, in order of time; each is predicted from others.
    qp: constant quantiser of the predicted frames, 0..51; x264 takes a finer one for key frames.
    crf: in its place x264's constant quality, 0..51, with the settings that FFmpeg has by itself (preset
      medium): as files in the wild are made. Its quantiser follows the content, so twins differ in theirs.
    key_frames_only: predict none from another, as pictures that do not belong together.

  Returns:
    As many frames of the same shape.

  Raises:
    ValueError: both of qp and crf, or none.
  """
  if (qp is None) == (crf is None):
    raise ValueError(f"Give either qp or crf of an H.264 stream, got {qp} and {crf}.")
  height, width = frames[0].shape[:2]
  encoder = av.CodecContext.create("libx264", "w")
  encoder.height, encoder.width = height + height % 2, width + width % 2  # 4:2:0 is even
  encoder.pix_fmt, encoder.time_base, encoder.thread_count = "yuv420p", Fraction(1, 25), 1
  encoder.gop_size = 1 if key_frames_only else _KEY_FRAME_EVERY
  if crf is None:
    encoder.options = {"preset": "superfast", "tune": "zerolatency", "qp": str(qp)}
  else:
    encoder.options = {"preset": "medium", "crf": str(crf)}
  # Left to itself, each frame would set up a conversion of its own.
  to_yuv, to_rgb = VideoReformatter(), VideoReformatter()
  packets = []
  for number, frame in enumerate(frames):
    padded = frame
    if height % 2 or width % 2:
      padded = cv2.copyMakeBorder(frame, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
    picture = av.VideoFrame.from_ndarray(padded, format="rgb24")
    picture = to_yuv.reformat(picture, format="yuv420p", **_ONE_THREAD)
    picture.pts = number
    packets += encoder.encode(picture)
  packets += encoder.encode(None)
  decoder = av.CodecContext.create("h264", "r")
  decoder.thread_count = 1
  decoded = [frame for packet in [*packets, None] for frame in decoder.decode(packet)]
  pictures = [to_rgb.reformat(frame, format="rgb24", **_ONE_THREAD).to_ndarray() for frame in decoded]
  return [np.ascontiguousarray(picture[:height, :width]) for picture in pictures]


def _h264_twins(twins: Twins, *, qp: int) -> Twins:
  """Each clip as a stream of its own; single pictures as key frames of one, which saves opening a second."""
  if len(twins[0]) > 1:
    return [h264_clip(clip, qp=qp) for clip in twins]
  return [[picture] for picture in h264_clip([clip[0] for clip in twins], qp=qp, key_frames_only=True)]


def _each(change: Change) -> Step:
  """The step that changes every frame of every twin alike."""
  return lambda twins: [[change(frame) for frame in clip] for clip in twins]


def _draw_jpeg(rng: np.random.Generator, config: AugmentConfig) -> Change:
  return functools.partial(
    jpeg,
    quality=_whole(rng, config.jpeg_quality),
    full_colour=bool(rng.random() < config.jpeg_full_colour_probability),
    grid=(int(rng.integers(16)), int(rng.integers(16))),
  )


def _resize(image: np.ndarray, *, size: int, interpolation: int) -> np.ndarray:
  return cv2.resize(image, (size, size), interpolation=interpolation)


def _whole(rng: np.random.Generator, limits: tuple[int, int]) -> int:
  return int(rng.integers(limits[0], limits[1] + 1))


def _choose(rng: np.random.Generator, options: tuple[int, ...]) -> int:
  return options[rng.integers(len(options))]


def _count_frames(image: np.ndarray) -> int:
  return len(image) if image.ndim == 4 else 1


def _check_image(image: np.ndarray, config: AugmentConfig) -> None:
  shape = image.shape
  square = image.ndim in (3, 4) and shape[-3] == shape[-2] and shape[-1] == 3 and len(image) > 0
  if image.dtype != np.uint8 or not square or shape[-2] < config.crop_size:
    raise ValueError(
      f"A stored crop must be uint8 [size, size, 3] with size >= {config.crop_size}, or frames of them "
      f"[frame, size, size, 3], got {image.dtype} {list(shape)}."
    )
