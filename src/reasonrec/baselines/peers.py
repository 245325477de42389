"""Peers: recommenders of other libraries, trained in an environment of their own and read back.

The libraries hold older packages than ours, so the two sides share files and no code. ``ask_peer``
writes a job, runs ``peers/run.py`` by the interpreter that ``make peers`` set up, and returns the
scores that it left; ``peers/contract.py`` says what the files hold. A peer answers the queries that
it was asked, and no others: ``PeerScores`` finds each history among them.
"""

import json
import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np
import polars as pl
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from reasonrec.config import Config
from reasonrec.data.dataset import Dataset, Part
from reasonrec.errors import CheckpointError
from reasonrec.machine import KEEPS_FREED
from reasonrec.manifest import make_folder
from reasonrec.records import Histories, Scored

ROOT = Path(__file__).parents[3]
INTERPRETER = "REASONREC_PEERS_PYTHON"
"""Environment variable that names another interpreter than that of ``make peers``."""
CANNOT_TRAIN = 3
"""Exit code of a peer whose settings cannot be trained on these data."""
Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""
SCHEMA = {"query": pl.Int64, "scores": pl.List(pl.Float32), "seconds": pl.Float64}


class StoppedConfig(Config):
    """When training ends: by NDCG@10 on validation, over the full catalogue."""

    max_epochs: PositiveInt = 200
    """Passes over training, at most."""
    check_every: PositiveInt = 3
    """Passes between two looks at validation."""
    patience: PositiveInt = 4
    """Looks without a better one after which training stops; the best weights are kept. On small
    sets an epoch is few steps, and the first looks may all be on a plateau."""

    @model_validator(mode="after")
    def check_looks_once(self) -> Self:
        if self.check_every > self.max_epochs:
            raise ValueError(
                f"check_every must be at most max_epochs, or validation is never looked at; got "
                f"{self.check_every} and {self.max_epochs}"
            )
        return self


class SasrecConfig(StoppedConfig):
    """SASRec of RecTools: softmax over the whole catalogue at every position."""

    num_factors: PositiveInt = 64
    """Width of the embeddings and of the states; a multiple of num_heads."""
    num_blocks: PositiveInt = 2
    num_heads: PositiveInt = 2
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Share of the units that are dropped."""
    max_events: PositiveInt = 50
    """How far back the history is read; longer ones are cut into windows for training."""
    learning_rate: PositiveFloat = 0.002
    """Step size of Adam."""
    batch_size: PositiveInt = 64
    """Windows a step."""

    @model_validator(mode="after")
    def check_heads(self) -> Self:
        if self.num_factors % self.num_heads:
            raise ValueError(
                f"num_factors must be a multiple of num_heads; got {self.num_factors} and "
                f"{self.num_heads}"
            )
        return self


class EsasrecConfig(SasrecConfig):
    """eSASRec of RecTools: SASRec's objective, LiGR blocks, sampled softmax."""

    num_negatives: PositiveInt = 128
    """Items of the sampled softmax besides the target, drawn uniformly at every position."""


class HstuConfig(EsasrecConfig):
    """HSTU of RecTools: relative attention over places and times, sampled softmax of cosines."""


class Bert4recConfig(SasrecConfig):
    """BERT4Rec of RecTools: masked items, softmax over the whole catalogue."""

    mask_share: float = Field(default=0.15, gt=0, lt=1)
    """Share of the items that are masked in training."""


class LightgcnConfig(StoppedConfig):
    """LightGCN of torch_geometric: linear propagation over the graph, pairwise loss."""

    num_factors: PositiveInt = 64
    """Width of the embeddings."""
    num_layers: PositiveInt = 2
    """Steps of propagation."""
    learning_rate: PositiveFloat = 0.01
    """Step size of Adam."""
    regularisation: NonNegativeFloat = 1e-4
    """Weight decay of the embeddings that a step touches."""
    batch_size: PositiveInt = 4096
    """Pairs a step."""


class Gru4recConfig(StoppedConfig):
    """GRU4Rec of cornac: one recurrent layer, cross-entropy over sampled items."""

    num_factors: PositiveInt = 128
    """Width of the state and of the embeddings, which input and output share."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Share of the units that are dropped, of the input and of the state."""
    max_events: PositiveInt = 100
    """How far back the history is read, in training and in answers."""
    learning_rate: PositiveFloat = 0.05
    """Step size of Adagrad."""
    momentum: NonNegativeFloat = 0.0
    batch_size: PositiveInt = 64
    """Users who are read side by side, at most as many as there are."""
    num_negatives: PositiveInt = 512
    """Items drawn for a step, besides the targets of the batch."""
    sample_power: NonNegativeFloat = 0.5
    """Negatives are drawn by popularity to this power. 0 is uniform."""


