"""The asvspoof2021 dataset."""
