"""The faceforensics dataset."""
