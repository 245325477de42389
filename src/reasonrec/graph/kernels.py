"""The compiled loops that read a graph, in one file: numba's cache notices no edits elsewhere.

Letters: R rows, U users, N items, E events. Every loop takes the arrays of an ``InteractionGraph``
first, needs no lock (``nogil``), and draws its random numbers by hashing what a row asks about, so
that neither the order of rows nor the number of threads changes an answer.
"""

# pyright: reportIndexIssue=false, reportCallIssue=false
from typing import Any, NamedTuple

import numpy as np
from numba import njit

TRY_COST = 40
"""What a proposal for a chain costs, in events read one after the other."""
NUM_AT_ONCE = 8
"""Proposals that are made together."""
NUM_READ = 512
"""Events that are read before whoever closes a chain is looked at."""
LEAST_COST = 1000
"""Below as many events, all are read without any proposal."""
_NOTED_FIRST = 4096
"""As many takers of a candidate are noted before any proposal; more are looked for one by one."""
_WALK_COST = 4
"""What an event of a neighbour costs, who must be looked for first."""
_LONG_LOG = 256
"""As many events a neighbour has at most, as far as the number of proposals goes."""
_BARE: dict[str, Any] = {"nogil": True, "cache": True, "_nrt": False}
"""Without reference counts, which cost more than the work: such a loop allocates nothing."""
_INLINED: dict[str, Any] = _BARE | {"forceinline": True}
_ONE = np.uint64(1)


@njit(nogil=True, cache=True, inline="always")
def mixed(state, value):
    """Return ``state`` with ``value`` stirred in (the finaliser of SplitMix64, Steele 2014)."""
    z = (state ^ np.uint64(value)) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit(nogil=True, cache=True, inline="always")
def uniform(state):
    """Return a number above 0 and at most 1 that depends on ``state`` alone."""
    return float((state >> np.uint64(11)) + _ONE) / 9007199254740992.0  # 53 bits: n / 2**53


@njit(**_INLINED)
def _first_from(values, low, high, least):
    """Return the first place in ``low`` .. ``high`` whose ascending value is at least ``least``."""
    while low < high:
        middle = (low + high) >> 1
        if values[middle] < least:
            low = middle + 1
        else:
            high = middle
    return low


@njit(**_INLINED)
def _period(g, asked_at):
    """Return the number of the last bound of time that is not after ``asked_at``."""
    low, high = 0, len(g.time_bound)
    while low < high:
        middle = (low + high) >> 1
        if g.time_bound[middle] <= asked_at:
            low = middle + 1
        else:
            high = middle
    return low - 1


@njit(**_INLINED)
def _num_older_in(g, item, asked_at, period):
    """Return how many occurrences of an item are before ``asked_at``, which lies in ``period``."""
    start = g.item_offsets[item]
    low = start + g.num_before[period, item]
    high = g.item_offsets[item + 1]
    if period + 1 < len(g.time_bound):
        high = start + g.num_before[period + 1, item]
    elif low < high and g.occurrence_time[high - 1] < asked_at:
        return high - start  # all of them, if the log has no times
    while high - low > 16:
        middle = (low + high) >> 1
        if g.occurrence_time[middle] < asked_at:
            low = middle + 1
        else:
            high = middle
    older = low - start
    for place in range(low, high):  # without branches, which would often be mistaken
        older += g.occurrence_time[place] < asked_at
    return older


@njit(**_INLINED)
def num_older(g, item, asked_at):
    """Return how many occurrences of an item are before ``asked_at``."""
    return _num_older_in(g, item, asked_at, _period(g, asked_at))


@njit(**_INLINED)
def _place_of_pair(pair_filter, user, item):
    """Return the bit of a filter (Bloom's, with one hash) that stands for a user and an item."""
    key = (np.uint64(user) << np.uint64(32) | np.uint64(item)) * np.uint64(0x9E3779B97F4A7C15)
    return np.int64((key >> np.uint64(24)) & np.uint64(8 * len(pair_filter) - 1))


@njit(nogil=True, cache=True)
def filter_of_pairs(event_user, event_item):
    """Return a filter of which user took which item: 8 to 16 bits an event, a power of two."""
    size = 8
    while size < len(event_user):
        size *= 2
    pair_filter = np.zeros(size, np.uint8)
    for event in range(len(event_user)):
        place = _place_of_pair(pair_filter, event_user[event], event_item[event])
        pair_filter[place >> 3] |= np.uint8(1 << (place & 7))
    return pair_filter


@njit(nogil=True, cache=True)
def own_ranks(g, user, item, asked_at):
    """Return the positions of ``user`` among the older occurrences of ``item``, ascending."""
    found = np.empty(0, np.int64)
    if user < 0:
        return found
    num_found = 0
    for event in range(g.user_offsets[user], g.user_offsets[user + 1]):
        if g.event_time[event] >= asked_at:
            break
        num_found += g.event_item[event] == item
    found = np.empty(num_found, np.int64)
    num_found = 0
    for event in range(g.user_offsets[user], g.user_offsets[user + 1]):
        if num_found == len(found):
            break
        if g.event_item[event] == item:
            found[num_found] = g.event_rank[event]
            num_found += 1
    return found


@njit(nogil=True, cache=True)
def visible_occurrences(g, item, user, asked_at, limit, state, events):
    """Fill ``events`` with older events of others on ``item``; return how many of how many.

    Past ``limit`` they are evenly spaced in time from a random start. The user's own events are
    taken out before spacing: the answer is the one of a graph without them.
    """
    start = g.item_offsets[item]
    total = num_older(g, item, asked_at)
    taken = 0
    if total <= limit:
        for position in range(start, start + total):
            event = g.occurrence_event[position]
            if g.event_user[event] != user:
                events[taken] = event
                taken += 1
        return taken, taken
    own = own_ranks(g, user, item, asked_at)
    total -= len(own)
    taken = min(limit, total)
    phase = uniform(state) if total > limit else 0.0
    for j in range(taken):
        # uniform() can be 1, which would step past the end
        rank = min(int((j + phase) * total / taken), total - 1) if total > limit else j
        for r in range(len(own)):
            rank += rank >= own[r]
        events[j] = g.occurrence_event[start + rank]
    return taken, total


