"""The asvspoof2019_la dataset."""
