"""The branches, their fusion and the detector: pure Flax linen modules."""