@njit(nogil=True, cache=True)
def look_up_rows(
    g, user_index, via_item, history_item, history_offsets, asked_at,
    has_times, has_repeats, window, reverse_share, same_pace, pace, pace_limits,
    max_neighbours, num_recent, seed, slot_of_user, slot_of_item, weight_of, count_of,
    out_item, out_weight, out_count, out_witness,
):  # fmt: skip
    """Write the links of every row to ``out_*``; what they mean is in ``lookup.look_up``.

    Steps from neighbours to items are listed first and added up after, which is kinder to caches.
    """
    num_links = out_item.shape[1]
    events = np.empty(max_neighbours, np.int64)
    slot_event = np.empty(max_neighbours, np.int64)
    slot_user = np.empty(max_neighbours, np.int64)
    slot_overlap = np.empty(max_neighbours, np.int64)
    slot_last = np.empty(max_neighbours, np.int64)
    num_most = 2 * window * max_neighbours
    step_item, step_user = np.empty(num_most, np.int32), np.empty(num_most, np.int32)
    step_weight = np.empty(num_most)
    touched = np.empty(num_most + 1, np.int32)
    recent = np.empty(num_recent, np.int64)
    best = np.empty(num_links)
    for row in range(len(via_item)):
        via, user, limit = via_item[row], user_index[row], asked_at[row]
        if via < 0:
            continue
        state = mixed(mixed(seed, user), via)
        num_events, _ = visible_occurrences(g, via, user, limit, max_neighbours, state, events)
        num_slots = 0
        for j in range(num_events):
            neighbour = g.event_user[events[j]]
            if slot_of_user[neighbour] < 0:  # a repeat counts by its first time
                slot_of_user[neighbour] = num_slots
                slot_event[num_slots] = events[j]
                slot_user[num_slots] = neighbour
                slot_overlap[num_slots] = 0
                slot_last[num_slots] = -1
                num_slots += 1

        first, last = history_offsets[row], history_offsets[row + 1]
        size = 0
        for k in range(max(first, last - num_recent), last):
            item = history_item[k]
            is_new = item != via  # every neighbour shares it
            for other in range(size):
                is_new = is_new and recent[other] != item
            if is_new:
                recent[size] = item
                size += 1
        _count_overlap(
            g, recent[:size], limit, slot_user[:num_slots], slot_of_user, slot_of_item,
            slot_overlap, slot_last,
        )  # fmt: skip

        num_steps = 0
        for slot in range(num_slots):
            event, neighbour = slot_event[slot], slot_user[slot]
            begin, end = g.user_offsets[neighbour], g.user_offsets[neighbour + 1]
            share = 1.0 + slot_overlap[slot]
            start = num_steps
            for other in range(event + 1, min(event + window + 1, end)):
                if has_times and g.event_time[other] >= limit:
                    break
                item = g.event_item[other]
                if has_repeats and _is_in(step_item, start, num_steps, item):
                    continue
                step_item[num_steps], step_user[num_steps] = item, neighbour
                step_weight[num_steps] = share / (other - event)
                if pace[row] >= 0 and _pace(g, event, other, pace_limits) == pace[row]:
                    step_weight[num_steps] *= 1.0 + same_pace
                num_steps += 1
            if reverse_share == 0.0:
                continue
            for other in range(event - 1, max(event - window, begin) - 1, -1):
                item = g.event_item[other]
                if has_repeats and _is_in(step_item, start, num_steps, item):
                    continue
                step_item[num_steps], step_user[num_steps] = item, neighbour
                step_weight[num_steps] = share * reverse_share / (event - other)
                if pace[row] >= 0 and _pace(g, other, event, pace_limits) == pace[row]:
                    step_weight[num_steps] *= 1.0 + same_pace
                num_steps += 1

        # what the user has or asks about can never become heavy enough
        for k in range(first, last):
            weight_of[history_item[k]] = -np.inf
        weight_of[via] = -np.inf
        num_touched = 0
        for t in range(num_steps):
            item = step_item[t]
            touched[num_touched] = item
            num_touched += count_of[item] == 0
            count_of[item] += 1
            weight_of[item] += step_weight[t]
        for t in range(num_touched):
            item = touched[t]
            weight = np.float32(weight_of[item])
            if weight <= 0.0:
                continue
            place = num_links
            while place > 0 and (
                out_item[row, place - 1] < 0
                or weight > out_weight[row, place - 1]
                or (weight == out_weight[row, place - 1] and item < out_item[row, place - 1])
            ):
                place -= 1
            if place == num_links:
                continue
            for k in range(num_links - 1, place, -1):
                out_item[row, k] = out_item[row, k - 1]
                out_weight[row, k] = out_weight[row, k - 1]
            out_item[row, place] = item
            out_weight[row, place] = weight
        for k in range(num_links):
            if out_item[row, k] >= 0:
                out_count[row, k] = count_of[out_item[row, k]]
                count_of[out_item[row, k]] = -1 - k
                best[k] = 0.0
        for t in range(num_steps):
            k = -1 - count_of[step_item[t]]
            if k >= 0 and (
                step_weight[t] > best[k]
                or (step_weight[t] == best[k] and step_user[t] < out_witness[row, k])
            ):
                best[k], out_witness[row, k] = step_weight[t], step_user[t]
        for t in range(num_touched):
            weight_of[touched[t]] = 0.0
            count_of[touched[t]] = 0
        for k in range(first, last):
            weight_of[history_item[k]] = 0.0
        weight_of[via] = 0.0
        for slot in range(num_slots):
            slot_of_user[slot_user[slot]] = -1


@njit(**_INLINED)
def _pace(g, earlier, later, limits):
    seconds = g.event_time[later] - g.event_time[earlier]
    pace = 0
    while pace < len(limits) and seconds >= limits[pace]:
        pace += 1
    return pace


@njit(**_INLINED)
def _is_in(values, start, stop, value):
    is_in = False
    for k in range(start, stop):
        is_in = is_in or values[k] == value
    return is_in


@njit(nogil=True, cache=True)
def _gap(g, event, history_time, place, last, most):
    """Return how many events whoever took a shared item first had before the other took it too.

    ``event`` is the other's, ``place`` the user's, whose history ends before ``last``. At most
    ``most`` are counted.
    """
    own, theirs = history_time[place], g.event_time[event]
    if theirs <= own:
        low = event + 1
        high = min(g.user_offsets[g.event_user[event] + 1], low + most)
        return _first_from(g.event_time, low, high, own) - event - 1
    low, high = place + 1, min(last, place + 1 + most)
    return _first_from(history_time, low, high, theirs) - place - 1


