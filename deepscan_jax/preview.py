"""Shows what training makes of a dataset: one self-contained page with faces, masks, mouths and sound.

Of some examples, always the same: what is stored, what evaluation sees of it, and several draws of the twins
that training would make, or where an example is not known to be real, of the example as it is augmented.
Names come from whoever made the media: they pass through `report.tag`.
"""

import base64
import dataclasses
import datetime
import io
import wave
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from deepscan_jax import data, examples
from deepscan_jax.augment_audio import SAMPLE_RATE_HZ
from deepscan_jax.config import DataConfig
from deepscan_jax.data import ExampleSource, Forgery, PairMaker, SingleMaker
from deepscan_jax.faces import regions
from deepscan_jax.report import Html, clock, colophon, jpeg_uri, masthead, page, tag

# What is shown where no preset says what a model reads.
EVERYTHING = (
  "crops",
  "crop_mask",
  "landmarks",
  "frame_times_s",
  "mouth_crops",
  "mouth_mask",
  "waveform",
  "waveform_mask",
)
# Of each example; with three kinds of forgery, each is seen once.
DRAWS = 3
WARNING = "it holds pictures or voices of people: keep it as you keep the media themselves."

METHODS = {
  "face": "blended: the whole face",
  "face_below_brows": "blended: the face below the brows",
  "inner_face": "blended: brows, eyes, nose and mouth",
  "mouth_and_chin": "blended: mouth and chin",
  "parts": "blended: eyes or nose",
  "griffin_lim": "voice put together from mel bands, its phases searched for (Griffin-Lim)",
  "mel": "voice put together from mel bands with its own phases",
  "phase": "voice with coarse or noisy phases",
  "pitch": "voice of another pitch with its own formants",
  "formant": "voice of other formants with its own pitch",
  "world": "voice put together by the WORLD vocoder",
  "shift": "sound a little out of step",
  "long_shift": "sound of another moment",
  "swap": "sound of another clip",
  "mouth_span": "mouths of another moment in a part of it",
}
_LABELS = {examples.REAL: "real", examples.FAKE: "fake", examples.UNKNOWN: "of unknown label"}
# What is not there: a grey that shows on light and on dark pages.
_HIDDEN_GREY = 128
# Of a window so many frames are shown, evenly spread, and every second mouth.
_FRAMES_SHOWN, _FRAME_PX = 8, 160
_MOUTH_STEP, _MOUTH_PX, _MOUTHS_IN_ROW = 2, 96, 13
_MESH_SCALE = 2
_DIFFERENCE_GAIN = 4
# The spectrogram that the audio branch reads: windows of 25 ms every 10 ms.
_FFT, _WINDOW, _HOP, _MEL_BANDS = 1024, 400, 160, 128
_RANGE_DB, _DIFFERENCE_DB = 70.0, 20.0
_SPECTROGRAM_HEIGHT = 192
_STYLE = """
body { max-width: 76rem; }
h1.file-name { margin-top: 2rem; }
.draw { margin-top: 1.4rem; padding-top: .9rem; border-top: 1px solid var(--rule); }
.draw h3 { margin: 0; font: 650 .9375rem/1.4 var(--sans); }
.draw > * + *, .stored > * + * { margin-top: .6rem; }
.row { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); }
.row.large { grid-template-columns: repeat(auto-fill, minmax(220px, 280px)); }
.row.heard { grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); }
.row img, .film img { width: 100%; height: auto; display: block; border-radius: 3px; background: #0b0b0d; }
.film { display: grid; grid-template-columns: 6.5rem 1fr; gap: .2rem .8rem; align-items: center; }
.row figcaption, .film figcaption { font-size: .8125rem; line-height: 1.35; color: var(--soft); }
.row figcaption { padding-top: .25rem; }
.spectrum { position: relative; }
.row .spectrum img { height: 150px; }
.forged { position: absolute; top: 0; bottom: 0; border: solid #ff5a47; border-width: 0 2px 5px; }
audio { width: 100%; height: 34px; margin-top: .4rem; display: block; }
.fake-words { color: var(--red); font-weight: 600; }
@media (max-width: 40rem) { .film { grid-template-columns: 1fr; } }
"""


