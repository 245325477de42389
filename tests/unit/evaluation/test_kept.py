"""What the repository keeps of a run tells nothing of the data; beside them it is the run again."""

import io
import json
import shutil
import zipfile
from dataclasses import dataclass

import kept
import numpy as np
import polars as pl
import pytest
from tests.toys import toy_dataset

from reasonrec import cli
from reasonrec.baselines.contract import Recommender
from reasonrec.baselines.floor import fit_floor
from reasonrec.data.dataset import Dataset
from reasonrec.data.planted.config import PlantedConfig
from reasonrec.data.prepare import prepare_planted
from reasonrec.errors import CheckpointError
from reasonrec.evaluation.config import EvaluateConfig
from reasonrec.evaluation.joined import join_runs
from reasonrec.evaluation.measure import Contestant, measure
from reasonrec.evaluation.protocol import read_evaluation
from reasonrec.evaluation.runs import find_runs
from reasonrec.evaluation.tuning import read_trials
from reasonrec.manifest import read_manifest


@dataclass(frozen=True)
class Renamed:
    recommender: Recommender
    name: str

    def score(self, histories):
        return self.recommender.score(histories)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of one shop, laid out as those of benchmarks/peers.py."""
    folder = tmp_path_factory.mktemp("runs") / "planted"
    prepare_planted(folder / "data", PlantedConfig(size="tiny"), None, 0)
    for name, given in (("all-0", []), ("few-0", ["--num-queries", "20"])):
        cli.main(["evaluate", "popularity", "item-knn", "--data", str(folder / "data"),
                  "--out", str(folder / name), *given])  # fmt: skip
    dataset = Dataset.load(folder / "data")
    counter = fit_floor("follow-counter", dataset, seed=0)
    measure(
        [
            Contestant("counter", 0, "y", lambda _: Renamed(counter, "counter")),
            # a folder cannot be named as the silent half of a method is
            Contestant("counter-silent", 0, "x", lambda _: Renamed(counter, "counter/silent")),
        ],
        dataset, folder / "silent-0", EvaluateConfig(num_timed_users=0), seed=0,
    )  # fmt: skip
    cli.main(["tune", "item-knn", "--data", str(folder / "data"), "--budget", "2",
              "--out", str(folder / "tune-item-knn")])  # fmt: skip
    return folder.parent


@pytest.fixture(scope="module")
def store(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    kept.main(["keep", "peers", str(runs / "planted")], folder)
    return folder


@pytest.fixture
def unpacked(runs, store, tmp_path):
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted" / "data").symlink_to(runs / "planted" / "data")
    kept.main(["unpack", "peers", str(tmp_path)], store)
    return tmp_path


def test_every_run_but_the_data_is_kept(store):
    found = sorted(str(path.relative_to(store)) for path in store.rglob("*.zip"))
    assert found == [
        f"peers/planted/{name}.zip" for name in ("all-0", "few-0", "silent-0", "tune-item-knn")
    ]


def test_nothing_kept_names_users_items_or_times(store):
    for path in store.rglob("*-0.zip"):
        with zipfile.ZipFile(path) as archive:
            tables = [name for name in archive.namelist() if name.endswith(".parquet")]
            assert tables == [kept.RANKS]
            assert "train.parquet" in json.loads(archive.read(kept.DATA))["tables"]
            columns = pl.read_parquet(archive.read(kept.RANKS)).columns
        assert columns == ["method", "seed", "protocol", "query", "num_tokens", "rank"]


@pytest.mark.parametrize(
    ("name", "below"),
    [
        ("all-0", "."), ("all-0", "methods/item-knn"), ("few-0", "."),
        ("few-0", "methods/item-knn"), ("silent-0", "methods/counter-silent"),
    ],
)  # fmt: skip
def test_an_unpacked_run_has_the_ranks_and_metrics_of_the_run(runs, unpacked, name, below):
    before = read_evaluation(runs / "planted" / name / below)
    after = read_evaluation(unpacked / "planted" / name / below)
    assert after.rows == before.rows and len(after.rows) > 1
    assert after.per_query.drop("seconds").equals(before.per_query.drop("seconds"))


def test_an_unpacked_run_counts_as_finished(unpacked, capsys):
    out = unpacked / "planted" / "all-0"
    cli.main(["evaluate", "popularity", "item-knn", "--data", str(unpacked / "planted" / "data"),
              "--out", str(out)])  # fmt: skip
    assert read_manifest(out)["outputs"] == {}


def test_the_trials_of_a_search_come_back(runs, unpacked):
    searches = [folder / "planted" / "tune-item-knn" for folder in (runs, unpacked)]
    before, after = (read_trials(folder / "trials.jsonl") for folder in searches)
    assert after == before and len(after) == 2


def test_the_same_run_is_kept_in_the_same_bytes(runs, store, tmp_path):
    again = kept.keep(runs / "planted" / "all-0", tmp_path / "again")
    assert again.read_bytes() == (store / "peers" / "planted" / "all-0.zip").read_bytes()


def test_an_unpacked_demo_finds_its_data(runs, tmp_path):
    demo = tmp_path / "planted-0"
    demo.mkdir()
    shutil.copytree(runs / "planted" / "data", demo / "data")
    shutil.copytree(runs / "planted" / "all-0", demo / "evaluation")
    told = read_manifest(runs / "planted" / "all-0") | {"stage": "demo", "data_folder": "data"}
    (demo / "manifest.json").write_text(json.dumps(told), encoding="utf-8")
    kept.main(["keep", "demos", str(demo)], tmp_path / "kept")
    out = tmp_path / "unpacked"
    (out / "planted").mkdir(parents=True)
    (out / "planted" / "data").symlink_to(runs / "planted" / "data")
    kept.main(["unpack", "demos", str(out)], tmp_path / "kept")
    assert join_runs(find_runs([out / "planted-0"])).dataset is not None


def test_other_data_are_refused(store, tmp_path):
    prepare_planted(tmp_path / "planted" / "data", PlantedConfig(size="tiny"), None, 1)
    with pytest.raises(CheckpointError, match=r"these differ: .*train\.parquet"):
        kept.main(["unpack", "peers", str(tmp_path)], store)
    assert not (tmp_path / "planted" / "all-0" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("ranks", "dtype"),
    [([1.0, 2.5, 32767.5], pl.UInt16), ([1.0, 32768.0], pl.Float32), ([2.0, np.inf], pl.Float32)],
)
def test_ranks_are_kept_as_halves_where_they_fit_and_come_back(tmp_path, ranks, dtype):
    dataset = toy_dataset([[0, 1, 2, 3]] * len(ranks), list("abcd"))
    table = pl.DataFrame(
        {
            "method": "m", "seed": 0, "protocol": "full", "query": range(len(ranks)),
            "num_tokens": 0, "rank": ranks,
        }
    )  # fmt: skip
    table.write_parquet(tmp_path / "per_query.parquet")
    stored = pl.read_parquet(io.BytesIO(kept.ranks_of(tmp_path / "per_query.parquet")))
    assert stored.schema["rank"] == pl.List(dtype)
    assert kept.queries_of(stored, dataset.test)["rank"].to_list() == ranks
