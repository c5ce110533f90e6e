"""What every dataset builder shares: media files in, examples out.

A builder says where its files are and what is known of each (`MediaFile`); this module decodes them, finds
the faces, cuts the examples (through deepscan_jax.examples, exactly as the detector does) and writes them as
array_record, without TensorFlow. What could not be used is listed in `rejected.jsonl` beside the data, with
the reason. On which cores, and how a build that was stopped goes on, is said in building.py.

Forms. The same files can be cut in several ways, and a dataset's name says how (`Form`): "real_only" holds
single faces and, apart from them, windows of sound, "real_only/clips" windows of 16 faces with the mouths and
the sound of the same time, "faceforensics/c23-clips-jpeg95" the same of one of the builder's own configs with
pictures that were encoded once more. So two forms are never mixed up. Builders of one's own files take a
word of small letters, digits and underscores in the place of a config, so that there may be several
collections: "real_only/press", "real_only/press-clips".

Splits. A file goes where `MediaFile.split` says: where the official lists put it, or where the builder does.
The others are split 70/15/15 by a stable hash, after all groups that share an identity were joined. Joining
needs identities that are linked sparsely, such as the pairs of FaceForensics++. Where forgeries link everyone
to everyone (Celeb-DF, the actors of DeepFakeDetection, FakeAVCeleb), joining would put the whole dataset into
one split; there a builder hashes each person (`common_split`) and leaves out, and lists, the forgeries whose
people are in different splits. That costs about four forgeries of ten, and leaves validation and test few of
them; but forgeries outnumber the real videos of those sets many times, and a leak of identities would make
every figure worthless.
"""

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import io
import logging
import os
import re
import shutil
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import dataset_builder, dataset_metadata, example_serializer

from deepscan_jax import copies, examples, media
from deepscan_jax.config import WindowConfig
from deepscan_jax.files import reading_tar

from . import building

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")
SOUND_SUFFIXES = (".wav", ".flac", ".mp3", ".m4a", ".ogg", ".aac", ".opus")
MEDIA_SUFFIXES = IMAGE_SUFFIXES + VIDEO_SUFFIXES + SOUND_SUFFIXES
# What share of the groups goes where: (split, share) pairs.
Shares = tuple[tuple[str, float], ...]
SPLITS: Shares = (("train", 0.70), ("validation", 0.15), ("test", 0.15))
# Of an official training set, where there is no official validation set.
TRAIN_SPLITS: Shares = (("train", 0.85), ("validation", 0.15))

# On face crops twice as quick to write as OpenCV's choice, a third quicker to read, and no larger.
_PNG_SETTINGS = (
  *(cv2.IMWRITE_PNG_COMPRESSION, 1),
  *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP),
  *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE),
)
# Pictures found together in one call of the face detector.
_PICTURES_AT_ONCE = 32
# Threads that look for copies; each holds one file.
_READERS = 4
# Clips that are stored as pictures carry no clock; this is the rate of most broadcasts.
_FRAMES_PER_S = 25.0
# Names that a warning gives before it says how many more there are.
_NAMES_IN_WARNING = 5
# Windows of sound that are cut out of one file.
_SOUND_WINDOWS = 8
# So much of a forged word must be heard for a window to be forged, and so many forged faces be seen: a word
# is shorter than a window.
_FORGED_SOUND_S = 0.1
_FORGED_FACES = 2


