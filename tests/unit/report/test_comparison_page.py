import json
import re
from dataclasses import replace
from html import unescape
from itertools import pairwise

import numpy as np
import polars as pl
import pytest

from reasonrec.cli import main
from reasonrec.data.planted.config import PlantedConfig
from reasonrec.data.prepare import prepare_planted
from reasonrec.evaluation.audits.records import read_audits
from reasonrec.evaluation.compare_runs import compare_runs
from reasonrec.evaluation.comparison import compare
from reasonrec.evaluation.joined import join_runs, on_common_queries
from reasonrec.evaluation.passport import pass_comparison
from reasonrec.evaluation.protocol import read_evaluation, write_evaluation
from reasonrec.evaluation.report import comparison_views as views
from reasonrec.evaluation.report.comparison_page import render_comparison
from reasonrec.evaluation.report.page import _place, cost_chart
from reasonrec.evaluation.report.views import CostPoint
from reasonrec.evaluation.runs import find_runs
from reasonrec.manifest import fingerprint, write_manifest
from toy_runs import MIDDLE_RANK, write_toy_run

METHODS = list(MIDDLE_RANK)
NDCG = ("full", "ndcg@10")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a run with a manifest, a trace of its thoughts, and audits."""
    folder = write_toy_run(tmp_path_factory.mktemp("runs") / "toy")
    steps = [(query, step, 30.0 - 4 * step) for query in range(60) for step in range(3)]
    steps += [(query, 3, 2.0) for query in range(30)]
    table = pl.DataFrame(steps, schema=["query", "step", "rank"], orient="row")
    table.with_columns(method=pl.lit("think-recpo")).write_parquet(
        folder / "evaluation" / "trajectory.parquet"
    )
    audits = [
        {
            "audit": "ties",
            "value": 0.01,
            "meaning": "<b>share</b>",
            "verdict": "pass",
            "limit": 0.05,
        },
        {"audit": "leak", "value": 0.71, "meaning": "AUC of chains", "verdict": "warn"},
    ]
    (folder / "audits.json").write_text(json.dumps(audits), encoding="utf-8")
    write_manifest(
        folder,
        stage="demo",
        inputs={"data": fingerprint(folder / "data")},
        config=json.loads((folder / "config.json").read_text())
        | {"r2ec": {"num_epochs": 3}, "evaluation": {}},
        outputs=["metrics.json"],
        seconds=90.0,
        seed=0,
    )
    return folder


@pytest.fixture(scope="module")
def compared(folder):
    return compare(join_runs(find_runs([folder])), "no-think", num_resamples=500)


@pytest.fixture(scope="module")
def html(compared):
    passport = pass_comparison(
        compared.joined.runs, {"reference": "no-think", "columns": [], "num_resamples": 500}, []
    )
    return render_comparison(compared, passport)


def test_the_page_has_every_section_and_loads_nothing(html):
    for section in (
        "results",
        "differences",
        "cost",
        "slices",
        "trajectory",
        "audits",
        "reproduce",
    ):
        assert f'<section id="{section}">' in html
    assert not re.findall(r"""(?:src|href|action)\s*=\s*["'](?!#|data:,)""", html)
    for word in ("url(", "@import", "://"):
        assert word not in html
    assert "&lt;b&gt;share" in html  # what comes from a run is text, never markup
    assert len(html) < 1_000_000


def test_every_table_has_a_caption_and_every_column_a_heading(html):
    tables = re.findall(r"<table.*?</table>", html, re.DOTALL)
    assert len(tables) > 10
    for table in tables:
        assert "<caption" in table
        headings = table[: table.index("</thead>")].count('scope="col"')
        for row in re.findall(r"<tr>.*?</tr>", table[table.index("<tbody>") :], re.DOTALL):
            assert row.count("<td") + row.count("<th") == headings


def test_there_are_marks_and_tests_for_every_reference_and_one_is_shown(html, compared):
    for i, reference in enumerate(METHODS):
        group = re.search(rf'<div data-reference="{i}"( hidden)?>', html)
        assert (group.group(1) is None) == (reference == "no-think")
        # a mark in each of 4 columns of every method
        marks = re.findall(rf'<span class="sign \w+" data-reference="{i}"( hidden)?>', html)
        assert len(marks) == 4 * len(METHODS)
        assert all(bool(hidden) == (reference != "no-think") for hidden in marks)
        assert len(compared.against[reference]) == 4 * (len(METHODS) - 1)


