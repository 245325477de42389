"""A page of ablations keeps rows whose runs are gone, each beside the default it came from."""

import pytest
from ablations import ABLATIONS, PAGE, Table, section_of, tables_of, with_table
from running import merged

from reasonrec.methods.r2ec_config import R2ecConfig

ABOUT = "`reasonrec prepare shop`: leave-one-out, 9 test queries; commit {}; a processor."


def table(commit: str, ndcg: str, *names: str) -> Table:
    rows = {"think-recpo": f"| think-recpo | .2000 | {ndcg} | .3000 | 9 | 1 |  |  |  |  |"}
    rows |= {name: f"| {name} | .1000 | .0500 | .2000 | 9 | 1 | {commit} |" for name in names}
    return Table(ABOUT.format(commit), rows)


def test_a_row_joins_the_rows_of_its_default():
    before = [table("a" * 10, ".1000", "no-R_c", "G-2"), table("b" * 10, ".1100", "grpo")]
    new = table("c" * 10, ".1000", "G-2", "kl")
    joined = with_table(before, new)
    assert joined[1] == before[1]
    assert joined[0].about == ABOUT.format(f"{'a' * 10}, {'c' * 10}")
    assert joined[0].rows == before[0].rows | new.rows
    assert joined[0].rows["G-2"] != before[0].rows["G-2"], "measured again, written again"
    assert with_table(joined, new) == joined


def test_where_the_default_came_out_otherwise_rows_stay_apart():
    before = [table("a" * 10, ".1000", "no-R_c")]
    new = table("c" * 10, ".1001", "kl")
    assert with_table(before, new) == [*before, new]


def test_tables_are_read_as_they_were_written():
    tables = [table("a" * 10, ".1000", "no-R_c", "G-2"), table("b" * 10, ".1100", "grpo")]
    lines = [line for one in tables for line in ("", *one.lines())]
    assert tables_of("\n".join(["shop", *lines, "", "- `grpo`: what it is"])) == tables


def test_what_the_page_says_of_a_set_is_read_from_it():
    for name in ("planted", "ml-100k"):
        read = tables_of(section_of(PAGE, name))
        assert read
        for found in read:
            assert {"follow-counter", "no-think", "think-sft", "think-recpo"} <= set(found.rows)


@pytest.mark.parametrize("num_windows", [2_600, 20_000])
@pytest.mark.parametrize("row", ["no-think-longer", "sft-longer"])
def test_longer_is_longer_on_logs_large_and_small(row, num_windows):
    def steps(config):
        asked = R2ecConfig.model_validate(config).sft
        windows = min(asked.epochs_for(num_windows) * num_windows, asked.max_windows)
        return windows // asked.optimiser.batch_size

    default = R2ecConfig().model_dump()
    longer = steps(merged(default, ABLATIONS[row].changes))
    assert longer == pytest.approx(1.25 * steps(default), rel=0.01)
