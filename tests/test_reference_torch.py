"""The benchmark compares with PyTorch what computes the same: forward, losses, gradients, one AdamW step."""

import functools

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from tiny import random_variables, tiny_batch

from deepscan_jax import train_state
from deepscan_jax.config import Config, ModelConfig, TrainConfig
from deepscan_jax.models.detector import Detector
from deepscan_jax.models.efficientnet import EfficientNet
from deepscan_jax.models.layers import SqueezeExcite
from deepscan_jax.optimizer import create_optimizer

torch = pytest.importorskip("torch")
reference_torch = pytest.importorskip("deepscan_jax.launch.reference_torch")

LEARNING_RATE = 1e-3


def flat(tree) -> dict[str, np.ndarray]:
  return {path: np.asarray(leaf) for path, leaf in flatten_dict(tree, sep="/").items()}


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
  return float(np.linalg.norm(ours - theirs) / np.linalg.norm(ours))


@pytest.fixture(scope="module", params=[False, True], ids=["nchw", "channels_last"])
def steps(request, trained):
  """(ours before, ours after, losses of ours, the reference after, its losses): two steps of both."""
  config, before, after, losses = trained
  model = reference_torch.Detector(config).load_variables(before.variables)
  step = reference_torch.TrainStep(model, config, channels_last=request.param)
  return before, after, losses, step, [step(tiny_batch(4, seed=seed)) for seed in range(2)]


@pytest.fixture(scope="module")
def trained():
  """Two steps of ours, without dropout. The first has a learning rate of 0, as every warm-up begins."""
  config = Config(
    model=ModelConfig(backbone="pico", features=32, dropout=0.0),
    train=TrainConfig(
      steps=10, warmup_steps=1, learning_rate=LEARNING_RATE, weight_decay=0.1, clip_norm=0.5, pretrained=False
    ),
  )
  optimizer = create_optimizer(config.train)
  variables = random_variables(Detector(config.model), train_state.abstract_batch(1, config), train=False)
  params = variables["params"]
  before = train_state.TrainState(
    step=np.int32(0),
    params=params,
    batch_stats=variables["batch_stats"],
    ema=params,
    opt_state=optimizer.init(params),
  )
  step = jax.jit(
    functools.partial(
      train_state.train_step, model=Detector(config.model), optimizer=optimizer, config=config
    )
  )
  after, losses = before, []
  for seed in range(2):
    after, sums = step(after, tiny_batch(4, seed=seed))
    value = {name: float(s.total / s.weight) for name, s in sums.items()}
    losses.append(value["fused"] + 0.5 * value["branch_spatial"] + 0.5 * value["region"])
  return config, before, after, losses


def test_the_backbones_answer_alike():
  network = EfficientNet("pico", num_classes=1)
  images = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
  variables = random_variables(network, images, train=False)
  ours = jax.jit(lambda v, x: network.apply(v, x, train=False)["logits"])(variables, images)
  for channels_last in (False, True):
    model = reference_torch.EfficientNet("pico", num_classes=1).load_variables(variables)
    theirs = reference_torch.make_forward(model, channels_last=channels_last)(images)
    np.testing.assert_allclose(theirs, ours, atol=1e-4)


def test_squeeze_and_excitation_weigh_channels_alike():
  images = np.random.default_rng(0).normal(size=(2, 5, 5, 8)).astype(np.float32)
  variables = random_variables(SqueezeExcite(2), images)
  module = reference_torch.SqueezeExcite(8, 2)
  with torch.no_grad():
    for path, tensor in flatten_dict(module.tree(lambda p: p)).items():
      tensor.copy_(torch.from_numpy(flatten_dict(variables["params"])[path]))
    theirs = module(torch.from_numpy(images).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
  np.testing.assert_allclose(theirs, SqueezeExcite(2).apply(variables, images), atol=1e-6)


def test_the_detectors_answer_alike(trained):
  config, before, _, _ = trained
  batch = tiny_batch(4, seed=5)
  output = jax.jit(functools.partial(Detector(config.model).apply, train=False))(before.variables, batch)
  model = reference_torch.Detector(config).load_variables(before.variables).eval()
  images = torch.from_numpy((batch["crops"][:, 0].astype(np.float32) - 127) / 128).permute(0, 3, 1, 2)
  with torch.inference_mode():
    fused, branch, region = model(images)
  branch_ours = output.branches["spatial"]
  assert np.ptp(output.logit) > 0.01
  np.testing.assert_allclose(fused, output.logit, atol=1e-4)
  np.testing.assert_allclose(branch, branch_ours.logit, atol=1e-4)
  np.testing.assert_allclose(region, branch_ours.maps["region"][:, 0], atol=1e-4)


def test_the_losses_agree(steps):
  _, _, losses, _, theirs = steps
  assert theirs == pytest.approx(losses, abs=1e-5)


def test_the_gradients_agree(steps):
  """By Adam's first moment: 0.9 and then 0.1 of the clipped gradients of both steps."""
  _, after, _, step, _ = steps
  (moments,) = [
    s.mu for s in jax.tree.leaves(after.opt_state, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu")
  ]
  theirs = reference_torch.tensors(step.model, of=lambda p: step.optimizer.state[p]["exp_avg"])
  ours = flat(moments)
  # Attention does not see what is added to all of its keys: the gradient of that bias is rounding alone.
  assert np.abs(ours.pop("fusion/key/bias")).max() < 1e-9
  for path, moment in ours.items():
    assert relative_error(moment, theirs[path].numpy()) < 1e-3, path


def test_the_parameters_and_their_average_agree(steps):
  """Adam divides a gradient by its own size, so where that is rounding noise the change may be any within the
  learning rate: as a whole the changes agree to 1 %, and no parameter is further off than both could move."""
  before, after, _, step, _ = steps
  for ours, theirs in ((after.params, step.model), (after.ema, step.average)):
    old, new = flat(before.params), flat(ours)
    found = {path: tensor.detach().numpy() for path, tensor in reference_torch.tensors(theirs).items()}
    changes = [np.concatenate([(x[path] - old[path]).ravel() for path in old]) for x in (new, found)]
    assert np.abs(changes[0]).max() > LEARNING_RATE / 2
    assert relative_error(*changes) < 0.01
    assert np.abs(changes[0] - changes[1]).max() < 2.1 * LEARNING_RATE


def test_variables_of_another_network_are_refused(trained):
  config, before, _, _ = trained
  variables = {"params": {**before.params, "more": np.zeros(1)}, "batch_stats": before.batch_stats}
  with pytest.raises(ValueError, match="Only one of the two networks has more"):
    reference_torch.Detector(config).load_variables(variables)
