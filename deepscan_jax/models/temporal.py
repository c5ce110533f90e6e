"""The temporal branch: follows a face through time, by what the spatial branch saw and by how it moves.

Forgeries are mostly made frame by frame: points jitter, brightness flickers, eyes do not blink as eyes do
(Li et al. 2018, "In Ictu Oculi", arXiv:1806.02877). A bidirectional LSTM reads the series of all frames, so
that what each frame means may depend on both its past and its future.
"""

from __future__ import annotations

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from deepscan_jax.models.crops import reduce_crops
from deepscan_jax.models.interface import BranchOutput, hide, masked_mean
from deepscan_jax.models.layers import Dense

# Points of the 468-point mesh: an opening is three distances between lids (or lips) over that of the corners.
# Two of an eye's pairs are those of Soukupova and Cech 2016; the third lies between them.
_RIGHT_EYE = ((160, 144), (159, 145), (158, 153)), (33, 133)
_LEFT_EYE = ((385, 380), (386, 374), (387, 373)), (362, 263)
_MOUTH = ((81, 178), (13, 14), (311, 402)), (78, 308)

# Motion is told in what is usual at 25 frames a second, so that its figures are of the order of one.
_USUAL_STEP_S = 0.04
_USUAL_SPEED = 0.25  # face sizes a second: blinks, speech, nods
_SHORTEST_STEP_S = 1e-3
_GRID = 4  # rows and columns in which differences of crops are told


class TemporalBranch(nn.Module):
  """A bidirectional LSTM over each frame's features and motion.

  It is present where at least two frames are: a single picture has no motion, and says nothing here.

  Attributes:
    frame_features: also reads the spatial branch's description of each frame; without it, motion alone.
    hidden: units of the LSTM in each direction, and width of what it reads.
    layers: LSTMs above each other.
    reduction: crops are reduced by this factor before their differences are taken.
    features: width of a token.
    dropout: of the tokens, in training.
    dtype: what the network computes in; see models/interface.py.
  """

  frame_features: bool = True
  hidden: int = 128
  layers: int = 1
  reduction: int = 4
  features: int = 256
  dropout: float = 0.2
  dtype: str = "float32"

  @property
  def INPUTS(self) -> tuple[str, ...]:
    """The keys that it reads."""
    motion = ("crops", "crop_mask", "landmarks", "frame_times_s")
    return (*motion, "frame_features") if self.frame_features else motion

  @nn.compact
  def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> BranchOutput:
    """One token per frame, each having read the whole window.

    Args:
      batch: crops [batch, frame, height, width, 3] uint8 or float in 0..255, crop_mask [batch, frame] bool,
        landmarks [batch, frame, 468, 2] pixels of the crop, frame_times_s [batch, frame]; with
        `frame_features` also frame_features [batch, frame, feature].
      train: dropout on; needs the rng "dropout".

    Returns:
      tokens [batch, frame, features]; logit, the mean over the frames present; maps "frame_logit" [batch,
      frame] and "frame_consistency_score" [batch] in 0..1: how far the frames' probabilities agree, 1 where
      they are the same and 0 where half of them say real and half fake (see `frame_consistency_score`). All
      are 0 where the branch is absent.
    """
    mask = batch["crop_mask"]
    mask = mask & (mask.sum(axis=1, keepdims=True) >= 2)
    motion = self._motion(batch, mask).astype(self.dtype)
    read = [nn.relu(Dense(self.hidden, name="read_motion")(motion))]
    if self.frame_features:
      seen = hide(batch["frame_features"].astype(jnp.float32), mask)
      seen = nn.LayerNorm(name="norm_features")(seen).astype(self.dtype)
      read.append(nn.relu(Dense(self.hidden, name="read_features")(seen)))
    x = jnp.concatenate(read, axis=-1)
    for layer in range(self.layers):
      x = BiLSTM(self.hidden, name=f"lstm{layer}")(x, mask)
    tokens = nn.relu(nn.Dense(self.features, name="describe")(x))
    tokens = nn.Dropout(self.dropout, deterministic=not train)(tokens)
    frame_logit = hide(nn.Dense(1, name="classify")(tokens)[..., 0], mask)
    return BranchOutput(
      tokens=hide(tokens, mask),
      token_mask=mask,
      logit=masked_mean(frame_logit, mask),
      maps={
        "frame_logit": frame_logit,
        "frame_consistency_score": frame_consistency_score(jax.lax.stop_gradient(frame_logit), mask),
      },
    )

  def _motion(self, batch: dict[str, jax.Array], mask: jax.Array) -> jax.Array:
    points = hide(batch["landmarks"].astype(jnp.float32), mask)
    times_s = hide(batch["frame_times_s"].astype(jnp.float32), mask)
    pixels = reduce_crops(batch["crops"], mask, reduction=self.reduction)
    return jnp.concatenate(
      [landmark_motion(points, times_s, mask), openings(points, times_s, mask), crop_changes(pixels, mask)],
      axis=-1,
    )


