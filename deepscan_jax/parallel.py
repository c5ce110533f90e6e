"""The only place that counts devices: pmap splits batches over local ones, the state has no device axis."""

from collections.abc import Callable

import jax
import numpy as np

AXIS = "data"


def device_count() -> int:
  """Local devices that a batch is split over."""
  return jax.local_device_count()


def parallel_step(step: Callable) -> Callable:
  """Turns step(state, batch, axis_name) into f(state, batch) over all local devices.

  The state goes in and comes out without a device axis, so a checkpoint is the plain state; its buffers are
  donated.

  Args:
    step: pure; must reduce over axis_name whatever it returns, so that all devices agree.

  Returns:
    f(state, batch) for a batch from `split_batch`.
  """
  return jax.pmap(
    lambda state, batch: step(state, batch, AXIS),
    axis_name=AXIS,
    in_axes=(None, 0),
    out_axes=(None, None),
    donate_argnums=0,
  )


def replicate(state):
  """The state as `parallel_step` returns it, on all local devices, so that the step is compiled only once."""
  mesh = jax.sharding.Mesh(np.array(jax.local_devices()), (AXIS,))
  return jax.device_put(state, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def parallel_map(function: Callable) -> Callable:
  """Turns f(variables, batch) into the same over all local devices; results have the device axis in front."""
  return jax.pmap(function, axis_name=AXIS, in_axes=(None, 0))


def split_batch(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Gives every array a device axis in front: [batch, ...] -> [device, batch / devices, ...].

  Raises:
    ValueError: the batch size is not divisible by the number of devices.
  """
  devices = device_count()
  size = len(next(iter(batch.values())))
  if size % devices:
    below, above = size - size % devices, size + devices - size % devices
    options = f"{below} or {above}" if below else str(above)
    raise ValueError(
      f"Batch size {size} must be divisible by the number of devices, {devices}; try {options}."
    )
  return {key: value.reshape(devices, size // devices, *value.shape[1:]) for key, value in batch.items()}
