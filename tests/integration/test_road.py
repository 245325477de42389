"""The real command line, end to end, on a tiny generated shop: killed once, then resumed."""

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import polars as pl
import pytest

ROOT = Path(__file__).parents[2]
METHODS = {
    "popularity", "recent-popularity", "item-knn", "follow-counter", "no-think", "think-sft",
    "think-sft/silent", "think-recpo", "think-recpo/silent", "oracle",
}  # fmt: skip


def reasonrec(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "reasonrec", *map(str, words)]


def run(*words: str | Path, code: int = 0) -> str:
    done = subprocess.run(
        reasonrec(*words), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr


def demo(out: Path) -> list[str | Path]:
    preset = ROOT / "configs" / "smoke.toml"
    return ["demo", "--world.size", "tiny", "--preset", preset, "--out", out]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("road") / "whole"
    run(*demo(out))
    return out


def accuracy(run_folder: Path) -> dict[tuple[str, str, str], float]:
    rows = json.loads((run_folder / "metrics.json").read_text())
    return {
        (r["method"], r["protocol"], r["metric"]): r["value"]
        for r in rows
        if r["protocol"] != "cost"
    }


def test_the_road_ends_in_a_table_a_report_and_explained_recommendations(whole):
    values = accuracy(whole)
    assert {method for method, _, _ in values} == METHODS
    for (method, protocol, metric), value in values.items():
        assert 0 <= value <= 1
        if metric.startswith("ndcg"):
            assert value <= values[method, protocol, metric.replace("ndcg", "hit")] + 1e-9
    assert values["oracle", "full", "ndcg@10"] > values["popularity", "full", "ndcg@10"]
    assert (whole / "report.html").stat().st_size > 20_000
    for row in json.loads((whole / "audits" / "audits.json").read_text())["rows"]:
        assert f'<th scope="row">{row["audit"]}</th>' in (whole / "report.html").read_text()
    answers = json.loads((whole / "recommendations.json").read_text())
    assert len(answers) == 3
    assert all(len(answer["items"]) == 10 and answer["thought"] for answer in answers)


def test_every_shown_thought_rests_on_what_is_shown_with_it(whole):
    # what a look-up inserted is in the chains; what the model asked about is there as via item
    for answer in json.loads((whole / "recommendations.json").read_text()):
        chained = {chain["title"] for chain in answer["chains"]}
        for part in answer["thought"].split(";"):
            _, colon, found = part.partition("]:")
            if colon:
                named = (title.removeprefix(" like").strip(" [") for title in found.split("]"))
                titles = [title for title in named if title and title != "nothing new"]
                assert set(titles) <= chained


def test_thinking_is_reported_beside_not_thinking_with_its_cost(whole):
    rows = json.loads((whole / "metrics.json").read_text())
    tokens = {r["method"]: r["value"] for r in rows if r["metric"] == "tokens"}
    assert tokens["no-think"] == 0
    assert tokens["think-recpo"] > 0
    assert tokens["think-recpo/silent"] == 0
    assert {r["metric"] for r in rows if r["protocol"] == "cost"} >= {"latency-p50-ms", "tokens"}


def test_a_finished_run_is_left_as_it_is(whole):
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*.safetensors")}
    run(*demo(whole))
    assert before == {p: p.stat().st_mtime_ns for p in whole.rglob("*.safetensors")}


def test_a_reproduction_that_was_killed_continues_and_ends_with_the_same_numbers(whole, tmp_path):
    out = tmp_path / "again" / "whole"
    words = ["reproduce", whole, "--out", out.parent]
    for sign in ("no-think/checkpoints/checkpoint-*/complete", "think-recpo/metrics.jsonl"):
        process = subprocess.Popen(
            reasonrec(*words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 240
        while process.poll() is None and not list(out.glob(sign)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not (out / "manifest.json").exists()
    said = json.loads(run(*words, "--json"))
    assert accuracy(out) == accuracy(whole)
    one, other = (
        pl.read_parquet(folder / "evaluation" / "thoughts.parquet").drop("rank")
        for folder in (whole, out)
    )
    assert one.equals(other)
    # what the passport says, the run that was made again must hold to the last digit
    assert {drift["verdict"] for drift in said["drifts"]} == {"equal", "clock"}
    assert sum("think-recpo" in drift["where"] for drift in said["drifts"]) > 30


def test_recommend_answers_known_new_and_unknown_people(whole):
    users = pl.read_parquet(whole / "data" / "users.parquet")["user_id"]
    items = pl.read_parquet(whole / "data" / "items.parquet")["item_id"]
    known = json.loads(run("recommend", whole, "--user", users[0], "--k", 5, "--explain", "--json"))
    assert [item["rank"] for item in known[0]["items"]] == [1, 2, 3, 4, 5]
    assert known[0]["method"] == "think-recpo"
    new = json.loads(
        run("recommend", whole / "no-think", "--history", f"{items[3]},nothing-known", "--json")
    )
    assert any("nothing-known" in note for note in new[0]["notes"])
    asked = ("recommend", whole, "--user", users[1], "--k", 10_000, "--json")
    assert len(json.loads(run(*asked))[0]["items"]) < len(items)
    assert len(json.loads(run(*asked, "--mask", "none"))[0]["items"]) == len(items)
    assert "reader-" in run("recommend", whole, "--user", "reader-00000x", code=1)


def test_stages_run_one_by_one_from_their_commands(whole, tmp_path):
    preset = ROOT / "configs" / "smoke.toml"
    data = whole / "data"
    common = ["--data", data, "--config", preset]
    run("train", "no-think", *common, "--out", tmp_path / "a")
    run("train", "sft", *common, "--start", tmp_path / "a", "--out", tmp_path / "b")
    run("evaluate", tmp_path / "b", "popularity", "--data", data, "--out", tmp_path / "e")
    rows = json.loads((tmp_path / "e" / "metrics.json").read_text())
    mine = {
        r["metric"]: r["value"]
        for r in rows
        if r["method"] == "think-sft" and r["protocol"] == "full"
    }
    assert mine["ndcg@10"] == accuracy(whole)["think-sft", "full", "ndcg@10"]
    run("traces", "--data", data, "--out", tmp_path / "t", "--num-thoughts", 50)
    table = pl.read_parquet(tmp_path / "t" / "traces.parquet")
    assert table.height == 50
    assert table["kept"].all()


def test_look_ups_count_as_the_tuned_follow_counter_does(whole, tmp_path):
    data, tuned = whole / "data", tmp_path / "tuned"
    run("tune", "follow-counter", "item-knn", "--data", data, "--out", tuned, "--budget", 3)
    common = ["--data", data, "--config", ROOT / "configs" / "smoke.toml"]
    common += ["--start", whole / "no-think"]
    run("train", "sft", *common, "--lookups", tuned, "--out", tmp_path / "sft")
    thought = json.loads((tmp_path / "sft" / "manifest.json").read_text())["config"]["thought"]
    counter = tomllib.loads((tuned / "best.toml").read_text())["follow-counter"]
    assert thought["steps_after"] == counter["num_steps"]
    assert thought["asked_power"] == counter["recency_power"]
    other = tmp_path / "other.toml"
    other.write_text("[item-knn]\nnum_neighbours = 5\n")
    said = run("train", "sft", *common, "--lookups", other, "--out", tmp_path / "x", code=2)
    assert "must hold the settings of follow-counter; got item-knn" in said


def test_the_same_from_python(whole):
    from reasonrec import Dataset, R2ec
    from reasonrec.methods.r2ec_config import R2ecConfig

    dataset = Dataset.load(whole / "data")
    config = R2ecConfig.load(ROOT / "configs" / "smoke.toml")
    method = R2ec(config, out=whole).fit(dataset)  # finds every stage finished
    (answer,) = method.recommend(dataset.user_ids[:1], k=3, explain=True)
    assert len(answer.items) == 3
    assert answer.thought
    rows = {row.metric: row.value for row in method.evaluate(protocols=("full",)).rows}
    assert rows["ndcg@10"] == pytest.approx(accuracy(whole)["think-recpo", "full", "ndcg@10"])


def test_mistakes_get_an_answer(whole, tmp_path):
    assert "seed was 0, now 7" in run(*demo(whole), "--seed", 7, code=1)
    assert "--start" in run("train", "sft", "--data", whole / "data", "--out", tmp_path, code=1)
    broken = tmp_path / "broken.toml"
    broken.write_text("[no_think]\nnum_epoch = 3\n")
    assert "num_epoch" in run("demo", "--preset", broken, "--out", tmp_path / "x", code=2)
    assert "writable" in run(*demo(Path("/proc/nowhere")), code=1)
    # another data set under the same model
    run("prepare", "planted", "--size", "tiny", "--seed", "5", "--out", tmp_path / "other")
    said = run("recommend", whole / "no-think", "--data", tmp_path / "other", "--user", "x", code=1)
    assert "other data" in said
