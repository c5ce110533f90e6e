"""The real_fake_folder dataset."""
