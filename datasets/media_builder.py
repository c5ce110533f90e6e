"""What every dataset builder shares: media files in, examples out.

A builder says where its files are and what is known of each (`MediaFile`); this module decodes them, finds
the faces, cuts the examples (through deepscan_jax.examples, exactly as the detector does) and writes them as
array_record, without TensorFlow. What could not be used is listed in `rejected.jsonl` beside the data, with
the reason.
"""

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import io
import json
import lzma
import shutil
import tarfile
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import dataset_metadata

from deepscan_jax import examples, media

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")
SPLITS = (("train", 0.70), ("validation", 0.15), ("test", 0.15))

# Pictures found together in one call of the face detector.
_PICTURES_AT_ONCE = 32
_HASH_BITS = 256
# Two pictures are copies of each other when at most this many of the bits of their hashes differ.
_COPY_BITS = 24


@dataclasses.dataclass(frozen=True)
class MediaFile:
  """One file and what is known of it.

  Attributes:
    id: unique in the dataset and stable, such as the path below the dataset's root.
    path: where it lies; None for a member of an archive, whose bytes `read` returns.
    label: examples.REAL or examples.FAKE.
    group: files of one group (a person, a source video) never meet in two splits.
    source: where it comes from, for figures by source.
    method: how a fake was made; "" for a real one.
  """

  id: str
  path: Path | None
  label: int
  group: str
  source: str
  method: str = ""
  read: Callable[[], bytes] | None = None

  @property
  def is_image(self) -> bool:
    """By the name's ending; whether it really is one shows when it is decoded."""
    return self.id.lower().endswith(IMAGE_SUFFIXES)


class MediaBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A TFDS builder of face examples; a subclass gives `media_files`.

  Args:
    media_paths: folders or tar files that the user points at.
    frames_per_clip: how many frames, spread evenly, are looked at in a video.
    kwargs: of tfds.core.GeneratorBasedBuilder.
  """

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES: ClassVar = {"1.0.0": "First release."}

  def __init__(self, *, media_paths: Iterable[str | Path] = (), frames_per_clip: int = 32, **kwargs):
    self._media_paths = tuple(Path(path) for path in media_paths)
    self._frames_per_clip = frames_per_clip
    self._rejected: list[dict] = []
    super().__init__(file_format="array_record", **kwargs)

  def media_files(self, paths: tuple[Path, ...]) -> Iterable[MediaFile]:
    """The dataset's files in a stable order."""
    raise NotImplementedError(f"{type(self).__name__} must say where its files are.")

  @classmethod
  def get_metadata(cls) -> dataset_metadata.DatasetMetadata:
    """README, citations and tags, from the folder of the builder's file.

    TFDS looks for them below the top-level package, where an editable install does not have them.
    """
    return dataset_metadata.load(epath.Path(inspect.getfile(cls)).parent)

  def _info(self) -> tfds.core.DatasetInfo:
    size = examples.faces.STORED_SIZE
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        {
          "faces": tfds.features.Sequence(tfds.features.Image(shape=(size, size, 3), encoding_format="png")),
          "face_mask": tfds.features.Tensor(shape=(None,), dtype=np.bool_),
          "landmarks": tfds.features.Tensor(shape=(None, 468, 2), dtype=np.float32),
          "frame_times_s": tfds.features.Tensor(shape=(None,), dtype=np.float32),
          "label": tfds.features.ClassLabel(names=["real", "fake"]),
          "id": tfds.features.Text(),
          "group": tfds.features.Text(),
          "source": tfds.features.Text(),
          "method": tfds.features.Text(),
        }
      )
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
    del dl_manager  # Nothing is downloaded: the user points at the files.
    files = join_copies(self.media_files(self._media_paths))
    if not files:
      raise ValueError(
        f"No pictures or videos in {', '.join(map(str, self._media_paths)) or 'an empty list of paths'}."
      )
    by_split = {name: [file for file in files if split_of(file.group) == name] for name, _ in SPLITS}
    # A small dataset may have no group in a split, and TFDS refuses to write an empty one.
    return {name: self._generate_examples(chosen) for name, chosen in by_split.items() if chosen}

  def _generate_examples(self, files: list[MediaFile]) -> Iterator[tuple[str, dict]]:
    rejected_before, used = len(self._rejected), False
    for example in self._examples_of(files):
      used = True
      yield example
    if not used:
      reasons = Counter(row["reason"] for row in self._rejected[rejected_before:])
      raise ValueError(
        f"None of the {len(files)} files of a split can be used "
        f"({', '.join(f'{reason}: {count}' for reason, count in reasons.items())}); give more media."
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
          (file, _picture(file.read()) if file.read else media.decode_clip(file.path, trusted=True))
        )
      except media.MediaError as error:
        self._reject(file, error.reason, str(error))
    for (file, _), subjects in zip(
      clips, examples.find_subjects_in_pictures([c for _, c in clips]), strict=True
    ):
      yield from self._subject_examples(file, subjects)

  def _video_examples(self, file: MediaFile) -> Iterator[tuple[str, dict]]:
    plan = media.SamplingPlan(frame_count=self._frames_per_clip)
    try:
      clip = media.decode_clip(file.path, plan=plan, trusted=True)
    except media.MediaError as error:
      self._reject(file, error.reason, str(error))
      return
    yield from self._subject_examples(file, examples.find_subjects(clip))

  def _subject_examples(
    self, file: MediaFile, subjects: list[examples.Subject]
  ) -> Iterator[tuple[str, dict]]:
    if not subjects:
      self._reject(file, "no_face", "No face was found.")
    for person, subject in enumerate(subjects):
      cut = examples.windows(subject, label=file.label)
      if not cut:
        codes = sorted({code for reasons in subject.reasons for code in reasons})
        self._reject(file, "+".join(codes), f"No sighting of person {person} passes the quality gate.")
      for index, example in enumerate(cut):
        key = f"{file.id}#{person}.{index}"
        yield (
          key,
          {
            **example,
            "faces": [io.BytesIO(encode_png(crop)) for crop in example["faces"]],
            "id": key,
            "group": file.group,
            "source": file.source,
            "method": file.method,
          },
        )

  def _reject(self, file: MediaFile, reason: str, message: str) -> None:
    self._rejected.append({"id": file.id, "reason": reason, "message": message})

  def prepare(self, *, overwrite: bool = False) -> None:
    """Builds the dataset, and writes rejected.jsonl beside it."""
    if overwrite:
      shutil.rmtree(self.data_dir, ignore_errors=True)
    self.download_and_prepare()
    if self._rejected:
      lines = "".join(json.dumps(row, sort_keys=True) + "\n" for row in self._rejected)
      (Path(self.data_dir) / "rejected.jsonl").write_text(lines, encoding="utf-8")