@njit(nogil=True, cache=True)
def alike_rows(
    g, user_index, history_item, history_time, history_offsets, asked_at,
    degree_power, length_power, worth_of_gap, decay, most_shared,
    excluded_by, place_of, bound, counted_by,
    out_user, out_likeness, out_via, out_shared, out_item, out_weight,
):  # fmt: skip
    """Write the people and links of every row to ``out_*``; `alike.people_alike` says what.

    Thousands share something with a user, and a few are wanted. So a walk over the takers of the
    shared items first says how alike each can be at most, as if no gap counted. Only who could be
    among the best by that is compared event by event.
    """
    num_people, num_links = out_item.shape[1], out_item.shape[2]
    touched = np.empty(len(bound), np.int64)
    num_shared = np.zeros(len(bound), np.int32)
    longest = 0
    for other in range(len(bound)):
        longest = max(longest, g.user_offsets[other + 1] - g.user_offsets[other])
    size = np.array([float(length) ** length_power for length in range(longest + 1)])
    read = np.empty(most_shared, np.int64)
    read_item, read_weight = np.empty(most_shared, np.int64), np.empty(most_shared)
    near, near_of = np.empty(most_shared), np.full(most_shared, -1, np.int64)
    most = len(worth_of_gap) - 1
    for row in range(len(user_index)):
        user, limit = user_index[row], asked_at[row]
        first, last = history_offsets[row], history_offsets[row + 1]
        num_touched, num_read = 0, 0
        for at in range(last - 1, first - 1, -1):  # a repeat counts by its newest place
            item = history_item[at]
            if excluded_by[item] == row:
                continue
            excluded_by[item] = row
            if num_read == most_shared:
                continue
            read[num_read], read_item[num_read] = at, item
            num_read += 1
            start = g.item_offsets[item]
            older = num_older(g, item, limit)
            others = older
            for position in range(start, start + older):
                others -= g.occurrence_user[position] == user
            if others <= 0:
                continue
            weight = float(others) ** -degree_power
            read_weight[num_read - 1] = weight
            place_of[item] = num_read - 1
            for position in range(start, start + older):
                other = g.occurrence_user[position]
                if other == user or counted_by[other] == item:
                    continue
                if counted_by[other] < 0:
                    bound[other] = 0.0
                    num_shared[other] = 0
                    touched[num_touched] = other
                    num_touched += 1
                counted_by[other] = item
                bound[other] += weight
                num_shared[other] += 1
        near_of[:num_read] = -1
        for t in range(num_touched):
            other = touched[t]
            counted_by[other] = -1
            begin, end = g.user_offsets[other], g.user_offsets[other + 1]
            if g.event_time[end - 1] >= limit:
                end = _first_from(g.event_time, begin, end, limit)
            highest = bound[other] / size[end - begin] * (1 + 1e-6)
            if out_user[row, num_people - 1] >= 0 and highest < out_likeness[row, num_people - 1]:
                continue
            for event in range(begin, end):
                k = place_of[g.event_item[event]]
                if k < 0 or near_of[k] == other:
                    continue
                near_of[k] = other
                near[k] = read_weight[k]
                if most:
                    near[k] *= worth_of_gap[_gap(g, event, history_time, read[k], last, most)]
            likeness, nearest, via = 0.0, 0.0, -1
            for k in range(num_read):  # the newest first
                if near_of[k] == other:
                    likeness += near[k]
                    if near[k] > nearest:
                        nearest, via = near[k], read_item[k]
            score = np.float32(likeness / size[end - begin])
            place = num_people
            while place > 0 and (
                out_user[row, place - 1] < 0
                or score > out_likeness[row, place - 1]
                or (score == out_likeness[row, place - 1] and other < out_user[row, place - 1])
            ):
                place -= 1
            if place == num_people:
                continue
            found = 0
            for event in range(end - 1, begin - 1, -1):
                if excluded_by[g.event_item[event]] != row:
                    found += 1
                    break
            if found == 0:
                continue  # somebody with nothing new to tell
            for k in range(num_people - 1, place, -1):
                out_user[row, k] = out_user[row, k - 1]
                out_likeness[row, k] = out_likeness[row, k - 1]
                out_via[row, k] = out_via[row, k - 1]
                out_shared[row, k] = out_shared[row, k - 1]
            out_user[row, place] = other
            out_likeness[row, place] = score
            out_via[row, place] = via
            out_shared[row, place] = num_shared[other]
        for k in range(num_read):
            place_of[read_item[k]] = -1
        for k in range(num_people):
            other = out_user[row, k]
            if other < 0:
                break
            taken, age = 0, 0
            for event in range(g.user_offsets[other + 1] - 1, g.user_offsets[other] - 1, -1):
                if g.event_time[event] >= limit:
                    continue
                item = g.event_item[event]
                is_new = excluded_by[item] != row
                for j in range(taken):
                    is_new = is_new and out_item[row, k, j] != item
                if is_new:
                    out_item[row, k, taken] = item
                    out_weight[row, k, taken] = out_likeness[row, k] * decay**age
                    taken += 1
                    if taken == num_links:
                        break
                age += 1


@njit(nogil=True, cache=True)
def _count_overlap(
    g, recent, limit, slot_user, slot_of_user, slot_of_item, slot_overlap, slot_last,
):  # fmt: skip
    """Add to ``slot_overlap`` how many ``recent`` items each neighbour took before ``limit``."""
    if len(recent) == 0:
        return
    period = _period(g, limit)
    cost_by_item = 0
    for item in recent:
        cost_by_item += g.item_offsets[item + 1] - g.item_offsets[item]
    cost_by_user = 0
    for neighbour in slot_user:
        cost_by_user += g.user_offsets[neighbour + 1] - g.user_offsets[neighbour]
    if cost_by_item <= cost_by_user * _WALK_COST:
        for item in recent:
            start = g.item_offsets[item]
            for place in range(start, start + _num_older_in(g, item, limit, period)):
                slot = slot_of_user[g.occurrence_user[place]]
                if slot >= 0 and slot_last[slot] != item:
                    slot_last[slot] = item
                    slot_overlap[slot] += 1
        return
    for k in range(len(recent)):
        slot_of_item[recent[k]] = k
    for slot in range(len(slot_user)):
        seen = 0
        for event in range(g.user_offsets[slot_user[slot]], g.user_offsets[slot_user[slot] + 1]):
            if g.event_time[event] >= limit:
                break
            k = slot_of_item[g.event_item[event]]
            if k >= 0 and not (seen >> k) & 1:
                seen |= 1 << k
                slot_overlap[slot] += 1
    for k in range(len(recent)):
        slot_of_item[recent[k]] = -1


class Scratch(NamedTuple):
    """What one thread writes to while it works on a row; clean again after each."""

    slot_of_item: np.ndarray
    """(N,), 1 + the place of an item among the distinct ones of the history; 0 elsewhere."""
    slot_of_user: np.ndarray
    """(U,), 1 + the place of a neighbour among the ``touched``; 0 elsewhere."""
    item: np.ndarray
    """(H,), the distinct items of the history, oldest first."""
    position: np.ndarray
    """(H,), where the history has the item last."""
    num_others: np.ndarray
    """(H,), older events by others; -1 until somebody asks."""
    own_event: np.ndarray
    """(H,), the user's first older event; -1 without."""
    num_own: np.ndarray
    """(H,), the user's older events."""
    own_rank: np.ndarray
    """(H,), the place of the first of them among the item's occurrences; past all without."""
    seen_by: np.ndarray
    """(H + 1,), the last walk that met the slot before, so that a walk counts it once."""
    num_walks: np.ndarray
    """(1,), walks over neighbours' events so far."""
    shared_slot: np.ndarray
    """(H + 1,), what the last walk found, in the order of its events."""
    shared_event: np.ndarray
    """(H + 1,), the first event on each of those."""
    is_noted: np.ndarray
    """(U,), whom a row has to do with."""
    taker: np.ndarray
    """(U,), 1 + the place of somebody's first event among those of the candidate; 0 elsewhere."""
    shares_two: np.ndarray
    """(U,), who took two items of the history."""
    touched: np.ndarray
    """(U,), neighbours of the row."""
    overlap: np.ndarray
    """(U,), items that each of them shares with the history."""
    last: np.ndarray
    """(U,), the slot that was counted last for each of them."""
    try_slot: np.ndarray
    """(``NUM_AT_ONCE``,), slots that are proposed at once."""
    try_place: np.ndarray
    """(``NUM_AT_ONCE``,), the events proposed there, among occurrences; -1 without."""
    try_user: np.ndarray
    """(``NUM_AT_ONCE``,), whose they are, if they may close the chain; else -1."""
    noted_place: np.ndarray
    """(``NUM_READ``,), events of those who are noted, among occurrences."""
    chain_key: np.ndarray
    """(K,), waiting times of the neighbours drawn."""
    chain_slot: np.ndarray
    """(K,), the slots that they were found by."""
    chain_at: np.ndarray
    """(K,), their events there, or where these are among occurrences."""


