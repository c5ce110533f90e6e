"""Voices by many engines: who is in which folder, and what is made of whom."""

import io
import itertools
import tarfile
from pathlib import Path

import av
import librosa
import numpy as np
import pytest
import scipy.signal
import soundfile
from absl import app
from absl.testing import flagsaver
from voices import RATE_HZ, lag, speech

from deepscan_jax.launch import synthetic_voices, voice_engines, voice_recordings, voice_texts
from deepscan_jax.launch.voice_engines import Engine, NotInstalled, Sound, Vocoder, Voice
from deepscan_jax.pseudofakes.audio import world_synthesis


def flac(waveform: np.ndarray) -> bytes:
  file = io.BytesIO()
  soundfile.write(file, waveform, RATE_HZ, format="FLAC")
  return file.getvalue()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
  """A tar with two speakers of LibriSpeech, one of EmoDB in short sentences, and digits."""
  path = tmp_path_factory.mktemp("corpus") / "speech.tar"
  files = {
    "libri/84-121123-0000.flac": speech(seconds=11, seed=1),
    "libri/84-121123-0001.flac": speech(seconds=1.2, seed=2),
    "libri/1688/1688-142285-0003.flac": speech(seconds=5, seed=3),
    "emodb/03a01Fa.wav": speech(seconds=2, seed=4),
    "emodb/03b02Wc.wav": speech(seconds=2, seed=5),
    "fsdd/2_nicolas_6.wav": speech(seconds=2, seed=6),
    "libri/notes.txt": None,
  }
  with tarfile.open(path, "w") as archive:
    for name, waveform in files.items():
      content = b"no sound" if waveform is None else flac(waveform)
      info = tarfile.TarInfo(name)
      info.size = len(content)
      archive.addfile(info, io.BytesIO(content))
  return path


def hum(text: str, rng: np.random.Generator) -> Sound:
  """Says a text in no language."""
  times_s = np.arange(22050 * 3) / 22050
  return Sound(0.1 * np.sin(2 * np.pi * (100 + len(text)) * times_s).astype(np.float32), 22050)


def backwards(waveform: np.ndarray, rng: np.random.Generator) -> Sound:
  return Sound(waveform[::-1].copy(), RATE_HZ)


def gone():
  raise NotInstalled


@pytest.fixture
def toys(monkeypatch):
  """One engine with a voice, one vocoder, and one of each that is not installed; no prompts."""
  monkeypatch.setattr(
    voice_engines,
    "ENGINES",
    {
      "hummer": Engine("hums", "make hummer", lambda: [Voice("bee", "en", hum)], neural=True),
      "absent": Engine("nothing", "get absent", gone),
    },
  )
  monkeypatch.setattr(
    voice_engines,
    "VOCODERS",
    {"reverser": Vocoder("turns", "", lambda: backwards), "lost": Vocoder("none", "get lost", gone)},
  )
  monkeypatch.setattr(voice_recordings, "installed_prompts", list)


def make(speech_, output, **settings) -> int:
  settings = {"files": 4, "parts": 24, "engines": [], "list": False, "seed": 0} | settings
  paths = [str(path) for path in speech_]
  with flagsaver.flagsaver(speech=paths, output=str(output), **settings):
    return synthetic_voices.main(["synthetic_voices"])


def tree(folder: Path) -> dict[str, bytes]:
  return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*.flac"))}


def test_every_speaker_has_a_folder_and_copies_lie_in_one_of_the_same_name(toys, corpus, tmp_path, capsys):
  assert make([corpus], tmp_path / "voices") == 0
  made = tree(tmp_path / "voices")
  real = [name for name in made if "/real/" in name]
  assert real == [
    "emodb/real/03/000.flac",
    "librispeech/real/1688/000.flac",
    *("librispeech/real/84/000.flac", "librispeech/real/84/001.flac"),
  ]
  assert [name for name in made if "reverser" in name] == [
    name.replace("/real/", "/fake/reverser/") for name in real
  ]
  for name in real:
    original, _ = soundfile.read(io.BytesIO(made[name]))
    copy, _ = soundfile.read(io.BytesIO(made[name.replace("/real/", "/fake/reverser/")]))
    np.testing.assert_allclose(copy, original[::-1], atol=1e-4)
  said = capsys.readouterr().err
  assert "Left out, for they are not installed: absent, lost." in said and "apt install asterisk" in said


