"""Presets: one file each, with `get_config()`; its docstring tells command, cost and expected score."""
