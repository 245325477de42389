"""Chains against a slow enumeration of all of them, and against the future and the user's edges."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrec.data.dataset import InteractionLog
from reasonrec.graph import kernels
from reasonrec.graph.build import InteractionGraph
from reasonrec.graph.config import READINGS
from reasonrec.graph.sampling import (
    HISTORY_ONLY,
    OPEN,
    ChainTable,
    count_closable,
    count_closable_everywhere,
    sample_chains,
)
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
    rate = {item: 1 / max(degree[item], 1) if degree_weight else 1.0 for item in known}
    weights, chance = {}, {}
    for who, items in taken.items():
        shared = [item for item in known if item in items]
        mass = sum(rate[item] for item in shared)
        chance_of_who = mass if overlap_weight else 1.0
        if candidate is None and len(shared) > 1:
            chance[who] = chance_of_who
            for n, a in enumerate(shared):
                for b in shared[n + 1 :]:
                    # a first and then b among the rest, or b first
                    both = rate[a] / mass * rate[b] / (mass - rate[a])
                    both += rate[b] / mass * rate[a] / (mass - rate[b])
                    weights[a, who, b] = chance_of_who * both
        elif candidate is not None and candidate in items and shared:
            chance[who] = chance_of_who
            for item in shared:
                weights[item, who, candidate] = chance_of_who * rate[item] / mass
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
    num_closable = count_closable(
        graph, histories_of(rows, users, asked), candidates, reading=reading
    )
    for row in range(num_rows):
        weights, chance = slow_chains(
            events, users[row], rows[row], None if candidates is None else candidates[row],
            asked[row] if timed else None,
            overlap_weight=overlap_weight, degree_weight=degree_weight,
        )  # fmt: skip
        assert num_closable[row] == len(weights)
        mine = np.flatnonzero(table.query == row)
        closed = [m for m in mine if table.is_closed[m]]
        assert len(closed) == min(num_chains, len(chance))
        assert len(mine) == max(len(closed), 1)
        assert len({table.neighbour[m] for m in closed}) == len(closed)
        for m in closed:
            chain = (table.first_item[m], table.neighbour[m], table.second_item[m])
            assert table.weight[m] == pytest.approx(weights[chain], rel=1e-5)  # float32


# user 0 holds 0 and 1, and item 2 is asked about; who else took what:
EVENTS = [
    (1, 0, 1), (1, 1, 2), (1, 2, 3),
    (2, 0, 1), (2, 2, 2),
    (3, 1, 5), (3, 3, 6),
    (4, 0, 7),
]  # fmt: skip


def drawn_from(graph, history, candidate, *, num_rows=4000, **settings) -> ChainTable:
    """Return the chains of one question asked at many late moments, each drawn anew."""
    asked = 10**6 + np.arange(num_rows)
    histories = histories_of([history] * num_rows, [0] * num_rows, asked)
    wanted = None if candidate is None else np.full(num_rows, candidate)
    return sample_chains(graph, histories, wanted, seed=0, **settings)


def check_shares(drawn: Counter, expected: dict) -> None:
    """Compare counts with shares that sum to 1 by a chi-square test."""
    from scipy.stats import chisquare

    assert set(drawn) <= set(expected)
    total = sum(drawn.values())
    # one draw in 10,000 would fail by chance; the rows are always the same ones
    rare = [key for key in expected if expected[key] * total < 5]
    counts = [drawn[key] for key in expected if key not in rare]
    shares = [expected[key] for key in expected if key not in rare]
    counts.append(total - sum(counts))
    shares.append(1 - sum(shares))
    if shares[-1] * total < 1e-6:
        assert counts.pop() == 0
        shares.pop()
    result = chisquare(counts, np.array(shares) / sum(shares) * total)
    assert result.pvalue > 1e-4


def test_a_chain_is_drawn_as_often_as_its_weight_says():
    # item 0 has 3 events by others, item 1 has 2: weights 1/3 and 1/2
    # neighbour 1 shares both: 1/3 + 1/2 = 5/6; neighbour 2 shares item 0: 1/3
    # so neighbour 1 comes first with 5/6 / (5/6 + 1/3) = 5/7, over item 1 with (1/2) / (5/6) = 3/5
    table = drawn_from(graph_of(EVENTS, 5, 4), [0, 1], 2, num_chains=1)
    drawn = Counter(zip(table.first_item.tolist(), table.neighbour.tolist()))
    check_shares(drawn, {(1, 1): 5 / 7 * 3 / 5, (0, 1): 5 / 7 * 2 / 5, (0, 2): 2 / 7})
    assert table.weight[table.neighbour == 2] == pytest.approx(1 / 3)


def crowd(num_users: int, num_items: int, *, num_takers: int) -> list[tuple[int, int, int]]:
    """Return 6 events each on the items below ``num_items``; a few users took that one too."""
    rng = np.random.default_rng(0)
    shares = 1 / np.arange(1.0, num_items + 1)
    events = []
    for user in range(num_users):
        taken = rng.choice(num_items, 6, replace=False, p=shares / shares.sum()).tolist()
        if user and user <= num_takers:
            taken.append(num_items)
        events += [(user, item, n) for n, item in enumerate(taken)]
    return events


@pytest.mark.parametrize("degree_weight", [True, False])
@pytest.mark.parametrize("overlap_weight", [True, False])
@pytest.mark.parametrize("reading", READINGS)
def test_chains_found_by_proposals_and_by_counting_have_the_same_chances(
    reading, overlap_weight, degree_weight
):
    # 12 of 400 close on the candidate, so that some rows need both ways
    is_history = reading == "history-closed"
    events = crowd(300 if is_history else 400, 12, num_takers=12)
    settings = {"overlap_weight": overlap_weight, "degree_weight": degree_weight}
    graph, history = graph_of(events, 400, 13), list(range(10))
    candidate = None if is_history else 12
    weights, chance = slow_chains(events, 0, history, candidate, None, **settings)
    table = drawn_from(graph, history, candidate, reading=reading, num_chains=2, **settings)
    first, second = table.neighbour.reshape(-1, 2).T
    share = {who: value / sum(chance.values()) for who, value in chance.items()}
    check_shares(Counter(first.tolist()), share)
    # the second is drawn from those left over by the first
    odds = sum(p / (1 - p) for p in share.values())
    later = {who: p * (odds - p / (1 - p)) for who, p in share.items()}
    check_shares(Counter(second.tolist()), later)
    # which items the first chain goes over; chain by chain there would be too many to compare
    ways = Counter()
    for (i0, _, i1), weight in weights.items():
        ways[i0, i1] += weight / sum(weights.values())
    drawn = Counter(zip(table.first_item[::2].tolist(), table.second_item[::2].tolist()))
    check_shares(drawn, ways)
    for m in range(0, 200, 7):
        chain = (table.first_item[m], table.neighbour[m], table.second_item[m])
        assert table.weight[m] == pytest.approx(weights[chain], rel=1e-5)


def test_a_candidate_with_many_takers_is_asked_about_one_by_one():
    # 5000 took item 2, more than are noted; 1500 of them took item 0 too, as did 1500 others
    events = [(u, i, u) for u in range(1, 5001) for i in ([0, 2] if u <= 1500 else [1, 2])]
    graph = graph_of(events + [(u, 0, u) for u in range(5001, 6501)], 6501, 3)
    table = drawn_from(graph, [0], 2, num_rows=1000)
    assert table.is_closed.all() and len(table) == 3000
    assert table.neighbour.max() <= 1500
    tenths = Counter(((table.neighbour - 1) // 150).tolist())
    check_shares(tenths, dict.fromkeys(range(10), 0.1))
    assert (graph.arrays.event_item[table.edge_event] == [0, 2]).all()
    assert (graph.arrays.event_user[table.edge_event] == table.users).all()
    assert count_closable(graph, histories_of([[0]], [0]), np.array([2])).tolist() == [1500]


def test_a_second_time_on_an_item_gives_no_second_chance():
    # 40 took both items, neighbour 1 item 0 five times; among 1004 events proposals find many
    events = [(1, 0, n) for n in range(1, 6)] + [(1, 1, 6)]
    events += [(u, i, i + 1) for u in range(2, 41) for i in (0, 1)]
    events += [(u, 0, 9) for u in range(41, 1001)]
    graph = graph_of(events, 1001, 2)
    table = drawn_from(graph, [0], 1, num_chains=1)
    check_shares(Counter(table.neighbour.tolist()), dict.fromkeys(range(1, 41), 1 / 40))


def slow_walks(events, user, history, candidate, num_neighbours):
    """Return {(items, users): chance} of every walk that closes, i0 first; see sample_chains."""
    taken, takers = defaultdict(list), defaultdict(list)
    for who, item, _ in events:
        taken[who].append(item)
        takers[item].append(who)
    rate = {item: 1 / max(len([w for w in takers[item] if w != user]), 1) for item in history}
    walks = {}

    def step(items, users, chance):
        for who in takers[items[0]]:
            if who == user or who in users:
                continue
            here = chance / len(takers[items[0]])
            if len(users) + 1 == num_neighbours:
                shared = [item for item in history if item in taken[who] and item != items[-1]]
                for item in shared:
                    share = rate[item] / sum(rate[other] for other in shared)
                    key = ((item, *items), (who, *users))
                    walks[key] = walks.get(key, 0) + here * share
                continue
            for item in taken[who]:
                if item not in history and item not in items:
                    step((item, *items), (who, *users), here / len(taken[who]))

    for last in history if candidate is None else [candidate]:
        step((last,), (), 1.0)
    return walks


@pytest.mark.parametrize("num_neighbours", [2, 3])
@pytest.mark.parametrize("reading", READINGS)
def test_a_longer_chain_is_as_likely_as_its_walk(reading, num_neighbours):
    rng = np.random.default_rng(3)
    events = [
        (user, item, n)
        for user in range(9)
        for n, item in enumerate(rng.permutation(8)[:4].tolist())
    ]
    history, candidate = [0, 1], None if reading == "history-closed" else 7
    walks = slow_walks(events, 0, history, candidate, num_neighbours)
    table = drawn_from(
        graph_of(events, 9, 8), history, candidate, reading=reading, num_chains=1,
        num_neighbours=num_neighbours,
    )  # fmt: skip
    closed = table.is_closed
    found = list(
        zip(map(tuple, table.items[closed].tolist()), map(tuple, table.users[closed].tolist()))
    )
    total = sum(walks.values())
    check_shares(Counter(found), {walk: chance / total for walk, chance in walks.items()})
    for chain, weight in list(zip(found, table.weight[closed]))[:100]:
        assert weight == pytest.approx(walks[chain], rel=1e-5)


def test_longer_chains_of_a_question_differ_in_their_first_neighbour():
    events = random_events(40, 10, 6, seed=8)
    rows, candidate = queries_for("candidate-closed", 30, 10)
    table = sample_chains(
        graph_of(events, 40, 10), histories_of(rows, range(30)), candidate, seed=0, num_neighbours=2
    )
    edges = {(user, item) for user, item, _ in events}
    assert table.is_closed.any()
    for row in range(30):
        mine = np.flatnonzero((table.query == row) & table.is_closed)
        assert len(set(table.users[mine, 0])) == len(mine)
        for m in mine:
            (i0, i1, i2), (u1, u2) = table.items[m], table.users[m]
            assert {(u1, i0), (u1, i1), (u2, i1), (u2, i2)} <= edges
            assert i2 == candidate[row] and i0 in rows[row] and i1 not in rows[row]
            assert len({row, u1, u2}) == 3


def test_a_chain_carries_the_ratings_of_its_edges_but_never_the_one_asked_for():
    # user 0 gave item 0 a 4 and asks about item 2; neighbour 1 gave 0, 1, 2: 5, 1, 2
    log = InteractionLog(
        user_index=np.array([0, 1, 1, 1], np.int32),
        item_index=np.array([0, 0, 1, 2], np.int32),
        num_users=2,
        rating=np.array([4, 5, 1, 2], np.float32),
    )
    plain = histories_of([[0, 1]], [0])
    histories = Histories(
        plain.user_index, plain.item_index, plain.offsets, rating=np.array([4, np.nan], np.float32)
    )
    graph = InteractionGraph.build(log, 3)
    table = sample_chains(graph, histories, np.array([2]), seed=0)
    assert (table.edge_rating is not None) and (table.user_rating is not None)
    i0 = int(table.first_item[0])
    assert table.edge_rating.tolist() == [[{0: 5.0, 1: 1.0}[i0], 2.0]]
    assert table.edge_event.tolist() == [[1 + i0, 3]]
    assert table.user_rating.tolist() == pytest.approx([{0: 4.0, 1: np.nan}[i0]], nan_ok=True)
    assert np.isnan(table.closing_rating).all()
    known = sample_chains(graph, histories, reading="history-closed", seed=0)
    assert known.items.tolist() == [[0, 1]]
    assert known.edge_rating.tolist() == [[5.0, 1.0]]
    assert (known.user_rating.tolist(), np.isnan(known.closing_rating).tolist()) == ([4.0], [True])


@settings(max_examples=60, deadline=None)
@given(worlds(), st.booleans())
def test_counting_the_whole_catalogue_is_counting_each_candidate(world, timed):
    events, num_users, num_items, rng = world
    graph = graph_of(events, num_users, num_items, timed=timed)
    users = rng.integers(-1, num_users, 4)
    rows = [rng.integers(0, num_items, rng.integers(0, 5)).tolist() for _ in range(4)]
    histories = histories_of(rows, users, rng.integers(0, 18, 4))
    everywhere = count_closable_everywhere(graph, histories)
    for item in range(num_items):
        one = count_closable(graph, histories, np.full(4, item))
        assert everywhere[:, item].tolist() == one.tolist()


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
    assert count_closable(graph, histories, np.array([4, 2])).tolist() == [0, 0]
    none = sample_chains(graph, histories, np.array([4, 2]), seed=0, num_chains=3, open_from=0)
    assert none.fallback.tolist() == [HISTORY_ONLY, HISTORY_ONLY]


def test_only_the_last_items_of_a_history_start_a_chain():
    graph = graph_of(EVENTS, 5, 4)
    histories, candidate = histories_of([[1, 0]], [0]), np.array([2])
    table = sample_chains(graph, histories, candidate, seed=0, max_history=1)
    assert set(table.first_item.tolist()) == {0}
    assert count_closable(graph, histories, candidate, max_history=1).tolist() == [2]


def random_events(num_users, num_items, per_user, seed):
    rng = np.random.default_rng(seed)
    events = []
    for user in range(num_users):
        times = np.sort(rng.integers(0, 1000, per_user))
        events += list(zip([user] * per_user, rng.integers(0, num_items, per_user), times))
    return events


def columns_of(table: ChainTable) -> list:
    columns = (table.query, table.items, table.users, table.weight, table.fallback)
    return [column.tolist() for column in columns]


def queries_for(reading, num_rows, num_items, seed=4):
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, num_items, 4).tolist() for _ in range(num_rows)]
    candidate = rng.integers(0, num_items, num_rows) if reading == "candidate-closed" else None
    return rows, candidate


@pytest.mark.parametrize("size", ["counted", "proposed"])
@pytest.mark.parametrize("reading", READINGS)
def test_a_planted_future_changes_no_chain(reading, size):
    num_users, per_user = (25, 12) if size == "counted" else (400, 30)
    past = [e for e in random_events(num_users, 9, per_user, seed=1) if e[2] < 500]
    later = past + [(user, item, 500) for user in range(num_users) for item in range(9)]
    later.sort(key=lambda event: (event[0], event[2]))
    rows, candidate = queries_for(reading, 25, 9)
    histories = histories_of(rows, range(25), np.full(25, 500))
    before, after = (
        sample_chains(graph_of(events, num_users, 9), histories, candidate, reading=reading, seed=3)
        for events in (past, later)
    )
    assert before.is_closed.any()
    assert columns_of(before) == columns_of(after)


@pytest.mark.parametrize("size", ["counted", "proposed"])
@pytest.mark.parametrize("reading", READINGS)
def test_the_users_own_edges_are_never_followed(reading, size):
    num_users, per_user = (15, 12) if size == "counted" else (400, 30)
    events = random_events(num_users, 7, per_user, seed=2)
    rows, candidate = queries_for(reading, 8, 7)
    for user in (0, 7, 14):
        others = [event for event in events if event[0] != user]
        full, without = (
            sample_chains(
                graph_of(known, num_users, 7), histories_of(rows, [user] * 8, np.full(8, 800)),
                candidate, reading=reading, seed=3,
            )
            for known in (events, others)
        )  # fmt: skip
        assert user not in full.neighbour
        assert columns_of(full) == columns_of(without)


@pytest.mark.parametrize("num_neighbours", [1, 2])
@pytest.mark.parametrize("reading", READINGS)
def test_neither_order_nor_threads_change_a_chain(reading, num_neighbours):
    graph = graph_of(random_events(200, 20, 10, seed=5), 200, 20)
    rows, candidate = queries_for(reading, 1200, 20)
    histories = histories_of(rows, np.arange(1200) % 200)

    def run(picked, num_threads):
        part = None if candidate is None else candidate[picked]
        return sample_chains(
            graph, histories.take(picked), part, reading=reading, seed=9, num_threads=num_threads,
            num_neighbours=num_neighbours,
        )  # fmt: skip

    whole = run(np.arange(1200), 1)
    assert columns_of(run(np.arange(1200), 3)) == columns_of(whole)
    order = np.random.default_rng(0).permutation(1200)
    mixed = run(order, 2)
    for place in range(0, 1200, 97):
        here, there = mixed.query == place, whole.query == order[place]
        for name in ("items", "users", "weight", "fallback"):
            assert getattr(mixed, name)[here].tolist() == getattr(whole, name)[there].tolist()


def test_times_that_lie_too_far_apart_are_refused():
    with pytest.raises(ValueError, match="Are some of the times in milliseconds"):
        graph_of([(0, 0, 0), (0, 1, 1_600_000_000_000)], 1, 2)


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


def test_the_filter_knows_every_pair_and_few_others():
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 500, 4000), rng.integers(0, 300, 4000)
    made = kernels.filter_of_pairs(users.astype(np.int32), items.astype(np.int32))

    def is_set(user: np.ndarray, item: np.ndarray) -> np.ndarray:
        key = (user.astype(np.uint64) << np.uint64(32) | item.astype(np.uint64)) * np.uint64(
            0x9E3779B97F4A7C15
        )
        place = (key >> np.uint64(24)) & np.uint64(8 * len(made) - 1)
        return (made[place >> np.uint64(3)] >> (place & np.uint64(7)).astype(np.uint8)) & 1 == 1

    assert is_set(users, items).all()
    taken = np.zeros((500, 300), bool)
    taken[users, items] = True
    user, item = np.nonzero(~taken)
    assert is_set(user, item).mean() < 0.15  # 8 bits or more an event: at most 1 - exp(-1 / 8)