@dataclasses.dataclass(frozen=True)
class Form:
  """How examples are cut and stored, as the end of a dataset's name says it.

  Attributes:
    variant: the builder's own config, such as "c23", or the name of a collection; "" where it has none.
    window: what an example holds.
    quality: of JPEG, 1 to 100; 0: lossless PNG.
  """

  variant: str = ""
  window: WindowConfig = WindowConfig(mouth_frames=0)  # noqa: RUF009 - immutable
  quality: int = 0

  @classmethod
  def parse(cls, name: str) -> "Form":
    """The form that a config's name says: dash-separated [variant], "clips", "jpegNN", in this order.

    Raises:
      ValueError: a JPEG quality that is none.
    """
    parts = name.split("-") if name else []
    form = cls()
    if parts and (match := re.fullmatch(r"jpeg(\d+)", parts[-1])):
      if not 1 <= int(match[1]) <= 100:
        raise ValueError(f"{name!r} asks for JPEG quality {match[1]}; give 1 to 100.")
      form, parts = dataclasses.replace(form, quality=int(match[1])), parts[:-1]
    if parts and parts[-1] == "clips":
      form, parts = dataclasses.replace(form, window=WindowConfig(frames=16)), parts[:-1]
    return dataclasses.replace(form, variant="-".join(parts))

  @property
  def encoding(self) -> str:
    """ "png" or "jpeg"."""
    return "jpeg" if self.quality else "png"

  def encode(self, image: np.ndarray) -> bytes:
    """The bytes of an RGB picture [height, width, 3] uint8: lossless and quickly, or JPEG."""
    settings = [cv2.IMWRITE_JPEG_QUALITY, self.quality] if self.quality else _PNG_SETTINGS
    done, data = cv2.imencode(f".{self.encoding}", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), settings)
    if not done:
      raise ValueError(f"A picture of shape {image.shape} could not be encoded.")
    return data.tobytes()


@dataclasses.dataclass(frozen=True)
class MediaFile:
  """One file and what is known of it.

  Attributes:
    id: unique in the dataset and stable, such as the path below the dataset's root.
    path: where it lies; None for a member of an archive, whose bytes `read` returns.
    label: examples.REAL, or examples.FAKE where anything of it is forged.
    group: files of one group (a person, a source video) never meet in two splits.
    source: where it comes from, for figures by source.
    method: how a fake was made; "" for a real one.
    read: returns the bytes of a member of an archive.
    identities: the people, or the source videos where people are not known, that are seen in it. Groups that
      share one are joined before they are split by hash.
    split: "train", "validation" or "test" where official lists or the builder decide; None: by hash.
    frames: for a clip that is stored as pictures, one reader of bytes a picture, in order of time at 25 a
      second; path and read are then None.
    forged_spans_s: (start, end) of where its faces are forged, in seconds; None: throughout. Genuine faces of
      a forgery are not used.
    face_label: of its faces; None: the label.
    sound_label: of its sound; None: real where the file is real, unknown where a film is not.
    forged_sound_spans_s: as forged_spans_s, of its sound.
    sound_path: a file with its sound, where it has none of its own.
  """

  id: str
  path: Path | None
  label: int
  group: str
  source: str
  method: str = ""
  read: Callable[[], bytes] | None = None
  identities: tuple[str, ...] = ()
  split: str | None = None
  frames: tuple[Callable[[], bytes], ...] = ()
  forged_spans_s: tuple[tuple[float, float], ...] | None = None
  face_label: int | None = None
  sound_label: int | None = None
  forged_sound_spans_s: tuple[tuple[float, float], ...] | None = None
  sound_path: Path | None = None

  @property
  def is_image(self) -> bool:
    """By the name's ending; whether it really is one shows when it is decoded."""
    return not self.frames and self.id.lower().endswith(IMAGE_SUFFIXES)

  @property
  def is_sound(self) -> bool:
    """By the name's ending."""
    return not self.frames and self.id.lower().endswith(SOUND_SUFFIXES)

  @property
  def labels(self) -> dict[str, int]:
    """face_label and sound_label of its examples."""
    known = self.is_sound or self.label == examples.REAL
    heard = self.label if known else examples.UNKNOWN
    return {
      "face_label": self.label if self.face_label is None else self.face_label,
      "sound_label": heard if self.sound_label is None else self.sound_label,
    }


