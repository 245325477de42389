"""Chains against a slow enumeration of all of them, and against the future and the user's edges."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrec.data.dataset import InteractionLog
from reasonrec.graph.build import InteractionGraph
from reasonrec.graph.config import READINGS
from reasonrec.graph.sampling import CLOSED, HISTORY_ONLY, OPEN, ChainTable, sample_chains
from reasonrec.records import Histories


def graph_of(events, num_users, num_items, *, timed=True) -> InteractionGraph:
    columns = np.array(events, np.int64).reshape(-1, 3).T
    log = InteractionLog(
        user_index=columns[0].astype(np.int32),
        item_index=columns[1].astype(np.int32),
        num_users=num_users,
        timestamp=columns[2] if timed else None,
    )
    return InteractionGraph.build(log, num_items)


def histories_of(rows, users, asked_at=None) -> Histories:
    plain = Histories.from_lists(rows, user_index=list(users))
    return Histories(
        user_index=plain.user_index,
        item_index=plain.item_index,
        offsets=plain.offsets,
        asked_at=None if asked_at is None else np.asarray(asked_at, np.int64),
    )


def slow_chains(events, user, history, candidate, asked_at, *, overlap_weight, degree_weight):
    """Return {(i0, u1, i1): weight} of every closable chain, and each neighbour's chance."""
    taken, degree = defaultdict(set), Counter()
    for who, item, time in events:
        if who != user and (asked_at is None or time < asked_at):
            taken[who].add(item)
            degree[item] += 1
    known = list(dict.fromkeys(item for item in history if item != candidate))
    rate = {item: 1 / (1 + degree[item]) if degree_weight else 1.0 for item in known}
    weights, chance = {}, {}
    for who, items in taken.items():
        shared = [item for item in known if item in items]
        share = len(shared) if overlap_weight else 1
        if candidate is None and len(shared) > 1:
            pairs = [(a, b) for n, a in enumerate(shared) for b in shared[n + 1 :]]
            weights |= {(a, who, b): share * rate[a] * rate[b] for a, b in pairs}
            chance[who] = share * sum(rate[item] for item in shared)
        elif candidate is not None and candidate in items and shared:
            weights |= {(item, who, candidate): share * rate[item] for item in shared}
            chance[who] = share * sum(rate[item] for item in shared)
    return weights, chance


@st.composite
def worlds(draw):
    num_users, num_items = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    num_events = draw(st.integers(0, 40))
    users = np.sort(rng.integers(0, num_users, num_events))
    rows = zip(users, rng.integers(0, num_items, num_events), rng.integers(0, 15, num_events))
    return sorted(rows, key=lambda event: (event[0], event[2])), num_users, num_items, rng


@settings(max_examples=150, deadline=None)
@given(worlds(), st.sampled_from(READINGS), st.booleans(), st.booleans(), st.booleans())
def test_every_chain_is_one_that_exists_and_all_are_counted(
    world, reading, timed, overlap_weight, degree_weight
):
    events, num_users, num_items, rng = world
    graph = graph_of(events, num_users, num_items, timed=timed)
    num_rows, num_chains = 10, 3
    users = rng.integers(-1, num_users, num_rows)
    rows = [rng.integers(0, num_items, rng.integers(0, 5)).tolist() for _ in range(num_rows)]
    asked = rng.integers(0, 18, num_rows)
    candidates = rng.integers(0, num_items, num_rows) if reading == "candidate-closed" else None
    table = sample_chains(
        graph, histories_of(rows, users, asked), candidates, reading=reading, seed=1,
        num_chains=num_chains, overlap_weight=overlap_weight, degree_weight=degree_weight,
    )  # fmt: skip
    for row in range(num_rows):
        weights, chance = slow_chains(
            events, users[row], rows[row], None if candidates is None else candidates[row],
            asked[row] if timed else None,
            overlap_weight=overlap_weight, degree_weight=degree_weight,
        )  # fmt: skip
        assert table.num_closable[row] == len(weights)
        mine = np.flatnonzero(table.query == row)
        closed = [m for m in mine if table.is_closed[m]]
        assert len(closed) == min(num_chains, len(chance))
        assert len(mine) == max(len(closed), 1)
        assert len({table.neighbour[m] for m in closed}) == len(closed)
        for m in closed:
            chain = (table.first_item[m], table.neighbour[m], table.second_item[m])
            assert table.weight[m] == pytest.approx(weights[chain], rel=1e-6)