def test_a_mark_says_what_the_corrected_test_says(compared):
    columns = [(column.protocol, column.metric) for column in compared.columns]
    lines = {one.line.method: one for one in views.result_lines(compared, columns)}
    cell = lines["oracle"].cells[columns.index(NDCG)]
    for verdict, reference in zip(cell.verdicts, METHODS):
        if reference == "oracle":
            assert verdict.kind == "self"
            continue
        test = next(
            one
            for one in compared.against[reference]
            if (one.method, one.protocol, one.metric) == ("oracle", *NDCG)
        )
        expected = "alike"
        if test.p_holm < 0.05:
            expected = "better" if test.difference > 0 else "worse"
        assert verdict.kind == expected
    popularity = lines["popularity"].cells[columns.index(NDCG)]
    assert popularity.verdicts[METHODS.index("oracle")].kind == "worse"
    mirrored = cell.verdicts[METHODS.index("popularity")]
    assert mirrored.kind == "better"


def test_every_test_says_what_it_could_have_seen(html, compared):
    page = re.sub(r"\s+", " ", html)
    for tests in compared.against.values():
        for one in tests:
            # 1.96 standard errors are half of the interval: 2.8 are .714 of it
            expected = (one.ci_high - one.ci_low) * 2.8 / 3.92
            assert one.could_have_seen == pytest.approx(expected)
            assert f'<td data-value="{one.could_have_seen}">' in page
    # a heading and a note for each reference
    assert page.count("could have seen") == page.count("<em>Could have seen</em>") == len(METHODS)


def test_several_seeds_have_an_interval_of_their_mean_and_a_spread(folder, tmp_path):
    evaluation = read_evaluation(folder / "evaluation")
    runs = []
    for seed in (0, 1):
        run = tmp_path / f"seed-{seed}"
        run.mkdir()
        # the second run is luckier with no-think; the rest are the same
        shift = seed * (pl.col("method") == "no-think").cast(pl.Float64)
        ranks = evaluation.per_query.with_columns(
            (pl.col("rank") - 5 * shift).clip(1), pl.lit(seed).cast(pl.Int64).alias("seed")
        )
        rows = tuple(
            replace(r, seed=seed, value=r.value + 0.02 * seed * (r.method == "no-think"))
            for r in evaluation.rows
        )
        write_evaluation(run, [replace(evaluation, rows=rows, per_query=ranks)])
        runs.append(run)
    compared = compare(join_runs(find_runs(runs)), "item-knn", num_resamples=500)
    column = next(c for c in compared.columns if (c.protocol, c.metric) == NDCG)
    lines = {o.line.method: o.cells[0] for o in views.result_lines(compared, [NDCG])}
    place = column.values.methods.index("no-think")
    mean = column.tests.means[place]
    assert (lines["no-think"].low, lines["no-think"].high) == (mean.low, mean.high)
    # values 0.02 apart: standard deviation .02 / sqrt(2) = .01414
    assert lines["no-think"].seed_sd == pytest.approx(0.01414, abs=1e-4)
    assert lines["item-knn"].seed_sd is None  # alike in both: no spread to show


def test_a_thought_that_ended_keeps_its_last_place():
    # query 0: 4 then 1; query 1: 3 and ended. After step 1 the ranks are 1 and 3
    table = pl.DataFrame(
        {
            "method": ["a"] * 3,
            "seed": [0] * 3,
            "query": [0, 0, 1],
            "user_index": [0, 0, 1],
            "step": [0, 1, 0],
            "rank": [4.0, 1.0, 3.0],
        }
    )
    first, second = views.trajectory(table).lines
    assert (first[1], first[2], second[1], second[2]) == (0, 2, 1, 1)
    assert first[3].mean == pytest.approx((1 / np.log2(5) + 1 / np.log2(4)) / 2)
    assert second[3].mean == pytest.approx((1 + 1 / np.log2(4)) / 2)
    assert (first[4], second[4]) == (3.5, 2.0)