class MediaBuilder(dataset_builder.FileReaderBuilder, skip_registration=True):
  """A TFDS builder of examples; a subclass gives `media_files`.

  Args:
    media_paths: folders or tar files that the user points at.
    frames_per_clip: how many frames, spread evenly, are looked at in a video; in the form of clips, one
      window for eight of them.
    config: one of the builder's own, or the name of a collection, and the form, such as "c40-clips"; None for
      the first and single faces.
    folds: for cross-validation, into how many parts what a hash splits is cut; 0 for one fixed split.
    fold: which part is test, 1 to folds; the next one is validation. With an official test set, the part is
      validation. Splits that are official stay as they are.
    kwargs: of tfds.core.DatasetBuilder.

  Attributes:
    settings: the arguments above by name, but for kwargs.
    COLLECTIONS: whether a config may be any word, the name of a collection.
  """

  COLLECTIONS = False
  VERSION = tfds.core.Version("2.1.0")
  RELEASE_NOTES: ClassVar = {
    "1.0.0": "Single faces.",
    "2.0.0": "Windows of faces, mouths and sound, facts of the file, a label for faces and for sound.",
    "2.1.0": (
      "Who is seen (identities), so that training can divide it into folds that share nobody; sizes of "
      "faces in their files."
    ),
  }

  def __init__(
    self,
    *,
    media_paths: Iterable[str | Path] = (),
    frames_per_clip: int = 32,
    folds: int = 0,
    fold: int = 1,
    config: str | None = None,
    **kwargs,
  ):
    self.settings = {
      "media_paths": tuple(media_paths),
      "frames_per_clip": frames_per_clip,
      "folds": folds,
      "fold": fold,
    }
    self._made_with = {**self.settings, "config": config, **kwargs}
    self.form = self.form_of(config or "")
    self.splits, self.train_splits = fold_shares(folds, fold) if folds else (SPLITS, TRAIN_SPLITS)
    self._media_paths = tuple(Path(path) for path in self.settings["media_paths"])
    self._frames_per_clip = frames_per_clip
    self._rejected: list[dict] = []
    self._parts: Mapping[str, Sequence[Path]] = {}
    if config and config not in self.builder_configs:
      config = tfds.core.BuilderConfig(name=config)
    super().__init__(file_format="array_record", config=config, **kwargs)

  @classmethod
  def form_of(cls, name: str) -> Form:
    """What a config's name asks for.

    Raises:
      ValueError: it names a config of the builder that there is not, and the sentence lists those that there
        are; or no collection can be called so.
    """
    form, own = Form.parse(name), [config.name for config in cls.BUILDER_CONFIGS]
    if form.variant and cls.COLLECTIONS:
      # "jpeg95-clips", in the wrong order, would be a collection called "jpeg95".
      if not re.fullmatch(r"(?!clips$|jpeg\d+$)[a-z0-9_]+", form.variant):
        raise ValueError(
          f"A collection cannot be called {form.variant!r}: give small letters, digits and underscores, as "
          f"in {cls.name}/mine, and after it, joined by dashes, clips and jpeg1 to jpeg100."
        )
    elif form.variant and form.variant not in own:
      raise ValueError(
        f"{cls.name} has no config {name!r}; a name is joined by dashes of "
        f"{'one of ' + ', '.join(own) + ', ' if own else ''}clips and jpeg1 to jpeg100, each of which may be "
        "left out."
      )
    return form if form.variant or not own else dataclasses.replace(form, variant=own[0])

  def __reduce__(self) -> tuple:
    return _make_again, (type(self), self._made_with)

  def media_files(self, paths: tuple[Path, ...]) -> Iterable[MediaFile]:
    """The dataset's files in a stable order; what it cannot use goes to `leave_out`."""
    raise NotImplementedError(f"{type(self).__name__} must say where its files are.")

  @property
  def rejected(self) -> tuple[dict, ...]:
    """What was not used: {"id", "reason", "message"} each."""
    return tuple(self._rejected)

  def leave_out(self, name: str, reason: str, message: str) -> None:
    """Notes a file that is not used; it will be listed in rejected.jsonl."""
    self._rejected.append({"id": name, "reason": reason, "message": message})

  def leave_out_absent(self, name: str) -> None:
    """Notes a file that a list of the dataset names and that is not there."""
    self.leave_out(name, "absent", "A list of the dataset names it, and it is not there.")

  def leave_out_between_splits(self, name: str, identities: Iterable[str]) -> None:
    """Notes a forgery whose people are in different splits."""
    self.leave_out(name, "between_splits", f"{' and '.join(identities)} are in different splits.")

  def split_files(self) -> dict[str, list[MediaFile]]:
    """The files of each split that has any, listed and grouped but not decoded.

    Warns of files that are named and absent, and of identities that meet in several splits.

    Raises:
      FileNotFoundError: the paths do not hold this dataset.
      ValueError: there are no files.
    """
    self._rejected = []
    files = join_identities(join_copies(self.media_files(self._media_paths)))
    if absent := [row["id"] for row in self._rejected if row["reason"] == "absent"]:
      more = len(absent) - _NAMES_IN_WARNING
      logging.warning(
        "%s: %d files are named in the lists and are not there: %s%s.",
        self.name,
        len(absent),
        ", ".join(absent[:_NAMES_IN_WARNING]),
        f" and {more} more (see rejected.jsonl)" if more > 0 else "",
      )
    if not files:
      places = ", ".join(map(str, self._media_paths)) or "an empty list of paths"
      raise ValueError(f"No pictures, videos or sound in {places}.")
    by_split: dict[str, list[MediaFile]] = {name: [] for name, _ in SPLITS}
    for file in files:
      by_split[file.split or split_of(file.group, self.splits)].append(file)
    homes: dict[str, set[str]] = {}
    for split, chosen in by_split.items():
      for identity in {identity for file in chosen for identity in file.identities}:
        homes.setdefault(identity, set()).add(split)
    shared = Counter(" and ".join(sorted(splits)) for splits in homes.values() if len(splits) > 1)
    for splits, count in sorted(shared.items()):
      logging.warning(
        "%s: %d of %d identities are in %s, as the official lists have it.",
        self.name,
        count,
        len(homes),
        splits,
      )
    # A small dataset may have no group in a split, and TFDS refuses to write an empty one.
    return {split: chosen for split, chosen in by_split.items() if chosen}

  @classmethod
  def get_metadata(cls) -> dataset_metadata.DatasetMetadata:
    """README, citations and tags, from the folder of the builder's file.

    TFDS looks for them below the top-level package, where an editable install does not have them.
    """
    return dataset_metadata.load(epath.Path(inspect.getfile(cls)).parent)

  def _info(self) -> tfds.core.DatasetInfo:
    size = examples.faces.STORED_SIZE

    def pictures(side: int) -> tfds.features.FeatureConnector:
      picture = tfds.features.Image(shape=(side, side, 3), encoding_format=self.form.encoding)
      return tfds.features.Sequence(picture)

    def array(*shape: int | None, dtype: type) -> tfds.features.FeatureConnector:
      return tfds.features.Tensor(shape=shape, dtype=dtype)

    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        {
          "faces": pictures(size),
          "face_mask": array(None, dtype=np.bool_),
          "landmarks": array(None, 468, 2, dtype=np.float32),
          "frame_times_s": array(None, dtype=np.float32),
          "face_sizes_px": array(None, dtype=np.float32),
          "mouths": pictures(examples.MOUTH_SIZE),
          "mouth_mask": array(None, dtype=np.bool_),
          # As bytes: one by one, samples would take eight bytes each.
          "sound": tfds.features.Tensor(shape=(None,), dtype=np.int16, encoding=tfds.features.Encoding.BYTES),
          "start_s": tfds.features.Scalar(np.float32),
          "file_facts": array(None, dtype=np.float32),
          "file_facts_mask": array(None, dtype=np.bool_),
          "label": tfds.features.ClassLabel(names=["real", "fake"]),
          "face_label": tfds.features.Scalar(np.int32),
          "sound_label": tfds.features.Scalar(np.int32),
          "id": tfds.features.Text(),
          "group": tfds.features.Text(),
          # A name a line.
          "identities": tfds.features.Text(),
          "source": tfds.features.Text(),
          "method": tfds.features.Text(),
        }
      )
    )

  def _download_and_prepare(self, dl_manager, download_config) -> None:
    """Writes everything that belongs to the dataset; its folder gets its name when this is done."""
    del dl_manager, download_config  # Nothing is downloaded: the user points at the files.
    self.info.set_splits(building.write_splits(self, self._parts))
    self.info.download_size = 0
    folder = Path(self.data_dir)
    self.info.write_to_directory(folder)
    building.write_rejected(folder, self._rejected)
    building.write_manifest(self, folder)

  def encode_examples(self, files: Iterable[MediaFile]) -> Iterator[tuple[str, bytes]]:
    """The (key, serialized example) pairs of files; `rejected` then lists what these files left out."""
    self._rejected = []
    features = self.info.features
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    for key, example in self._examples_of(list(files)):
      # In order of key, which is otherwise another one in each process.
      yield (
        key,
        serializer.get_tf_example(features.encode_example(example)).SerializeToString(deterministic=True),
      )

  def _examples_of(self, files: list[MediaFile]) -> Iterator[tuple[str, dict]]:
    pictures = [file for file in files if file.is_image]
    for start in range(0, len(pictures), _PICTURES_AT_ONCE):
      yield from self._picture_examples(pictures[start : start + _PICTURES_AT_ONCE])
    for file in files:
      if not file.is_image:
        yield from self._video_examples(file)

  def _picture_examples(self, files: list[MediaFile]) -> Iterator[tuple[str, dict]]:
    clips: list[tuple[MediaFile, media.Clip]] = []
    for file in files:
      try:
        clips.append(
          (
            file,
            media.decode_image_bytes(file.read())
            if file.read
            else media.decode_clip(file.path, trusted=True),
          )
        )
      except media.MediaError as error:
        self._reject(file, error.reason, str(error))
    for (file, clip), subjects in zip(
      clips, examples.find_subjects_in_pictures([c for _, c in clips]), strict=True
    ):
      yield from self._subject_examples(file, clip, subjects)

  def _video_examples(self, file: MediaFile) -> Iterator[tuple[str, dict]]:
    """Of a video or a sound file."""
    spans = file.forged_spans_s
    if spans is None and self.form.window.is_sequence:
      spans = file.forged_sound_spans_s  # Where the voice alone is forged, its faces are looked at there.
    plan = examples.sampling_plan(self.form.window, frames=self._frames_per_clip, spans_s=spans or ())
    try:
      if file.frames:
        clip = _clip_of_pictures(file, plan)
      else:
        clip = (
          media.decode_bytes(file.read(), plan=plan)
          if file.read
          else media.decode_clip(file.path, plan=plan, trusted=True)
        )
    except media.MediaError as error:
      self._reject(file, error.reason, str(error))
      return
    if file.sound_path:
      try:
        heard = media.decode_clip(file.sound_path, trusted=True)
        clip = dataclasses.replace(clip, waveform=heard.waveform)
      except media.MediaError as error:
        self._reject(file, f"sound_{error.reason}", f"It is used without {file.sound_path.name}: {error}")
    shown = False
    if len(clip.frames):
      for example in self._subject_examples(file, clip, examples.find_subjects(clip)):
        shown = True
        yield example
    # Windows that last hold the sound of their time already.
    if not (shown and self.form.window.is_sequence):
      yield from self._sound_examples(file, clip)

  def _subject_examples(
    self, file: MediaFile, clip: media.Clip, subjects: list[examples.Subject]
  ) -> Iterator[tuple[str, dict]]:
    if not subjects:
      self._reject(file, "no_face", "No face was found.")
    for person, subject in enumerate(subjects):
      cut = examples.face_windows(subject, clip, window=self.form.window)
      if not cut:
        codes = sorted({code for reasons in subject.reasons for code in reasons})
        self._reject(file, "+".join(codes), f"No sighting of person {person} passes the quality gate.")
      elif file.forged_spans_s is not None:
        cut = [example for example in cut if _is_forged(example, file.forged_spans_s)]
        if not cut:
          self._reject(file, "no_forged_frame", f"No frame of person {person} is in a forged part.")
      for index, example in enumerate(cut):
        heard = _sound_label(example, file)
        yield self._example(file, f"{person}.{index}", {**example, **file.labels, "sound_label": heard})

  def _sound_examples(self, file: MediaFile, clip: media.Clip) -> Iterator[tuple[str, dict]]:
    wanted = {
      "window": self.form.window,
      "most": _SOUND_WINDOWS,
      "spans_s": file.forged_sound_spans_s or (),
    }
    cut = examples.sound_windows(clip, **wanted)
    if not cut and file.is_sound and (problem := examples.sound_problem(clip, **wanted)):
      self._reject(file, problem, "It holds no speech that is long and loud enough to be judged.")
    for index, example in enumerate(cut):
      yield self._example(file, f"sound.{index}", {**example, **file.labels})

  def _example(self, file: MediaFile, place: str, example: dict) -> tuple[str, dict]:
    key = f"{file.id}#{place}"
    encoded = {name: [io.BytesIO(self.form.encode(p)) for p in example[name]] for name in ("faces", "mouths")}
    facts = {"id": key, "group": file.group, "source": file.source, "method": file.method}
    facts["identities"] = "\n".join(file.identities)
    return key, {**example, **encoded, **facts, "label": file.label}

  def _reject(self, file: MediaFile, reason: str, message: str) -> None:
    self.leave_out(file.id, reason, message)
    # Evaluation counts the files of a split that get no score, real and fake ones apart.
    split = file.split or split_of(file.group, self.splits)
    facts = {"split": split, "label": file.label, "method": file.method, "source": file.source}
    self._rejected[-1] |= facts

  def prepare(self, *, overwrite: bool = False, workers: int = 0, beam_options: str | None = None) -> None:
    """Builds the dataset, with rejected.jsonl and manifest.json beside it; arguments as of building.build."""
    building.build(self, overwrite=overwrite, workers=workers, beam_options=beam_options)

  def write(self, parts: Mapping[str, Sequence[Path]], rejected: Iterable[dict]) -> None:
    """Writes the dataset from the parts of each split (building.py), and what was `rejected` beside it."""
    self._parts, self._rejected = parts, list(rejected)
    # TFDS announces a download, and nothing is downloaded.
    with contextlib.redirect_stdout(io.StringIO()):
      self.download_and_prepare()


