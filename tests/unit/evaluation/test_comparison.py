import io
import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from reasonrec.baselines.floor import fit_floor
from reasonrec.errors import CheckpointError, DataError
from reasonrec.evaluation.compare_runs import compare_runs, comparison_markdown, comparison_table
from reasonrec.evaluation.comparison import Comparison
from reasonrec.evaluation.joined import per_user_table
from reasonrec.evaluation.protocol import MetricRow, evaluate, write_evaluation
from reasonrec.evaluation.runs import find_runs
from reasonrec.evaluation.significance import paired_test
from reasonrec.evaluation.table import (
    COLUMNS,
    results_markdown,
    results_table,
    summarise,
    uneven_seeds,
    usual_columns,
)
from toys import NextInLine, toy_dataset

TITLES = [f"item {i}" for i in range(30)]


def walkers(seed=0):
    rng = np.random.default_rng(seed)
    rows = [
        [int((s + step) % 30) for step in range(n)]
        for s, n in zip(rng.integers(30, size=40), rng.integers(3, 8, size=40))
    ]
    return toy_dataset(rows, TITLES)


def run_of(folder, *evaluations):
    folder.mkdir(parents=True)
    write_evaluation(folder, evaluations)
    return folder


def shown(table, width=80):
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()


def metric_row(method, value, *, seed=0, metric="ndcg@10", protocol="full", **changes):
    row = MetricRow(
        dataset="toy",
        split="leave-one-out",
        protocol=protocol,
        method=method,
        metric=metric,
        value=value,
        ci_low=value - 0.1,
        ci_high=value + 0.1,
        n=100,
        seed=seed,
        trained_on="train",
        seconds=2.0,
    )
    return replace(row, **changes)


def test_methods_of_several_runs_are_tested_on_the_same_queries(tmp_path):
    dataset = walkers()
    popular = evaluate(fit_floor("popularity", dataset), dataset)
    walker = evaluate(NextInLine(30), dataset)
    runs = [run_of(tmp_path / "floor", popular), run_of(tmp_path / "ours", walker)]
    rows, comparisons = compare_runs(runs, tmp_path / "out", reference="popularity")
    assert {row.method for row in rows} == {"popularity", "next-in-line"}
    assert [(one.protocol, one.metric) for one in comparisons] == [
        ("full", "hit@10"),
        ("full", "ndcg@10"),
        ("candidates-20", "hit@1"),
        ("candidates-20", "ndcg@10"),
    ]
    first = comparisons[0]
    values = {(row.method, row.metric): row.value for row in rows if row.protocol == "full"}
    expected = values["next-in-line", "hit@10"] - values["popularity", "hit@10"]
    assert first.difference == pytest.approx(expected)
    assert first.n == len(dataset.test)
    assert first.ci_low <= first.difference <= first.ci_high
    assert first.p_holm >= first.p_permutation
    stored = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert stored[0]["difference"] == first.difference
    assert "| next-in-line | hit@10 full |" in (tmp_path / "out" / "comparison.md").read_text()
    # a finished comparison is read, not made anew
    assert compare_runs(runs, tmp_path / "out", reference="popularity") == (rows, comparisons)
    with pytest.raises(CheckpointError, match="another config"):
        compare_runs(runs, tmp_path / "out", reference="next-in-line")


def test_every_comparison_says_what_it_could_have_seen():
    comparison = Comparison(
        dataset="toy", split="leave-one-out", protocol="full", metric="ndcg@10", method="walker",
        reference="popularity", difference=0.01, ci_low=-0.0096, ci_high=0.0296,
        p_permutation=0.3, p_bootstrap=0.3, p_holm=0.6, n=100, num_seeds=1, num_seeds_reference=1,
    )  # fmt: skip
    # half of the interval is .0196, or 1.96 standard errors of .01: 2.8 of them are .028
    assert comparison.could_have_seen == pytest.approx(0.028)
    text = comparison_markdown([comparison])
    assert "| -0.0096 to +0.0296 | 0.3000 (0.6000) | 0.0280 | 100 |" in text
    assert text.count("could have seen") == 2  # said once, and the heading
    table = " ".join(shown(comparison_table([comparison])).split())
    assert ".0280" in table and "80 of 100 tries" in table