def choose(source: ExampleSource, count: int) -> list[int]:
  """Indices of examples: of all groups of source and content in turn, evenly spread within each.

  Args:
    source: of the examples.
    count: at most so many.
  """
  groups = [source.groups[key] for key in sorted(source.groups) if source.groups[key]]
  if len(groups) > count:
    groups = [groups[i] for i in np.linspace(0, len(groups) - 1, count).astype(int)]
  shares = [0] * len(groups)
  while sum(shares) < count and any(s < len(g) for s, g in zip(shares, groups, strict=True)):
    for i, group in enumerate(groups):
      if shares[i] < len(group) and sum(shares) < count:
        shares[i] += 1
  return [
    group[i]
    for share, group in zip(shares, groups, strict=True)
    for i in np.linspace(0, len(group) - 1, share).astype(int)
  ]


def render_html(
  config: DataConfig,
  *,
  data_dir: str | Path,
  count: int = 8,
  inputs: Sequence[str] | None = None,
  preset: str = "",
  created: datetime.datetime | None = None,
) -> str:
  """The page of a dataset's training split.

  Args:
    config: of the datasets, and of what training makes of them.
    data_dir: where the datasets are.
    count: at most so many examples.
    inputs: what a model reads; None: everything that is stored, in windows as long as they are stored, with
      every example whatever its label.
    preset: whose model and training that is; "" for none.
    created: the time that the page names as its own; None is now.

  Raises:
    FileNotFoundError, ValueError: see `data.ExampleSource`.
  """
  labels = None
  if inputs is not None:
    labels = (examples.REAL,) if config.pseudofakes else (examples.REAL, examples.FAKE)
  source = ExampleSource(config.datasets, "train", data_dir, inputs=inputs or EVERYTHING, labels=labels)
  elements = [source[index] for index in choose(source, count)]
  if inputs is None:
    frames = max(1, *(len(element["face_mask"]) for element in elements), 0)
    config = dataclasses.replace(config, window=dataclasses.replace(config.window, frames=frames))
  keys = source.inputs
  donors = source if inputs is not None and config.pseudofakes else None
  title = ", ".join(config.datasets)
  return page(
    masthead("Dataset preview", created or datetime.datetime.now(datetime.UTC)),
    tag(
      "main",
      tag("h1", "What training makes of ", tag("bdi", title), class_="file-name"),
      _introduction(source, len(elements), config, preset),
      *(_example(element, config, keys, donors) for element in elements),
      id="main",
    ),
    colophon(),
    title=f"Dataset preview: {title}",
    style=_STYLE,
    sound=True,
  )


def _introduction(source: ExampleSource, count: int, config: DataConfig, preset: str) -> Html:
  rows = [
    tag("tr", tag("th", tag("bdi", origin), scope="row"), tag("td", ", ".join(held)), tag("td", str(len(of))))
    for (origin, held), of in sorted(source.groups.items())
  ]
  header = tag("tr", *(tag("th", word, scope="col") for word in ("Source", "Holds", "Training examples")))
  how = f"as the preset {preset} reads and trains on them" if preset else "with all that is stored"
  made = (
    "Each draw is a real example and its forged twin, augmented alike, as a training batch holds them; the "
    "kinds of forgery that an example allows take turns here."
    if config.pseudofakes
    else "Each draw is an example as it is augmented, under its own label: this preset makes no pseudo-fakes."
  )
  return tag(
    "section",
    tag("p", f"{count} of {len(source)} training examples, {how}. {made}"),
    tag("p", f"Take care of this file: {WARNING}", class_="fine"),
    tag("div", tag("table", tag("thead", header), tag("tbody", *rows)), class_="scroll"),
    class_="card",
  )


def _example(element: dict, config: DataConfig, keys: Sequence[str], donors: ExampleSource | None) -> Html:
  own = examples.labels(element, keys=keys)
  parts = {"face_label": "faces", "sound_label": "sound"}
  there = {
    "face_label": np.any(element["face_mask"]) or np.any(element["mouth_mask"]),
    "sound_label": len(element["sound"]) > 0,
  }
  known = [f"{word} {_LABELS[int(own[key])]}" for key, word in parts.items() if there[key]]
  about = [f"source {element['source']}", f"group {element['group']}", *known]
  about += [f"made by {element['method']}"] if element["method"] else []
  about += [f"from {clock(float(element['start_s']))} of the file on"]
  return tag(
    "section",
    tag("h2", tag("bdi", element["id"]), style="overflow-wrap:anywhere"),
    tag("p", "; ".join(about), class_="fine"),
    tag("div", *_stored(element, config, keys), class_="stored"),
    *(
      tag("div", tag("h3", *words), *parts, class_="draw")
      for words, parts in _draws(element, config, keys, donors)
    ),
    class_="card",
  )