def _make_again(builder_class: type[MediaBuilder], settings: dict) -> MediaBuilder:
  """A builder in another process."""
  return builder_class(**settings)


def fold_shares(folds: int, fold: int) -> tuple[Shares, Shares]:
  """Shares for one fold of a cross-validation: without and with an official test set.

  Raises:
    ValueError: fewer than three folds, or no such fold.
  """
  if folds < 3 or not 1 <= fold <= folds:
    raise ValueError(f"There is no fold {fold} of {folds}; give 3 folds or more, and a fold from 1 to them.")
  parts = ["train"] * folds
  parts[fold - 1] = "validation"
  of_train = tuple((part, 1 / folds) for part in parts)
  parts[fold - 1], parts[fold % folds] = "test", "validation"
  return tuple((part, 1 / folds) for part in parts), of_train


def split_of(group: str, shares: Shares = SPLITS) -> str:
  """The split of a group: a stable function of its name and the shares alone."""
  position = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64
  for name, share in shares:
    if position < share:
      return name
    position -= share
  return shares[-1][0]


def common_split(identities: Iterable[str], shares: Shares = SPLITS) -> str | None:
  """The split that all of the identities have by hash; None where they differ."""
  splits = {split_of(identity, shares) for identity in identities}
  return splits.pop() if len(splits) == 1 else None