def test_seeds_are_averaged_per_query_before_the_test(tmp_path):
    dataset = walkers()
    rng = np.random.default_rng(0)
    base = evaluate(fit_floor("popularity", dataset), dataset, protocols=("full",))
    seeds = []
    for seed in (1, 2):
        one = evaluate(NextInLine(30), dataset, protocols=("full",), seed=seed)
        noisy = rng.integers(1, 20, size=len(dataset.test)).astype(float)
        seeds.append(
            replace(one, per_query=one.per_query.with_columns(rank=noisy))  # a method with luck
        )
    run = run_of(tmp_path / "run", base, *seeds)
    _, (hit, _) = compare_runs([run], tmp_path / "out", reference="popularity")
    hits = [(one.per_query["rank"].to_numpy() <= 10).astype(float) for one in (base, *seeds)]
    by_hand = paired_test((hits[1] + hits[2]) / 2, hits[0], rng=rng)
    assert hit.difference == pytest.approx(by_hand.difference)
    assert hit.p_permutation == pytest.approx(by_hand.p_permutation, abs=0.03)
    assert (hit.num_seeds, hit.num_seeds_reference) == (2, 1)


def test_a_run_of_a_sample_is_compared_on_its_queries_alone(tmp_path):
    dataset = walkers()
    popular = evaluate(fit_floor("popularity", dataset), dataset)
    walker = evaluate(NextInLine(30), dataset, protocols=("full",), num_queries=15)
    runs = [run_of(tmp_path / "floor", popular), run_of(tmp_path / "ours", walker)]
    with pytest.raises(DataError, match="--common-queries"):
        compare_runs(runs, tmp_path / "refused")
    out = tmp_path / "out"
    rows, found = compare_runs(runs, out, reference="popularity", common_queries=True)
    asked = walker.per_query["query"].to_list()
    slow = popular.per_query.filter(pl.col("protocol") == "full", pl.col("query").is_in(asked))
    expected = np.mean(slow["rank"].to_numpy() <= 10)
    measured = {(row.method, row.metric): row for row in rows if row.protocol == "full"}
    assert measured["popularity", "hit@10"].value == pytest.approx(expected)
    assert measured["popularity", "hit@10"].n == measured["next-in-line", "hit@10"].n == 15
    # a method that was measured there alone keeps its numbers, to the last digit
    assert [row for row in rows if row.method == "next-in-line"] == list(walker.rows)
    # one protocol that a run was not asked does not narrow the other
    few = [row.n for row in rows if row.protocol == "candidates-20"]
    assert set(few) == {len(dataset.test)}
    by_name = {(one.protocol, one.metric): one for one in found}
    assert by_name["full", "hit@10"].n == 15
    gain = measured["next-in-line", "hit@10"].value - expected
    assert by_name["full", "hit@10"].difference == pytest.approx(gain)
    command = json.loads((out / "passport.json").read_text())["comparison"]["command"]
    assert command.endswith("--common-queries")


def test_runs_without_a_common_query_cannot_be_compared(tmp_path):
    dataset = walkers()
    halves = np.array_split(np.arange(len(dataset.test)), 2)
    methods = (fit_floor("popularity", dataset), NextInLine(30))
    runs = [
        run_of(tmp_path / method.name, evaluate(method, dataset, queries=rows))
        for method, rows in zip(methods, halves)
    ]
    with pytest.raises(DataError, match="there is none that all of them answered"):
        compare_runs(runs, tmp_path / "out", common_queries=True)


def test_the_same_method_from_two_runs_keeps_its_runs_name(tmp_path):
    dataset = walkers()
    one = evaluate(fit_floor("follow-counter", dataset), dataset)
    two = evaluate(fit_floor("follow-counter", dataset, num_steps=1), dataset)
    runs = [run_of(tmp_path / "wide", one), run_of(tmp_path / "narrow", two)]
    _, comparisons = compare_runs(runs, tmp_path / "out", reference="follow-counter (wide)")
    assert {c.method for c in comparisons} == {"follow-counter (narrow)"}