def scratch(num_users, num_items, longest, num_chains=1):
    """Return a clean ``Scratch`` for histories of up to ``longest`` items."""
    return Scratch(
        slot_of_item=np.zeros(num_items, np.int32),
        slot_of_user=np.zeros(num_users, np.int32),
        item=np.empty(longest, np.int32),
        position=np.empty(longest, np.int64),
        num_others=np.empty(longest, np.int64),
        own_event=np.empty(longest, np.int64),
        num_own=np.empty(longest, np.int64),
        own_rank=np.empty(longest, np.int64),
        seen_by=np.zeros(longest + 1, np.int64),
        num_walks=np.zeros(1, np.int64),
        shared_slot=np.empty(longest + 1, np.int64),
        shared_event=np.empty(longest + 1, np.int64),
        is_noted=np.zeros(num_users, np.bool_),
        taker=np.zeros(num_users, np.int32),
        shares_two=np.zeros(num_users, np.bool_),
        touched=np.empty(num_users, np.int32),
        overlap=np.empty(num_users, np.int32),
        last=np.empty(num_users, np.int32),
        try_slot=np.empty(NUM_AT_ONCE, np.int64),
        try_place=np.empty(NUM_AT_ONCE, np.int64),
        try_user=np.empty(NUM_AT_ONCE, np.int64),
        noted_place=np.empty(NUM_READ, np.int64),
        chain_key=np.empty(num_chains),
        chain_slot=np.empty(num_chains, np.int64),
        chain_at=np.empty(num_chains, np.int64),
    )


@njit(**_INLINED)
def first_event(g, item, user, limit):
    """Return the first event of a user on an item if it is older than ``limit``, else -1."""
    begin, end = g.user_offsets[user], g.user_offsets[user + 1]
    low, high = g.item_offsets[item], g.item_offsets[item + 1]
    stop = high
    low = _first_from(g.taker_event, low, high, begin)
    if low == stop:
        return -1
    event = g.taker_event[low]
    return event if event < end and g.event_time[event] < limit else -1


@njit(**_INLINED)
def _may_know(g, user, item):
    """Return whether a user may ever have taken an item: never False for one who did."""
    place = _place_of_pair(g.pair_filter, user, item)
    return (g.pair_filter[place >> 3] >> (place & 7)) & 1


@njit(**_INLINED)
def _mark(g, s, history_item, start, stop, user, limit, candidate):
    """Number the distinct items of a history but the candidate; return how many.

    Also returns how often the user took the candidate before.
    """
    size = 0
    for k in range(start, stop):
        item = history_item[k]
        if item == candidate:
            continue
        slot = s.slot_of_item[item] - 1
        if slot < 0:
            slot = size
            s.slot_of_item[item] = slot + 1
            s.item[slot] = item
            s.num_others[slot] = -1
            s.own_event[slot] = -1
            s.num_own[slot] = 0
            size += 1
        s.position[slot] = k
    num_taken = 0
    if user >= 0:
        for event in range(g.user_offsets[user], g.user_offsets[user + 1]):
            if g.event_time[event] >= limit:
                break
            item = g.event_item[event]
            num_taken += item == candidate
            slot = s.slot_of_item[item] - 1
            if slot >= 0:
                if s.num_own[slot] == 0:
                    s.own_event[slot] = event
                s.num_own[slot] += 1
    return size, num_taken


@njit(**_INLINED)
def _unmark(s, size):
    for slot in range(size):
        s.slot_of_item[s.item[slot]] = 0


@njit(**_INLINED)
def _others(g, s, slot, limit, period):
    """Return how many older events others have on a history item."""
    if s.num_others[slot] < 0:
        s.num_others[slot] = _num_older_in(g, s.item[slot], limit, period) - s.num_own[slot]
        s.own_rank[slot] = len(g.event_item)
        if s.num_own[slot]:
            s.own_rank[slot] = g.event_rank[s.own_event[slot]]
    return s.num_others[slot]


@njit(**_INLINED)
def _rate(g, s, slot, limit, period, by_degree):
    """Return the weight of a history item: 1 / older events by others, or 1."""
    return 1.0 / _others(g, s, slot, limit, period) if by_degree else 1.0


@njit(**_INLINED)
def _occurrence(g, s, slot, rank):
    """Return the place of the event number ``rank`` by others on a history item, in time order."""
    rank += s.own_rank[slot] <= rank  # each own event at or before it shifts it by one
    left, event = s.num_own[slot] - 1, s.own_event[slot] + 1
    while left > 0:
        if g.event_item[event] == s.item[slot]:
            rank += g.event_rank[event] <= rank
            left -= 1
        event += 1
    return g.item_offsets[s.item[slot]] + rank


@njit(**_INLINED)
def _below(state, stop):
    """Return a whole number from 0 to ``stop`` - 1."""
    return int(float(state >> np.uint64(11)) / 9007199254740992.0 * stop)


@njit(**_INLINED)
def _proposal(g, s, size, draw, by_degree, num_all):
    """Return a slot and an older event of another user on it, as a place among occurrences.

    Each item alike and then each of its events alike: 1 / degree to an event. Or, if not
    ``by_degree``, each of the ``num_all`` events alike. The place is -1 where an item has no event.
    All items must have been counted.
    """
    if by_degree:
        slot = _below(draw, size)
        others = s.num_others[slot]
        rank = _below(mixed(draw, 1), others)
    else:
        rank, slot = _below(draw, num_all), 0
        while rank >= s.num_others[slot]:
            rank -= s.num_others[slot]
            slot += 1
        others = s.num_others[slot]
    return slot, _occurrence(g, s, slot, rank) if others else -1


@njit(**_INLINED)
def _try(g, s, size, candidate, walk, num_tries, by_degree, num_all, has_noted):
    """Propose several events at once and note whose user may have taken the candidate.

    What each reads lies far apart in memory, and is waited for together.
    """
    for t in range(NUM_AT_ONCE):
        draw = mixed(walk, num_tries + t)  # apart from what `_offer` draws of the state
        s.try_slot[t], s.try_place[t] = _proposal(g, s, size, draw, by_degree, num_all)
    for t in range(NUM_AT_ONCE):
        s.try_user[t] = g.occurrence_user[max(s.try_place[t], 0)]
    for t in range(NUM_AT_ONCE):
        neighbour = s.try_user[t]
        may_close = s.taker[neighbour] > 0 if has_noted else _may_know(g, neighbour, candidate) > 0
        s.try_user[t] = neighbour if may_close & (s.try_place[t] >= 0) else -1


