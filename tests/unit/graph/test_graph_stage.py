"""The stage on disk, its leak audit, and how chains are drawn for people."""

import json
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest

from reasonrec.baselines.contract import Recommender
from reasonrec.cli import main
from reasonrec.data.dataset import Dataset, Queries
from reasonrec.errors import CheckpointError, DataError
from reasonrec.graph.audit import area_under_curve, draw_negatives, touched_keys
from reasonrec.graph.chain_count import ChainCount
from reasonrec.graph.chains import load_chains, train_queries, write_chains
from reasonrec.graph.config import NEGATIVES, READINGS, ChainConfig
from reasonrec.graph.drawing import (
    render_chain_text,
    render_chains_page,
    render_lookup_svg,
    render_statistics,
)
from reasonrec.manifest import read_manifest, write_manifest
from reasonrec.records import Histories, Link, Lookup
from toys import toy_dataset

TITLES = [f"Item {i}" for i in range(12)]


def shop(num_users: int = 40, *, timestamps: bool = True) -> Dataset:
    # two circles of taste: even users take items 0..5, odd users items 6..11
    rng = np.random.default_rng(0)
    rows = [(rng.permutation(6)[:5] + 6 * (user % 2)).tolist() for user in range(num_users)]
    return toy_dataset(rows, TITLES, timestamps=timestamps)


def test_area_under_curve_counts_ties_as_half():
    # pairs: 3>1, 3>2, 2>1, 2=2: (1 + 1 + 1 + .5) / 4
    assert area_under_curve(np.array([3.0, 2.0]), np.array([1.0, 2.0])) == 3.5 / 4
    assert area_under_curve(np.array([1.0]), np.array([])) is None


def test_everything_that_a_user_ever_took_is_touched():
    dataset = toy_dataset([[0, 1, 2, 3], [4], [5, 6, 7]], TITLES)
    expected = [(0, 0), (0, 1), (0, 2), (0, 3), (1, 4), (2, 5), (2, 6), (2, 7)]
    assert touched_keys(dataset).tolist() == [user * 12 + item for user, item in expected]


def test_histories_that_lie_apart_in_the_log_find_their_owner():
    # user 1 looks back on events 0..2, user 0 on 2..5 and, within it, on 3..4
    queries = Queries(
        user_index=np.array([0, 1, 0], np.int32),
        target=np.array([9, 9, 9], np.int32),
        history_start=np.array([2, 0, 3]),
        history_stop=np.array([5, 2, 4]),
        log_item_index=np.array([5, 6, 1, 2, 3], np.int32),
    )
    dataset = replace(toy_dataset([[0], [4]], TITLES), valid=queries)
    expected = [(0, 0), (0, 1), (0, 2), (0, 3), (0, 9), (1, 4), (1, 5), (1, 6), (1, 9)]
    assert touched_keys(dataset).tolist() == [user * 12 + item for user, item in expected]


@pytest.mark.parametrize("kind", NEGATIVES)
def test_a_negative_was_never_taken_by_its_user(kind):
    dataset = shop()
    touched = touched_keys(dataset)
    drawn = draw_negatives(dataset, dataset.test, touched, kind=kind, seed=0)
    assert (drawn >= 0).all()
    assert not np.isin(dataset.test.user_index.astype(np.int64) * 12 + drawn, touched).any()
    order = np.random.default_rng(0).permutation(len(drawn))
    again = draw_negatives(dataset, dataset.test.take(order), touched, kind=kind, seed=0)
    assert again.tolist() == drawn[order].tolist()


def test_popular_items_are_drawn_more_often_where_asked_for():
    # users 0..99 took item 0 and half of them item 1; the last ones took nothing of either
    rows = [[0, 1] if user % 2 else [0] for user in range(100)] + [[2, 3, 2]] * 600
    dataset = toy_dataset(rows, TITLES)
    touched = touched_keys(dataset)
    popular = draw_negatives(dataset, dataset.test, touched, kind="popularity", seed=0)
    even = draw_negatives(dataset, dataset.test, touched, kind="uniform", seed=0)
    # 100 events of item 0, 50 of item 1; four standard errors of 600 draws are .077
    assert np.mean(popular == 0) == pytest.approx(2 / 3, abs=0.077)
    assert np.mean(popular == 1) == pytest.approx(1 / 3, abs=0.077)
    assert np.mean(even == 0) == pytest.approx(1 / 10, abs=0.05)