def test_an_engine_of_few_voices_gets_others_by_the_rate_they_are_played_at(toys, corpus, tmp_path):
  make([corpus], tmp_path / "voices")
  files = sorted((tmp_path / "voices" / "engines" / "fake" / "hummer").rglob("*.flac"))
  # A network makes twice as many.
  assert len(files) == 8
  rates = {path.parent.name: soundfile.info(path).samplerate for path in files}
  assert rates.pop("hummer_bee") == 22050 and len(rates) == 5
  for name, rate in rates.items():
    assert rate == round(22050 * float(name.partition("_x")[2])) != 22050


def test_the_same_again_is_not_made_again_and_elsewhere_is_the_same(toys, corpus, tmp_path):
  make([corpus], tmp_path / "a")
  made = tree(tmp_path / "a")
  times = {name: (tmp_path / "a" / name).stat().st_mtime_ns for name in made}
  lost = "engines/fake/hummer/hummer_bee/000.flac"
  (tmp_path / "a" / lost).unlink()
  make([corpus], tmp_path / "a")
  assert tree(tmp_path / "a") == made
  again = {name: (tmp_path / "a" / name).stat().st_mtime_ns for name in made}
  assert [name for name in made if again[name] != times[name]] == [lost]
  make([corpus], tmp_path / "b")
  assert tree(tmp_path / "b") == made


def test_the_kinds_are_the_folders_whatever_they_hold(toys, corpus, tmp_path):
  (tmp_path / "short" / "anna").mkdir(parents=True)
  (tmp_path / "short" / "anna" / "1.flac").write_bytes(flac(speech(seconds=1, seed=8)))
  speech_ = [corpus, tmp_path / "short"]
  make(speech_, tmp_path / "voices", engines=["reverser"])
  folders = sorted(path.name for path in (tmp_path / "voices").iterdir() if path.is_dir())
  assert voice_recordings.kinds(speech_) == folders == ["emodb", "engines", "librispeech", "short"]
  assert all(list((tmp_path / "voices" / kind).iterdir()) for kind in folders)


def test_engines_can_be_chosen_and_are_listed(toys, corpus, tmp_path, capsys):
  make([corpus], tmp_path / "voices", engines=["reverser"])
  assert not list((tmp_path / "voices" / "engines").rglob("*.flac"))
  capsys.readouterr()
  assert make([], tmp_path, list=True) == 0
  assert capsys.readouterr().out.splitlines() == [
    "hummer: hums; installed",
    "absent: nothing; to install: get absent",
    "reverser: turns; installed",
    "lost: none; to install: get lost",
  ]


def test_silence_that_an_engine_makes_is_no_voice(toys, corpus, tmp_path, monkeypatch, capsys):
  def mute(text, rng):
    return Sound(np.zeros(48000, np.float32), 24000)

  engines = {"mute": Engine("says nothing", "", lambda: [Voice("none", "en", mute)])}
  monkeypatch.setattr(voice_engines, "ENGINES", engines)
  make([corpus], tmp_path / "voices")
  assert not list((tmp_path / "voices" / "engines").rglob("*.flac"))
  assert "mute: 0 files, 6 voices; 4 failed, the last with: less than two" in capsys.readouterr().err


def test_an_engine_that_fails_or_is_half_installed_leaves_the_others_alone(
  toys, corpus, tmp_path, monkeypatch, capsys
):
  def stumbling(text, rng):
    if rng.random() < 0.5:
      raise ValueError("no such word")
    return hum(text, rng)

  def half():
    raise KeyError("weights")

  def odd(waveform, rng):
    raise AttributeError("no such sound")

  engines = {
    "half": Engine("lacks a part", "get the part", half),
    "stumbler": Engine("stumbles", "", lambda: [Voice("one", "en", stumbling)]),
  }
  monkeypatch.setattr(voice_engines, "ENGINES", engines)
  monkeypatch.setitem(voice_engines.VOCODERS, "odd", Vocoder("fails", "", lambda: odd))
  assert make([corpus], tmp_path / "voices", files=16) == 0
  said = capsys.readouterr().err
  assert "Left out, for they are not installed: lost." in said
  assert "Left out, for it cannot be used: half (KeyError: 'weights')." in said
  assert "odd: 0 copies; 4 failed, the last with: AttributeError: no such sound" in said
  made = list((tmp_path / "voices" / "engines" / "fake" / "stumbler").rglob("*.flac"))
  assert 0 < len(made) < 16 and "failed, the last with: ValueError: no such word" in said
  assert list((tmp_path / "voices").rglob("*/reverser/*/*.flac"))
  assert make([], tmp_path, list=True, engines=["half"]) == 0
  assert "cannot be used (KeyError: 'weights'); to install: get the part" in capsys.readouterr().out


