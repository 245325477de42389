"""Audits find what is planted for them to find, and nothing in a sound data set."""

import dataclasses
import io
import json
from datetime import date

import numpy as np
import polars as pl
import pytest
from rich.console import Console
from tests.toy_models import ring_rows, toy_catalogue
from tests.toy_traces import card, hand_question
from tests.toys import toy_dataset

from reasonrec import cli
from reasonrec.data.planted.config import PlantedConfig
from reasonrec.data.prepare import prepare_planted
from reasonrec.data.prepare_config import PrepareConfig
from reasonrec.errors import CheckpointError, DataError
from reasonrec.evaluation.audits.config import AuditConfig
from reasonrec.evaluation.audits.disguise import disguised_items, write_disguised
from reasonrec.evaluation.audits.leaks import (
    future_edge_audits,
    label_audit,
    last_queries,
    own_edge_audits,
    planted_dataset,
    planted_event_audits,
    shown_labels,
    sightings,
    together_edge_audit,
    weighs_canary,
    with_neighbours,
)
from reasonrec.evaluation.audits.log import log_audits, newer_in_train, tied_targets
from reasonrec.evaluation.audits.records import (
    Audit,
    Audits,
    audit_rows,
    audits_markdown,
    audits_table,
    judged,
    read_audits,
    write_audits_file,
)
from reasonrec.evaluation.audits.shortcuts import tie_audits
from reasonrec.evaluation.audits.slices import cutoff, first_seen, slice_rows, slices_of
from reasonrec.evaluation.audits.stage import find_source, write_audits
from reasonrec.evaluation.protocol import Evaluation

N = 12
LEAVE_ONE_OUT = {"split": "leave-one-out"}


def shop(**changes):
    """Return 14 users who walk along 12 items, 8 events each; event n happens at 100 (n + 1)."""
    toy = toy_dataset(ring_rows(14, N, 8), [f"Tale {i}" for i in range(N)])
    return dataclasses.replace(toy, catalogue=toy_catalogue(N), **changes)


def by_name(rows):
    return {row.audit: row for row in rows}


# ---- verdicts -------------------------------------------------------------------------------


def test_a_verdict_follows_from_the_stated_limits():
    limits = {"n": 5, "warn_above": 0.1, "fail_above": 0.5}
    assert judged("x", 0.1, "m", **limits).verdict == "pass"
    assert judged("x", 0.2, "m", **limits).verdict == "warn"
    assert judged("x", 0.6, "m", **limits).verdict == "fail"
    assert judged("x", 0.6, "m", **limits).limit == "warn above 0.1, fail above 0.5"
    assert judged("x", 0.9, "m", n=5, fail_below=0.95).verdict == "fail"
    assert judged("x", None, "m", n=0).verdict == "warn"
    assert judged("x", 7.0, "m", n=0).limit == "reported only"


def test_audits_can_be_read_in_a_narrow_terminal():
    meaning = "Share of the probed training events whose evidence follows the edge to be predicted"
    limits = {"n": 9, "warn_above": 0.1, "fail_above": 0.5}
    rows = (judged("fine", 0.0, "m", n=9), judged("a-rather-long-name", 0.6, meaning, **limits))
    out = io.StringIO()
    table = audits_table(Audits("toy", "leave-one-out", rows))
    Console(file=out, width=80).print(table)
    text = out.getvalue()
    assert text.index("a-rather-long-name") < text.index("fine")
    assert set(meaning.split()) <= set(text.split())  # no word is cut
    assert len(text.splitlines()) < 9