class BiLSTM(nn.Module):
  """Two LSTMs (Hochreiter and Schmidhuber 1997), one from each end; hidden frames are stepped over.

  A hidden frame leaves the state as it was, so each direction reads the frames that are there as if there
  were no others. Products are computed in the type of what is read, gates and states in float32.

  Attributes:
    hidden: units of each direction.
  """

  hidden: int

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
    """Reads x [batch, time, feature] where mask [batch, time] is True.

    Returns:
      [batch, time, 2 * hidden] float32, the forward state and the backward state; 0 where mask is False.
    """
    gates = 4 * self.hidden  # input, forget, cell, output
    kernel = self.param(
      "kernel", nn.initializers.lecun_normal(batch_axis=0), (2, x.shape[-1], gates), jnp.float32
    )
    recurrent = self.param("recurrent", nn.initializers.orthogonal(), (2, self.hidden, gates), jnp.float32)
    bias = self.param("bias", _remembering, (2, gates), jnp.float32)
    # Both directions in one scan; the backward one reads the reversed series.
    both = jnp.stack([hide(x, mask), hide(x, mask)[:, ::-1]])
    products = jnp.einsum("dbtf,dfg->tdbg", both, kernel.astype(x.dtype))
    inputs = products.astype(jnp.float32) + bias[:, None]
    recurrent = recurrent.astype(x.dtype)
    there = jnp.stack([mask, mask[:, ::-1]]).transpose(2, 0, 1)[..., None]

    def step(state, now):
      (h, c), (values, there) = state, now
      products = jnp.einsum("dbh,dhg->dbg", h.astype(x.dtype), recurrent)
      values = values + products.astype(jnp.float32)
      write, keep, cell, show = jnp.split(values, 4, axis=-1)
      new_c = nn.sigmoid(keep) * c + nn.sigmoid(write) * jnp.tanh(cell)
      new_h = nn.sigmoid(show) * jnp.tanh(new_c)
      h, c = jnp.where(there, new_h, h), jnp.where(there, new_c, c)
      return (h, c), h

    zeros = jnp.zeros((2, x.shape[0], self.hidden), inputs.dtype)
    _, (forward, backward) = _scan(step, (zeros, zeros), (inputs, there))
    states = jnp.concatenate([forward, backward[::-1]], axis=-1)
    return hide(states.transpose(1, 0, 2), mask)


def landmark_motion(points: jax.Array, times_s: jax.Array, mask: jax.Array) -> jax.Array:
  """How every mesh point moves between frames: velocity and acceleration by differences, and their sizes.

  Args:
    points: [batch, frame, point, 2] pixels, finite.
    times_s: [batch, frame], finite.
    mask: [batch, frame] bool.

  Returns:
    [batch, frame, 4 * point + 4] float32: velocities x and y since the frame before, in quarters of a face
    size a second; accelerations, their change over 40 ms in the same unit; the root mean square of both over
    the points (jitter that has no direction of its own); the logarithm of the time step over 40 ms, and
    whether there is a velocity. All are squashed by arcsinh, and 0 where a frame that they need is missing
    or does not come later.
  """
  size = jnp.maximum((points.max(axis=2) - points.min(axis=2)).max(axis=-1), 1.0)
  places = points / size[..., None, None]
  step_s, moved = _steps(times_s, mask)
  rate = jnp.where(moved, 1.0 / step_s, 0.0)
  velocity = _since_before(places) * (rate / _USUAL_SPEED)[..., None, None]
  changed = moved & _before(moved)
  # Velocities belong to the middles of their steps.
  between_s = 0.5 * (step_s + jnp.where(changed, _before(step_s), step_s))
  acceleration = _since_before(velocity) * jnp.where(changed, _USUAL_STEP_S / between_s, 0.0)[..., None, None]

  def root_mean_square(vectors):
    # The small number keeps the gradient finite where nothing moves.
    return jnp.sqrt(jnp.square(vectors).mean(axis=(2, 3)) + 1e-12)[..., None]

  flat = "batch frame point xy -> batch frame (point xy)"
  series = jnp.concatenate(
    [
      einops.rearrange(velocity, flat),
      einops.rearrange(acceleration, flat),
      root_mean_square(velocity),
      root_mean_square(acceleration),
      jnp.where(moved, jnp.log(step_s / _USUAL_STEP_S), 0.0)[..., None],
      moved[..., None],
    ],
    axis=-1,
  )
  return hide(jnp.arcsinh(series), mask)


