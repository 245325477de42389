"""The teacher writes from history and older evidence alone; filters and the stage around it."""

import dataclasses
import json
import re

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError
from tests.toy_models import plain_tokenizer
from tests.toys import toy_dataset

from reasonrec.baselines.floor import fit_floor
from reasonrec.data.dataset import Catalogue
from reasonrec.errors import CheckpointError
from reasonrec.graph.build import InteractionGraph
from reasonrec.models.backbone import build_writer, catalogue_titles
from reasonrec.models.config import TinyConfig
from reasonrec.records import LOOKUP_KINDS, Found, FoundItems, Histories, Link, Lookup
from reasonrec.traces.config import ThoughtConfig, TracesConfig
from reasonrec.traces.filters import named_titles, ungrounded_titles
from reasonrec.traces.prompts import FOUND, TOGETHER, PromptWriter
from reasonrec.traces.stage import write_traces
from reasonrec.traces.together import fit_together
from reasonrec.traces.verbaliser import Verbaliser

TINY = TinyConfig(vocab_size=300)
GENRES = [["Sea"], ["Sea", "War"], ["Fire"], ["War"], [], ["Fire", "Sea"], ["Sea"], ["War"]]


def catalogue_of(titles, genres=None):
    columns = {"item_id": [f"i{n}" for n in range(len(titles))], "title": titles}
    return Catalogue(pl.DataFrame(columns | ({} if genres is None else {"categories": genres})))


def shop(rows, titles=None, genres=None, **thought):
    """Return a toy data set with categories, and its verbaliser."""
    titles = titles or [f"Tale {n}" for n in range(8)]
    dataset = dataclasses.replace(
        toy_dataset(rows, titles), catalogue=catalogue_of(titles, genres or GENRES[: len(titles)])
    )
    writer = build_writer(dataset.catalogue, TINY)
    graph = InteractionGraph.build(dataset.train, dataset.num_items)
    settings = ThoughtConfig(
        **{"num_lookups": 2, "num_people": 0, "num_like": 0, "num_weighed": 0} | thought
    )
    return dataset, Verbaliser(writer, graph, dataset.catalogue, settings)


def text_of(verbaliser, thoughts):
    return [str(verbaliser.writer.tokenizer.decode(tokens)) for tokens in thoughts.tokens]


# five users who all walk 0 1 2 3 4 5 6 7; the last two events of each are held out
WALKS = [[0, 1, 2, 3, 4, 5, 6, 7]] * 5


@pytest.mark.parametrize(
    ("look_up_taste", "taste", "by_us"),
    [(False, " Mostly Sea, War.", " Mostly Sea, War."), (True, " Mostly: Sea, War;", " Mostly")],
    ids=["own words", "looked up"],
)
def test_a_thought_by_hand(look_up_taste, taste, by_us):
    settings = {"num_lookups": 1, "lookup_window": 1, "num_links": 2, "reverse_share": 0}
    _, verbaliser = shop(WALKS, look_up_taste=look_up_taste, **settings)
    histories = dataclasses.replace(
        Histories.from_lists([[0, 1, 2]]), asked_at=np.array([10_000], np.int64)
    )
    thoughts = verbaliser.write(histories, seed=0, keys=np.array([7]))
    # Sea twice (items 0 and 1), War and Fire once each: War was named first. After 2 they took 3
    # (1 step on, weight 1) and 4 (2 steps, weight 1/2)
    expected = f"<think>{taste} After [Tale 2]: [Tale 3] [Tale 4];<answer>"
    assert text_of(verbaliser, thoughts) == [expected]
    tokens, written = thoughts.tokens[0], thoughts.is_written[0]
    ours = [token for token, mark in zip(tokens, written) if mark]
    assert verbaliser.writer.tokenizer.decode(ours) == f"{by_us} After [Tale 2]<answer>"
    assert thoughts.named[0].items.item_index.tolist() == [3, 4]
    named = [tokens[at] for at in thoughts.named[0].places]
    assert named == [verbaliser.writer.item_tokens(i)[0] for i in (3, 4)]
    assert thoughts.via_item.tolist() == [[2]]