def test_a_negative_matched_by_degree_has_about_as_many_events():
    # 60 items: item i is taken by 10 i users, who hold two more items; the last rows ask
    rows = [[60 + user % 5, item] for item in range(60) for user in range(10 * item)]
    rows += [[60, 61, 62, 40]] * 300
    dataset = toy_dataset(rows, [f"Item {i}" for i in range(65)])
    asked = dataset.test.take(np.flatnonzero(dataset.test.target == 40))
    drawn = draw_negatives(dataset, asked, touched_keys(dataset), kind="degree", seed=0)
    # sorted by degree item 40 stands at place 40, and 10 places to either side are 30 .. 50
    assert set(drawn.tolist()) == set(range(30, 51)) - {40}


def test_a_user_who_took_everything_has_no_negative():
    dataset = toy_dataset([[0, 1, 2], [1, 0]], TITLES[:3])
    drawn = draw_negatives(dataset, dataset.test, touched_keys(dataset), kind="uniform", seed=0)
    assert drawn.tolist() == [-1]


def test_training_queries_look_back_on_what_came_before_them():
    dataset = toy_dataset([[0, 1, 2, 3, 4, 5], [6], [7, 8]], TITLES)  # user 0 trains on 0..3
    queries = train_queries(dataset.train, per_user=2)
    histories = queries.histories()
    assert queries.user_index.tolist() == [0, 0, 2]
    assert queries.target.tolist() == [2, 3, 8]
    assert [histories.row(b).tolist() for b in range(3)] == [[0, 1], [0, 1, 2], [7]]
    assert queries.timestamp is not None
    assert queries.timestamp.tolist() == [300, 400, 200]


@pytest.mark.parametrize("timestamps", [True, False])
def test_the_stage_writes_chains_that_exist_in_training(tmp_path, timestamps):
    dataset = shop(timestamps=timestamps)
    stage = write_chains(dataset, tmp_path, ChainConfig(), seed=0)
    table = pl.read_parquet(tmp_path / "chains.parquet")
    edges = set(zip(dataset.train.user_index.tolist(), dataset.train.item_index.tolist()))
    closed = table.filter("closed")
    for u1, i0, i1 in closed.select("u1", "i0", "i1").iter_rows():
        assert {(u1, i0), (u1, i1)} <= edges
    assert (closed["u1"] != closed["user_index"]).all()
    assert (closed["i1"] == closed["candidate"]).all()
    test_rows = table.filter((pl.col("split") == "test") & (pl.col("label") == 1))
    targets = pl.Series(dataset.test.target[test_rows["query"].to_numpy()])
    assert (test_rows["candidate"] == targets).all()
    part = stage.statistics["splits"]["test"]
    first = test_rows.unique("query")
    assert part["labels"]["positive"]["closed_rate"] == first["closed"].mean()
    # users never cross the two circles and half of the negatives lie in the other one
    assert part["chain_existence_audit"]["auc_against_uniform_negatives"] > 0.7
    assert read_manifest(tmp_path)["stage"] == "chains"


