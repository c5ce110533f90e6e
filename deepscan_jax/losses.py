"""Losses as (weighted sum, weight) pairs, so that devices, hosts and masks add up exactly.

The loss is the sum of the sums over the sum of the weights, never a mean of means.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from deepscan_jax.models.interface import FACE_LABEL, LABEL_OF, DetectorOutput


class Sum(NamedTuple):
  """A weighted sum and its weight, both float32 scalars."""

  total: jax.Array
  weight: jax.Array


def focal_loss(
  logits: jax.Array,
  labels: jax.Array,
  weights: jax.Array,
  *,
  gamma: float,
  alpha: float = 0.0,
  label_smoothing: float = 0.0,
) -> Sum:
  """Binary focal loss, -alpha_t (1 - p_t)^gamma log p_t (Lin et al. 2017, arXiv:1708.02002).

  With gamma 0 it is the cross entropy.

  Args:
    logits: [batch] float; positive speaks for fake.
    labels: [batch] int, 1 = fake.
    weights: [batch] float, 0 leaves an example out.
    gamma: how much easy examples are played down.
    alpha: alpha_t of a fake, 1 - alpha that of a real; 0: both are 1. As in the paper it scales the loss and
      is no part of the weight that the sum is divided by, which is where it differs from `weights`.
    label_smoothing: targets become label * (1 - s) + s / 2, also in p_t and alpha_t.
  """
  targets = labels * (1.0 - label_smoothing) + 0.5 * label_smoothing
  if gamma:
    each = optax.losses.sigmoid_focal_loss(logits, targets, gamma=gamma)
  else:
    each = optax.losses.sigmoid_binary_cross_entropy(logits, targets)
  if alpha:
    each = each * (alpha * targets + (1.0 - alpha) * (1.0 - targets))
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
  output: DetectorOutput,
  batch: dict[str, jax.Array],
  *,
  gamma: float,
  smoothing: float,
  alpha: float = 0.0,
  class_weights: tuple[float, float] = (1.0, 1.0),
) -> dict[str, Sum]:
  """All losses of a batch by name; those of a branch are weighted by its presence.

  A branch learns what it can see: of a genuine face with a forged voice, the picture branches learn "real".
  The classification losses leave out examples whose label is not known.

  Args:
    output: of the detector on this batch.
    batch: label [batch] int32, 0 real, 1 fake, -1 not known; example_mask [batch] bool; optional face_label
      and sound_label [batch] int32, which else are the label; optional region [batch, frame, rows, columns]
      float32, and region_mask [batch] bool: of which examples it is known.
    gamma, smoothing, alpha: see `focal_loss`.
    class_weights: of real and of fake examples, in the classification losses. With alpha too, a fake counts
      alpha * class_weights[1] against (1 - alpha) * class_weights[0] of a real.

  Returns:
    "fused" and "branch_<name>", and where there is something to learn from "region" (all region maps
    together), "reconstruction" and "sync".
  """
  valid = batch["example_mask"].astype(jnp.float32)

  def classify(logit: jax.Array, kind: str, present: jax.Array) -> Sum:
    label = batch.get(kind, batch["label"])
    weights = valid * present * jnp.where(label == 0, *class_weights) * (label >= 0)
    return focal_loss(logit, label, weights, gamma=gamma, alpha=alpha, label_smoothing=smoothing)

  any_present = jnp.stack([branch.present for branch in output.branches.values()]).any(axis=0)
  losses = {"fused": classify(output.logit, "label", any_present)}
  face_label = batch.get("face_label", batch["label"])
  regions = []
  for name, branch in output.branches.items():
    kind = LABEL_OF.get(name, FACE_LABEL)
    losses[f"branch_{name}"] = classify(branch.logit, kind, branch.present)
    frames = valid[:, None] * branch.token_mask
    if "region" in batch and "region" in branch.maps:
      known = frames * batch["region_mask"][:, None] if "region_mask" in batch else frames
      regions.append(region_loss(branch.maps["region"], batch["region"], known))
    if "reconstruction_error" in branch.maps:
      losses["reconstruction"] = reconstruction_loss(branch.maps["reconstruction_error"], face_label, frames)
    if "shift_logit" in branch.maps:
      real = valid * branch.present * (batch["label"] == 0)
      losses["sync"] = sync_loss(branch.maps["shift_logit"], branch.maps["shift_mask"], real)
  if regions:
    losses["region"] = Sum(sum(r.total for r in regions), sum(r.weight for r in regions))
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


def sync_loss(
  shift_logits: jax.Array, shift_mask: jax.Array, weights: jax.Array, *, tolerance: int = 0
) -> Sum:
  """Which of the shifts of its sound a moment of speech belongs to: cross entropy against no shift (InfoNCE).

  Contrastive over the shifts within one clip, as in Chung & Zisserman 2016, "Out of Time", with all shifts at
  once (van den Oord et al. 2018, arXiv:1807.03748). Only real clips may count: of a fake, nobody knows what
  belongs together. Averaged over the moments of an example that can be compared unshifted and shifted.

  Args:
    shift_logits: [batch, moment, shift] float, the map of that name of LipSyncBranch; the middle is no shift.
    shift_mask: same shape, 1 where there is something to compare.
    weights: [batch] float, 0 for fakes and padding.
    tolerance: shifts of up to so many pictures are not held against a moment, for clips whose sound lies a
      picture off.
  """
  shifts = jnp.arange(shift_logits.shape[-1]) - shift_logits.shape[-1] // 2
  valid = (shift_mask > 0) & ((shifts == 0) | (jnp.abs(shifts) > tolerance))
  known = valid[..., shifts.shape[0] // 2] & (valid.sum(axis=-1) > 1)
  scores = jnp.where(valid, shift_logits, -1e9)
  each = jax.nn.logsumexp(scores, axis=-1) - scores[..., shifts.shape[0] // 2]
  each = jnp.where(known, each, 0.0).sum(axis=1) / jnp.maximum(known.sum(axis=1), 1)
  weights = jnp.where(known.any(axis=1), weights, 0.0)
  return Sum(jnp.sum(each * weights), weights.sum())
