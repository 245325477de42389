from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest

from reasonrec.baselines.floor import fit_floor
from reasonrec.errors import CheckpointError
from reasonrec.evaluation.candidates import draw_candidates
from reasonrec.evaluation.protocol import (
    evaluate,
    read_evaluation,
    read_rows,
    write_evaluation,
)
from reasonrec.metrics import METRICS
from reasonrec.records import Scored
from toys import NextInLine, toy_dataset

TITLES = [f"item {i}" for i in range(30)]


def random_dataset(seed=0, num_users=60):
    rng = np.random.default_rng(seed)
    rows = [rng.integers(30, size=rng.integers(3, 9)).tolist() for _ in range(num_users)]
    return toy_dataset(rows, TITLES)


def value_of(evaluation, protocol, metric):
    (row,) = [r for r in evaluation.rows if (r.protocol, r.metric) == (protocol, metric)]
    return row.value


@dataclass
class FixedScores:
    """Says the same of everyone."""

    scores: np.ndarray
    name: str = "fixed"

    def score(self, histories):
        return Scored(np.tile(self.scores, (len(histories), 1)))


def test_hand_worked_means_over_three_users():
    # test targets 2, 3, 4; scores put 2 first, then 3, then 4: ranks 1, 2, 3 with nothing masked
    dataset = toy_dataset([[0, 1, 2], [0, 1, 3], [0, 1, 4]], TITLES[:6])
    method = FixedScores(np.array([-1, -2, 9, 8, 7, -3], np.float32))
    measured = evaluate(method, dataset, protocols=("full",), mask="none")
    full = "full-mask-none"
    assert value_of(measured, full, "hit@1") == pytest.approx(1 / 3)
    assert value_of(measured, full, "hit@3") == 1.0
    assert value_of(measured, full, "mrr@20") == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    expected = (1 + 1 / np.log2(3) + 1 / 2) / 3
    assert value_of(measured, full, "ndcg@10") == pytest.approx(expected)


def test_each_mask_has_a_protocol_word_and_a_meaning_of_its_own():
    # one user of 0, 1 who then repeats 1; item 0 scores highest, then 1, then 2
    dataset = toy_dataset([[0, 1, 1]], TITLES[:3])
    method = FixedScores(np.array([3, 2, 1], np.float32))
    ranks = {}
    for mask in ("none", "history", "history-except-target"):
        measured = evaluate(method, dataset, protocols=("full",), mask=mask)
        ranks[measured.per_query["protocol"][0]] = measured.per_query["rank"][0]
    assert ranks == {"full-mask-none": 2.0, "full-mask-history": np.inf, "full": 1.0}


def test_the_rows_hold_every_metric_under_every_protocol_and_the_costs():
    dataset = random_dataset()
    measured = evaluate(NextInLine(30), dataset, seed=7, fit_seconds=1.5, trained_on="train+valid")
    keys = [(row.protocol, row.metric) for row in measured.rows]
    costs = ("tokens", "users-per-second", "latency-p50-ms", "latency-p95-ms", "fit-seconds")
    assert keys == [
        *(("full", metric) for metric in METRICS),
        *(("candidates-20", metric) for metric in METRICS),
        *(("cost", metric) for metric in costs),
    ]
    for row in measured.rows:
        assert (row.dataset, row.split, row.method) == ("toy", "leave-one-out", "next-in-line")
        assert (row.seed, row.trained_on) == (7, "train+valid")
        if row.protocol != "cost":
            assert row.n == len(dataset.test)
            assert row.ci_low <= row.value <= row.ci_high
    assert value_of(measured, "cost", "tokens") == 5.0
    assert value_of(measured, "cost", "fit-seconds") == 1.5
    valid = evaluate(NextInLine(30), dataset, part="valid", num_timed_users=0)
    assert {row.split for row in valid.rows} == {"leave-one-out/valid"}
    assert not any("latency" in row.metric for row in valid.rows)


def test_per_query_values_average_to_the_rows_and_the_batch_size_changes_nothing():
    dataset = random_dataset()
    method = fit_floor("follow-counter", dataset)
    small, large = (evaluate(method, dataset, batch_size=size) for size in (7, 256))
    ranks = [one.per_query.drop("seconds") for one in (small, large)]
    assert ranks[0].equals(ranks[1])
    for protocol in ("full", "candidates-20"):
        rank = small.per_query.filter(pl.col("protocol") == protocol)["rank"].to_numpy()
        assert value_of(large, protocol, "hit@10") == pytest.approx(np.mean(rank <= 10))