@njit(**_INLINED)
def _note_takers(g, s, first, stop, user):
    """Note who took the candidate in its occurrences ``first`` .. ``stop``, but ``user``."""
    for place in range(stop - 1, first - 1, -1):  # a repeat counts by its first time
        s.taker[g.occurrence_user[place]] = place - first + 1
    if user >= 0:
        s.taker[user] = 0


@njit(**_INLINED)
def _wipe_takers(g, s, first, stop):
    for place in range(first, stop):
        s.taker[g.occurrence_user[place]] = 0


@njit(**_INLINED)
def _event_of_taker(g, s, candidate, neighbour, limit, first, has_noted):
    """Return somebody's first event on the candidate, or -1.

    Where takers are noted, they must be one."""
    if has_noted:
        return np.int64(g.occurrence_event[first + s.taker[neighbour] - 1])
    return np.int64(first_event(g, candidate, neighbour, limit))


@njit(**_INLINED)
def _is_among(user, out_users, row, num_found):
    is_among = False
    for k in range(num_found):
        is_among = is_among or out_users[row, k, 0] == user
    return is_among


@njit(**_INLINED)
def _count_all(g, s, size, limit, period):
    """Return how many older events others have on all history items."""
    num_all = 0
    for slot in range(size):
        num_all += _others(g, s, slot, limit, period)
    return num_all


@njit(**_INLINED)
def _touch_takers(g, s, item, user, limit):
    """Note the other users who took ``item`` before; return how many, and all their events."""
    num_touched, num_events = 0, 0
    for place in range(g.item_offsets[item], g.item_offsets[item + 1]):
        if g.occurrence_time[place] >= limit:
            break
        neighbour = g.occurrence_user[place]
        if neighbour != user and s.slot_of_user[neighbour] == 0:
            _touch(s, neighbour, num_touched)
            num_touched += 1
            num_events += g.user_offsets[neighbour + 1] - g.user_offsets[neighbour]
    return num_touched, num_events


@njit(**_INLINED)
def _touch(s, neighbour, t):
    s.slot_of_user[neighbour] = t + 1
    s.touched[t] = neighbour
    s.overlap[t] = 0
    s.last[t] = -1


@njit(**_INLINED)
def _overlap_by_item(g, s, size, user, limit, period, num_touched, touches_all):
    """Add to each touched neighbour what they share with the history; return how many there are.

    Args:
        touches_all: Note whoever took any history item, rather than only those noted before.
    """
    for slot in range(size):
        others = _others(g, s, slot, limit, period)
        start = g.item_offsets[s.item[slot]]
        for place in range(start, start + others + s.num_own[slot]):
            neighbour = g.occurrence_user[place]
            t = s.slot_of_user[neighbour] - 1
            if t < 0:
                if not touches_all or neighbour == user:
                    continue
                t = num_touched
                _touch(s, neighbour, t)
                num_touched += 1
            if s.last[t] != slot:
                s.last[t] = slot
                s.overlap[t] += 1
    return num_touched


@njit(**_INLINED)
def _overlap_with_takers(g, s, size, user, limit, period, num_touched, num_events):
    """Do the same the cheaper way; ``num_events`` are all that the noted neighbours have."""
    if num_events < _count_all(g, s, size, limit, period):
        for t in range(num_touched):
            s.overlap[t] = _shared(g, s, s.touched[t], limit)
    else:
        _overlap_by_item(g, s, size, user, limit, period, num_touched, False)


@njit(**_BARE)
def _insert(keys, slots, found_at, out_users, row, found, key, user, slot, at):
    """Put a neighbour among those drawn so far, who wait for ``keys``, soonest first.

    A neighbour waits for the first of their items. Places before ``found`` are taken already.
    """
    place = out_users.shape[1] - 1
    for k in range(out_users.shape[1]):
        if out_users[row, k, 0] == user:
            if k < found or key >= keys[k]:
                return
            place = k
    while place > found and key < keys[place - 1]:
        keys[place], slots[place] = keys[place - 1], slots[place - 1]
        found_at[place] = found_at[place - 1]
        out_users[row, place, 0] = out_users[row, place - 1, 0]
        place -= 1
    keys[place], slots[place], found_at[place] = key, slot, at
    out_users[row, place, 0] = user


@njit(**_INLINED)
def _offer(s, state, by_overlap, rate, neighbour, slot, at, found, row, out_users):
    """Let a neighbour who shares a slot wait for it: exponentially, by ``rate``.

    Who waits for several items waits for the soonest: as long as for one of all their rates, and it
    is each item in proportion to its own. So the K soonest are a sample without return of
    neighbours by mass, and what they waited for one of their items by weight. Without
    ``by_overlap`` a neighbour waits once, whatever they share. A repeat waits as long again.
    """
    last = out_users.shape[1] - 1
    if by_overlap:
        draw = uniform(mixed(state, np.int64(neighbour) << 32 | s.item[slot]))
    else:
        draw, rate = uniform(mixed(state, neighbour)), 1.0
    if 1.0 - draw >= rate * s.chain_key[last]:
        return  # -log(x) >= 1 - x, so that few logarithms are taken
    key = -np.log(draw) / rate
    if key < s.chain_key[last]:
        _insert(
            s.chain_key, s.chain_slot, s.chain_at, out_users, row, found, key, neighbour, slot,
            at,
        )  # fmt: skip


@njit(**_INLINED)
def _offer_noted(
    g, s, noted, size, limit, period, by_overlap, by_degree, state, found, row, out_users
):
    """Offer whoever took a history item before and is not 0 in ``noted``. (U,)"""
    for slot in range(size):
        others = _others(g, s, slot, limit, period)
        rate = 1.0 / max(others, 1) if by_degree else 1.0
        start = g.item_offsets[s.item[slot]]
        stop = start + others + s.num_own[slot]
        for begin in range(start, stop, len(s.noted_place)):
            num_noted = 0
            for place in range(begin, min(begin + len(s.noted_place), stop)):
                s.noted_place[num_noted] = place
                # without a branch, which would often be mistaken
                num_noted += noted[np.uint32(g.occurrence_user[np.uint64(place)])] != 0
            for k in range(num_noted):
                place = s.noted_place[k]
                neighbour = g.occurrence_user[place]
                _offer(s, state, by_overlap, rate, neighbour, slot, place, found, row, out_users)


@njit(**_INLINED)
def _older_end(g, user, limit):
    """Return where the events of a user end that are older than ``limit``."""
    low, high = g.user_offsets[user], g.user_offsets[user + 1]
    if low < high and g.event_time[high - 1] < limit:
        return high
    return _first_from(g.event_time, low, high, limit)