def split_of(group: str) -> str:
  """The split of a group: a stable function of its name alone, 70/15/15."""
  position = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64
  for name, share in SPLITS:
    if position < share:
      return name
    position -= share
  return SPLITS[-1][0]


def walk_media(root: Path) -> Iterator[tuple[str, Path | None, Callable[[], bytes] | None]]:
  """The media below a folder, or the pictures in a tar file, in order of name.

  Yields:
    (name, path, None) for a file of a folder, (name, None, read) for a member of a tar file: read() fetches
    its bytes from the archive whenever they are wanted.

  Raises:
    FileNotFoundError: root is neither a folder nor a tar file.
    ValueError: the tar file is damaged.
  """
  if root.is_dir():
    for path in sorted(root.rglob("*")):
      if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES:
        yield path.relative_to(root).as_posix(), path, None
  elif root.is_file() and tarfile.is_tarfile(root):
    try:
      archive = _open_archive(root)
      members = sorted((m for m in archive if m.isfile()), key=lambda m: m.name)
    except (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error) as error:
      raise ValueError(f"The tar file {root} is damaged or cut off; copy or download it again.") from error
    for member in members:
      if member.name.lower().endswith(IMAGE_SUFFIXES):
        yield member.name.removeprefix("./"), None, functools.partial(_read_member, archive, member)
  else:
    raise FileNotFoundError(f"{root} is neither a folder nor a tar file; give the path of what you unpacked.")


def encode_png(image: np.ndarray) -> bytes:
  """Lossless PNG bytes of an RGB picture, at the fastest compression."""
  done, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 1])
  if not done:
    raise ValueError(f"A picture of shape {image.shape} could not be encoded.")
  return data.tobytes()


def join_copies(files: Iterable[MediaFile]) -> list[MediaFile]:
  """Gives groups that share a (nearly) equal picture one common name, so that no copy crosses a split.

  Copies are found by a 256-bit difference hash: signs of horizontal gradients at 16 x 16 (Krawetz 2013).
  """
  files = list(files)
  parent = {file.group: file.group for file in files}

  def root(group: str) -> str:
    while parent[group] != group:
      parent[group] = parent[parent[group]]
      group = parent[group]
    return group

  hashed = [(file, bits) for file in files if file.is_image and (bits := _difference_hash(file)) is not None]
  bits = np.array([bits for _, bits in hashed], np.uint8).reshape(len(hashed), _HASH_BITS // 8)
  for i in range(len(hashed) - 1):
    distance = np.bitwise_count(bits[i + 1 :] ^ bits[i]).sum(axis=1)
    for j in np.flatnonzero(distance <= _COPY_BITS):
      a, b = sorted((root(hashed[i][0].group), root(hashed[i + 1 + j][0].group)))
      parent[b] = a
  return [dataclasses.replace(file, group=root(file.group)) for file in files]


def _open_archive(path: Path) -> tarfile.TarFile:
  """An archive whose members can be read in any order; a compressed one is unpacked into a nameless file."""
  with contextlib.suppress(tarfile.ReadError):
    return tarfile.open(path, "r:")
  unpacked = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the archive is.
  with tarfile.open(path) as packed:
    packed.fileobj.seek(0)
    shutil.copyfileobj(packed.fileobj, unpacked)
  unpacked.seek(0)
  return tarfile.open(fileobj=unpacked, mode="r:")


def _read_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
  return archive.extractfile(member).read()


def _difference_hash(file: MediaFile) -> np.ndarray | None:
  data = file.read() if file.read else file.path.read_bytes()
  # OpenCV takes nothing at all for an error, and anything else that is no picture for none.
  image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_REDUCED_GRAYSCALE_2) if data else None
  if image is None:
    return None  # The decoder will say why.
  small = cv2.resize(image, (17, 16), interpolation=cv2.INTER_AREA)
  return np.packbits(small[:, 1:] > small[:, :-1])


def _picture(data: bytes) -> media.Clip:
  frame = media.decode_image_bytes(data)
  return media.Clip(
    kind="image",
    frames=frame[None],
    frame_times_s=np.zeros(1),
    waveform=np.zeros(0, np.float32),
    sample_rate_hz=16_000,
    facts={},
    warnings=(),
  )