def test_a_history_of_no_categories_is_not_asked_what_it_is_mostly_of():
    _, verbaliser = shop(WALKS, look_up_taste=True, num_lookups=0)
    thoughts = verbaliser.write(Histories.from_lists([[4], [3]]), seed=0, keys=np.arange(2))
    assert text_of(verbaliser, thoughts) == ["<think><answer>", "<think> Mostly: War;<answer>"]


def test_an_answer_quotes_the_strongest_and_weighs_the_rest():
    titles = ["Owl", "Blue Ink", "Red Pen", "Pen Pad", "Red Owl", "Fox", "Cat", "Dog"]
    settings = {"num_lookups": 1, "lookup_window": 1, "num_links": 1, "reverse_share": 0}
    none = [[]] * 8
    _, verbaliser = shop(WALKS, titles, none, num_like=1, num_weighed=2, **settings)
    _, wide = shop(WALKS, titles, none, num_like=3, num_weighed=0, **settings | {"num_links": 2})
    histories = dataclasses.replace(
        Histories.from_lists([[0, 1, 2]]), asked_at=np.array([10_000], np.int64)
    )
    (answer,) = verbaliser.look_up(histories, np.array([2]))
    (everything,) = wide.look_up(histories, np.array([2]))
    assert answer.links == everything.links[:1]
    assert answer.like == everything.like[:1]
    assert not len(everything.also)
    rest = everything.quoted[1:2] + everything.quoted[3:4]
    # of each kind two count, and so does the item that is asked about, once more
    assert answer.also == FoundItems.of((*rest, Found(2, 1.0, 3)))
    # "pen" alone counts of item 3, of item 4 two words do, and of the history nothing
    assert [link.item_index for link in everything.like] == [3, 4]
    thoughts = verbaliser.write(histories, seed=0, keys=np.array([7]))
    assert text_of(verbaliser, thoughts)[0].endswith(
        "After [Red Pen]: [Pen Pad] like [Pen Pad];<answer>"
    )
    named = thoughts.named[0]
    assert named.items == FoundItems.of((*answer.quoted, *answer.also))
    assert named.items.kind[-1] == 3
    assert thoughts.tokens[0][named.places[-1]] == verbaliser.writer.encode(";")[0]


@pytest.mark.parametrize(
    ("num_weighed", "weighs"), [(2, True), (0, False)], ids=["weighed", "left out"]
)
def test_what_reads_hardly_alike_is_not_quoted_and_weighs_all_the_same(num_weighed, weighs):
    titles = ["Owl", "Blue Ink", "Red Pen", "Pen Pad", "Red Owl", "Fox", "Cat", "Dog"]
    settings = {"num_lookups": 1, "lookup_window": 1, "num_links": 1, "reverse_share": 0}
    settings |= {"num_like": 2, "num_weighed": num_weighed, "asked_power": 1.0}
    none = [[]] * 8
    rows = [[2, 0], [1, 2]]  # asked about item 2, half as much of the first history
    histories = dataclasses.replace(
        Histories.from_lists(rows), asked_at=np.array([10_000, 10_000], np.int64)
    )
    _, verbaliser = shop(WALKS, titles, none, **settings)
    before = verbaliser.look_up(histories, np.array([2, 2]))
    assert [[link.item_index for link in one.like] for one in before] == [[3, 4], [3, 4]]
    least = before[1].like[1].weight
    assert least < before[1].like[0].weight
    _, choosy = shop(WALKS, titles, none, **settings, like_from=least + 1e-6)
    after = choosy.look_up(histories, np.array([2, 2]))
    for was, now in zip(before, after, strict=True):
        assert now.like == was.like[:1]  # however much the history lets it count
        told = sorted([*was.quoted, *was.also])
        assert sorted([*now.quoted, *now.also]) == [
            one for one in told if weighs or (one.item_index, one.kind) != (4, 2)
        ]