@njit(**_INLINED)
def _shared(g, s, neighbour, limit):
    """Note which history items a neighbour took before, and when first; return how many."""
    s.num_walks[0] += 1
    walk = s.num_walks[0]
    s.seen_by[0] = walk  # what is not in the history
    found = 0
    for event in range(g.user_offsets[neighbour], _older_end(g, neighbour, limit)):
        number = s.slot_of_item[g.event_item[event]]
        s.shared_slot[found] = number - 1
        s.shared_event[found] = event
        found += s.seen_by[number] != walk  # without a branch, which would often be mistaken
        s.seen_by[number] = walk
    return found


@njit(**_INLINED)
def _place_of(s, num_shared, slot):
    """Return the place of a slot among those that the last walk noted, or -1."""
    for k in range(num_shared):
        if s.shared_slot[k] == slot:
            return k
    return -1


@njit(**_INLINED)
def _pick(g, s, num_shared, but, state, limit, period, by_degree):
    """Draw one of the items that the last walk noted by weight, any but slot ``but``.

    Returns its place there, -1 if there is none, and the weight of all that it was drawn from.
    """
    mass = 0.0
    for k in range(num_shared):
        if s.shared_slot[k] != but:
            mass += _rate(g, s, s.shared_slot[k], limit, period, by_degree)
    left, picked = uniform(state) * mass, -1
    for k in range(num_shared):
        if s.shared_slot[k] == but:
            continue
        picked = k
        left -= _rate(g, s, s.shared_slot[k], limit, period, by_degree)
        if left <= 0.0:
            break
    return picked, mass


@njit(**_INLINED)
def _forget(s, num_touched):
    for t in range(num_touched):
        s.slot_of_user[s.touched[t]] = 0


@njit(**_BARE)
def sample_candidate_closed(
    g, s, begin, end, user_index, candidates, history_item, history_start, history_stop,
    limits, asked_at, has_repeats, by_overlap, by_degree, seed,
    out_items, out_users, out_weight, out_position, out_events,
):  # fmt: skip
    """Write up to K chains for each row of a part that end on its candidate.

    First by proposals: an event on a history item closes if its user took the candidate. Where few
    do, by reading all neighbours: the rest is drawn from those not found yet. Both ways together
    are one sample without return, since the proposals are independent draws of the same chances.
    """
    num_chains = out_users.shape[1]
    usual_log = 2 * len(g.event_item) // max(len(s.slot_of_user), 1)
    for row in range(begin, end):
        candidate, user, limit = candidates[row], user_index[row], limits[row]
        if candidate < 0:
            continue
        period = _period(g, limit)
        first = g.item_offsets[candidate]
        stop = first + _num_older_in(g, candidate, limit, period)
        if first == stop:
            continue
        size, num_own = _mark(
            g, s, history_item, history_start[row], history_stop[row], user, limit, candidate
        )
        num_takers = stop - first - num_own
        if size == 0 or num_takers == 0:
            _unmark(s, size)
            continue
        state = mixed(mixed(mixed(seed, user), candidate), asked_at[row])
        found = 0
        cost = _count_all(g, s, size, limit, period)
        budget = min(cost, num_takers * _LONG_LOG)
        by_taker = num_takers * usual_log * _WALK_COST < cost
        has_noted = num_takers <= _NOTED_FIRST
        if has_noted:
            _note_takers(g, s, first, stop, user)
        if by_overlap and budget >= LEAST_COST:
            walk, num_tries, left = mixed(state, size), 0, budget
            # go on while, found as often as so far, what is missing is likely within what is left
            while found < num_chains and (
                num_tries == 0
                or (num_chains - found) * (num_tries + NUM_AT_ONCE) * TRY_COST < (found + 1) * left
            ):
                _try(g, s, size, candidate, walk, num_tries, by_degree, cost, has_noted)
                num_tries += NUM_AT_ONCE
                left = budget - num_tries * TRY_COST
                for t in range(NUM_AT_ONCE):
                    slot, place, neighbour = s.try_slot[t], s.try_place[t], s.try_user[t]
                    if neighbour < 0 or found == num_chains:
                        continue
                    last = _event_of_taker(g, s, candidate, neighbour, limit, first, has_noted)
                    if last < 0 or _is_among(neighbour, out_users, row, found):
                        continue
                    event = g.occurrence_event[place]
                    if has_repeats and first_event(g, s.item[slot], neighbour, limit) != event:
                        continue  # a second time on the item gives no second chance
                    out_users[row, found, 0] = neighbour
                    out_items[row, found, 0], out_items[row, found, 1] = s.item[slot], candidate
                    out_events[row, found, 0], out_events[row, found, 1] = event, last
                    out_weight[row, found] = _rate(g, s, slot, limit, period, by_degree)
                    out_position[row, found] = s.position[slot]
                    found += 1
        if found < num_chains:
            s.chain_key[:] = np.inf
            if by_taker:
                for place in range(first, stop):
                    neighbour = g.occurrence_user[place]
                    if neighbour == user:
                        continue
                    for k in range(_shared(g, s, neighbour, limit)):
                        slot, event = s.shared_slot[k], s.shared_event[k]
                        rate = _rate(g, s, slot, limit, period, by_degree)
                        _offer(
                            s, state, by_overlap, rate, neighbour, slot, event, found, row,
                            out_users,
                        )  # fmt: skip
            else:
                if not has_noted:
                    has_noted = True
                    _note_takers(g, s, first, stop, user)
                _offer_noted(
                    g, s, s.taker, size, limit, period, by_overlap, by_degree, state, found, row,
                    out_users,
                )  # fmt: skip
            for k in range(found, num_chains):
                neighbour, slot = out_users[row, k, 0], s.chain_slot[k]
                if neighbour < 0:
                    break
                event, mass = s.chain_at[k], 1.0
                if not by_taker:
                    event = g.occurrence_event[event]
                if not by_overlap:
                    num_shared = _shared(g, s, neighbour, limit)
                    draw = mixed(mixed(state, neighbour), 1)
                    picked, mass = _pick(g, s, num_shared, -1, draw, limit, period, by_degree)
                    slot, event = s.shared_slot[picked], s.shared_event[picked]
                out_items[row, k, 0], out_items[row, k, 1] = s.item[slot], candidate
                out_events[row, k, 0] = event
                out_events[row, k, 1] = _event_of_taker(
                    g, s, candidate, neighbour, limit, first, has_noted
                )
                out_weight[row, k] = _rate(g, s, slot, limit, period, by_degree) / mass
                out_position[row, k] = s.position[slot]
        if has_noted:
            _wipe_takers(g, s, first, stop)
        _unmark(s, size)


