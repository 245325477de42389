"""Pages of tuned baselines tell what answering costs, and measure peers by the tuned counter."""

import json
import zipfile

import llm_baselines
import pytest
from floor import PREPARE, SEEDS
from kept import KEPT
from peers import below_counter, times_behind_last, tuned_counter
from running import ROOT
from tests.toys import toy_dataset

from reasonrec import cli
from reasonrec.data.planted.config import PlantedConfig
from reasonrec.data.prepare import prepare_planted
from reasonrec.evaluation.protocol import MetricRow
from reasonrec.evaluation.table import COST_HEADINGS, cost_cells, summarise


def row(method, protocol, metric, value):
    return MetricRow(
        "shop", "given", protocol, method, metric, value, None, None, 4, 0, "train", 1.0
    )


def lines_of(**values):
    return summarise([row(m, "full", "ndcg@10", v) for m, v in values.items()])


def table(page, name):
    """Return the first table of a set's section, by method and heading."""
    text = (ROOT / "docs" / "results" / f"{page}.md").read_text(encoding="utf-8")
    section = text.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line[:1] == "|"]
    headings = rows[0]
    own = [cells for cells in rows[2:] if len(cells) == len(headings)]
    return {cells[0]: dict(zip(headings, cells, strict=True)) for cells in own}


def test_costs_of_a_line_are_latency_users_and_tokens_a_second():
    costs = {
        "users-per-second": 1250.0, "tokens": 30.0, "latency-p50-ms": 4.25, "latency-p95-ms": 61.6,
    }  # fmt: skip
    (line,) = summarise([row("think", "cost", metric, value) for metric, value in costs.items()])
    assert cost_cells(line) == ["4.2", "62", "1,250", "37,500"]  # 30 x 1,250
    silent = [row("count", "cost", "tokens", 0.0), row("count", "cost", "users-per-second", 9.5)]
    (line,) = summarise(silent)
    assert cost_cells(line) == ["-", "-", "9.5", "-"]


def test_the_page_of_language_models_tells_the_same_costs(tmp_path):
    data, folder = tmp_path / "data", tmp_path / "ml-100k"
    prepare_planted(data, PlantedConfig(size="tiny"), seed=0)
    asked = ["evaluate", "popularity", "--data", str(data), "--out", str(folder / "test-floor")]
    cli.main(asked)
    text = llm_baselines.write_set("ml-100k", folder)
    headings, _, cells = (line.strip("| ").split(" | ") for line in text.splitlines()[4:7])
    found = dict(zip(headings, cells, strict=True))
    assert found["method"] == "popularity" and found["tokens/s"] == "-"
    assert all(found[heading] != "-" for heading in COST_HEADINGS[:3])


@pytest.mark.parametrize("name", PREPARE)
@pytest.mark.parametrize("page", ["floor", "peers"])
def test_every_method_of_a_page_has_latency_and_users_a_second(page, name):
    found = table(page, name)
    assert len(found) > 5
    for method, cells in found.items():
        for heading in COST_HEADINGS[:3]:
            assert float(cells[heading].replace(",", "").replace("<", "")) > 0, method


@pytest.mark.parametrize("name", PREPARE)
def test_latencies_of_the_floor_are_those_of_the_runs_that_are_kept(name):
    with zipfile.ZipFile(KEPT / "floor" / name / f"test-{SEEDS[0]}.zip") as archive:
        rows = json.loads(archive.read("metrics.json"))
    kept = {r["method"]: r["value"] for r in rows if r["metric"] == "latency-p95-ms"}
    shown = {method: cells["p95 ms"] for method, cells in table("floor", name).items()}
    for method in ("follow-counter", "ease"):  # of one seed: no mean
        # two digits are shown: half of the last is at most 5 % of the value
        assert float(shown[method]) == pytest.approx(kept[method], rel=0.05)


def test_peers_are_named_that_the_counter_beats_untuned_and_tuned():
    lines = lines_of(**{"follow-counter": 0.10, "sasrec": 0.12, "caser": 0.09, "hstu": 0.11})
    assert below_counter(lines, tuned=0.115) == (
        "By NDCG@10 below the untuned follow counter (.1000): caser; "
        "below the tuned follow counter (.1150): caser, hstu."
    )
    assert below_counter(lines_of(**{"follow-counter": 0.1, "hstu": 0.2}), tuned=None) == (
        "By NDCG@10 below the untuned follow counter (.1000): none."
    )


def test_the_tuned_counter_is_that_of_the_page_of_tuned_baselines():
    for name in PREPARE:
        shown = table("floor", name)["follow-counter"]["NDCG@10"].strip("*")
        assert tuned_counter(name) == pytest.approx(float(shown), abs=5.1e-5)
        page = (ROOT / "docs" / "results" / "peers.md").read_text(encoding="utf-8")
        section = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        assert f"below the tuned follow counter ({shown})" in section
    assert tuned_counter("a set without runs") is None


def test_a_target_is_counted_each_time_that_it_follows_the_last_item_right_away():
    # the last two of each are the validation and the test target
    rows = [[0, 1, 0, 1, 2, 1], [0, 1, 3, 0, 2], [5, 0, 4, 1], [4, 5, 6, 6]]
    dataset = toy_dataset(rows, [f"Tale {i}" for i in range(7)])
    # training holds 0 1 0 1, 0 1 3, 5 0 and 4 5; asked are 2 -> 1, 0 -> 2, 4 -> 1 and 6 -> 6
    assert times_behind_last(dataset).tolist() == [0, 0, 0, 0]
    rows = [[0, 1, 0, 1, 0, 1], [0, 1, 3, 4, 5], [4, 5, 0, 1], [2, 6, 1, 0]]
    dataset = toy_dataset(rows, [f"Tale {i}" for i in range(7)])
    # 0 1 0 1, 0 1 3, 4 5 and 2 6: 1 is right behind 0 three times, 5 once behind 4, 0 once behind 1
    assert times_behind_last(dataset).tolist() == [3, 1, 3, 1]
