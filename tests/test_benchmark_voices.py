"""The benchmark of voices: who is left out is left out, and its figures are those of what was left out."""

import dataclasses

import media_files
import numpy as np
import pytest
import voices
from sklearn.linear_model import LogisticRegression

from deepscan_jax.config import load_preset
from deepscan_jax.launch import benchmark_voices
from deepscan_jax.launch.benchmark_voices import EngineRow, Pairs, Sounds
from deepscan_jax.rooms import find_builder

SPEAKERS, FILES = 12, 3
# What each engine adds to the statistics of a real voice: two alike, one of its own, and one nothing.
TRACES = {"alike": (3.0, 0.0), "alike_too": (3.2, 0.3), "other": (0.0, 3.0), "perfect": (0.0, 0.0)}


def made(**offsets: float) -> tuple[Sounds, Pairs]:
  """Two numbers of each sound; `offsets` move the real recordings of a source along the first."""
  rng, rows = np.random.default_rng(0), []
  for source in ("street", "studio", "phone"):
    for speaker in range(SPEAKERS):
      for take in range(FILES):
        rows.append((False, "", source, f"{source}/{speaker}", f"{source}/{speaker}/{take}", (0.0, 0.0)))
  for engine, trace in TRACES.items():
    for take in range(SPEAKERS * FILES):
      rows.append((True, engine, "tts", f"tts/{engine}", f"tts/{engine}/{take}", trace))
  fake, engine, source, speaker, file, trace = (np.array(column) for column in zip(*rows, strict=True))
  statistics = trace + 0.5 * rng.standard_normal(trace.shape)
  statistics[:, 0] += [offsets.get(name, 0.0) for name in source]
  sounds = Sounds(statistics.astype(np.float32), fake, engine, source, speaker, file, np.ones(len(fake)))
  chosen = np.array([(rng.choice(np.flatnonzero(~fake)), i) for i in np.flatnonzero(fake)])
  real, forged = chosen.T
  pairs = Pairs(
    statistics[chosen.ravel()].astype(np.float32),
    engine[forged],
    source[real],
    np.stack([speaker[real], speaker[forged]], axis=1),
  )
  return sounds, pairs


def rows_by_name(rows: list) -> dict:
  return {row.engine if isinstance(row, EngineRow) else row.source: row for row in rows}


def test_the_fit_is_a_logistic_regression_with_a_ridge():
  sounds, pairs = made()
  chosen = np.arange(len(pairs.engine)) % 3 > 0
  rows = np.repeat(chosen, 2)
  strength = 1 / (benchmark_voices._RIDGE * rows.sum())
  theirs = LogisticRegression(C=strength, tol=1e-8).fit(
    pairs.statistics[rows], np.tile([0, 1], rows.sum() // 2)
  )
  ours = benchmark_voices.fit(pairs, chosen)(sounds.statistics)
  np.testing.assert_allclose(ours, theirs.decision_function(sounds.statistics), atol=2e-3)


def test_an_engine_is_found_by_what_others_taught():
  sounds, pairs = made()
  found = rows_by_name(benchmark_voices.judge(sounds, [pairs, pairs]))
  assert set(found) == {*TRACES, "street", "studio", "phone"}
  assert found["alike"].auc[0] > 0.98 and found["alike"].recall[0] > 0.7
  assert found["alike"].files == SPEAKERS * FILES and found["alike"].related == ()
  assert 0.3 < found["perfect"].auc[0] < 0.7 and found["perfect"].recall[0] < 0.1
  # What was shown to no fit is found less well than what was.
  assert found["other"].auc[0] < found["alike"].auc[0]
  least, most = found["alike"].auc[1:]
  assert least <= found["alike"].auc[0] <= most


def test_relatives_are_left_out_together():
  sounds, pairs = made()
  alone = rows_by_name(benchmark_voices.judge(sounds, [pairs]))
  together = rows_by_name(benchmark_voices.judge(sounds, [pairs], related=[("alike", "alike_too")]))
  assert together["alike"].related == ("alike_too",)
  assert together["alike"].auc[0] < alone["alike"].auc[0] - 0.1


def test_a_kind_of_recordings_is_accused_by_a_threshold_of_the_others():
  found = rows_by_name(benchmark_voices.judge(*[[x] if i else x for i, x in enumerate(made(phone=2.5))]))
  assert found["phone"].false_alarms[0] > 0.3
  assert found["street"].false_alarms[0] < 0.05 and found["phone"].files == SPEAKERS * FILES


def test_short_sounds_are_judged_with_less_certainty():
  sounds, pairs = made(phone=2.5)
  short = dataclasses.replace(sounds, certainty=np.where(sounds.source == "phone", 0.3, 1.0))
  found, damped = (rows_by_name(benchmark_voices.judge(each, [pairs])) for each in (sounds, short))
  assert damped["phone"].false_alarms[0] < found["phone"].false_alarms[0] - 0.2


def test_a_file_counts_once():
  sounds, pairs = made()
  twice = {f.name: np.concatenate([getattr(sounds, f.name)] * 2) for f in dataclasses.fields(sounds)}
  once = benchmark_voices.judge(sounds, [pairs])
  again = rows_by_name(benchmark_voices.judge(Sounds(**twice), [pairs]))
  assert all(
    rows_by_name([row])[name].files == again[name].files for row in once for name in rows_by_name([row])
  )


def test_one_engine_or_one_kind_of_recordings_is_not_enough():
  sounds, pairs = made()
  few = {
    f.name: getattr(sounds, f.name)[~np.isin(sounds.engine, ["alike_too", "other", "perfect"])]
    for f in dataclasses.fields(sounds)
  }
  with pytest.raises(ValueError, match=r"takes two engines.*there are 1 and 3"):
    benchmark_voices.judge(Sounds(**few), [pairs])


def test_all_of_it_runs_on_files(tmp_path, monkeypatch):
  """Real voices of two folders; the engines are one that adds hum and one that adds hiss."""
  monkeypatch.setattr(benchmark_voices, "LEAST_FILES", 2)
  rng, seconds = np.random.default_rng(0), 1.5
  adds = {
    "hum": lambda x: x + 0.02 * np.sin(np.arange(len(x))),
    "hiss": lambda x: x + 0.02 * rng.normal(size=len(x)),
  }
  for seed in range(8):
    voice = voices.speech(seconds=seconds, seed=seed)
    room = tmp_path / ("street", "studio")[seed % 2]
    for place, sound in {
      f"real/{seed}": voice,
      **{f"fake/{e}/{seed}": f(voice) for e, f in adds.items()},
    }.items():
      path = room / place / "a.wav"
      path.parent.mkdir(parents=True)
      media_files.sound(path, np.clip(sound, -1, 1).astype(np.float32), sample_rate_hz=voices.RATE_HZ)
  builder, form = find_builder("real_fake_folder")
  media = [tmp_path / "street", tmp_path / "studio"]
  builder(config=form, media_paths=media, data_dir=tmp_path / "data").prepare()
  config = load_preset("default_voice")
  window = dataclasses.replace(config.data.window, samples=round(seconds * voices.RATE_HZ))
  config = dataclasses.replace(config, data=dataclasses.replace(config.data, window=window))
  rows = benchmark_voices.voice_rows(config, tmp_path / "data", seeds=1, pairs=12)
  found = rows_by_name(rows)
  assert set(found) == {"hum", "hiss", "street", "studio"} and found["hum"].files == 8
  assert found["street"].files == found["studio"].files == 4
  lines = benchmark_voices.table(rows).splitlines()
  assert lines[0].split()[:2] == ["files", "AUC,"] and lines[3].startswith("mean")
