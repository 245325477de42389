"""``reasonrec faithfulness``: do the thoughts of a model matter, and are they true?"""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from reasonrec.cli.numbers import Seed
from reasonrec.errors import CheckpointError
from reasonrec.evaluation.faithfulness.config import FaithfulnessConfig


def faithfulness(
    run: Path,
    /,
    *,
    out: Path,
    data: Path | None = None,
    method: str | None = None,
    seed: Seed = 0,
    json: bool = False,
    settings: Annotated[FaithfulnessConfig | None, Parameter(name="*")] = None,
) -> None:
    """Test the thoughts of a model: taken away, changed, cut, checked against their evidence.

    Ranks the same queries with the model's own thought, without it, with another user's, with it
    shuffled, cut after each sentence or look-up, replaced by filler of equal length, and with each
    chain or asked-about history item left out. Says how much of what is named occurs in the
    evidence, on a planted world whether it is the true reason, and what thinking costs. R2Rec ranks
    20 candidates by its answers; its chains are left out of the prompt, with the old thought and
    with a new one.

    Examples:
        reasonrec faithfulness runs/demo --out runs/faithful
        reasonrec faithfulness runs/demo --method think-sft --out runs/faithful-sft
        reasonrec faithfulness runs/ml/think-recpo --out runs/f --num-queries 200
        reasonrec faithfulness runs/ml/r2rec/r2rec-rl --data runs/ml/data --out runs/f-r2rec

    Args:
        run: A folder that `reasonrec demo` or `reasonrec train` wrote.
        out: Folder to write: faithfulness.json, faithfulness.md, a row for every question to the
            model, every thought. A finished one is left as it is.
        data: Prepared data folder, where the run does not name it.
        method: Which model of a demo run; the best trained one if not given.
        seed: Draws the shuffles, the swaps and the random questions.
        json: Print the report as JSON instead of a table.
    """
    from rich.console import Console

    from reasonrec.cli.progress import method_progress
    from reasonrec.cli.recommend import find_model
    from reasonrec.data.dataset import Dataset
    from reasonrec.evaluation.faithfulness.stage import Thinker, write_faithfulness
    from reasonrec.evaluation.faithfulness.table import faithfulness_table
    from reasonrec.manifest import fingerprint
    from reasonrec.methods.loading import load_recommender

    model_folder, data_folder = find_model(run, method, data)
    dataset = Dataset.load(data_folder)
    recommender = load_recommender(model_folder, dataset)
    if not isinstance(recommender, Thinker) or not getattr(recommender, "thinks", True):
        raise CheckpointError(
            f"the model must be one that thinks; {model_folder} holds {recommender.name}. "
            "Name a folder of `reasonrec train` sft, recpo, gate or r2rec"
        )
    with method_progress() as progress:
        report = write_faithfulness(
            recommender,
            dataset,
            out,
            settings or FaithfulnessConfig(),
            source=fingerprint(model_folder),
            seed=seed,
            progress=lambda done, total: progress(recommender.name, done, total),
        )
    if json:
        print((out / "faithfulness.json").read_text(encoding="utf-8"), end="")
        return
    console = Console()
    console.print(faithfulness_table(report))
    console.print(f"written: {out}, read faithfulness.md", highlight=False)
