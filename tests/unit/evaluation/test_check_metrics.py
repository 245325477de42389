"""What an independent library makes of the stored lists is what our tables say."""

import json
import shutil

import numpy as np
import polars as pl
import pytest
from benchmarks.check_metrics import check, main, measure_again, measure_ranks

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
    assert "6 methods measured again from their lists and 0 from their ranks, 0 differ" in said
    written = json.loads((tmp_path / "check.json").read_text())["methods"]
    assert [one["method"] for one in written] == 2 * ["popularity", "item-knn", "oracle"]
    assert written[0]["num_tied"] > 0
    assert written[2]["num_tied"] == 0


def test_each_query_has_the_value_of_its_rank(runs):
    lists = read_evaluation(runs / "one").lists
    for metric, values in measure_again(lists).items():
        expected = metric_values(metric, lists["rank"].to_numpy())
        np.testing.assert_allclose(values, expected, atol=1e-12)


def test_a_number_that_is_not_of_the_lists_is_found(runs, tmp_path, capsys):
    shutil.copytree(runs / "one", tmp_path / "run")
    path = tmp_path / "run" / "metrics.json"
    rows = json.loads(path.read_text())
    row = next(r for r in rows if (r["method"], r["metric"]) == ("item-knn", "ndcg@10"))
    row["value"] += 1e-6
    path.write_text(json.dumps(rows))
    assert main([tmp_path]) == 1
    assert "1 differ by more than" in capsys.readouterr().out
    wrong = [one for one in check(tmp_path / "run") if one["largest_difference"] > 1e-9]
    assert [(one["method"], one["worst_metric"]) for one in wrong] == [("item-knn", "ndcg@10")]


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
    assert f"{num_left} methods measured again from their lists and {3 - num_left} from" in said
    rows = json.loads((tmp_path / "said.json").read_text())["methods"]
    assert {row["method"]: row["from"] for row in rows} == {
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
        np.testing.assert_allclose(values, metric_values(metric, rank), atol=1e-12)


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
