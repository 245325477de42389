"""The benchmarks of a RecPO step run, and give all sides the same work."""

import json

import pytest
from benchmarks.large_backbone import SHAPES
from benchmarks.large_backbone import main as measure_large
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
    assert work.verbaliser.config.together is not None
    assert len(work.prompts) == QUICK["tiny"].num_prompts


@pytest.mark.filterwarnings("ignore")
def test_a_large_backbone_in_bfloat16_with_adapters_takes_every_step_at_toy_size(tmp_path):
    out, shape = tmp_path / "large.json", SHAPES["toy"]
    measure_large(shape="toy", repeats=1, out=out, in_this_process=True)
    record = json.loads(out.read_text())
    ours, trl = record["rows"]["ours"], record["rows"]["trl"]
    assert record["weights"]["lora"] and record["dtype"] == "bfloat16"
    assert 0 < ours["num_trained"] < ours["num_weights"] / 2
    drawn = shape.num_prompts * shape.group_size * shape.new_tokens
    assert ours["recpo"]["drawn_tokens"] == trl["grpo"]["drawn_tokens"] == drawn
    phases = ("rollout", "forward", "loss", "backward", "optimiser")
    assert ours["recpo"]["step_s"] == pytest.approx(
        sum(ours["recpo"][f"{phase}_s"] for phase in phases)
    )
    limits = ours["limits"]
    assert min(limits["tflop"][phase] for phase in ("rollout", "forward", "backward")) > 0
    # backward: adapters' gradients, and every layer again
    assert limits["tflop"]["backward"] > 1.5 * limits["tflop"]["forward"]
    for phase, share in limits["frac_of_limit"].items():
        assert 0 <= share < 1, phase


def test_bytes_of_keys_and_values_of_one_token():
    # Qwen2.5-3B: 36 layers, 2 heads of 128 numbers of two bytes, keys and values
    assert SHAPES["3b"].cache_bytes == 36 * 2 * 128 * 2 * 2
