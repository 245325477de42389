import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.toy_models import ring_rows, toy_model, toy_verbaliser
from tests.toys import toy_dataset

from reasonrec.data.dataset import InteractionLog
from reasonrec.methods.r2ec_config import R2ecConfig
from reasonrec.methods.r2ec_stages import (
    StageParts,
    events_to_ask,
    keys_of,
    learned_from,
    ranked_mask,
    tell_of_long_thoughts,
    tell_of_repeats,
    validation_queries,
)
from reasonrec.training.examples import (
    NONE,
    WindowDataset,
    events_with_history,
    hold_out_last,
    pad_branches,
    schedule_windows,
)
from reasonrec.training.rl.engines.sampler import Sampler

TITLES = [f"Tale {i}" for i in range(12)]
HELD_OUT = {"held_out": {"max_frac": 0.9}}


def _log(lengths):
    users = np.repeat(np.arange(len(lengths)), lengths).astype(np.int32)
    return InteractionLog(users, np.arange(len(users), dtype=np.int32), len(lengths))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 23), min_size=1, max_size=8), st.integers(1, 7), st.integers(0, 9))
def test_every_event_is_a_target_once_an_epoch(lengths, max_history, seed):
    log = _log(lengths)
    windows = schedule_windows(log, max_history=max_history, num_epochs=1, batch_size=3, seed=seed)
    targets = []
    for start, last in zip(windows.start, windows.last):
        assert log.user_index[start] == log.user_index[last]
        assert last - start <= max_history
        begins = log.user_offsets[log.user_index[start]] == start
        targets += list(range(start if begins else start + 1, last + 1))
    assert sorted(targets) == list(range(len(log)))


def test_of_a_long_log_the_first_windows_are_kept_and_named_events_above_all():
    log = _log([9, 5, 7, 2])
    windows = schedule_windows(log, max_history=3, num_epochs=4, batch_size=2, seed=0)
    few = windows.at_most(5)
    assert few.start.tolist() == windows.start[:5].tolist()
    assert windows.at_most(len(windows)) is windows
    above = np.array([8, 22])  # the last events of two users: windows of every epoch end in them
    few = windows.at_most(10, above_all=above)
    named = np.isin(windows.last, above)
    assert named.sum() == 8
    others = np.flatnonzero(~named)[:2]
    kept = np.sort(np.concatenate([np.flatnonzero(named), others]))
    assert few.last.tolist() == windows.last[kept].tolist()
    assert few.start.tolist() == windows.start[kept].tolist()


def test_a_window_predicts_each_event_from_those_before_it():
    dataset = toy_dataset([[0, 1, 2, 3, 4, 5]], TITLES)  # trains on 0 1 2 3
    model = toy_model()
    windows = schedule_windows(dataset.train, max_history=8, num_epochs=1, batch_size=1, seed=0)
    batch = WindowDataset(dataset.train, windows, model.writer)[0]
    text = model.tokenizer.decode(batch["trunk_ids"][0, : batch["trunk_lengths"][0]])
    assert text == "<s>History: [Tale 0] [Tale 1] [Tale 2]"
    assert batch["next_item"].tolist() == [[0, 1, 2, 3]]
    read = [
        model.tokenizer.decode(batch["trunk_ids"][0, : end + 1]) for end in batch["item_ends"][0]
    ]
    assert read[0] == "<s>History:"
    assert read[2] == "<s>History: [Tale 0] [Tale 1]"


def test_a_window_in_the_middle_of_a_user_predicts_nothing_from_the_empty_prompt():
    log = _log([9])
    windows = schedule_windows(log, max_history=3, num_epochs=1, batch_size=1, seed=0)
    batch = WindowDataset(log, windows, toy_model().writer).__getitems__(range(len(windows)))
    for row, start in enumerate(windows.start):
        assert (batch["next_item"][row, 0] == NONE) == (start != 0)


def test_the_future_never_enters_training():
    # items 10 and 11 are taken only as validation and test targets
    dataset = toy_dataset([[0, 1, 2, 3, 10, 11], [4, 5, 6, 7, 11, 10]], TITLES)
    model = toy_model()
    windows = schedule_windows(dataset.train, max_history=8, num_epochs=2, batch_size=2, seed=0)
    data = WindowDataset(
        dataset.train, windows, model.writer,
        verbaliser=toy_verbaliser(model, dataset), num_branches=2, seed=0,
    )  # fmt: skip
    future = {int(model.writer.item_tokens(i)[0]) for i in (10, 11)}
    batch = data.__getitems__(range(len(windows)))
    assert not future & set(batch["trunk_ids"].unique().tolist())
    assert not future & set(batch["branch_ids"].unique().tolist())
    assert not {10, 11} & set(batch["next_item"].unique().tolist())
    assert not {10, 11} & set(batch["target"].unique().tolist())


