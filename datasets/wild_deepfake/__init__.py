"""The wild_deepfake dataset."""
