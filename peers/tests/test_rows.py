"""How a log is laid out for each library, against places worked out by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from contract import Histories, Prepared
from cornac.models.gru4rec.gru4rec import GRU4RecModel, score
from cornac_gru4rec import _Recurrent
from pyg_lightgcn import _Graph
from recbole_caser import _places
from rectools_models import _windows
from torch_geometric.nn import LightGCN


def prepared(rows):
    return Prepared(
        num_users=len(rows),
        num_items=6,
        user_index=np.repeat(np.arange(len(rows)), [len(row) for row in rows]),
        item_index=np.concatenate([np.array(row, np.int64) for row in rows]),
        timestamp=None,
        folder=Path("nowhere"),
    )


def test_validation_targets_come_after_what_their_users_did(tmp_path):
    table = {"user_index": [2, -1, 0], "target": [5, 4, 3], "history_start": [0, 0, 0]}
    pq.write_table(pa.table(table | {"timestamp": [90, 50, 25]}), tmp_path / "valid.parquet")
    log = replace(prepared([[0, 1], [2], [4]]), folder=tmp_path)
    whole = replace(log, timestamp=np.array([10, 20, 30, 40])).with_validation()
    assert whole.user_index.tolist() == [0, 0, 0, 1, 2, 2]
    assert whole.item_index.tolist() == [0, 1, 3, 2, 4, 5]
    assert whole.timestamp.tolist() == [10, 20, 25, 30, 40, 90]
    assert log.with_validation().item_index.tolist() == [0, 1, 3, 2, 4, 5]


def test_every_event_but_a_users_first_is_the_target_of_one_window():
    # user 0 has events 0 to 6, user 1 event 7 alone, user 2 events 8 and 9; two inputs a window
    windows = _windows(np.array([0] * 7 + [1] + [2] * 2), max_events=2)
    assert [window.tolist() for window in windows] == [[4, 5, 6], [2, 3, 4], [0, 1, 2], [8, 9]]
    for length in (1, 2, 3, 4, 10):
        targets = [place for one in _windows(np.zeros(9, int), length) for place in one[1:]]
        assert sorted(targets) == list(range(1, 9))


def test_caser_convolves_the_events_before_each_target_counted_from_one():
    users, images, targets = _places(prepared([[3, 1, 4, 2], [5]]), length=2)
    assert users.tolist() == [1, 1, 1]
    assert images.tolist() == [[4, 0], [4, 2], [2, 5]]
    assert targets.tolist() == [2, 5, 3]


def test_histories_read_side_by_side_end_in_the_scores_of_the_library_read_one_by_one():
    torch.manual_seed(0)
    model = GRU4RecModel(6, layers=[4]).eval()
    rows = [np.array([1, 2, 3]), np.array([5]), np.array([0, 0, 4, 2])]
    together = _Recurrent(model, 4, 10, np.ones(6, bool)).score(
        Histories(np.arange(3), rows, None, None)
    )
    alone = [score(model, [4], "cpu", row.tolist()) for row in rows]
    np.testing.assert_allclose(together, np.stack(alone), rtol=1e-5, atol=1e-6)


def test_propagation_equals_the_librarys_and_a_known_user_asked_with_their_training_scores_alike():
    log = prepared([[0, 1, 2], [1, 3], [4, 2, 2]])
    torch.manual_seed(0)
    model = LightGCN(3 + 6, 4, 2).eval()
    pairs = torch.tensor([[0, 0, 0, 1, 1, 2, 2], [3, 4, 5, 4, 6, 7, 5]])
    edges = torch.cat([pairs, pairs.flip(0)], dim=1)
    graph = _Graph(model, log, edges)
    rows = model.get_embedding(edges)
    torch.testing.assert_close(graph.propagate(), rows)
    asked = Histories(
        np.arange(3), [np.array([0, 1, 2]), np.array([1, 3]), np.array([4, 2])], None, None
    )
    expected = (rows[:3] @ rows[3:].T).detach().numpy()
    np.testing.assert_allclose(graph.score(asked), expected, rtol=1e-5, atol=1e-6)
