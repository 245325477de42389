"""The method from Python, as the readme shows it: fit, recommend, continue."""

import dataclasses

import numpy as np
import pytest
from tests.toy_models import TOY_SHAPE, ring_rows, toy_catalogue
from tests.toys import toy_dataset

from reasonrec.errors import CheckpointError, ConfigError, ReasonrecError
from reasonrec.evaluation.protocol import evaluate
from reasonrec.manifest import read_manifest
from reasonrec.methods import r2ec
from reasonrec.methods.r2ec import R2ec, load_recommender, settings_of, train, train_stage
from reasonrec.methods.r2ec_config import (
    EvidenceStage,
    NoThinkStage,
    R2ecConfig,
    RecpoStage,
    SftStage,
)
from reasonrec.methods.r2ec_stages import METHOD_OF_STAGE
from reasonrec.models.config import HeadConfig
from reasonrec.models.reasoning_recommender import ReasoningRecommender
from reasonrec.serving.recommender import recommend
from reasonrec.traces.config import OF_R2EC, ThoughtConfig
from reasonrec.traces.together import fit_together
from reasonrec.training.config import (
    GateConfig,
    OptimiserConfig,
    RecpoConfig,
    SftLossConfig,
)
from reasonrec.training.loop import read_metrics

N = 12
OPTIMISER = OptimiserConfig(batch_size=8, num_validations=1)
FAST = {"learning_rate": 1e-2, "word_learning_rate": 1e-2}
WORDS = SftLossConfig(next_item=0.0, think=0.0, post=0.0, tokens=1.0)
CONFIG = R2ecConfig(
    tiny=TOY_SHAPE,
    head=HeadConfig(max_history=8),
    no_think=NoThinkStage(num_epochs=2, optimiser=OPTIMISER),
    sft=SftStage(num_epochs=1, num_branches=1, optimiser=OPTIMISER),
    recpo=RecpoStage(
        num_prompts=8, optimiser=OPTIMISER, recpo=RecpoConfig(group_size=2, max_tokens=12)
    ),
)


def shop():
    rows = ring_rows(16, N, 8)
    toy = toy_dataset(rows, [f"Tale {i}" for i in range(N)])
    return dataclasses.replace(toy, catalogue=toy_catalogue(N))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    return R2ec(CONFIG, out=tmp_path_factory.mktemp("r2ec"), seed=3).fit(shop())


def test_fit_leaves_a_finished_folder_for_every_stage(fitted):
    for method in (METHOD_OF_STAGE[stage] for stage in CONFIG.stages):
        assert (fitted.out / method / "manifest.json").exists()
        assert (fitted.out / method / "metrics.jsonl").stat().st_size
    assert fitted.recommender.name == "think-recpo"
    told = [read_manifest(fitted.out / METHOD_OF_STAGE[stage])["epochs"] for stage in CONFIG.stages]
    # the log twice and once; 8 questions about the 4 held-out events, 5 % of 16 x 6
    assert told == [2, 1, 2]


def test_recommendations_come_with_thought_and_chains_if_asked(fitted):
    answers = fitted.recommend(["u3", "u0"], k=4, explain=True)
    assert [answer.user_id for answer in answers] == ["u3", "u0"]
    for answer in answers:
        taken = {item.item_id for item in answer.history}
        assert [item.rank for item in answer.items] == [1, 2, 3, 4]
        assert not taken & {item.item_id for item in answer.items}
        assert answer.thought is not None
    assert all(answer.thought is None for answer in fitted.recommend(["u3"], k=4))


def test_a_second_fit_of_the_same_folder_trains_nothing_and_answers_alike(fitted):
    model = fitted.out / "think-recpo" / "model" / "rec_head.safetensors"
    before = model.stat().st_mtime_ns
    again = R2ec(CONFIG, out=fitted.out, seed=3).fit(shop())
    assert model.stat().st_mtime_ns == before
    assert again.recommend(["u5"], k=5) == fitted.recommend(["u5"], k=5)
    with pytest.raises(CheckpointError, match="another"):
        R2ec(CONFIG, out=fitted.out, seed=4).fit(shop())


