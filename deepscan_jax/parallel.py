"""The only place that counts devices and processes.

pmap splits a batch over the devices of all processes: each process holds its own rows of it, over its own
devices. The state has no device axis and is the same on all devices of all processes. Unless `connect` was
called there is one process, which has nobody to ask or to wait for.
"""

import concurrent.futures
import contextlib
import os
import pickle
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from deepscan_jax.stopping import Interrupted, StopRequest

AXIS = "data"
# Where process 0 listens, unless said otherwise: what Cloud TPUs use.
_PORT = 8476


def connect(
  *,
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  timeout_s: int = 300,
  request: StopRequest | None = None,
) -> None:
  """Makes this process one of several that train together; must come before any other use of JAX's devices.

  What is None is taken from the environment (see `from_environment`); where that says nothing at all either,
  JAX asks the cluster: TPU pods, Slurm, Open MPI, and Kubernetes jobs with the package `kubernetes` tell it.

  Args:
    coordinator_address: "host:port" of process 0, as all processes reach it.
    num_processes: how many train together.
    process_id: which of them this one is, from 0 on.
    timeout_s: how long to wait for the others.
    request: breaks the waiting off once it holds a signal; the process can then only end.

  Ends the process with a sentence and exit code 2 where not all have met in time.

  Raises:
    ValueError: an argument is missing or out of its range, or process 0 cannot listen.
    Interrupted: the waiting was broken off.
  """
  given = {
    "coordinator_address": coordinator_address,
    "num_processes": num_processes,
    "process_id": process_id,
  }
  given = from_environment(os.environ) | {key: value for key, value in given.items() if value is not None}
  address = given.get("coordinator_address", "")
  if address and not address.rpartition(":")[2].isdecimal():
    raise ValueError(f"--coordinator_address must be host:port of process 0, got {address!r}.")
  if len(given) == 3 and not 0 <= given["process_id"] < given["num_processes"]:
    raise ValueError(
      f"--process_id must be 0 or more and less than --num_processes={given['num_processes']}, got "
      f"{given['process_id']}."
    )
  if address and given.get("process_id") == 0:
    _check_port_is_free(int(address.rpartition(":")[2]))
  # Training has its own way to stop all processes at the same step; JAX's would take the signal from it.
  jax.config.update("jax_enable_preemption_service", False)
  place = f" at {address}" if address else ""
  late = threading.Timer(timeout_s, _give_up, [place, timeout_s])
  late.daemon = True
  late.start()
  # In a thread of its own: this one would hear of no signal inside XLA.
  waiting = concurrent.futures.ThreadPoolExecutor(1)
  try:
    # Longer than the timer: XLA aborts the process with a page of its own stack where it does not connect.
    met = waiting.submit(jax.distributed.initialize, **given, initialization_timeout=timeout_s + 60)
    while not met.done():
      concurrent.futures.wait([met], timeout=0.2)
      if request:
        raise Interrupted(request.number)
    met.result()
  except ValueError as error:
    wanted = {
      "coordinator_address": "HOST:PORT of process 0",
      "num_processes": "N",
      "process_id": "0 to N - 1",
    }
    missing = [f"--{key} ({value})" for key, value in wanted.items() if key not in given]
    raise ValueError(
      "--multihost finds no cluster here that tells what it needs (TPU pod, Slurm, Open MPI, Kubernetes); "
      f"give {', '.join(missing)}."
    ) from error
  except jax.errors.JaxRuntimeError as error:
    why = str(error).partition("\n")[0].rstrip(".")
    raise ValueError(f"The processes that train together cannot meet{place}: {why}.") from error
  finally:
    late.cancel()
    waiting.shutdown(wait=False)


def _check_port_is_free(port: int) -> None:
  # XLA does not survive one that is taken.
  both = socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if both else socket.AF_INET
  try:
    socket.create_server(("", port), family=family, dualstack_ipv6=both).close()
  except OSError as error:
    raise ValueError(
      f"Process 0 cannot listen at port {port} ({os.strerror(error.errno)}); choose another in "
      "--coordinator_address."
    ) from error


