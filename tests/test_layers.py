"""The layers against XLA's own convolutions, their automatic gradients, and plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepscan_jax.models import layers

# kernel size, stride, (height, width), channels, padding; the last two have several blocks of rows
DEPTHWISE_CASES = [
  (1, 1, (3, 4), 5, "SAME"),
  (3, 1, (5, 7), 3, "SAME"),
  (3, 2, (6, 8), 4, "SAME"),
  (3, 2, (7, 5), 4, "SAME"),
  (5, 1, (3, 2), 8, "SAME"),
  (5, 2, (4, 7), 2, "SAME"),
  (7, 1, (4, 5), 2, "SAME"),
  (3, 1, (5, 4), 3, 0),
  (3, 2, (6, 5), 3, 0),
  (5, 2, (7, 6), 3, 2),
  (3, 1, (19, 4), 160, "SAME"),
  (3, 2, (37, 6), 24, "SAME"),
]


def random(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def grouped_conv(x, kernel, stride, padding):
  pads = padding if padding == "SAME" else [(padding, padding)] * 2
  return jax.lax.conv_general_dilated(
    x,
    kernel[:, :, None],
    (stride, stride),
    pads,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=x.shape[-1],
  )


@pytest.mark.parametrize(("size", "stride", "lengths", "channels", "padding"), DEPTHWISE_CASES)
def test_depthwise_equals_the_grouped_convolution_and_its_gradients(size, stride, lengths, channels, padding):
  x, kernel = random(2, *lengths, channels), random(size, size, channels, seed=1)

  @jax.jit
  def both(x, kernel):
    ours, our_gradient = jax.vjp(
      lambda x, kernel: layers.depthwise_conv(x, kernel, stride=stride, padding=padding), x, kernel
    )
    xla, xla_gradient = jax.vjp(lambda x, kernel: grouped_conv(x, kernel, stride, padding), x, kernel)
    cotangent = jnp.cos(jnp.arange(xla.size, dtype=jnp.float32)).reshape(xla.shape)
    return (ours, *our_gradient(cotangent)), (xla, *xla_gradient(cotangent))

  for ours, xla in zip(*both(x, kernel), strict=True):
    assert ours.shape == xla.shape
    np.testing.assert_allclose(ours, xla, rtol=1e-5, atol=2e-6 * float(np.abs(xla).max()))


@pytest.mark.parametrize("channels", [(12, 7), (7, 12)])
def test_pointwise_gradients_equal_those_of_a_matrix_product(channels):
  x, kernel = random(3, 9, 8, channels[0]), random(*channels, seed=1)

  def loss(multiply, x, kernel):
    return jnp.sin(multiply(x, kernel)).sum()

  ours = jax.jit(jax.grad(lambda *a: loss(layers.pointwise_conv, *a), argnums=(0, 1)))(x, kernel)
  plain = jax.jit(jax.grad(lambda *a: loss(jnp.matmul, *a), argnums=(0, 1)))(x, kernel)
  for one, other in zip(ours, plain, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_swish_and_its_gradient_equal_flax_silu():
  x = np.linspace(-30, 30, 601, dtype=np.float32)
  ours, theirs = (jax.vmap(jax.value_and_grad(f))(x) for f in (layers.swish, jax.nn.silu))
  # Where the sigmoid is below 1e-6, one less a hyperbolic tangent is 0 in single precision.
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=3e-6), ours, theirs)


def test_depthwise_refuses_what_it_cannot_do():
  x = np.zeros((1, 4, 4, 2), np.float32)
  with pytest.raises(ValueError, match=r"\(1, 4, 4, 2\) and \(3, 3, 5\)"):
    layers.depthwise_conv(x, np.zeros((3, 3, 5), np.float32))
  with pytest.raises(ValueError, match="stride"):
    layers.depthwise_conv(x, np.zeros((3, 3, 2), np.float32), stride=3)
  with pytest.raises(ValueError, match="odd"):
    layers.depthwise_conv(x, np.zeros((4, 4, 2), np.float32))


def test_depthwise_layer_adds_its_bias():
  x = random(1, 4, 4, 3)
  layer = layers.DepthwiseConv(3, use_bias=True)
  variables = layer.init(jax.random.key(0), x)
  without = layer.apply(variables, x)
  variables["params"]["bias"] = jnp.array([1.0, 2.0, 3.0])
  np.testing.assert_allclose(
    layer.apply(variables, x) - without, np.broadcast_to([1, 2, 3], x.shape), atol=1e-6
  )


def test_same_padding_is_tensorflows():
  # Of stride 2, an even length gets its only pixel at the end and an odd length one on each side.
  assert layers.explicit_padding((8, 7), 3, stride=2, padding="SAME") == ((0, 1), (1, 1))
  assert layers.explicit_padding((8, 7), 5, stride=1, padding="SAME") == ((2, 2), (2, 2))
  assert layers.explicit_padding((8, 7), 3, stride=2, padding=1) == ((1, 1), (1, 1))


@pytest.mark.parametrize("kind", ["pointwise", "dense", "depthwise"])
def test_a_folded_norm_equals_the_norm_applied_after_the_convolution(kind):
  x = random(2, 6, 6, 8)
  if kind == "depthwise":
    layer = layers.DepthwiseConvNorm(3, stride=2)
  else:
    layer = layers.ConvNorm(5, kernel_size=1 if kind == "pointwise" else 3)
  variables = layer.init(jax.random.key(0), x, train=False)
  channels = variables["batch_stats"]["norm"]["mean"].shape[0]
  norm = {
    "scale": random(channels, seed=1),
    "bias": random(channels, seed=2),
    "mean": random(channels, seed=3),
    "var": 1 + random(channels, seed=4) ** 2,
  }
  variables = {
    "params": {**variables["params"], "norm": {name: norm[name] for name in ("scale", "bias")}},
    "batch_stats": {"norm": {name: norm[name] for name in ("mean", "var")}},
  }
  kernel = variables["params"]["kernel"]
  if kind == "depthwise":
    plain = grouped_conv(x, kernel, 2, "SAME")
  elif kind == "dense":
    plain = jax.lax.conv_general_dilated(
      x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
  else:
    plain = np.einsum("bhwi,io->bhwo", x, kernel)
  expected = (plain - norm["mean"]) / np.sqrt(norm["var"] + 1e-3) * norm["scale"] + norm["bias"]
  np.testing.assert_allclose(layer.apply(variables, x, train=False), expected, rtol=1e-4, atol=1e-5)


def test_a_frozen_norm_trains_as_it_evaluates_and_leaves_its_statistics_alone():
  x = 3 + 2 * random(4, 5, 5, 6)
  layer = layers.ConvNorm(7, kernel_size=3, frozen_norm=True)
  variables = layer.init(jax.random.key(0), x, train=True)
  trained, changed = layer.apply(variables, x, train=True, mutable=["batch_stats"])
  np.testing.assert_array_equal(trained, layer.apply(variables, x, train=False))
  jax.tree.map(np.testing.assert_array_equal, changed["batch_stats"], variables["batch_stats"])

  def loss(params):
    return jnp.square(layer.apply({**variables, "params": params}, x, train=True)).sum()

  gradient = jax.grad(loss)(variables["params"])["norm"]
  assert np.all(np.abs(gradient["scale"]) > 0) and np.all(np.abs(gradient["bias"]) > 0)


def test_an_unfrozen_norm_uses_the_batch_and_updates_its_statistics():
  x = 3 + 2 * random(4, 5, 5, 6)
  norm = layers.BatchNorm(frozen=False, momentum=0.9)
  variables = norm.init(jax.random.key(0), x, train=True)
  y, changed = norm.apply(variables, x, train=True, mutable=["batch_stats"])
  mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
  np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-3), atol=1e-4)
  np.testing.assert_allclose(changed["batch_stats"]["mean"], 0.1 * mean, rtol=1e-4)
  np.testing.assert_allclose(changed["batch_stats"]["var"], 0.9 + 0.1 * var, rtol=1e-4)


def test_batch_statistics_span_the_devices_of_a_pmap():
  x = random(4, 2, 3, 3, 5) + np.arange(4, dtype=np.float32)[:, None, None, None, None]
  norm = layers.BatchNorm(frozen=False, axis_name="data")
  variables = norm.init(jax.random.key(0), x[0], train=True)

  def apply(x):
    return norm.apply(variables, x, train=True, mutable=["batch_stats"])

  y, changed = jax.pmap(apply, axis_name="data", devices=jax.devices()[:4])(x)
  whole, expected = layers.BatchNorm(frozen=False).apply(
    variables, x.reshape(-1, 3, 3, 5), train=True, mutable=["batch_stats"]
  )
  np.testing.assert_allclose(y.reshape(whole.shape), whole, atol=1e-4)
  for device in range(4):
    jax.tree.map(
      lambda ours, theirs, device=device: np.testing.assert_allclose(
        ours[device], theirs, rtol=1e-4, atol=1e-6
      ),
      changed["batch_stats"],
      expected["batch_stats"],
    )


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def test_channel_attention_equals_plain_loops():
  x = random(2, 3, 4, 6)
  layer = layers.ChannelAttention(reduction=2)
  variables = layer.init(jax.random.key(0), x)
  reduce = np.asarray(variables["params"]["reduce"]["kernel"])
  expand = np.asarray(variables["params"]["expand"]["kernel"])
  assert reduce.shape == (6, 3)
  expected = np.empty_like(x)
  for n in range(2):
    answers = np.zeros(6)
    for pool in (np.mean, np.max):
      pooled = np.array([pool(x[n, :, :, c]) for c in range(6)])
      answers += np.maximum(pooled @ reduce, 0) @ expand
    for c in range(6):
      expected[n, :, :, c] = x[n, :, :, c] * sigmoid(answers[c])
  np.testing.assert_allclose(layer.apply(variables, x), expected, rtol=1e-5, atol=1e-6)


def test_spatial_attention_equals_plain_loops():
  x = random(2, 5, 4, 3)
  layer = layers.SpatialAttention()
  variables = layer.init(jax.random.key(0), x)
  kernel = np.asarray(variables["params"]["kernel"])
  assert kernel.shape == (7, 7, 2, 1)
  padded = np.zeros((2, 5 + 6, 4 + 6, 2))
  padded[:, 3:-3, 3:-3] = np.stack([x.mean(-1), x.max(-1)], axis=-1)
  weights = np.empty((2, 5, 4))
  for n in range(2):
    for row in range(5):
      for column in range(4):
        weights[n, row, column] = sigmoid(
          (padded[n, row : row + 7, column : column + 7] * kernel[..., 0]).sum()
        )
  y, ours = layer.apply(variables, x)
  np.testing.assert_allclose(ours, weights, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(y, x * weights[..., None], rtol=1e-5, atol=1e-6)


def test_squeeze_excite_equals_plain_loops():
  x = random(2, 3, 4, 6)
  layer = layers.SqueezeExcite(2)
  variables = layer.init(jax.random.key(0), x)
  dense = jax.tree.map(np.asarray, variables["params"])
  expected = np.empty_like(x)
  for n in range(2):
    hidden = x[n].mean((0, 1)) @ dense["reduce"]["kernel"] + dense["reduce"]["bias"]
    hidden = hidden * sigmoid(hidden)
    expected[n] = x[n] * sigmoid(hidden @ dense["expand"]["kernel"] + dense["expand"]["bias"])
  np.testing.assert_allclose(layer.apply(variables, x), expected, rtol=1e-5, atol=1e-6)


def test_drop_path_drops_whole_examples_and_keeps_the_mean():
  x = np.ones((2000, 2, 2, 1), np.float32)
  layer = layers.DropPath(0.25)
  y = np.asarray(layer.apply({}, x, train=True, rngs={"dropout": jax.random.key(0)}))
  assert np.all(y == y[:, :1, :1])
  np.testing.assert_allclose(np.unique(y), [0, 4 / 3], rtol=1e-6)
  assert abs(y.mean() - 1) < 0.05
  np.testing.assert_array_equal(layer.apply({}, x, train=False), x)
