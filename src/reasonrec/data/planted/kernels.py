"""The generative model itself, compiled: one event's causes, their weights, draws and masses.

The same functions draw the log and compute p(next item | reader), so the two cannot drift apart.
Every cause c has a base weight b_c(i) over all items; p_c is b_c over untaken items, normalised.
Draws from taste, popularity and noise reject taken items, and after ``MAX_REJECTIONS`` draw from
the untaken ones alone: the same distribution either way.
"""

from typing import Any, NamedTuple

import numba
import numpy as np

CAUSES = ("taste", "circle", "series", "popularity", "noise")
TASTE, CIRCLE, SERIES, POPULARITY, NOISE = range(5)

CIRCLE_MEMORY = 5
"""How many of a friend's latest books are talked about."""
CIRCLE_DECAY = 0.7
"""A friend's book counts this much less for every later book of that friend."""
CLOSEST_WEIGHT = 4.0
"""Weight of the closest friend; every other friend of the circle weighs 1."""
SERIES_DECAY = 0.8
"""A series counts this much less for every book taken since its latest volume."""
GENRE_WEIGHTS = (0.6, 0.25, 0.15)
"""Shares of the three favourite genres."""
OPEN_MINDED = 0.08
"""Share of taste that goes to any genre, evenly."""
MAKER_BOOST, ERA_BOOST = 12.0, 4.0
"""Inside a genre a favourite maker's or era's books weigh this much more."""
MAX_REJECTIONS = 64


class Shop(NamedTuple):
    """What all readers share, as arrays."""

    genre: np.ndarray
    maker: np.ndarray
    era: np.ndarray
    next_volume: np.ndarray
    popularity: np.ndarray
    """(N,), float64, sums to 1."""
    popularity_cdf: np.ndarray
    """(N,), float64."""
    shelf: np.ndarray
    """(N,), int32. Items sorted by genre."""
    shelf_starts: np.ndarray
    """(num_genres + 1,), int64."""
    weights: np.ndarray
    """(5,), float64. Mixture weights in the order of ``CAUSES``."""


class Crowd(NamedTuple):
    """The readers whose events are drawn or asked for, as arrays (see ``Readers``)."""

    circle: np.ndarray
    closest: np.ndarray
    early: np.ndarray
    late: np.ndarray
    makers: np.ndarray
    era: np.ndarray
    offsets: np.ndarray
    members: np.ndarray
    member_starts: np.ndarray
    items: np.ndarray
    """(E,), int32. Each reader's items, oldest first; filled in as the log is drawn."""


# arrays must come writable and contiguous: other kinds would be compiled anew
compiled: Any = numba.njit(cache=True, nogil=True)


@compiled
def bisect(values, start, stop, target):
    """Return the first place in [start, stop) of the sorted values that is at least ``target``."""
    while start < stop:
        middle = (start + stop) // 2
        if values[middle] < target:
            start = middle + 1
        else:
            stop = middle
    return start


@compiled
def circle_candidates(crowd, user, num_done, taken, items, weights, sources):
    """Fill in what friends read lately, and return the number of candidates.

    ``num_done`` counts the events so far of every reader of the circle.
    """
    count = 0
    circle = crowd.circle[user]
    for slot in range(crowd.member_starts[circle], crowd.member_starts[circle + 1]):
        friend = crowd.members[slot]
        if friend == user:
            continue
        weight = CLOSEST_WEIGHT if friend == crowd.closest[user] else 1.0
        last = crowd.offsets[friend] + num_done[friend]
        for event in range(last - 1, max(last - 1 - CIRCLE_MEMORY, crowd.offsets[friend] - 1), -1):
            item = crowd.items[event]
            if not taken[item]:
                items[count], weights[count], sources[count] = item, weight, friend
                count += 1
            weight *= CIRCLE_DECAY
    return count


@compiled
def series_candidates(shop, crowd, user, num_known, taken, items, weights, sources):
    """Fill in the next volumes of what the reader took, and return their number."""
    count = 0
    weight = 1.0
    first = crowd.offsets[user]
    for event in range(first + num_known - 1, first - 1, -1):
        item = shop.next_volume[crowd.items[event]]
        if item >= 0 and not taken[item]:
            items[count], weights[count], sources[count] = item, weight, crowd.items[event]
            count += 1
        weight *= SERIES_DECAY
    return count


