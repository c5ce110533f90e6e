"""Face crops as the branches that follow a whole window of them see them: reduced, normalised, hidden."""

import einops
import jax
import jax.numpy as jnp


def reduce_crops(crops: jax.Array, mask: jax.Array, *, reduction: int) -> jax.Array:
  """Crops at a fraction of their size, each pixel the mean of the square that it replaces.

  Args:
    crops: [batch, frame, height, width, 3] uint8 or float in 0..255.
    mask: [batch, frame] bool.
    reduction: side of that square; 1 leaves the size as it is.

  Returns:
    [batch, frame, height / reduction, width / reduction, 3] float32, (pixel - 127) / 128; 0 where mask is
    False, whatever stood there.

  Raises:
    ValueError: the crops' sides are no multiples of the reduction.
  """
  if crops.ndim != 5 or crops.shape[2] % reduction or crops.shape[3] % reduction:
    raise ValueError(
      f"crops must be [batch, frame, height, width, 3], sides multiples of {reduction}; got {crops.shape}."
    )
  seen = mask[..., None, None, None]
  pixels = jnp.where(seen, crops, 0).astype(jnp.float32)
  if reduction > 1:
    pixels = einops.reduce(
      pixels,
      "batch frame (row rows) (column columns) colour -> batch frame row column colour",
      "mean",
      rows=reduction,
      columns=reduction,
    )
  return jnp.where(seen, (pixels - 127.0) / 128.0, 0.0)
