"""The benchmark of a RecPO step runs, and gives all sides the same work."""

import json

import pytest
from benchmarks.recpo_step import QUICK, Work, main


@pytest.mark.filterwarnings("ignore")
def test_every_side_draws_the_same_number_of_tokens_from_the_same_prompts(tmp_path):
    out = tmp_path / "step.json"
    main(settings=["tiny-plain", "foreign"], sides=["ours", "trl", "generate"],
         quick=True, in_this_process=True, out=out)  # fmt: skip
    record = json.loads(out.read_text())
    rows = {(row["setting"], row["side"]): row for row in record["rows"]}
    assert len(rows) == 6
    for name in ("tiny-plain", "foreign"):
        shape = QUICK[name]
        drawn = shape.num_prompts * shape.group_size * shape.new_tokens
        sides = [rows[name, side] for side in ("ours", "trl", "generate")]
        assert {row["counts"]["drawn_tokens"] for row in sides} == {drawn}
        assert len({row["counts"]["prompt_tokens"] for row in sides}) == 1
        for row in sides:
            assert 0 < row["phases"]["rollout"]["cpu_s"] <= row["cpu_s"]
            assert 0 < row["frac_outside_products"] < 1
            assert row["gflop"] > 0
            assert row["peak_tensor_mib"] > 0
    phases = ["rollout", "forward", "reward and loss", "backward", "optimiser"]
    assert list(rows["foreign", "ours"]["phases"]) == phases


def test_with_look_ups_evidence_is_read_and_not_drawn():
    work = Work("tiny", QUICK["tiny"])
    assert work.verbaliser.config.num_lookups > 0
    assert len(work.prompts) == QUICK["tiny"].num_prompts
