"""Trained folders as rows of one evaluation, and tests of one against another."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from running import source

from reasonrec.baselines.contract import Recommender
from reasonrec.data.dataset import Dataset
from reasonrec.evaluation.comparison import compare
from reasonrec.evaluation.joined import Joined
from reasonrec.evaluation.measure import Contestant
from reasonrec.evaluation.protocol import FULL
from reasonrec.methods import r2ec


def contestant(own: str, folder: Path, seed: int, dataset: Dataset) -> Contestant:
    """Return a model of `train r2ec` as a row that is called ``own``.

    Args:
        dataset: What it was trained on. What it is measured on must hold the same ids and queries,
            and may call items otherwise.
    """

    def opening(_: Path) -> Recommender:
        return replace(r2ec.load_recommender(folder, dataset), name=own)  # pyright: ignore[reportArgumentType, reportReturnType]

    return Contestant(own, seed, source(folder), opening)


def paired_tests(joined: Joined, pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Return a table of NDCG@10 of the first of each pair against the second, where both are."""
    lines = [
        "| NDCG@10 of | against | difference | 95 % interval | p |",
        "| --- | --- | --: | --: | --: |",
    ]
    methods = {row.method for row in joined.rows}
    for ours, theirs in pairs:
        if {ours, theirs} <= methods:
            compared = compare(joined, theirs, ((FULL, "ndcg@10"),)).comparisons
            lines += [
                f"| {ours} | {theirs} | {one.difference:+.4f} | {one.ci_low:+.4f} to "
                f"{one.ci_high:+.4f} | {one.p_permutation:.4f} |"
                for one in compared
                if one.method == ours
            ]
    return lines
