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
    """Fill ``events`` with older events of others on ``item``; return how many of how many.

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
        return taken, taken
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
    return taken, total


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
        num_events, _ = visible_occurrences(
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


@njit(nogil=True, cache=True)
def _mark_history(
    user_offsets, event_item, event_time, item_offsets, occurrence_event,
    items, candidate, user, asked_at, by_degree, slot_of_item, distinct, rate,
):  # fmt: skip
    """Number the distinct history items, oldest first, with their weight; return how many.

    The weight is 1 / (1 + others' older events), so that hubs do not dominate, or 1.
    """
    size = 0
    for item in items:
        if item != candidate and slot_of_item[item] < 0:
            slot_of_item[item] = size
            distinct[size] = item
            start = item_offsets[item]
            rate[size] = 1.0 + num_older(
                event_time, occurrence_event, start, item_offsets[item + 1], asked_at
            )
            size += 1
    if user >= 0:
        for event in range(user_offsets[user], user_offsets[user + 1]):
            if event_time[event] >= asked_at:
                break
            slot = slot_of_item[event_item[event]]
            if slot >= 0:
                rate[slot] -= 1.0
    for slot in range(size):
        rate[slot] = 1.0 / rate[slot] if by_degree else 1.0
    return size


@njit(nogil=True, cache=True, inline="always")
def _waiting_time(state, rate):
    """Return an exponential draw; the k smallest of many are a weighted sample without return."""
    return -np.log(uniform(state)) / rate


@njit(nogil=True, cache=True)
def _insert(key, user, row, keys, out_user):
    """Keep the smallest keys of a row in order; return the place taken, or -1."""
    place = len(keys)
    while place > 0 and (
        out_user[row, place - 1] < 0
        or key < keys[place - 1]
        or (key == keys[place - 1] and user < out_user[row, place - 1])
    ):
        place -= 1
    if place == len(keys):
        return -1
    for k in range(len(keys) - 1, place, -1):
        keys[k] = keys[k - 1]
        out_user[row, k] = out_user[row, k - 1]
    keys[place] = key
    out_user[row, place] = user
    return place


@njit(nogil=True, cache=True)
def sample_candidate_closed(
    user_offsets, event_item, event_time, event_user, item_offsets, occurrence_event,
    user_index, candidates, history_item, history_start, history_stop, asked_at,
    max_neighbours, by_overlap, by_degree, seed, slot_of_item, last_of_user,
    out_first, out_user, out_second, out_weight, out_closable,
):  # fmt: skip
    """Write up to K chains a row that end on its candidate; see ``sampling.sample_chains``."""
    num_chains = out_user.shape[1]
    longest = 1
    for row in range(len(user_index)):
        longest = max(longest, history_stop[row] - history_start[row])
    events = np.empty(max_neighbours, np.int64)
    distinct = np.empty(longest, np.int64)
    rate = np.empty(longest)
    counted_by = np.empty(longest, np.int64)
    keys = np.empty(num_chains)
    for row in range(len(user_index)):
        candidate, user, limit = candidates[row], user_index[row], asked_at[row]
        if candidate < 0:
            continue
        size = _mark_history(
            user_offsets, event_item, event_time, item_offsets, occurrence_event,
            history_item[history_start[row] : history_stop[row]], candidate, user, limit,
            by_degree, slot_of_item, distinct, rate,
        )  # fmt: skip
        state = mixed(mixed(mixed(seed, user), candidate), limit)
        num_events, total = visible_occurrences(
            user_offsets, event_item, event_time, event_user, item_offsets, occurrence_event,
            candidate, user, limit, max_neighbours, state, events,
        )  # fmt: skip
        counted_by[:size] = -1
        closable = 0
        for j in range(num_events if size else 0):
            neighbour = event_user[events[j]]
            if last_of_user[neighbour] == row:
                continue
            last_of_user[neighbour] = row
            state_of_neighbour = mixed(state, neighbour)
            overlap, mass, best_key, best_slot = 0, 0.0, np.inf, -1
            for event in range(user_offsets[neighbour], user_offsets[neighbour + 1]):
                if event_time[event] >= limit:
                    break
                slot = slot_of_item[event_item[event]]
                if slot < 0 or counted_by[slot] == neighbour:
                    continue
                counted_by[slot] = neighbour
                overlap += 1
                mass += rate[slot]
                key = _waiting_time(mixed(state_of_neighbour, distinct[slot]), rate[slot])
                if key < best_key:
                    best_key, best_slot = key, slot
            if overlap == 0:
                continue
            closable += overlap
            share = overlap if by_overlap else 1
            key = _waiting_time(state_of_neighbour, share * mass)
            place = _insert(key, neighbour, row, keys, out_user)
            if place >= 0:
                for k in range(num_chains - 1, place, -1):
                    out_first[row, k] = out_first[row, k - 1]
                    out_second[row, k] = out_second[row, k - 1]
                    out_weight[row, k] = out_weight[row, k - 1]
                out_first[row, place] = distinct[best_slot]
                out_second[row, place] = candidate
                out_weight[row, place] = share * rate[best_slot]
        if num_events:
            out_closable[row] = closable * (total / num_events)
        for slot in range(size):
            slot_of_item[distinct[slot]] = -1


@njit(nogil=True, cache=True)
def sample_history_closed(
    user_offsets, event_item, event_time, event_user, item_offsets, occurrence_event,
    user_index, history_item, history_start, history_stop, asked_at,
    max_neighbours, by_overlap, by_degree, seed,
    slot_of_item, overlap_of_user, mass_of_user, last_of_user,
    out_first, out_user, out_second, out_weight, out_closable,
):  # fmt: skip
    """Write up to K chains a row between two history items; see ``sampling.sample_chains``."""
    num_chains = out_user.shape[1]
    longest = 1
    for row in range(len(user_index)):
        longest = max(longest, history_stop[row] - history_start[row])
    events = np.empty(max_neighbours, np.int64)
    touched = np.empty(min(len(overlap_of_user), longest * max_neighbours), np.int64)
    distinct = np.empty(longest, np.int64)
    rate = np.empty(longest)
    counted_by = np.empty(longest, np.int64)
    keys = np.empty(num_chains)
    for row in range(len(user_index)):
        user, limit = user_index[row], asked_at[row]
        size = _mark_history(
            user_offsets, event_item, event_time, item_offsets, occurrence_event,
            history_item[history_start[row] : history_stop[row]], -1, user, limit,
            by_degree, slot_of_item, distinct, rate,
        )  # fmt: skip
        state = mixed(mixed(seed, user), limit)
        for slot in range(size):
            state = mixed(state, distinct[slot])
        num_touched = 0
        for slot in range(size):
            num_events, _ = visible_occurrences(
                user_offsets, event_item, event_time, event_user, item_offsets, occurrence_event,
                distinct[slot], user, limit, max_neighbours, mixed(state, distinct[slot]), events,
            )  # fmt: skip
            for j in range(num_events):
                neighbour = event_user[events[j]]
                if last_of_user[neighbour] < 0:
                    touched[num_touched] = neighbour
                    num_touched += 1
                    overlap_of_user[neighbour] = 0
                    mass_of_user[neighbour] = 0.0
                if last_of_user[neighbour] != slot:
                    last_of_user[neighbour] = slot
                    overlap_of_user[neighbour] += 1
                    mass_of_user[neighbour] += rate[slot]
        closable = 0
        for t in range(num_touched):
            neighbour = touched[t]
            last_of_user[neighbour] = -1
            overlap = overlap_of_user[neighbour]
            if overlap < 2:
                continue
            closable += overlap * (overlap - 1) // 2
            share = overlap if by_overlap else 1
            key = _waiting_time(mixed(state, neighbour), share * mass_of_user[neighbour])
            _insert(key, neighbour, row, keys, out_user)
        out_closable[row] = closable
        for k in range(num_chains):
            neighbour = out_user[row, k]
            if neighbour < 0:
                break
            # the two shared items with the shortest waiting times, in the order of the history
            counted_by[:size] = -1
            first, second, first_key, second_key = -1, -1, np.inf, np.inf
            for event in range(user_offsets[neighbour], user_offsets[neighbour + 1]):
                if event_time[event] >= limit:
                    break
                slot = slot_of_item[event_item[event]]
                if slot < 0 or counted_by[slot] == neighbour:
                    continue
                counted_by[slot] = neighbour
                key = _waiting_time(mixed(mixed(state, neighbour), distinct[slot]), rate[slot])
                if key < first_key:
                    first, second, first_key, second_key = slot, first, key, first_key
                elif key < second_key:
                    second, second_key = slot, key
            share = overlap_of_user[neighbour] if by_overlap else 1
            out_first[row, k] = distinct[min(first, second)]
            out_second[row, k] = distinct[max(first, second)]
            out_weight[row, k] = share * rate[first] * rate[second]
        for slot in range(size):
            slot_of_item[distinct[slot]] = -1


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
