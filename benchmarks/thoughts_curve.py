"""How much do more sampled thoughts buy? NDCG@10 against their number and their tokens.

    python benchmarks/thoughts_curve.py runs/demo/think-recpo --data runs/demo/data --out curve

Writes curve.json and curve.md: silent, greedy, and for each temperature K sampled thoughts,
averaged; each with its interval and a test against greedy. Validation by default: their number
is a setting, and settings are not chosen on test.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from cyclopts import App

from reasonrec.data.dataset import Dataset
from reasonrec.errors import CheckpointError
from reasonrec.evaluation.protocol import chosen_queries
from reasonrec.evaluation.thoughts_curve import curve_markdown, thoughts_curve
from reasonrec.manifest import read_manifest
from reasonrec.methods.loading import load_recommender
from reasonrec.models.recommenders import ThinkingRecommender

app = App(help=__doc__)


@app.default
def curve(
    model: Path,
    /,
    *,
    data: Path,
    out: Path,
    part: Literal["valid", "test"] = "valid",
    temperatures: tuple[float, ...] = (0.5, 1.0),
    counts: tuple[int, ...] = (1, 2, 4, 8),
    num_queries: int | None = None,
    num_timed: int = 100,
) -> None:
    """Measure the curve of one trained model that thinks.

    Args:
        model: Folder of a stage that thinks, as ``think-recpo``.
        data: Folder that `reasonrec prepare` wrote.
        out: Folder for curve.json and curve.md.
        part: Which queries are asked.
        temperatures: Of sampling, each above 0.
        counts: Numbers of thoughts to average.
        num_queries: A sample of this many queries, the same for every model; all if not given.
        num_timed: Queries asked once more for the processor time; 0 leaves it out.
    """
    dataset = Dataset.load(data)
    recommender = load_recommender(model, dataset)
    if not isinstance(recommender, ThinkingRecommender):
        raise CheckpointError(f"a curve needs a model that thinks; {model} is {recommender.name}")
    queries = dataset.queries(part)
    queries = queries.take(chosen_queries(queries, None, num_queries, part))
    points = thoughts_curve(
        recommender, queries, temperatures=temperatures, counts=counts, num_timed=num_timed,
        progress=lambda what: print(f"· {what}", flush=True),
    )  # fmt: skip
    manifest = read_manifest(model)
    about = {
        "dataset": dataset.name,
        "part": part,
        "method": recommender.name,
        "model": manifest["fingerprint"],
        "seed": manifest["seed"],
        "commit": manifest["commit"],
        "points": [asdict(point) for point in points],
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "curve.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    (out / "curve.md").write_text(curve_markdown(points), encoding="utf-8")
    print(curve_markdown(points))


if __name__ == "__main__":
    app()
