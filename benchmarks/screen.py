"""Screen settings of the no-think model on several held-out events a user.

    python benchmarks/screen.py runs/ml-100k-0/data --out /tmp/a --settings.head.dropout 0.4

The one validation event of a user leaves ml-100k with 943 queries, whose standard error of NDCG@10
is about .007: too coarse to choose by. Here the last five training events of every user are held
out as well, the model is trained on the rest, and each of them is asked: 4,700 queries with a
standard error of about .003. The test part is never read.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from cyclopts import App, Parameter
from scipy.special import log_softmax

from reasonrec.data.dataset import Dataset, InteractionLog
from reasonrec.methods.r2ec_config import R2ecConfig
from reasonrec.metrics import ndcg
from reasonrec.models.backbone import build_model
from reasonrec.models.ranking import rank_targets
from reasonrec.models.reasoning_recommender import ReasoningRecommender
from reasonrec.models.recommenders import NoThinkRecommender
from reasonrec.rng import stream_seed
from reasonrec.training.config import SftLossConfig
from reasonrec.training.examples import WindowDataset, keep_batch, schedule_windows
from reasonrec.training.loop import fit, read_metrics
from reasonrec.training.losses import sft_loss

app = App(help=__doc__)


@app.default
def screen(
    data: Path,
    /,
    *,
    out: Path,
    num_held_out: int = 5,
    seed: int = 0,
    settings: Annotated[R2ecConfig | None, Parameter(name="settings")] = None,
) -> None:
    """Train on all but the last events of each user, and print how well those are ranked.

    Args:
        data: Folder that `reasonrec prepare` wrote.
        out: Folder for the curve (metrics.jsonl).
        num_held_out: Events of each user that are asked and not trained on; at most a quarter.
        seed: Draws weights, order and samples.
    """
    config = settings or R2ecConfig()
    dataset, chosen = Dataset.load(data), config.no_think
    asked = held_out_events(dataset.train, num_held_out)
    log = dataset.train.without(asked)
    histories = dataset.train.histories_before(asked)
    target = dataset.train.item_index[asked]

    def measure(model: ReasoningRecommender) -> dict[str, float]:
        scores = NoThinkRecommender(model).score(histories).scores
        rank = rank_targets(scores, target, histories=histories, mask="history-except-target")
        logp = log_softmax(scores, axis=1)[np.arange(len(target)), target]
        return {
            "valid/ndcg@10": float(ndcg(rank, 10).mean()),
            "valid/ndcg": float(ndcg(rank, scores.shape[1]).mean()),
            "valid/log_loss": -float(logp.mean()),
        }

    torch.manual_seed(seed)
    model = build_model(
        dataset.catalogue, backbone=config.backbone, tiny=config.tiny, head=config.head, seed=seed
    )
    windows = schedule_windows(
        log, max_history=config.head.max_history, num_epochs=chosen.num_epochs,
        batch_size=chosen.optimiser.batch_size, seed=stream_seed(seed, "no-think"),
    )  # fmt: skip
    fit(
        model, WindowDataset(log, windows, model.writer, seed=seed),
        lambda model, batch: sft_loss(model, batch, SftLossConfig()), measure, chosen.optimiser,
        out=out, seed=seed, label="screen", collate=keep_batch,
    )  # fmt: skip
    print(f"{len(target):,} queries; step, NDCG@10, NDCG, log-loss")
    for row in read_metrics(out / "metrics.jsonl"):
        if "valid/ndcg" in row:
            values = [row[f"valid/{name}"] for name in ("ndcg@10", "ndcg", "log_loss")]
            print(row["step"], *(f"{value:.4f}" for value in values))


def held_out_events(log: InteractionLog, most: int) -> np.ndarray:
    """Return the last events of every user, ``most`` or a quarter of them if that is fewer."""
    offsets = log.user_offsets
    num_events = np.diff(offsets)
    num_kept = num_events - np.minimum(most, num_events // 4)
    return np.flatnonzero(np.arange(len(log)) - offsets[log.user_index] >= num_kept[log.user_index])


if __name__ == "__main__":
    app()
