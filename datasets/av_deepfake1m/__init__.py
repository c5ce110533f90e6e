"""The av_deepfake1m dataset."""