def test_the_thoughts_of_seeds_are_measured_before_they_are_averaged():
    # one query; seed 0 goes from 1 to 100 in a step, seed 1 stays at 1 and has no step
    table = pl.DataFrame(
        {
            "method": ["a"] * 3,
            "seed": [0, 0, 1],
            "query": [0] * 3,
            "user_index": [0] * 3,
            "step": [0, 1, 0],
            "rank": [1.0, 100.0, 1.0],
        }
    )
    first, second = views.trajectory(table).lines
    assert (first[2], first[3].mean, first[4]) == (2, 1.0, 1.0)
    # NDCG of ranks 100 and 1: (0 + 1) / 2, not NDCG at the median rank 50.5; median (1 + 100) / 2
    assert (second[2], second[3].mean, second[4]) == (1, 0.5, 50.5)


def test_the_interval_along_the_thought_is_over_users():
    # one user has 50 hits, the other 50 misses: a resample has one of them twice half of the time
    table = pl.DataFrame(
        {
            "method": ["a"] * 100,
            "seed": [0] * 100,
            "query": list(range(100)),
            "user_index": [0] * 50 + [1] * 50,
            "step": [0] * 100,
            "rank": [1.0] * 50 + [99.0] * 50,
        }
    )
    (line,) = views.trajectory(table).lines
    assert (line[3].mean, line[3].low, line[3].high) == (0.5, 0.0, 1.0)


def test_a_median_beyond_every_place_is_a_dash_and_no_point_of_the_panel():
    # of 3 targets the mask keeps 2 out of reach, at every step
    table = pl.DataFrame(
        {
            "method": ["a"] * 6 + ["b"] * 2,
            "seed": [0] * 8,
            "query": [0, 1, 2, 0, 1, 2, 0, 0],
            "user_index": [0, 1, 2, 0, 1, 2, 0, 0],
            "step": [0, 0, 0, 1, 1, 1, 0, 1],
            "rank": [1.0, np.inf, np.inf, 1.0, np.inf, np.inf, 3.0, 1.0],
        }
    )
    both = views.trajectory(table)
    assert [line[4] for line in both.lines] == [np.inf, np.inf, 3.0, 1.0]
    assert both.lines[0][3].mean == pytest.approx(1 / 3)
    ndcg, place = both.panels
    assert [line[0] for line in ndcg.lines] == ["a", "b"]
    assert place.lines == (("b", (0.0, 1.0), (3.0, 1.0)),)
    assert len(views.trajectory(table.head(6)).panels) == 1
    assert _place(np.inf) == "–"


def test_what_was_traced_keeps_its_seed_and_user(folder, tmp_path):
    evaluation = read_evaluation(folder / "evaluation")
    runs = []
    for seed in (3, 4):
        run = tmp_path / f"seed-{seed}"
        rows = tuple(replace(row, seed=seed) for row in evaluation.rows)
        ranks = evaluation.per_query.with_columns(pl.lit(seed).cast(pl.Int64).alias("seed"))
        run.mkdir()
        write_evaluation(run, [replace(evaluation, rows=rows, per_query=ranks)])
        traced = pl.DataFrame({"query": [7, 7, 8], "step": [0, 1, 0], "rank": [9.0, 2.0, 5.0]})
        method = run / "methods" / "think-recpo"
        method.mkdir(parents=True)
        if seed == 3:
            traced = traced.with_columns(seed=seed)
        else:  # an older one: its manifest alone knows the seed
            write_manifest(
                method, stage="evaluate-method", inputs={}, config={}, outputs=[], seconds=1.0,
                seed=seed,
            )  # fmt: skip
        traced.write_parquet(method / "trajectory.parquet")
        runs.append(run)
    joined = join_runs(find_runs(runs))
    assert joined.trajectory.select("method", "seed", "query", "user_index", "rank").rows() == [
        ("think-recpo", seed, query, query, rank)  # in the toy run query n is of user n
        for seed in (3, 4)
        for query, rank in ((7, 9.0), (7, 2.0), (8, 5.0))
    ]
    few = joined.per_query.filter((pl.col("seed") == 3) | (pl.col("query") != 7))
    common = on_common_queries(replace(joined, per_query=few))
    assert common.trajectory["query"].to_list() == [8, 8]


def test_what_a_run_does_not_hold_is_left_out_or_said(tmp_path, folder):
    alone = tmp_path / "alone"
    alone.mkdir()
    write_evaluation(alone, [read_evaluation(folder / "evaluation")])
    compare_runs([alone], tmp_path / "out", reference="no-think", num_resamples=100)
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert f"alone is not audited: <code>reasonrec audit {alone} --out {alone}/audits" in page
    assert "No thought was traced: <code>reasonrec evaluate" in page
    assert "The prepared data could not be found" in page
    assert "its commands cannot be told" in page