def test_an_answer_about_an_older_item_counts_less():
    settings = {"num_like": 1, "num_weighed": 3, "reverse_share": 0}
    _, plain = shop(WALKS, **settings)
    _, fading = shop(WALKS, asked_power=2.0, **settings)
    # item 1 is the second last of the first history, by its newer place, and not of the second
    rows = [[1, 0, 1, 2], [0, 2]]
    histories = dataclasses.replace(
        Histories.from_lists(rows), asked_at=np.array([10_000, 10_000], np.int64)
    )
    before, after = (one.look_up(histories, np.array([1, 1])) for one in (plain, fading))
    for share, one, other in zip((1 / 4, 1.0), before, after, strict=True):
        found = [*one.quoted, *one.also], [*other.quoted, *other.also]
        assert len(found[0]) >= 3
        for was, now in zip(*found, strict=True):
            assert (now.item_index, now.kind) == (was.item_index, was.kind)
            assert now.weight == pytest.approx(share * was.weight)
    assert [*after[0].also][-1] == Found(1, 1 / 4, 3)  # once more itself
    assert after[1].also.kind[-1] != 3


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([0, 6, 2], ("Sea", "Fire")),
        ([0, 6], ("Sea",)),
        ([3], ("War",)),
        ([4], ()),  # an item without any category
        ([], ()),
        ([2] * 9 + [0] * 10, ("Sea",)),  # the last ten alone
    ],
)
def test_taste_is_the_commonest_two_categories_of_the_last_ten(row, words):
    _, verbaliser = shop(WALKS)
    assert verbaliser.commonest(Histories.from_lists([[1], row]))[1] == words


def test_taste_is_left_out_where_it_is_not_wanted_or_not_known():
    _, verbaliser = shop(WALKS, name_taste=False)
    assert verbaliser.commonest(Histories.from_lists([[0]])) == [()]
    dataset = toy_dataset(WALKS, [f"Tale {n}" for n in range(8)])
    plain = Verbaliser(verbaliser.writer, verbaliser.graph, dataset.catalogue, ThoughtConfig())
    assert plain.commonest(Histories.from_lists([[0]])) == [()]


def test_the_next_item_changes_no_thought():
    rng = np.random.default_rng(3)
    rows = [rng.permutation(8).tolist() for _ in range(12)]
    for user in range(12):
        swapped = [list(row) for row in rows]
        swapped[user][3] = swapped[user][4]  # the target of the question asked below
        thoughts = []
        for log in (rows, swapped):
            dataset, verbaliser = shop(log)
            event = dataset.train.user_offsets[user] + 3
            histories = dataset.train.histories_before(np.array([event]))
            assert histories.row(0).tolist() == rows[user][:3]
            written = verbaliser.write(histories, seed=1, keys=np.array([event]))
            thoughts.append(text_of(verbaliser, written))
        assert thoughts[0] == thoughts[1]


def test_evidence_is_older_than_the_question():
    # user 0 went from 0 to 1 at second 200; user 1 asks about 0 before and after that
    _, verbaliser = shop([[0, 1, 2, 3], [0, 5, 6, 7], [4, 0, 2, 3]], num_lookups=1)
    for asked_at, found in ((150, "nothing new"), (201, "[Tale 1]")):
        histories = dataclasses.replace(
            Histories.from_lists([[0]], user_index=[1]), asked_at=np.array([asked_at], np.int64)
        )
        said = text_of(verbaliser, verbaliser.write(histories, seed=0, keys=np.array([0])))[0]
        assert f"After [Tale 0]: {found}" in said, asked_at


def test_what_is_looked_up_is_recent_distinct_and_newest_first():
    _, verbaliser = shop(WALKS, num_lookups=3, lookup_window=4)
    histories = Histories.from_lists([[0, 1, 2, 3, 4, 5], [6], []])
    for seed in range(20):
        via = verbaliser.write(histories, seed=seed, keys=np.arange(3)).via_item
        assert set(via[0]) <= {2, 3, 4, 5}
        assert via[0].tolist() == sorted(set(via[0]), reverse=True)  # here newest is largest
        assert via[1].tolist() == [6, -1, -1]
        assert via[2].tolist() == [-1, -1, -1]


