"""``evaluate`` and ``compare`` as they are typed, on a tiny planted world."""

import json
import shutil

import pytest

from reasonrec.cli import main
from reasonrec.data.dataset import Dataset
from reasonrec.data.planted.config import PlantedConfig
from reasonrec.data.prepare import prepare_planted
from reasonrec.errors import DataError
from reasonrec.evaluation.audits.stage import find_source
from reasonrec.evaluation.config import EvaluateConfig
from reasonrec.evaluation.measure import Contestant, floor_contestant, measure
from reasonrec.evaluation.runs import find_runs
from reasonrec.manifest import read_manifest


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted") / "data"
    prepare_planted(folder, PlantedConfig(size="tiny"), None, 0)
    return folder


def run(*arguments):
    main([str(argument) for argument in arguments])


def test_the_floor_and_the_oracle_are_measured_and_compared(shop, tmp_path, capsys):
    methods = ["popularity", "follow-counter", "oracle"]
    run("evaluate", *methods, "--data", shop, "--out", tmp_path / "eval", "--seed", 3)
    assert "share of what the oracle reaches" in capsys.readouterr().out
    rows = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert list(rows[0]) == [
        "dataset", "split", "protocol", "method", "metric", "value",
        "ci_low", "ci_high", "n", "seed", "trained_on", "seconds",
    ]  # fmt: skip
    assert {row["seed"] for row in rows} == {3}
    ndcg = {
        row["method"]: row["value"]
        for row in rows
        if (row["protocol"], row["metric"]) == ("full", "ndcg@10")
    }
    assert ndcg["oracle"] == max(ndcg.values())
    manifest = json.loads((tmp_path / "eval" / "manifest.json").read_text())
    assert manifest["inputs"] == {"data": Dataset.load(shop).fingerprint}

    run("compare", tmp_path / "eval", "--reference", "oracle", "--out", tmp_path / "c", "--json")
    found = json.loads(capsys.readouterr().out)
    assert {one["method"] for one in found} == {"popularity", "follow-counter"}
    assert all(one["difference"] < 0 for one in found)


def test_a_finished_evaluation_is_left_as_it_is(shop, tmp_path, capsys):
    command = ("evaluate", "popularity", "--data", shop, "--out", tmp_path / "eval", "--json")
    run(*command)
    written = (tmp_path / "eval" / "manifest.json").read_bytes()
    run(*command)
    assert (tmp_path / "eval" / "manifest.json").read_bytes() == written
    first, second = capsys.readouterr().out.split("]\n[")
    assert first.strip("[]\n") == second.strip("[]\n")
    with pytest.raises(SystemExit) as stopped:
        run(*command, "--mask", "none")
    assert stopped.value.code == 1
    assert "mask was 'history-except-target', now 'none'" in capsys.readouterr().err


def test_an_interrupted_evaluation_continues_with_the_next_method(shop, tmp_path):
    dataset = Dataset.load(shop)
    opened = []

    def counted(name, fails=False):
        method = floor_contestant(name, dataset, seed=0, tune=0)

        def open_method(folder):
            opened.append(name)
            if fails:
                raise KeyboardInterrupt
            return method.open(folder)

        return Contestant(name, 0, name, open_method)

    config = EvaluateConfig(num_timed_users=2)
    with pytest.raises(KeyboardInterrupt):
        measure([counted("popularity"), counted("item-knn", fails=True)], dataset, tmp_path, config)
    assert not (tmp_path / "manifest.json").exists()
    both = measure([counted("popularity"), counted("item-knn")], dataset, tmp_path, config)
    assert opened == ["popularity", "item-knn", "item-knn"]
    assert [one.rows[0].method for one in both] == ["popularity", "item-knn"]