def test_a_run_whose_thoughts_are_not_read_step_by_step_is_not_told_to_trace_them(tmp_path, folder):
    evaluation = read_evaluation(folder / "evaluation")
    others = {"think-sft": "r2rec-sft", "think-recpo": "think-recpo/gated"}
    rows = tuple(replace(row, method=others.get(row.method, row.method)) for row in evaluation.rows)
    ranks = evaluation.per_query.with_columns(pl.col("method").replace(others))
    run = tmp_path / "run"
    run.mkdir()
    write_evaluation(run, [replace(evaluation, rows=rows, per_query=ranks)])
    compare_runs([run], tmp_path / "out", reference="no-think", num_resamples=100)
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "think-recpo/gated" in page and "--trajectory" not in page


def test_a_command_can_be_pasted_whatever_the_folder_is_called(tmp_path, folder):
    odd = tmp_path / "odd $name"
    odd.mkdir()
    write_evaluation(odd, [read_evaluation(folder / "evaluation")])
    joined = join_runs(find_runs([odd]))
    compared = compare(joined, "no-think", num_resamples=100)
    settings = {"reference": "no-think", "columns": [], "num_resamples": 100}
    page = unescape(render_comparison(compared, pass_comparison(joined.runs, settings, [])))
    assert f"reasonrec audit '{odd}' --out '{odd}/audits'</code>" in page


def test_the_front_joins_what_no_other_method_beats_in_both():
    points = [
        CostPoint("quick", 0.1, 0.05, 0.0),
        CostPoint("good", 1.0, 0.10, 0.0),
        CostPoint("beaten", 5.0, 0.08, 0.0),  # slower and worse than good
        CostPoint("best", 10.0, 0.12, 30.0),
    ]
    chart = cost_chart(points)
    where = {p["point"].method: (p["left"], p["top"]) for p in chart["placed"]}
    assert chart["front"] == [where["quick"], where["good"], where["best"]]


def test_labels_of_one_place_stand_apart():
    points = [CostPoint(f"method-{n}", 5.0, 0.1, 0.0) for n in range(5)]
    tops = sorted(p["label_top"] for p in cost_chart(points)["placed"])
    assert all(lower - upper >= 6 for upper, lower in pairwise(tops))


def test_what_failed_is_shown_before_what_passed(compared):
    # the toy run holds a pass, then a warning
    assert [row["verdict"] for row in compared.joined.audits] == ["warn", "pass"]


def test_what_the_audit_command_wrote_is_shown(tmp_path):
    shop, run = tmp_path / "shop", tmp_path / "run"
    prepare_planted(shop, PlantedConfig(size="tiny"), None, 0)
    main(["evaluate", "popularity", "item-knn", "--data", str(shop), "--out", str(run)])
    main(["audit", str(run), "--out", str(run / "audits"), "--num-probes", "20"])
    main(["compare", str(run), "--out", str(tmp_path / "compared")])
    page = (tmp_path / "compared" / "report.html").read_text("utf-8")
    audits = read_audits(run / "audits")
    for row in audits.rows:
        assert f'<th scope="row">{row.audit}</th>' in page
    (part,) = [
        row
        for row in audits.slices
        if (row.slice, row.method, row.metric) == ("known users", "item-knn", "ndcg@10")
    ]
    assert f'<th scope="col">known users<br><span class="soft">{part.n} queries</span></th>' in page
    assert f"<td>{part.value:.4f}<small>{part.ci_low:.4f}–{part.ci_high:.4f}</small></td>" in page
    assert "is not audited" not in page
    assert 'id="trajectory"' not in page  # nothing here thinks
    first = json.loads((run / "metrics.json").read_text())
    costs = {row["metric"]: row["value"] for row in first if row["method"] == "item-knn"}
    for name in ("latency-p50-ms", "users-per-second"):
        assert f'<td data-value="{costs[name]}">' in page
    slow = [float(word) for word in re.findall(r"<small>p95 ([\d.]+)</small>", page)]
    assert any(one == pytest.approx(costs["latency-p95-ms"], rel=0.01) for one in slow)
    table = (tmp_path / "compared" / "comparison.md").read_text("utf-8")
    assert "| tokens | ms/user | p95 | seconds | users/s |" in table
