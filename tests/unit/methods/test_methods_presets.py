"""The paper's preset and ours: what they say, and that the paper's walks its road."""

from pathlib import Path

import numpy as np
import pytest
from tests.toy_models import ring_rows, save_backbone
from tests.toys import toy_dataset

from reasonrec.config import read_toml
from reasonrec.methods.r2ec import load_recommender, train
from reasonrec.methods.r2ec_config import R2ecConfig
from reasonrec.records import Histories
from reasonrec.training.loop import read_metrics

PRESETS = Path(__file__).parents[3] / "configs/r2ec"
N = 12


def test_the_papers_preset_is_the_paper():
    config = R2ecConfig.load(PRESETS / "paper.toml")
    recpo, optimiser, head = config.recpo.recpo, config.recpo.optimiser, config.head
    assert config.stages == ("recpo",)
    # appendix D, in the order of its table
    assert (config.weights.lora, config.weights.lora_rank) == (True, 4)
    assert (optimiser.learning_rate, optimiser.warmup_steps, optimiser.batch_size) == (1e-5, 32, 24)
    assert (config.recpo.num_epochs, optimiser.patience, optimiser.num_validations) == (3, 1, 3)
    assert (recpo.group_size, recpo.temperature, recpo.top_k, recpo.max_tokens) == (
        4,
        1.5,
        200,
        512,
    )
    assert (recpo.clip_low, recpo.clip_high, recpo.reward_at, recpo.beta) == (0.2, 0.2, 1000, 0.05)
    # section 3: text rows, the last state alone, the batch's targets, delta, no further term
    assert (head.item_rows, head.gated, head.pointer, head.max_history) == (
        "text",
        False,
        False,
        20,
    )
    assert (recpo.item_softmax, recpo.item_term, recpo.flat_groups) == ("batch", "best", "skip")
    assert (recpo.kl_weight, recpo.entropy_weight, recpo.next_item_weight) == (0, 0, 0)
    assert (recpo.thought_weight, recpo.sentence_weight, recpo.empty_rollout) == (1, 0, False)
    # figure 5: how each purchase was rated, and of an item how many took it and rated it how
    assert config.prompt.ratings and config.prompt.item_popularity
    # what is ours is off
    assert config.thought.num_lookups == config.held_out.max_events == optimiser.averaging == 0
    assert not config.calibrate
    assert head.dropout == head.token_dropout == head.label_smoothing == 0
    assert optimiser.word_learning_rate is None
    assert optimiser.head_learning_rate == optimiser.learning_rate


def test_the_papers_preset_for_the_tiny_backbone_thinks_and_learns_as_the_paper_does():
    paper, tiny = (R2ecConfig.load(PRESETS / name) for name in ("paper.toml", "paper-tiny.toml"))
    assert tiny.stages == ("no-think", "sft", "recpo") and tiny.backbone == "tiny"
    same = {
        "head": ("item_rows", "similarity", "pooling", "gated", "pointer", "least_asked"),
        "thought": (
            "num_lookups",
            "num_like",
            "num_people",
            "together",
            "asked_power",
            "look_up_taste",
        ),
    }
    for part, keys in same.items():
        theirs, ours = getattr(paper, part), getattr(tiny, part)
        assert [getattr(ours, key) for key in keys] == [getattr(theirs, key) for key in keys]
    length = {"max_tokens"}  # of shorter thoughts
    theirs, ours = (one.recpo.recpo.model_dump() for one in (paper, tiny))
    assert {key for key in theirs if theirs[key] != ours[key]} <= length


def test_every_value_of_the_papers_preset_names_its_source():
    lines = (PRESETS / "paper.toml").read_text(encoding="utf-8").splitlines()
    values = [line for line in lines if "=" in line.partition("#")[0]]
    assert len(values) > 40
    assert [x for x in values if not any(f"[{s}]" in x for s in ("paper", "code", "ours"))] == []


