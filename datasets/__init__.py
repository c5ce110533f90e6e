"""TFDS builders, one folder each; media_builder holds what they share."""
