"""Times the picture networks and the 3D network against PyTorch: `deepscan benchmark models`.

Ours and PyTorch's network compute the same numbers from the same parameters and take turns, each in a process
of its own, as when somebody uses it: within one process the threads of one library go on spinning while the
other one works. A figure is the fastest of --repeats turns; PyTorch runs in inference_mode, in the layout
that is faster for it, and in bfloat16 as well.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import multiprocessing
from collections.abc import Callable, Mapping, Sequence

import numpy as np

Call = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Case:
  """A network on so many pictures of a size, and how many times PyTorch's time ours may take.

  Attributes:
    name: of models/backbones.py, or a key of `CLIP_NETWORKS`.
    size: pixels on a side.
    batch: pictures, or clips.
    limit: ours over PyTorch.
    frames: of a clip; 0 for pictures.
  """

  name: str
  size: int
  batch: int
  limit: float
  frames: int = 0

  @property
  def title(self) -> str:
    """What the table calls it."""
    frames = f"{self.frames} x " if self.frames else ""
    return f"{self.name}, {frames}{self.size} px, batch {self.batch}"


FORWARD = tuple(
  Case(name, size, batch, limit)
  for name, size, limit in (("b3", 300, 1.0), ("xception", 299, 1.1), ("densenet121", 224, 1.1))
  for batch in (1, 8)
)
# Whether the 3D convolutions are split into space and time.
CLIP_NETWORKS = {"R(2+1)D": True, "R3D": False}
CLIPS = tuple(Case(name, 112, batch, 1.2, frames=16) for name in CLIP_NETWORKS for batch in (1, 8))
TRAINING = (Case("b3", 224, 8, 1.0),)


def model_rows(*, in_turns: Callable, row: Callable, repeats: int, with_torch: bool) -> list:
  """The rows of the benchmark, for launch.benchmark, whose `in_turns` and `_row` these are."""
  forward = {"PyTorch": torch_forward, "PyTorch bfloat16": torch_bfloat16_forward}
  plans = [(case, "", our_forward, forward) for case in FORWARD]
  plans += [(case, "", our_clip_forward, {"PyTorch": torch_clip_forward}) for case in CLIPS]
  plans += [(case, "training step of ", our_step, {"PyTorch": torch_step}) for case in TRAINING]
  rows = []
  for case, what, ours, references in plans:
    sides = {"ours": ours, **(references if with_torch else {})}
    seconds = timings(sides, case, in_turns=in_turns, repeats=repeats)
    title = f"{what}{case.title}"
    if not with_torch:
      rows.append(row("models", title, seconds["ours"]))
    for reference in list(sides)[1:]:
      # What is promised is promised against float32.
      limit = case.limit * seconds[reference] if reference == "PyTorch" else None
      rows.append(row("models", f"{title} ({reference})", seconds["ours"], seconds[reference], limit_s=limit))
  return rows


def timings(
  sides: Mapping[str, Callable], case: Case, *, in_turns: Callable, repeats: int
) -> dict[str, float]:
  """Seconds of each side's fastest call; a side is a function of the case that returns calls."""
  with contextlib.ExitStack() as workers:
    calls, owners = [], []
    for name, make in sides.items():
      worker = concurrent.futures.ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), initializer=_hold, initargs=(make, case)
      )
      workers.enter_context(worker)
      for index in range(worker.submit(_count).result()):
        calls.append(functools.partial(_ask, worker, index))
        owners.append(name)
    seconds = in_turns(*calls, repeats=repeats)
  return {name: min(s for s, owner in zip(seconds, owners, strict=True) if owner == name) for name in sides}


def our_forward(case: Case) -> Sequence[Call]:
  """One forward pass of a batch to a single logit."""
  import jax

  from deepscan_jax.models.backbones import backbone

  module, images = backbone(case.name).make(num_classes=1), case_images(case)
  apply = jax.jit(lambda variables, x: module.apply(variables, x, train=False)["logits"])
  variables = jax.device_put(random_variables(case.name))
  return [lambda: np.asarray(apply(variables, images))]


def torch_forward(case: Case) -> Sequence[Call]:
  """The same in PyTorch, in both layouts."""
  import torch

  return [_torch_forward(case, torch.float32, channels_last=layout) for layout in (True, False)]


def torch_bfloat16_forward(case: Case) -> Sequence[Call]:
  """The same in PyTorch with all numbers in bfloat16."""
  import torch

  return [_torch_forward(case, torch.bfloat16, channels_last=layout) for layout in (True, False)]


def our_clip_forward(case: Case) -> Sequence[Call]:
  """The last map of a batch of clips in which every frame is present."""
  import jax

  from deepscan_jax.models.cnn3d import ResNet3D

  module, clips = ResNet3D(factorised=CLIP_NETWORKS[case.name]), case_clips(case)
  present = np.ones(clips.shape[:2], bool)

  @jax.jit
  def apply(variables, x):
    return next(reversed(module.apply(variables, x, present, train=False).values()))

  variables = jax.device_put(_clip_variables(case))
  return [lambda: np.asarray(apply(variables, clips))]


def torch_clip_forward(case: Case) -> Sequence[Call]:
  """The same in PyTorch, in both layouts."""
  from . import reference_torch_video

  clips = case_clips(case)

  def in_layout(channels_last: bool) -> Call:
    network = reference_torch_video.ResNet3D(factorised=CLIP_NETWORKS[case.name])
    network.load_variables(_clip_variables(case))
    return functools.partial(reference_torch_video.make_forward(network, channels_last=channels_last), clips)

  return [in_layout(True), in_layout(False)]