def find_root(path: Path, names: Iterable[str], *, below: Iterable[str] = (), layout: str) -> Path:
  """The folder that holds one of `names`: the path itself, or one of its folders `below`.

  Raises:
    FileNotFoundError: no such folder; the sentence gives the layout that was expected.
  """
  names = tuple(names)
  for folder in (path, *(path / name for name in below)):
    if any((folder / name).exists() for name in names):
      return folder
  raise FileNotFoundError(f"{path} has none of {', '.join(names)}; expected {layout}")


def warn_of_counts(dataset: str, found: Mapping[str, int], official: Mapping[str, int]) -> None:
  """Warns, kind by kind, where the files that were found are not as many as the official ones.

  Args:
    dataset: its name.
    found: how many files there are of each kind (class, method).
    official: how many there should be.
  """
  differing = [
    f"{kind} {found.get(kind, 0):,} of {count:,}"
    for kind, count in official.items()
    if found.get(kind, 0) != count
  ]
  if differing:
    logging.warning("%s: not as many files as the official set has: %s.", dataset, ", ".join(differing))


def walk_media(root: Path) -> Iterator[tuple[str, Path | None, Callable[[], bytes] | None]]:
  """The media below a folder or in a tar file, in order of name.

  Yields:
    (name, path, None) for a file of a folder, (name, None, read) for a member of a tar file: read() fetches
    its bytes from the archive whenever they are wanted.

  Raises:
    FileNotFoundError: root is neither a folder nor a tar file.
    ValueError: the tar file is damaged.
  """
  if root.is_dir():
    for path in sorted(root.rglob("*")):
      if path.is_file() and path.suffix.lower() in MEDIA_SUFFIXES:
        yield path.relative_to(root).as_posix(), path, None
  elif root.is_file() and tarfile.is_tarfile(root):
    with reading_tar(root):
      state = root.stat().st_mtime_ns
      archive = _open_archive(root, state)
      members = sorted((m for m in archive if m.isfile()), key=lambda m: m.name)
    for member in members:
      if member.name.lower().endswith(MEDIA_SUFFIXES):
        yield (
          member.name.removeprefix("./"),
          None,
          functools.partial(_read_member, root, state, member.offset_data, member.size),
        )
  else:
    raise FileNotFoundError(f"{root} is neither a folder nor a tar file; give the path of what you unpacked.")


