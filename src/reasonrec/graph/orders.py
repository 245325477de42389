"""The compiled loops that put a log into the orders of a graph. They call none of each other."""

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def events_by_item(event_item, item_offsets):
    """Return event numbers grouped by item, ascending (by user, then time) inside it. (E,)"""
    grouped = np.empty(len(event_item), np.int32)
    cursor = item_offsets[:-1].copy()
    for event in range(len(event_item)):
        item = event_item[event]
        grouped[cursor[item]] = event
        cursor[item] += 1
    return grouped


@njit(nogil=True, cache=True)
def events_by_time(taker_event, event_time, item_offsets):
    """Return ``taker_event`` with the events of each item in time order, ties by event. (E,)"""
    ordered = np.empty(len(taker_event), np.int32)
    for item in range(len(item_offsets) - 1):
        start, stop = item_offsets[item], item_offsets[item + 1]
        keys = np.empty(stop - start, np.int64)
        for k in range(stop - start):
            event = taker_event[start + k]
            keys[k] = (np.int64(event_time[event]) << 32) | event
        keys.sort()
        for k in range(stop - start):
            ordered[start + k] = keys[k] & 0xFFFFFFFF
    return ordered


@njit(nogil=True, cache=True)
def ranks_of(occurrence_event, item_offsets):
    """Return the place of each event among the occurrences of its item, in time order. (E,)"""
    ranks = np.empty(len(occurrence_event), np.int32)
    for item in range(len(item_offsets) - 1):
        for place in range(item_offsets[item], item_offsets[item + 1]):
            ranks[occurrence_event[place]] = place - item_offsets[item]
    return ranks


@njit(nogil=True, cache=True)
def counts_before(occurrence_time, item_offsets, bounds):
    """Return how many occurrences of each item are before each of the ascending times. (B, N)"""
    counts = np.empty((len(bounds), len(item_offsets) - 1), np.int32)
    for item in range(len(item_offsets) - 1):
        start, stop = item_offsets[item], item_offsets[item + 1]
        place = start
        for b in range(len(bounds)):
            while place < stop and occurrence_time[place] < bounds[b]:
                place += 1
            counts[b, item] = place - start
    return counts


@njit(nogil=True, cache=True)
def has_repeats(taker_event, event_user, item_offsets):
    """Return whether any user took any item twice."""
    for item in range(len(item_offsets) - 1):
        for k in range(item_offsets[item] + 1, item_offsets[item + 1]):
            if event_user[taker_event[k]] == event_user[taker_event[k - 1]]:
                return True
    return False
