"""Turns folders of media into a prepared dataset: faces found, aligned, checked, split without leaks.

    deepscan build_dataset --name=real_only --media=/path/to/photos --media=/path/to/faces.tar --data_dir=data
    deepscan build_dataset --name=real_fake_folder --media=/path/with/real/and/fake --data_dir=data
    deepscan build_dataset --name=faceforensics/c23 --media=/path/to/FaceForensics++ --data_dir=data

    deepscan build_dataset --name=fakeavceleb --media=/path/to/FakeAVCeleb_v1.2 --folds=5 --fold=2

The public datasets have a builder each, whose README says where to get the files; what follows a slash is one
of its configs. Training and evaluation find the result under the same name. With --folds, each --fold is a
dataset of its own, in a folder such as data/fold_2_of_5: what is split by hash is cut into so many parts, of
which one is test and the next validation. Official splits stay.

Files that could not be used are listed in rejected.jsonl beside the data, each with the reason. A dataset
that is there already is left as it is; --overwrite builds it again.

All cores work, one process on each (--workers), as far as the memory goes: a process takes about 1 GB. A
build that was stopped, however that was, goes on when the same command is given again: what is decoded
already lies in a folder that ends in .parts beside the dataset until it is whole. The dataset is the same
byte for byte whatever the number of processes, and whether it was stopped or not.

    deepscan build_dataset --verify --name=dfdc --data_dir=data

compares a dataset with its manifest.json, where the size and the SHA-256 of each file are written down; the
exit code is not 0 where something is damaged, missing or there without belonging to it.

With Apache Beam (`pip install 'deepscan_jax[beam]'`) a cluster builds the same dataset. The media and
data_dir must lie under the same path on every worker, on a network drive or in a bucket that is mounted
there, and the workers need this package (IMAGE stands for a container that has it). The last step, writing
what they made in its final order, is done here.

    deepscan build_dataset --name=dfdc --media=/path/to/dfdc --beam_options="FLAGS"

with FLAGS for this machine, Flink, Spark or Dataflow (tried with the first only):

    --runner=DirectRunner --direct_num_workers=2 --direct_running_mode=multi_processing
    --runner=FlinkRunner --flink_master=HOST:8081 --environment_type=DOCKER --environment_config=IMAGE
    --runner=SparkRunner --job_endpoint=HOST:8099 --environment_type=DOCKER --environment_config=IMAGE
    --runner=DataflowRunner --project=P --region=R --temp_location=gs://B/tmp --sdk_container_image=IMAGE

    deepscan build_dataset --name=real_only --data_dir=data --preview=preview.html

shows some of its training examples, and what training makes of them, on one page; with --preset, as that
preset's model sees them. The page holds pictures and voices of people.
"""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

_NAME = flags.DEFINE_string(
  "name",
  "real_only",
  "A builder: a folder in datasets/, and a config of it after a slash.",
  allow_override=True,
)
_MEDIA = flags.DEFINE_multi_string(
  "media", [], "A folder or tar file of media; may be given several times.", allow_override=True
)
_DATA_DIR = flags.DEFINE_string(
  "data_dir", "data", "Where prepared datasets are written.", allow_override=True
)
_FRAMES = flags.DEFINE_integer(
  "frames_per_clip", 32, "Frames looked at in each video.", lower_bound=1, allow_override=True
)
_FOLDS = flags.DEFINE_integer(
  "folds", 0, "For cross-validation: how many folds; 0 for one fixed split.", allow_override=True
)
_FOLD = flags.DEFINE_integer("fold", 1, "Which fold to build, from 1 on.", allow_override=True)
_PREVIEW = flags.DEFINE_string(
  "preview",
  None,
  "Show the dataset on this page of HTML; without --media, one that is built.",
  allow_override=True,
)
_PREVIEW_COUNT = flags.DEFINE_integer(
  "preview_count", 8, "Examples on that page.", lower_bound=1, allow_override=True
)
_PRESET = flags.DEFINE_string(
  "preset",
  None,
  "The preset whose model sees what is shown: a name, or a path ending in .py.",
  allow_override=True,
)
_OVERWRITE = flags.DEFINE_boolean("overwrite", False, "Build again what is there.", allow_override=True)
_WORKERS = flags.DEFINE_integer(
  "workers",
  None,
  "Processes that decode, each on one core; by default as many as there are cores and memory for.",
  lower_bound=1,
  allow_override=True,
)
_BEAM_OPTIONS = flags.DEFINE_string(
  "beam_options", None, "Flags of an Apache Beam pipeline that decodes instead.", allow_override=True
)
_VERIFY = flags.DEFINE_boolean(
  "verify", False, "Only compare what is there with its manifest.", allow_override=True
)


