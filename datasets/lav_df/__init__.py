"""The lav_df dataset."""
