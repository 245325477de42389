"""``reasonrec encode-items``: the rows that a model scores items with, for an index elsewhere."""

from pathlib import Path

from reasonrec.cli.recommend import find_model
from reasonrec.errors import CheckpointError


def encode_items(
    run: Path, /, *, out: Path, data: Path | None = None, method: str | None = None
) -> None:
    """Write a row for every item of the catalogue, encoded anew where rows come from text.

    A Parquet file with the columns item_id and row, float32, in the order of the catalogue. An
    item's score is the product of its row and the state after the prompt or the thought, both of
    length 1 first where head.similarity is cosine; what thoughts look up comes on top.

    Examples:
        reasonrec encode-items runs/demo --out runs/items.parquet
        reasonrec encode-items runs/no-think --data runs/shop --out runs/items.parquet

    Args:
        run: A folder that `reasonrec demo` or `reasonrec train` wrote.
        out: File to write; one that is there is replaced.
        data: Prepared data folder, where the run does not name it.
        method: Which model of a demo run; the best trained one if not given.
    """
    import polars as pl

    from reasonrec.data.dataset import Dataset
    from reasonrec.methods.loading import load_recommender
    from reasonrec.models.recommenders import (
        EvidenceRecommender,
        GatedThinkingRecommender,
        NoThinkRecommender,
        ThinkingRecommender,
    )

    folder, data_folder = find_model(run, method, data)
    recommender = load_recommender(folder, Dataset.load(data_folder))
    by_rows = (
        NoThinkRecommender, EvidenceRecommender, ThinkingRecommender, GatedThinkingRecommender
    )  # fmt: skip
    if not isinstance(recommender, by_rows):
        raise CheckpointError(
            f"items are encoded by models that score them by their rows; {folder} holds "
            f"{recommender.name}, which does not. Name a model of R²ec, as think-recpo"
        )
    model = recommender.model
    model.refresh_items()
    rows = model.item_rows().detach().float().cpu().numpy()  # (N, D)
    pl.DataFrame({"item_id": model.item_ids, "row": rows}).write_parquet(out)
    print(f"{len(rows):,} rows of {rows.shape[1]} numbers: {out}")