def _stored(element: dict, config: DataConfig, keys: Sequence[str]) -> Iterator[Html]:
  """What an example holds before anything is drawn, and what evaluation sees of it."""
  window = config.window.reading(keys)
  seen = examples.model_inputs(element, window=window, keys=keys)
  if "crops" in keys and np.any(element["face_mask"]):
    fitted = examples.fit(element, window=window, keys=keys)
    meshes = [
      with_mesh(face, points) for face, points in zip(fitted["faces"], fitted["landmarks"], strict=True)
    ]
    if window.frames == 1:
      yield tag(
        "div",
        _figure(jpeg_uri(meshes[0]), "Stored crop, 256 px, with the mesh points"),
        _figure(jpeg_uri(seen["crops"][0]), "Plain crop, 224 px, as evaluation sees it"),
        class_="row large",
      )
    else:
      yield _film("Stored, with mesh points", np.stack(meshes), fitted["face_mask"])
      yield _film("Plain, as evaluation sees it", seen["crops"], seen["crop_mask"])
      times = fitted["frame_times_s"][fitted["face_mask"]]
      first, last = clock(float(times[0])), clock(float(times[-1]))
      yield tag(
        "p",
        f"{len(times)} of {window.frames} frames are there, {first} to {last}; up to {_FRAMES_SHOWN} shown.",
        class_="fine",
      )
  if "mouth_crops" in keys and np.any(element["mouth_mask"]):
    yield _mouths("Mouths, every second one of 25 a second", seen["mouth_crops"], seen["mouth_mask"])
  if "waveform" in keys and len(element["sound"]):
    sound = seen["waveform"][: int(seen["waveform_mask"].sum())]
    power = log_mel(sound)
    words = f"Stored sound, {len(sound) / SAMPLE_RATE_HZ:.2f} s, 0 to 8 kHz"
    yield tag("div", _heard(sound, power, power.max(), words), class_="row heard")


def _draws(
  element: dict, config: DataConfig, keys: Sequence[str], donors: ExampleSource | None
) -> Iterator[tuple[tuple[object, ...], list[Html]]]:
  """Of each draw its heading and what there is to see and hear."""
  real = int(examples.labels(element, keys=keys)["label"]) == examples.REAL
  wanted = [kind for kind, weight in config.pseudofake_kinds if weight]
  possible = data.possible_kinds(element, config=config, inputs=keys, has_donors=donors is not None)
  kinds = [kind for kind in wanted if kind in possible]
  if not (config.pseudofakes and real and kinds):
    if config.pseudofakes and real:
      yield ("No pseudo-fake can be made of this example.",), []
    for draw in range(DRAWS):
      rows = SingleMaker(config, tuple(keys)).random_map(element, _rng(element, draw))
      yield (f"Draw {draw + 1}: as it is, augmented",), list(_shown(rows, None))
    return
  for draw in range(DRAWS):
    one = dataclasses.replace(config, pseudofake_kinds=((kinds[draw % len(kinds)], 1.0),))
    rows, forgery, degraded = PairMaker(one, tuple(keys), donors).draw(element, _rng(element, draw))
    words = METHODS[forgery.method]
    if forgery.kind == "swap":
      words += ", from another person"
    if forgery.late_s:
      words += f", {abs(forgery.late_s):.2f} s {'late' if forgery.late_s > 0 else 'early'}"
    if forgery.kind == "voice":
      spans = (f"{start:.2f} to {end:.2f} s" for start, end in forgery.segments_s)
      words += f", forged from {', '.join(spans)}"
    heading = (f"Draw {draw + 1}: ", tag("span", words, class_="fake-words"))
    yield (*heading, "" if degraded else "; neither twin degraded"), list(_shown(rows, forgery))


def _rng(element: dict, draw: int) -> np.random.Generator:
  return np.random.default_rng([zlib.crc32(element["id"].encode()), draw])