def test_the_rates_of_fall_back_are_those_of_a_search_through_sets(tmp_path):
    # two circles of taste, two people who share nothing with anybody, and what they alone take
    rng = np.random.default_rng(1)
    rows = [(rng.permutation(6)[:5] + 6 * (user % 2)).tolist() for user in range(12)]
    rows += [[12, 13, 14, 15, 16], [17, 18, 19, 20, 21]]
    dataset = toy_dataset(rows, [f"Item {i}" for i in range(22)])
    log = dataset.train
    assert log.timestamp is not None
    events = list(zip(log.user_index.tolist(), log.item_index.tolist(), log.timestamp.tolist()))

    def fate(user: int, history: list[int], candidate: int, asked_at: int) -> int:
        """Return 0 for closed, 1 for open, 2 for the history alone."""
        shelves: dict[int, list[int]] = {}
        for other, item, at in events:
            if other != user and at < asked_at:
                shelves.setdefault(other, []).append(item)
        near = [shelf for shelf in shelves.values() if set(shelf) & {*history}]
        if any(candidate in shelf for shelf in near):
            return 0
        # open: what somebody went on to after one of the last three items, and the user has not
        is_open = any(
            set(shelf[shelf.index(via) + 1 :]) - {*history}
            for shelf in near for via in history[-3:] if via in shelf
        )  # fmt: skip
        return 1 if is_open else 2

    statistics = write_chains(dataset, tmp_path, ChainConfig(), seed=0).statistics
    touched, seen = touched_keys(dataset), set()
    parts = {"train": train_queries(log, per_user=5), "valid": dataset.valid, "test": dataset.test}
    for split, queries in parts.items():
        labels = statistics["splits"][split]["labels"]
        asked = {kind: draw_negatives(dataset, queries, touched, kind=kind, seed=0)
                 for kind in NEGATIVES} | {"positive": queries.target}  # fmt: skip
        assert set(labels) == set(asked)
        histories = queries.histories()
        for label, items in asked.items():
            fates = np.bincount(
                [
                    fate(int(user), histories.row(q).tolist(), int(item), int(at))
                    for q, (user, item, at) in enumerate(
                        zip(queries.user_index, items, queries.timestamp, strict=True)
                    )
                ],
                minlength=3,
            )
            names = ("closed_rate", "open_rate", "history_only_rate")
            rates = [labels[label][name] for name in names]
            assert rates == pytest.approx((fates / len(queries)).tolist()), (split, label)
            seen |= {name for name, rate in zip(names, rates, strict=True) if rate}
    assert seen == {"closed_rate", "open_rate", "history_only_rate"}


def rated_shop() -> Dataset:
    """Return the shop with ratings: user u gave item i (u + i) % 5 + 1 wherever they took it."""
    dataset = shop()
    train, log = dataset.train, dataset.test.log_item_index
    owner = np.repeat(np.arange(40), 5)

    def rated(queries: Queries) -> Queries:
        return replace(queries, log_rating=((owner + log) % 5 + 1).astype(np.float32))

    rating = ((train.user_index + train.item_index) % 5 + 1).astype(np.float32)
    return replace(
        dataset, train=replace(train, rating=rating),
        valid=rated(dataset.valid), test=rated(dataset.test),
    )  # fmt: skip


@pytest.mark.parametrize("num_neighbours", [1, 2])
@pytest.mark.parametrize("reading", READINGS)
def test_stored_chains_are_read_back_with_ratings_and_none_is_newer_than_its_question(
    tmp_path, reading, num_neighbours
):
    dataset = rated_shop()
    config = ChainConfig(reading=reading, num_neighbours=num_neighbours)
    write_chains(dataset, tmp_path, config, seed=0)
    table, stored = pl.read_parquet(tmp_path / "chains.parquet"), load_chains(tmp_path)
    assert len(stored) == table.height
    assert table.filter(pl.col("newest_edge_at") >= pl.col("asked_at")).is_empty()
    chains, closed = stored.chains, stored.chains.is_closed
    assert closed.any() and chains.users.shape[1] == num_neighbours
    assert chains.edge_rating is not None and chains.user_rating is not None
    for j in range(num_neighbours):
        for k in (0, 1):
            expected = (chains.users[closed, j] + chains.items[closed, j + k]) % 5 + 1
            assert chains.edge_rating[closed, 2 * j + k].tolist() == expected.tolist()
            edge = chains.edge_event[closed, 2 * j + k]
            assert dataset.train.user_index[edge].tolist() == chains.users[closed, j].tolist()
    mine = (stored.user_index[closed] + chains.items[closed, 0]) % 5 + 1
    assert chains.user_rating[closed].tolist() == mine.tolist()
    # the answer is nowhere: the closing edge is rated only where it is part of the history
    assert chains.closing_rating is not None
    last = (stored.user_index[closed] + chains.items[closed, -1]) % 5 + 1
    if reading == "candidate-closed":
        assert np.isnan(chains.closing_rating).all()
    else:
        assert chains.closing_rating[closed].tolist() == last.tolist()
    assert set(stored.label) == ({0, 1} if reading == "candidate-closed" else {-1})