def test_a_thought_never_sees_its_own_target_or_what_follows():
    # one user has no neighbours, so evidence about their own steps must be empty
    dataset = toy_dataset([[0, 1, 2, 3, 4, 5, 6, 7]], TITLES)
    model = toy_model()
    windows = schedule_windows(dataset.train, max_history=8, num_epochs=1, batch_size=1, seed=0)
    data = WindowDataset(
        dataset.train, windows, model.writer,
        verbaliser=toy_verbaliser(model, dataset), num_branches=4, seed=0,
    )  # fmt: skip
    batch = data[0]
    for g in range(4):
        length = int(batch["branch_lengths"][0, g])
        text = model.tokenizer.decode(batch["branch_ids"][0, g, :length])
        target = int(batch["target"][0, g])
        named = {i for i in range(12) if f"[Tale {i}]" in text}
        assert named
        assert all(item < target for item in named)
        assert ": nothing new;" in text
        seen = model.tokenizer.decode(batch["trunk_ids"][0, : batch["branch_at"][0, g] + 1])
        assert seen.endswith(f" [Tale {target - 1}]")


def test_written_tokens_are_the_thinkers_own():
    dataset = toy_dataset(ring_rows(5, 12, 9), TITLES)
    model = toy_model()
    windows = schedule_windows(dataset.train, max_history=8, num_epochs=1, batch_size=5, seed=0)
    data = WindowDataset(
        dataset.train, windows, model.writer,
        verbaliser=toy_verbaliser(model, dataset, num_lookups=1), num_branches=1, seed=0,
    )  # fmt: skip
    batch = data.__getitems__([0])
    ids, written = batch["branch_ids"][0, 0], batch["is_written"][0, 0]
    own = model.tokenizer.decode(ids[written])
    inserted = model.tokenizer.decode(ids[~written][: int(batch["branch_lengths"][0, 0])])
    assert own.startswith(" Mostly")
    assert own.endswith("]<answer>")
    assert " After [Tale" in own
    assert ":" in inserted
    assert ":" not in own


def test_thoughts_do_not_depend_on_the_batch():
    dataset = toy_dataset(ring_rows(6, 12, 9), TITLES)
    model = toy_model()
    windows = schedule_windows(dataset.train, max_history=8, num_epochs=1, batch_size=6, seed=0)
    data = WindowDataset(
        dataset.train, windows, model.writer,
        verbaliser=toy_verbaliser(model, dataset), num_branches=2, seed=0,
    )  # fmt: skip
    whole = data.__getitems__([0, 1, 2, 3])
    alone = data.__getitems__([2])
    length = int(alone["branch_lengths"].max())
    assert torch.equal(whole["branch_ids"][2, :, :length], alone["branch_ids"][0, :, :length])
    assert torch.equal(whole["target"][2], alone["target"][0])


def test_histories_before_an_event_hold_neither_it_nor_later_ones():
    log = _log([3, 4])
    histories = log.histories_before(np.array([0, 2, 6]))
    assert [histories.row(b).tolist() for b in range(3)] == [[], [0, 1], [3, 4, 5]]
    assert log.histories_before(np.array([6]), last=2).row(0).tolist() == [4, 5]


def test_padding_keeps_rows_apart():
    ids, lengths, written = pad_branches([[7, 8], [9]], [[True, False], [True]], pad_id=0)
    assert ids.tolist() == [[7, 8], [9, 0]]
    assert lengths.tolist() == [2, 1]
    assert written.tolist() == [[True, False], [True, False]]


def test_held_out_events_are_last_ones_of_users_with_a_history_and_leave_the_rest_alone():
    log = _log([5, 2, 0, 3, 7])
    # last events of users with at least three: 4, 9 and 16; 2 and 0 events leave nothing to ask
    held_out = hold_out_last(log, max_events=10, max_frac=0.5)
    assert held_out.tolist() == [4, 9, 16]
    assert len(hold_out_last(log, max_events=10, max_frac=0.12)) == 2  # 0.12 x 17 = 2.04
    assert len(hold_out_last(log, max_events=1, max_frac=0.5)) == 1
    assert len(hold_out_last(log, max_events=0, max_frac=0.5)) == 0
    rest = log.without(held_out)
    assert rest.item_index.tolist() == [i for i in range(17) if i not in (4, 9, 16)]
    assert np.diff(rest.user_offsets).tolist() == [4, 2, 0, 2, 6]
    assert events_with_history(log).tolist() == [2, 3, 4, 9, 12, 13, 14, 15, 16]


