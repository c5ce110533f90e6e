"""The deepfake_timit dataset."""