def test_a_folder_of_another_stage_holds_no_chains(tmp_path):
    save(shop(), tmp_path / "data")
    with pytest.raises(DataError, match="written by stage 'prepare'"):
        load_chains(tmp_path / "data")


def test_chains_are_drawn_as_a_page_that_is_well_formed_and_escapes_titles(tmp_path):
    dataset = rated_shop()
    titles = [f"<script>alert({i})</script> & {i}" for i in range(12)]
    items = dataset.catalogue.table.with_columns(title=pl.Series(titles))
    dataset = replace(dataset, catalogue=replace(dataset.catalogue, table=items))
    write_chains(dataset, tmp_path, ChainConfig(num_neighbours=2), seed=0)
    page = render_chains_page(load_chains(tmp_path), dataset, num_queries=5)
    assert "<script" not in page
    assert page.count("<section>") == 5
    drawings = [part + "</svg>" for part in page.split("</svg>")[:-1]]
    svg = ElementTree.fromstring(drawings[0][drawings[0].index("<svg") :])
    space = "{http://www.w3.org/2000/svg}"
    assert len(list(svg.iter(f"{space}rect"))) == 6  # u0, i0, u1, i1, u2, i2
    # five edges and the one asked for
    assert [path.get("class") for path in svg.iter(f"{space}path")] == [None] * 5 + ["asked"]
    assert {text.text for text in svg.iter(f"{space}title")} & set(titles)


def test_counting_chains_is_a_recommender_that_knows_circles_of_taste():
    dataset = shop()
    recommender = ChainCount.fit(dataset)
    assert isinstance(recommender, Recommender)
    scored = recommender.score(dataset.test.histories())
    assert scored.scores.dtype == np.float32
    own = dataset.test.user_index % 2 == np.arange(12)[:, None] // 6  # (N, B)
    assert (scored.scores.T[own] >= 1).mean() > 0.9
    assert (scored.scores.T[~own] < 1).all()  # no chain leads to the other circle
    nobody = recommender.score(Histories.from_lists([[]])).scores[0]
    counts = np.bincount(dataset.train.item_index, minlength=12)
    assert (
        np.argsort(-nobody, kind="stable").tolist() == np.argsort(-counts, kind="stable").tolist()
    )


def test_history_closed_chains_know_no_candidate_and_need_no_audit(tmp_path):
    stage = write_chains(shop(), tmp_path, ChainConfig(reading="history-closed"), seed=0)
    table = pl.read_parquet(tmp_path / "chains.parquet")
    assert table["candidate"].null_count() == table["label"].null_count() == table.height
    assert stage.statistics["splits"]["test"]["chain_existence_audit"] == {}
    assert "history-closed" in render_statistics(stage.statistics)


def test_a_finished_stage_is_left_alone_and_another_is_not_overwritten(tmp_path):
    dataset, config = shop(), ChainConfig(num_chains=2)
    first = write_chains(dataset, tmp_path, config, seed=0)
    before = (tmp_path / "chains.parquet").read_bytes()
    second = write_chains(dataset, tmp_path, config, seed=0)
    assert (first.was_finished, second.was_finished) == (False, True)
    assert second.statistics == json.loads((tmp_path / "statistics.json").read_text("utf-8"))
    assert (tmp_path / "chains.parquet").read_bytes() == before
    with pytest.raises(CheckpointError, match="num_chains was 2, now 3"):
        write_chains(dataset, tmp_path, ChainConfig(num_chains=3), seed=0)


