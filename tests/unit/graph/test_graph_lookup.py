"""The look-up against a slow obvious one, and against the future and the user's own events."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrec.data.dataset import InteractionLog
from reasonrec.graph.build import InteractionGraph
from reasonrec.graph.lookup import LookupTable, look_up
from reasonrec.records import Link

# one event a row: user, item, time; sorted by user, then time
SHOP = [
    (0, 0, 10), (0, 1, 20), (0, 2, 30),
    (1, 0, 11), (1, 3, 21), (1, 4, 31),
    (2, 1, 5), (2, 0, 12), (2, 4, 22), (2, 3, 32),
    (3, 5, 40), (3, 0, 50), (3, 5, 60),
]  # fmt: skip


def log_of(events: list[tuple[int, int, int]], num_users: int, *, timed: bool = True):
    columns = np.array(events, np.int64).reshape(-1, 3).T
    return InteractionLog(
        user_index=columns[0].astype(np.int32),
        item_index=columns[1].astype(np.int32),
        num_users=num_users,
        timestamp=columns[2] if timed else None,
    )


def ask(
    graph: InteractionGraph, user: int, via: int, history: list[int], **settings
) -> LookupTable:
    return look_up(
        graph,
        **{
            "user_index": np.array([user]),
            "via_item": np.array([via]),
            "exclude_items": (np.array(history, np.int32), np.array([0, len(history)])),
            "asked_at": None,
            "seed": 0,
            **settings,
        },
    )


@pytest.fixture
def shop() -> InteractionGraph:
    return InteractionGraph.build(log_of(SHOP, 4), 6)


def test_followers_of_an_item_are_weighted_by_distance_and_summed_over_neighbours(shop):
    table = ask(shop, 0, 0, [0], overlap_weight=False)
    # item 3: 1/1 from user 1, 1/2 from user 2; item 4: 1/2 from user 1, 1/1 from user 2;
    # item 5: 1/1 from user 3. The tie of 3 and 4 goes to the smaller index
    assert table.item_index.tolist() == [[3, 4, 5]]
    assert table.weight.tolist() == [[1.5, 1.5, 1.0]]
    assert table.num_neighbours.tolist() == [[2, 2, 1]]
    assert table.neighbour_index.tolist() == [[1, 2, 3]]


def test_a_neighbour_with_a_shared_item_weighs_twice(shop):
    table = ask(shop, 0, 0, [1, 0], num_links=2)
    # user 2 shares item 1 with the history, so 2 x (4 at one step, 3 at two); user 1 shares nothing
    assert table.item_index.tolist() == [[4, 3]]
    assert table.weight.tolist() == [[2 * 1 + 1 / 2, 1 + 2 * 1 / 2]]
    assert table.neighbour_index.tolist() == [[2, 1]]  # 3: users 1 and 2 gave 1 each, 1 is named


def test_items_before_via_count_with_the_reverse_share(shop):
    table = ask(shop, 0, 0, [0], overlap_weight=False, reverse_share=0.3, num_links=4)
    # user 2 took 1 a step before: .3. user 3 took 5 after (1) and before (counted once, after)
    assert table.item_index.tolist() == [[3, 4, 5, 1]]
    np.testing.assert_allclose(table.weight, [[1.5, 1.5, 1.0, 0.3]], rtol=1e-6)


def test_what_the_user_holds_already_is_not_returned(shop):
    assert ask(shop, 0, 0, [3, 5, 0], num_links=2).item_index.tolist() == [[4, -1]]


def test_evidence_must_be_older_than_the_question(shop):
    table = ask(shop, 0, 0, [0], asked_at=np.array([22]))
    # user 1 took 3 at 21; user 2 took 4 at 22, which is not before 22; user 3 took 0 at 50
    assert table.item_index.tolist() == [[3, -1, -1]]


def test_an_unknown_user_excludes_nobody(shop):
    assert 1 in ask(shop, -1, 0, [0], num_links=5).item_index  # user 0 took 1 right after 0
    assert 1 not in ask(shop, 0, 0, [0], num_links=5).item_index


def test_no_item_and_an_item_nobody_took_find_nothing(shop):
    assert ask(shop, 0, -1, []).item_index.tolist() == [[-1, -1, -1]]
    lonely = InteractionGraph.build(log_of(SHOP, 4), 7)
    assert ask(lonely, 0, 6, []).weight.tolist() == [[0, 0, 0]]


def test_a_row_becomes_a_record_without_empty_links(shop):
    record = ask(shop, 0, 0, [0], asked_at=np.array([22])).record(0, via=0)
    assert record.via_item_index == 0
    assert record.links == (Link(3, 1.0, 1, 1),)


def test_an_empty_log_answers_nothing():
    graph = InteractionGraph.build(log_of([], 2), 3)
    assert ask(graph, 0, 1, [2]).item_index.tolist() == [[-1, -1, -1]]


@st.composite
def worlds(draw):
    num_users, num_items = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    seed = draw(st.integers(0, 10_000))
    rng = np.random.default_rng(seed)
    num_events = draw(st.integers(0, 40))
    users = np.sort(rng.integers(0, num_users, num_events))
    items = rng.integers(0, num_items, num_events)
    times = rng.integers(0, 15, num_events)
    events = sorted(zip(users, items, times), key=lambda event: (event[0], event[2]))
    return events, num_users, num_items, rng


def slow_look_up(events, user, via, history, asked_at, *, window, reverse, overlap, like=None):
    """Return {item: (weight, {neighbour: share})} by walking over plain lists."""
    logs = defaultdict(list)
    for who, item, time in events:
        logs[who].append((item, time))
    recent = set(history[-10:]) - {via}
    shares = defaultdict(dict)
    for who, full in logs.items():
        if who == user:
            continue
        seen = [item for item, time in full if asked_at is None or time < asked_at]
        times = [time for _, time in full]
        if via not in seen:
            continue
        at = seen.index(via)
        factor = 1 + len(recent & set(seen)) * overlap
        reached = [(at + s, 1 / s) for s in range(1, window + 1)]
        reached += [(at - s, reverse / s) for s in range(1, window + 1)]
        for place, share in reached:
            if share == 0 or not 0 <= place < len(seen):
                continue
            item = seen[place]
            if item not in history and item != via and who not in shares[item]:
                seconds = abs(times[place] - times[at])
                pace = 3 if like is not None and name_of(seconds) == name_of(like) else 1
                shares[item][who] = factor * share * pace
    return {item: by_user for item, by_user in shares.items() if by_user}


def name_of(seconds):
    """Return what a time is called, of those that toy worlds know."""
    return "at once" if seconds < 1 else "seconds" if seconds < 60 else "minutes"


def test_steps_at_the_pace_of_the_user_count_more(shop):
    # user 1 took 3 ten seconds after 0 and 4 twenty after; user 2 took 4 after ten, 1 seven before
    alike = ask(shop, 0, 0, [0], num_links=4, overlap_weight=False, reverse_share=0.5,
                same_pace=2.0, seconds_since=np.array([30]))  # fmt: skip
    assert alike.item_index.tolist() == [[3, 4, 5, 1]]
    assert alike.weight.tolist() == [[4.5, 4.5, 3.0, 1.5]]
    # nobody went on at once, or within the hour; and where nobody knows, nothing counts more
    for seconds in (0, 100, -1):
        other = ask(shop, 0, 0, [0], num_links=4, overlap_weight=False, reverse_share=0.5,
                    same_pace=2.0, seconds_since=np.array([seconds]))  # fmt: skip
        assert other.weight.tolist() == [[1.5, 1.5, 1.0, 0.5]]


@settings(max_examples=150, deadline=None)
@given(
    worlds(), st.booleans(), st.booleans(), st.sampled_from([0.0, 0.3]), st.integers(1, 4),
    st.sampled_from([None, 0, 3]),
)  # fmt: skip
def test_fast_look_up_equals_the_slow_one(world, timed, overlap, reverse, window, pace):
    events, num_users, num_items, rng = world
    graph = InteractionGraph.build(log_of(events, num_users, timed=timed), num_items)
    num_rows = 12
    users = rng.integers(-1, num_users, num_rows)
    vias = rng.integers(0, num_items, num_rows)
    asked = rng.integers(0, 18, num_rows)
    histories = [rng.integers(0, num_items, rng.integers(0, 4)).tolist() for _ in range(num_rows)]
    table = look_up(
        graph,
        user_index=users,
        via_item=vias,
        exclude_items=(
            np.array([item for row in histories for item in row], np.int32),
            np.cumsum([0] + [len(row) for row in histories]),
        ),
        asked_at=asked,
        num_links=num_items,
        window=window,
        overlap_weight=overlap,
        reverse_share=reverse,
        same_pace=2.0,
        seconds_since=None if pace is None else np.full(num_rows, pace),
        seed=3,
    )
    for row in range(num_rows):
        expected = slow_look_up(
            events, users[row], vias[row], histories[row], asked[row] if timed else None,
            window=window, reverse=reverse, overlap=overlap, like=pace if timed else None,
        )  # fmt: skip
        links = table.record(row, int(vias[row])).links
        assert {link.item_index for link in links} == set(expected)
        for link in links:
            shares = expected[link.item_index]
            # float32 keeps 7 digits
            assert link.weight == pytest.approx(sum(shares.values()), rel=1e-6)
            assert link.num_neighbours == len(shares)
            best = max(shares.values())
            assert link.neighbour_index == min(u for u, share in shares.items() if share == best)
        order = [(-link.weight, link.item_index) for link in links]
        assert order == sorted(order)


def random_log(num_users: int, num_items: int, per_user: int, seed: int):
    rng = np.random.default_rng(seed)
    events = []
    for user in range(num_users):
        times = np.sort(rng.integers(0, 1000, per_user))
        events += [
            (user, int(item), int(t))
            for item, t in zip(rng.integers(0, num_items, per_user), times)
        ]
    return events


def rows_of(table: LookupTable, rows=slice(None)) -> list:
    columns = (table.item_index, table.weight, table.num_neighbours, table.neighbour_index)
    return [column[rows].tolist() for column in columns]


@pytest.mark.parametrize("max_neighbours", [3, 200])
def test_a_planted_future_changes_nothing(max_neighbours):
    events = random_log(30, 8, 12, seed=1)
    asked_at = 500
    # every user takes the otherwise unknown item 8 right after the question, and item 0 again
    past = [event for event in events if event[2] < asked_at]
    planted = past + [(u, item, asked_at) for u in range(30) for item in (0, 8)]
    planted.sort(key=lambda event: (event[0], event[2]))
    settings = {
        "user_index": np.arange(30) - 1,
        "via_item": np.arange(30) % 8,
        "exclude_items": (np.arange(30, dtype=np.int32) % 5, np.arange(31)),
        "asked_at": np.full(30, asked_at),
        "max_neighbours": max_neighbours,
        "seed": 5,
    }
    before = look_up(InteractionGraph.build(log_of(past, 30), 9), **settings)
    after = look_up(InteractionGraph.build(log_of(planted, 30), 9), **settings)
    assert (before.item_index >= 0).any()
    assert rows_of(before) == rows_of(after)


@pytest.mark.parametrize("max_neighbours", [3, 200])
def test_the_answer_is_the_one_of_a_graph_without_the_user(max_neighbours):
    events = random_log(20, 6, 15, seed=2)
    for user in range(0, 20, 5):
        settings = {
            "user_index": np.full(6, user),
            "via_item": np.arange(6),
            "exclude_items": (np.zeros(0, np.int32), np.zeros(7, np.int64)),
            "asked_at": np.full(6, 700),
            "max_neighbours": max_neighbours,
            "seed": 5,
        }
        others = [event for event in events if event[0] != user]
        full = look_up(InteractionGraph.build(log_of(events, 20), 6), **settings)
        without = look_up(InteractionGraph.build(log_of(others, 20), 6), **settings)
        assert rows_of(full) == rows_of(without)


def test_order_of_rows_and_size_of_the_batch_change_nothing():
    graph = InteractionGraph.build(log_of(random_log(60, 5, 10, seed=3), 60), 5)
    users, vias = np.arange(60), np.arange(60) % 5
    history = np.arange(60, dtype=np.int32) % 3

    def run(rows):
        return look_up(
            graph,
            user_index=users[rows],
            via_item=vias[rows],
            exclude_items=(history[rows], np.arange(len(rows) + 1)),
            asked_at=None,
            max_neighbours=7,
            seed=11,
        )

    whole = run(np.arange(60))
    shuffled = np.random.default_rng(0).permutation(60)
    assert rows_of(whole, shuffled) == rows_of(run(shuffled))
    assert rows_of(whole, slice(17, 18)) == rows_of(run(np.array([17])))


def test_a_popular_item_is_sampled_evenly_and_the_seed_moves_the_sample():
    # users 0..99 take item 0 at time u, then item u + 1: the witness says who was drawn
    events = [event for u in range(100) for event in ((u, 0, u), (u, u + 1, u + 200))]
    graph = InteractionGraph.build(log_of(events, 100), 101)

    def drawn(seed):
        table = ask(graph, -1, 0, [], max_neighbours=10, num_links=100, seed=seed)
        return sorted(table.neighbour_index[table.neighbour_index >= 0].tolist())

    for seed in range(5):
        assert [user // 10 for user in drawn(seed)] == list(range(10))  # one of every ten
    assert len({tuple(drawn(seed)) for seed in range(20)}) > 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_links": 0}, "num_links must be at least 1"),
        ({"window": 0}, "window must be at least 1"),
        ({"max_neighbours": 0}, "max_neighbours must be at least 1"),
        ({"reverse_share": 1.5}, "reverse_share from 0 to 1"),
        ({"same_pace": -0.5}, "same_pace must be at least 0"),
        ({"same_pace": 1.0, "seconds_since": np.zeros(2)}, "seconds_since"),
        ({"via_item": np.array([6])}, r"via_item must lie in -1 \.\. 5"),
        ({"user_index": np.array([4])}, r"user_index must lie in -1 \.\. 3"),
        ({"user_index": np.array([0, 1])}, "one value a row"),
        ({"exclude_items": (np.array([0]), np.array([0, 2]))}, "offsets of exclude_items"),
        ({"exclude_items": (np.array([-1]), np.array([0, 1]))}, "items of the catalogue"),
    ],
)
def test_what_a_compiled_loop_could_not_survive_is_refused(shop, change, message):
    with pytest.raises(ValueError, match=message):
        ask(shop, 0, 0, [0], **change)


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([(0, 9, 1)], "item_index must lie in"),
        ([(1, 0, 1), (0, 0, 2)], "sorted by user"),
        ([(0, 0, 2), (0, 1, 1)], "sorted by time"),
    ],
)
def test_a_log_that_breaks_its_contract_is_refused(events, message):
    with pytest.raises(ValueError, match=message):
        InteractionGraph.build(log_of(events, 2), 3)