def test_the_papers_preset_leaves_no_key_of_prompt_head_and_recpo_unsaid():
    said, known = read_toml(PRESETS / "paper.toml"), R2ecConfig().model_dump()
    # no value of TOML says that all rows are live or that `head.repeats` chooses the mask, and the
    # words of instructions are ours
    unsaid = {
        "head": {"live_rows"},
        "prompt": {"instruction", "item_instruction"},
        "weights": set(),
    }
    assert {part: known[part].keys() - said[part].keys() for part in unsaid} == unsaid
    assert known["recpo"]["recpo"].keys() - said["recpo"]["recpo"].keys() == {"mask"}
    config = R2ecConfig.load(PRESETS / "paper.toml")
    assert config.head.live_rows is None and config.recpo.recpo.mask is None
    assert not (config.head.repeats or config.prompt.elapsed or config.prompt.add_marker)


def _leaves(table, before=()):
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*before, key))
        else:
            yield (*before, key), value


def test_our_preset_says_what_the_defaults_are():
    defaults = dict(_leaves(R2ecConfig().model_dump(mode="json")))
    said = dict(_leaves(read_toml(PRESETS / "tiny.toml")))
    assert len(said) > 90
    other = {".".join(key): (value, defaults[key]) for key, value in said.items()
             if value != defaults[key]}  # fmt: skip
    assert other == {}, "configs/r2ec/tiny.toml must follow the defaults (file, default)"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("paper")
    small = read_toml(PRESETS / "paper.toml")
    small["backbone"] = str(save_backbone(path / "backbone", "qwen2"))
    small["weights"]["dtype"] = "float32"
    small["recpo"]["num_epochs"] = 1.0
    small["recpo"]["recpo"]["max_tokens"] = 8
    small["recpo"]["optimiser"] |= {
        "batch_size": 10, "refresh_items_every": 2, "num_validations": 1, "patience": 0,
    }  # fmt: skip
    dataset = toy_dataset(ring_rows(8, N, 9), [f"Tale {i}" for i in range(N)], ratings=True)
    (folder,) = train(dataset, R2ecConfig.model_validate(small), out=path / "run", seed=0)
    return dataset, folder


def test_the_papers_preset_trains_a_toy_straight_from_its_backbone(trained):
    _, folder = trained
    assert folder.name == "think-recpo"
    # 8 users of 7 training events: 5 each with two before, in batches of 10: 4 steps, all logged
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if "rl/reward_mean" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    # the table was encoded before the first step, and again when it would have been two steps old
    assert [row["train/item_table_age"] for row in rows] == [0, 1, 0, 1]
    assert max(row["rl/sampler_mismatch"] for row in rows) < 1e-3
    assert all(0 < row["rl/reward_mean"] <= 1 for row in rows)


def test_it_thinks_without_looking_up_and_recommends(trained):
    dataset, folder = trained
    recommender = load_recommender(folder, dataset)
    scored = recommender.score(Histories.from_lists([[1, 2, 3], []]))
    assert scored.scores.shape == (2, N)
    assert np.isfinite(scored.scores).all()
    assert scored.evidence == ((), ())
    assert np.abs(scored.scores).max() <= 1 / 0.02 + 1e-3  # cosines over the temperature


def test_the_preset_for_logs_that_know_the_second_tells_time_and_no_other_does():
    told, ours = R2ecConfig.load(PRESETS / "timed.toml"), R2ecConfig()
    assert told.prompt.elapsed and told.thought.same_pace == 3
    assert told == ours.model_copy(update={"prompt": told.prompt, "thought": told.thought})
    for name in ("tiny.toml", "ml-1m.toml", "paper.toml", "paper-tiny.toml", "backbone.toml"):
        config = R2ecConfig.load(PRESETS / name)
        assert not config.prompt.elapsed and config.thought.same_pace == 0


def test_the_preset_for_shorter_thoughts_changes_rl_alone():
    shorter, ours = R2ecConfig.load(PRESETS / "shorter.toml"), R2ecConfig()
    recpo, paper = shorter.recpo.recpo, R2ecConfig.load(PRESETS / "paper-tiny.toml").recpo.recpo
    assert recpo == paper.model_copy(update={"item_softmax": "catalogue"})
    stage = shorter.recpo.model_copy(update={"recpo": ours.recpo.recpo})
    assert shorter.model_copy(update={"recpo": stage}) == ours