# user 0 holds 0 and 1, and item 2 is asked about; who else took what:
EVENTS = [
    (1, 0, 1), (1, 1, 2), (1, 2, 3),
    (2, 0, 1), (2, 2, 2),
    (3, 1, 5), (3, 3, 6),
    (4, 0, 7),
]  # fmt: skip


def test_a_chain_is_drawn_as_often_as_its_weight_says():
    graph = graph_of(EVENTS, 5, 4)
    # item 0 has 3 events by others, item 1 has 2: rates 1/4 and 1/3
    # neighbour 1 shares both: 2 x (1/4 + 1/3) = 7/6; neighbour 2 shares item 0: 1 x 1/4
    # so neighbour 1 comes first with 7/6 / (7/6 + 1/4) = 14/17, over item 1 with 4/7
    drawn = Counter()
    for seed in range(2000):
        table = sample_chains(
            graph, histories_of([[0, 1]], [0]), np.array([2]), seed=seed, num_chains=1
        )
        drawn[int(table.first_item[0]), int(table.neighbour[0])] += 1
    expected = {(1, 1): 14 / 17 * 4 / 7, (0, 1): 14 / 17 * 3 / 7, (0, 2): 3 / 17}
    assert set(drawn) == set(expected)
    for chain, share in expected.items():
        # four standard errors of a share of 2000 draws
        error = 4 * (share * (1 - share) / 2000) ** 0.5
        assert drawn[chain] / 2000 == pytest.approx(share, abs=error)


def test_closable_chains_carry_their_weight():
    table = sample_chains(
        graph_of(EVENTS, 5, 4), histories_of([[0, 1]], [0]), np.array([2]), seed=0
    )
    weights = {
        (int(i0), int(u1)): float(weight)
        for i0, u1, weight in zip(table.first_item, table.neighbour, table.weight)
    }
    assert table.num_closable.tolist() == [3]  # 0-1-2, 1-1-2, 0-2-2
    assert weights[0, 2] == pytest.approx(1 / 4)
    # neighbour 1 shares two items: 2/4 over item 0, 2/3 over item 1
    assert weights.get((0, 1), 2 / 4) == pytest.approx(2 / 4)
    assert weights.get((1, 1), 2 / 3) == pytest.approx(2 / 3)


def test_without_a_closed_chain_an_open_one_and_else_an_empty_row_is_counted():
    graph = graph_of(EVENTS, 5, 5)
    # row 0: nobody took 4, but after 1, the last of the history, neighbour 3 took 3 and
    # neighbour 1 took 2 (smaller index wins the tie); row 1: an empty history
    histories = histories_of([[0, 1], []], [0, 0])
    table = sample_chains(graph, histories, np.array([4, 2]), seed=0, num_chains=3)
    assert table.query.tolist() == [0, 1]
    assert table.fallback.tolist() == [OPEN, HISTORY_ONLY]
    assert table.first_item.tolist() == [1, -1]
    assert table.neighbour.tolist() == [1, -1]
    assert table.second_item.tolist() == [2, -1]
    assert not table.is_closed.any()
    assert table.num_closable.tolist() == [0, 0]


def test_only_the_last_items_of_a_history_start_a_chain():
    graph = graph_of(EVENTS, 5, 4)
    table = sample_chains(graph, histories_of([[1, 0]], [0]), np.array([2]), seed=0, max_history=1)
    assert set(table.first_item.tolist()) == {0}
    assert table.num_closable.tolist() == [2]


def random_events(num_users, num_items, per_user, seed):
    rng = np.random.default_rng(seed)
    events = []
    for user in range(num_users):
        times = np.sort(rng.integers(0, 1000, per_user))
        events += list(zip([user] * per_user, rng.integers(0, num_items, per_user), times))
    return events