@pytest.mark.parametrize("weight", [0.0, 0.6])
def test_validation_charges_for_thoughts_what_their_reward_does(fitted, tmp_path, weight):
    priced = CONFIG.recpo.recpo.model_copy(update={"length_weight": weight})
    stage = CONFIG.recpo.model_copy(update={"recpo": priced})
    config = CONFIG.model_copy(update={"recpo": stage})
    start = fitted.out / "think-sft"
    train_stage("recpo", shop(), config, out=tmp_path / "recpo", seed=3, start=start)
    rows = read_metrics(tmp_path / "recpo" / "metrics.jsonl")
    row = next(row for row in rows if "valid/tokens" in row)
    assert row["valid/tokens"] > 0
    price = weight * row["valid/tokens"] / 12
    assert row.get("valid/price", 0.0) == pytest.approx(price)


def test_a_method_that_was_not_trained_says_so(tmp_path):
    with pytest.raises(CheckpointError, match=r"call fit\(dataset\)"):
        R2ec(CONFIG, out=tmp_path).recommend(["u1"])


def test_a_thinking_model_can_be_asked_to_keep_silent(fitted):
    silent = load_recommender(fitted.out / "think-recpo", shop(), thinks=False)
    assert silent.name == "think-recpo/silent"


def test_a_model_of_other_data_is_refused(fitted):
    other = dataclasses.replace(shop(), fingerprint="other")
    with pytest.raises(CheckpointError, match="trained on other data"):
        load_recommender(fitted.out / "think-recpo", other)


def test_a_short_log_is_read_until_thoughts_can_be_written(fitted, tmp_path):
    # 370 thoughts, four times over, left words unfinished: "Togetherrrr" (docs/experiments.md)
    default = SftStage()
    assert [default.epochs_for(w) for w in (30_000, 1_000, 999, 370)] == [4, 4, 5, 11]
    assert SftStage(num_epochs=1).epochs_for(370) == 1
    sft = SftStage(min_windows=100, num_branches=1, optimiser=OPTIMISER)
    config, start = CONFIG.model_copy(update={"sft": sft}), fitted.out / "no-think"
    train_stage("sft", shop(), config, out=tmp_path / "sft", seed=3, start=start)
    steps = read_metrics(tmp_path / "sft" / "metrics.jsonl")[-1]["step"]
    assert steps == 7 * 16 // OPTIMISER.batch_size  # a window for each of 16 people, seven times


@pytest.mark.parametrize(
    "thought",
    [
        {"num_lookups": 0},
        {"num_lookups": 2},
        {"num_lookups": 9, "lookup_window": 3},
        {"num_lookups": 4, "min_lookups": 1},
    ],
    ids=lambda thought: ", ".join(f"{k} {v}" for k, v in thought.items()),
)
def test_a_thought_may_end_where_it_was_taught_to(tmp_path, thought):
    # two thoughts of seven look-ups where the head asked for seven: every one was impossible, its
    # loss infinite, and what was written never ended
    rows = [[*row, row[-1], row[-1], row[-2]] for row in ring_rows(16, N, 8)]  # taken again
    again = toy_dataset(rows, [f"Tale {i}" for i in range(N)])
    dataset = dataclasses.replace(again, catalogue=toy_catalogue(N))
    told = OF_R2EC.model_validate(OF_R2EC.model_dump() | thought)
    config = CONFIG.model_copy(update={"thought": told})
    train(dataset, config, out=tmp_path, seed=0)
    rows = [
        row
        for name in ("think-sft", "think-recpo")
        for row in read_metrics(tmp_path / name / "metrics.jsonl")
    ]
    assert all(np.isfinite(value) for row in rows for value in row.values())
    head = load_recommender(tmp_path / "think-recpo", dataset).model.head
    least = min(told.num_lookups, told.lookup_window)
    assert head.least_asked == (least if told.min_lookups is None else told.min_lookups)


def test_a_run_says_where_its_thoughts_come_to_no_answer(fitted, tmp_path, caplog):
    # two steps teach nobody to write, and so no thought ends; without words to write all do
    train_stage("sft", shop(), CONFIG, out=tmp_path / "sft", seed=3, start=fitted.out / "no-think")
    assert "100.0 % of 16 thoughts about validation queries came to no answer within 12 " in (
        caplog.text
    )
    caplog.clear()
    nothing = {"num_lookups": 0, "num_people": 0, "together": None, "name_taste": False}
    config = CONFIG.model_copy(update={"thought": ThoughtConfig(**nothing)})
    start = fitted.out / "no-think"
    sft = SftStage(
        num_epochs=25, num_branches=1, optimiser=OPTIMISER.model_copy(update=FAST), loss=WORDS
    )
    config = config.model_copy(update={"sft": sft})
    train_stage("sft", shop(), config, out=tmp_path / "taught", seed=3, start=start)
    assert "came to no answer" not in caplog.text