def _shown(rows: dict, forgery: Forgery | None) -> Iterator[Html]:
  """One or two twins as the network gets them; of two, what differs."""
  twins = len(rows["label"])
  names = ("real twin", "forged twin")[:twins] if twins == 2 else ("as it is trained on",)
  kind = forgery.kind if forgery else None
  if "crops" in rows and np.any(rows["crop_mask"]):
    pictures = {name: rows["crops"][i] for i, name in enumerate(names)}
    if kind in data.FORGED_FACES:
      real, fake = rows["crops"]
      pictures[f"difference, {_DIFFERENCE_GAIN} times"] = np.stack(
        [
          cv2.multiply(cv2.absdiff(a, b), (float(_DIFFERENCE_GAIN),) * 4)
          for a, b in zip(real, fake, strict=True)
        ]
      )
      pictures["what was blended in"] = with_mask(fake, forgery.mask)
      pictures["region that is asked for"] = with_mask(
        fake, np.stack([_enlarged(region, fake.shape[1]) for region in rows["region"][1]])
      )
    elif twins == 2:
      pictures = {"both twins": rows["crops"][0]}
    mask = rows["crop_mask"][0]
    if len(mask) == 1:
      yield tag("div", *(_figure(jpeg_uri(p[0]), name) for name, p in pictures.items()), class_="row")
    else:
      yield from (_film(name, p, mask) for name, p in pictures.items())
  if "mouth_crops" in rows and kind in ("sync", None) and np.any(rows["mouth_mask"]):
    same = np.array_equal(rows["mouth_crops"][0], rows["mouth_crops"][-1])
    for i, name in enumerate(("both twins",) if twins == 2 and same else names):
      yield _mouths(f"Mouths, {name}", rows["mouth_crops"][i], rows["mouth_mask"][i])
  if "waveform" in rows and kind in ("voice", "sync", None) and np.any(rows["waveform_mask"]):
    count = int(rows["waveform_mask"][0].sum())
    sounds = [sound[:count] for sound in rows["waveform"]]
    powers = [log_mel(sound) for sound in sounds]
    top = max(power.max() for power in powers)
    spans = [(), forgery.segments_s if forgery and kind == "voice" else ()]
    parts = [
      _heard(sound, power, top, f"Sound, {name}", spans_s=spans[i])
      for i, (name, sound, power) in enumerate(zip(names, sounds, powers, strict=True))
    ]
    if kind == "voice":
      apart = np.abs(np.subtract(*(np.maximum(power, top - _RANGE_DB) for power in powers))) / _DIFFERENCE_DB
      picture = _figure(_spectrum_uri(apart), f"Difference, 0 to {_DIFFERENCE_DB:.0f} dB", class_="spectrum")
      parts.append(picture)
    yield tag("div", *parts, class_="row heard")


def with_mesh(face: np.ndarray, points: np.ndarray) -> np.ndarray:
  """A stored crop with its mesh drawn lightly over it.

  Args:
    face: uint8 RGB [256, 256, 3].
    points: float [468, 2] in pixels of the crop, the first pixel's centre at 0.5.

  Returns:
    uint8 RGB [512, 512, 3].
  """
  large = cv2.resize(face, None, fx=_MESH_SCALE, fy=_MESH_SCALE, interpolation=cv2.INTER_LINEAR)
  if not points.any():
    return large
  drawn = large.copy()
  # With four binary digits behind the point.
  places = np.round((points * _MESH_SCALE - 0.5) * 16).astype(np.int32)
  outlines = (regions.FACE_OVAL, regions.RIGHT_EYE, regions.LEFT_EYE, regions.LIPS_OUTER, regions.LIPS_INNER)
  for outline in outlines:
    cv2.polylines(drawn, [places[list(outline)]], True, (80, 255, 200), 1, cv2.LINE_AA, shift=4)
  for x, y in places:
    cv2.circle(drawn, (int(x), int(y)), 16, (255, 255, 255), -1, cv2.LINE_AA, shift=4)
  return cv2.addWeighted(drawn, 0.55, large, 0.45, 0)


def with_mask(crops: np.ndarray, masks: np.ndarray) -> np.ndarray:
  """Grey crops with the masks over them in red.

  Args:
    crops: uint8 RGB [frame, size, size, 3].
    masks: float [frame, size, size] in 0..1.

  Returns:
    uint8 RGB [frame, size, size, 3].
  """
  grey = np.stack([cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY) for crop in crops])[..., None]
  share = 0.75 * np.clip(masks, 0, 1)[..., None]
  return np.round(grey * (1 - share) + np.array([255, 60, 40]) * share).astype(np.uint8)


