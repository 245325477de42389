"""Where the target stands after every sentence of a thought: step 0 has no words yet."""

from dataclasses import replace

import numpy as np
import polars as pl
import torch

from reasonrec.data.dataset import Queries
from reasonrec.models.anytime import batch_of, cuts_of, scores_along
from reasonrec.models.ranking import DEFAULT_MASK, Mask, rank_targets
from reasonrec.models.recommenders import ThinkingRecommender

TRAJECTORY = "trajectory.parquet"
"""Beside an evaluation, where it was traced: ``method``, ``seed``, ``query``, ``step`` of the
thought, ``rank`` of the target after it. Older ones lack the seed; one of a single method may lack
its name."""
TRACED = ("think-sft", "think-recpo")
"""Methods that have one: their thoughts are read step by step. R2Rec answers once its thought is
whole, a gate may leave it out, and other methods have none."""


@torch.no_grad()
def trace_thoughts(
    recommender: ThinkingRecommender,
    queries: Queries,
    rows: np.ndarray,
    *,
    mask: Mask = DEFAULT_MASK,
    seed: int = 0,
    batch_size: int = 64,
) -> pl.DataFrame:
    """Return the target's rank after every beginning of each query's thought.

    The thoughts are written once more; of a model that averages several, the first.

    Args:
        rows: Which queries, named so in the column ``query``.
        mask: Which items do not compete; a target that is itself kept out has an infinite rank.
        seed: That the method was trained with; it names the rows.

    Returns:
        ``method``, ``seed``, ``query``, ``step``, ``rank``; a thought of S sentences and look-ups
        has steps 0 .. S.
    """
    recommender = replace(recommender, num_samples=1)
    model = recommender.model
    tables = []
    for start in range(0, len(rows), batch_size):
        asked = queries.take(rows[start : start + batch_size])
        histories = asked.histories()
        written = recommender.write(histories)
        batch = batch_of(model, model.writer.prompts(histories), written)
        cuts = cuts_of(batch, model.writer)
        scores = scores_along(model, batch, cuts)[:, 0]  # (B, K, N)
        scores = model.beside_history(scores, written.pre_states, histories).cpu().numpy()
        exists = cuts.exists[:, 0].cpu().numpy()
        for step in range(scores.shape[1]):
            there = np.flatnonzero(exists[:, step])
            rank = rank_targets(
                scores[there, step], asked.target[there], histories=histories.take(there),
                mask=mask,
            )  # fmt: skip
            tables.append(
                pl.DataFrame(
                    {
                        "method": [recommender.name] * len(there),
                        "seed": np.full(len(there), seed, np.int64),
                        "query": rows[start + there].astype(np.int64),
                        "step": np.full(len(there), step, np.int64),
                        "rank": rank,
                    }
                )
            )
    return pl.concat(tables).sort("query", "step")
