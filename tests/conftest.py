"""Runs every test on 8 virtual CPU devices, with absl flags parsed (grain's workers read them)."""

import os

# Before jax is imported: pmap is tested here on the same code that runs on eight accelerators.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

from absl import flags

flags.FLAGS.mark_as_parsed()