@njit(**_BARE)
def sample_history_closed(
    g, s, begin, end, user_index, history_item, history_start, history_stop,
    limits, asked_at, has_repeats, by_overlap, by_degree, seed,
    out_items, out_users, out_weight, out_position, out_last_position, out_events,
):  # fmt: skip
    """Write up to K chains for each row of a part between two items of its history."""
    num_chains = out_users.shape[1]
    for row in range(begin, end):
        user, limit = user_index[row], limits[row]
        size, _ = _mark(g, s, history_item, history_start[row], history_stop[row], user, limit, -1)
        if size < 2:
            _unmark(s, size)
            continue
        state = mixed(mixed(mixed(seed, user), size), asked_at[row])
        state = mixed(state, s.item[size - 1])
        num_found = 0
        period = _period(g, limit)
        num_all = _count_all(g, s, size, limit, period)
        cost = 3 * num_all
        proposes, is_read = by_overlap and cost >= LEAST_COST, False
        walk, spent = mixed(state, size), 0
        while num_found < num_chains:
            if proposes and spent < cost:
                walk = mixed(walk, spent)
                spent += TRY_COST
                one, place = _proposal(g, s, size, walk, by_degree, num_all)
                if place < 0:
                    continue
                neighbour, event = g.occurrence_user[place], g.occurrence_event[place]
                if _is_among(neighbour, out_users, row, num_found):
                    continue
                if has_repeats and first_event(g, s.item[one], neighbour, limit) != event:
                    continue
                num_shared = _shared(g, s, neighbour, limit)
                spent += (_older_end(g, neighbour, limit) - g.user_offsets[neighbour]) * 2
                if num_shared < 2:
                    continue
                out_users[row, num_found, 0] = neighbour
            else:
                if not is_read:
                    is_read = True
                    s.chain_key[:] = np.inf
                    if _note_sharing(g, s, size, user, limit, period):
                        _offer_noted(
                            g, s, s.shares_two, size, limit, period, by_overlap, by_degree, state,
                            num_found, row, out_users,
                        )  # fmt: skip
                    _wipe_sharing(g, s, size)
                neighbour, one = out_users[row, num_found, 0], s.chain_slot[num_found]
                if neighbour < 0:
                    break
                num_shared = _shared(g, s, neighbour, limit)
                if not by_overlap:
                    draw = mixed(mixed(state, neighbour), 1)
                    picked, _ = _pick(g, s, num_shared, -1, draw, limit, period, by_degree)
                    one = s.shared_slot[picked]
            here = _place_of(s, num_shared, one)
            draw = mixed(mixed(state, neighbour), 2)
            there, rest = _pick(g, s, num_shared, one, draw, limit, period, by_degree)
            if s.shared_slot[there] < one:  # in the order of the history
                here, there = there, here
            first, second = s.shared_slot[here], s.shared_slot[there]
            out_items[row, num_found, 0] = s.item[first]
            out_items[row, num_found, 1] = s.item[second]
            out_events[row, num_found, 0] = s.shared_event[here]
            out_events[row, num_found, 1] = s.shared_event[there]
            out_position[row, num_found] = s.position[first]
            out_last_position[row, num_found] = s.position[second]
            mass = rest + _rate(g, s, one, limit, period, by_degree)
            a = _rate(g, s, first, limit, period, by_degree)
            b = _rate(g, s, second, limit, period, by_degree)
            rest_a, rest_b = max(mass - a, b), max(mass - b, a)  # rounding aside, never less
            weight = a * b * (1.0 / rest_a + 1.0 / rest_b)
            out_weight[row, num_found] = weight if by_overlap else weight / mass
            num_found += 1
        _unmark(s, size)


@njit(**_INLINED)
def _note_sharing(g, s, size, user, limit, period):
    """Note in ``shares_two`` who else took two history items before; return whether any did."""
    is_any = False
    for slot in range(size):
        start = g.item_offsets[s.item[slot]]
        stop = start + _others(g, s, slot, limit, period) + s.num_own[slot]
        for place in range(start, stop if slot > 0 else start):
            neighbour = g.occurrence_user[place]
            if s.is_noted[neighbour] and neighbour != user:
                s.shares_two[neighbour] = True
                is_any = True
        for place in range(start, stop if slot + 1 < size else start):
            s.is_noted[g.occurrence_user[place]] = True
    return is_any


@njit(**_INLINED)
def _wipe_sharing(g, s, size):
    for slot in range(size):
        start = g.item_offsets[s.item[slot]]
        for place in range(start, start + s.num_others[slot] + s.num_own[slot]):
            s.is_noted[g.occurrence_user[place]] = False
            s.shares_two[g.occurrence_user[place]] = False


@njit(**_BARE)
def sample_long(
    g, s, begin, end, user_index, candidates, history_item, history_start, history_stop,
    limits, asked_at, is_history, by_degree, seed, tries_per_chain,
    out_items, out_users, out_weight, out_position, out_last_position,
):  # fmt: skip
    """Write up to K chains over several neighbours for each row of a part.

    A walk leads from the last item back: to one of its takers, on to one of their items that the
    user does not have, and so on, each step even; it closes if who it ends at shares an item.
    """
    num_chains, num_neighbours = out_users.shape[1], out_users.shape[2]
    for row in range(begin, end):
        candidate, user, limit = candidates[row], user_index[row], limits[row]
        if candidate < 0 and not is_history:
            continue
        size, _ = _mark(
            g, s, history_item, history_start[row], history_stop[row], user, limit, candidate
        )
        if size == 0:
            continue
        period = _period(g, limit)
        walk = mixed(mixed(mixed(mixed(seed, user), candidate), asked_at[row]), size)
        found = 0
        for attempt in range(tries_per_chain * num_chains):
            if found == num_chains:
                break
            walk = mixed(walk, attempt)
            last_slot, item, chance = -1, candidate, 1.0
            if candidate < 0:
                last_slot = _below(walk, size)
                item = s.item[last_slot]
            out_items[row, found, num_neighbours] = item
            is_whole = True
            for j in range(num_neighbours - 1, -1, -1):
                num_takers = _num_older_in(g, item, limit, period)
                if num_takers == 0:
                    is_whole = False
                    break
                walk = mixed(walk, j)
                place = g.item_offsets[item] + _below(walk, num_takers)
                neighbour = g.occurrence_user[place]
                chance /= num_takers
                is_whole = neighbour != user
                for later in range(j + 1, num_neighbours):
                    is_whole = is_whole and out_users[row, found, later] != neighbour
                if not is_whole:
                    break
                out_users[row, found, j] = neighbour
                if j == 0:
                    break
                first = g.user_offsets[neighbour]
                num_older_events = _older_end(g, neighbour, limit) - first
                walk = mixed(walk, j)
                item = g.event_item[first + _below(walk, num_older_events)]
                chance /= num_older_events
                is_whole = s.slot_of_item[item] == 0
                for later in range(j, num_neighbours + 1):
                    is_whole = is_whole and out_items[row, found, later] != item
                if not is_whole:
                    break
                out_items[row, found, j] = item
            if not is_whole:
                continue
            neighbour = out_users[row, found, 0]
            is_new = True
            for k in range(found):
                is_new = is_new and out_users[row, k, 0] != neighbour
            if not is_new:
                continue
            num_shared = _shared(g, s, neighbour, limit)
            draw = mixed(walk, num_neighbours)
            picked, mass = _pick(g, s, num_shared, last_slot, draw, limit, period, by_degree)
            if picked < 0:
                continue
            slot = s.shared_slot[picked]
            rate = _rate(g, s, slot, limit, period, by_degree)
            out_items[row, found, 0] = s.item[slot]
            out_weight[row, found] = chance * rate / mass
            out_position[row, found] = s.position[slot]
            if last_slot >= 0:
                out_last_position[row, found] = s.position[last_slot]
            found += 1
        if found < num_chains:  # the start of a walk that led nowhere
            out_items[row, found, :] = -1
            out_users[row, found, :] = -1
        _unmark(s, size)