@compiled
def life_frac(crowd, user, num_known):
    """Return how much of the reader's life is over before the next event, 0 to 1."""
    total = crowd.offsets[user + 1] - crowd.offsets[user]
    return min(num_known / max(total - 1, 1), 1.0)


@compiled
def shelf_weight(shop, crowd, user, item):
    """Return how much a reader likes an item among those of its genre."""
    weight = shop.popularity[item]
    for rank in range(crowd.makers.shape[1]):
        if shop.maker[item] == crowd.makers[user, rank]:
            weight *= MAKER_BOOST
            break
    return weight * ERA_BOOST if shop.era[item] == crowd.era[user] else weight


@compiled
def pick(weights, count, uniform):
    """Return the place that ``uniform`` in [0, 1) falls on."""
    total = 0.0
    for place in range(count):
        total += weights[place]
    target = uniform * total
    for place in range(count):
        target -= weights[place]
        if target < 0 and weights[place] > 0:
            return place
    place = count - 1  # rounding left a crumb
    while weights[place] <= 0:
        place -= 1
    return place


@compiled
def draw_from_taste(shop, crowd, user, num_known, rng, shelf_weights):
    """Return one item from the base weights of taste, taken or not."""
    if rng.random() < OPEN_MINDED:
        genre = int(rng.random() * (len(shop.shelf_starts) - 1))
    else:
        is_late = rng.random() < life_frac(crowd, user, num_known)
        u = rng.random()
        rank = 0 if u < GENRE_WEIGHTS[0] else (1 if u < GENRE_WEIGHTS[0] + GENRE_WEIGHTS[1] else 2)
        genre = crowd.late[user, rank] if is_late else crowd.early[user, rank]
    start, stop = shop.shelf_starts[genre], shop.shelf_starts[genre + 1]
    for place in range(start, stop):
        shelf_weights[place - start] = shelf_weight(shop, crowd, user, shop.shelf[place])
    return shop.shelf[start + pick(shelf_weights, stop - start, rng.random())]


@compiled
def fill_taste(shop, crowd, user, num_known, out):
    """Fill in the base weights of taste over all items; they sum to 1."""
    num_genres = len(shop.shelf_starts) - 1
    genres = np.empty(num_genres)
    for genre in range(num_genres):
        genres[genre] = OPEN_MINDED / num_genres
    late = life_frac(crowd, user, num_known)
    for rank in range(len(GENRE_WEIGHTS)):
        share = (1 - OPEN_MINDED) * GENRE_WEIGHTS[rank]
        genres[crowd.early[user, rank]] += share * (1 - late)
        genres[crowd.late[user, rank]] += share * late
    for genre in range(num_genres):
        start, stop = shop.shelf_starts[genre], shop.shelf_starts[genre + 1]
        total = 0.0
        for place in range(start, stop):
            item = shop.shelf[place]
            out[item] = shelf_weight(shop, crowd, user, item)
            total += out[item]
        for place in range(start, stop):
            out[shop.shelf[place]] *= genres[genre] / total


@compiled
def fill_base(shop, crowd, user, num_known, cause, out):
    """Fill in the base weights of taste, popularity or noise over all items."""
    if cause == TASTE:
        fill_taste(shop, crowd, user, num_known, out)
    else:
        for item in range(len(out)):
            out[item] = shop.popularity[item] if cause == POPULARITY else 1.0


@compiled
def draw_untaken(shop, crowd, user, num_known, cause, taken, rng, scratch):
    """Return an untaken item from taste, popularity or noise."""
    num_items = len(taken)
    for _ in range(MAX_REJECTIONS):
        if cause == TASTE:
            item = draw_from_taste(shop, crowd, user, num_known, rng, scratch)
        elif cause == POPULARITY:
            item = bisect(shop.popularity_cdf, 0, num_items - 1, rng.random())
        else:
            item = int(rng.random() * num_items)
        if not taken[item]:
            return item
    fill_base(shop, crowd, user, num_known, cause, scratch)
    for item in range(num_items):
        if taken[item]:
            scratch[item] = 0.0
    return pick(scratch, num_items, rng.random())