def test_a_program_that_hangs_or_fails_is_said_to(monkeypatch):
  monkeypatch.setattr(voice_engines, "_PATIENCE_S", 0.1)
  with pytest.raises(ValueError, match="sleep took more than"):
    voice_engines._run(["sleep", "30"])
  monkeypatch.undo()
  with pytest.raises(ValueError, match=r"failed: .*no-such"):
    voice_engines._run(["ls", "no-such"])


def test_a_folder_holds_what_one_set_of_flags_makes(toys, corpus, tmp_path):
  make([corpus], tmp_path / "voices")
  with pytest.raises(ValueError, match="voices that were made with another parts and seed"):
    make([corpus], tmp_path / "voices", parts=2, seed=1)
  (tmp_path / "voices" / "made_with.json").unlink()
  with pytest.raises(ValueError, match="holds something else"):
    make([corpus], tmp_path / "voices")


def test_recordings_of_ones_own_lie_in_folders_of_speakers(tmp_path):
  for name in ("Interviews 2024/anna/1.flac", "Interviews 2024/ben/1.flac"):
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_bytes(flac(speech(seconds=3, seed=7)))
  found = voice_recordings.recordings_in(tmp_path / "Interviews 2024")
  assert [(r.kind, r.speaker) for r in found] == [("interviews_2024", "anna"), ("interviews_2024", "ben")]
  (tmp_path / "Interviews 2024" / "alone.flac").write_bytes(b"")
  with pytest.raises(ValueError, match="one for each speaker"):
    voice_recordings.recordings_in(tmp_path / "Interviews 2024")


@pytest.mark.parametrize(
  ("names", "speakers"),
  [
    # A day is no chapter, and one's own digits are no corpus.
    (["anna/12-05-2024.flac", "ben/3_anna_2.wav"], ["anna", "ben"]),
    (["84/121123/84-121123-0000.flac", "84/121123/84-121123-0001.flac"], ["84", "84"]),
    (["anna/session1/a.flac", "ben/session1/b.flac"], "two folders called session1, anna/session1 and ben"),
    (["a/../e.wav"], "beside its folders"),
  ],
)
def test_speakers_are_told_apart(tmp_path, names, speakers):
  with tarfile.open(tmp_path / "talks.tar", "w") as archive:
    for name in names:
      archive.addfile(tarfile.TarInfo(name), io.BytesIO())
  if isinstance(speakers, str):
    with pytest.raises(ValueError, match=speakers):
      voice_recordings.recordings_in(tmp_path / "talks.tar")
  else:
    found = voice_recordings.recordings_in(tmp_path / "talks.tar")
    assert [recording.speaker for recording in found] == speakers


def test_prompts_of_one_person_are_one_speaker_and_sound_as_they_did(tmp_path, monkeypatch):
  sound = speech(seconds=1.5, seed=9)
  folders = {name: tmp_path / name for name in ("asterisk", "stamps", "sounds")}
  for constant, folder in zip(("_ASTERISK", "_TUXPAINT", "_KTUBERLING"), folders.values(), strict=True):
    monkeypatch.setattr(voice_recordings, constant, folder)
  for name in ("en_US_f_Allison/hello", "es_MX_f_Allison/digits/1", "fr_CA_f_June/silence/1", "broken_X/a"):
    path = folders["asterisk"] / f"{name}.g722"
    path.parent.mkdir(parents=True)
    with av.open(str(path), "w", format="g722") as container:
      stream = container.add_stream("g722", rate=RATE_HZ, layout="mono")
      frame = av.AudioFrame.from_ndarray((sound * 32767).astype(np.int16)[None], layout="mono")
      frame.sample_rate = RATE_HZ
      for packet in [*stream.encode(frame), *stream.encode(None)]:
        container.mux(packet)
  (folders["asterisk"] / "broken_X" / "a.g722").write_bytes(b"")
  for name in ("stamps/animals/frog_desc_ru.ogg", "sounds/sr/hat.ogg", "sounds/sr@latin/hat.ogg"):
    (tmp_path / name).parent.mkdir(parents=True)
    soundfile.write(tmp_path / name, sound, RATE_HZ, format="OGG")
  found = voice_recordings.installed_prompts()
  assert [(r.kind, r.speaker) for r in found] == [
    *(("prompts", "X"), ("prompts", "Allison"), ("prompts", "Allison")),
    *(("games", "tuxpaint_ru"), ("games", "ktuberling_sr")),
  ]
  speakers = voice_recordings.by_speaker(found)
  (joined,) = voice_recordings.parts_of(speakers["prompts", "Allison"], most=9)
  assert len(joined) == pytest.approx(2 * len(sound), abs=200)
  late = lag(joined[: len(sound)], sound)
  assert 0 <= late < 50
  assert np.corrcoef(joined[late : len(sound)], sound[: len(sound) - late])[0, 1] > 0.9
  assert not list(voice_recordings.parts_of(speakers["prompts", "X"], most=9))