def test_a_data_set_without_queries_gives_an_empty_table(tmp_path):
    stage = write_chains(toy_dataset([[0], [1]], TITLES), tmp_path, ChainConfig(), seed=0)
    assert stage.statistics["num_chains"] == 0
    assert stage.statistics["splits"]["test"]["labels"]["positive"]["closed_rate"] is None
    assert "-" in render_statistics(stage.statistics)


def save(dataset: Dataset, folder) -> None:
    """Write a toy as a prepared folder."""
    folder.mkdir()
    train = dataset.train
    tables = {
        "items": dataset.catalogue.table,
        "users": pl.DataFrame({"user_id": dataset.user_ids}),
        "train": pl.DataFrame(
            {
                "user_index": train.user_index,
                "item_index": train.item_index,
                "timestamp": train.timestamp,
            }
        ),
        "histories": pl.DataFrame(
            {
                "item_index": dataset.test.log_item_index,
                "timestamp": dataset.test.log_timestamp,
            }
        ),
        "rejected": pl.DataFrame({"reason": []}),
    }
    for name, queries in (("valid", dataset.valid), ("test", dataset.test)):
        names = ("user_index", "target", "history_start", "history_stop", "timestamp")
        tables[name] = pl.DataFrame({column: getattr(queries, column) for column in names})
    for name, table in tables.items():
        table.write_parquet(folder / f"{name}.parquet")
    (folder / "statistics.json").write_text("{}", "utf-8")
    outputs = [f"{name}.parquet" for name in tables] + ["statistics.json"]
    config = {"name": "toy", "split": "leave-one-out"}
    write_manifest(
        folder, stage="prepare", inputs={}, config=config, outputs=outputs, seconds=0.0
    )  # fmt: skip


def test_the_command_line_samples_chains_and_shows_the_audit(tmp_path, capsys):
    save(shop(), tmp_path / "data")
    command = ["chains", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "chains")]
    main([*command, "--num-chains", "2"])
    shown = capsys.readouterr().out
    assert "the number of chains alone reaches AUC" in shown
    assert shown.rstrip().endswith(f"written: {tmp_path / 'chains'}")
    main([*command, "--num-chains", "2", "--json"])
    assert json.loads(capsys.readouterr().out)["reading"] == "candidate-closed"
    main([*command, "--num-chains", "2", "--draw", "3"])
    assert (tmp_path / "chains" / "chains.html").read_text("utf-8").count("<section>") == 3
    assert "already finished" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main([*command, "--num-chains", "0"])
    assert stop.value.code == 2


def test_a_chain_is_drawn_with_every_title_escaped_and_the_asked_edge_dashed():
    titles = ["A <b>bold</b> title", "Plain", 'Quotes " & ampersands, far too long for its box']
    lookup = Lookup(0, (Link(1, 2.0, 1, 7), Link(2, 1.0, 3, 8)))
    svg = ElementTree.fromstring(render_lookup_svg(lookup, user="you", titles=titles))
    words = [text.text for text in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert words[0] == "you"
    assert "1 neighbour" in words
    assert "3 neighbours" in words
    tooltips = [title.text for title in svg.iter("{http://www.w3.org/2000/svg}title")]
    assert set(titles) <= set(tooltips)
    widths = [path.get("stroke-width") for path in svg.iter("{http://www.w3.org/2000/svg}path")]
    # 1 + 4 x share of the strongest: 5 and 3, for two edges each; the asked edge has none
    assert widths == ["2.00", "5.00", "5.00", "3.00", "3.00", None]


def test_a_lookup_without_links_is_drawn_too():
    svg = render_lookup_svg(Lookup(1), user="you", titles=["a", "b"])
    assert "nobody yet" in "".join(ElementTree.fromstring(svg).itertext())


def test_a_chain_reads_as_one_line():
    line = render_chain_text("you", "Alien", "user 7", "Blade Runner", num_more=3)
    assert line == "you → Alien → user 7 (+3) → Blade Runner ⇢ you?"