def columns_of(table: ChainTable) -> list:
    columns = (table.query, table.first_item, table.neighbour, table.second_item, table.weight)
    return [column.tolist() for column in (*columns, table.fallback, table.num_closable)]


def queries_for(reading, num_rows, num_items, seed=4):
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, num_items, 4).tolist() for _ in range(num_rows)]
    candidate = rng.integers(0, num_items, num_rows) if reading == "candidate-closed" else None
    return rows, candidate


@pytest.mark.parametrize("max_neighbours", [4, 500])
@pytest.mark.parametrize("reading", READINGS)
def test_a_planted_future_changes_no_chain(reading, max_neighbours):
    past = [event for event in random_events(25, 9, 12, seed=1) if event[2] < 500]
    later = past + [(user, item, 500) for user in range(25) for item in range(9)]
    later.sort(key=lambda event: (event[0], event[2]))
    rows, candidate = queries_for(reading, 25, 9)
    histories = histories_of(rows, range(25), np.full(25, 500))
    before, after = (
        sample_chains(
            graph_of(events, 25, 9), histories, candidate, reading=reading, seed=3,
            max_neighbours=max_neighbours,
        )
        for events in (past, later)
    )  # fmt: skip
    assert before.is_closed.any()
    assert columns_of(before) == columns_of(after)


@pytest.mark.parametrize("max_neighbours", [4, 500])
@pytest.mark.parametrize("reading", READINGS)
def test_the_users_own_edges_are_never_followed(reading, max_neighbours):
    events = random_events(15, 7, 12, seed=2)
    rows, candidate = queries_for(reading, 8, 7)
    for user in (0, 7, 14):
        others = [event for event in events if event[0] != user]
        full, without = (
            sample_chains(
                graph_of(known, 15, 7), histories_of(rows, [user] * 8, np.full(8, 800)), candidate,
                reading=reading, seed=3, max_neighbours=max_neighbours,
            )
            for known in (events, others)
        )  # fmt: skip
        assert user not in full.neighbour
        assert columns_of(full) == columns_of(without)


@pytest.mark.parametrize("reading", READINGS)
def test_a_query_gets_the_same_chains_alone_as_in_a_batch(reading):
    graph = graph_of(random_events(30, 6, 10, seed=5), 30, 6)
    rows, candidate = queries_for(reading, 30, 6)
    histories = histories_of(rows, range(30))

    def run(picked):
        part = None if candidate is None else candidate[picked]
        return sample_chains(
            graph, histories.take(picked), part, reading=reading, seed=9, max_neighbours=5
        )

    whole = run(np.arange(30))
    for row in (0, 13, 29):
        alone = run(np.array([row]))
        mine = whole.query == row
        for name in ("first_item", "neighbour", "second_item", "weight", "fallback"):
            assert getattr(alone, name).tolist() == getattr(whole, name)[mine].tolist()


def test_thinned_events_estimate_the_number_of_closable_chains():
    # 1000 neighbours took item 0 then item 1; 100 of them are followed, each for ten
    events = [event for u in range(1, 1001) for event in ((u, 0, u), (u, 1, 2000 + u))]
    table = sample_chains(
        graph_of(events, 1001, 2), histories_of([[0]], [0]), np.array([1]), seed=0,
        max_neighbours=100,
    )  # fmt: skip
    assert table.num_closable.tolist() == [1000]
    assert (table.fallback == CLOSED).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reading": "half-closed"}, "reading must be one of candidate-closed, history-closed"),
        ({"reading": "history-closed"}, "history-closed needs no candidate"),
        ({"candidate": None}, "candidate-closed needs a candidate"),
        ({"candidate": np.array([4])}, r"candidate must lie in -1 \.\. 3"),
        ({"num_chains": 0}, "must be at least 1"),
        ({"histories": histories_of([[9]], [0])}, r"histories must lie in -1 \.\. 3"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(change, message):
    arguments = {"histories": histories_of([[0]], [0]), "candidate": np.array([2]), "seed": 0}
    with pytest.raises(ValueError, match=message):
        sample_chains(graph_of(EVENTS, 5, 4), **(arguments | change))