def test_training_stops_where_its_loss_is_not_finite(fitted, tmp_path, monkeypatch):
    # the model is made to ask more than it is taught to
    monkeypatch.setattr(ReasoningRecommender, "ask_no_more_than", lambda model, most: None)
    told = OF_R2EC.model_validate(OF_R2EC.model_dump() | {"num_lookups": 2})
    config = CONFIG.model_copy(update={"thought": told})
    with pytest.raises(ReasonrecError, match=r"not finite at step 0 \(.*train/tokens inf"):
        train_stage(
            "sft", shop(), config, out=tmp_path / "sft", seed=3, start=fitted.out / "no-think"
        )


def test_rl_thinks_as_its_start_learned_to(fitted, tmp_path):
    counter = {"num_steps": 2, "reverse_share": 0.1, "total_power": 0.7, "recency_power": 2.0}
    thought = ThoughtConfig().counting_like(counter)
    assert (thought.steps_after, thought.reverse_share) == (2, 0.1)
    assert (thought.total_power, thought.asked_power) == (0.7, 2.0)
    assert thought.num_lookups == ThoughtConfig().num_lookups
    taught = CONFIG.model_copy(update={"thought": thought})
    start = fitted.out / "no-think"
    sft = train_stage("sft", shop(), taught, out=tmp_path / "sft", seed=3, start=start)
    out = train_stage("recpo", shop(), CONFIG, out=tmp_path / "recpo", seed=3, start=sft)
    assert read_manifest(out)["config"]["thought"] == thought.model_dump()
    other = CONFIG.model_copy(update={"thought": ThoughtConfig(steps_after=9)})
    with pytest.raises(ConfigError, match=r"thought\.steps_after = 9 instead of 2"):
        train_stage("recpo", shop(), other, out=tmp_path / "other", seed=3, start=sft)


def test_sft_says_how_thoughts_are_read_and_the_rest_of_the_head_is_that_before(fitted, tmp_path):
    def asking(**head):
        return CONFIG.model_copy(update={"head": CONFIG.head.model_copy(update=head)})

    start = fitted.out / "no-think"
    mean = asking(pooling="mean")
    sft = train_stage("sft", shop(), mean, out=tmp_path / "sft", seed=3, start=start)
    out = train_stage("recpo", shop(), CONFIG, out=tmp_path / "recpo", seed=3, start=sft)
    assert load_recommender(out, shop()).model.head.pooling == "mean"
    assert read_manifest(out)["config"]["head"] == mean.head.model_dump(mode="json")
    other = (("sft", start, {"similarity": "cosine"}), ("recpo", sft, {"pooling": "max"}))
    for stage, before, head in other:
        with pytest.raises(
            ConfigError, match=rf"head must be .*{next(iter(head.values()))}' instead of"
        ):
            train_stage(stage, shop(), asking(**head), out=tmp_path / "o", seed=3, start=before)


def test_no_stage_asks_about_events_that_the_one_before_was_trained_on(fitted, tmp_path):
    config = R2ecConfig.model_validate(CONFIG.model_dump() | {"held_out": {"max_frac": 0.5}})
    for stage, before in (("sft", "no-think"), ("recpo", "think-sft")):
        start = fitted.out / before
        with pytest.raises(ConfigError, match=r"was trained with held_out\.max_frac = 0\.05"):
            train_stage(stage, shop(), config, out=tmp_path / stage, seed=3, start=start)