@njit(**_BARE)
def count_closable(
    g, s, begin, end, user_index, candidates, history_item, history_start, history_stop, limits,
    is_history, out,
):  # fmt: skip
    """Write how many chains close for each row of a part: on its candidate, or on its history."""
    for row in range(begin, end):
        candidate, user, limit = candidates[row], user_index[row], limits[row]
        if candidate < 0 and not is_history:
            continue
        size, _ = _mark(
            g, s, history_item, history_start[row], history_stop[row], user, limit, candidate
        )
        period = _period(g, limit)
        if is_history:
            num_touched = _overlap_by_item(g, s, size, user, limit, period, 0, True)
        else:
            num_touched, num_events = _touch_takers(g, s, candidate, user, limit)
            _overlap_with_takers(g, s, size, user, limit, period, num_touched, num_events)
        count = 0
        for t in range(num_touched):
            overlap = np.int64(s.overlap[t])
            count += overlap * (overlap - 1) // 2 if is_history else overlap
        out[row] = count
        _forget(s, num_touched)
        _unmark(s, size)


@njit(**_BARE)
def count_closable_everywhere(
    g, s, begin, end, user_index, history_item, history_start, history_stop, limits,
    last_of_item, out,
):  # fmt: skip
    """Add to (R, N) ``out`` how many chains close on each item of the catalogue."""
    num_users = len(s.slot_of_user)
    for row in range(begin, end):
        user, limit = user_index[row], limits[row]
        size, _ = _mark(g, s, history_item, history_start[row], history_stop[row], user, limit, -1)
        period = _period(g, limit)
        num_touched = _overlap_by_item(g, s, size, user, limit, period, 0, True)
        for t in range(num_touched):
            neighbour = s.touched[t]
            for event in range(g.user_offsets[neighbour], g.user_offsets[neighbour + 1]):
                if g.event_time[event] >= limit:
                    break
                item = g.event_item[event]
                if last_of_item[item] != row * num_users + neighbour:
                    last_of_item[item] = row * num_users + neighbour
                    # an item is no way to itself
                    out[row, item] += s.overlap[t] - (s.slot_of_item[item] > 0)
        _forget(s, num_touched)
        _unmark(s, size)


@njit(**_BARE)
def weigh_steps(
    g, begin, end, user_index, candidates, history_item, history_start, history_stop, limits,
    window, reverse_share, recency_power, total_power, column_of, out,
):  # fmt: skip
    """Add to (R, C) ``out`` how strongly chains of few steps lead to each candidate."""
    for row in range(begin, end):
        user, limit = user_index[row], limits[row]
        for c in range(candidates.shape[1]):
            if candidates[row, c] >= 0:
                column_of[candidates[row, c]] = c
        stop = history_stop[row]
        for place in range(history_start[row], stop):
            item = history_item[place]
            recency = float(stop - place) ** -recency_power
            first = g.item_offsets[item]
            older = first + num_older(g, item, limit)
            weight = recency * max(float(older - first), 1.0) ** -total_power
            for at in range(first, older):
                neighbour = g.occurrence_user[at]
                if neighbour == user:
                    continue
                event = np.int64(g.occurrence_event[at])
                for step in range(1, window + 1):
                    later = event + step
                    if later >= g.user_offsets[neighbour + 1] or g.event_time[later] >= limit:
                        break
                    c = column_of[g.event_item[later]]
                    if c >= 0:
                        out[row, c] += weight / step
                for step in range(1, window + 1):
                    earlier = event - step
                    if earlier < g.user_offsets[neighbour]:
                        break
                    c = column_of[g.event_item[earlier]]
                    if c >= 0:
                        out[row, c] += weight * reverse_share / step
        for c in range(candidates.shape[1]):
            if candidates[row, c] >= 0:
                column_of[candidates[row, c]] = -1


@njit(**_BARE)
def count_older(g, begin, end, candidates, limits, out):
    """Write to (R, C) ``out`` how many events of each candidate are older than the query."""
    for row in range(begin, end):
        for c in range(candidates.shape[1]):
            item = candidates[row, c]
            if item >= 0:
                out[row, c] = num_older(g, item, limits[row])


@njit(**_BARE)
def edges_of(g, users, items, limits, query, out, begin, end):
    """Write each neighbour's first event on the item before and after, where missing. (M, 2 L)"""
    for chain in range(begin, end):
        limit = limits[query[chain]]
        for j in range(users.shape[1]):
            if users[chain, j] >= 0 and out[chain, 2 * j] < 0:
                out[chain, 2 * j] = first_event(g, items[chain, j], users[chain, j], limit)
                out[chain, 2 * j + 1] = first_event(g, items[chain, j + 1], users[chain, j], limit)


@njit(nogil=True, cache=True)
def draw_untouched(user_index, row_key, touched_keys, drawn_from, num_items, seed, max_attempts):
    """Return for each row an item whose key, user * N + item, is not in the sorted keys; or -1.

    Uniform over the catalogue, or over the entries of ``drawn_from`` if it has any.
    """
    drawn = np.full(len(user_index), -1, np.int32)
    for row in range(len(user_index)):
        state = mixed(mixed(seed, user_index[row]), row_key[row])
        for attempt in range(max_attempts):
            share = 1.0 - uniform(mixed(state, attempt))  # at least 0 and below 1
            if len(drawn_from):
                item = np.int64(drawn_from[int(share * len(drawn_from))])
            else:
                item = np.int64(share * num_items)
            key = np.int64(user_index[row]) * num_items + item
            place = np.searchsorted(touched_keys, key)
            if place == len(touched_keys) or touched_keys[place] != key:
                drawn[row] = item
                break
    return drawn


@njit(nogil=True, cache=True)
def draw_alike(user_index, row_key, target, touched_keys, order, place_of, window, seed, attempts):
    """Return for each row an item that stands near its target in ``order``, not touched; or -1.

    Evenly from ``window`` places to either side, which grow by as many after each 16 attempts.
    """
    num_items = len(order)
    drawn = np.full(len(user_index), -1, np.int32)
    for row in range(len(user_index)):
        state = mixed(mixed(seed, user_index[row]), row_key[row])
        for attempt in range(attempts):
            reach = window * (1 + attempt // 16)
            share = 1.0 - uniform(mixed(state, attempt))  # at least 0 and below 1
            place = place_of[target[row]] - reach + np.int64(share * (2 * reach + 1))
            if place < 0 or place >= num_items:
                continue
            item = order[place]
            key = np.int64(user_index[row]) * num_items + item
            found = np.searchsorted(touched_keys, key)
            if found == len(touched_keys) or touched_keys[found] != key:
                drawn[row] = item
                break
    return drawn
