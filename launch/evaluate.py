"""Measures a model on data that chose nothing of it, and writes an evaluation card.

    deepscan evaluate --checkpoint=runs/mine/best --datasets=real_fake_folder --split=test --workdir=card
    deepscan evaluate --checkpoint=runs/mine/best --media=/path/with/real/and/fake --workdir=card
    deepscan evaluate --media=/path/to/FaceForensics++ --name=faceforensics/c23 --preprocessing=deepfakebench
    deepscan evaluate --checkpoint=runs/mine/best --datasets=celeb_df --perturb=all --workdir=card
    deepscan evaluate --compare a/card.json b/card.json

The card (card.json, card.html and card.md in --workdir) gives frames, windows, tracks and videos: AUC, AP,
EER, rates at the threshold that validation fixed, calibration, all with 95 % intervals by a bootstrap over
groups (a person, a source video), and beside them the share of files that got a score; files without a score
are counted with their reasons and are in no figure. Nothing is fitted on these files. Of datasets that hold
real examples alone, pairs with pseudo-fakes are scored: "plain" as the detector crops them, "degraded" after
the blur, noise and compression of training; "false alarms" are the untouched real ones that are called
manipulated.

--media sends raw files through the whole detector, which also gives the time that each stage takes.
--preprocessing cuts and counts as a published protocol does: ffpp, deepfakebench, sbi, dfdc.

--perturb scores examples of prepared datasets again under growing damage, at five levels each, and adds the
AUC against the level to the card: saturation, contrast, block, noise, blur, pixelation, resize, jpeg, h264,
platform; for models that listen mp3, opus, telephone, sound_noise.

A card holds its protocol and a hash of it. --compare tests two cards on the files that both scored (a paired
bootstrap over groups) and refuses cards of different protocols; more cards give a table of train sets by
test sets beside. A model is not evaluated on a split that it was trained on or selected with.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

_CHECKPOINT = flags.DEFINE_string(
  "checkpoint",
  None,
  "A model's folder, such as WORKDIR/best; without it the model that comes with the package.",
  allow_override=True,
)
_MODEL_PATH = flags.DEFINE_string("model_path", None, "The same as --checkpoint.", allow_override=True)
_DATASETS = flags.DEFINE_list(
  "datasets", None, "Prepared datasets; without it those that the model was trained on.", allow_override=True
)
_DATA_DIR = flags.DEFINE_string(
  "data_dir", "data", "Where build_dataset wrote the datasets.", allow_override=True
)
_SPLIT = flags.DEFINE_enum(
  "split",
  None,
  ["validation", "test", "all"],
  "Which split to measure on (test; of --media without --name, all of the folder).",
)
_MEDIA = flags.DEFINE_multi_string(
  "media",
  None,
  "A folder of raw media to score in place of datasets; may be given again.",
  allow_override=True,
)
_NAME = flags.DEFINE_string(
  "name",
  None,
  "The builder that knows the labels of --media; without it real_fake_folder: real/ and fake/.",
  allow_override=True,
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Write card.json, card.html and card.md to this folder.", allow_override=True
)
_OUTPUT_JSON = flags.DEFINE_string("output_json", None, "Write the card to this file.", allow_override=True)
_PREPROCESSING = flags.DEFINE_string(
  "preprocessing", "own", "How raw media are cut and counted: own, ffpp, deepfakebench, sbi or dfdc."
)
_LEVEL = flags.DEFINE_enum(
  "level", None, ["frame", "window", "track", "video"], "Level of the headline (video, or the preset's)."
)
_FRAMES = flags.DEFINE_integer(
  "frames", 32, "Frames of each video of --media.", lower_bound=1, upper_bound=4096, allow_override=True
)
_PREVALENCE = flags.DEFINE_multi_float(
  "prevalence",
  None,
  "Share of fakes for which PPV, NPV and false alarms per 10,000 are worked out (0.01).",
  allow_override=True,
)
_PAIRS = flags.DEFINE_boolean(
  "pairs", None, "Make pairs with pseudo-fakes of real examples (default: where a dataset has no fakes)."
)
_FAITHFULNESS = flags.DEFINE_integer(
  "faithfulness",
  100,
  "Of how many pseudo-fakes the region maps are tested, where pairs are scored; 0: of none.",
  lower_bound=0,
)
_DRAWS = flags.DEFINE_integer("draws", 1000, "Resamples of the bootstrap.", lower_bound=100)
_PERTURB = flags.DEFINE_list(
  "perturb", [], "Damage under which prepared examples are scored again: all, or names such as blur,h264."
)
_PERTURB_LIMIT = flags.DEFINE_integer(
  "perturb_limit", 400, "Of how many examples at most, evenly spread; 0: all.", lower_bound=0
)
_HIDE_NAMES = flags.DEFINE_boolean(
  "hide_names",
  False,
  "Write hashes in place of the names of files and groups, so that the card can be published.",
)
_COMPARE = flags.DEFINE_boolean("compare", False, "Compare the cards that are given as files.")
_DIFFERENT = flags.DEFINE_boolean(
  "allow_different_protocols", False, "With --compare: compare cards of different protocols all the same."
)
_FILES_PER_LINE = 20
_STEPS_PER_LINE = 5


def main(argv: Sequence[str]) -> int:
  """Evaluates the model that the flags name, or compares cards; returns the exit code."""
  if _COMPARE.value:
    return _compare(argv[1:])
  if argv[1:]:
    raise app.UsageError(f"Unexpected argument {argv[1]!r}; see --help.")
  if _CHECKPOINT.value and _MODEL_PATH.value and _CHECKPOINT.value != _MODEL_PATH.value:
    raise app.UsageError("--checkpoint and --model_path are the same flag; give one of them.")
  if _MEDIA.value and _DATASETS.value:
    raise app.UsageError("Give either --datasets or --media; what --media holds, --name says.")
  if _SPLIT.value == "all" and not _MEDIA.value:
    raise app.UsageError("--split=all goes with --media; prepared datasets are measured split by split.")
  if _NAME.value and not _MEDIA.value:
    raise app.UsageError("--name goes with --media; prepared datasets go into --datasets.")
  if _PERTURB.value and _MEDIA.value:
    raise app.UsageError(
      "--perturb goes with prepared datasets; of raw files `deepscan detect --stability` says how far each "
      "verdict holds."
    )
  if _OUTPUT_JSON.value and not Path(_OUTPUT_JSON.value).parent.is_dir():
    # Before the minutes that measuring takes.
    raise app.UsageError(f"Cannot write {_OUTPUT_JSON.value}: there is no such folder.")
  if _WORKDIR.value:
    Path(_WORKDIR.value).mkdir(parents=True, exist_ok=True)

  from deepscan_jax import card_report, compilation_cache, protocols, scoring

  compilation_cache.switch_on()
  # A folder of one's own has no split, unless one asks for it.
  own_folder = _MEDIA.value and not _NAME.value
  split = _SPLIT.value or ("all" if own_folder else "test")
  about = {
    "split": split,
    "preprocessing": _PREPROCESSING.value,
    "level": _LEVEL.value,
    "prevalences": _PREVALENCE.value or [0.01],
    "draws": _DRAWS.value,
  }
  model = _CHECKPOINT.value or _MODEL_PATH.value
  if _MEDIA.value:
    name = _NAME.value or "real_fake_folder"
    card = scoring.evaluate_model(
      model,
      # Names tell what a model has seen, and everybody's own folder has the same one.
      datasets=[protocols.OWN_FILES if own_folder else name],
      media_files=_media_files(name, split),
      frames=_FRAMES.value,
      report_progress=_say_progress,
      **about,
    )
  else:
    card = scoring.evaluate_model(
      model,
      datasets=_DATASETS.value or (),
      data_dir=_DATA_DIR.value,
      pairs=_PAIRS.value,
      map_examples=_FAITHFULNESS.value,
      perturbations=_PERTURB.value,
      perturb_limit=_PERTURB_LIMIT.value,
      report_step=_say_step,
      **about,
    )
  print(card_report.summary(card))
  _write(card)
  return 0


def _media_files(name: str, split: str) -> list:
  """The files of a split of --media, or of "all" splits."""
  import tempfile

  from deepscan_jax.rooms import find_builder

  builder_class, config = find_builder(name)
  # Nothing is prepared, but a builder wants a folder of its own.
  with tempfile.TemporaryDirectory() as data_dir:
    splits = builder_class(config=config, media_paths=_MEDIA.value, data_dir=data_dir).split_files()
  files = [file for name, chosen in splits.items() if split in ("all", name) for file in chosen]
  if not files:
    raise ValueError(f"{name} has no files in split {split}; there are {', '.join(splits)}.")
  return files


def _write(card: dict) -> None:
  from deepscan_jax import card_report, report
  from deepscan_jax.card import markdown_header, markdown_row, without_names

  if _HIDE_NAMES.value:
    card = without_names(card)
  text = json.dumps(card, indent=1, allow_nan=False) + "\n"
  if _OUTPUT_JSON.value:
    report.write_whole(_OUTPUT_JSON.value, text)
  if _WORKDIR.value:
    folder = Path(_WORKDIR.value)
    report.write_whole(folder / "card.json", text)
    report.write_whole(folder / "card.html", card_report.render_html(card))
    told = f"{markdown_header()}\n{markdown_row(card)}\n"
    if "robustness" in card:
      told += f"\n{card_report.robustness_markdown(card)}\n"
    report.write_whole(folder / "card.md", told)


def _compare(names: Sequence[str]) -> int:
  from deepscan_jax import card, card_report, report

  if len(names) < 2:
    raise app.UsageError("--compare needs two cards: deepscan evaluate --compare a/card.json b/card.json")
  cards = []
  for name in names:
    try:
      found = json.loads(Path(name).read_text(encoding="utf-8"))
    except ValueError as error:
      raise ValueError(f"{name} is no evaluation card ({error}).") from error
    card.check_card(found, name)
    cards.append(found)
  results = []
  for name, other in zip(names[1:], cards[1:], strict=True):
    result = card.compare(cards[0], other, allow_different=_DIFFERENT.value, draws=_DRAWS.value)
    print(f"{names[0]} and {name}:\n")
    print(card.comparison_markdown(result) + "\n")
    results.append(result)
  print(
    card_report.cross_markdown(card.cross_table(*(row for c in cards for row in c["cross_dataset"]["rows"])))
  )
  if _OUTPUT_JSON.value:
    text = json.dumps(results[0] if len(results) == 1 else results, indent=1, allow_nan=False)
    report.write_whole(_OUTPUT_JSON.value, text + "\n")
  return 0


def _say_progress(done: int, total: int) -> None:
  if done % _FILES_PER_LINE == 0 and done < total:
    print(f"{done} of {total} files scored", file=sys.stderr, flush=True)


def _say_step(done: int, total: int) -> None:
  if done % _STEPS_PER_LINE == 0 or done == total:
    print(f"{done} of {total} steps of damage scored", file=sys.stderr, flush=True)


if __name__ == "__main__":
  from .__main__ import run_module

  run_module(__name__)
