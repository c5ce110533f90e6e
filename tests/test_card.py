import dataclasses
import datetime
import json
import re

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from deepscan_jax import card, card_report, levels, metrics, protocols
from deepscan_jax.levels import FACES, Rows
from deepscan_jax.scoring import Ladder, Missing, Scored

PROTOCOL = protocols.Protocol(
  train={"datasets": ["real_only"], "pseudofakes": True, "labelled_share": 0.0, "start_from": ""},
  selection={"split": "validation", "metric": "auc", "threshold_false_positive_rates": {"calibration": 0.05}},
  media="prepared",
  preprocessing="own",
  frames=None,
  faces="who decides",
  aggregation="mean",
  level="video",
)
MODEL = {"name": "tiny", "version": "1", "sha256": "0" * 64, "bytes": 12_300_000, "parameters": 3_000_000}
THRESHOLDS = {FACES: {"inconclusive": 0.6, "manipulated": 0.8, "false_positive_rate": 0.05}}
CREATED = datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC)
DRAWS = 200


def videos(
  count: int = 120, *, seed: int = 0, each: int = 2, shift: float = 1.5, dataset: str = "celeb_df"
) -> Rows:
  """Rows of videos in groups of `each`, fakes `shift` above reals."""
  rng = np.random.default_rng(seed)
  label = np.arange(count) // each % 2
  # What the videos of a group have in common is most of what they are.
  score = (
    np.repeat(rng.normal(size=-(-count // each)), each)[:count] + 0.3 * rng.normal(size=count) + shift * label
  )
  name = np.array([f"{dataset}:{i}.mp4" for i in range(count)])
  group = np.array([f"{dataset}/{i // each}" for i in range(count)])
  methods = np.array(["swap", "reenactment"])[np.arange(count) // (2 * each) % 2]
  return Rows(
    id=name,
    file=name,
    dataset=np.full(count, dataset),
    group=group,
    source=np.full(count, "youtube"),
    method=np.where(label == 1, methods, ""),
    part=np.full(count, FACES),
    condition=np.full(count, "untouched"),
    label=label,
    score=score,
    called=score >= 1.4,
    doubtful=(score >= 0.4) & (score < 1.4),
    face_size_px=rng.uniform(40, 300, count),
    sharpness=np.full(count, np.nan),
  )


def scored(rows: Rows, *, missing: tuple[Missing, ...] = (), pairs: Rows | None = None, **timings) -> Scored:
  def all_levels(rows: Rows) -> dict[str, Rows]:
    return {level: rows for level in protocols.LEVELS}

  return Scored(
    labelled=all_levels(rows),
    pairs=all_levels(pairs) if pairs is not None else None,
    missing=missing,
    frames=None,
    faces="who decides",
    aggregation="mean",
    timings=timings,
    parts={},
  )


def made(found: Scored, *, protocol: protocols.Protocol = PROTOCOL, **settings) -> dict:
  datasets = sorted(set(found.labelled["video"].dataset.tolist())) or ["celeb_df"]
  settings = {"draws": DRAWS, "created": CREATED, **settings}
  return card.make_card(
    found, model=MODEL, protocol=protocol, datasets=datasets, split="test", thresholds=THRESHOLDS, **settings
  )


def lost(number: int, *, label: int, reason: str = "no_face", dataset: str = "celeb_df") -> Missing:
  return Missing(file=f"{dataset}:lost{number}.mp4", dataset=dataset, label=label, reason=reason)


def test_figures_are_those_of_scikit_learn_with_intervals_around_them():
  rows = videos()
  found = card.figures_of(rows, draws=DRAWS)
  assert found["auc"]["value"] == pytest.approx(roc_auc_score(rows.label, rows.score))
  expected = average_precision_score(rows.label, rows.score)
  assert found["average_precision"]["value"] == pytest.approx(expected)
  for name in card.FIGURES:
    low, high = found[name]["interval"]
    assert low <= high and low - 0.02 <= found[name]["value"] <= high + 0.02, name
  assert found["count"] == {
    "rows": 120,
    "real": 60,
    "fake": 60,
    "groups": 60,
    "real_groups": 30,
    "fake_groups": 30,
  }
  assert sum(found["confusion"].values()) == 120
  assert found == card.figures_of(rows, draws=DRAWS)


def test_intervals_know_of_groups():
  rows = videos(400, each=20)
  clustered = card.figures_of(rows, draws=DRAWS)["auc"]["interval"]
  alone = dataclasses.replace(rows, group=rows.id)
  flattered = card.figures_of(alone, draws=DRAWS)["auc"]["interval"]
  assert flattered[1] - flattered[0] < 0.6 * (clustered[1] - clustered[0])


def test_no_false_alarm_is_no_proof_that_there_are_none():
  rows = videos()
  silent = dataclasses.replace(rows, called=np.zeros(len(rows), bool))
  found = card.figures_of(silent, draws=DRAWS)
  assert found["false_positive_rate"]["value"] == 0
  assert found["false_positive_rate"]["interval"] == pytest.approx(list(metrics.wilson_interval(0.0, 30)))
  assert found["precision"] == {"value": None, "interval": None}


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_alone_is_told_in_plain_json(label):
  rows = videos()
  found = made(scored(rows.take(rows.label == label)))
  text = json.dumps(found, allow_nan=False)
  assert "NaN" not in text
  main = found["results"]["labelled"]["levels"]["video"]
  assert (
    main["auc"] == {"value": None, "interval": None}
    and found["results"]["labelled"]["curves"]["video"] is None
  )
  assert main["accuracy"]["value"] is not None
  assert any("nothing that ranks both classes is defined" in note for note in found["notes"])
  assert "| - |" in card.markdown_row(found)
  assert "One class is missing" in card_report.render_html(found) and card_report.summary(found)


def test_files_without_a_score_are_counted_and_are_in_no_figure():
  rows = videos()
  missing = (lost(0, label=1), lost(1, label=1), lost(2, label=0, reason="damaged"))
  with_lost, without = made(scored(rows, missing=missing)), made(scored(rows))
  for level in protocols.LEVELS:
    a, b = (c["results"]["labelled"]["levels"][level] for c in (with_lost, without))
    assert {k: v for k, v in a.items() if k != "coverage"} == {k: v for k, v in b.items() if k != "coverage"}
  coverage = with_lost["coverage"]
  assert coverage["files"] == 123 and coverage["scored"] == 120
  assert coverage["reasons"] == {"damaged": 1, "no_face": 2}
  assert coverage["fake"] == {"files": 62, "scored": 60, "share": pytest.approx(60 / 62)}
  assert with_lost["results"]["labelled"]["levels"]["video"]["coverage"] == pytest.approx(120 / 123)
  assert without["coverage"]["share"] == 1.0
  assert "120 of 123 files got a score" in card_report.summary(with_lost)
  assert with_lost["as_published"] is None


def test_a_published_score_for_nothing_stands_beside_the_figures_not_in_them():
  rows = videos()
  found = made(
    scored(rows, missing=(lost(0, label=1), lost(1, label=1, reason="damaged"))), missing_score=0.5
  )
  beside = found["as_published"]
  never_asked = lost(0, label=1, reason="label_unknown")
  assert (
    made(scored(rows, missing=(never_asked,)), missing_score=0.5)["as_published"]["files_that_got_it"] == 0
  )
  expected = roc_auc_score([*rows.label, 1, 1], [*rows.probability, 0.5, 0.5])
  assert beside["files_that_got_it"] == 2 and beside["auc"] == pytest.approx(expected)
  main = found["results"]["labelled"]["levels"]["video"]["auc"]["value"]
  assert main == pytest.approx(roc_auc_score(rows.label, rows.score)) and main != beside["auc"]


def test_nothing_scored_is_an_error_with_reasons():
  with pytest.raises(ValueError, match=r"None of the 2 files got a score \(damaged: 1, no_face: 1\)"):
    made(scored(Rows.of([]), missing=(lost(0, label=1), lost(1, label=0, reason="damaged"))))
  with pytest.raises(ValueError, match="prevalence"):
    made(scored(videos()), prevalences=[1.0])


def test_breakdowns():
  rows = Rows.join(
    [
      videos(),
      videos(60, seed=1, dataset="faceforensics/c23-clips"),
      videos(60, seed=2, dataset="faceforensics/c40"),
    ]
  )
  by = made(scored(rows))["results"]["labelled"]["by"]
  assert set(by["dataset"]) == {"celeb_df", "faceforensics/c23-clips", "faceforensics/c40"}
  assert set(by["compression"]) == {"as it is", "c23", "c40"}
  # Fakes of one method against all reals.
  swap = by["method"]["swap"]
  assert swap["count"]["real"] == 120 and swap["count"]["fake"] == (rows.method == "swap").sum()
  keep = (rows.method == "swap") | (rows.label == 0)
  assert swap["auc"]["value"] == pytest.approx(roc_auc_score(rows.label[keep], rows.score[keep]))
  assert sum(part["count"]["rows"] for part in by["face_size"].values()) == len(rows)
  # What is one part only says nothing new.
  assert "source" not in by and "sharpness" not in by and "condition" not in by


def test_a_method_is_measured_against_the_reals_of_its_own_datasets():
  first, second = videos(), videos(80, seed=1, dataset="dfdc")
  second = dataclasses.replace(second, method=np.where(second.label == 1, "dfdc", ""))
  by = made(scored(Rows.join([first, second])))["results"]["labelled"]["by"]["method"]
  assert by["dfdc"]["count"]["real"] == 40 and by["swap"]["count"]["real"] == 60
  # A dataset of fakes alone has none: then all there are.
  fakes = second.take(np.flatnonzero(second.label == 1))
  by = made(scored(Rows.join([first, fakes])))["results"]["labelled"]["by"]["method"]
  assert by["dfdc"]["count"]["real"] == by["swap"]["count"]["real"] == 60


@pytest.mark.parametrize(
  ("name", "said"),
  [("celeb_df", "as it is"), ("faceforensics/c40", "c40"), ("faceforensics/raw-clips-jpeg95", "raw-jpeg95")],
)
def test_a_name_says_its_compression(name, said):
  assert card.compression_of(name) == said


def test_pooled_figures_show_a_threshold_that_drifts():
  near, far = videos(), videos(seed=3, dataset="dfdc")
  far = dataclasses.replace(far, score=far.score + 5, called=far.score + 5 >= 1.4)
  table = made(scored(Rows.join([near, far])))["cross_dataset"]
  (row,) = table["rows"]
  each = [row["tests"][name]["auc"]["value"] for name in ("celeb_df", "dfdc")]
  assert row["pooled"]["auc"]["value"] < min(each) - 0.1
  assert row["mean_auc_unseen"] == pytest.approx(np.mean(each))
  assert row["tests"]["dfdc"]["false_positive_rate"]["value"] > 0.9
  seen = dataclasses.replace(PROTOCOL, train={**PROTOCOL.train, "datasets": ["dfdc/jpeg95"]})
  (row,) = made(scored(Rows.join([near, far])), protocol=seen)["cross_dataset"]["rows"]
  assert row["tests"]["dfdc"]["seen_in_training"] and row["mean_auc_unseen"] == pytest.approx(each[0])


def test_what_a_call_is_worth():
  (one, two) = made(scored(videos()), prevalences=[0.01, 0.5])["deployment"]
  main = card.figures_of(videos(), draws=DRAWS)
  recall, fpr = main["recall"]["value"], main["false_positive_rate"]["value"]
  assert one["ppv"]["value"] == pytest.approx(0.01 * recall / (0.01 * recall + 0.99 * fpr))
  assert one["false_alarms_per_10000"]["value"] == pytest.approx(9900 * fpr)
  assert one["found_per_10000"]["value"] + one["missed_per_10000"]["value"] == pytest.approx(100)
  for row in (one, two):
    for figure in (row[name] for name in row if name != "prevalence"):
      assert figure["interval"][0] <= figure["value"] <= figure["interval"][1]
  assert two["ppv"]["value"] > one["ppv"]["value"]


def test_curves_are_thin_and_end_where_curves_end():
  rows = videos(4000, each=1)
  found = card.curves(rows)
  roc = found["roc"]
  assert (
    len(roc["fpr"]) <= 162 and roc["fpr"][0] == roc["tpr"][0] == 0 and roc["fpr"][-1] == roc["tpr"][-1] == 1
  )
  area = np.trapezoid(roc["tpr"], roc["fpr"])
  assert area == pytest.approx(roc_auc_score(rows.label, rows.score), abs=0.005)
  assert sum(f < 0.01 for f in roc["fpr"]) > 10
  assert sum(found["reliability"]["weight"]) == 4000


def test_latency_leaves_compiling_out():
  found = made(scored(videos(), total_s=[9.0, 1.0, 1.2], compile_s=[8.0, 0.0, 0.0], model_s=[0.1, 0.2, 0.3]))
  latency = found["cost"]["latency"]
  assert latency["total_s"]["median"] == 1.0 and latency["model_s"] == {
    "median": 0.2,
    "p95": pytest.approx(0.29),
    "mean": pytest.approx(0.2),
    "count": 3,
  }


def test_pairs_are_the_headline_where_all_files_are_real():
  rows = videos()
  found = made(scored(rows.take(rows.label == 0), pairs=rows))
  assert found["headline"] == {"set": "pairs", "level": "video"}
  assert any("say nothing of real forgeries" in note for note in found["notes"])
  assert "pseudo-fakes" in card.markdown_row(found)
  assert made(scored(rows, pairs=rows))["headline"]["set"] == "labelled"


# Comparing ----------------------------------------------------------------------------------------------


def better(rows: Rows, by: float) -> Rows:
  score = rows.score + by * rows.label
  return dataclasses.replace(rows, score=score, called=score >= 1.4)


def test_a_model_is_not_distinguishable_from_itself():
  found = made(scored(videos()))
  result = card.compare(found, found, draws=DRAWS)
  for row in result["figures"].values():
    assert row["difference"] == 0 and row["p"] == 1 and not row["distinguishable"]
  assert card.comparison_sentence(result).startswith("Not distinguishable: AUC")
  assert result["files"] == {"common": 120, "only_a": 0, "only_b": 0}
  # Nor from what rounding makes of it, though all scores of fakes are a hair higher.
  rounded = made(scored(better(videos(), 1e-8)))
  rows = card.compare(found, rounded, draws=DRAWS)["figures"].values()
  assert any(row["difference"] for row in rows) and not any(row["distinguishable"] for row in rows)


def test_a_clearly_better_model_is_told_apart_and_which_it_is():
  rows = videos(shift=0.5)
  first, second = made(scored(rows)), made(scored(better(rows, 1.5)))
  result = card.compare(first, second, draws=DRAWS)
  auc = result["figures"]["auc"]
  assert auc["distinguishable"] and auc["difference"] > 0.2 and auc["interval"][0] > 0 and auc["p"] < 0.02
  assert card.comparison_sentence(result).startswith("The second is better: AUC")
  back = card.compare(second, first, draws=DRAWS)
  assert back["figures"]["auc"]["interval"] == pytest.approx([-auc["interval"][1], -auc["interval"][0]])
  assert card.comparison_sentence(back).startswith("The first is better")
  assert "| EER |" in card.comparison_markdown(result) and "differs" in card.comparison_markdown(result)


def test_a_difference_of_few_groups_is_chance():
  """Twenty videos of each of twelve people: as many examples, but hardly any evidence."""
  rows = videos(240, each=20, shift=0.5)
  # Three of the six forged people gain, three lose.
  moved = np.repeat([0.0, 1.5, 0.0, -0.5] * 3, 20)
  other = dataclasses.replace(rows, score=rows.score + moved)
  first, second = made(scored(rows)), made(scored(other))
  assert not card.compare(first, second, draws=DRAWS)["figures"]["auc"]["distinguishable"]
  alone = [{**c, "scores": {**c["scores"], "group": c["scores"]["id"]}} for c in (first, second)]
  assert card.compare(*alone, draws=DRAWS)["figures"]["auc"]["distinguishable"]


def test_a_handful_of_groups_has_no_interval():
  rows = videos(160, each=20)  # four people of each class, all of them told apart
  rows = dataclasses.replace(rows, score=4.0 * rows.label, called=rows.label == 1)
  found = made(scored(rows))
  main = found["results"]["labelled"]["levels"]["video"]
  assert main["auc"] == {"value": 1.0, "interval": None}
  assert main["recall"]["interval"] == pytest.approx(list(metrics.wilson_interval(1.0, 4)))
  assert any("Only 4 independent groups of fake files" in note for note in found["notes"])
  row = found["deployment"][0]
  assert row["ppv"]["value"] == 1.0 and row["ppv"]["interval"][0] < 0.02
  result = card.compare(found, found, draws=DRAWS)
  assert (
    result["figures"]["auc"]["interval"] == [None, None] and not result["figures"]["auc"]["distinguishable"]
  )
  assert "too few groups" in card.comparison_sentence(result)
  assert card_report.render_html(found) and card.comparison_markdown(result)


def test_a_model_that_calls_nothing_is_told_so():
  rows = dataclasses.replace(videos(), called=np.zeros(120, bool))
  told = card_report.summary(made(scored(rows)))
  assert "nothing is called manipulated" in told and "100 fakes are missed" in told


def test_only_files_that_both_scored_are_compared():
  rows = videos()
  first = made(scored(rows.take(np.arange(len(rows)) < 100), missing=(lost(1, label=1),)))
  second = made(scored(rows.take(np.arange(len(rows)) >= 20)))
  result = card.compare(first, second, draws=DRAWS)
  assert result["files"] == {"common": 80, "only_a": 20, "only_b": 20}
  assert all(row["difference"] == 0 for row in result["figures"].values())


def test_cards_of_different_protocols_are_compared_only_when_asked():
  rows = videos()
  other = dataclasses.replace(PROTOCOL, frames=8, train={**PROTOCOL.train, "datasets": ["dfdc"]})
  first, second = made(scored(rows)), made(scored(rows), protocol=other)
  with pytest.raises(
    card.ProtocolError, match=r"frames: None and 8; train.datasets: \['real_only'\] and \['dfdc'\]"
  ):
    card.compare(first, second)
  result = card.compare(first, second, allow_different=True, draws=DRAWS)
  assert len(result["protocol_differences"]) == 2
  assert "The protocols differ" in card.comparison_markdown(result)


def test_cards_of_different_builds_are_compared_only_when_asked():
  rows = videos()
  first, second = (made(scored(rows), builds={"celeb_df": build}) for build in ("aa", "bb"))
  with pytest.raises(card.ProtocolError, match="different builds of celeb_df"):
    card.compare(first, second)
  result = card.compare(first, second, allow_different=True, draws=DRAWS)
  assert result["protocol_differences"] == ["the builds of celeb_df"]
  # Old builds have no fingerprint.
  card.compare(first, made(scored(rows), builds={"celeb_df": None}), draws=DRAWS)


def test_cards_that_do_not_fit_are_refused():
  rows = videos()
  first = made(scored(rows))
  with pytest.raises(card.ProtocolError, match="no scored file in common"):
    card.compare(first, made(scored(videos(dataset="dfdc"))))
  turned = dataclasses.replace(rows, label=1 - rows.label)
  with pytest.raises(card.ProtocolError, match="do not agree whether"):
    card.compare(first, made(scored(turned)))
  with pytest.raises(card.ProtocolError, match="labelled videos and pairs videos"):
    card.compare(first, made(scored(rows.take(rows.label == 0), pairs=rows)))


def test_a_card_that_was_changed_is_found_out():
  found = made(scored(videos()))
  card.check_card(found, "a.json")
  with pytest.raises(ValueError, match=r"a\.json is no evaluation card"):
    card.check_card({"pairs": {}}, "a.json")
  found["protocol"]["frames"] = 32
  with pytest.raises(ValueError, match="not the one that its hash was made of"):
    card.check_card(found, "a.json")


# Showing ------------------------------------------------------------------------------------------------


def test_a_row_of_markdown_fits_its_header():
  found = made(scored(videos()))
  header, row = card.markdown_header().splitlines()[0], card.markdown_row(found)
  assert header.count("|") == row.count("|") and "\n" not in row
  assert found["protocol_hash"][:8] in row and "100.0 %" in row
  assert re.search(r"0\.\d{3} \(0\.\d{3} to [01]\.\d{3}\)", row)


def test_the_page_holds_all_and_asks_for_nothing():
  rows = Rows.join([videos(), videos(60, seed=1, dataset="dfdc")])
  rows = dataclasses.replace(
    rows, method=np.where(rows.method == "swap", "<script>alert(1)</script>", rows.method)
  )
  found = made(scored(rows, missing=(lost(0, label=1, reason="<b>"),), model_s=[0.01, 0.02]))
  found = json.loads(json.dumps(found, allow_nan=False))  # as --compare and others read it
  page = card_report.render_html(found)
  assert "<script" not in page and "&lt;script&gt;" in page and "<b>" not in page
  assert "default-src &#x27;none&#x27;" in page and not re.search(r"(src|href)=\"http", page)
  for words in (
    "ROC",
    "DET",
    "AP",
    "Reliability",
    "By method",
    "Across datasets",
    "Coverage",
    "What a call is worth",
  ):
    assert words in page, words
  assert page.count("<svg") == 4 and "nan" not in page.lower().replace("nantes", "")
  assert found["protocol_hash"] in page
  assert page == card_report.render_html(found)


def test_cards_of_several_models_make_one_table():
  first = made(scored(videos()))["cross_dataset"]["rows"]
  other = dataclasses.replace(PROTOCOL, train={**PROTOCOL.train, "datasets": ["celeb_df/jpeg95"]})
  second = made(scored(videos(dataset="dfdc")), protocol=other)["cross_dataset"]["rows"]
  told = card_report.cross_markdown(card.cross_table(*first, *second)).splitlines()
  assert told[0] == "| trained on | celeb_df | dfdc | pooled | mean of unseen |"
  assert told[2].startswith("| real_only | 0.") and told[3].startswith("| celeb_df/jpeg95 | - | 0.")


def test_every_bucket_has_a_name():
  assert len(dict(levels.SHARPNESS_BUCKETS)) == 3 and levels.SHARPNESS_BUCKETS[-1][1] == np.inf


def test_the_page_shows_whether_maps_are_faithful():
  def gain(value, interval=(0.2, 0.4)):
    return {"value": value, "interval": interval and list(interval)}

  maps = {
    "pairs": 40,
    "groups": 31,
    "shares": [0.0, 0.5, 1.0],
    "logit_fake": 2.0,
    "logit_real": -1.5,
    "deletion": {"map": [2.0, -1.0, -1.5], "random": [2.0, 0.2, -1.5], "other": [2.0, -0.3, -1.5]},
    "insertion": {"map": [-1.5, 1.4, 2.0], "random": [-1.5, 0.2, 2.0], "other": [-1.5, 0.5, 2.0]},
    "area": {w: {"map": 0.1, "random": 0.2, "other": 0.3} for w in ("deletion", "insertion")},
    "gain": {w: {"random": gain(0.31), "other": gain(0.12, None)} for w in ("deletion", "insertion")},
  }
  found = json.loads(json.dumps(made(scored(videos()), faithfulness=maps)))
  page, plain = card_report.render_html(found), card_report.render_html(made(scored(videos())))
  assert page.count("<svg") == plain.count("<svg") + 2 and page.count("line random") == 2
  assert "Do the region maps show" in page and "Do the region maps show" not in plain
  told = card_report.summary(found)
  assert "Region maps of 40 held-out pseudo-fakes" in told and "0.31 (0.20 to 0.40)" in told
  assert "Region maps" not in card_report.summary(made(scored(videos())))
  assert json.dumps(found["faithfulness"]) == json.dumps(maps) and found["schema_version"] == "1.1"


def ladder_of(rows: Rows, *, names=("blur", "noise")) -> Ladder:
  """The fakes sink towards the reals, level by level; under noise half as fast."""
  rungs = {}
  for speed, name in enumerate(names, start=1):
    steps = [dataclasses.replace(rows, score=rows.score - 0.5 * k / speed * rows.label) for k in range(6)]
    rungs[name] = [{level: step for level in protocols.LEVELS} for step in steps]
  return Ladder(of="labelled", examples=len(rows), total=3 * len(rows), rungs=rungs)


def test_robustness_is_the_auc_of_each_level_and_no_part_of_the_protocol():
  rows = videos()
  ladder = ladder_of(rows)
  found = made(scored(rows), ladder=ladder)
  assert found["robustness"].keys() == {"blur", "noise"}
  for name, rungs in ladder.rungs.items():
    for step, row in zip(rungs, found["robustness"][name], strict=True):
      step = step["video"]
      assert row["auc"] == pytest.approx(roc_auc_score(step.label, step.score))
      assert row["interval"][0] < row["auc"] < row["interval"][1]
      assert row["detected"]["value"] == pytest.approx(step.called[step.label == 1].mean())
      assert row["false_alarms"]["value"] == pytest.approx(step.called[step.label == 0].mean())
  settings = [row["setting"] for row in found["robustness"]["blur"]]
  assert settings[0] == "untouched" and settings[5] == "kernel of 21 px"
  plain = made(scored(rows))
  assert plain == {key: value for key, value in found.items() if not key.startswith("robustness")}


def test_robustness_is_shown_as_charts_and_as_a_table():
  rows = videos()
  found = made(scored(rows), ladder=ladder_of(rows))
  text = card_report.render_html(found)
  assert text.count("AUC against level of") == 2 and "of 120 of 360 examples, evenly spread" in text
  assert text.count('class="span"') == 2 and "kernel of 21 px" in text
  lines = card_report.robustness_markdown(found).splitlines()
  assert lines[2].startswith("| perturbation | untouched | 1 | 2") and lines[4].startswith("| blur | 0.")
  assert {line.count("|") for line in lines[2:]} == {10}
  assert card_report.robustness_markdown(found) in card_report.summary(found)
  assert "AUC against level" not in card_report.render_html(made(scored(rows)))


def test_robustness_without_a_class_is_told():
  rows = videos()
  real = rows.take(rows.label == 0)
  found = made(scored(real), ladder=ladder_of(real))
  assert all(row["auc"] is None for row in found["robustness"]["blur"])
  assert found["robustness"]["blur"][3]["false_alarms"]["value"] is not None
  text = card_report.render_html(found)
  assert "there is no AUC" in text and "polygon" not in text
  assert "| blur | - | - |" in card_report.robustness_markdown(found)


def test_a_card_without_names_compares_like_one_with_them():
  rows, other = videos(), videos(shift=0.2)
  a, b = made(scored(rows)), made(scored(other))
  hidden = [card.without_names(found) for found in (a, b)]
  text = json.dumps(hidden)
  assert ".mp4" not in text and '"celeb_df/' not in text
  assert len(set(hidden[0]["scores"]["id"])) == len(rows)
  with_names, without = card.compare(a, b, draws=DRAWS), card.compare(*hidden, draws=DRAWS)
  for key in ("a", "b", "difference"):
    assert without["figures"]["auc"][key] == pytest.approx(with_names["figures"]["auc"][key], abs=1e-4)
  # One of each are the same files all the same.
  for pair in ((a, hidden[1]), (hidden[0], b)):
    mixed = card.compare(*pair, draws=DRAWS)
    assert mixed["files"] == without["files"] and mixed["groups"] == without["groups"]
    assert mixed["figures"]["auc"]["b"] == pytest.approx(without["figures"]["auc"]["b"], abs=1e-4)