def test_audits_are_read_back_and_the_worst_comes_first(tmp_path):
    rows = [Audit("a", 0.0, "m", "l", "pass", 1), Audit("b", 1.0, "m", "l", "fail", 1)]
    audits = Audits("toy", "leave-one-out", tuple(rows))
    write_audits_file(tmp_path / "audits.json", audits)
    assert read_audits(tmp_path) == audits
    assert [row["audit"] for row in audit_rows(audits)] == ["b", "a"]
    assert audits.verdict == "fail"
    assert "| fail | b | 1 |" in audits_markdown(audits)
    (tmp_path / "audits.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="must be audits"):
        read_audits(tmp_path)


# ---- leaks ----------------------------------------------------------------------------------


def test_the_graph_follows_an_edge_before_the_question_and_none_after_it():
    found = by_name(future_edge_audits(shop(), num_probes=9, seed=0))
    assert (found["future-edge"].value, found["future-edge"].verdict) == (0.0, "pass")
    assert (found["future-edge-control"].value, found["future-edge-control"].n) == (1.0, 9)


def test_without_times_an_edge_cannot_be_planted_and_the_audit_says_so():
    untimed = toy_dataset(ring_rows(5, N, 6), [f"Tale {i}" for i in range(N)], timestamps=False)
    (row,) = future_edge_audits(untimed, num_probes=5, seed=0)
    together = together_edge_audit(untimed, num_probes=5, seed=0)
    assert (row.value, row.verdict) == (together.value, together.verdict) == (None, "warn")


def test_what_goes_with_a_history_learns_from_edges_that_are_newer_than_the_question():
    # train holds events at 100..600: of 14 questions the first 5 are older than some of them
    times = np.repeat([350, 800], [5, 9]).astype(np.int64)
    dataset = shop(test=dataclasses.replace(shop().test, timestamp=times))
    row = together_edge_audit(dataset, num_probes=14, seed=0)
    assert (row.value, row.verdict, row.n) == (pytest.approx(5 / 14), "warn", 14)
    # the graph keeps out what is as new as the question, whenever that is
    found = by_name(future_edge_audits(dataset, num_probes=14, seed=0))
    assert (found["future-edge"].value, found["future-edge-control"].value) == (0.0, 1.0)


@pytest.mark.parametrize("model", ["ease", "item-knn-bm25"])
def test_an_item_that_nobody_took_with_the_history_is_weighed_as_a_lone_one(model):
    dataset = shop()
    log = with_neighbours(dataset, dataset.test, seconds_before=0)
    assert weighs_canary(dataset, log, dataset.test, model).all()
    # neighbours' two events lie behind the log: without the first, the canary is all they took
    alone = log.without(len(dataset.train) + 2 * np.arange(14))
    assert not weighs_canary(dataset, alone, dataset.test, model).any()


def test_where_training_is_older_than_every_question_there_is_no_future_to_learn_from(tmp_path):
    split = PrepareConfig(name="shop", split="global-time")
    dataset = prepare_planted(tmp_path, PlantedConfig(size="tiny"), split, seed=2)
    row = together_edge_audit(dataset, num_probes=20, seed=0)
    assert (row.value, row.verdict, row.n) == (0.0, "pass", 20)


def test_no_evidence_comes_from_the_event_that_it_is_about():
    (row,) = own_edge_audits(shop(), num_probes=30, seed=0)
    assert (row.value, row.verdict, row.n) == (0.0, "pass", 30)
    lone = toy_dataset([[0], [1]], [f"Tale {i}" for i in range(N)])
    (row,) = own_edge_audits(lone, num_probes=30, seed=0)
    assert row.value is None


@pytest.mark.parametrize("timestamps", [True, False])
def test_a_planted_last_event_is_seen_as_a_test_target_and_nowhere_else(timestamps):
    toy = toy_dataset(ring_rows(14, N, 8), [f"Tale {i}" for i in range(N)], timestamps=timestamps)
    dataset = dataclasses.replace(toy, catalogue=toy_catalogue(N))
    event, control = planted_event_audits(dataset, LEAVE_ONE_OUT, num_probes=6, seed=0)
    assert (event.value, event.verdict) == (0.0, "pass")
    assert (control.value, control.verdict, control.n) == (1.0, "pass", 6)


def test_a_planted_log_is_the_old_one_but_for_the_canaries():
    toy = toy_dataset(ring_rows(10, N, 8), [f"Tale {i}" for i in range(N)])
    dataset = dataclasses.replace(toy, catalogue=toy_catalogue(N))
    planted = planted_dataset(dataset, np.array([2, 5]), LEAVE_ONE_OUT, seed=0)
    np.testing.assert_array_equal(planted.train.item_index, dataset.train.item_index)
    np.testing.assert_array_equal(planted.train.timestamp, dataset.train.timestamp)
    np.testing.assert_array_equal(planted.valid.target, dataset.valid.target)
    expected = dataset.test.target.copy()
    expected[[2, 5]] = [N, N + 1]
    np.testing.assert_array_equal(planted.test.target, expected)
    assert planted.user_ids == dataset.user_ids


def test_a_canary_in_the_training_log_is_counted_wherever_it_is_seen():
    dataset = planted_dataset(shop(), np.array([0]), LEAVE_ONE_OUT, seed=0)
    train = dataset.train
    items = train.item_index.copy()
    items[train.user_offsets[1] - 1] = N  # the last training event of user 0
    leaked = dataclasses.replace(dataset, train=dataclasses.replace(train, item_index=items))
    found = sightings(leaked, N)
    assert (found.in_train, found.as_targets) == (1, 1)
    assert found.in_windows > 0  # it is a label of the last position
    histories = dataset.test
    log = histories.log_item_index.copy()
    log[histories.history_start[0]] = N  # the first event that user 0 is known by
    shown = dataclasses.replace(histories, log_item_index=log)
    seen = sightings(dataclasses.replace(dataset, test=shown), N)
    assert (seen.in_train, seen.in_windows) == (0, 0)
    assert seen.in_prompts > 0


def test_a_given_split_is_probed_without_being_made_anew():
    dataset = shop(split="given")
    planted = planted_dataset(dataset, np.array([1]), {"split": "given"}, seed=0)
    assert planted.train is dataset.train
    assert planted.test.target[1] == N


def test_the_last_query_of_every_known_user_is_found():
    test = dataclasses.replace(
        shop().test,
        user_index=np.array([0, 0, 1, -1], np.int32),
        target=np.arange(4, dtype=np.int32),
        history_start=np.zeros(4, np.int64),
        history_stop=np.array([5, 3, 2, 9], np.int64),
        timestamp=None,
    )
    assert last_queries(test).tolist() == [0, 2]


# ---- the log --------------------------------------------------------------------------------


def test_the_log_of_a_walk_has_training_events_newer_than_no_question():
    # train holds the first 6 of 8 events, at 100..600; questions are asked at 800
    dataset = shop(
        statistics={
            "log": {"rows": 200, "events": 112, "frac_repeats": 0.0, "frac_tied_in_time": 0.06},
            "rejected": {"interactions": {"duplicate event": 4, "empty user_id": 9}},
        }
    )
    found = by_name(log_audits(dataset))
    assert found["duplicate-rows"].value == pytest.approx(4 / 200)
    assert found["duplicate-rows"].verdict == "warn"
    assert found["tied-times"].verdict == "warn"
    for name in ("own-future-in-train", "newer-in-train", "target-in-train", "tied-targets"):
        assert (found[name].value, found[name].verdict) == (0.0, "pass"), name


def test_training_rows_from_after_the_question_fail():
    dataset = shop()
    early = dataclasses.replace(dataset.test, timestamp=np.full(14, 350, np.int64))
    found = by_name(log_audits(shop(test=early)))
    assert found["own-future-in-train"].verdict == "fail"
    # of 6 training events a user, those at 400, 500 and 600 are newer than 350
    assert found["newer-in-train"].value == pytest.approx(0.5)
    assert found["newer-in-train"].verdict == "warn"
    assert "what goes with a whole history" in found["newer-in-train"].meaning
    strict = by_name(log_audits(shop(test=early, split="global-time")))
    assert strict["newer-in-train"].verdict == "fail"
    np.testing.assert_allclose(newer_in_train(shop(test=early)), 0.5)
    # what stands in the histories need not have times for that
    untimed = by_name(log_audits(shop(test=dataclasses.replace(early, log_timestamp=None))))
    assert untimed["own-future-in-train"].verdict == "fail"
    assert untimed["tied-targets"].value is None


def test_a_target_that_was_trained_on_fails_unless_the_history_holds_it():
    dataset = shop()
    train = dataset.train
    items = train.item_index.copy()
    items[train.user_offsets[1] - 1] = dataset.test.target[0]  # user 0, not in the test history
    leaked = dataclasses.replace(dataset, train=dataclasses.replace(train, item_index=items))
    found = by_name(log_audits(leaked))
    assert found["target-in-train"].value == pytest.approx(1 / 14)
    assert found["target-in-train"].verdict == "fail"
    repeating = toy_dataset([[0, 1, 2, 3, 0]] * 4, [f"Tale {i}" for i in range(N)])
    found = by_name(log_audits(repeating))
    assert found["target-in-train"].value == 0.0
    assert found["repeated-targets"].value == 1.0


def test_a_target_at_the_time_of_the_last_event_is_tied():
    test = shop().test
    assert not tied_targets(test).any()
    times = test.timestamp.copy()
    times[3] = 700  # the event before was at 700
    assert np.flatnonzero(tied_targets(dataclasses.replace(test, timestamp=times))).tolist() == [3]


def ranked(method, ranks, num_tied=None):
    """Return an evaluation of one method over the catalogue, with lists if ties are given."""
    asked = pl.DataFrame(
        {"method": method, "seed": 0, "protocol": "full", "query": range(len(ranks)), "rank": ranks}
    )
    empty = Evaluation((), asked)
    if num_tied is None:
        return empty
    lists = asked.drop("protocol").with_columns(num_tied=pl.Series(num_tied))
    return dataclasses.replace(empty, lists=lists)


def test_fractional_ranks_betray_ties():
    first = ranked("a", [1.0, 2.5, 3.5, float("inf")])
    (audit,) = tie_audits(first.per_query, first.lists)
    # infinity is a masked target, no tie: 2 of 3
    assert (audit.audit, audit.value, audit.n) == ("tied-scores-a-full", pytest.approx(2 / 3), 3)
    assert audit.meaning.startswith("At least")
    second = ranked("b", [1.0, 2.0])
    (audit,) = tie_audits(second.per_query, second.lists)
    assert (audit.value, audit.verdict) == (0.0, "pass")


def test_ties_are_counted_where_lists_hold_them():
    # the ranks 1 + 0 + 2 / 2 and 1 + 1 + 4 / 2 are whole though they are middles of ties
    one = ranked("a", [2.0, 4.0, 2.5, 1.0, float("inf")], [2, 4, 1, 0, 0])
    candidates = one.per_query.with_columns(protocol=pl.lit("candidates-20"))
    full, few = tie_audits(pl.concat([one.per_query, candidates]), one.lists)
    assert (full.audit, full.value, full.n) == ("tied-scores-a-full", 0.75, 4)
    assert full.meaning.startswith("This share")
    # lists say nothing of candidates: one fraction in four
    assert (few.audit, few.value) == ("tied-scores-a-candidates-20", 0.25)


# ---- slices ---------------------------------------------------------------------------------


def test_slices_hold_the_queries_that_training_says_little_about():
    # item 5 is taken in test alone, item 4 in validation alone; user 3 has no training event
    rows = [[0, 1, 2, 3], [0, 1, 4, 5], [0, 1, 2, 0]]
    dataset = toy_dataset(rows, [f"Tale {i}" for i in range(6)])
    stranger = dataclasses.replace(dataset.test, user_index=np.array([0, 1, -1], np.int32))
    dataset = dataclasses.replace(dataset, test=stranger)
    found = slices_of(dataset, first_seen_after=date(1970, 1, 1))
    assert found["cold items"].tolist() == [True, True, False]  # train holds items 0 and 1 alone
    assert found["rare items (1 to 4 events)"].tolist() == [False, False, True]
    assert found["cold users"].tolist() == [False, False, True]
    assert found["taken before"].tolist() == [False, False, True]  # 0, after 0, 1 and 2
    assert found["not taken before"].tolist() == [True, True, False]
    assert found["items first seen from 1970-01-01"].all()
    assert "taken later" not in found
    at_once = stranger.timestamp.copy()
    at_once[1] = 300  # the event before was at 300
    tied = dataclasses.replace(dataset, test=dataclasses.replace(stranger, timestamp=at_once))
    found = slices_of(tied, first_seen_after=date(1970, 1, 1))
    assert found["taken at the time of the last event"].tolist() == [False, True, False]
    assert found["taken later"].tolist() == [True, False, True]
    untimed = dataclasses.replace(stranger, timestamp=None, log_timestamp=None)
    untimed = dataclasses.replace(dataset, test=untimed)
    assert "taken later" not in slices_of(untimed, first_seen_after=None)
    first = first_seen(dataset)
    # event n of a user happens at 100 (n + 1): 0 at 100, 1 at 200, 2 and 4 at 300, 3 and 5 at 400
    assert first.tolist() == [100, 200, 300, 400, 300, 400]
    # training times are 100, 200 three times each: nine tenths have happened at 200
    assert cutoff(dataset, None) == (200, "1970-01-01")


def test_a_slices_metrics_are_means_over_its_queries():
    per_query = pl.DataFrame(
        {
            "method": ["a"] * 6, "seed": [3] * 6, "protocol": ["full"] * 3 + ["candidates-20"] * 3,
            "query": [0, 1, 2] * 2, "user_index": [0, 1, 2] * 2,
            "rank": [1.0, 3.0, 99.0, 1.0, 1.0, 1.0],
        }
    )  # fmt: skip
    slices = {"all": np.ones(3, bool), "cold items": np.array([0, 1, 1], bool),
              "cold users": np.zeros(3, bool)}  # fmt: skip
    found = {(row.slice, row.metric): row for row in slice_rows(per_query, slices)}
    assert found["all", "hit@10"].value == pytest.approx(2 / 3)
    # 1 / log2(1 + 3) = 0.5, and nothing beyond place 10
    assert found["cold items", "ndcg@10"].value == pytest.approx(0.25)
    assert (found["cold items", "ndcg@10"].n, found["cold items", "ndcg@10"].seed) == (2, 3)
    assert ("cold users", "ndcg@10") not in found


# ---- other titles ---------------------------------------------------------------------------


def items():
    return pl.DataFrame(
        {
            "item_id": ["a", "b", "c"],
            "title": ["The Sea (1997)", "THE Sea, Vol. 2", "Fire"],
            "description": ["A sea.", None, "Hot."],
            "categories": [["Sea"], ["Sea", "Old Fire"], None],
            "brand": ["Acme", "Acme", "Zed"],
            "year": [1997, 1998, 1999],
        }
    )


def test_renaming_gives_every_word_one_new_word_and_keeps_numbers_and_shape():
    new = disguised_items(items(), "renamed", seed=0)
    first, second, third = new["title"].to_list()
    the, sea, year = first.split()
    assert year == "(1997)"
    assert second == f"{the.upper()} {sea}, {second.split()[2]} 2"
    assert third not in {the, sea}
    assert new["categories"].to_list() == [[sea], [sea, second_word(new) + " " + third], None]
    everything = " ".join(new["title"].to_list()).lower()
    assert not {"the", "sea", "fire", "vol"} & set(everything.replace(",", "").split())
    assert new.columns == ["item_id", "title", "categories", "year", "description"]
    assert new["description"].null_count() == 3


def second_word(table):
    return table["categories"].to_list()[1][1].split()[0]


def test_hashed_titles_say_nothing_and_are_all_different():
    new = disguised_items(items(), "hashed", seed=0)
    assert new["title"].n_unique() == 3
    assert all(title.startswith("Item ") for title in new["title"])
    groups = new["categories"].to_list()
    assert groups[0][0] == groups[1][0] != groups[1][1]  # the same group has the same hash
    assert not new.equals(disguised_items(items(), "hashed", seed=1))
    assert new.equals(disguised_items(items(), "hashed", seed=0))


# ---- the stage ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    return prepare_planted(folder / "data", PlantedConfig(size="tiny"), seed=2)


def test_a_sound_data_set_leaks_nothing_and_its_copy_is_a_data_set(planted, tmp_path, capsys):
    config = AuditConfig(num_probes=20, disguise=("hashed",))
    audits = write_audits(planted.folder, tmp_path / "audit", config)
    found = by_name(audits.rows)
    assert audits.verdict != "fail"
    for name in ("future-edge", "own-edge", "held-out-event", "target-in-train"):
        assert found[name].value == 0.0, name
    assert found["future-edge-control"].value == 1.0
    assert found["future-edge-together"].verdict == "warn"  # others went on after most questions
    assert 0.5 < found["chain-existence-auc-uniform"].value <= 1.0
    assert found["popularity-only-hit@1-candidates-20-popular"].value < 0.2
    assert write_audits(planted.folder, tmp_path / "audit", config) == audits  # read, not redone
    copy = write_disguised(planted, tmp_path / "audit" / "data-hashed", "hashed")
    assert copy.name == "planted-hashed"
    np.testing.assert_array_equal(copy.test.target, planted.test.target)
    assert copy.catalogue.item_ids == planted.catalogue.item_ids
    assert not set(copy.catalogue.titles) & set(planted.catalogue.titles)
    written = json.loads((tmp_path / "audit" / "audits.json").read_text(encoding="utf-8"))
    assert {"audit", "value", "meaning", "limit", "verdict", "n"} == written["rows"][0].keys()
    asked = ["audit", str(planted.folder), "--out", str(tmp_path / "audit"), "--num-probes", "20"]
    cli.main([*asked, "--disguise", "hashed", "--json"])  # the finished folder is read
    assert json.loads(capsys.readouterr().out) == written
    cli.main([*asked, "--disguise", "hashed"])
    assert "future-edge-control" in capsys.readouterr().out


def test_a_source_is_a_data_folder_a_run_or_an_evaluation(planted, tmp_path):
    assert find_source(planted.folder) == (planted.folder, None)
    assert find_source(planted.folder.parent) == (planted.folder, None)
    (planted.folder.parent / "evaluation").mkdir(exist_ok=True)
    with pytest.raises(CheckpointError, match=r"no manifest\.json"):
        find_source(tmp_path)


# ---- R2Rec's questions ----------------------------------------------------------------------


def test_an_edge_that_is_asked_about_is_found_in_a_question():
    sound = hand_question()
    told = dataclasses.replace(
        sound, history=(dataclasses.replace(sound.history[0], item=card(3)),)
    )
    assert shown_labels([sound]).verdict == "pass"
    found = shown_labels([sound, sound, told, sound])
    assert (found.value, found.verdict, found.n) == (0.25, "fail", 4)


def test_no_question_about_a_test_query_shows_its_answer_and_repeats_are_left_out():
    rows = ring_rows(14, N, 8)
    rows[3][-1] = rows[3][0]  # of user 3 the target was taken before
    dataset = toy_dataset(rows, [f"Tale {i}" for i in range(N)])
    found = label_audit(dataset, np.arange(14), seed=0)
    assert (found.value, found.verdict, found.n) == (0.0, "pass", 13)
    ratings = np.arange(len(dataset.train)) % 5 + 1.0
    rated = dataclasses.replace(dataset.train, rating=ratings.astype(np.float32))
    found = label_audit(dataclasses.replace(dataset, train=rated), np.arange(14), seed=0)
    assert (found.value, found.verdict, found.n) == (0.0, "pass", 26)
    many = dataclasses.replace(dataset.train, rating=np.arange(len(ratings)).astype(np.float32))
    found = label_audit(dataclasses.replace(dataset, train=many), np.arange(14), seed=0)
    assert (found.value, found.verdict) == (None, "warn")
    assert "scale of at most 21" in found.meaning