def test_how_many_are_looked_up_is_drawn_between_the_least_and_the_most():
    _, verbaliser = shop(WALKS, num_lookups=4, min_lookups=1)
    histories = Histories.from_lists([[0, 1, 2, 3, 4, 5]] * 400)
    written = verbaliser.write(histories, seed=0, keys=np.arange(400))
    counts = (written.via_item >= 0).sum(1)
    # 100 of 400 each, standard deviation 8.7
    assert np.abs(np.bincount(counts, minlength=5)[1:] - 100).max() < 4 * 8.7
    assert all(text.count(" After ") == n for text, n in zip(text_of(verbaliser, written), counts))
    with pytest.raises(ValidationError, match="min_lookups must be at most 4"):
        ThoughtConfig(num_lookups=4, min_lookups=5)
    assert ThoughtConfig(num_lookups=4, min_lookups=0).least_looked_up == 0
    assert ThoughtConfig(num_lookups=4).least_looked_up == 4


def test_an_item_that_was_taken_twice_is_looked_up_once():
    # a thought that asked twice would be impossible for the model, its log-probability -inf
    _, verbaliser = shop(WALKS, num_lookups=3, lookup_window=5)
    histories = Histories.from_lists([[2, 3, 3, 3, 3], [5, 5], [1, 2, 1]])
    for seed in range(9):
        via = verbaliser.write(histories, seed=seed, keys=np.arange(3)).via_item
        assert via.tolist() == [[3, 2, -1], [5, -1, -1], [1, 2, -1]]


def test_the_window_counts_items_and_not_how_often_they_were_taken():
    # the model must ask about so many different titles of its prompt before it may answer
    _, verbaliser = shop(WALKS, num_lookups=2, lookup_window=3)
    histories = Histories.from_lists([[2, 3, *[4] * 9], [1, 2, 3, 4], [5] * 9])
    for seed in range(9):
        via = verbaliser.write(histories, seed=seed, keys=np.arange(3)).via_item
        assert set(via[0].tolist()) <= {2, 3, 4}
        assert -1 not in via[0]
        assert set(via[1].tolist()) <= {2, 3, 4}
        assert via[2].tolist() == [5, -1]
    # what the prompt does not show is not asked about
    written = verbaliser.write(
        histories, seed=0, keys=np.arange(3), num_visible=np.array([9, 2, 9])
    )
    assert written.via_item.tolist() == [[4, -1], [4, 3], [5, -1]]


def test_recent_items_are_looked_up_as_often_as_their_weight_says():
    _, verbaliser = shop(WALKS, num_lookups=1, lookup_window=2, recency=0.5)
    count = 3000
    histories = Histories.from_lists([[0, 1]] * count)
    via = verbaliser.write(histories, seed=0, keys=np.arange(count)).via_item[:, 0]
    # weights 1 and 1/2: the newer one in 2/3 of the draws; 4 standard errors of .0086
    assert abs((via == 1).mean() - 2 / 3) < 0.035


def test_a_thought_depends_on_its_key_and_not_on_its_batch():
    _, verbaliser = shop(WALKS)
    histories = Histories.from_lists([[0, 1, 2, 3, 4], [5, 6, 7, 0], [2]])
    keys = np.array([11, 12, 13])
    together = verbaliser.write(histories, seed=4, keys=keys)
    for b in range(3):
        alone = verbaliser.write(histories.take(np.array([b])), seed=4, keys=keys[[b]])
        assert alone.tokens[0] == together.tokens[b]
    again = [verbaliser.write(histories, seed=s, keys=keys).via_item.tolist() for s in range(9)]
    assert any(via != again[0] for via in again)


def test_thoughts_of_a_plain_tokenizer_say_the_same():
    dataset, tiny = shop(WALKS)
    writer = PromptWriter(plain_tokenizer(), catalogue_titles(dataset.catalogue))
    plain = Verbaliser(writer, tiny.graph, dataset.catalogue, tiny.config)
    histories = Histories.from_lists([[0, 1, 2, 3], [5], []])
    written = [v.write(histories, seed=2, keys=np.arange(3)) for v in (tiny, plain)]
    assert text_of(tiny, written[0]) == text_of(plain, written[1])
    for row, named in zip(written[1].tokens, written[1].named):
        for place, item in zip(named.places, named.items.item_index):
            so_far = str(writer.tokenizer.decode(row[: place + 1]))
            assert so_far.endswith(f" [{writer.titles[item]}]")


