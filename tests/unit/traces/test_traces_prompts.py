"""One writer of text: what is assembled from pieces equals the text tokenised as a whole."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.toy_models import plain_tokenizer

from reasonrec import elapsed, rated
from reasonrec.models.tiny.tokenizer import train_tokenizer, unique_titles
from reasonrec.records import Found, FoundItems, Histories, Link, Lookup
from reasonrec.traces.config import PromptConfig
from reasonrec.traces.prompts import ANSWER, ASKING, THINK, WORDS, PromptWriter, as_data

HARD_TITLES = [
    "Plain", "Plain", "Plain #2", "[REC]", "It's \"quoted\"", "Amélie", "七人の侍", "Ünïcödé ½ 🎬",
    "Tab\tand\nline", "Bell\x07", "  wide   space ", "Says <answer> early", "<think>", "</s>",
    "Come After [Plain]", " After", "a: [b];", "\x00", "", "Ends with ]", "<|im_end|>", "\ud800",
]  # fmt: skip


def tiny_writer(titles, **options):
    names = unique_titles(titles)
    return PromptWriter(
        train_tokenizer(
            names,
            ["a text; another"] * 5,
            vocab_size=300,
            words=WORDS + elapsed.WORDS + rated.WORDS,
        ),
        names,
        **options,
    )


def plain_writer(titles, **options):
    return PromptWriter(plain_tokenizer(), unique_titles(titles), **options)


WRITERS = pytest.mark.parametrize("make", [tiny_writer, plain_writer])


def tokens_of(writer, histories):
    prompts = writer.prompts(histories)
    return [prompts.token_ids[b, : prompts.lengths[b]].tolist() for b in range(len(histories))]


@WRITERS
def test_a_prompt_is_its_text_tokenised_as_a_whole(make):
    writer = make(HARD_TITLES, max_history=6)
    rows = [[*range(i, min(i + 9, 22))] for i in range(22)] + [[], [3, 3, 3]]
    for row, tokens in zip(rows, tokens_of(writer, Histories.from_lists(rows))):
        text = writer.prompt_text(row)
        assert tokens == writer.tokenizer.encode(text, add_special_tokens=False)
        assert writer.tokenizer.decode(tokens) == text


@WRITERS
def test_words_of_questions_are_whole_tokens_whatever_the_catalogue_says(make):
    writer = make(["Plain", "After Dark", "Together"])
    asked = [word for word, _ in ASKING.values()]
    assert set(asked) < set(WORDS)
    if writer.title_token_ids is not None:
        assert [len(writer.encode(word)) for word in WORDS] == [1] * len(WORDS)
    for word in asked:  # a word that goes on asks nothing
        tokens = writer.encode(f"{THINK} Mostly A.{word}")
        assert writer.asked_by(tokens) is not None
        assert writer.asked_by([*tokens, *writer.encode("r")]) is None


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(max_size=12), min_size=1, max_size=4))
def test_any_titles_at_all_are_written_and_read_back(titles):
    for make in (tiny_writer, plain_writer):
        writer = make(titles)
        rows = [[i] for i in range(len(titles))]
        for row, tokens in zip(rows, tokens_of(writer, Histories.from_lists(rows))):
            text = writer.prompt_text(row)
            assert tokens == writer.tokenizer.encode(text, add_special_tokens=False)
            assert writer.tokenizer.decode(tokens) == text
            assert writer.asked_about(f"<think> After [{writer.titles[row[0]]}]") == row[0]


def test_a_title_is_one_token_for_the_tiny_tokenizer_and_several_for_a_plain_one():
    tiny, plain = tiny_writer(HARD_TITLES), plain_writer(HARD_TITLES)
    assert tiny.title_token_ids is not None
    assert len(set(tiny.title_token_ids.tolist())) == len(HARD_TITLES)
    assert plain.title_token_ids is None


def test_padding_lengths_and_places_of_items_by_hand():
    writer = tiny_writer(["A", "B", "C"], max_history=2)
    bos, pad = writer.tokenizer.bos_token_id, writer.tokenizer.pad_token_id
    head = [bos, *writer.encode("History:")]
    a, b, c = (writer.item_tokens(i)[0] for i in range(3))
    prompts = writer.prompts(Histories.from_lists([[0, 1, 2], [], [0]]))
    n = len(head)
    assert prompts.token_ids.tolist() == [[*head, b, c], [*head, pad, pad], [*head, a, pad]]
    assert prompts.lengths.tolist() == [n + 2, n, n + 1]
    assert prompts.num_items.tolist() == [2, 0, 1]  # the oldest of three is cut off
    assert prompts.item_ends.tolist() == [[n - 1, n, n + 1], [n - 1, -1, -1], [n - 1, n, -1]]
    assert c not in tokens_of(writer, Histories.from_lists([[2, 0, 1]]))[0]


@WRITERS
def test_an_item_ends_where_the_shorter_prompt_does(make):
    # the state there is the one that serving reads for the shorter history
    writer = make(["Tale of One", "Two", "Amélie"])
    row = [2, 0, 1, 1]
    ends = writer.prompts(Histories.from_lists([row])).item_ends[0]
    for j in range(len(row) + 1):
        shorter = tokens_of(writer, Histories.from_lists([row[:j]]))[0]
        assert ends[j] == len(shorter) - 1
        assert tokens_of(writer, Histories.from_lists([row]))[0][: ends[j] + 1] == shorter


MINUTE, HOUR, DAY = 60, 3600, 86_400


def told(rows, times, asked):
    """Return histories with the times of their events, and of their questions."""
    flat = np.array([time for row in times for time in row], np.int64)
    return dataclasses.replace(
        Histories.from_lists(rows), timestamp=flat, asked_at=np.array(asked, np.int64)
    )


@WRITERS
def test_a_word_behind_each_title_says_how_long_it_was_until_the_next(make):
    writer = make(["Tale of One", "Two", "Amélie"], prompt=PromptConfig(elapsed=True))
    asked = told([[0, 1, 2], [], [2]], [[5, 5, 30], [], [0]], [30 + 2 * DAY, 7, 59 * MINUTE])
    texts = [str(writer.tokenizer.decode(tokens)) for tokens in tokens_of(writer, asked)]
    assert texts == [
        "<s>History: [Tale of One] at once [Two] seconds [Amélie] days",
        "<s>History:",
        "<s>History: [Amélie] minutes",
    ]
    assert texts[0] == writer.prompt_text([0, 1, 2], [0, 25, 2 * DAY])


@WRITERS
def test_the_time_of_the_question_can_be_left_out(make):
    prompt = PromptConfig(elapsed=True, until_asked=False)
    writer = make(["Tale of One", "Two", "Amélie"], prompt=prompt)
    soon, late = (told([[0, 1, 2], [], [2]], [[5, 5, 30], [], [0]], [at] * 3) for at in (40, DAY))
    texts = [str(writer.tokenizer.decode(tokens)) for tokens in tokens_of(writer, soon)]
    shown = "<s>History: [Tale of One] at once [Two] seconds [Amélie]"
    assert texts == [shown, "<s>History:", "<s>History: [Amélie]"]
    assert writer.prompt_text([0, 1, 2], [0, 25, 10]) == shown
    assert tokens_of(writer, soon) == tokens_of(writer, late)


@WRITERS
@pytest.mark.parametrize("until_asked", [True, False])
def test_a_prefix_with_times_is_what_serving_sends_when_the_next_event_comes(make, until_asked):
    prompt = PromptConfig(elapsed=True, until_asked=until_asked)
    writer = make(["Tale of One", "Two", "Amélie"], prompt=prompt)
    row, times, at = [2, 0, 1, 1], [0, 0, 3 * HOUR, 90 * DAY], 900 * DAY
    whole = told([row], [times], [at])
    ends, tokens = writer.prompts(whole).item_ends[0], tokens_of(writer, whole)[0]
    for j in range(len(row) + 1):
        shorter = told([row[:j]], [times[:j]], [[*times, at][j]])
        assert tokens[: ends[j] + 1] == tokens_of(writer, shorter)[0]
    cut = make(writer.titles, prompt=prompt, max_history=2)
    assert cut.prompts(whole).num_items.tolist() == [2]
    text = str(cut.tokenizer.decode(tokens_of(cut, whole)[0]))
    assert text == "<s>History: [Two] months [Two]" + " years" * until_asked
    assert text == cut.prompt_text(row, [0, 3 * HOUR, 90 * DAY - 3 * HOUR, 810 * DAY])


def test_words_of_time_are_whole_tokens_and_classes_end_where_they_say():
    writer = tiny_writer(["Plain", "Lasts minutes"], prompt=PromptConfig(elapsed=True))
    assert [len(writer.encode(word)) for word in elapsed.WORDS] == [1] * len(elapsed.WORDS)
    limits = [1, MINUTE, HOUR, DAY, 30 * DAY, 365 * DAY]
    for n, limit in enumerate(limits):
        assert elapsed.elapsed_class(np.array([limit - 1, limit])).tolist() == [n, n + 1]
    assert len(elapsed.WORDS) == len(limits) + 1


@WRITERS
def test_time_is_not_told_where_nobody_knows_it_or_is_to_know_it(make):
    writer = make(["A", "Two words"], prompt=PromptConfig(elapsed=True))
    rows = [[0, 1], [1]]
    silent = tokens_of(make(writer.titles), Histories.from_lists(rows))
    assert tokens_of(writer, Histories.from_lists(rows)) == silent
    known = told(rows, [[0, 0], [0]], [1, 1])
    prompts = writer.prompts(known, is_told=np.array([False, True]))
    tokens = [prompts.token_ids[b, : prompts.lengths[b]].tolist() for b in range(2)]
    assert tokens == [silent[0], tokens_of(writer, known)[1]]
    assert tokens[1] != silent[1]


NONE = float("nan")


def with_ratings(histories, ratings):
    flat = np.array([rating for row in ratings for rating in row], np.float32)
    return dataclasses.replace(histories, rating=flat)


@WRITERS
def test_a_rating_stands_behind_its_title_and_where_there_is_none_no_word_does(make):
    writer = make(["Tale of One", "Two", "Amélie"], prompt=PromptConfig(ratings=True))
    rows = Histories.from_lists([[0, 1, 2], [], [2]])
    # to the nearest half: twice 0.74 is 1.48, which is 1 half
    asked = with_ratings(rows, [[4, NONE, 4.5], [], [0.74]])
    texts = [str(writer.tokenizer.decode(tokens)) for tokens in tokens_of(writer, asked)]
    assert texts == [
        "<s>History: [Tale of One] 4 [Two] [Amélie] 4.5",
        "<s>History:",
        "<s>History: [Amélie] 0.5",
    ]
    assert texts[0] == writer.prompt_text([0, 1, 2], ratings=[4, NONE, 4.5])
    silent = tokens_of(make(writer.titles), asked)  # not asked to tell them
    assert silent == tokens_of(writer, rows) == tokens_of(make(writer.titles), rows)


@WRITERS
def test_a_rating_comes_before_the_time_until_the_next(make):
    writer = make(["Tale of One", "Two"], prompt=PromptConfig(elapsed=True, ratings=True))
    asked = with_ratings(told([[0, 1, 0]], [[5, 5, 30]], [30 + 2 * DAY]), [[5, 3.5, NONE]])
    (tokens,) = tokens_of(writer, asked)
    text = "<s>History: [Tale of One] 5 at once [Two] 3.5 seconds [Tale of One] days"
    assert writer.tokenizer.decode(tokens) == text
    assert text == writer.prompt_text([0, 1, 0], [0, 25, 2 * DAY], [5, 3.5, NONE])


@WRITERS
@pytest.mark.parametrize("times", [{}, {"elapsed": True}, {"elapsed": True, "until_asked": False}])
def test_a_prefix_with_ratings_is_what_serving_sends_when_the_next_event_comes(make, times):
    prompt = PromptConfig(ratings=True, **times)
    writer = make(["Tale of One", "Two", "Amélie"], prompt=prompt)
    row, at, ratings = [2, 0, 1, 1], [0, 0, 3 * HOUR, 90 * DAY, 900 * DAY], [1, NONE, 10, 2.5]
    whole = with_ratings(told([row], [at[:4]], [at[4]]), [ratings])
    ends, tokens = writer.prompts(whole).item_ends[0], tokens_of(writer, whole)[0]
    for j in range(len(row) + 1):
        shorter = with_ratings(told([row[:j]], [at[:j]], [at[j]]), [ratings[:j]])
        assert tokens[: ends[j] + 1] == tokens_of(writer, shorter)[0]
    cut = make(writer.titles, prompt=prompt, max_history=2)
    text = str(cut.tokenizer.decode(tokens_of(cut, whole)[0]))
    assert text == cut.prompt_text(row, np.diff(at).tolist(), ratings)
    shown = ["[Two] 10", "[Two] 2.5"]
    if times:
        shown = ["[Two] 10 months", "[Two] 2.5" + " years" * prompt.until_asked]
    assert text == f"<s>History: {' '.join(shown)}"


@WRITERS
def test_ratings_are_told_of_the_rows_that_are_to_be_told_alone(make):
    writer = make(["A", "Two words"], prompt=PromptConfig(ratings=True))
    rows = Histories.from_lists([[0, 1], [1]])
    prompts = writer.prompts(with_ratings(rows, [[4, 5], [3]]), is_told=np.array([False, True]))
    tokens = [prompts.token_ids[b, : prompts.lengths[b]].tolist() for b in range(2)]
    texts = [str(writer.tokenizer.decode(row)) for row in tokens]
    assert texts == ["<s>History: [A] [Two words]", "<s>History: [Two words] 3"]


@pytest.mark.parametrize(
    ("rating", "word"),
    [(4, " 4"), (4.5, " 4.5"), (3.7, " 3.5"), (3.8, " 4"), (0, " 0"), (10, " 10"), (87, " 87"),
     (-9.5, " -9.5"), (1_234_567, " 1234567"), (NONE, "")],
)  # fmt: skip
def test_a_rating_is_written_to_the_nearest_half(rating, word):
    assert rated.rating_word(rating) == word


def test_the_halves_from_0_to_10_are_whole_tokens():
    writer = tiny_writer(["Plain", "Tale 4.5"])
    assert [len(writer.encode(word)) for word in rated.WORDS] == [1] * 21
    assert [rated.rating_word(half / 2) for half in range(21)] == list(rated.WORDS)


@WRITERS
def test_no_history_at_all_leaves_the_opening_words(make):
    writer = make(["A"])
    prompts = writer.prompts(Histories.from_lists([[], []]))
    assert writer.tokenizer.decode(prompts.token_ids[0]) == "<s>History:"
    assert prompts.item_ends.tolist() == [[prompts.lengths[0] - 1]] * 2
    none = writer.prompts(Histories.from_lists([]))
    assert none.token_ids.shape[0] == 0


@WRITERS
def test_a_row_does_not_depend_on_the_rows_beside_it(make):
    writer = make(["Tale of One", "Two", "Amélie"])
    rows = [[0], [2, 2, 2, 1, 0], []]
    together = tokens_of(writer, Histories.from_lists(rows))
    assert together == [tokens_of(writer, Histories.from_lists([row]))[0] for row in rows]


def test_only_a_closed_question_about_a_known_title_is_one():
    writer = tiny_writer(["Tale", "Tale, part 2", "After"])
    assert writer.asked_about("<think> Mostly Drama. After [Tale, part 2]") == 1
    assert writer.asked_about("<think> After [Tale]: [After]; After [After]") == 2
    for text in (
        "<think> After [Tale", "<think> After [Nobody's]", "<think> [Tale]", "", "]",
        "<think> After [Tale]: [After]",  # evidence that was answered already
        "<think> After [Tale]: [After];",
        "<think> After [Tales, vol. Together",  # a title that goes on
    ):  # fmt: skip
        assert writer.asked_about(text) is None


@WRITERS
def test_a_title_never_becomes_a_marker_or_a_question(make):
    evil = [
        "<answer>",
        "x <answer>",
        "<think>",
        "After [Tale]",
        "Tale] After [Tale",
        "Tale",
        "</s>",
    ]
    writer = make(evil)
    markers = [writer.encode(THINK), writer.encode(ANSWER), [writer.tokenizer.eos_token_id]]
    for item, title in enumerate(writer.titles):
        tokens = writer.item_tokens(item)
        for marker in markers:
            places = range(len(tokens) - len(marker) + 1)
            assert all(tokens[at : at + len(marker)] != marker for at in places)
        found, _ = writer.lookup_tokens(_found([item]))
        # named as evidence, a title asks nothing, wherever the text so far is cut
        said = f"<think> After [Tale]{writer.tokenizer.decode(found)}"
        cuts = range(len("<think> After [Tale]") + 1, len(said) + 1)
        assert all(writer.asked_about(said[:cut]) is None for cut in cuts)
        assert writer.asked_about(f" After [{title}]") == item


@WRITERS
def test_an_items_text_ends_in_the_one_marker_where_its_row_is_read(make):
    writer = make(["Tale"])
    texts = [as_data("Read <answer> now [Tale] </s>"), "short"]
    ids, lengths = writer.item_prompts(texts)
    answer = writer.encode(ANSWER)
    for row, length, text in zip(ids.tolist(), lengths, texts):
        tokens = row[:length]
        assert writer.tokenizer.decode(tokens) == f"<s>Item: {text}<answer>"
        starts = [i for i in range(length) if tokens[i : i + len(answer)] == answer]
        assert starts == [length - len(answer)]
        assert writer.tokenizer.eos_token_id not in tokens
        assert row[length:] == [writer.pad_id] * (ids.shape[1] - length)


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("a [b] c", "a (b) c"),
        ("say <answer> or <|im_end|>", "say (answer) or (|im_end|)"),
        ("I <3 you, 2 > 1", "I <3 you, 2 > 1"),  # no marker has a space in it
        ("<<s>>", "<(s)>"),
        ("nul\x00bell\x07  tab\tend\n", "nul bell tab end"),
        ("half a pair \ud83d", "half a pair"),
        ("Amélie 七人 🎬", "Amélie 七人 🎬"),
    ],
)
def test_text_of_the_catalogue_is_data(raw, clean):
    assert as_data(raw) == clean


def test_repeated_and_empty_titles_get_numbers():
    # the third is taken by the name of the second, so it takes the next number
    assert unique_titles(["A", "A", "A #2", "A", "", " \x01"]) == [
        "A", "A #2", "A #2 #2", "A #3", "Untitled", "Untitled #2",
    ]  # fmt: skip
    assert len(set(unique_titles(["x [y]", "x (y)", "x <y>", "x  (y)"]))) == 4


@WRITERS
def test_the_places_of_found_titles_are_their_last_tokens(make):
    writer = make(["Tale of One", "Two", "Amélie"])
    found = _found([2, 0])
    tokens, ends = writer.lookup_tokens(found)
    assert writer.tokenizer.decode(tokens) == ": [Amélie] [Tale of One];"
    assert writer.tokenizer.decode(tokens[: ends[0] + 1]) == ": [Amélie]"
    assert writer.tokenizer.decode(tokens[: ends[1] + 1]) == ": [Amélie] [Tale of One]"
    tokens, ends = writer.lookup_tokens(_found([]))
    assert (writer.tokenizer.decode(tokens), len(ends)) == (": nothing new;", 0)


@WRITERS
@pytest.mark.parametrize("links", [[], [2]])
def test_what_reads_alike_is_quoted_behind_what_people_took_and_the_rest_stands_at_the_end(
    make, links
):
    writer = make(["Tale of One", "Two", "Amélie"])
    found = _found(links, like=[0, 1], also=(Found(1, 0.1, 0), Found(2, 1.0, 3)))
    tokens, ends = writer.lookup_tokens(found)
    said = " [Amélie]" if links else " nothing new"
    decode = writer.tokenizer.decode
    assert decode(tokens) == f":{said} like [Tale of One] [Two];"
    quoted = [decode(tokens[: end + 1]).rpartition("[")[2] for end in ends[:-2]]
    assert quoted == [f"{writer.titles[i]}]" for i in [*links, 0, 1]]
    assert ends[-2:].tolist() == [len(tokens) - 1] * 2
    assert [one.item_index for one in found.quoted] == [*links, 0, 1]
    assert [one.kind for one in found.quoted] == [0] * len(links) + [2, 2]


def _found(items, like=(), also=()):
    return Lookup(
        0,
        tuple(Link(i, 1.0, 1, 0) for i in items),
        like=tuple(Link(i, 0.5, 0, -1) for i in like),
        also=FoundItems.of(also),
    )