def test_rewards_and_choices_rest_on_no_event_that_repeats_an_item():
    # user 0 ends training with item 1 again, user 1 with a new one; their validation the other way
    rows = [[0, 1, 2, 1, 5, 6], [3, 4, 5, 6, 3, 7], *ring_rows(6, 12, 8)]
    dataset = toy_dataset(rows, [f"Tale {i}" for i in range(12)])
    log = dataset.train
    assert np.flatnonzero(log.is_repeat).tolist() == [3]
    assert np.flatnonzero(dataset.valid.is_repeat).tolist() == [1]
    config = R2ecConfig.model_validate(HELD_OUT)
    last = (log.user_offsets[1:] - 1).tolist()
    assert events_to_ask(log, config).tolist() == last[1:]
    assert validation_queries(dataset, 100).user_index.tolist() == [0, *range(2, 8)]
    none_held_out = R2ecConfig.model_validate({"held_out": {"max_events": 0}})
    assert 3 not in events_to_ask(log, none_held_out)
    assert events_to_ask(log, config, mask="history").tolist() == last
    offered_again = R2ecConfig.model_validate({**HELD_OUT, "head": {"repeats": True}})
    assert events_to_ask(log, offered_again).tolist() == last
    assert len(validation_queries(dataset, 100, repeats=True)) == 8
    assert ranked_mask(config) == "history-except-target" and ranked_mask(offered_again) == "none"


def test_a_log_of_nothing_but_repeats_is_asked_about_them():
    dataset = toy_dataset([[0, 1, 0, 1, 0, 1]] * 3, ["A", "B"])
    assert dataset.valid.is_repeat.all()
    assert len(events_to_ask(dataset.train, R2ecConfig.model_validate(HELD_OUT))) == 3
    assert len(validation_queries(dataset, 100)) == 3


def test_recpo_asks_about_repeats_where_a_mask_says_what_becomes_of_them():
    dataset = toy_dataset([[0, 1, 2, 1, 5, 6], *ring_rows(6, 12, 8)], TITLES)
    model, asked = toy_model(), {}
    for mask in (None, "history"):
        recpo = {"num_epochs": 1, "optimiser": {"batch_size": 1}, "recpo": {"mask": mask}}
        config = R2ecConfig.model_validate({**HELD_OUT, "recpo": recpo})
        sample, *_, epochs = learned_from("recpo", model, StageParts(dataset, config, 0), Sampler())
        asked[mask] = set(sample.event.tolist())
        assert epochs == 1
        # what a run is known by changes where a mask is named alone
        assert ("mask" in keys_of("recpo", config)["recpo"]["recpo"]) == (mask is not None)
    assert asked["history"] - asked[None] == {3}  # user 0 takes item 1 again


def test_a_bound_that_cuts_epochs_short_is_told_and_what_is_left_is_counted(caplog):
    dataset = toy_dataset(ring_rows(6, 12, 8), TITLES)  # six users, one window each
    assert dataset.num_users == 6

    def epochs_of(stage, **told):
        told = {"num_epochs": 4, "optimiser": {"batch_size": 2}, **told}
        config = R2ecConfig.model_validate(
            {stage.replace("-", "_"): told, "held_out": {"max_events": 0}}
        )
        parts = StageParts(dataset, config, 0)
        data, *_, epochs = learned_from(stage, toy_model(), parts, Sampler())
        return len(data), epochs

    assert epochs_of("no-think") == epochs_of("sft") == (24, 4)
    assert not [message for message in caplog.messages if "max_windows" in message]
    assert epochs_of("sft", max_windows=2) == (2, 1 / 3)
    assert epochs_of("no-think", max_windows=9) == (9, 1.5)
    told = [message for message in caplog.messages if "max_windows" in message]
    assert told == [
        "sft: one epoch of this log has 6 windows, and 4 epochs ask for 24; the first 2 are "
        "learned from, 0.33 epochs, since sft.max_windows allows no more. Raise it to see more",
        "no-think: one epoch of this log has 6 windows, and 4 epochs ask for 24; the first 9 are "
        "learned from, 1.50 epochs, since no_think.max_windows allows no more. Raise it to see "
        "more",
    ]


def test_where_targets_repeat_a_run_says_so(caplog):
    tell_of_repeats(toy_dataset(ring_rows(6, 12, 8), TITLES))
    assert not caplog.messages
    tell_of_repeats(toy_dataset([[0, 1, 2, 1, 5], [3, 4, 5, 6, 7]], TITLES))
    (message,) = caplog.messages
    assert message.startswith("toy: 50.0 % of the validation targets were taken before")
    assert "--head.repeats" in message and "--mask none" in message


def test_where_thoughts_are_longer_than_their_budget_a_run_says_so(caplog):
    dataset = toy_dataset(ring_rows(6, 12, 8), TITLES)
    verbaliser = toy_verbaliser(toy_model(), dataset, num_lookups=2)
    events = events_with_history(dataset.train)
    histories = dataset.train.histories_before(events)
    thoughts = verbaliser.write(histories, seed=0, keys=events).tokens
    longest = max(map(len, thoughts)) - 2  # <think> and <answer> aside
    tell_of_long_thoughts(verbaliser, dataset.train, max_tokens=longest, seed=0)
    assert not caplog.messages
    tell_of_long_thoughts(verbaliser, dataset.train, max_tokens=longest - 1, seed=0)
    (message,) = caplog.messages
    assert f"{longest - 1} tokens, and the longest of {len(events)} has {longest}" in message
    assert f"max_tokens = {-(-longest // 16) * 16}" in message
