"""The dfdc dataset."""
