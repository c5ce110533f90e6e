"""Forgeries made from real media, whose twin, place and kind are therefore known."""

from deepscan_jax.pseudofakes.image import MASK_KINDS, BlendConfig, BlendedPair, contact_sheet, self_blend

__all__ = ["MASK_KINDS", "BlendConfig", "BlendedPair", "contact_sheet", "self_blend"]