def test_thoughts_are_kept_beside_their_rank():
    dataset = random_dataset(num_users=5)
    measured = evaluate(NextInLine(30), dataset)
    full = measured.per_query.filter(pl.col("protocol") == "full")
    thoughts = measured.thoughts
    assert thoughts["rank"].to_list() == full["rank"].to_list()
    assert thoughts["user_id"].to_list() == [dataset.user_ids[u] for u in full["user_index"]]
    last = [dataset.test.histories().row(b)[-1] for b in range(len(dataset.test))]
    assert thoughts["thought"].to_list() == [f"after item {i} comes the next" for i in last]
    silent = evaluate(NextInLine(30, thinks=False), dataset)
    assert silent.thoughts.height == 0
    assert silent.thoughts.schema == thoughts.schema
    assert value_of(silent, "cost", "tokens") == 0.0


def test_a_sample_of_queries_is_the_same_for_every_method_and_keeps_its_candidates():
    dataset = random_dataset()
    everything = evaluate(NextInLine(30), dataset)
    sampled, other = (
        evaluate(method, dataset, num_queries=20, seed=seed)
        for method, seed in ((NextInLine(30), 0), (fit_floor("popularity", dataset), 5))
    )
    assert sampled.per_query["query"].equals(other.per_query["query"])
    assert sampled.per_query["query"].n_unique() == 20
    kept = everything.per_query.join(
        sampled.per_query.select("protocol", "query"), on=["protocol", "query"], how="semi"
    )
    assert kept.drop("seconds").equals(sampled.per_query.drop("seconds"))
    named = evaluate(NextInLine(30), dataset, queries=np.array([3, 1, 3]))
    assert named.per_query["query"].unique().to_list() == [1, 3]


def test_stored_candidates_are_used_instead_of_new_ones():
    dataset = random_dataset()
    stored = draw_candidates(dataset, "test", num_candidates=20, seed=99)
    method = fit_floor("popularity", dataset)
    with_stored = evaluate(method, dataset, candidates=[stored])
    with_seed = evaluate(method, dataset, candidate_seed=99)
    assert with_stored.per_query.drop("seconds").equals(with_seed.per_query.drop("seconds"))


def test_progress_is_reported_after_every_batch():
    seen = []
    evaluate(
        NextInLine(30),
        random_dataset(num_users=5),
        batch_size=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_what_cannot_be_measured_is_refused():
    dataset = random_dataset(num_users=5)
    with pytest.raises(ValueError, match="full or candidates-C"):
        evaluate(NextInLine(30), dataset, protocols=("whole",))
    with pytest.raises(ValueError, match="at least one query"):
        evaluate(NextInLine(30), toy_dataset([[0, 1]], TITLES))
    broken = FixedScores(np.full(30, np.nan, np.float32))
    with pytest.raises(ValueError, match="must not be NaN"):
        evaluate(broken, dataset)


def test_a_written_evaluation_reads_back_the_same(tmp_path):
    dataset = random_dataset(num_users=5)
    measured = evaluate(NextInLine(30), dataset)
    other = evaluate(fit_floor("popularity", dataset), dataset)
    assert write_evaluation(tmp_path, [measured, other]) == [
        "metrics.json", "per_query.parquet", "thoughts.parquet", "lists.parquet",
        "latencies.parquet",
    ]  # fmt: skip
    again = read_evaluation(tmp_path)
    assert again.rows == (*measured.rows, *other.rows)
    assert again.per_query.equals(pl.concat([measured.per_query, other.per_query]))
    assert again.thoughts.equals(measured.thoughts)
    assert again.latencies.equals(pl.concat([measured.latencies, other.latencies]))


def test_each_user_that_was_asked_alone_is_kept_with_their_milliseconds():
    dataset = random_dataset(num_users=9)
    measured = evaluate(NextInLine(30), dataset, queries=np.arange(2, 9), num_timed_users=3)
    assert measured.latencies["query"].to_list() == [2, 5, 8]
    users = dataset.test.user_index[[2, 5, 8]]
    assert measured.latencies["user_id"].to_list() == [dataset.user_ids[u] for u in users]
    taken = measured.latencies["milliseconds"].to_numpy()
    said = {row.metric: row.value for row in measured.rows}
    assert said["latency-p50-ms"] == np.percentile(taken, 50) > 0
    assert said["latency-p95-ms"] == np.percentile(taken, 95)


def test_damaged_results_are_a_stated_failure(tmp_path):
    with pytest.raises(CheckpointError, match="list of metric rows"):
        read_rows(tmp_path / "metrics.json")
    (tmp_path / "metrics.json").write_text('[{"method": "magic"}]')
    with pytest.raises(CheckpointError, match="list of metric rows"):
        read_evaluation(tmp_path)
    (tmp_path / "metrics.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"per_query\.parquet"):
        read_evaluation(tmp_path)