def _give_up(place: str, timeout_s: int) -> None:
  message = (
    f"The processes that train together did not all meet{place} within {timeout_s} s. Start all of them, "
    "with the address of process 0 as the others reach it."
  )
  os.write(2, f"deepscan: {message}\n".encode())
  os._exit(2)


def from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
  """What the environment says of `connect`'s arguments.

  JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or those that SkyPilot sets on each node
  (SKYPILOT_NODE_IPS, SKYPILOT_NUM_NODES, SKYPILOT_NODE_RANK).

  Raises:
    ValueError: a number is none.
  """
  found: dict[str, Any] = {}
  if nodes := environment.get("SKYPILOT_NODE_IPS", "").split():
    found["coordinator_address"] = f"{nodes[0]}:{_PORT}"
  names = {
    "coordinator_address": ("JAX_COORDINATOR_ADDRESS",),
    "num_processes": ("SKYPILOT_NUM_NODES", "JAX_NUM_PROCESSES"),
    "process_id": ("SKYPILOT_NODE_RANK", "JAX_PROCESS_ID"),
  }
  for key, variables in names.items():
    for name in variables:
      if text := environment.get(name, ""):
        if key != "coordinator_address" and not text.isdecimal():
          raise ValueError(f"The environment variable {name} must be a whole number, got {text!r}.")
        found[key] = text if key == "coordinator_address" else int(text)
  return found


def disconnect() -> None:
  """Leaves the others once all of them are here; does nothing in a process that trains alone."""
  of_each_process(None)
  jax.distributed.shutdown()


def device_count() -> int:
  """Devices of all processes, which a batch is split over."""
  return jax.device_count()


def shard() -> tuple[int, int]:
  """(index, count) of this process among those that train together."""
  return jax.process_index(), jax.process_count()


def is_first() -> bool:
  """Whether this process is the one that writes what only one may write."""
  return jax.process_index() == 0


def rows_here(batch_size: int) -> int:
  """How many rows of a batch of all processes this one holds.

  Raises:
    ValueError: the batch size is not divisible by the number of devices, or the processes differ in theirs.
  """
  devices, local = device_count(), jax.local_device_count()
  if local * jax.process_count() != devices:
    raise ValueError(
      f"All processes need the same number of devices; this one has {local}, all {jax.process_count()} have "
      f"{devices}."
    )
  if batch_size % devices:
    below, above = batch_size - batch_size % devices, batch_size + devices - batch_size % devices
    options = f"{below} or {above}" if below else str(above)
    raise ValueError(
      f"Batch size {batch_size} must be divisible by the number of devices, {devices}; try {options}."
    )
  return batch_size // jax.process_count()


def parallel_step(step: Callable) -> Callable:
  """Turns step(state, batch, axis_name) into f(state, batch) over the devices of all processes.

  The state goes in and comes out without a device axis, so a checkpoint is the plain state; its buffers are
  donated.

  Args:
    step: pure; must reduce over axis_name whatever it returns, so that all devices agree.

  Returns:
    f(state, batch) for a batch from `split_batch`; all processes must call it equally often.
  """
  return jax.pmap(
    lambda state, batch: step(state, batch, AXIS),
    axis_name=AXIS,
    in_axes=(None, 0),
    out_axes=(None, None),
    donate_argnums=0,
  )


