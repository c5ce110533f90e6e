"""Real pictures as small decoders put them out, to show a detector what decoders of many builds leave behind.

Generators of whole faces, and the networks that re-enact or swap them, end in a decoder that turns a small
map of features into a picture by several steps of up-sampling, and each way of up-sampling leaves traces on a
lattice (Zhang, Karaman and Chang, "Detecting and Simulating Artifacts in GAN Fake Images", WIFS 2019,
arXiv:1907.06515; Rajan et al., "Aligned Datasets Improve Detection of Latent Diffusion-Generated Images",
ICLR 2025, arXiv:2410.11835, for the decoders of diffusion models). Here small autoencoders of several builds
are trained on real pictures. What they rebuild shows the same person, place and light as the original, and is
given its sharpness, grain, JPEG quality and chroma subsampling: what is left is the decoder.
"""

import dataclasses
import zlib
from collections.abc import Iterator, Sequence

import cv2
import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from deepscan_jax import media
from deepscan_jax.matching import stored_like
from deepscan_jax.models.layers import Conv

UPSAMPLINGS = ("nearest", "bilinear", "transposed", "shuffle")

# Training: squares of this side, so many at a time.
CROP, BATCH = 64, 16
_LEARNING_RATE, _WARMUP_STEPS = 2e-3, 30
# Beside the colours their differences count, or a decoder only learns soft pictures.
_EDGES_WEIGHT = 2.0
# Around a picture that is rebuilt lies its mirror image; sides are brought to multiples, so that few shapes
# have to be compiled.
_BORDER, _MULTIPLE = 16, 64
# How far a rebuilt picture is sharpened at most to be as sharp as the original.
_MOST_SHARPENING = 2.0
_SHARPENING_ROUNDS = 4


@dataclasses.dataclass(frozen=True)
class Build:
  """How a decoder is built.

  Attributes:
    upsampling: one of UPSAMPLINGS: repeated pixels, bilinear, a transposed convolution of stride 2 (Radford
      et al. 2016, arXiv:1511.06434), or channels that become pixels (Shi et al. 2016, arXiv:1609.05158).
    levels: how often sides are halved and doubled.
    code: channels at the lowest resolution.
    width: channels at the highest resolution, double below it.
    kernel: side of the transposed convolution; 3 leaves a chequerboard, 4 less of one.
  """

  upsampling: str
  levels: int = 2
  code: int = 12
  width: int = 16
  kernel: int = 4

  def __post_init__(self):
    if self.upsampling not in UPSAMPLINGS:
      raise ValueError(f"There is no upsampling {self.upsampling!r}; there are {', '.join(UPSAMPLINGS)}.")


# By name, which is the method of the pictures that they make.
BUILDS = {
  "nearest4": Build("nearest"),
  "transposed4": Build("transposed", kernel=4),
  "shuffle4": Build("shuffle"),
  "bilinear4": Build("bilinear"),
  "nearest8": Build("nearest", levels=3, code=32),
  "transposed8": Build("transposed", levels=3, code=32, kernel=3),
  "shuffle8": Build("shuffle", levels=3, code=32),
  "bilinear8": Build("bilinear", levels=3, code=32),
}


