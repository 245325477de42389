"""What an independent library makes of the stored lists is what our tables say."""

import json
import shutil
import zipfile

import numpy as np
import polars as pl
import pytest
from benchmarks.check_metrics import (
    FIRST,
    LAST,
    MIDDLE,
    TOLERANCE,
    check,
    main,
    measure_again,
    measure_ranks,
)
from kept import KEPT, RANKS
from running import ROOT

from reasonrec import cli
from reasonrec.data.planted.config import PlantedConfig
from reasonrec.data.prepare import prepare_planted
from reasonrec.evaluation.protocol import evaluate, read_evaluation
from reasonrec.metrics import metric_values
from reasonrec.records import Scored
from toys import NextInLine, toy_dataset

pytestmark = pytest.mark.filterwarnings("ignore")  # the library's, about its own dependencies


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with two evaluations of a tiny shop: popularity is full of ties."""
    folder = tmp_path_factory.mktemp("runs")
    prepare_planted(folder / "data", PlantedConfig(size="tiny"), None, 0)
    for name, mask in (("one", "history-except-target"), ("two", "history")):
        methods = ["popularity", "item-knn", "oracle"]
        cli.main(["evaluate", *methods, "--data", str(folder / "data"), "--mask", mask,
                  "--out", str(folder / name)])  # fmt: skip
    return folder


def test_every_number_of_a_run_is_the_librarys(runs, tmp_path, capsys):
    assert main([runs], tmp_path / "check.json") == 0
    said = capsys.readouterr().out
    assert "6 rankings measured again from their lists and 6 from their ranks, 0 differ" in said
    written = json.loads((tmp_path / "check.json").read_text())["methods"]
    methods = ["popularity", "item-knn", "oracle"]
    assert [(one["protocol"], one["method"]) for one in written] == [
        (protocol, method)
        for full in ("full", "full-mask-history")
        for method in methods
        for protocol in (full, "candidates-20")
    ]
    assert written[0]["num_tied"] > 0
    assert written[4]["num_tied"] == 0


def test_each_query_has_the_value_of_its_rank(runs):
    lists = read_evaluation(runs / "one").lists
    for metric, values in measure_again(lists).items():
        expected = metric_values(metric, lists["rank"].to_numpy())
        np.testing.assert_allclose(values[MIDDLE], expected, atol=1e-12)
        assert np.all(values[LAST] <= values[MIDDLE]) and np.all(values[MIDDLE] <= values[FIRST])


def test_a_tied_target_has_the_library_answer_twice():
    # below two items the target 7 ties with 3 others: it is the third to the sixth, 4.5 by our rule
    lists = pl.DataFrame(
        {
            "items": [[5, 6, 2, 7, 8, 9], [5, 6, 2, 7, 8, 9]],
            "scores": [[3.0, 2.0, 1.0, 1.0, 1.0, 1.0], [3.0, 2.0, 1.0, 0.5, 0.4, 0.3]],
            "target": [7, 7],
            "target_score": [1.0, 0.5],
            "num_tied": [3, 0],
        }
    )
    found = measure_again(lists)
    # rows: first, middle, last of the ties; the second list ties nothing, its target is fourth
    assert found["hit@3"].tolist() == [[1, 0], [0, 0], [0, 0]]
    assert found["hit@5"].tolist() == [[1, 1], [1, 1], [0, 1]]
    np.testing.assert_allclose(found["ndcg@10"][:, 0], 1 / np.log2([4.0, 5.5, 7.0]))


def test_ties_that_a_list_does_not_hold_count():
    # the list ends with the first of 5 that tie with the target: places 2 to 7, 4.5 by our rule
    lists = pl.DataFrame(
        {
            "items": [[5, 6]], "scores": [[3.0, 1.0]], "target": [7], "target_score": [1.0],
            "num_tied": [5],
        }
    )  # fmt: skip
    ndcg = measure_again(lists)["ndcg@10"][:, 0]
    np.testing.assert_allclose(ndcg, 1 / np.log2([3.0, 5.5, 8.0]))


@pytest.mark.parametrize("protocol", ["full", "candidates-20"])
def test_a_number_that_is_not_of_the_ranking_is_found(runs, tmp_path, capsys, protocol):
    shutil.copytree(runs / "one", tmp_path / "run")
    path = tmp_path / "run" / "metrics.json"
    rows = json.loads(path.read_text())
    asked = (protocol, "item-knn", "ndcg@10")
    row = next(r for r in rows if (r["protocol"], r["method"], r["metric"]) == asked)
    row["value"] += 1e-6
    path.write_text(json.dumps(rows))
    assert main([tmp_path]) == 1
    assert "1 differ by more than" in capsys.readouterr().out
    wrong = [one for one in check(tmp_path / "run") if one["largest_difference"] > 1e-9]
    assert [(one["protocol"], one["method"], one["worst_metric"]) for one in wrong] == [asked]


def test_ties_that_were_all_won_are_found(runs, tmp_path):
    # metrics of the first place among all that tie: at one end of what the library says, and wrong
    shutil.copytree(runs / "one", tmp_path / "run")
    evaluation = read_evaluation(tmp_path / "run")
    won = evaluation.per_query.filter(pl.col("protocol") == "candidates-20", method="popularity")
    rows = json.loads((tmp_path / "run" / "metrics.json").read_text())
    for row in rows:
        if (row["protocol"], row["method"]) == ("candidates-20", "popularity"):
            row["value"] = metric_values(row["metric"], np.floor(won["rank"].to_numpy())).mean()
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(rows))
    (wrong,) = [one for one in check(tmp_path / "run") if one["largest_difference"] > 1e-9]
    assert (wrong["protocol"], wrong["method"]) == ("candidates-20", "popularity")
    assert wrong["is_between"] and wrong["num_tied"] > 0


def test_a_rank_beyond_the_candidates_is_wrong(runs, tmp_path):
    shutil.copytree(runs / "one", tmp_path / "run")
    path = tmp_path / "run" / "per_query.parquet"
    table = pl.read_parquet(path)
    is_asked = (pl.col("protocol") == "candidates-20") & (pl.col("method") == "popularity")
    last = table.filter(is_asked)["rank"].max()
    # more than 20 changes no number: no cutoff is beyond
    beyond = pl.when(is_asked & (pl.col("rank") == last)).then(21.0).otherwise(pl.col("rank"))
    table.with_columns(rank=beyond).write_parquet(path)
    wrong = [one for one in check(tmp_path / "run") if one["largest_difference"] > 1e-9]
    assert [(one["protocol"], one["method"]) for one in wrong] == [("candidates-20", "popularity")]
    assert wrong[0]["largest_difference"] == np.inf and not wrong[0]["is_between"]


@pytest.mark.parametrize("left", ["no file", "no row", "one method"])
def test_methods_without_lists_are_measured_from_their_ranks(runs, tmp_path, capsys, left):
    shutil.copytree(runs / "one", tmp_path / "run")
    path = tmp_path / "run" / "lists.parquet"
    lists = pl.read_parquet(path)
    names = lists["method"].unique().to_list()
    if left == "no file":
        path.unlink()
    else:
        kept = names[:1] if left == "one method" else []
        lists.filter(pl.col("method").is_in(kept)).write_parquet(path)
    assert main([tmp_path], tmp_path / "said.json") == 0
    num_left = int(left == "one method")
    said = capsys.readouterr().out
    assert f"{num_left} rankings measured again from their lists and {6 - num_left} from" in said
    rows = json.loads((tmp_path / "said.json").read_text())["methods"]
    assert {row["method"]: row["from"] for row in rows if row["protocol"] == "full"} == {
        name: "lists" if num_left and name == names[0] else "ranks" for name in names
    }


def test_ranks_that_are_not_those_of_the_numbers_are_found_and_nothing_at_all_is_no_success(
    runs, tmp_path
):
    shutil.copytree(runs / "one", tmp_path / "run")
    (tmp_path / "run" / "lists.parquet").unlink()
    path = tmp_path / "run" / "per_query.parquet"
    table = pl.read_parquet(path)
    is_first = (pl.col("method") == "item-knn") & (pl.col("rank") == 1)
    table.with_columns(rank=pl.when(is_first).then(2.0).otherwise(pl.col("rank"))).write_parquet(
        path
    )
    assert main([tmp_path]) == 1
    assert main([tmp_path / "nowhere"]) == 1


def test_a_rank_has_the_value_that_the_library_gives_a_list():
    rank = np.array([1.0, 2.0, 2.5, 20.0, 20.5, 21.0, 400.0])
    for metric, values in measure_ranks(rank).items():
        np.testing.assert_allclose(values[MIDDLE], metric_values(metric, rank), atol=1e-12)
    few = measure_ranks(np.array([2.0, 2.5, 3.0, 3.5]), num_candidates=3)
    # of three candidates the third is the last; a tie for the second place is a first and a last
    np.testing.assert_array_equal(few["hit@1"], np.array([[0, 0, 0, np.nan]] * 3))
    np.testing.assert_allclose(few["ndcg@3"][:, 1], 1 / np.log2([3.0, 3.5, 4.0]))


def test_the_kept_runs_of_every_table_were_checked_and_the_docs_say_how():
    checks = ROOT / "docs" / "results" / "checks"
    said = (ROOT / "docs" / "conventions.md").read_text(encoding="utf-8")
    for table in (folder.name for folder in KEPT.iterdir()):
        rows = json.loads((checks / f"{table}.json").read_text(encoding="utf-8"))["methods"]
        assert all(one["largest_difference"] <= TOLERANCE and one["is_between"] for one in rows)
        checked = {(one["folder"].split("/evaluation")[0], one["protocol"]) for one in rows}
        measured = [
            path.relative_to(KEPT).with_suffix("")
            for path in (KEPT / table).rglob("*.zip")
            if any(name.endswith(RANKS) for name in zipfile.ZipFile(path).namelist())
        ]
        assert checked == {
            (str(run), word) for run in measured for word in ("full", "candidates-20")
        }
        full = {one["folder"]: one["from"] for one in rows if one["protocol"] == "full"}
        counts = [len(full), *(list(full.values()).count(what) for what in ("lists", "ranks"))]
        (line,) = (one for one in said.splitlines() if one.startswith(f"| [{table}.json]"))
        assert line.endswith("| {} | {} | {} |".format(*counts))


class Levels:
    """Scores items 0 to 29 by 3, 2, 2, 2, 1, 1, ..., 1."""

    name = "levels"

    def score(self, histories):
        row = np.array([3, 2, 2, 2, *[1] * 26], np.float32)
        return Scored(np.tile(row, (len(histories), 1)))


def test_a_list_holds_what_competed_and_says_how_many_tie_with_the_target():
    rows = [[5, 6, 7, 2], [0, 6, 7, 9], [8, 9, 1, 8]]  # the last of each is the test target
    dataset = toy_dataset(rows, [f"title {i}" for i in range(30)])
    lists = evaluate(Levels(), dataset, num_timed_users=0, keep_lists=True, batch_size=2).lists
    assert lists["target"].to_list() == [2, 9, 8]
    # of 30 items 3 are masked in row 0; 2 ties with 1 and 3, below 0: rank 1 + 1 + 2 / 2
    assert lists["items"].to_list()[0] == [0, 1, 2, 3, 4, *range(8, 23)]
    assert lists["scores"].to_list()[0] == [3, 2, 2, 2, *[1] * 16]
    assert lists["num_tied"].to_list() == [2, 23, 24]
    # row 1 lacks 0, 6, 7: 3 above, 27 - 3 - 1 tie; row 2 lacks 9, 1, and keeps the target 8
    assert lists["rank"].to_list() == [3.0, 1 + 3 + 23 / 2, 1 + 3 + 24 / 2]
    assert 8 in lists["items"].to_list()[2]
    assert evaluate(NextInLine(30), dataset, num_timed_users=0).lists.height == 0