def main(argv: Sequence[str]) -> int:
  """Builds the dataset that the flags name; returns the exit code."""
  if argv[1:]:
    raise app.UsageError(f"Unexpected argument {argv[1]!r}; media go into --media=.")
  if not (_MEDIA.value or _VERIFY.value or _PREVIEW.value):
    raise app.UsageError("Say which media to read: --media=FOLDER_OR_TAR (may be given several times).")
  data_dir = Path(_DATA_DIR.value) / (f"fold_{_FOLD.value}_of_{_FOLDS.value}" if _FOLDS.value else "")
  if _MEDIA.value or _VERIFY.value:
    _build(data_dir)
  if _PREVIEW.value:
    _show(data_dir)
  return 0


def _build(data_dir: Path) -> None:
  from deepscan_jax.rooms import find_builder, import_room

  building = import_room("datasets.building")
  builder_class, config = find_builder(_NAME.value)
  builder = builder_class(
    config=config,
    media_paths=_MEDIA.value,
    frames_per_clip=_FRAMES.value,
    folds=_FOLDS.value,
    fold=_FOLD.value,
    data_dir=data_dir,
  )
  folder = Path(builder.data_dir)
  if _VERIFY.value:
    print(f"{folder} is as it was built: {building.verify(folder)} files have the size and SHA-256 of then.")
    return
  if folder.exists() and not _OVERWRITE.value:
    print(f"{folder} is there already; --overwrite builds it again.", file=sys.stderr)
  else:
    print(f"Building {folder} ...", file=sys.stderr, flush=True)
    builder.prepare(
      overwrite=_OVERWRITE.value,
      workers=_WORKERS.value or building.default_workers(),
      beam_options=_BEAM_OPTIONS.value,
    )
  for split, info in builder.info.splits.items():
    print(f"{split:<12}{info.num_examples:>8} examples")
  rejected = folder / "rejected.jsonl"
  if rejected.exists():
    reasons = Counter(
      json.loads(line)["reason"] for line in rejected.read_text(encoding="utf-8").splitlines()
    )
    print(
      f"{'not used':<12}{sum(reasons.values()):>8} "
      + ", ".join(f"{r}: {n}" for r, n in reasons.most_common())
    )
  print(f"written to  {folder}")


def _show(data_dir: Path) -> None:
  import dataclasses

  from deepscan_jax import preview, report
  from deepscan_jax.config import Config, load_preset

  config, inputs = Config(), None
  if _PRESET.value:
    from deepscan_jax.models.detector import detector_inputs

    config = load_preset(_PRESET.value)
    inputs = detector_inputs(config.model)
  # Weights speak of the datasets that the preset names.
  chosen = dataclasses.replace(config.data, datasets=(_NAME.value,), dataset_weights=())
  html = preview.render_html(
    chosen, data_dir=data_dir, count=_PREVIEW_COUNT.value, inputs=inputs, preset=_PRESET.value or ""
  )
  report.write_whole(_PREVIEW.value, html)
  print(f"shown on    {_PREVIEW.value}; {preview.WARNING}")


if __name__ == "__main__":
  from .__main__ import run_module

  run_module(__name__)
