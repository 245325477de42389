"""Pages of benchmarks/ say what their tests could have seen, and keep what runs no longer tell."""

import re

import numpy as np
import polars as pl
import pytest
import results
from over_all import heading, over_all
from thoughts import changed

from reasonrec.evaluation.faithfulness.effects import OWN
from reasonrec.manifest import write_manifest

PAGE = """# shop

`make demo` for s in 0; commit abc; a processor, one thread a run; 1.0 minutes. 9 test queries.

## NDCG@10 on parts of the queries

Mean over seeds; what each part is, and with intervals for each seed: `audits/` of a run.

| method | all (1,009) | rare items (1 to 4 events) (9) |
| --- | --: | --: |
| popularity | .0170 | .0000 |
| no-think | .0962 | - |

## What RecPO had to choose from

| seed | mean reward |
| --: | --: |
| 0 | 0.1648 |

## Against no-think, paired over queries

No section of these.
"""


def cells_of(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def shares(words):
    return [float(word.strip("%+")) for word in words.split(" to ")]


def test_rows_over_all_sets_say_what_they_could_have_seen():
    rng = np.random.default_rng(0)
    sets = [
        (name, {"ours": rng.random(400), "theirs": rng.random(400)}) for name in ("shop", "films")
    ]
    row = dict(zip(cells_of(heading("NDCG@10")[0]), cells_of(over_all(sets, "ours", "theirs"))))
    low, high = shares(row["95 % interval"])
    # 2.8 / (2 x 1.96) = .714 of the interval, whose ends are rounded to .05
    assert float(row["could have seen"].strip("%")) == pytest.approx(
        0.714 * (high - low), abs=0.714 * 0.1 + 0.05
    )
    assert len(cells_of(heading("NDCG@10")[1])) == len(row)
    assert len(cells_of(over_all(sets, "ours", "nobody"))) == len(row)


def test_changed_thoughts_say_what_their_test_could_have_seen(tmp_path):
    rng = np.random.default_rng(0)
    num_queries = 200
    ranks = {OWN: np.ones(num_queries), "empty": rng.integers(1, 12, num_queries)}
    tables = [
        pl.DataFrame(
            {
                "query": range(num_queries), "user_index": range(num_queries),
                "condition": condition, "rank": rank.astype(float), "log_prob": -1.0,
            }
        )
        for condition, rank in ranks.items()
    ]  # fmt: skip
    pl.concat(tables).write_parquet(tmp_path / "per_query.parquet")
    headings, rule, own, empty = changed([tmp_path])
    assert {len(cells_of(line)) for line in (rule, own, empty)} == {len(cells_of(headings))}
    assert dict(zip(cells_of(headings), cells_of(own)))["could have seen"] == ""
    row = dict(zip(cells_of(headings), cells_of(empty)))
    low, high = shares(row["95 % interval"])
    # as above; the ends are rounded to .00005
    assert float(row["could have seen"]) == pytest.approx(0.714 * (high - low), abs=0.00015)


def test_parts_of_the_queries_are_read_as_they_were_written():
    parts = results.parts_on(PAGE)
    assert parts == {
        "all": (1009, {"popularity": 0.0170, "no-think": 0.0962}),
        "rare items (1 to 4 events)": (9, {"popularity": 0.0}),
    }
    written = "\n".join(results.parts_markdown(parts))
    assert written in PAGE
    assert results.parts_on("") == {}


def test_what_recpo_had_to_choose_from_stays_where_its_log_is_gone(tmp_path):
    kept = results.reward_markdown([tmp_path], PAGE)
    assert "\n".join(kept) in PAGE
    assert kept[0] == results.REWARD and "| 0 | 0.1648 |" in kept and len(kept) == 6
    assert results.reward_markdown([tmp_path], "") == []
    (tmp_path / "think-recpo").mkdir()
    log = "".join(
        f'{{"rl/reward_mean": {mean}, "rl/reward_best": 0.4, "rl/frac_flat_groups": 0.5}}\n'
        for mean in (0.1, 0.3)
    )
    (tmp_path / "think-recpo" / "metrics.jsonl").write_text(log, encoding="utf-8")
    write_manifest(tmp_path, stage="demo", inputs={}, config={}, outputs=[], seconds=1.0, seed=3)
    # .4 is twice the mean of .1 and .3
    assert "| 3 | 0.2000 | 0.4000 | +100.0% | 50% |" in results.reward_markdown([tmp_path], PAGE)


@pytest.mark.parametrize("name", ["office-2018", "ml-1m", "games-2018", "papers-preset"])
def test_tests_of_the_pages_say_what_they_could_have_seen(name):
    page = (results.ROOT / "docs" / "results" / f"{name}.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"\| ([+-]\S+) to ([+-]\S+) \| \d\.\d{4} \(\d\.\d{4}\) \| (\S+) \| \d+ \|", page
    )
    assert len(rows) == page.count(" to +") + page.count(" to -") > 10
    for low, high, seen in rows:
        expected = 0.7143 * (float(high) - float(low))
        assert float(seen) == pytest.approx(expected, abs=0.00015)  # ends are rounded, too
