"""Short cuts: what ranks well without knowing anything about the user, and ties that hide it."""

import numpy as np
import polars as pl

from reasonrec.baselines.popularity import Popularity
from reasonrec.data.dataset import Dataset
from reasonrec.evaluation.audits.records import Audit, judged
from reasonrec.evaluation.protocol import evaluate, full_word_in
from reasonrec.graph.audit import area_under_curve, draw_negatives, touched_keys
from reasonrec.graph.build import InteractionGraph
from reasonrec.graph.config import NEGATIVES
from reasonrec.graph.sampling import count_closable


def popularity_audits(dataset: Dataset, *, num_candidates: int, num_queries: int) -> list[Audit]:
    """Return what the counts of training alone reach, in the catalogue and among candidates."""
    words = (f"candidates-{num_candidates}", f"candidates-{num_candidates}-popular")
    found = evaluate(
        Popularity.fit(dataset), dataset, protocols=("full", *words), num_queries=num_queries,
        num_timed_users=0,
    )  # fmt: skip
    values = {(row.protocol, row.metric): row for row in found.rows}
    chance = 1.0 / num_candidates
    rows = [
        judged(
            "popularity-only-ndcg@10-full", values["full", "ndcg@10"].value,
            "NDCG@10 over the catalogue of the number of training events alone.",
            n=values["full", "ndcg@10"].n,
        )
    ]  # fmt: skip
    for word in words:
        row = values[word, "hit@1"]
        rows.append(
            judged(
                f"popularity-only-hit@1-{word}", row.value,
                f"HR@1 of the number of training events alone; chance is {chance:.3f}. Far above "
                "it the candidates measure popularity.",
                n=row.n, warn_above=round(2 * chance, 4),
            )
        )  # fmt: skip
    return rows


def chain_audits(dataset: Dataset, rows: np.ndarray, *, seed: int) -> list[Audit]:
    """Return how well the mere number of closable chains tells targets from other items.

    Args:
        rows: Test queries to read.
    """
    queries = dataset.test.take(rows)
    graph = InteractionGraph.build(dataset.train, dataset.num_items)
    histories, touched = queries.histories(), touched_keys(dataset)
    positive = count_closable(graph, histories, queries.target)
    found = []
    for kind in NEGATIVES:
        negative = draw_negatives(dataset, queries, touched, kind=kind, seed=seed)
        closable = count_closable(graph, histories, negative)
        found.append(
            judged(
                f"chain-existence-auc-{kind}",
                area_under_curve(positive, closable[negative >= 0]),
                "Chance that the target closes more chains than an untouched item "
                f"({kind} draw); 0.5 says nothing, and a model that counts chains reaches this.",
                n=len(rows), warn_above=0.6,
            )
        )  # fmt: skip
    return found


def tie_audits(per_query: pl.DataFrame, lists: pl.DataFrame) -> list[Audit]:
    """Return the share of tied ranks of every method of an evaluation.

    Lists count the ties of rankings of the whole catalogue. Elsewhere the rank alone tells: it is
    1 + higher + half of the ties, so only an odd number of them leaves a fraction, and the share is
    a lower bound.

    Args:
        per_query, lists: As in ``Evaluation``; an older one kept no lists.
    """
    word = full_word_in(per_query["protocol"].unique().to_list())
    counted = lists.select("method", "seed", "query", "num_tied", protocol=pl.lit(word))
    ranks = per_query.filter(pl.col("rank").is_finite()).join(
        counted, on=["method", "seed", "query", "protocol"], how="left", maintain_order="left"
    )
    shares = ranks.group_by("method", "protocol", maintain_order=True).agg(
        pl.col("num_tied").is_not_null().all().alias("is_counted"),
        (pl.col("num_tied") > 0).mean().alias("counted"),
        (pl.col("rank") % 1 != 0).mean().alias("fractions"),
        pl.len().alias("n"),
    )
    return [
        judged(
            f"tied-scores-{row['method']}-{row['protocol']}",
            float(row["counted" if row["is_counted"] else "fractions"]),
            "This share of the targets scores as another item does, so that their rank is a middle."
            if row["is_counted"]
            else "At least this share of the ranks comes from a tie of an odd number of items with "
            "the target.",
            n=int(row["n"]), warn_above=0.05,
        )
        for row in shares.iter_rows(named=True)
    ]  # fmt: skip
