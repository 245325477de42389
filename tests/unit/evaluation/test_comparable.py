"""Runs that cannot be compared are refused, or kept apart by name."""

import json
import shutil

import polars as pl
import pytest

from reasonrec.data.dataset import Dataset
from reasonrec.data.planted.config import PlantedConfig
from reasonrec.data.prepare import prepare_planted
from reasonrec.errors import CheckpointError, DataError
from reasonrec.evaluation.config import EvaluateConfig
from reasonrec.evaluation.joined import join_runs
from reasonrec.evaluation.measure import floor_contestant, measure
from reasonrec.evaluation.runs import find_runs
from reasonrec.manifest import read_manifest, write_manifest


@pytest.fixture(scope="module")
def shops(tmp_path_factory):
    """Return one world prepared by two versions, in two places, and another one."""
    root = tmp_path_factory.mktemp("shops")
    for name, seed in (("here", 0), ("there", 0), ("other", 1)):
        prepare_planted(root / name, PlantedConfig(size="tiny"), None, seed)
    there = root / "there"
    told = json.loads((there / "statistics.json").read_text())
    (there / "statistics.json").write_text(json.dumps(told | {"source": str(there / "world")}))
    manifest = read_manifest(there)
    write_manifest(
        there, stage="prepare", inputs=manifest["inputs"], config=manifest["config"],
        outputs=list(manifest["outputs"]), seconds=1.0,
    )  # fmt: skip
    return {name: Dataset.load(root / name) for name in ("here", "there", "other")}


def measured(dataset, out, name="popularity", *, seed=0, settings=None, candidates=None, **config):
    """Return the folder of one measured baseline."""
    asked = EvaluateConfig(num_timed_users=0, **config)
    row = floor_contestant(name, dataset, seed=seed, settings=settings, asked=asked)
    measure([row], dataset, out, asked, seed=seed, candidates_file=candidates, has_passport=True)
    return out


def methods_in(*folders):
    return list(dict.fromkeys(row.method for row in join_runs(find_runs(folders)).rows))


def test_runs_of_the_same_tables_in_two_places_are_compared(shops, tmp_path):
    assert shops["here"].fingerprint != shops["there"].fingerprint  # of statistics.json
    one = measured(shops["here"], tmp_path / "one")
    two = measured(shops["there"], tmp_path / "two", "item-knn")
    assert methods_in(one, two) == ["popularity", "item-knn"]
    # one method of an evaluation finds the data by that evaluation
    assert methods_in(one, two / "methods" / "item-knn") == ["popularity", "item-knn"]


def test_runs_of_other_prepared_data_are_refused(shops, tmp_path):
    one = measured(shops["here"], tmp_path / "one")
    two = measured(shops["other"], tmp_path / "two", "item-knn")
    with pytest.raises(DataError, match=r"those of one and two differ in .*train\.parquet"):
        methods_in(one, two)


def test_where_the_data_are_gone_the_passport_tells_their_tables(shops, tmp_path):
    shutil.copytree(shops["there"].folder, tmp_path / "data")
    one = measured(shops["here"], tmp_path / "one")
    two = measured(Dataset.load(tmp_path / "data"), tmp_path / "two", "item-knn")
    shutil.rmtree(tmp_path / "data")
    assert methods_in(one, two) == ["popularity", "item-knn"]
    (two / "passport.json").unlink()
    manifest = read_manifest(two)
    outputs = [name for name in manifest["outputs"] if name != "passport.json"]
    write_manifest(
        two, stage="evaluate", inputs=manifest["inputs"], config=manifest["config"],
        outputs=outputs, seconds=1.0, extra={"data_folder": manifest["data_folder"]},
    )  # fmt: skip
    with pytest.raises(DataError, match="without the data of two"):
        methods_in(one, two)


def test_runs_among_candidates_of_another_draw_are_refused(shops, tmp_path):
    one = measured(shops["here"], tmp_path / "one")
    two = measured(shops["here"], tmp_path / "two", "item-knn", candidate_seed=7)
    with pytest.raises(
        DataError, match="candidates-20 were drawn by seed 0 in one and by seed 7 in two"
    ):
        methods_in(one, two)
    full = measured(
        shops["here"], tmp_path / "full", "item-knn", candidate_seed=7, protocols=("full",)
    )
    assert methods_in(one, full) == ["popularity", "item-knn"]  # shares no candidates


def test_runs_among_candidates_of_another_file_are_refused(shops, tmp_path):
    dataset = shops["here"]
    asked = dataset.test
    items = dataset.catalogue.item_ids
    runs = []
    for place, name in enumerate(("popularity", "item-knn")):
        lists = [[items[int(target)], items[(int(target) + 1 + place) % len(items)]]
                 for target in asked.target]  # fmt: skip
        users = [dataset.user_ids[user] for user in asked.user_index]
        file = tmp_path / f"{name}.parquet"
        pl.DataFrame({"user_id": users, "candidates": lists}).write_parquet(file)
        runs.append(measured(dataset, tmp_path / name, name, candidates=file, protocols=("full",)))
    with pytest.raises(DataError, match="candidates-given were read from different files"):
        methods_in(*runs)


def test_settings_that_differ_are_no_seeds_of_one_method(shops, tmp_path):
    runs = [
        measured(shops["here"], tmp_path / f"set-{seed}", "item-knn", seed=seed, settings=settings)
        for seed, settings in enumerate((None, {}, {"recency_power": 0.9}))
    ]
    assert methods_in(*runs[:2]) == ["item-knn"]  # said or unsaid, the defaults are the same
    assert methods_in(runs[0], runs[2]) == ["item-knn (set-0)", "item-knn (set-2)"]


def test_trained_models_are_told_apart_by_what_both_recorded(shops, tmp_path):
    demos = []
    for seed, config in enumerate(
        ({"width": 64, "epochs": 4}, {"width": 64, "epochs": None, "new": 1}, {"width": 128})
    ):
        demo = tmp_path / f"demo-{seed}"
        evaluation = measured(shops["here"], demo / "evaluation", seed=seed)
        for path in (evaluation / "metrics.json", evaluation / "per_query.parquet"):
            if path.suffix == ".json":
                path.write_text(path.read_text().replace("popularity", "no-think"))
            else:
                ranks = pl.read_parquet(path).with_columns(method=pl.lit("no-think"))
                ranks.write_parquet(path)
        manifest = read_manifest(evaluation)
        told = json.loads(json.dumps(manifest["config"]).replace('"popularity"', '"no-think"'))
        told["methods"]["no-think"]["source"] = f"{seed:064}"
        for folder, stage, said, outputs in (
            (evaluation, "evaluate", told, list(manifest["outputs"])),
            (demo, "demo", {"r2ec": config}, []),
        ):
            write_manifest(folder, stage=stage, inputs=manifest["inputs"], config=said,
                           outputs=outputs, seconds=1.0, seed=seed)  # fmt: skip
        demos.append(demo)
    assert methods_in(*demos[:2]) == ["no-think"]  # an older version did not know the new key
    assert methods_in(demos[0], demos[2]) == ["no-think (demo-0)", "no-think (demo-2)"]


def test_a_run_that_was_edited_is_refused(shops, tmp_path):
    run = measured(shops["here"], tmp_path / "run")
    table = pl.read_parquet(run / "per_query.parquet")
    table.with_columns(rank=pl.lit(1.0)).write_parquet(run / "per_query.parquet")
    with pytest.raises(CheckpointError, match=r"per_query\.parquet in .*run must be as the run"):
        methods_in(run)