def test_titles_and_categories_that_look_like_markers_break_no_thought():
    titles = [
        "<answer>",
        "After [Tale]",
        "Tale",
        "</think> [Tale]",
        "[x] After [<s>]",
        "e",
        "f",
        "g",
    ]
    genres = [["<answer>"], ["After [Tale]"], ["[Tale]"], ["<answer>"], ["</s>"], [], [], []]
    _, verbaliser = shop(WALKS, titles, genres, num_lookups=4)
    writer = verbaliser.writer
    histories = Histories.from_lists([[0, 1, 2], [1], [3, 4], [2, 0, 3], [2]])
    thoughts = verbaliser.write(histories, seed=0, keys=np.arange(5))
    answer = writer.encode("<answer>")[0]
    for b, (tokens, said) in enumerate(zip(thoughts.tokens, text_of(verbaliser, thoughts))):
        assert tokens.count(answer) == 1
        assert tokens[-1] == answer
        assert not {writer.tokenizer.bos_token_id, writer.tokenizer.eos_token_id} & set(tokens)
        # the questions in the text are those that were asked, in order
        cuts = [said[: match.end()] for match in re.finditer(r"\]", said)]
        asked = [item for item in map(writer.asked_about, cuts) if item is not None]
        assert asked == [via for via in thoughts.via_item[b].tolist() if via >= 0]
        allowed = {*histories.row(b).tolist(), *thoughts.named[b].items.item_index.tolist()}
        assert ungrounded_titles(said, writer.titles, allowed, ()) == []


def test_a_title_outside_history_and_evidence_is_ungrounded():
    titles = ["A", "B", "C", "D"]
    evidence = [Lookup(1, (Link(2, 1.0, 1, 0),))]
    thought = " Mostly X. After [B]: [C]; I like [A] and [D], [C] and [Z]."
    assert named_titles(thought) == ["B", "C", "A", "D", "C", "Z"]
    assert ungrounded_titles(thought, titles, [0], evidence) == ["D", "Z"]
    assert ungrounded_titles(thought, titles, [0, 3], ()) == ["B", "C", "C", "Z"]
    assert ungrounded_titles("no titles", titles, [], ()) == []


def test_the_stage_writes_a_row_for_each_position_and_keeps_a_finished_folder(tmp_path):
    rows = [[0, 1, 2, 3, 4, 5], [1, 2, 3], [7], [3, 2, 5, 6, 7]]
    dataset, verbaliser = shop(rows)
    any_position = TracesConfig(thought=ThoughtConfig())
    asked = dataset, tmp_path / "traces", any_position, verbaliser.writer
    table = write_traces(*asked, seed=0)
    # training parts 0 1 2 3 / 1 / 7 / 3 2 5: each event but the first of a user is a question
    assert table["user_id"].to_list() == ["u0"] * 3 + ["u3"] * 2
    assert table["target"].to_list() == [1, 2, 3, 2, 5]
    assert table["target_title"][0] == "Tale 1"
    assert table["kept"].all()
    assert table["reason"].null_count() == 5
    assert all("<" not in thought for thought in table["thought"])
    assert table["looked_up"][0].to_list() == ["Tale 0"]
    statistics = json.loads((tmp_path / "traces/statistics.json").read_text())
    assert statistics["num_thoughts"] == statistics["num_kept"] == 5
    written_at = (tmp_path / "traces/traces.parquet").stat().st_mtime_ns
    assert write_traces(*asked, seed=0).equals(table)
    assert (tmp_path / "traces/traces.parquet").stat().st_mtime_ns == written_at
    with pytest.raises(CheckpointError, match="another seed"):
        write_traces(*asked, seed=1)
    # left unfinished, it is written again, and the same
    (tmp_path / "traces/manifest.json").unlink()
    assert write_traces(*asked, seed=0).equals(table)


def test_the_stage_samples_without_repeats_and_survives_a_log_without_questions(tmp_path):
    dataset, verbaliser = shop(WALKS)
    some = TracesConfig(num_thoughts=7, thought=ThoughtConfig())
    table = write_traces(dataset, tmp_path / "some", some, verbaliser.writer, seed=0)
    assert table["event"].n_unique() == 7
    lonely, verbaliser = shop([[0], [1, 2, 3]])
    table = write_traces(lonely, tmp_path / "none", some, verbaliser.writer, seed=0)
    assert table.height == 0
    assert "thought" in table.columns
    statistics = json.loads((tmp_path / "none/statistics.json").read_text())
    assert statistics["num_thoughts"] == 0