def join_copies(files: Iterable[MediaFile]) -> list[MediaFile]:
  """Gives groups that share a copy of a file one common name, so that no copy crosses a split.

  Pictures are copies where they are nearly equal (deepscan_jax.copies), clips and sound files where their
  bytes are equal. Of these, files whose split is decided are not compared: they stay where they are.
  """
  files = list(files)
  groups = _Joined(file.group for file in files)
  pictures = [file for file in files if file.is_image]
  # Reading and decoding leave Python to other threads.
  with ThreadPoolExecutor(_READERS) as threads:
    hashes = threads.map(_difference_hash, pictures)
    hashed = [(file, bits) for file, bits in zip(pictures, hashes, strict=True) if bits is not None]
  bits = np.array([bits for _, bits in hashed], np.uint8).reshape(len(hashed), copies.HASH_BYTES)
  for i in range(len(hashed) - 1):
    for j in np.flatnonzero(copies.copies_of(bits[i], bits[i + 1 :])):
      groups.join(hashed[i][0].group, hashed[i + 1 + j][0].group)
  for first, *others in _equal_files(files):
    for other in others:
      groups.join(first.group, other.group)
  return [dataclasses.replace(file, group=groups.root(file.group)) for file in files]


def join_identities(files: Iterable[MediaFile]) -> list[MediaFile]:
  """Gives groups that share an identity one common name; files whose split is decided keep theirs."""
  files = list(files)
  open_files = [file for file in files if file.split is None]
  groups = _Joined(file.group for file in open_files)
  first_group: dict[str, str] = {}
  for file in open_files:
    for identity in file.identities:
      groups.join(first_group.setdefault(identity, file.group), file.group)
  return [
    dataclasses.replace(file, group=groups.root(file.group)) if file.split is None else file for file in files
  ]