def hum_of(hz: float) -> np.ndarray:
  """Two seconds of a steady vowel."""
  pulses = np.zeros(2 * RATE_HZ)
  pulses[(np.arange(0, 2, 1 / hz) * RATE_HZ).astype(int)] = 1
  # A larynx is loudest at its pitch.
  pulses = scipy.signal.lfilter([1, -1], np.poly([0.99, 0.95]), pulses)
  for middle in (500, 1500, 2500):
    pulses = (
      scipy.signal.lfilter(*scipy.signal.iirpeak(middle, middle / 120, fs=RATE_HZ), pulses) + 0.3 * pulses
    )
  return (0.3 * pulses / np.abs(pulses).max()).astype(np.float32)


def pitch_of(sound: np.ndarray) -> float:
  """In Hz, of its middle."""
  middle = sound[RATE_HZ // 2 : RATE_HZ * 3 // 2]
  return float(np.median(librosa.yin(middle, fmin=60, fmax=320, sr=RATE_HZ)))


def test_world_moves_pitch_and_formants_the_way_it_is_told():
  pytest.importorskip("pyworld", reason="pip install 'deepscan_jax[world]'")
  sound = hum_of(120)

  def first_formant_hz(**moved) -> float:
    spectrum = np.abs(np.fft.rfft(world_synthesis(sound, **moved)))
    hz = np.fft.rfftfreq(len(sound), 1 / RATE_HZ)
    near = (hz > 250) & (hz < 900)
    return float((spectrum * hz)[near].sum() / spectrum[near].sum())

  assert first_formant_hz(formant_ratio=1.25) > first_formant_hz() + 15
  assert first_formant_hz(formant_ratio=0.8) < first_formant_hz() - 15
  for semitones in (-4, 0, 4):
    moved = world_synthesis(sound, semitones=semitones)
    assert pitch_of(moved) == pytest.approx(120 * 2 ** (semitones / 12), rel=0.03)
    assert len(moved) == len(sound)


@pytest.mark.parametrize("hz", [80, 120, 210])
def test_linear_prediction_keeps_the_pitch(hz):
  copy = voice_engines.VOCODERS["lpcvoc"].prepare()
  assert pitch_of(copy(hum_of(hz), np.random.default_rng(0)).waveform) == pytest.approx(hz, rel=0.03)


def test_other_recordings_of_the_same_speakers_are_told(toys, corpus, tmp_path):
  for name in ("anna/1.flac", "anna/2.flac"):
    (tmp_path / "talks" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "talks" / name).write_bytes(flac(speech(seconds=3, seed=7)))
  make([tmp_path / "talks"], tmp_path / "voices")
  (tmp_path / "talks" / "anna" / "2.flac").rename(tmp_path / "talks" / "anna" / "3.flac")
  with pytest.raises(ValueError, match="another choice of recordings"):
    make([tmp_path / "talks"], tmp_path / "voices")


def test_ones_own_folders_are_no_kind_of_others(tmp_path):
  for name in ("engines", "prompts"):
    (tmp_path / name / "anna").mkdir(parents=True)
    (tmp_path / name / "anna" / "1.flac").write_bytes(b"")
    assert {r.kind for r in voice_recordings.recordings_in(tmp_path / name)} == {f"{name}_speech"}


def test_parts_are_long_enough_to_be_judged_and_damaged_files_are_told(corpus, caplog):
  speakers = voice_recordings.by_speaker(voice_recordings.recordings_in(corpus))
  lengths = {
    who: [len(part) / RATE_HZ for part in voice_recordings.parts_of(own, most=9)]
    for who, own in speakers.items()
  }
  # The sentence of 1.2 s is too short, those of EmoDB are joined.
  assert lengths == {
    ("emodb", "03"): [4.0],
    ("librispeech", "1688"): [5.0],
    ("librispeech", "84"): [8.0, 3.0],
  }

  def broken():
    raise voice_recordings.media.MediaError("damaged", "no sound")

  own = [voice_recordings.Recording("mine", "eve", "a.wav", broken), *speakers["librispeech", "1688"]]
  assert len(list(voice_recordings.parts_of(own, most=9))) == 1
  assert "Left out: a.wav, which cannot be read: no sound" in caplog.text


def test_what_is_wrong_is_said(toys, corpus, tmp_path):
  with pytest.raises(app.UsageError, match="--speech=FOLDER_OR_TAR"):
    make([], tmp_path / "voices")
  with pytest.raises(app.UsageError, match="no engine nobody; there are hummer, absent"):
    make([corpus], tmp_path / "voices", engines=["nobody"])
  with pytest.raises(FileNotFoundError, match="no folder or tar"):
    make([tmp_path / "gone"], tmp_path / "voices")
  (tmp_path / "empty").mkdir()
  with pytest.raises(app.UsageError, match="holds no recording"):
    make([tmp_path / "empty"], tmp_path / "voices")


def test_texts_differ_and_take_about_as_long():
  for language in voice_texts.PARTS:
    rng = np.random.default_rng(3)
    texts = [voice_texts.sentences(language, rng) for _ in range(20)]
    assert len(set(texts)) > 15
    assert all(30 < len(text) < 260 for text in texts)


def test_vocoders_of_the_package_keep_what_was_said_and_are_no_copies():
  sound = speech(seconds=3, seed=11)
  bands = np.abs(np.fft.rfft(np.lib.stride_tricks.sliding_window_view(sound, 512)[::160])).T
  for name, vocoder in voice_engines.VOCODERS.items():
    if vocoder.install:
      continue
    made = vocoder.prepare()(sound, np.random.default_rng(0))
    assert made.waveform.dtype == np.float32 and made.sample_rate_hz == RATE_HZ, name
    assert abs(len(made.waveform) - len(sound)) <= 160 and np.abs(made.waveform).max() <= 1, name
    padded = np.pad(made.waveform, (0, len(sound) - len(made.waveform)))
    copied = np.abs(np.fft.rfft(np.lib.stride_tricks.sliding_window_view(padded, 512)[::160])).T
    assert np.corrcoef(np.log(bands + 1e-3).ravel(), np.log(copied + 1e-3).ravel())[0, 1] > 0.7, name
    assert np.corrcoef(sound, padded)[0, 1] < 0.95, name


@pytest.mark.parametrize("name", list(voice_engines.ENGINES))
def test_an_engine_that_is_installed_speaks_each_of_its_languages(name):
  try:
    voices = voice_engines.ENGINES[name].voices()
  except NotInstalled:
    pytest.skip(f"{name} is not installed: {voice_engines.ENGINES[name].install}")
  assert len({voice.name for voice in voices}) == len(voices)
  for _, own in itertools.groupby(sorted(voices, key=lambda v: v.language), key=lambda v: v.language):
    voice, rng = next(own), np.random.default_rng(0)
    text = voice_texts.sentences(voice.language, rng)
    made, again = (voice.speak(text, np.random.default_rng(1)) for _ in range(2))
    np.testing.assert_array_equal(made.waveform, again.waveform, err_msg=voice.name)
    assert 2 < len(made.waveform) / made.sample_rate_hz < 20, voice.name
    assert made.waveform.dtype == np.float32 and 0.05 < np.abs(made.waveform).max() <= 1, voice.name


@pytest.mark.parametrize("name", [name for name, v in voice_engines.VOCODERS.items() if v.install])
def test_a_vocoder_that_is_installed_keeps_length_and_loudness(name):
  try:
    copy = voice_engines.VOCODERS[name].prepare()
  except NotInstalled:
    pytest.skip(f"{name} is not installed: {voice_engines.VOCODERS[name].install}")
  sound = speech(seconds=3, seed=12)
  made = copy(sound, np.random.default_rng(0))
  assert 0.85 < len(made.waveform) / made.sample_rate_hz / 3 < 1.15
  assert 0.3 < made.waveform.std() / sound.std() < 3 and np.abs(made.waveform).max() <= 1
