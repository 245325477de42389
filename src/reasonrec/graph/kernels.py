"""The compiled loops of this stage, in one file: numba's cache does not notice edits elsewhere.

Letters: R rows, U users, N items, E events. Every loop takes the arrays of an ``InteractionGraph``
first, needs no lock (``nogil``), and draws its random numbers by hashing what a row asks about, so
that neither the order of rows nor the number of threads changes an answer.
"""

# pyright: reportIndexIssue=false, reportCallIssue=false
import numpy as np
from numba import njit

_ONE = np.uint64(1)


@njit(nogil=True, cache=True, inline="always")
def mixed(state: np.uint64, value: int) -> np.uint64:
    """Return ``state`` with ``value`` stirred in (the finaliser of SplitMix64, Steele 2014)."""
    z = (state ^ np.uint64(value)) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit(nogil=True, cache=True, inline="always")
def uniform(state: np.uint64) -> float:
    """Return a number above 0 and at most 1 that depends on ``state`` alone."""
    return float((state >> np.uint64(11)) + _ONE) / 9007199254740992.0  # 53 bits: n / 2**53


@njit(nogil=True, cache=True)
def events_by_item(event_item, order, item_offsets):
    """Return event numbers grouped by item, inside an item as ``order`` lists them. (E,)"""
    grouped = np.empty(len(order), np.int64)
    cursor = item_offsets[:-1].copy()
    for position in range(len(order)):
        event = order[position]
        item = event_item[event]
        grouped[cursor[item]] = event
        cursor[item] += 1
    return grouped


@njit(nogil=True, cache=True)
def num_older(event_time, occurrence_event, start, stop, asked_at):
    """Return how many occurrences of an item (in time order) are before ``asked_at``."""
    low, high = start, stop
    while low < high:
        middle = (low + high) // 2
        if event_time[occurrence_event[middle]] < asked_at:
            low = middle + 1
        else:
            high = middle
    return low - start


@njit(nogil=True, cache=True)
def rank_of(event_time, occurrence_event, start, stop, event):
    """Return the position of ``event`` among its item's occurrences."""
    time = event_time[event]
    low, high = start, stop
    while low < high:
        middle = (low + high) // 2
        other = occurrence_event[middle]
        if event_time[other] < time or (event_time[other] == time and other < event):
            low = middle + 1
        else:
            high = middle
    return low - start


@njit(nogil=True, cache=True)
def own_ranks(
    user_offsets, event_item, event_time, item_offsets, occurrence_event, user, item, asked_at
):
    """Return the positions of ``user`` among the older occurrences of ``item``, ascending."""
    found = np.empty(0, np.int64)
    if user < 0:
        return found
    num_found = 0
    for event in range(user_offsets[user], user_offsets[user + 1]):
        if event_time[event] >= asked_at:
            break
        num_found += event_item[event] == item
    found = np.empty(num_found, np.int64)
    num_found = 0
    for event in range(user_offsets[user], user_offsets[user + 1]):
        if num_found == len(found):
            break
        if event_item[event] == item:
            found[num_found] = rank_of(
                event_time, occurrence_event, item_offsets[item], item_offsets[item + 1], event
            )
            num_found += 1
    return found


@njit(nogil=True, cache=True)
def visible_occurrences(
    user_offsets, event_item, event_time, event_user, item_offsets, occurrence_event,
    item, user, asked_at, limit, state, events,
):  # fmt: skip
    """Fill ``events`` with older events of others on ``item``; return how many, at most ``limit``.

    Past ``limit`` they are evenly spaced in time from a random start. The user's own events are
    taken out before spacing: the answer is the one of a graph without them.
    """
    start, stop = item_offsets[item], item_offsets[item + 1]
    total = num_older(event_time, occurrence_event, start, stop, asked_at)
    taken = 0
    if total <= limit:
        for position in range(start, start + total):
            event = occurrence_event[position]
            if event_user[event] != user:
                events[taken] = event
                taken += 1
        return taken
    own = own_ranks(
        user_offsets, event_item, event_time, item_offsets, occurrence_event, user, item, asked_at
    )
    total -= len(own)
    taken = min(limit, total)
    phase = uniform(state) if total > limit else 0.0
    for j in range(taken):
        # uniform() can be 1, which would step past the end
        rank = min(int((j + phase) * total / taken), total - 1) if total > limit else j
        for r in range(len(own)):
            rank += rank >= own[r]
        events[j] = occurrence_event[start + rank]
    return taken