def our_step(case: Case) -> Sequence[Call]:
  """One AdamW step on the mean logistic loss of a single logit; statistics of the norms stay as they are."""
  import jax
  import jax.numpy as jnp
  import optax

  from deepscan_jax.models.backbones import backbone

  module, images, labels = backbone(case.name).make(num_classes=1), case_images(case), _labels(case)
  variables = jax.tree.map(jnp.asarray, random_variables(case.name))
  optimizer = optax.adamw(5e-4, weight_decay=0.01)

  def loss(params, stats, x, y):
    logits = module.apply({"params": params, "batch_stats": stats}, x, train=False)["logits"]
    return optax.losses.sigmoid_binary_cross_entropy(logits[:, 0], y).mean()

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params, opt_state, stats, x, y):
    value, gradients = jax.value_and_grad(loss)(params, stats, x, y)
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, value

  held = [(variables["params"], optimizer.init(variables["params"]))]

  def take() -> None:
    params, opt_state, value = step(*held[0], variables["batch_stats"], images, labels)
    held[0] = (params, opt_state)
    jax.block_until_ready(value)

  return [take]


def torch_step(case: Case) -> Sequence[Call]:
  """The same in PyTorch, in both layouts."""
  import torch
  from torch.nn import functional

  def in_layout(channels_last: bool) -> Call:
    model, inputs = _torch_network(case, torch.float32, channels_last=channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.01, fused=True)
    labels = torch.from_numpy(_labels(case))

    def take() -> float:
      optimizer.zero_grad(set_to_none=True)
      loss = functional.binary_cross_entropy_with_logits(model(inputs)[:, 0], labels)
      loss.backward()
      optimizer.step()
      return loss.item()

    return take

  return [in_layout(True), in_layout(False)]


def case_images(case: Case) -> np.ndarray:
  """Normalised pictures of noise [batch, height, width, 3] float32."""
  return np.random.default_rng(1).normal(size=(case.batch, case.size, case.size, 3)).astype(np.float32)


def case_clips(case: Case) -> np.ndarray:
  """Normalised clips of noise [batch, time, height, width, 3] float32."""
  shape = (case.batch, case.frames, case.size, case.size, 3)
  return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def random_variables(name: str, *, num_classes: int = 1) -> dict:
  """Variables of a backbone that keep the size of what goes through."""
  from deepscan_jax.models.backbones import backbone

  return _drawn(backbone(name).make(num_classes=num_classes), (1, 96, 96, 3))


def _clip_variables(case: Case) -> dict:
  from deepscan_jax.models.cnn3d import ResNet3D

  clips = (1, 2, case.size, case.size, 3)
  return _drawn(ResNet3D(factorised=CLIP_NETWORKS[case.name]), clips, np.ones(clips[:2], bool))


def _drawn(module, shape: tuple[int, ...], *inputs) -> dict:
  """Variables of a module by numpy, for an initialiser takes half a minute to compile."""
  import jax

  example = jax.ShapeDtypeStruct(shape, np.float32)
  init = functools.partial(module.init, train=False)
  shapes = jax.eval_shape(init, jax.random.key(0), example, *inputs)
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    if path[-1].key in ("scale", "var"):
      return rng.uniform(0.8, 1.2, leaf.shape).astype(np.float32)
    if len(leaf.shape) == 1:
      return (0.1 * rng.normal(size=leaf.shape)).astype(np.float32)
    # Depthwise kernels are [height, width, channel].
    fan_in = np.prod(leaf.shape[:2] if len(leaf.shape) == 3 else leaf.shape[:-1])
    return (np.sqrt(2 / fan_in) * rng.normal(size=leaf.shape)).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, dict(shapes))


def _labels(case: Case) -> np.ndarray:
  return np.arange(case.batch, dtype=np.float32) % 2


def _torch_network(case: Case, dtype, *, channels_last: bool):
  """The network in eval mode with our random variables, and its pictures, both in one layout."""
  import torch

  from deepscan_jax.models.backbones import backbone

  from . import reference_torch, reference_torch_models

  families = {
    "EfficientNet": reference_torch.EfficientNet,
    "DenseNet": reference_torch_models.DenseNet,
    "Xception": reference_torch_models.Xception,
  }
  make = backbone(case.name).make
  model = families[make.func.__name__](*make.args, num_classes=1).load_variables(random_variables(case.name))
  model = model.eval().to(dtype)
  # The permuted view of NHWC memory already is torch's channels_last: no copy.
  inputs = torch.from_numpy(case_images(case)).permute(0, 3, 1, 2).to(dtype)
  if channels_last:
    return model.to(memory_format=torch.channels_last), inputs
  return model, inputs.contiguous()


def _torch_forward(case: Case, dtype, *, channels_last: bool) -> Call:
  import torch

  model, inputs = _torch_network(case, dtype, channels_last=channels_last)

  @torch.inference_mode()
  def forward() -> np.ndarray:
    return model(inputs).float().numpy()

  return forward


# Of a worker: the calls that it times.
_calls: list[Call] = []


def _hold(make: Callable, case: Case) -> None:
  _calls[:] = make(case)


def _count() -> int:
  return len(_calls)


def _ask(worker: concurrent.futures.Executor, index: int) -> None:
  worker.submit(_take, index).result()


def _take(index: int) -> None:
  _calls[index]()
