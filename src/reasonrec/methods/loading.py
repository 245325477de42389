"""Opens a folder of a trained model, whichever method wrote it."""

from pathlib import Path

from reasonrec.baselines.contract import Recommender
from reasonrec.data.dataset import Dataset
from reasonrec.manifest import read_manifest
from reasonrec.methods import r2ec, r2rec


def load_recommender(folder: Path, dataset: Dataset) -> Recommender:
    """Return the trained model of a stage folder as a recommender over ``dataset``.

    Raises:
        CheckpointError: The folder is no finished model, or was trained on other data.
    """
    if read_manifest(folder).get("method") in r2rec.METHODS:
        return r2rec.load_recommender(folder, dataset)
    return r2ec.load_recommender(folder, dataset)
