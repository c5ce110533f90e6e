"""Writes real pictures as small decoders put them out, to train and test detectors with.

    deepscan build_dataset --name=real_only --media=real_faces.tar --data_dir=data
    deepscan resynthesise --media=real_faces.tar --data_dir=data --output=resynthesised
    deepscan build_dataset --name=real_fake_folder/resynthesised --media=resynthesised --data_dir=data

An autoencoder of each build (deepscan_jax.resynthesis) is trained here, on training pictures of a dataset
alone. What they make of these and other pictures of the dataset goes to OUTPUT/train/fake/BUILD/ and to
validation/ and test/ likewise, each picture to the split that the dataset has it in. One build appears in
validation alone and one in test alone: how well those are told from real pictures says what a detector makes
of decoders that it never met. The dataset is real_only or a collection of it, for files are found by the
names that it gives them. Who is seen is not handed on: cross-validation (--folds) would mix people up.

The same pictures, flags and machine give the same files. Stopped, it goes on when started again with the same
flags: a build whose pictures are all there is not trained again. Two to three minutes a build on two CPU
cores, and twenty pictures of 200 pixels a second.
"""

import dataclasses
import hashlib
import itertools
import sys
import zlib
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

import numpy as np
from absl import app, flags

from deepscan_jax.files import claim_folder, whole_file

_MEDIA = flags.DEFINE_multi_string(
  "media", [], "What the dataset was built from; several: again.", allow_override=True
)
_DATA_DIR = flags.DEFINE_string("data_dir", "data", "Where the dataset is.", allow_override=True)
_NAME = flags.DEFINE_string("of", "real_only", "The dataset, of real pictures.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the pictures.", allow_override=True)
_COUNT = flags.DEFINE_integer("count", 2000, "Pictures, of all splits.", lower_bound=1, allow_override=True)
_STEPS = flags.DEFINE_integer("decoder_steps", 500, "Of training each decoder.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of all that is drawn.", lower_bound=0, allow_override=True)

SHARES = {"train": 0.7, "validation": 0.15, "test": 0.15}
# Builds that one split alone has.
HELD_OUT = {"shuffle4": "validation", "bilinear8": "test"}
# Pictures that decoders learn from, and of large ones so many pixels.
_LEARN_FROM, _PART = 800, 512
# Bytes of a name; file systems take 255.
_LONGEST = 150


def main(argv: Sequence[str]) -> int:
  """Trains the decoders and writes what they make; returns the exit code."""
  if argv[1:] or not (_MEDIA.value and _OUTPUT.value):
    raise app.UsageError("Say --media=FOLDER_OR_TAR and --output=FOLDER, and nothing else than flags.")

  from deepscan_jax import compilation_cache, resynthesis

  compilation_cache.switch_on()
  output, readers = Path(_OUTPUT.value), _readers(map(Path, _MEDIA.value))
  orders: dict[str, list[Order]] = {name: [] for name in resynthesis.BUILDS}
  learnt: list[str] = []
  for number, (split, share) in enumerate(SHARES.items()):
    files = _pictures(split, readers)
    rng = np.random.default_rng([_SEED.value, number])
    chosen = choose(files, round(share * _COUNT.value), rng)
    builds = [name for name in orders if HELD_OUT.get(name, split) == split]
    for place, file in enumerate(chosen):
      build = builds[place % len(builds)]
      name = file.replace("/", "__").encode()[-_LONGEST:].decode(errors="ignore")
      stem = f"{name}-{zlib.crc32(file.encode()):08x}"
      orders[build].append(Order(file, output / split / "fake" / build / stem))
    learnt = learnt or chosen[:_LEARN_FROM]
  _claim(output, sorted(str(order.stem.relative_to(output)) for each in orders.values() for order in each))
  shown: list[np.ndarray] = []
  for build, wanted in orders.items():
    missing = [order for order in wanted if not order.made()]
    if not missing:
      continue
    shown = shown or [_part(clip.frames[0]) for clip in map(media_of, (readers[f]() for f in learnt)) if clip]
    params, errors = resynthesis.train(resynthesis.BUILDS[build], shown, steps=_STEPS.value, seed=_SEED.value)
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


def _claim(output: Path, pictures: Sequence[str]) -> None:
  """Raises where the folder holds what other flags, or another division of the dataset, have made."""
  from deepscan_jax import data

  wanted = {
    "of": _NAME.value,
    "division": data.division(_NAME.value, data_dir=_DATA_DIR.value),
    "count": _COUNT.value,
    "decoder_steps": _STEPS.value,
    "choice of pictures": hashlib.sha256("\n".join(pictures).encode()).hexdigest(),
    "seed": _SEED.value,
  }
  claim_folder(output, wanted, what="pictures")


def _pictures(split: str, readers: Collection[str]) -> list[list[str]]:
  """By kind the real pictures of a split that are there."""
  from deepscan_jax import data, examples
  from deepscan_jax.datasets.media_builder import IMAGE_SUFFIXES

  rows = data.listed_examples(_NAME.value, split, data_dir=_DATA_DIR.value)
  kinds: dict[str, set[str]] = {}
  for row in rows:
    name = row["id"].rpartition("#")[0]
    if row["label"] == examples.REAL and name.lower().endswith(IMAGE_SUFFIXES):
      kinds.setdefault(row["source"], set()).add(name)
  if not kinds:
    raise app.UsageError(
      f"The {split} split of {_NAME.value} holds no real picture; give more --media to it."
    )
  found = [sorted(names & set(readers)) for _, names in sorted(kinds.items())]
  if not any(found):
    raise app.UsageError(
      f"--media has none of the {sum(map(len, kinds.values()))} {split} pictures of {_NAME.value}; give the "
      "folders or tars that it was built from."
    )
  return found


def _part(picture: np.ndarray) -> np.ndarray:
  """The middle of a large picture; all would not fit into memory."""
  top, left = (max(side - _PART, 0) // 2 for side in picture.shape[:2])
  return picture[top : top + _PART, left : left + _PART].copy()


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

  found: dict[str, Callable[[], bytes]] = {}
  for root in paths:
    for name, path, read in walk_media(root):
      if (key := f"{root.stem}/{name}") in found:
        raise app.UsageError(f"Two of --media have a file {key}; give each a name of its own.")
      found[key] = path.read_bytes if path else read
  return found


if __name__ == "__main__":
  from .__main__ import run_module

  run_module(__name__)