def test_the_same_method_taught_with_other_rows_keeps_its_runs_name(tmp_path):
    dataset = walkers()
    popular = fit_floor("popularity", dataset)
    runs = [
        run_of(tmp_path / rows, evaluate(popular, dataset, trained_on=rows, seed=seed))
        for seed, rows in enumerate(("train", "train+valid"))
    ]
    rows, _ = compare_runs(runs, tmp_path / "out")
    assert {row.method for row in rows} == {"popularity (train)", "popularity (train+valid)"}


def test_without_a_name_the_strongest_method_that_is_not_ours_is_the_reference(tmp_path):
    dataset = walkers()
    ours = evaluate(NextInLine(30), dataset)
    ours = replace(
        ours,
        rows=tuple(replace(row, method="no-think") for row in ours.rows),
        per_query=ours.per_query.with_columns(method=pl.lit("no-think")),
    )
    floor = [evaluate(fit_floor(n, dataset), dataset) for n in ("popularity", "follow-counter")]
    run = run_of(tmp_path / "run", *floor, ours)
    _, comparisons = compare_runs([run], tmp_path / "out")
    assert {one.reference for one in comparisons} == {"follow-counter"}


def test_every_query_and_user_of_all_runs_is_written_side_by_side(tmp_path):
    dataset = walkers()
    popular = evaluate(fit_floor("popularity", dataset), dataset)
    walker = evaluate(NextInLine(30), dataset)
    runs = [run_of(tmp_path / "floor", popular), run_of(tmp_path / "ours", walker)]
    compare_runs(runs, tmp_path / "out", reference="popularity")
    per_query = pl.read_parquet(tmp_path / "out" / "per_query.parquet")
    assert per_query.height == popular.per_query.height + walker.per_query.height
    users = pl.read_parquet(tmp_path / "out" / "per_user.parquet")
    full = users.filter(pl.col("protocol") == "full")
    assert full.height == full["user_index"].n_unique() == len(dataset.test)
    assert full["num_queries"].to_list() == [1] * full.height
    for evaluation, method in ((popular, "popularity"), (walker, "next-in-line")):
        ranks = evaluation.per_query.filter(pl.col("protocol") == "full").sort("user_index")
        hits = (ranks["rank"].to_numpy() <= 10).astype(float)
        np.testing.assert_allclose(full[f"{method} hit@10"].to_numpy(), hits)


def test_a_user_with_several_queries_has_their_mean():
    table = pl.DataFrame(
        {
            "method": ["a"] * 4,
            "seed": [0, 0, 1, 1],
            "protocol": ["full"] * 4,
            "query": [0, 1, 0, 1],
            "user_index": pl.Series([3, 3, 3, 3], dtype=pl.Int32),
            "rank": [1.0, 20.0, 1.0, 5.0],
        }
    )
    users = per_user_table(table, [("full", "hit@10")], ["u0", "u1", "u2", "u3"])
    # hits 1, 0 with seed 0 and 1, 1 with seed 1
    assert users.to_dicts() == [
        {"protocol": "full", "user_index": 3, "user_id": "u3", "num_queries": 2, "a hit@10": 0.75}
    ]


def test_runs_of_one_name_are_told_apart_by_their_parents(tmp_path):
    dataset = walkers()
    one = evaluate(fit_floor("popularity", dataset), dataset)
    runs = [run_of(tmp_path / day / "eval", one) for day in ("monday", "tuesday")]
    assert [run.name for run in find_runs(runs)] == ["monday-eval", "tuesday-eval"]


def test_different_queries_or_data_cannot_be_compared(tmp_path):
    dataset = walkers()
    everything = run_of(tmp_path / "a", evaluate(NextInLine(30), dataset))
    popular = fit_floor("popularity", dataset)
    sample = run_of(tmp_path / "b", evaluate(popular, dataset, num_queries=5))
    with pytest.raises(DataError, match="on the same queries; popularity and next-in-line"):
        compare_runs([everything, sample], tmp_path / "out1", reference="popularity")
    valid = run_of(tmp_path / "c", evaluate(popular, dataset, part="valid"))
    with pytest.raises(DataError, match="one data set and split"):
        compare_runs([everything, valid], tmp_path / "out2", reference="popularity")
    with pytest.raises(DataError, match="reference must be one of next-in-line"):
        compare_runs([everything], tmp_path / "out3", reference="sasrec")
    with pytest.raises(CheckpointError, match=r"must hold per_query\.parquet"):
        compare_runs([tmp_path], tmp_path / "out4", reference="popularity")


