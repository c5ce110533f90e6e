"""The celeb_df dataset."""
