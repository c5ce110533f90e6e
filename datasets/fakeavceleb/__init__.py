"""The fakeavceleb dataset."""
