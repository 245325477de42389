"""Pages of benchmarks/ test two methods on the seeds that both have."""

import polars as pl
import pytest
from stages import on_shared_seeds

from reasonrec.evaluation.joined import Joined

SEEDS = {"ours": (0, 1, 2), "control": (1, 2, 3), "counter": (0,), "other": (5, 6)}


@pytest.fixture
def joined():
    rows = [(method, seed) for method, seeds in SEEDS.items() for seed in seeds]
    per_query = pl.DataFrame(rows, schema=["method", "seed"], orient="row")
    return Joined((), (), per_query, None, None, (), ())


@pytest.mark.parametrize(
    ("theirs", "ours_left", "theirs_left"),
    [
        ("control", [1, 2], [1, 2]),
        ("counter", [0, 1, 2], [0]),  # which is no matter of luck, or has run once
        ("other", [0, 1, 2], [5, 6]),  # none is shared
    ],
)
def test_two_methods_are_tested_on_the_seeds_that_both_have(joined, theirs, ours_left, theirs_left):
    left = on_shared_seeds(joined, "ours", theirs).per_query
    assert set(left["method"]) == {"ours", theirs}
    for method, seeds in (("ours", ours_left), (theirs, theirs_left)):
        assert left.filter(pl.col("method") == method)["seed"].to_list() == seeds
