"""The real_only dataset."""