class _Joined:
  """Names in disjoint sets (union-find); a set goes by its first name in alphabetical order."""

  def __init__(self, names: Iterable[str]):
    self._parent = {name: name for name in names}

  def root(self, name: str) -> str:
    parent = self._parent
    while parent[name] != name:
      parent[name] = parent[parent[name]]
      name = parent[name]
    return name

  def join(self, a: str, b: str) -> None:
    first, second = sorted((self.root(a), self.root(b)))
    self._parent[second] = first


# Datasets of thousands of archives: only the last ones stay open, and unpacked.
@functools.lru_cache(maxsize=8)
def _open_archive(path: Path, state: int) -> tarfile.TarFile:
  """An archive whose members can be read in any order; a compressed one is unpacked into a nameless file.

  state changes with the file, so that a file that was replaced is opened again.
  """
  del state
  with contextlib.suppress(tarfile.ReadError):
    return tarfile.open(path, "r:")
  unpacked = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the archive is.
  with tarfile.open(path) as packed:
    packed.fileobj.seek(0)
    shutil.copyfileobj(packed.fileobj, unpacked)
  unpacked.seek(0)
  return tarfile.open(fileobj=unpacked, mode="r:")


def _read_member(path: Path, state: int, offset: int, size: int) -> bytes:
  # Not seek and read: several threads may read at a time.
  return os.pread(_open_archive(path, state).fileobj.fileno(), size, offset)