@compiled
def draw_event(shop, crowd, user, num_known, num_done, taken, rng, scratch, candidates):
    """Return (item, cause, source) of a reader's next event.

    The source is a friend for the circle, the previous volume for a series, and -1 otherwise.
    """
    circle_items, circle_weights, circle_sources, series_items, series_weights, series_sources = (
        candidates
    )
    in_circle = circle_candidates(
        crowd, user, num_done, taken, circle_items, circle_weights, circle_sources
    )
    in_series = series_candidates(
        shop, crowd, user, num_known, taken, series_items, series_weights, series_sources
    )
    for cause in range(len(CAUSES)):
        scratch[cause] = shop.weights[cause]
    if in_circle == 0:
        scratch[CIRCLE] = 0.0
    if in_series == 0:
        scratch[SERIES] = 0.0
    cause = pick(scratch, len(CAUSES), rng.random())
    if cause == CIRCLE:
        place = pick(circle_weights, in_circle, rng.random())
        return circle_items[place], cause, circle_sources[place]
    if cause == SERIES:
        place = pick(series_weights, in_series, rng.random())
        return series_items[place], cause, series_sources[place]
    item = draw_untaken(shop, crowd, user, num_known, cause, taken, rng, scratch)
    return item, cause, -1


@compiled
def make_candidates(crowd):
    """Return room for the candidates of any circle and any series of one reader."""
    c, s = 0, 0
    for circle in range(len(crowd.member_starts) - 1):
        size = crowd.member_starts[circle + 1] - crowd.member_starts[circle]
        c = max(c, size * CIRCLE_MEMORY)
    for user in range(len(crowd.offsets) - 1):
        s = max(s, crowd.offsets[user + 1] - crowd.offsets[user])
    return (
        np.empty(c, np.int32), np.empty(c), np.empty(c, np.int32),
        np.empty(s, np.int32), np.empty(s), np.empty(s, np.int32),
    )  # fmt: skip


@compiled
def mark(crowd, user, num_known, taken, value):
    """Set ``taken`` for the reader's first ``num_known`` items."""
    first = crowd.offsets[user]
    for event in range(first, first + num_known):
        taken[crowd.items[event]] = value


@compiled
def draw_log(shop, crowd, user_of_event, order, rng, causes, sources):
    """Fill in ``crowd.items``, ``causes`` and ``sources``, event by event.

    ``order`` lists the events circle by circle, each circle's in time.
    """
    num_done = np.zeros(len(crowd.circle), np.int64)
    taken = np.zeros(len(shop.genre), np.bool_)
    scratch = np.empty(len(shop.genre))
    candidates = make_candidates(crowd)
    for event in order:
        user = user_of_event[event]
        num_known = num_done[user]
        mark(crowd, user, num_known, taken, True)
        crowd.items[event], causes[event], sources[event] = draw_event(
            shop, crowd, user, num_known, num_done, taken, rng, scratch, candidates
        )
        mark(crowd, user, num_known, taken, False)
        num_done[user] += 1


@compiled
def count_before(crowd, timestamp, user, num_known, num_done):
    """Fill in how many events each reader of the circle had before the reader's next one.

    After a reader's last event everything of the circle is known. Ties in time go by reader.
    """
    event = crowd.offsets[user] + num_known
    is_over = event == crowd.offsets[user + 1]
    circle = crowd.circle[user]
    for slot in range(crowd.member_starts[circle], crowd.member_starts[circle + 1]):
        friend = crowd.members[slot]
        first, last = crowd.offsets[friend], crowd.offsets[friend + 1]
        if friend == user:
            num_done[friend] = num_known
        elif is_over:
            num_done[friend] = last - first
        else:
            until = timestamp[event] + (1 if friend < user else 0)
            num_done[friend] = bisect(timestamp, first, last, until) - first


