"""Runs every test on 8 virtual CPU devices, with absl flags parsed (grain's workers read them)."""

import gc
import os
import sys

import compiling

# Before jax is imported: pmap is tested here on the same code that runs on eight accelerators.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
  f"{os.environ.get('XLA_FLAGS', '')} {compiling.FLAGS} --xla_force_host_platform_device_count=8".strip()
)
# Before numpy is: OpenBLAS's other threads wait for work by going round and round, and several test processes
# have all processors already.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from pathlib import Path

import face_media
import jax
import pytest
from absl import flags

from deepscan_jax import compilation_cache
from deepscan_jax.rooms import import_room

flags.FLAGS.mark_as_parsed()


def pytest_configure(config: pytest.Config) -> None:
  # Tests start a hundred processes of this package: they find it compiled, whatever the environment says.
  sys.dont_write_bytecode = False
  os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
  # Compiling is most of the work: programs that many tests need are compiled once, and kept for the next run.
  folder = config.cache.mkdir("compiled")
  folder.chmod(0o700)
  compilation_cache.switch_on(str(folder))
  # Where each operation was written down takes a tenth of the tracing, and nobody reads these programs.
  jax.config.update("jax_traceback_in_locations_limit", 0)
  # Tracing makes a great many objects, none of them garbage: looking for some took a fifth of its time.
  gc.collect()
  gc.freeze()
  gc.set_threshold(20_000, 10, 10)


# Files of more than a minute go first, the longest before all: a process that has one of them at the end
# leaves the others idle.
LONG = (
  *("test_learning", "test_multihost", "test_presets", "test_precision", "test_pipeline", "test_training"),
  *("test_web", "test_serve_engine", "test_train_command"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  place = {name: number for number, name in enumerate(LONG)}
  items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))


@pytest.fixture(scope="session")
def real_media(tmp_path_factory) -> Path:
  """A folder of real pictures and one clip of two sources, with files that cannot be used among them."""
  return face_media.write_real_media(tmp_path_factory.mktemp("real_media"))


@pytest.fixture(scope="session")
def prepared_dataset(real_media, tmp_path_factory) -> Path:
  """The data folder in which real_only was built from `real_media`."""
  data_dir = tmp_path_factory.mktemp("data")
  builder = import_room("datasets.real_only.real_only_dataset_builder").Builder(
    media_paths=[real_media], frames_per_clip=face_media.CLIP_SAMPLES, data_dir=data_dir
  )
  builder.prepare()
  return data_dir
