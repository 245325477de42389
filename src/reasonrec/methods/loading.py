"""Opens a folder of a trained model, whichever method wrote it."""

from pathlib import Path

from reasonrec.baselines.contract import Recommender
from reasonrec.data.dataset import Dataset
from reasonrec.manifest import read_manifest
from reasonrec.methods import r2ec, r2rec
from reasonrec.methods.baselines import train as baselines


def load_recommender(folder: Path, dataset: Dataset) -> Recommender:
    """Return the trained model of a stage folder as a recommender over ``dataset``.

    Raises:
        CheckpointError: The folder is no finished model, or was trained on other data.
    """
    method = read_manifest(folder).get("method")
    if method in r2rec.METHODS:
        return r2rec.load_recommender(folder, dataset)
    if method in baselines.METHODS:
        return baselines.load_recommender(folder, dataset)
    return r2ec.load_recommender(folder, dataset)
