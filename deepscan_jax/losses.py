"""Losses as (weighted sum, weight) pairs, so that devices, hosts and masks add up exactly.

The loss is the sum of the sums over the sum of the weights, never a mean of means.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from deepscan_jax.models.interface import DetectorOutput


class Sum(NamedTuple):
  """A weighted sum and its weight, both float32 scalars."""

  total: jax.Array
  weight: jax.Array


def focal_loss(
  logits: jax.Array, labels: jax.Array, weights: jax.Array, *, gamma: float, label_smoothing: float = 0.0
) -> Sum:
  """Binary focal loss, -(1 - p_t)^gamma log p_t (Lin et al. 2017, arXiv:1708.02002); gamma 0: cross entropy.

  Args:
    logits: [batch] float; positive speaks for fake.
    labels: [batch] int, 1 = fake.
    weights: [batch] float, 0 leaves an example out.
    gamma: how much easy examples are played down.
    label_smoothing: targets become label * (1 - s) + s / 2.
  """
  targets = labels * (1.0 - label_smoothing) + 0.5 * label_smoothing
  if gamma:
    each = optax.losses.sigmoid_focal_loss(logits, targets, gamma=gamma)
  else:
    each = optax.losses.sigmoid_binary_cross_entropy(logits, targets)
  return Sum(jnp.sum(jnp.where(weights > 0, each, 0.0) * weights), weights.sum())


def region_loss(region_logits: jax.Array, region: jax.Array, weights: jax.Array) -> Sum:
  """Cross entropy of a region map against the blend mask, averaged over places.

  Args:
    region_logits: [batch, frame, rows, columns] float.
    region: same shape, 0..1: how much of each place was blended in; 0 everywhere for a real face.
    weights: [batch, frame] float.
  """
  each = optax.losses.sigmoid_binary_cross_entropy(region_logits, region).mean(axis=(-2, -1))
  return Sum(jnp.sum(each * weights), weights.sum())


def detector_losses(
  output: DetectorOutput, batch: dict[str, jax.Array], *, gamma: float, smoothing: float
) -> dict:
  """All losses of a batch by name: "fused", "branch_<name>" weighted by presence, "region" where it is known.

  Args:
    output: of the detector on this batch.
    batch: label [batch] int32, example_mask [batch] bool; optional region [batch, frame, rows, columns]
      float32.
    gamma, smoothing: see `focal_loss`.

  Returns:
    Sums by name.
  """
  valid = batch["example_mask"].astype(jnp.float32)
  any_present = jnp.stack([branch.present for branch in output.branches.values()]).any(axis=0)
  focal = {"gamma": gamma, "label_smoothing": smoothing}
  losses = {"fused": focal_loss(output.logit, batch["label"], valid * any_present, **focal)}
  for name, branch in output.branches.items():
    losses[f"branch_{name}"] = focal_loss(branch.logit, batch["label"], valid * branch.present, **focal)
    if "region" in batch and "region" in branch.maps:
      weights = valid[:, None] * branch.token_mask
      losses["region"] = region_loss(branch.maps["region"], batch["region"], weights)
  return losses


def reconstruction_loss(error: jax.Array, label: jax.Array, weights: jax.Array) -> Sum:
  """Mean reconstruction error of the real faces; a fake has no part in it, nor in its gradient.

  Args:
    error: [batch, frame, rows, columns] float, the autoencoder branch's map "reconstruction_error".
    label: [batch] int, 1 = fake.
    weights: [batch, frame] float.
  """
  weights = jnp.where(label[:, None] == 0, weights, 0.0)
  each = jnp.where(weights > 0, error.mean(axis=(-2, -1)), 0.0)
  return Sum(jnp.sum(each * weights), weights.sum())
