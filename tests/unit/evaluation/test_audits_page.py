"""The page of audits shows the methods of all evaluations beside one another, the data once."""

import polars as pl
from audits import evaluated, set_section

from reasonrec.cli import main
from reasonrec.evaluation.audits.config import AuditConfig
from reasonrec.evaluation.audits.stage import write_audits


def test_methods_of_other_runs_stand_beside_those_of_the_first(tmp_path):
    shop, first = tmp_path / "shop", tmp_path / "floor" / "ml-100k" / "test-0"
    other = tmp_path / "peers" / "ml-100k" / "item-knn-0"
    main(["prepare", "planted", "--out", str(shop), "--planted.size", "tiny"])
    for out, methods in ((first, ["popularity", "ease"]), (other, ["item-knn"])):
        main(["evaluate", *methods, "--data", str(shop), "--out", str(out)])
    (other.parent / "tune-0").mkdir()  # nothing that was evaluated
    runs = evaluated("ml-100k", tmp_path / "floor", [tmp_path / "peers"])
    assert runs == [first, other]
    for run in runs:
        write_audits(run, run / "audits", AuditConfig(num_probes=5, num_queries=20))
    text = set_section("ml-100k", runs)
    assert text.count("| future-edge |") == 1
    (ties,) = (line for line in text.splitlines() if line.startswith("Share of the targets"))
    assert all(f"{method} ." in ties for method in ("popularity", "ease", "item-knn"))
    lists = pl.read_parquet(first / "lists.parquet")
    lists.filter(pl.col("method") != "ease").write_parquet(first / "lists.parquet")
    (first / "audits" / "manifest.json").unlink()
    write_audits(first, first / "audits", AuditConfig(num_probes=5, num_queries=20))
    again = set_section("ml-100k", runs)
    assert "ease at least " in again
    assert "popularity at least " not in again
    table = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| ")]
    assert table[-3:] == ["| popularity", "| ease", "| item-knn"]