def test_a_bar_in_a_folders_name_ends_no_cell(tmp_path):
    one = evaluate(NextInLine(30), walkers())
    runs = [run_of(tmp_path / name, one) for name in ("a|b", "c")]
    compare_runs(runs, tmp_path / "out")
    lines = (tmp_path / "out" / "comparison.md").read_text().splitlines()
    found = [line for line in lines if line.startswith(r"| next-in-line (a\|b)")]
    assert len(found) == 2  # in the results and the parts of the queries; it is what tests are of
    assert not any("(a|b)" in line for line in lines if line.startswith("|"))


def test_a_run_that_is_named_twice_is_refused(tmp_path):
    run = run_of(tmp_path / "run", evaluate(NextInLine(30), walkers()))
    with pytest.raises(CheckpointError, match=r"each run must be named once; got twice .*run"):
        compare_runs([run, tmp_path / "." / "run"], tmp_path / "out")


def test_one_method_alone_is_no_failure(tmp_path):
    run = run_of(tmp_path / "run" / "evaluation", evaluate(NextInLine(30), walkers()))
    rows, comparisons = compare_runs([run.parent], tmp_path / "out", reference="next-in-line")
    assert rows
    assert comparisons == ()
    assert "nothing to compare" in (tmp_path / "out" / "comparison.md").read_text()


def test_a_line_of_the_table_averages_the_seeds():
    rows = [metric_row("a", 0.2, seed=1), metric_row("a", 0.4, seed=2), metric_row("b", 0.5)]
    first, second = summarise(rows, [("full", "ndcg@10")])
    assert (first.method, first.num_seeds) == ("a", 2)
    assert first.cells[0].value == pytest.approx(0.3)
    # standard deviation of .2 and .4 with n - 1: sqrt(2 x .01) = .1414
    assert first.cells[0].seed_sd == pytest.approx(0.1414, abs=1e-4)
    assert (first.cells[0].low, first.cells[0].high) == (None, None)
    assert (second.cells[0].low, second.cells[0].high) == (0.4, 0.6)


def test_tokens_a_second_are_those_of_a_user_times_the_users_a_second():
    def costs(method, tokens, rate):
        named = {"tokens": tokens, "users-per-second": rate}
        return [metric_row(method, v, metric=name, protocol="cost") for name, v in named.items()]

    rows = [metric_row("thinks", 0.2), *costs("thinks", 40.0, 2.5)]
    rows += [metric_row("silent", 0.2), *costs("silent", 0.0, 50.0), metric_row("unmeasured", 0.2)]
    rates = [line.tokens_per_second for line in summarise(rows, [("full", "ndcg@10")])]
    assert rates == [100.0, None, None]  # 40 x 2.5
    text = shown(results_table(rows, columns=[("full", "ndcg@10")]))
    assert text.count("100/s") == 1 and text.count("0/s") == 2  # and 50 users a second


def test_methods_of_other_seeds_are_named(tmp_path):
    dataset = walkers()

    def asked(recommender, *seeds):
        return [evaluate(recommender, dataset, protocols=("full",), seed=seed) for seed in seeds]

    popular, walker = fit_floor("popularity", dataset), NextInLine(30)
    uneven = [*asked(popular, 1, 2), *asked(walker, 2, 3)]
    run = run_of(tmp_path / "uneven", *uneven)
    rows, _ = compare_runs([run], tmp_path / "out", reference="popularity")
    named = "popularity 1, 2; next-in-line 2, 3"
    pages = [(tmp_path / "out" / page).read_text() for page in ("comparison.md", "report.html")]
    table = " ".join(shown(results_table(rows)).split())
    assert all(named in text for text in (*pages, table))


def test_the_same_seeds_or_one_alone_are_not_worth_a_word():
    several = [metric_row(method, 0.2, seed=seed) for method in "ab" for seed in (1, 2)]
    counter = metric_row("counter", 0.2, seed=0)
    assert uneven_seeds([*several, counter]) is None
    assert uneven_seeds([*several, metric_row("c", 0.2), metric_row("c", 0.2, seed=1)])