def test_trained_again_a_model_knows_the_validation_rows_and_nothing_is_chosen_on_them(
    fitted, tmp_path
):
    dataset, (config, seed) = shop(), settings_of(fitted.out)
    assert seed == 3
    folders = train(dataset, config, out=tmp_path / "again", seed=seed, again=fitted.out)
    for folder, method in zip(folders, ("no-think", "think-sft", "think-recpo"), strict=True):
        first, second = read_manifest(fitted.out / method), read_manifest(folder)
        assert (first["trained_on"], second["trained_on"]) == ("train", "train+valid")
        assert second["calibrated"] == first["calibrated"] and second["best_score"] is None
        assert second["share"] == pytest.approx(first["share"], abs=0.1)
        assert second["config"] == first["config"] and "recipe" not in second
        assert all("valid/ndcg" not in row for row in read_metrics(folder / "metrics.jsonl"))
    whole, half = (
        load_recommender(f[-1], dataset) for f in (folders, [fitted.out / "think-recpo"])
    )
    edges = [len(recommender.verbaliser.graph) for recommender in (whole, half)]
    assert edges[0] == edges[1] + len(dataset.valid)
    for name, weight in whole.model.pointer.named_parameters():
        if name in second["calibrated"]:
            assert weight.tolist() == pytest.approx(second["calibrated"][name])
    with pytest.raises(CheckpointError, match="trained on train alone"):
        train(dataset, config, out=tmp_path / "third", seed=seed, again=tmp_path / "again")
    with pytest.raises(CheckpointError, match="must have the same seed"):
        train(dataset, config, out=tmp_path / "other", seed=4, again=fitted.out)
    with pytest.raises(CheckpointError, match="model of the same rows"):
        train_stage("sft", dataset, config, out=tmp_path / "sft", seed=3, start=folders[0])
    with pytest.raises(CheckpointError, match="learned from their targets"):
        train_stage("gate", dataset, config, out=tmp_path / "gate", seed=3, start=folders[2])
    with pytest.raises(CheckpointError, match="must say how it was trained"):
        settings_of(tmp_path / "again")


@pytest.fixture(scope="module")
def controlled(tmp_path_factory):
    config = CONFIG.model_copy(
        update={
            "stages": ("no-think", "evidence", "sft"),
            "evidence": EvidenceStage(num_epochs=1, num_branches=1, optimiser=OPTIMISER),
        }
    )
    out = tmp_path_factory.mktemp("control")
    return out, config, train(shop(), config, out=out, seed=3)


def test_the_control_is_a_branch_from_no_think_that_nothing_starts_from(controlled):
    out, _, folders = controlled
    assert [folder.name for folder in folders] == ["no-think", "evidence-no-think", "think-sft"]
    start = read_manifest(out / "no-think")["fingerprint"]
    for method in ("evidence-no-think", "think-sft"):
        manifest = read_manifest(out / method)
        assert (manifest["method"], manifest["inputs"]["start"]) == (method, start)
    steps = [
        max(row["step"] for row in read_metrics(out / method / "metrics.jsonl"))
        for method in ("evidence-no-think", "think-sft")
    ]
    assert steps[0] == steps[1]  # equal budget


def test_the_control_recommends_with_chains_and_without_a_word(controlled):
    out, _, _ = controlled
    recommender = load_recommender(out / "evidence-no-think", shop())
    assert recommender.name == "evidence-no-think"
    (answer,) = recommend(recommender, shop(), ["u3"], k=3, explain=True)
    assert answer.thought is None
    assert answer.chains
    measured = evaluate(recommender, shop(), num_timed_users=0)
    tokens = [row.value for row in measured.rows if row.metric == "tokens"]
    assert tokens == [0.0]
    silent = load_recommender(out / "evidence-no-think", shop(), thinks=False)
    assert silent.name == "evidence-no-think/silent"


def test_training_the_control_changes_no_number_of_the_other_stages(controlled, tmp_path):
    out, config, _ = controlled
    without = config.model_copy(update={"stages": ("no-think", "sft")})
    train(shop(), without, out=tmp_path, seed=3)
    for method in ("no-think", "think-sft"):
        files = [folder / method / "model" / "rec_head.safetensors" for folder in (out, tmp_path)]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_the_control_needs_a_pointer_and_look_ups(controlled, tmp_path):
    out, config, _ = controlled
    mute = config.model_copy(update={"thought": ThoughtConfig(num_lookups=0)})
    with pytest.raises(ConfigError, match=r"num_lookups of 1 or more; got True and 0"):
        train_stage("evidence", shop(), mute, out=tmp_path, seed=3, start=out / "no-think")


def test_a_gate_is_learned_before_a_finished_model_and_obeys_its_budget(controlled, tmp_path):
    out, config, _ = controlled
    budget = config.model_copy(update={"gate": GateConfig(max_mean_tokens=4.0)})
    folder = train_stage(
        "gate", shop(), budget, out=tmp_path / "g", seed=3, start=out / "think-sft"
    )
    recommender = load_recommender(folder, shop())
    assert recommender.name == "think-sft/gated"
    scored = recommender.score(shop().valid.histories())
    said = read_manifest(folder)["gate"]
    assert scored.num_tokens.mean() == pytest.approx(said["tokens"])
    assert said["tokens"] <= 4.0 < said["think_tokens"]
    assert said["value"] >= said["silent_value"]
    assert load_recommender(folder, shop(), thinks=False).name == "think-sft/silent"
    # finished: a second call reads, another budget is another run
    assert (
        train_stage("gate", shop(), budget, out=folder, seed=3, start=out / "think-sft") == folder
    )
    with pytest.raises(CheckpointError, match="another"):
        train_stage("gate", shop(), config, out=folder, seed=3, start=out / "think-sft")
    with pytest.raises(CheckpointError, match="think-sft or think-recpo folder; got no-think"):
        train_stage("gate", shop(), config, out=tmp_path / "h", seed=3, start=out / "no-think")