@njit(nogil=True, cache=True)
def look_up_rows(
    user_offsets, event_item, event_time, event_user, item_offsets, occurrence_event,
    user_index, via_item, history_item, history_offsets, asked_at,
    window, reverse_share, max_neighbours, num_recent, seed,
    slot_of_user, excluded_by, weight_of, best_of, count_of, witness_of, slot_of_item,
    out_item, out_weight, out_count, out_witness,
):  # fmt: skip
    """Write the links of every row to ``out_*``; what they mean is in ``lookup.look_up``."""
    num_links = out_item.shape[1]
    events = np.empty(max_neighbours, np.int64)
    slot_event = np.empty(max_neighbours, np.int64)
    slot_overlap = np.empty(max_neighbours, np.int64)
    slot_last = np.empty(max_neighbours, np.int64)
    touched = np.empty(2 * window * max_neighbours, np.int64)
    recent = np.empty(num_recent, np.int64)
    for row in range(len(via_item)):
        via, user, limit = via_item[row], user_index[row], asked_at[row]
        if via < 0:
            continue
        state = mixed(mixed(seed, user), via)
        num_events = visible_occurrences(
            user_offsets, event_item, event_time, event_user, item_offsets, occurrence_event,
            via, user, limit, max_neighbours, state, events,
        )  # fmt: skip
        num_slots = 0
        for j in range(num_events):
            neighbour = event_user[events[j]]
            if slot_of_user[neighbour] < 0:  # a repeat counts by its first time
                slot_of_user[neighbour] = num_slots
                slot_event[num_slots] = events[j]
                slot_overlap[num_slots] = 0
                slot_last[num_slots] = -1
                num_slots += 1

        first, last = history_offsets[row], history_offsets[row + 1]
        for k in range(first, last):
            excluded_by[history_item[k]] = row
        excluded_by[via] = row
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
            user_offsets, event_item, event_time, event_user, item_offsets, occurrence_event,
            recent[:size], limit, slot_event[:num_slots], slot_of_user, slot_of_item,
            slot_overlap, slot_last,
        )  # fmt: skip

        num_touched = 0
        for slot in range(num_slots):
            event = slot_event[slot]
            neighbour = event_user[event]
            begin, end = user_offsets[neighbour], user_offsets[neighbour + 1]
            share = 1.0 + slot_overlap[slot]
            for signed_step in range(1, 2 * window + 1):
                step = signed_step if signed_step <= window else signed_step - window
                if signed_step <= window:
                    other, weight = event + step, share / step
                    if other >= end or event_time[other] >= limit:
                        continue
                else:
                    other, weight = event - step, share * reverse_share / step
                    if weight == 0.0 or other < begin:
                        break
                item = event_item[other]
                if excluded_by[item] == row or slot_of_item[item] == slot:
                    continue
                if slot_of_item[item] < 0:
                    weight_of[item] = 0.0
                    best_of[item] = 0.0
                    count_of[item] = 0
                    touched[num_touched] = item
                    num_touched += 1
                slot_of_item[item] = slot
                weight_of[item] += weight
                count_of[item] += 1
                if weight > best_of[item] or (
                    weight == best_of[item] and neighbour < witness_of[item]
                ):
                    best_of[item] = weight
                    witness_of[item] = neighbour

        for t in range(num_touched):
            item = touched[t]
            slot_of_item[item] = -1
            weight = np.float32(weight_of[item])
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
                out_witness[row, k] = witness_of[out_item[row, k]]
        for slot in range(num_slots):
            slot_of_user[event_user[slot_event[slot]]] = -1


@njit(nogil=True, cache=True)
def _count_overlap(
    user_offsets, event_item, event_time, event_user, item_offsets, occurrence_event,
    recent, asked_at, slot_event, slot_of_user, slot_of_item, slot_overlap, slot_last,
):  # fmt: skip
    """Add to ``slot_overlap`` how many ``recent`` items each neighbour took before ``asked_at``."""
    if len(recent) == 0:
        return
    cost_by_item = 0
    for item in recent:
        cost_by_item += item_offsets[item + 1] - item_offsets[item]
    cost_by_user = 0
    for slot in range(len(slot_event)):
        neighbour = event_user[slot_event[slot]]
        cost_by_user += user_offsets[neighbour + 1] - user_offsets[neighbour]
    if cost_by_item <= cost_by_user:
        for item in recent:
            for position in range(item_offsets[item], item_offsets[item + 1]):
                event = occurrence_event[position]
                if event_time[event] >= asked_at:
                    break
                slot = slot_of_user[event_user[event]]
                if slot >= 0 and slot_last[slot] != item:
                    slot_last[slot] = item
                    slot_overlap[slot] += 1
        return
    for k in range(len(recent)):
        slot_of_item[recent[k]] = k
    for slot in range(len(slot_event)):
        neighbour = event_user[slot_event[slot]]
        seen = 0
        for event in range(user_offsets[neighbour], user_offsets[neighbour + 1]):
            if event_time[event] >= asked_at:
                break
            k = slot_of_item[event_item[event]]
            if k >= 0 and not (seen >> k) & 1:
                seen |= 1 << k
                slot_overlap[slot] += 1
    for k in range(len(recent)):
        slot_of_item[recent[k]] = -1