def test_the_share_of_the_oracle_stands_beside_what_it_is_a_share_of():
    rows = [metric_row("a", 0.2), metric_row("oracle", 0.8)]
    first, oracle = summarise(rows, [("full", "ndcg@10")])
    assert first.cells[0].oracle_share == pytest.approx(0.25)
    assert oracle.cells[0].oracle_share is None
    text = shown(results_table(rows, columns=[("full", "ndcg@10")]))
    assert "25%" in text
    assert "share of what the oracle" in text


def test_tables_of_two_data_sets_are_refused():
    rows = [metric_row("a", 0.2), metric_row("b", 0.2, dataset="other")]
    with pytest.raises(ValueError, match="one data set and split"):
        summarise(rows)


def test_both_tables_fit_80_columns_with_every_number_whole(tmp_path):
    dataset = walkers()
    run = run_of(
        tmp_path / "run",
        evaluate(fit_floor("recent-popularity", dataset), dataset),
        evaluate(NextInLine(30), dataset),
    )
    rows, comparisons = compare_runs([run], tmp_path / "out", reference="recent-popularity")
    longest = [replace(one, method="think-recpo/silent") for one in comparisons]
    assert "…" not in shown(comparison_table(longest))
    for table in (results_table(rows, title="toy"), comparison_table(comparisons)):
        text = shown(table)
        assert "…" not in text
        assert "next-in-line" in text
    assert "recent-popularity" in shown(results_table(rows))


def test_what_was_not_measured_is_a_dash():
    markdown = results_markdown([metric_row("a", 0.2)])
    (line,) = [line for line in markdown.splitlines() if line.startswith("| a ")]
    assert line == "| a | train | - | .2000 (.100-.300) | - | - | - | - | - | 2.0 | - |"
    assert "-" in shown(results_table([metric_row("a", 0.2)]))


def test_every_protocol_that_was_measured_is_shown(tmp_path):
    dataset = walkers()
    contestants = (fit_floor("popularity", dataset), NextInLine(30))
    words = ("candidates-5", "candidates-5-popular")
    runs = [
        run_of(tmp_path / word, *(evaluate(one, dataset, protocols=(word,)) for one in contestants))
        for word in words
    ]
    columns = [(word, metric) for word in words for metric in ("hit@1", "ndcg@10")]
    _, comparisons = compare_runs([runs[0]], tmp_path / "out")
    assert [(one.protocol, one.metric) for one in comparisons] == columns[:2]
    assert "| HR@1 candidates-5 |" in (tmp_path / "out" / "comparison.md").read_text()
    full = metric_row("a", 0.2)
    others = [metric_row("a", 0.3, metric=metric, protocol=word) for word, metric in columns]
    # usual protocols first, those without a number not at all
    assert usual_columns([*others, full]) == (*COLUMNS[:2], *columns)
    assert usual_columns(others) == tuple(columns)
    table = shown(results_table(others))
    assert "1 of 5" in table and "1 of 5-popular" in table
    assert usual_columns([full]) == usual_columns([]) == COLUMNS


def test_rankings_under_another_mask_alone_fill_the_usual_columns(tmp_path):
    dataset = walkers()
    contestants = (fit_floor("popularity", dataset), NextInLine(30))
    run = run_of(tmp_path / "run", *(evaluate(one, dataset, mask="none") for one in contestants))
    rows, comparisons = compare_runs([run], tmp_path / "out")
    table = shown(results_table(rows))
    (line,) = [line for line in table.splitlines() if line.startswith("next-in-line")]
    assert "unmasked" in table and line.split()[1] == "1.000"  # everybody goes to the next item
    assert {"full-mask-none", "candidates-20"} == {row.protocol for row in comparisons}
    assert {row.reference for row in comparisons} == {"popularity"}  # the strongest baseline there
    both = [metric_row("a", 0.2), metric_row("a", 0.3, protocol="full-mask-none")]
    assert usual_columns(both) == COLUMNS  # the default mask is shown where it was measured