def openings(points: jax.Array, times_s: jax.Array, mask: jax.Array) -> jax.Array:
  """How far the eyes and the mouth are open in each frame, where blinks and speech show.

  An opening is the mean distance of the lids over the width: the eye aspect ratio of Soukupova and Cech
  ("Real-Time Eye Blink Detection using Facial Landmarks", 2016), about 0.3 of an open eye and below 0.1 of a
  closed one; of the mouth the same.

  Args:
    points, times_s, mask: see `landmark_motion`.

  Returns:
    [batch, frame, 9] float32, of right eye, left eye and mouth: the opening; the opening less its mean over
    the window, as eyes differ from person to person; its change since the frame before, in 1 / s * 40 ms.
    0 where mask is False, and the change where there is no frame before.
  """
  now = jnp.stack([_opening(points, *part) for part in (_RIGHT_EYE, _LEFT_EYE, _MOUTH)], axis=-1)
  now = hide(now, mask)
  step_s, moved = _steps(times_s, mask)
  change = _since_before(now) * jnp.where(moved, _USUAL_STEP_S / step_s, 0.0)[..., None]
  series = jnp.concatenate([now, now - masked_mean(now, mask)[:, None], change], axis=-1)
  return hide(series, mask)


def crop_changes(pixels: jax.Array, mask: jax.Array) -> jax.Array:
  """How the aligned crops change from frame to frame, told in a coarse grid.

  Args:
    pixels: [batch, frame, height, width, 3] float.
    mask: [batch, frame] bool.

  Returns:
    [batch, frame, 2 * 4 * 4] float32: for every field of the grid the mean size of the change of brightness
    since the frame before (texture that crawls, edges that slide), then its mean (light that flickers), both
    in sixteenths of the range; 0 where a frame that it needs is missing.
  """
  brightness = pixels.mean(axis=-1)
  change = _since_before(brightness) * 8.0
  shape = (*pixels.shape[:2], _GRID, _GRID)
  fields = [jax.image.resize(x, shape, "linear", antialias=True) for x in (jnp.abs(change), change)]
  flat = "field batch frame row column -> batch frame (field row column)"
  return hide(einops.rearrange(jnp.stack(fields), flat), mask & _before(mask))


def frame_consistency_score(frame_logit: jax.Array, mask: jax.Array) -> jax.Array:
  """How far the frames of each window agree: 1 - 2 * mean(|p - median(p)|) of p = sigmoid(frame_logit).

  The definition of verdict.frame_consistency, here of the temporal branch's own frames and before
  calibration: 1 where all frames say the same, 0 where half of them say 0 and half 1.

  Args:
    frame_logit: [batch, frame] float.
    mask: [batch, frame] bool.

  Returns:
    [batch] float32 in 0..1; 0 where no frame is present.
  """
  p = nn.sigmoid(frame_logit)
  count = mask.sum(axis=1, keepdims=True)
  # The hidden ones are sorted to the end. Of an even number the upper middle one: the mean is the same.
  median = jnp.take_along_axis(jnp.sort(jnp.where(mask, p, 2.0), axis=1), count // 2, axis=1, mode="clip")
  score = 1 - 2 * masked_mean(jnp.abs(p - median), mask)
  return jnp.where(count[:, 0] > 0, score, 0.0)


def _remembering(key, shape, dtype):
  # The forget gate starts open (Jozefowicz et al. 2015): what was seen early reaches the end.
  bias = jnp.zeros(shape, dtype)
  hidden = shape[1] // 4
  return bias.at[:, hidden : 2 * hidden].set(1.0)


def _scan(step, state, series):
  state, states = jax.lax.scan(step, state, series)
  return state, (states[:, 0], states[:, 1])


def _before(series):
  """Each frame's predecessor; zero (False) before the first."""
  return jnp.pad(series[:, :-1], ((0, 0), (1, 0)) + ((0, 0),) * (series.ndim - 2))


def _since_before(series):
  return series - _before(series)


def _steps(times_s, mask):
  """Seconds since the frame before (1 where there is none), and whether both frames are there in order."""
  step_s = _since_before(times_s)
  moved = mask & _before(mask) & (step_s > _SHORTEST_STEP_S)
  return jnp.where(moved, step_s, 1.0), moved


def _opening(points, pairs, corners):
  def distance(one, other):
    return jnp.sqrt(jnp.square(points[:, :, one] - points[:, :, other]).sum(axis=-1) + 1e-12)

  return sum(distance(*pair) for pair in pairs) / len(pairs) / jnp.maximum(distance(*corners), 1.0)
