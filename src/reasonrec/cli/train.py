"""``reasonrec train``: one stage of a method, or all of them in a row."""

from pathlib import Path
from typing import Annotated, Literal, cast, get_args

from cyclopts import Parameter

from reasonrec.cli.numbers import Seed
from reasonrec.errors import ConfigError
from reasonrec.methods.baselines.config import Baseline, BaselinesConfig
from reasonrec.methods.r2ec_config import R2ecConfig, Stage
from reasonrec.methods.r2rec_config import R2recConfig

COUNTER = "follow-counter"
"""Whose settings ``--lookups`` takes."""
THINKING = ("r2ec", "evidence", "sft", "recpo")
"""For what it is taken."""
What = Stage | Literal["r2ec", "r2rec"] | Baseline


def train(
    what: What,
    /,
    *,
    data: Path,
    out: Path,
    start: Path | None = None,
    again: Path | None = None,
    lookups: Path | None = None,
    seed: Seed = 0,
    settings: Annotated[R2ecConfig | None, Parameter(name="*")] = None,
    reasoned: Annotated[R2recConfig | None, Parameter(name="r2rec")] = None,
    baselines: Annotated[BaselinesConfig | None, Parameter(name="*")] = None,
) -> None:
    """Train the recommender: without thoughts, with taught thoughts, with rewarded thoughts.

    r2ec trains all stages: OUT/no-think, OUT/think-sft, OUT/think-recpo by default. A run that
    was interrupted continues from its last checkpoint and ends with the same numbers. evidence is
    the control of thinking: what thoughts look up, and no thought; gate learns for whom thinking is
    worth its tokens. Both are left out unless --stages names them.

    Started by torchrun, several processes train one model together, and one of them writes:
    torchrun --nproc-per-node 2 -m -- reasonrec train ... (docs/scaling.md).

    r2rec writes traces along interaction chains into OUT/traces, and trains on them into
    OUT/r2rec-sft and OUT/r2rec-rl; OUT/untuned is the model that it starts from.

    untuned, direct-sft, bigrec and tiger are what others do with the same backbone: rank titles by
    likelihood as it comes or after training, write a title in words and look for the nearest, write
    a semantic ID.

    Examples:
        reasonrec train r2ec --data runs/shop --out runs/model
        reasonrec train r2rec --data runs/ml --out runs/reasons --start runs/no-think
        reasonrec train no-think --data runs/shop --out runs/no-think --head.dropout 0.3
        reasonrec train sft --start runs/no-think --data runs/shop --out runs/sft
        reasonrec train sft --start runs/no-think --lookups runs/tune --data runs/ml --out runs/sft
        reasonrec train recpo --start runs/sft --data runs/shop --out runs/recpo --seed 1
        reasonrec train r2ec --again runs/model --data runs/shop --out runs/served
        reasonrec train r2ec --backbone models/qwen --prompt.chat --stages recpo --data d --out o
        reasonrec train tiger --data runs/shop --out runs/tiger --tiger.codebook-size 64

    Args:
        what: The stage, r2ec or r2rec for all stages of a method, or a baseline.
        data: Folder that `reasonrec prepare` wrote.
        out: Folder to write. A finished one is left as it is.
        start: Folder of the stage before: no-think for evidence and sft, sft for recpo, one
            that thinks for gate, any of r2ec for r2rec.
        again: Folder of `reasonrec train r2ec`: its stages are trained once more, on the validation
            rows too, with its settings and seed, as far as was best there. For a model to serve, or
            for a table beside papers that train so; `evaluate` states the rows.
        lookups: Folder of `reasonrec tune follow-counter`, or such a best.toml: what thoughts look
            up counts as in that counter, in place of the four --thought options that say how.
        seed: Draws weights, order and samples.
    """
    from rich.console import Console

    from reasonrec import ranks
    from reasonrec.cli.trace_progress import trace_progress
    from reasonrec.data.dataset import Dataset
    from reasonrec.evaluation.tuning import read_params
    from reasonrec.manifest import read_manifest
    from reasonrec.methods import r2ec, r2rec
    from reasonrec.methods.baselines.train import train as train_baseline

    if again is not None:
        if what != "r2ec" or settings is not None or lookups is not None or seed:
            raise ConfigError(
                "--again is for r2ec, and takes settings and seed from its folder; give --data and "
                f"--out alone. Got {what}, with settings or a seed"
            )
        settings, seed = r2ec.settings_of(again)
    config = settings or R2ecConfig()
    if what in ("r2ec", *get_args(Baseline)) and start is not None:
        raise ConfigError(f"{what} starts from the backbone and takes no --start; got {start}")
    if lookups is not None and what not in THINKING:
        raise ConfigError(f"--lookups is for what looks up: {', '.join(THINKING)}; got {what}")
    dataset = Dataset.load(data)
    if lookups is not None:
        tuned = read_params(lookups, dataset)
        if COUNTER not in tuned:
            raise ConfigError(
                f"{lookups} must hold the settings of {COUNTER}; got {', '.join(tuned) or 'none'}. "
                f"`reasonrec tune {COUNTER} --data {data} --out FOLDER` finds them"
            )
        thought = config.thought.counting_like(tuned[COUNTER])
        config = config.model_copy(update={"thought": thought})
    ranks.join()
    console = Console(stderr=True, highlight=False, quiet=not ranks.is_first())
    of_r2ec = what in ("r2ec", *get_args(Stage)) and start is None and again is None
    if of_r2ec and (kept := config.left_as_for_tiny()):
        console.print(
            f"settings of the tiny backbone are left for {config.backbone}, which is not: "
            f"{', '.join(kept)}. configs/r2ec/backbone.toml, given by --config, has others"
        )
    if what == "r2ec":
        folders = r2ec.train(
            dataset, config, out=out, seed=seed, again=again,
            announce=lambda name: console.print(f"· {name}"),
        )  # fmt: skip
    elif what == "r2rec":
        folders = r2rec.train(
            dataset, reasoned or R2recConfig(), base=config, out=out, seed=seed, start=start,
            announce=lambda name: console.print(f"· {name}"), watch_traces=trace_progress,
        )  # fmt: skip
    elif what in get_args(Baseline):
        own = baselines or BaselinesConfig()
        folders = [
            train_baseline(cast(Baseline, what), dataset, own, base=config, out=out, seed=seed)
        ]
    else:
        stage = cast(Stage, what)
        folders = [r2ec.train_stage(stage, dataset, config, out=out, seed=seed, start=start)]
    for folder in folders if ranks.is_first() else []:
        manifest = read_manifest(folder)
        score = manifest["best_score"]
        best = "" if score is None else f"valid NDCG {score:.4f} at step {manifest['best_step']}, "
        if "gate" in manifest:
            gate = manifest["gate"]
            best = (
                f"valid NDCG {gate['value']:.4f} with {gate['tokens']:.1f} tokens, silent "
                f"{gate['silent_value']:.4f}, always thinking {gate['think_value']:.4f} with "
                f"{gate['think_tokens']:.1f}, "
            )
        Console(highlight=False).print(
            f"{manifest['method']}: {best}{manifest['seconds']:.0f} s, written: {folder}"
        )