@compiled
def fill_probabilities(shop, crowd, timestamp, users, num_known, out):
    """Fill in w_c p_c(i) for each query, cause and item; ``out`` is (B, 5, N), zero before."""
    num_done = np.zeros(len(crowd.circle), np.int64)
    taken = np.zeros(len(shop.genre), np.bool_)
    items_c, weights_c, sources_c, items_s, weights_s, sources_s = make_candidates(crowd)
    for row in range(len(users)):
        user, known = users[row], num_known[row]
        count_before(crowd, timestamp, user, known, num_done)
        mark(crowd, user, known, taken, True)
        in_circle = circle_candidates(crowd, user, num_done, taken, items_c, weights_c, sources_c)
        in_series = series_candidates(
            shop, crowd, user, known, taken, items_s, weights_s, sources_s
        )
        for cause in (TASTE, POPULARITY, NOISE):
            fill_base(shop, crowd, user, known, cause, out[row, cause])
        for place in range(in_circle):
            out[row, CIRCLE, items_c[place]] += weights_c[place]
        for place in range(in_series):
            out[row, SERIES, items_s[place]] += weights_s[place]
        total_weight = 0.0
        for cause in range(len(CAUSES)):
            total = 0.0
            for item in range(len(taken)):
                if taken[item]:
                    out[row, cause, item] = 0.0
                total += out[row, cause, item]
            if total > 0:
                total_weight += shop.weights[cause]
                for item in range(len(taken)):
                    out[row, cause, item] *= shop.weights[cause] / total
        for cause in range(len(CAUSES)):
            for item in range(len(taken)):
                out[row, cause, item] /= total_weight
        mark(crowd, user, known, taken, False)


@compiled
def fill_told(crowd, timestamp, users, num_known, is_told, out):
    """Fill in, for each query and item, how much of what the circle says of it is of told events.

    ``is_told`` is (E,), ``out`` (B, N), ones before: a share of `circle_candidates`' weight.
    """
    num_done = np.zeros(len(crowd.circle), np.int64)
    whole = np.zeros(out.shape[1])
    for row in range(len(users)):
        user = users[row]
        count_before(crowd, timestamp, user, num_known[row], num_done)
        circle = crowd.circle[user]
        whole[:] = 0.0
        for slot in range(crowd.member_starts[circle], crowd.member_starts[circle + 1]):
            friend = crowd.members[slot]
            if friend == user:
                continue
            weight = CLOSEST_WEIGHT if friend == crowd.closest[user] else 1.0
            first = crowd.offsets[friend]
            last = first + num_done[friend]
            for event in range(last - 1, max(last - 1 - CIRCLE_MEMORY, first - 1), -1):
                item = crowd.items[event]
                if whole[item] == 0.0:
                    out[row, item] = 0.0
                whole[item] += weight
                out[row, item] += weight * is_told[event]
                weight *= CIRCLE_DECAY
        for item in range(len(whole)):
            if whole[item] > 0.0:
                out[row, item] /= whole[item]


@compiled
def draw_next(shop, crowd, timestamp, user, num_known, rng, items, causes, sources):
    """Fill in independent draws of one reader's next event, by the very function of the log."""
    num_done = np.zeros(len(crowd.circle), np.int64)
    taken = np.zeros(len(shop.genre), np.bool_)
    scratch = np.empty(len(shop.genre))
    candidates = make_candidates(crowd)
    count_before(crowd, timestamp, user, num_known, num_done)
    mark(crowd, user, num_known, taken, True)
    for draw in range(len(items)):
        items[draw], causes[draw], sources[draw] = draw_event(
            shop, crowd, user, num_known, num_done, taken, rng, scratch, candidates
        )


@compiled
def locate(crowd, users, last_items, num_known):
    """Fill in how many events each reader has up to and with ``last_items``; -1 if never taken."""
    for row in range(len(users)):
        first = crowd.offsets[users[row]]
        num_known[row] = -1
        for event in range(first, crowd.offsets[users[row] + 1]):
            if crowd.items[event] == last_items[row]:
                num_known[row] = event - first + 1
                break
