"""People alike against a slow obvious search, and against the future and the user's own events."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.graph.test_graph_lookup import log_of

from reasonrec.graph.alike import AlikeTable, people_alike
from reasonrec.graph.build import InteractionGraph
from reasonrec.records import Link, Lookup

# one event a row: user, item, time; sorted by user, then time
SHOP = [
    (0, 0, 10), (0, 1, 20), (0, 2, 30),
    (1, 0, 11), (1, 1, 21), (1, 4, 31), (1, 5, 41),
    (2, 1, 5), (2, 3, 15),
    (3, 6, 40), (3, 7, 50),
]  # fmt: skip


def ask(graph, user: int, history: list[int], *, asked_at=None, **keys) -> AlikeTable:
    return people_alike(
        graph,
        user_index=np.array([user]),
        history=(np.array(history, np.int32), np.array([0, len(history)])),
        asked_at=None if asked_at is None else np.array([asked_at]),
        **{"num_people": 2, "num_links": 2, **keys},
    )


@pytest.fixture
def shop() -> InteractionGraph:
    return InteractionGraph.build(log_of(SHOP, 4), 8)


def test_the_people_most_alike_and_what_they_took_last_by_hand(shop):
    table = ask(shop, 0, [0, 1, 2], degree_power=1.0, length_power=0.5, decay=0.5)
    # item 0 has one other taker, item 1 two: user 1 shares 1 + 1 / 2, over the root of 4 events;
    # user 2 shares 1 / 2, over the root of 2. User 3 shares nothing
    assert table.user_index.tolist() == [[1, 2]]
    np.testing.assert_allclose(table.likeness, [[0.75, 0.5 / 2**0.5]], rtol=1e-6)
    assert table.num_shared.tolist() == [[2, 1]]
    assert table.via_item.tolist() == [[0, 1]]  # the rarest shared item says most
    assert table.item_index.tolist() == [[[5, 4], [3, -1]]]  # newest first; 0 and 1 are known
    np.testing.assert_allclose(table.weight, [[[0.75, 0.375], [0.5 / 2**0.5, 0.0]]], rtol=1e-6)
    assert table.record(0, 0) == Lookup(0, (Link(5, 0.75, 1, 1), Link(4, 0.375, 1, 1)), "alike")
    assert table.record(0, 2) == Lookup(-1, (), "alike")  # nobody further was asked for


def test_items_taken_soon_after_one_another_say_more_by_hand(shop):
    history, taken_at = [0, 1, 2], np.array([10, 20, 30])
    keys = {"degree_power": 0.0, "length_power": 0.0, "gap_decay": 0.5, "gap_floor": 0.2}
    table = ask(shop, 0, history, taken_at=taken_at, **keys)
    # user 1 took item 0 at 11, before the next event of user 0: gap 0, worth 1; so item 1. User 2
    # took item 1 at 5 and one thing more, at 15, before user 0 took it at 20: gap 1,
    # worth .2 + .8 * .5
    assert table.user_index.tolist() == [[1, 2]]
    np.testing.assert_allclose(table.likeness, [[2.0, 0.6]], rtol=1e-6)
    # the other way about: user 1 follows user 2, and took item 0 in between
    asked = ask(shop, 1, [0, 1, 4, 5], taken_at=np.array([11, 21, 31, 41]), **keys)
    assert asked.user_index.tolist() == [[0, 2]]
    np.testing.assert_allclose(asked.likeness, [[2.0, 0.6]], rtol=1e-6)
    # without times, or without decay, every shared item counts alike
    for unknown in ({"taken_at": None, **keys}, {"taken_at": taken_at, **keys, "gap_decay": 1.0}):
        table = ask(shop, 0, history, **unknown)
        np.testing.assert_allclose(table.likeness, [[2.0, 1.0]], rtol=1e-6)


def test_a_history_from_before_the_log_is_older_than_its_first_event():
    graph = InteractionGraph.build(log_of([(1, 0, 7), (1, 1, 7)], 2), 3)
    keys = {"num_people": 1, "gap_decay": 0.5, "degree_power": 0.0, "length_power": 0.0}
    # item 1 was taken at 6, and item 2 after it, before the other took item 1 at 7: gap 1
    before = ask(graph, 0, [1, 2], asked_at=8, taken_at=np.array([6, 6]), **keys)
    np.testing.assert_allclose(before.likeness, [[0.5]])
    at_once = ask(graph, 0, [1, 2], asked_at=8, taken_at=np.array([7, 7]), **keys)
    np.testing.assert_allclose(at_once.likeness, [[1.0]])


def test_the_future_is_not_known(shop):
    table = ask(shop, 0, [0, 1], asked_at=31)
    # at 31 user 1 has taken 0 and 1 alone, nothing that user 0 has not: nobody to quote
    assert table.user_index.tolist() == [[2, -1]]
    assert ask(shop, 0, [0, 1], asked_at=32).item_index[0, 0].tolist() == [4, -1]


def test_somebody_new_is_answered_and_somebody_without_history_is_not(shop):
    # both took item 0, and user 0 took fewer others
    assert ask(shop, -1, [0]).user_index.tolist() == [[0, 1]]
    assert ask(shop, 3, []).user_index.tolist() == [[-1, -1]]


def test_what_cannot_be_is_refused(shop):
    for keys, message in (
        ({"num_people": 0}, "num_people must be at least 1"),
        ({"num_links": 0}, "num_links must be at least 1"),
        ({"decay": 0.0}, "decay must be above 0"),
        ({"gap_floor": 1.5}, "gap_floor must be within 0 and 1"),
    ):
        with pytest.raises(ValueError, match=message):
            ask(shop, 0, [0], **keys)
    with pytest.raises(ValueError, match="user_index must lie in"):
        ask(shop, 4, [0])


def slow_gap(events, person, item, history, taken_at):
    """Return how many events whoever took an item first had before the other took it too."""
    times = [t for p, _, t in events if p == person]
    first = next(k for k, (_, i, _) in enumerate(e for e in events if e[0] == person) if i == item)
    place = len(history) - 1 - history[::-1].index(item)
    theirs, own = times[first], taken_at[place]
    if theirs <= own:
        return sum(t < own for t in times[first + 1 :])
    return sum(t < theirs for t in taken_at[place + 1 :])


def slowly(events, user, history, asked_at, num_people, num_links, powers, decay, worth):
    """Return (person, likeness, [(item, weight)]) as the docstring of `people_alike` says it."""
    older = [e for e in events if e[2] < asked_at and e[0] != user]
    takers, taken = defaultdict(set), defaultdict(list)
    for person, item, _ in older:
        takers[item].add(person)
        taken[person].append(item)
    num_events = defaultdict(int)
    for _, item, _ in older:
        num_events[item] += 1
    people = []
    for person, items in taken.items():
        shared = [i for i in set(history) if person in takers[i]]
        likeness = sum(num_events[i] ** -powers[0] * worth(person, i) for i in shared)
        likeness /= len(items) ** powers[1]
        new = {}
        for age, item in enumerate(reversed(items)):
            if item not in history and item not in new:
                new[item] = decay**age
        if shared and new:
            quoted = [(i, likeness * w) for i, w in list(new.items())[:num_links]]
            people.append((person, likeness, quoted))
    return sorted(people, key=lambda p: (-np.float32(p[1]), p[0]))[:num_people]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_slow_search_finds_the_same(data):
    num_users, num_items = 6, 7
    rows = data.draw(
        st.lists(
            st.tuples(
                st.integers(0, num_users - 1), st.integers(0, num_items - 1), st.integers(0, 30)
            ),
            max_size=40,
        )
    )
    events = sorted(rows, key=lambda e: (e[0], e[2]))
    graph = InteractionGraph.build(log_of(events, num_users), num_items)
    user = data.draw(st.integers(-1, num_users - 1))
    history = data.draw(st.lists(st.integers(0, num_items - 1), max_size=6))
    asked_at = data.draw(st.integers(0, 32))
    times = st.integers(0, 30)
    taken_at = sorted(data.draw(st.lists(times, min_size=len(history), max_size=len(history))))
    gap_decay, floor = data.draw(st.sampled_from([(1.0, 0.0), (0.5, 0.1), (0.2, 0.0)]))

    def worth(person, item):
        gap = slow_gap(events, person, item, history, taken_at)
        return floor + (1 - floor) * gap_decay**gap

    powers = data.draw(st.sampled_from([(0.5, 0.5), (1.0, 0.0), (0.0, 1.0)]))
    num_people = data.draw(st.integers(1, 3))
    table = ask(
        graph, user, history, asked_at=asked_at, num_people=num_people, num_links=2,
        degree_power=powers[0], length_power=powers[1], decay=0.5,
        taken_at=np.array(taken_at, np.int64), gap_decay=gap_decay, gap_floor=floor,
    )  # fmt: skip
    found = [int(p) for p in table.user_index[0] if p >= 0]
    wanted = slowly(events, user, history, asked_at, 99, 2, powers, 0.5, worth)
    likeness = {person: value for person, value, _ in wanted}
    # sums in another order differ in the last digit, so equals may change places
    np.testing.assert_allclose(
        table.likeness[0, : len(found)], [p[1] for p in wanted[: len(found)]], rtol=1e-5
    )
    assert len(found) == min(num_people, len(wanted))
    quoted = {person: pairs for person, _, pairs in wanted}
    for place, person in enumerate(found):
        np.testing.assert_allclose(table.likeness[0, place], likeness[person], rtol=1e-5)
        assert [i for i in table.item_index[0, place].tolist() if i >= 0] == [
            i for i, _ in quoted[person]
        ]
        weights = [w for w in table.weight[0, place].tolist() if w > 0]
        np.testing.assert_allclose(weights, [w for _, w in quoted[person]], rtol=1e-5)


def test_rows_do_not_depend_on_each_other(shop):
    both = people_alike(
        shop,
        user_index=np.array([0, -1]),
        history=(np.array([0, 1, 2, 0], np.int32), np.array([0, 3, 4])),
        asked_at=None,
        num_people=2,
        num_links=2,
    )
    for row, (user, history) in enumerate([(0, [0, 1, 2]), (-1, [0])]):
        alone = ask(shop, user, history)
        assert both.item_index[row].tolist() == alone.item_index[0].tolist()
        assert both.weight[row].tolist() == alone.weight[0].tolist()


def test_nobody_is_ruled_out_who_is_among_the_most_alike():
    rng = np.random.default_rng(0)
    num_users, num_items = 40, 30
    drawn = zip(rng.integers(0, num_users, 600), rng.integers(0, num_items, 600), range(600))
    every = [tuple(int(x) for x in event) for event in drawn]
    events = sorted(every, key=lambda event: (event[0], event[2]))
    graph = InteractionGraph.build(log_of(events, num_users), num_items)
    for user in range(num_users):
        own = [(item, time) for person, item, time in events if person == user]
        history, taken_at = [item for item, _ in own], [time for _, time in own]
        table = ask(
            graph, user, history, asked_at=601, num_people=3, taken_at=np.array(taken_at),
            gap_decay=0.5, gap_floor=0.1,
        )  # fmt: skip

        def worth(person, item, history=history, taken_at=taken_at):
            return 0.1 + 0.9 * 0.5 ** slow_gap(events, person, item, history, taken_at)

        wanted = slowly(events, user, history, 601, 3, 2, (0.5, 0.5), 0.7, worth)
        assert table.user_index[0].tolist() == [person for person, _, _ in wanted]
        np.testing.assert_allclose(table.likeness[0], [p[1] for p in wanted], rtol=1e-5)