def test_an_evaluation_and_a_search_find_their_data_from_anywhere(shop, tmp_path, monkeypatch):
    shutil.copytree(shop, tmp_path / "shop")
    (tmp_path / "other" / "disk").mkdir(parents=True)
    (tmp_path / "runs").symlink_to(tmp_path / "other" / "disk")
    monkeypatch.chdir(tmp_path)
    run("evaluate", "popularity", "--data", "shop", "--out", "runs/eval")
    run("tune", "item-knn", "--data", "shop", "--out", "runs/tune", "--budget", 1)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    runs = tmp_path / "runs"
    assert read_manifest(runs / "tune")["data_folder"] == "../../../shop"
    data, evaluated = find_source(runs / "eval")
    assert (data.resolve(), evaluated) == (tmp_path / "shop", runs / "eval")
    (found,) = find_runs([runs / "eval"])
    assert [place.resolve() for place in found.data_folders()] == [tmp_path / "shop"]


def test_results_that_could_not_be_told_apart_are_refused(shop, tmp_path):
    dataset = Dataset.load(shop)
    twins = [
        Contestant(label, 0, label, floor_contestant("popularity", dataset, seed=0, tune=0).open)
        for label in ("monday", "tuesday")
    ]
    with pytest.raises(DataError, match="got twice: popularity of seed 0"):
        measure(twins, dataset, tmp_path, EvaluateConfig())


def test_tuning_leaves_what_it_tried_beside_the_method(shop, tmp_path, capsys):
    run("evaluate", "follow-counter", "--data", shop, "--out", tmp_path, "--tune", 3, "--json")
    written = (tmp_path / "methods" / "follow-counter" / "trials.jsonl").read_text()
    assert [json.loads(line)["method"] for line in written.splitlines()] == 3 * ["follow-counter"]


def test_given_candidates_are_one_more_protocol(shop, tmp_path, capsys):
    import polars as pl

    dataset = Dataset.load(shop)
    lists = pl.DataFrame(
        {
            "user_id": dataset.user_ids,
            "candidates": [dataset.catalogue.item_ids[:8]] * dataset.num_users,
        }
    )
    lists.write_parquet(tmp_path / "lists.parquet")
    run(
        "evaluate", "popularity", "--data", shop, "--out", tmp_path / "eval",
        "--candidates", tmp_path / "lists.parquet", "--protocols", "full", "--json",
    )  # fmt: skip
    rows = json.loads(capsys.readouterr().out)
    assert {row["protocol"] for row in rows} == {"full", "candidates-given", "cost"}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["magic"], 1, "a method must be one of popularity"),
        (["popularity", "popularity"], 1, "each method can be named once"),
        (["popularity", "--protocols", "all"], 2, "full or candidates-C"),
        (["popularity", "--protocols", "candidates-1"], 2, "full or candidates-C"),
        (["popularity", "--part", "train"], 2, "train"),
        (["popularity", "--trajectory"], 2, "whose thought is read step by step"),
        (["popularity", "--candidates", "nowhere.parquet"], 1, "found none at nowhere.parquet"),
    ],
)
def test_bad_usage_is_a_sentence_and_a_code(shop, tmp_path, capsys, arguments, code, message):
    with pytest.raises(SystemExit) as stopped:
        run("evaluate", *arguments, "--data", shop, "--out", tmp_path / "out")
    assert stopped.value.code == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_nothing_to_compare_or_to_measure_is_a_stated_failure(shop, tmp_path, capsys):
    for arguments, code in (
        (["compare", "--reference", "popularity", "--out", tmp_path / "a"], 2),
        (["compare", tmp_path, "--reference", "popularity", "--out", tmp_path / "b"], 1),
        (["evaluate", "popularity", "--data", tmp_path, "--out", tmp_path / "c"], 1),
        (["evaluate", tmp_path, "--data", shop, "--out", tmp_path / "d"], 1),
    ):
        with pytest.raises(SystemExit) as stopped:
            run(*arguments)
        assert stopped.value.code == code
        assert capsys.readouterr().err.startswith("reasonrec: ")