class Resynthesiser(nn.Module):
  """An autoencoder: pictures to codes of 1 / 2**levels of their sides, and back.

  Attributes:
    build: of the decoder; the encoder is of one build for all.
  """

  build: Build

  @nn.compact
  def __call__(self, pictures: jax.Array) -> jax.Array:
    """Returns pictures [batch, height, width, 3] float in -1..1 as rebuilt; 2**levels divides the sides."""
    build = self.build
    widths = [build.width * min(2**level, 4) for level in range(build.levels)]
    x = pictures
    for level, width in enumerate(widths):
      x = nn.silu(Conv(2 * width, (4, 4), strides=2, name=f"down{level}")(x))
    x = Conv(build.code, (1, 1), name="encode")(x)
    x = nn.silu(Conv(2 * widths[-1], (3, 3), name="decode")(x))
    x = x + Conv(x.shape[-1], (3, 3), name="decode_more")(nn.silu(x))
    for level, width in reversed(list(enumerate(widths))):
      x = nn.silu(self._up(x, width, name=f"up{level}"))
      if level:
        # Not where there are most pixels: most of the work would be there.
        x = x + nn.silu(Conv(width, (3, 3), name=f"refine{level}")(x))
    return Conv(3, (3, 3), name="picture")(x)

  def _up(self, x: jax.Array, width: int, *, name: str) -> jax.Array:
    build = self.build
    if build.upsampling == "shuffle":
      return _spread(Conv(4 * width, (3, 3), name=name)(x))
    if build.upsampling == "transposed":
      shape = (build.kernel, build.kernel, x.shape[-1], width)
      kernel = self.param(f"{name}_kernel", nn.initializers.variance_scaling(4.0, "fan_in", "normal"), shape)
      bias = self.param(f"{name}_bias", nn.initializers.zeros, (width,))
      return transposed_conv(x, kernel) + bias
    # A convolution of one pixel first, where there are four times fewer of them.
    x = Conv(width, (1, 1), name=f"{name}_narrow")(x)
    if build.upsampling == "nearest":
      # The gradient of jax.image.resize would be a slow scatter.
      x = einops.repeat(x, "batch row column channel -> batch (row 2) (column 2) channel")
    else:
      batch, rows, columns, channels = x.shape
      x = jax.image.resize(x, (batch, 2 * rows, 2 * columns, channels), build.upsampling)
    return Conv(width, (3, 3), name=name)(x)