class CaserConfig(StoppedConfig):
    """Caser of RecBole: convolutions over the last events, softmax over the whole catalogue."""

    num_factors: PositiveInt = 64
    """Width of the embeddings."""
    max_events: PositiveInt = 5
    """The last events that are convolved."""
    num_horizontal: PositiveInt = 16
    """Filters for each height, over whole events."""
    num_vertical: PositiveInt = 4
    """Filters over time, for each factor."""
    dropout: float = Field(default=0.4, ge=0, lt=1)
    """Share of the units that are dropped."""
    regularisation: NonNegativeFloat = 1e-4
    """Weight of the library's penalty on embeddings and filters."""
    learning_rate: PositiveFloat = 0.003
    """Step size of Adam."""
    batch_size: PositiveInt = 128
    """Places a step."""


PEERS: Mapping[str, type[StoppedConfig]] = {
    "sasrec": SasrecConfig,
    "esasrec": EsasrecConfig,
    "hstu": HstuConfig,
    "bert4rec": Bert4recConfig,
    "lightgcn": LightgcnConfig,
    "gru4rec": Gru4recConfig,
    "caser": CaserConfig,
}
"""Every peer by name, with its settings. All are random."""


@dataclass(frozen=True)
class PeerScores:
    """What a peer said of some queries; a ``Recommender`` for these and no others."""

    name: str
    path: Path
    """``scores.parquet``, read when it is asked for."""
    num_items: int
    rows: Mapping[bytes, int]
    """The row of the file that answers a history."""
    seconds: np.ndarray
    """(Q,), float64. Each answer's share of the batch that it was given in."""
    fit_seconds: float
    """Wall-clock seconds of training, early stopping included, start-up left out."""
    latency_ms: np.ndarray
    """Milliseconds of single queries, asked one at a time where the peer ran."""

    def score(self, histories: Histories) -> Scored:
        """Return the stored scores, with the seconds that the peer took over them.

        Raises:
            ValueError: The peer was not asked about one of the histories.
        """
        found = [self.rows.get(key) for key in _keys(histories)]
        rows = np.array([row for row in found if row is not None], np.int64)
        if len(rows) < len(found):
            raise ValueError(
                f"{self.name} answers the queries that it was asked about, and no others; "
                f"{len(found) - len(rows)} of {len(found)} histories are not among them"
            )
        if len(rows) == 0:
            return Scored(np.empty((0, self.num_items), np.float32))
        first = int(rows.min())
        block = pl.scan_parquet(self.path, glob=False).slice(first, int(rows.max()) - first + 1)
        scores = block.select(pl.col("scores").explode()).collect()["scores"].to_numpy()
        return Scored(scores.reshape(-1, self.num_items)[rows - first], seconds=self.seconds[rows])


def ask_peer(
    name: str,
    dataset: Dataset,
    folder: Path,
    *,
    part: Part,
    settings: Mapping[str, Any],
    seed: int,
    rows: np.ndarray | None = None,
    num_timed_users: int = 0,
    train_on: str = "train",
    progress: Progress | None = None,
) -> PeerScores:
    """Return a peer's scores of the queries of a part; an answer that lies there is read again.

    Args:
        folder: Where job, log and scores are written. What another job left there is replaced.
        settings: The peer's whole configuration.
        rows: Query rows to answer, all if None.
        num_timed_users: Queries asked one at a time, for the latency.
        train_on: ``train``, or ``train+valid``: it is trained on ``train`` until validation stops
            it, then anew on both for as many epochs.
        progress: Called with (label, epochs done, epochs at most) whenever validation was looked
            at. Training may stop long before the last one.

    Raises:
        CheckpointError: The environment is missing, the peer failed, or left a damaged file.
        ValueError: These settings cannot be trained on these data.
    """
    job = {
        "method": name,
        "data": str(dataset.folder.resolve()),
        "fingerprint": dataset.fingerprint,
        "part": part,
        "rows": None if rows is None else [int(row) for row in rows],
        "settings": dict(settings),
        "seed": seed,
        "num_timed_users": num_timed_users,
    }
    if train_on != "train":  # unsaid where it is: answers from before the choice stay good
        job["train_on"] = train_on
    done = folder / "peer.json"
    if not done.exists() or _read_done(done)["job"] != job:
        python = find_interpreter()
        make_folder(folder)
        done.unlink(missing_ok=True)
        (folder / "job.json").write_text(json.dumps(job, indent=1) + "\n", encoding="utf-8")
        _run(name, python, folder, int(settings["max_epochs"]), progress)
    return read_peer(folder, dataset)


