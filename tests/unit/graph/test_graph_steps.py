"""Chains weighed by their steps, against a slow walk over all of them."""

import numpy as np
import pytest
from tests.unit.graph.test_graph_chains import graph_of, histories_of

from reasonrec.graph.sampling import count_older, weigh_steps


def slow_weights(events, user, history, candidates, asked_at, *, window, reverse, recency, total):
    """Return the weight of each candidate by walking every event of every neighbour."""
    older = [e for e in events if e[2] < asked_at]
    rows = {}
    for who, item, _ in older:
        rows.setdefault(who, []).append(item)
    result = np.zeros(len(candidates))
    for place, via in enumerate(reversed(history), 1):
        degree = max(sum(item == via for _, item, _ in older), 1)
        share = place**-recency * degree**-total
        for who, items in rows.items():
            for at, item in enumerate(items):
                if who == user or item != via:
                    continue
                for steps in range(1, window + 1):
                    for there, factor in ((at + steps, 1.0), (at - steps, reverse)):
                        if 0 <= there < len(items) and items[there] in candidates:
                            c = candidates.index(items[there])
                            result[c] += share * factor / steps
    return result


@pytest.mark.parametrize("seed", range(6))
def test_weights_are_those_of_a_walk_over_all_events_of_others_before_the_question(seed):
    rng = np.random.default_rng(seed)
    events = sorted(
        (int(rng.integers(7)), int(rng.integers(9)), int(time))
        for time in rng.choice(1000, 60, replace=False)
    )
    events.sort(key=lambda event: (event[0], event[2]))
    graph = graph_of(events, 7, 9)
    users, asked = [0, 3, 6], [300, 1000, 650]
    rows = [rng.permutation(9)[:size].tolist() for size in (4, 2, 5)]
    candidates = np.array([[8, 1, 5], [0, 2, -1], [3, 7, 4]], np.int32)
    settings = {"window": 2, "reverse": 0.3, "recency": 0.7, "total": 0.4}
    found = weigh_steps(
        graph, histories_of(rows, users, asked), candidates, window=2, reverse_share=0.3,
        recency_power=0.7, total_power=0.4, num_threads=1,
    )  # fmt: skip
    assert found[1, 2] == 0  # padding
    for r in range(3):
        real = [c for c in candidates[r].tolist() if c >= 0]
        expected = slow_weights(events, users[r], rows[r], real, asked[r], **settings)
        np.testing.assert_allclose(found[r, : len(real)], expected)


def test_nearer_items_and_newer_history_count_more():
    # u1 took 0 1 2, u2 took 3 2; u0 took 3, then 0
    events = [(1, 0, 1), (1, 1, 2), (1, 2, 3), (2, 3, 1), (2, 2, 2)]
    graph = graph_of(events, 3, 4)
    histories = histories_of([[3, 0]], [0], [100])
    weights = weigh_steps(graph, histories, np.array([[1, 2]]), total_power=0.0)
    # item 1: one step after 0, the last item: 1; item 2: two steps after 0, 1/2, and one step after
    # 3, the last item but one: 1/2
    np.testing.assert_allclose(weights, [[1.0, 1.0]])
    alone = weigh_steps(graph, histories, np.array([[1, 2]]), total_power=0.0, window=1)
    np.testing.assert_allclose(alone, [[1.0, 0.5]])


def test_events_are_counted_up_to_the_question():
    graph = graph_of([(0, 1, 5), (1, 1, 9), (2, 0, 1)], 3, 3)
    candidates = np.array([[0, 1, 2], [1, -1, -1]], np.int32)
    assert count_older(graph, np.array([6, 5]), candidates).tolist() == [[1, 1, 0], [0, 0, 0]]