def test_what_answers_for_all_of_a_history_never_learned_from_what_is_asked(tmp_path):
    # the last training event of each user is of an item that nobody else ever took
    rows = [[0, 1, 2, 4 + u, 3, 3] for u in range(4)]
    dataset, verbaliser = shop(rows)
    thought = ThoughtConfig(together="ease", num_lookups=0, num_people=0, num_like=0)
    config = TracesConfig(thought=thought)
    table = write_traces(dataset, tmp_path / "traces", config, verbaliser.writer, seed=0)
    assert table["target"].to_list() == [4, 5, 6, 7]  # one question a user, about the newest event
    known = fit_floor("ease", dataset, seed=0).score(Histories.from_lists([[0, 1, 2]])).scores[0]
    assert known[4:].min() > 0  # whoever learns from them names them
    for found in table["found"].to_list():
        assert not {"Tale 4", "Tale 5", "Tale 6", "Tale 7"} & set(found)


def test_what_goes_with_all_is_the_top_of_the_model_that_is_named():
    dataset, plain = shop([[0, 1, 2, 3, 4], [2, 3, 5, 6, 7], [1, 3, 5, 7, 0], [6, 4, 2, 0, 1]] * 2)
    model = fit_floor("ease", dataset, seed=0)
    settings = plain.config.model_copy(update={"together": "ease", "num_together": 3})
    asked = Verbaliser(plain.writer, plain.graph, dataset.catalogue, settings, model)
    histories = Histories.from_lists([[0, 1], [2, 3, 5]])
    answers = asked.together(histories)
    scores = model.score(histories).scores
    for b, found in enumerate(answers):
        left = sorted(set(range(8)) - set(histories.row(b).tolist()))
        best = sorted((i for i in left if scores[b, i] > 0), key=lambda i: -scores[b, i])[:3]
        assert [link.item_index for link in found.links] == best[:2]
        assert [one.item_index for one in found.also] == best[2:]
        kinds = {one.kind for one in (*found.quoted, *found.also)}
        assert kinds == {LOOKUP_KINDS.index("together")}
        assert found.links[0].weight == pytest.approx(float(scores[b, best[0]]))
    # a thought asks once, and what is answered nobody wrote; the control is told too
    thought = asked.write(histories, seed=0, keys=np.arange(2))
    for text in text_of(asked, thought):
        assert text.count(f"{TOGETHER}{FOUND} [") == 1
    tokens, is_written = thought.tokens[0], thought.is_written[0]
    answer, _ = plain.writer.lookup_tokens(answers[0])
    at = next(i for i in range(len(tokens)) if tokens[i : i + len(answer)] == answer)
    assert is_written[at - 1]
    assert not any(is_written[at : at + len(answer)])
    assert [found[0] for found in asked.gather(histories)] == answers
    with pytest.raises(ValueError, match="must come with the fitted model"):
        Verbaliser(plain.writer, plain.graph, dataset.catalogue, settings)


def test_what_goes_with_all_is_not_learned_from_events_that_thoughts_are_ranked_for():
    dataset, _ = shop([*WALKS, [0, 1, 7, 2, 3, 4]])
    settings = ThoughtConfig(together="ease")
    log = dataset.train
    event = np.flatnonzero((log.user_index == 5) & (log.item_index == 7))
    history = Histories.from_lists([[0, 1]])
    knows, does_not = (
        fit_together(dataset, settings, unknown=unknown).score(history).scores[0, 7]
        for unknown in (None, event)
    )
    assert knows > does_not
    assert fit_together(dataset, ThoughtConfig()) is None


def test_what_goes_with_all_is_asked_of_a_model_that_the_catalogue_allows(monkeypatch):
    dataset, _ = shop(WALKS)
    settings = ThoughtConfig(together="auto", together_power=0.5)
    small = fit_together(dataset, settings)
    monkeypatch.setattr("reasonrec.traces.together.MAX_EASE_ITEMS", dataset.num_items - 1)
    large = fit_together(dataset, settings)
    assert (small.name, large.name) == ("ease", "item-knn-bm25")
    assert small.recency_power == large.recency_power == 0.5
    assert ThoughtConfig(together="none").together is None