def test_a_gate_learns_what_a_thought_gains_by_evidence_that_never_saw_the_events(
    controlled, tmp_path, monkeypatch
):
    out, config, _ = controlled
    given = []
    monkeypatch.setattr(r2ec, "learn_gate", lambda *asked, **_: given.extend(asked) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train_stage("gate", shop(), config, out=tmp_path, seed=3, start=out / "think-sft")
    thinking, unknowing, _, events, (histories, _) = given[:5]
    assert unknowing.model is thinking.model
    taught = unknowing.verbaliser
    known, less = (one.verbaliser._goes_with.score(histories).scores for one in given[:2])
    assert not np.array_equal(known, less)
    wanted = fit_together(shop(), taught.config, unknown=events)
    np.testing.assert_array_equal(less, wanted.score(histories).scores)


def test_a_gate_from_rollouts_names_how_they_were_rewarded(controlled, tmp_path):
    out, config, _ = controlled
    asked = config.model_copy(update={"gate": GateConfig(source="rollouts", max_events=8)})
    start = {"seed": 3, "start": out / "think-sft"}
    folder = train_stage("gate", shop(), asked, out=tmp_path / "g", **start)
    said = read_manifest(folder)["config"]
    assert said["gate"]["source"] == "rollouts"
    assert said["recpo"]["recpo"]["reward_at"] == config.recpo.recpo.reward_at
    other = asked.recpo.model_copy(update={"recpo": RecpoConfig(reward_at=5)})
    with pytest.raises(CheckpointError, match="another"):
        train_stage("gate", shop(), asked.model_copy(update={"recpo": other}), out=folder, **start)


def test_a_gate_is_a_stage_of_a_road_that_names_it(controlled, tmp_path):
    _, config, _ = controlled
    road = config.model_copy(update={"stages": ("no-think", "sft", "gate")})
    folders = train(shop(), road, out=tmp_path, seed=3)
    assert [folder.name for folder in folders] == ["no-think", "think-sft", "think-gated"]
    assert load_recommender(folders[-1], shop()).name == "think-sft/gated"


def test_the_control_with_evidence_in_its_prompt_has_a_name_of_its_own(controlled, tmp_path):
    out, config, _ = controlled
    told = config.model_copy(
        update={"evidence": config.evidence.model_copy(update={"in_prompt": True})}
    )
    folder = train_stage(
        "evidence", shop(), told, out=tmp_path / "told", seed=3, start=out / "no-think"
    )
    assert read_manifest(folder)["method"] == "evidence-in-prompt"
    recommender = load_recommender(folder, shop())
    assert (recommender.name, recommender.in_prompt) == ("evidence-in-prompt", True)
    (answer,) = recommend(recommender, shop(), ["u3"], k=3, explain=True)
    assert answer.thought is None
    assert answer.chains


def test_all_stages_work_with_candidates_in_thoughts(controlled, tmp_path):
    out, config, _ = controlled
    thought = ThoughtConfig(
        num_candidates=2, num_candidates_asked=1, num_lookups=1, num_people=0, num_like=0
    )
    recpo = config.recpo.model_copy(update={"recpo": RecpoConfig(group_size=2, max_tokens=40)})
    stages = ("no-think", "sft", "recpo")
    ahead = config.model_copy(update={"thought": thought, "recpo": recpo, "stages": stages})
    sft = train_stage("sft", shop(), ahead, out=tmp_path / "s", seed=3, start=out / "no-think")
    last = train_stage("recpo", shop(), ahead, out=tmp_path / "r", seed=3, start=sft)
    recommender = load_recommender(last, shop())
    assert recommender.verbaliser.config == thought
    histories = shop().valid.histories()
    again = load_recommender(last, shop()).score(histories)
    scored = recommender.score(histories)
    assert scored.thoughts == again.thoughts
    assert (scored.scores == again.scores).all()
    assert all(answer.items for answer in recommend(recommender, shop(), ["u3"], k=3, explain=True))