def replicate(state):
  """The state as `parallel_step` returns it, so that the step is compiled only once.

  It lies on all devices of this process; what lies on those of others is theirs to put there.
  """
  mesh = jax.sharding.Mesh(np.array(jax.local_devices()), (AXIS,))
  return jax.device_put(state, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def parallel_map(function: Callable) -> Callable:
  """Turns f(variables, batch) into the same over the devices of this process alone.

  Results have the device axis in front. The function may not reduce over devices, so each process may call
  the result as often as it likes.
  """
  return jax.pmap(function, axis_name=AXIS, in_axes=(None, 0), devices=jax.local_devices())


def split_batch(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Gives every array a device axis in front: [batch, ...] -> [local device, batch / local devices, ...].

  Args:
    batch: the rows that this process holds.

  Raises:
    ValueError: the batch of all processes is not divisible by the number of devices.
  """
  size, devices = len(next(iter(batch.values()))), jax.local_device_count()
  rows_here(size * jax.process_count())
  return {key: value.reshape(devices, size // devices, *value.shape[1:]) for key, value in batch.items()}


def of_all_processes(tree):
  """The arrays of `replicate`, which are equal in all processes, as arrays of all of them together.

  No number is copied. A checkpoint of several processes takes its arrays only so.
  """
  if jax.process_count() == 1:
    return tree
  devices = [device for process in range(jax.process_count()) for device in jax.local_devices(process)]
  mesh = jax.sharding.Mesh(np.array(devices), (AXIS,))
  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

  def joined(array: jax.Array) -> jax.Array:
    pieces = [piece.data for piece in array.addressable_shards]
    return jax.make_array_from_single_device_arrays(array.shape, everywhere, pieces)

  return jax.tree.map(joined, tree)


def from_first(tree):
  """A tree of arrays as process 0 has it, in all processes, to the bit.

  What was computed from the same numbers on two machines need not be the same.
  """
  if jax.process_count() == 1:
    return tree
  leaves, structure = jax.tree.flatten(jax.device_get(tree))
  leaves = [np.asarray(leaf) for leaf in leaves]
  ours = np.frombuffer(b"".join(leaf.tobytes() for leaf in leaves), np.uint8)
  theirs = np.asarray(multihost_utils.broadcast_one_to_all(ours)).tobytes()
  given, start = [], 0
  for leaf in leaves:
    values = np.frombuffer(theirs, leaf.dtype, count=leaf.size, offset=start)
    given.append(values.reshape(leaf.shape))
    start += leaf.nbytes
  return jax.tree.unflatten(structure, given)


def of_each_process(value: Any) -> list:
  """What each process gave, in their order, the same list in all; waits until all of them have given.

  Args:
    value: anything that can be pickled; pickled, because numbers and texts must arrive as they are.
  """
  if jax.process_count() == 1:
    return [value]
  packed = np.frombuffer(pickle.dumps(value), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(len(packed)))
  # One of few sizes, because each is compiled.
  room = np.zeros(1 << int(sizes.max() - 1).bit_length(), np.uint8)
  room[: len(packed)] = packed
  rooms = multihost_utils.process_allgather(room)
  return [pickle.loads(given[:size].tobytes()) for given, size in zip(rooms, sizes, strict=True)]


@contextlib.contextmanager
def all_or_none() -> Iterator[None]:
  """Ends what is done inside with an error in all processes where one of them has met an error.

  Else the others would wait for it in their next common step. Inside, processes may not wait for each other.

  Raises:
    ValueError: another process has met an error; the message is its own.
  """
  error: Exception | None = None
  try:
    yield
  except Exception as met:  # Of whatever kind: the others would wait for this process all the same.
    error = met
  for index, text in enumerate(of_each_process(None if error is None else str(error) or repr(error))):
    if text is not None and error is None:
      raise ValueError(f"Process {index} cannot train: {text}")
  if error is not None:
    raise error


class Poll:
  """Tells all processes at the same step the largest number that one of them has given.

  One process alone is told its own number at once; several are told at one call what was given until the one
  before, so that none of them has to wait for a step that has only begun. The numbers travel between two
  steps and are not part of the step.
  """

  def __init__(self):
    self._given: jax.Array | None = None
    self._largest = jax.pmap(lambda number: jax.lax.pmax(number, AXIS), axis_name=AXIS)

  def __call__(self, number: int) -> int:
    """Gives a number, 0 or more; all processes must call it equally often."""
    if jax.process_count() == 1:
      return number
    before, self._given = self._given, self._largest(np.full(jax.local_device_count(), number, np.int32))
    return 0 if before is None else int(before.addressable_data(0)[0])