def _is_forged(example: dict, spans_s: tuple[tuple[float, float], ...]) -> bool:
  """Whether enough of an example's faces are in the spans."""
  times = example["frame_times_s"][example["face_mask"]]
  forged = sum(any(start <= time <= end for start, end in spans_s) for time in times)
  return forged >= min(_FORGED_FACES, len(times))


def _sound_label(example: dict, file: MediaFile) -> int:
  """Of the sound beside faces: of a forgery with forged words, whether one of them is heard in it."""
  if file.forged_sound_spans_s is None or file.labels["sound_label"] != examples.FAKE:
    return file.labels["sound_label"]
  begin = float(example["start_s"])
  end = begin + len(example["sound"]) / media.SAMPLE_RATE_HZ
  heard = max((min(end, b) - max(begin, a) for a, b in file.forged_sound_spans_s), default=0.0)
  return examples.FAKE if heard >= _FORGED_SOUND_S else examples.UNKNOWN


def _equal_files(files: Iterable[MediaFile]) -> Iterator[list[MediaFile]]:
  """Clips and sound files that hold the same bytes, each time all of them; empty files are not looked at."""
  by_size: dict[int, list[MediaFile]] = {}
  for file in files:
    if file.split is None and not file.is_image and (file.read or (file.path and file.path.is_file())):
      size = len(file.read()) if file.read else file.path.stat().st_size
      by_size.setdefault(size, []).append(file)
  for size, candidates in by_size.items():
    by_content: dict[str, list[MediaFile]] = {}
    for file in candidates if size and len(candidates) > 1 else ():
      by_content.setdefault(_digest(file), []).append(file)
    yield from (equal for equal in by_content.values() if len(equal) > 1)


def _digest(file: MediaFile) -> str:
  if file.read:
    return hashlib.sha256(file.read()).hexdigest()
  with open(file.path, "rb") as content:
    return hashlib.file_digest(content, "sha256").hexdigest()


def _difference_hash(file: MediaFile) -> np.ndarray | None:
  data = file.read() if file.read else file.path.read_bytes()
  # OpenCV takes nothing at all for an error, and anything else that is no picture for none.
  image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_REDUCED_GRAYSCALE_2) if data else None
  if image is None:
    return None  # The decoder will say why.
  return copies.difference_hash(image)


def _clip_of_pictures(file: MediaFile, plan: media.SamplingPlan) -> media.Clip:
  """The pictures of the file that the plan takes, as a clip without sound.

  Raises:
    MediaError: a picture cannot be decoded, or they differ in size.
  """
  chosen = np.array(plan.choose_at([index / _FRAMES_PER_S for index in range(len(file.frames))]))
  frames = [media.decode_image_bytes(file.frames[index]()).frames[0] for index in chosen]
  if len({frame.shape for frame in frames}) > 1:
    raise media.MediaError("unequal_frames", f"The pictures of {file.id} differ in size.")
  return media.Clip(
    kind="video",
    frames=np.stack(frames),
    frame_times_s=chosen / _FRAMES_PER_S,
    waveform=np.zeros(0, np.float32),
    sample_rate_hz=16_000,
    facts={},
    warnings=(),
  )