def find_interpreter() -> Path:
    """Return the interpreter of the peers.

    Raises:
        CheckpointError: There is none, or the scripts are not here.
    """
    python = Path(os.environ.get(INTERPRETER) or ROOT / ".venv-peers" / "bin" / "python")
    if not (ROOT / "peers" / "run.py").is_file():
        raise CheckpointError(
            f"{', '.join(PEERS)} need the folder peers/ of reasonrec's repository; found none in "
            f"{ROOT}. Install reasonrec from a checkout: pip install -e ."
        )
    if not python.is_file():
        raise CheckpointError(
            f"{', '.join(PEERS)} run in an environment of their own; found none at {python}. "
            "Run: make peers"
        )
    return python


def read_peer(folder: Path, dataset: Dataset) -> PeerScores:
    """Return the scores that a peer left in ``folder``.

    Raises:
        CheckpointError: They are missing, damaged, or of other data.
    """
    done, path = _read_done(folder / "peer.json"), folder / "scores.parquet"
    job = done["job"]
    if job["fingerprint"] != dataset.fingerprint:
        raise CheckpointError(
            f"{folder} must hold answers about {dataset.folder}; they are about other data "
            f"({job['data']}). Remove the folder and run again"
        )
    queries = dataset.queries(job["part"])
    rows = np.arange(len(queries)) if job["rows"] is None else np.array(job["rows"], np.int64)
    try:
        table = pl.scan_parquet(path, glob=False)
        if dict(table.collect_schema()) != SCHEMA:
            raise CheckpointError(f"{path} must have the columns {', '.join(SCHEMA)} of a peer")
        told = table.select("query", "seconds", width=pl.col("scores").list.len()).collect()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise CheckpointError(f"{path} must hold the scores of a peer; {error}") from None
    if told["query"].to_list() != rows.tolist() or (told["width"] != dataset.num_items).any():
        raise CheckpointError(
            f"{path} must hold {len(rows)} queries of {dataset.num_items} scores each, in the "
            "order of the job; it does not. Remove the folder and run again"
        )
    keys = _keys(queries.take(rows).histories())
    return PeerScores(
        name=job["method"],
        path=path,
        num_items=dataset.num_items,
        # of two queries that know the same, either row will do: a peer says the same of both
        rows={key: row for row, key in enumerate(keys)},
        seconds=told["seconds"].to_numpy(),
        fit_seconds=float(done["fit_seconds"]),
        latency_ms=np.array(done["latency_ms"], np.float64),
    )


def peer_versions(folder: Path) -> dict[str, str]:
    """Return the versions of the libraries that the peer in ``folder`` ran on."""
    return dict(_read_done(folder / "peer.json").get("versions", {}))


def _read_done(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} must be what a finished peer wrote; {error}") from None
    missing = [key for key in ("job", "fit_seconds", "latency_ms") if key not in content]
    if missing:
        raise CheckpointError(f"{path} must hold {', '.join(missing)}; remove it and run again")
    return content


def _run(name: str, python: Path, folder: Path, max_epochs: int, progress: Progress | None) -> None:
    """Run the peer in ``folder`` until it is done; what it prints goes to ``peer.log``."""
    log = folder / "peer.log"
    # our own packages must not be found by the other interpreter
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    clean |= {key: str(value) for key, value in KEEPS_FREED.items()}
    show = progress or (lambda label, done, total: None)
    label = f"{name}: epochs at most"
    show(label, 0, max_epochs)
    with (
        log.open("wb") as file,
        subprocess.Popen(
            [str(python), str(ROOT / "peers" / "run.py"), str(folder)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=clean,
        ) as process,
    ):  # fmt: skip
        assert process.stdout is not None
        try:
            for line in process.stdout:
                file.write(line)
                file.flush()
                if told := re.match(rb"epoch (\d+):", line):
                    show(label, int(told[1]), max_epochs)
        except BaseException:  # an interrupt ends the peer with us
            process.kill()
            raise
    if process.returncode != 0:
        _explain(name, process.returncode, log)


def _explain(name: str, returncode: int, log: Path) -> NoReturn:
    """Raise what a peer said last.

    Raises:
        ValueError: Its settings cannot be trained.
        CheckpointError: It failed otherwise.
    """
    last = log.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
    if returncode == CANNOT_TRAIN:
        raise ValueError(last)
    raise CheckpointError(f"{name} must end well; it stopped with {last!r}. All of it: {log}")


def _keys(histories: Histories) -> Sequence[bytes]:
    """Return what tells one history from another: who asks, when, and all events."""
    users = histories.user_index.astype(np.int64)
    asked_at = histories.asked_at
    times = np.zeros(len(users), np.int64) if asked_at is None else asked_at.astype(np.int64)
    return [
        users[b].tobytes() + times[b].tobytes() + histories.row(b).astype(np.int32).tobytes()
        for b in range(len(users))
    ]
