"""A recipe leads to the same weights, byte for byte, and says when it cannot be followed."""

import shlex

import pytest
from tests.toy_models import TOY_SHAPE
from tests.toy_traces import rated_shop

from reasonrec.baselines.peers import peer_versions
from reasonrec.cli import build_app
from reasonrec.config import read_toml
from reasonrec.errors import CheckpointError
from reasonrec.evaluation.commands import train_commands
from reasonrec.evaluation.environment import Environment
from reasonrec.evaluation.recipe import Recipe
from reasonrec.manifest import read_manifest
from reasonrec.methods import r2ec, r2rec
from reasonrec.methods.baselines.config import BaselinesConfig, TigerConfig
from reasonrec.methods.baselines.train import train as train_baseline
from reasonrec.methods.r2ec_config import (
    NoThinkStage,
    R2ecConfig,
    RecpoStage,
    SftStage,
)
from reasonrec.methods.r2rec_config import (
    GrpoStage,
    R2recConfig,
    ReasonedRankingConfig,
    ReasonedSftStage,
)
from reasonrec.methods.retrain import check_recipe, retrain
from reasonrec.models.config import HeadConfig
from reasonrec.traces.reasoned_config import EvidenceConfig, ReasonedTracesConfig
from reasonrec.training.config import GateConfig, OptimiserConfig, RecpoConfig

OPTIMISER = OptimiserConfig(batch_size=4, num_validations=1)
BASE = R2ecConfig(
    stages=("no-think", "sft", "recpo", "gate"),
    tiny=TOY_SHAPE,
    head=HeadConfig(max_history=8),
    no_think=NoThinkStage(num_epochs=1, optimiser=OPTIMISER),
    sft=SftStage(num_epochs=1, num_branches=1, optimiser=OPTIMISER),
    recpo=RecpoStage(
        num_prompts=4, optimiser=OPTIMISER, recpo=RecpoConfig(group_size=2, max_tokens=12)
    ),
    gate=GateConfig(max_events=8),
)
REASONED = R2recConfig(
    traces=ReasonedTracesConfig(
        num_questions=12, evidence=EvidenceConfig(num_chains=2, num_candidates=5)
    ),
    vocab_size=700,
    max_tokens=8,
    num_valid_queries=4,
    sft=ReasonedSftStage(num_epochs=1, optimiser=OPTIMISER),
    rl=GrpoStage(num_prompts=4, optimiser=OPTIMISER),
    ranking=ReasonedRankingConfig(num_orders_measured=0),
)


def shop():
    return rated_shop()


def recipe_in(folder):
    return Recipe.model_validate(read_manifest(folder)["recipe"])


def weights_in(folder):
    outputs = read_manifest(folder)["outputs"]
    return {name: digest for name, digest in outputs.items() if name != "first/manifest.json"}


def accept(lines, tmp_path):
    """Write the files that the lines write, and have the commands read them."""
    name, content = "", []
    for line in lines:
        if line.startswith("cat > "):
            name, content = shlex.split(line)[2], []
        elif line == "END":
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(content))
            assert read_toml(path)
        elif line.startswith("reasonrec train"):
            words = shlex.split(line)[1:]
            words[words.index("--config") + 1] = str(tmp_path / name)
            app = build_app(words)
            app.meta.parse_args(words, exit_on_error=False, print_error=False)
        else:
            content.append(line)


def test_a_gate_and_all_before_it_come_out_again(tmp_path):
    folder = r2ec.train(shop(), BASE, out=tmp_path / "first", seed=3)[-1]
    recipe = recipe_in(folder)
    assert [one.what for one in recipe.chain] == ["no-think", "sft", "recpo", "gate"]
    again = retrain(recipe, shop(), tmp_path / "again")
    assert read_manifest(again)["fingerprint"] == read_manifest(folder)["fingerprint"]
    before = retrain(recipe.chain[2], shop(), tmp_path / "again")  # lies there already
    first = read_manifest(folder.parent / "think-recpo")["fingerprint"]
    assert read_manifest(before)["fingerprint"] == first
    assert len(list((tmp_path / "again").iterdir())) == 4
    lines = train_commands([recipe, recipe.chain[1]], data="shop")
    accept(lines, tmp_path / "commands")
    trained = [line.split()[2] for line in lines if line.startswith("reasonrec")]
    assert trained == ["no-think", "sft", "recpo", "gate"]