def log_mel(sound: np.ndarray) -> np.ndarray:
  """The sound [sample] in mel bands: float [mel band, time] in decibels."""
  import librosa.feature  # seconds, on first use

  power = librosa.feature.melspectrogram(
    y=sound,
    sr=SAMPLE_RATE_HZ,
    n_fft=_FFT,
    win_length=_WINDOW,
    hop_length=_HOP,
    n_mels=_MEL_BANDS,
  )
  return 10 * np.log10(np.maximum(power, 1e-10))


def wav_uri(sound: np.ndarray) -> str:
  """The address of an audio element that holds the sound itself, float [sample] in -1..1 at 16 kHz."""
  file = io.BytesIO()
  with wave.open(file, "wb") as wav:
    wav.setnchannels(1)
    wav.setsampwidth(2)
    wav.setframerate(SAMPLE_RATE_HZ)
    wav.writeframes(np.round(np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes())
  return "data:audio/wav;base64," + base64.b64encode(file.getvalue()).decode()


def _heard(
  sound: np.ndarray, power: np.ndarray, top: float, words: str, *, spans_s: Sequence[tuple[float, float]] = ()
) -> Html:
  """A spectrogram, `top` decibels being the brightest, with what is forged marked, and the sound to hear."""
  length_s = len(sound) / SAMPLE_RATE_HZ
  marks = (
    tag(
      "span",
      class_="forged",
      style=f"left:{100 * start / length_s:.2f}%;width:{100 * (end - start) / length_s:.2f}%",
    )
    for start, end in spans_s
  )
  picture = tag("img", src=_spectrum_uri((power - top) / _RANGE_DB + 1), alt=f"Spectrogram: {words}")
  return tag(
    "figure",
    tag("div", picture, *marks, class_="spectrum"),
    tag("audio", src=wav_uri(sound), controls=True, preload="metadata"),
    tag("figcaption", words + (", what is forged marked in red" if spans_s else "")),
  )


def _spectrum_uri(values: np.ndarray) -> str:
  """A picture of [mel band, time] in 0..1, low frequencies below."""
  levels = np.round(255 * np.clip(values[::-1], 0, 1)).astype(np.uint8)
  large = cv2.resize(levels, (2 * levels.shape[1], _SPECTROGRAM_HEIGHT), interpolation=cv2.INTER_LINEAR)
  return jpeg_uri(cv2.applyColorMap(large, cv2.COLORMAP_INFERNO)[..., ::-1])


def _figure(uri: str, words: str, *, class_: str | None = None) -> Html:
  return tag("figure", tag("div", tag("img", src=uri, alt=words), class_=class_), tag("figcaption", words))


def _film(words: str, pictures: np.ndarray, mask: np.ndarray) -> Html:
  """Pictures [frame, size, size, 3] side by side."""
  shown = np.linspace(0, len(mask) - 1, min(_FRAMES_SHOWN, len(mask))).round().astype(int)
  return _sheet(words, pictures[shown], mask[shown], side=_FRAME_PX, in_row=len(shown))


def _mouths(words: str, crops: np.ndarray, mask: np.ndarray) -> Html:
  crops, mask = crops[::_MOUTH_STEP], mask[::_MOUTH_STEP]
  return _sheet(words, crops, mask, side=_MOUTH_PX, in_row=min(_MOUTHS_IN_ROW, len(mask)))


def _sheet(words: str, pictures: np.ndarray, mask: np.ndarray, *, side: int, in_row: int) -> Html:
  small = np.full((-(-len(pictures) // in_row) * in_row, side, side, 3), _HIDDEN_GREY, np.uint8)
  for i in np.flatnonzero(mask):
    small[i] = cv2.resize(pictures[i], (side, side), interpolation=cv2.INTER_AREA)
  lines = small.reshape(-1, in_row, side, side, 3)
  sheet = np.concatenate([np.concatenate(list(line), axis=1) for line in lines])
  return tag("figure", tag("figcaption", words), tag("img", src=jpeg_uri(sheet), alt=words), class_="film")


def _enlarged(region: np.ndarray, side: int) -> np.ndarray:
  return cv2.resize(region, (side, side), interpolation=cv2.INTER_NEAREST)
