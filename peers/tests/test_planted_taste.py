"""Every peer is run as reasonrec runs it, on a small world whose taste is known.

Items stand in a ring, and everybody walks it from a place of their own, one step at a time: what
comes next is the neighbour of what came last. All items are equally popular, so popularity knows
nothing, while whoever learned who goes together ranks the next item among the first.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run import METHODS

NUM_ITEMS, NUM_USERS = 40, 240
RUN = Path(__file__).parents[1] / "run.py"
STOPPED = {"max_epochs": 40, "check_every": 4, "patience": 3}
TRANSFORMER = STOPPED | {
    "num_factors": 32, "num_blocks": 1, "num_heads": 2, "dropout": 0.1, "max_events": 10,
    "learning_rate": 0.005, "batch_size": 32,
}  # fmt: skip
SETTINGS = {
    "sasrec": TRANSFORMER,
    "esasrec": TRANSFORMER | {"num_negatives": 20},
    "hstu": TRANSFORMER | {"num_negatives": 20},
    "bert4rec": TRANSFORMER | {"mask_share": 0.3},
    "lightgcn": STOPPED
    | {"num_factors": 32, "num_layers": 2, "learning_rate": 0.02, "regularisation": 1e-5,
       "batch_size": 512},
    "gru4rec": STOPPED
    | {"num_factors": 48, "dropout": 0.0, "max_events": 10, "learning_rate": 0.1, "momentum": 0.1,
       "batch_size": 16, "num_negatives": 32, "sample_power": 0.0},
    "caser": STOPPED
    | {"num_factors": 32, "max_events": 3, "num_horizontal": 8, "num_vertical": 2, "dropout": 0.1,
       "regularisation": 0.0, "learning_rate": 0.005, "batch_size": 64},
}  # fmt: skip


@pytest.fixture(scope="module")
def ring(tmp_path_factory):
    """A folder as `reasonrec prepare` lays it out: a ring, one item beside it that nobody takes,
    and one question by somebody of whom nothing is known."""
    folder = tmp_path_factory.mktemp("ring")
    rng = np.random.default_rng(0)
    starts, lengths = rng.integers(NUM_ITEMS, size=NUM_USERS), rng.integers(6, 12, size=NUM_USERS)
    walks = [(s + np.arange(n)) % NUM_ITEMS for s, n in zip(starts, lengths, strict=True)]
    begins = np.append(0, np.cumsum(lengths))
    times = np.concatenate([1000 * user + 60 * np.arange(n) for user, n in enumerate(lengths)])
    user = np.repeat(np.arange(NUM_USERS), lengths)
    item = np.concatenate(walks)
    is_train = np.arange(len(item)) < begins[1:][user] - 2

    def write(name, **columns):
        pq.write_table(pa.table({k: pa.array(v) for k, v in columns.items()}), folder / name)

    write("items.parquet", item_id=[f"i{n}" for n in range(NUM_ITEMS + 1)])
    write("users.parquet", user_id=[f"u{n}" for n in range(NUM_USERS)])
    write(
        "train.parquet",
        user_index=user[is_train].astype(np.int32),
        item_index=item[is_train].astype(np.int32),
        timestamp=times[is_train],
    )
    write("histories.parquet", item_index=item.astype(np.int32), timestamp=times)
    for part, from_end in (("valid", 2), ("test", 1)):
        stops = begins[1:] - from_end
        write(
            f"{part}.parquet",
            user_index=np.append(np.arange(NUM_USERS), -1).astype(np.int32),
            target=np.append(item[stops], 0).astype(np.int32),
            history_start=np.append(begins[:-1], 0),
            history_stop=np.append(stops, 0),
            timestamp=np.append(times[stops], 0),
        )
    return folder


def ask(ring, folder, method, seed=0, train_on="train", **changes):
    folder.mkdir()
    job = {
        "method": method, "data": str(ring), "fingerprint": "ring", "part": "test", "rows": None,
        "settings": SETTINGS[method] | changes, "seed": seed, "num_timed_users": 3,
        "train_on": train_on,
    }  # fmt: skip
    (folder / "job.json").write_text(json.dumps(job))
    return subprocess.run(
        [sys.executable, str(RUN), str(folder)], capture_output=True, text=True, check=False
    )


def read_scores(folder):
    table = pq.read_table(folder / "scores.parquet")
    return np.array(table["scores"].to_pylist(), np.float32)


def mean_ndcg(scores, ring):
    """NDCG@10 by the definition, one query after the other; the histories are left out."""
    queries = pq.read_table(ring / "test.parquet").to_pydict()
    log = pq.read_table(ring / "histories.parquet")["item_index"].to_pylist()
    gains = []
    for row in range(NUM_USERS):  # the last query is that of nobody
        target = queries["target"][row]
        past = set(log[queries["history_start"][row] : queries["history_stop"][row]])
        better = [
            i for i in range(NUM_ITEMS) if i not in past and scores[row, i] > scores[row, target]
        ]
        rank = 1 + len(better)
        gains.append(1 / np.log2(1 + rank) if rank <= 10 else 0.0)
    return float(np.mean(gains))


@pytest.mark.parametrize("method", METHODS)
def test_a_peer_learns_planted_taste_and_hands_back_what_it_was_asked(method, ring, tmp_path):
    done = ask(ring, tmp_path / "peer", method)
    assert done.returncode == 0, done.stdout + done.stderr
    schema = pq.read_schema(tmp_path / "peer" / "scores.parquet")
    assert schema.names == ["query", "scores", "seconds"]
    assert schema.field("scores").type == pa.list_(pa.float32())
    scores = read_scores(tmp_path / "peer")
    assert scores.shape == (NUM_USERS + 1, NUM_ITEMS + 1)
    assert np.isfinite(scores[:, :NUM_ITEMS]).all()
    assert np.isneginf(scores[:, NUM_ITEMS]).all()  # nobody took it, so nothing is known of it
    train = pq.read_table(ring / "train.parquet")["item_index"].to_numpy()
    popularity = np.bincount(train, minlength=NUM_ITEMS).astype(np.float32)
    np.testing.assert_array_equal(scores[-1, :NUM_ITEMS], popularity)
    popular = mean_ndcg(np.tile(popularity, (NUM_USERS, 1)), ring)
    assert popular < 0.25
    # a graph knows who stands beside a walk and not which way it goes: ranks 1 and 2 by chance
    # give (1 + 0.63) / 2; a sequence knows the way
    assert mean_ndcg(scores, ring) > (0.6 if method == "lightgcn" else 0.8)
    told = json.loads((tmp_path / "peer" / "peer.json").read_text())
    assert told["library"].startswith(METHODS[method][0])
    assert len(told["latency_ms"]) == 3
    assert told["epochs"] % STOPPED["check_every"] == 0


@pytest.mark.parametrize("method", ["esasrec", "lightgcn", "gru4rec", "caser"])
def test_a_seed_decides_every_score(method, ring, tmp_path):
    few = {"max_epochs": 4, "check_every": 2}
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        assert ask(ring, tmp_path / name, method, seed, **few).returncode == 0
    one, same, other = (read_scores(tmp_path / name) for name in ("one", "same", "other"))
    np.testing.assert_array_equal(one, same)
    assert (one[:NUM_USERS, :NUM_ITEMS] != other[:NUM_USERS, :NUM_ITEMS]).mean() > 0.9


@pytest.mark.parametrize("method", ["esasrec", "gru4rec"])
def test_with_validation_a_peer_is_trained_anew_for_as_many_epochs(method, ring, tmp_path):
    few = {"max_epochs": 4, "check_every": 2}
    for name in ("train", "train+valid"):
        done = ask(ring, tmp_path / name, method, train_on=name, **few)
        assert done.returncode == 0, done.stderr
    told = [json.loads((tmp_path / name / "peer.json").read_text()) for name in
            ("train", "train+valid")]  # fmt: skip
    assert told[0]["epochs"] == told[1]["epochs"]
    alone, both = (read_scores(tmp_path / name) for name in ("train", "train+valid"))
    # whoever is not known is answered by popularity: of train, and of train and validation
    train = pq.read_table(ring / "train.parquet")["item_index"].to_numpy()
    valid = pq.read_table(ring / "valid.parquet")["target"].to_numpy()[:-1]
    counts = np.bincount(train, minlength=NUM_ITEMS)
    np.testing.assert_array_equal(alone[-1, :NUM_ITEMS], counts)
    counts += np.bincount(valid, minlength=NUM_ITEMS)
    np.testing.assert_array_equal(both[-1, :NUM_ITEMS], counts)
    assert (both[:-1, :NUM_ITEMS] != alone[:-1, :NUM_ITEMS]).mean() > 0.9


def test_settings_that_cannot_be_trained_are_told_apart_from_failures(ring, tmp_path):
    done = ask(ring, tmp_path / "wild", "lightgcn", learning_rate=1e30)
    assert done.returncode == 3
    assert "must stay finite" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "wild" / "peer.json").exists()