def test_r2rec_comes_out_again_with_its_traces_and_its_first_stage(tmp_path):
    folder = r2rec.train(shop(), REASONED, out=tmp_path / "first", seed=1, base=BASE)[-1]
    recipe = recipe_in(folder)
    chain = ["no-think", "untuned", "r2rec-sft", "r2rec-rl"]
    assert [one.what for one in recipe.chain] == chain
    again = retrain(recipe, shop(), tmp_path / "again")
    # the manifest of its first stage, which lies beside the model, holds the time of day
    assert weights_in(again) == weights_in(folder)
    lines = train_commands(recipe.chain, data="shop")
    accept(lines, tmp_path / "commands")
    commands = [line.split() for line in lines if line.startswith("reasonrec")]
    assert [words[2] for words in commands] == ["no-think", "r2rec"]
    assert commands[1][commands[1].index("--start") + 1] == recipe.chain[0].folder
    assert recipe.folder == f"{commands[1][commands[1].index('--out') + 1]}/r2rec-rl"


def test_a_language_model_baseline_comes_out_again(tmp_path):
    config = BaselinesConfig(
        tiger=TigerConfig(
            num_epochs=1, ids_from="log", num_levels=2, codebook_size=4, vector_width=4,
            optimiser=OPTIMISER,
        )
    )  # fmt: skip
    folder = train_baseline("tiger", shop(), config, base=BASE, out=tmp_path / "first", seed=2)
    again = retrain(recipe_in(folder), shop(), tmp_path / "again")
    assert read_manifest(again)["fingerprint"] == read_manifest(folder)["fingerprint"]
    accept(train_commands([recipe_in(folder)], data="shop"), tmp_path / "commands")


def test_what_no_machine_can_do_again_is_refused():
    traces = REASONED.model_dump(mode="json")
    first = Recipe(what="untuned", seed=0, config=traces, base=BASE.model_dump(mode="json"))
    check_recipe(Recipe(what="r2rec-sft", seed=0, config=traces, start=first), "mine")
    with pytest.raises(CheckpointError, match="stages of mine must share seed and settings"):
        check_recipe(Recipe(what="r2rec-sft", seed=1, config=traces, start=first), "mine")
    teacher = traces["traces"]["teacher"] | {"kind": "endpoint"}
    bought = traces | {"traces": traces["traces"] | {"teacher": teacher}}
    with pytest.raises(CheckpointError, match="they are of teacher endpoint"):
        check_recipe(first.model_copy(update={"config": bought}), "mine")


def test_a_model_without_a_recipe_leaves_none_to_those_that_start_from_it(tmp_path):
    from reasonrec.evaluation.recipe import recipe_of
    from reasonrec.manifest import write_manifest

    (tmp_path / "weights").touch()
    write_manifest(tmp_path, stage="train", inputs={}, config={}, outputs=["weights"], seconds=0.0)
    assert recipe_of("sft", BASE, seed=0, start=tmp_path) == {}


def test_another_gpu_or_library_of_a_peer_is_a_difference(tmp_path):
    was = Environment(gpu="none")
    assert "gpu: was none, is H100" in was.differences(Environment(gpu="H100"))
    assert not any("gpu" in one for one in Environment().differences(was))
    told = '{"job": {}, "fit_seconds": 1, "latency_ms": [], "versions": {"torch": "2.13"}}'
    (tmp_path / "peer.json").write_text(told)
    assert peer_versions(tmp_path) == {"torch": "2.13"}
