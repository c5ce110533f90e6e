"""Writes real pictures as small decoders put them out, to train and test detectors with.

    deepscan build_dataset --name=real_only --media=real_faces.tar --data_dir=data
    deepscan resynthesise --media=real_faces.tar --data_dir=data --output=resynthesised
    deepscan build_dataset --name=real_fake_folder/resynthesised --media=resynthesised --data_dir=data

An autoencoder of each build (deepscan_jax.resynthesis) is trained here, on the training pictures of a dataset
alone. What they make of other pictures of the dataset goes to OUTPUT/train/fake/BUILD/ and to validation/ and
test/ likewise, each picture to the split that the dataset has it in, so that nobody crosses from one to
another. One build appears in validation alone and one in test alone: how well those are told from real
pictures says what a detector makes of decoders that it never met.

The same pictures, flags and machine give the same files. A build whose pictures are all there is not trained
again. Two to three minutes a build on two CPU cores, and twenty pictures a second.
"""

import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from absl import app, flags

_MEDIA = flags.DEFINE_multi_string(
  "media", [], "What the dataset was built from; several: again.", allow_override=True
)
_DATA_DIR = flags.DEFINE_string("data_dir", "data", "Where the dataset is.", allow_override=True)
_NAME = flags.DEFINE_string("name", "real_only", "The dataset, of real pictures.", allow_override=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the pictures.", allow_override=True)
_COUNT = flags.DEFINE_integer("count", 2000, "Pictures, of all splits.", lower_bound=8, allow_override=True)
_STEPS = flags.DEFINE_integer("steps", 500, "Of training each decoder.", lower_bound=1, allow_override=True)
_SEED = flags.DEFINE_integer("seed", 0, "Of all that is drawn.", lower_bound=0, allow_override=True)

SHARES = {"train": 0.7, "validation": 0.15, "test": 0.15}
# Builds that one split alone has.
HELD_OUT = {"shuffle4": "validation", "bilinear8": "test"}
# Pictures that decoders learn from.
_LEARN_FROM = 800


def main(argv: Sequence[str]) -> int:
  """Trains the decoders and writes what they make; returns the exit code."""
  if argv[1:] or not (_MEDIA.value and _OUTPUT.value):
    raise app.UsageError("Say --media=FOLDER_OR_TAR and --output=FOLDER, and nothing else than flags.")

  from deepscan_jax import compilation_cache, data, resynthesis
  from deepscan_jax.files import whole_file

  compilation_cache.switch_on()
  output, readers = Path(_OUTPUT.value), _readers(map(Path, _MEDIA.value))
  orders: dict[str, list[Order]] = {name: [] for name in resynthesis.BUILDS}
  learnt: list[str] = []
  for number, (split, share) in enumerate(SHARES.items()):
    rows = data.listed_examples(_NAME.value, split, data_dir=_DATA_DIR.value)
    files: dict[str, set[str]] = {}
    for row in rows:
      if (name := row["id"].rpartition("#")[0]) in readers:
        files.setdefault(row["source"], set()).add(name)
    rng = np.random.default_rng([_SEED.value, number])
    chosen = choose([sorted(names) for _, names in sorted(files.items())], round(share * _COUNT.value), rng)
    if not chosen:
      raise app.UsageError(
        f"--media has none of the {len(rows)} {split} pictures of {_NAME.value}; give what it was built from."
      )
    builds = [name for name in orders if HELD_OUT.get(name, split) == split]
    for place, file in enumerate(chosen):
      build = builds[place % len(builds)]
      stem = output / split / "fake" / build / file.replace("/", "__").rpartition(".")[0]
      orders[build].append(Order(file, stem))
    learnt = learnt or chosen[:_LEARN_FROM]
  for build, wanted in orders.items():
    missing = [order for order in wanted if not order.made()]
    if not missing:
      continue
    seen = [media_of(readers[file]()) for file in learnt]
    params, errors = resynthesis.train(
      resynthesis.BUILDS[build],
      [clip.frames[0] for clip in seen if clip],
      steps=_STEPS.value,
      seed=_SEED.value,
    )
    decoder, written = resynthesis.Decoder(resynthesis.BUILDS[build], params), 0
    for order in missing:
      if clip := media_of(readers[order.file]()):
        content, suffix = resynthesis.resynthesise(clip, decoder, seed=_SEED.value, name=order.stem.name)
        order.stem.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(order.stem.with_name(order.stem.name + suffix), durable=False) as file:
          file.write(content)
        written += 1
    print(
      f"{build}: {written} pictures; at last it was off by {np.mean(errors[-20:]):.1f} grey levels",
      file=sys.stderr,
      flush=True,
    )
  return 0


@dataclasses.dataclass(frozen=True)
class Order:
  """A picture to make: of which file, and where, but for the suffix."""

  file: str
  stem: Path

  def made(self) -> bool:
    """Whether it is there."""
    return any(self.stem.with_name(self.stem.name + suffix).exists() for suffix in (".jpg", ".png"))


def choose(kinds: Sequence[Sequence[str]], count: int, rng: np.random.Generator) -> list[str]:
  """So many of the files, or all, in a random order: evenly of each kind, as far as they go."""
  shuffled = [[kind[i] for i in rng.permutation(len(kind))] for kind in kinds]
  turns = itertools.chain.from_iterable(itertools.zip_longest(*shuffled))
  return list(itertools.islice((file for file in turns if file is not None), count))


def media_of(content: bytes):
  """The picture, a media.Clip; None where it cannot be read."""
  from deepscan_jax import media

  try:
    return media.decode_image_bytes(content)
  except media.MediaError:
    return None


def _readers(paths: Iterable[Path]) -> dict[str, Callable[[], bytes]]:
  """By the id that a dataset gives it, what reads a file."""
  from deepscan_jax.datasets.media_builder import walk_media

  return {
    f"{root.stem}/{name}": path.read_bytes if path else read
    for root in paths
    for name, path, read in walk_media(root)
  }


if __name__ == "__main__":
  from .__main__ import run_module

  run_module(__name__)