def transposed_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """A transposed convolution of stride 2, worked out at the lower resolution, which is quick on CPUs.

  Each of the four pixels that come of one is a convolution of 3 x 3 with some of the kernel's weights (Shi et
  al. 2016, "Is the deconvolution layer the same as a convolutional layer?", arXiv:1609.07009).

  Args:
    x: float [batch, height, width, channel].
    kernel: [side, side, channel, features], of side 3 or 4.

  Returns:
    [batch, 2 height, 2 width, features]; pixel 2i + a gets what pixel j gives with weight 2i + a - 2j + 1.
  """
  side = kernel.shape[0]
  # place[weight, a, j - i + 1]
  place = np.zeros((side, 2, 3), np.float32)
  for a in range(2):
    for step in (-1, 0, 1):
      if 0 <= (weight := a - 2 * step + 1) < side:
        place[weight, a, step + 1] = 1
  phases = jnp.einsum("kad,lbe,klio->deiabo", place, place, kernel)
  phases = phases.reshape(3, 3, kernel.shape[2], -1)
  return _spread(
    jax.lax.conv_general_dilated(x, phases, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
  )


def _spread(x: jax.Array) -> jax.Array:
  return einops.rearrange(
    x, "batch row column (rows columns channel) -> batch (row rows) (column columns) channel",
    rows=2, columns=2,
  )  # fmt: skip


def train(
  build: Build, pictures: Sequence[np.ndarray], *, steps: int, seed: int = 0
) -> tuple[dict, list[float]]:
  """Trains one autoencoder.

  Args:
    build: of it.
    pictures: uint8 RGB [height, width, 3], of any size.
    steps: batches of BATCH squares of CROP pixels.
    seed: of parameters and squares.

  Returns:
    Parameters, and by step the root of the mean squared error, in grey levels.
  """
  model = Resynthesiser(build)
  params = model.init(jax.random.key(seed), jnp.zeros((1, CROP, CROP, 3)))["params"]
  rate = optax.warmup_cosine_decay_schedule(0.0, _LEARNING_RATE, min(_WARMUP_STEPS, steps // 10), steps + 1)
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b2=0.99))

  def loss_of(params, wanted):
    rebuilt = model.apply({"params": params}, wanted)
    loss = jnp.abs(rebuilt - wanted).mean()
    for axis in (1, 2):
      loss += _EDGES_WEIGHT * jnp.abs(jnp.diff(rebuilt, axis=axis) - jnp.diff(wanted, axis=axis)).mean()
    return loss, jnp.square(rebuilt - wanted).mean()

  @jax.jit
  def step(params, state, squares):
    wanted = squares.astype(jnp.float32) / 127.5 - 1
    (_, error), gradient = jax.value_and_grad(loss_of, has_aux=True)(params, wanted)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, jnp.sqrt(error) * 127.5

  state, errors = optimizer.init(params), []
  squares = _squares(pictures, np.random.default_rng([seed, 1]))
  for _ in range(steps):
    params, state, error = step(params, state, next(squares))
    errors.append(error)
  return params, [float(error) for error in errors]


def _squares(pictures: Sequence[np.ndarray], rng: np.random.Generator) -> Iterator[np.ndarray]:
  while True:
    batch = np.empty((BATCH, CROP, CROP, 3), np.uint8)
    for square in batch:
      picture = pictures[int(rng.integers(len(pictures)))]
      short = [max(CROP - side, 0) for side in picture.shape[:2]]
      if any(short):
        picture = np.pad(picture, ((0, short[0]), (0, short[1]), (0, 0)), "reflect")
      top, left = (int(rng.integers(side - CROP + 1)) for side in picture.shape[:2])
      cut = picture[top : top + CROP, left : left + CROP]
      square[:] = cut[:, ::-1] if rng.random() < 0.5 else cut
    yield batch


class Decoder:
  """A trained autoencoder, for pictures of any size.

  Args:
    build: of it.
    params: of `train`.
  """

  def __init__(self, build: Build, params: dict):
    self._params, self._apply = params, jax.jit(Resynthesiser(build).apply)

  def __call__(self, picture: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """A picture as rebuilt, uint8 RGB of the same size.

    Args:
      picture: uint8 RGB [height, width, 3].
      rng: draws where the decoder's lattice begins.
    """
    height, width = picture.shape[:2]
    before = [_BORDER + int(n) for n in rng.integers(8, size=2)]
    after = [
      -(-(first + side + _BORDER) // _MULTIPLE) * _MULTIPLE - first - side
      for first, side in zip(before, (height, width), strict=True)
    ]
    padded = cv2.copyMakeBorder(picture, before[0], after[0], before[1], after[1], cv2.BORDER_REFLECT_101)
    rebuilt = np.asarray(self._apply({"params": self._params}, padded[None] / np.float32(127.5) - 1))[0]
    rebuilt = rebuilt[before[0] : before[0] + height, before[1] : before[1] + width]
    return np.clip((rebuilt + 1) * 127.5 + 0.5, 0, 255).astype(np.uint8)


def finish(rebuilt: np.ndarray, original: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
  """A rebuilt picture with the sharpness of its original, and some of its grain.

  Args:
    rebuilt, original: uint8 RGB [height, width, 3].
    rng: draws how much of the grain, which a small decoder takes for noise, is put back as other noise.
  """
  wanted, picture = _detail(original), rebuilt.astype(np.float32)
  left_over = original.astype(np.float32) - picture
  for _ in range(_SHARPENING_ROUNDS):
    soft = cv2.GaussianBlur(picture, (0, 0), 1.0)
    amount = np.clip(wanted / max(_detail(picture), 1e-3) - 1, 0, _MOST_SHARPENING)
    if amount < 0.01:
      break
    picture = picture + 0.7 * amount * (picture - soft)
  # The median is of the flat places, not of the edges that the decoder lost.
  grain = 1.48 * float(np.median(np.abs(left_over))) * rng.random()
  noise = rng.standard_normal(picture.shape[:2]).astype(np.float32)[..., None]
  picture = picture + grain * cv2.GaussianBlur(noise, (0, 0), rng.uniform(0.3, 0.8))[..., None]
  return np.clip(picture + 0.5, 0, 255).astype(np.uint8)


def _detail(picture: np.ndarray) -> float:
  picture = picture.astype(np.float32)
  return float((picture - cv2.GaussianBlur(picture, (0, 0), 1.0)).std())


def resynthesise(clip: media.Clip, decoder: Decoder, *, seed: int, name: str) -> tuple[bytes, str]:
  """The file of a real picture as a decoder puts it out, stored as the original is.

  Args:
    clip: the original, of media.decode_image_bytes.
    decoder: of it.
    seed, name: of what is drawn.

  Returns:
    The file's bytes and its suffix.
  """
  original = clip.frames[0]
  rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
  rebuilt = decoder(original, rng=rng)
  if (original == original[..., :1]).all():
    # Colour would give it away, which a decoder that was shown few such pictures adds.
    rebuilt = np.repeat(rebuilt.mean(axis=-1, keepdims=True), 3, axis=-1).astype(np.uint8)
  return stored_like(finish(rebuilt, original, rng=rng), clip.facts)
