import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest

from reasonrec.data.dataset import Catalogue
from reasonrec.data.prepare_config import PrepareConfig
from reasonrec.errors import CheckpointError, ReasonrecError
from reasonrec.evaluation.report import load_run, views, write_report
from reasonrec.evaluation.report.chain_drawing import MAX_CHAINS, draw_chains, shorten
from reasonrec.evaluation.report.records import Curve, read_curves
from reasonrec.evaluation.report.render import render_report
from reasonrec.evaluation.report.scales import log_scale, nice_scale
from reasonrec.records import EvidenceChain
from toy_runs import MARKUP, write_toy_run

SECTIONS = ("headline", "results", "cost", "thinking", "training", "explained", "thoughts", "data",
            "reproduce")  # fmt: skip


class Page(HTMLParser):
    """Elements by tag, ids, and the visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._hidden = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._hidden += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_toy_run(tmp_path_factory.mktemp("run") / "toy")


@pytest.fixture(scope="module")
def run(folder):
    return load_run(folder)


@pytest.fixture(scope="module")
def html(run):
    return render_report(run)


def test_the_page_has_every_section_and_every_method(html, run):
    page = Page(html)
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert set(SECTIONS) <= ids
    for method in {row.method for row in run.metrics}:
        assert method in page.text
    assert "in this run" not in page.text  # no part is said to be missing


def test_the_page_is_one_small_file_that_loads_nothing(html):
    assert len(html.encode()) < 3_000_000
    assert not re.findall(r"""(?:src|href|action|xlink:href)\s*=\s*["'](?!#|data:,)""", html)
    assert "url(" not in html
    assert "@import" not in html
    assert "://" not in html
    assert {tag for tag, _ in Page(html).tags}.isdisjoint({"iframe", "img", "object", "embed"})


def test_markup_in_a_title_stays_text(tmp_path):
    folder = write_toy_run(tmp_path / "run")
    answers = json.loads((folder / "recommendations.json").read_text("utf-8"))
    answers[0]["items"][0]["title"] = MARKUP
    answers[0]["history"][-1]["title"] = MARKUP
    answers[0]["chains"][0]["via_title"] = "<img src=x onerror=alert(1)>"
    answers[0]["thought"] = MARKUP
    answers[0]["notes"] = [MARKUP]
    answers[0]["user_id"] = "<b>u</b>"
    (folder / "recommendations.json").write_text(json.dumps(answers), encoding="utf-8")
    page = Page(render_report(load_run(folder)))
    assert page.count("script") == 1  # our own
    assert page.count("img") == 0
    assert page.text.count(MARKUP) >= 4
    assert "<b>u</b>" in page.text


def test_markup_in_a_name_of_data_method_setting_or_reason_stays_text(run):
    hostile = "</script><script>x</script>"
    html = render_report(
        replace(
            run,
            dataset=replace(run.dataset, name=hostile, statistics={"notes": [hostile]}),
            metrics=tuple(replace(row, method=f"{hostile} {row.method}") for row in run.metrics),
            rejected=pl.DataFrame({"reason": [hostile]}),
            config={hostile: hostile},
        )
    )
    assert Page(html).count("script") == 1


def test_only_the_page_s_own_script_may_run(html):
    import base64
    import hashlib

    script = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert len(script) == 1
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    (policy,) = (
        a["content"] for _, a in Page(html).tags if "Policy" in (a.get("http-equiv") or "")
    )
    assert f"'sha256-{digest}'" in str(policy)
    assert "default-src 'none'" in str(policy)


def test_charts_and_tables_can_be_read_aloud(html):
    page = Page(html)
    for tag, attributes in page.tags:
        if attributes.get("role") == "img":
            assert attributes.get("aria-label")
        if tag == "svg":
            assert (
                "aria-hidden" in attributes or attributes.get("role") == "img" or "x" in attributes
            )
        if tag == "th":
            assert attributes.get("scope") in ("col", "row")
    assert dict(page.tags)["html"] == {"lang": "en"}


def test_the_headline_gives_difference_interval_and_cost(html, run):
    text = " ".join(Page(html).text.split())
    ours = views.versus(run)[0]
    assert (ours.method, ours.reference) == ("think-recpo", "no-think")
    assert ours.test.difference == pytest.approx(ours.value - ours.reference_value)
    assert f"Thinking (think-recpo) {ours.verdict} NDCG@10" in text
    # 14 tokens against 0, and 4.9 ms against 2.4 ms
    assert "It costs 14 tokens and 2.5 ms more for each person." in text


def test_a_method_compared_with_itself_does_not_measurably_change(run):
    twin = run.per_query.filter(pl.col("method") == "no-think")
    twin = twin.with_columns(method=pl.lit("think-recpo"))
    others = run.per_query.filter(pl.col("method") != "think-recpo")
    ours = views.versus(replace(run, per_query=pl.concat([others, twin])))[0]
    assert ours.test.difference == 0
    assert ours.verdict == "does not measurably change"


def test_the_strongest_simple_method_is_neither_ours_nor_the_oracle(run):
    assert views.best_simple(run.metrics) == "follow-counter"
    assert views.best_simple([row for row in run.metrics if row.method == "oracle"]) is None


def test_a_sample_of_the_queries_is_said_to_be_one(run, html):
    assert "<dt>test queries, split leave-one-out</dt><dd>300</dd>" in html
    few = [replace(row, n=min(row.n, 120)) for row in run.metrics]
    page = render_report(replace(run, metrics=tuple(few)))
    assert "<dt>test queries measured, of 300, split leave-one-out</dt><dd>120</dd>" in page


def test_only_a_baseline_that_is_fitted_in_a_moment_is_simple(run):
    others = ("oracle-of-training", "evidence-no-think", "evidence-in-prompt", "think-recpo/gated",
              "untuned/title", "sasrec", "my-own", "think-recpo (demo-1)")  # fmt: skip
    rows = [replace(row, method=name) for name in others for row in run.metrics
            if row.method == "oracle"]  # fmt: skip
    assert views.best_simple([*run.metrics, *rows]) == "follow-counter"
    assert views.best_simple(rows) is None
    # of what is left, the strongest but for oracles; two runs' baselines still are baselines
    assert views.best_method(rows) == "evidence-no-think"
    clashing = [replace(row, method=f"{row.method} (demo)") for row in run.metrics]
    assert views.best_simple(clashing) == "follow-counter (demo)"


def test_a_thinking_model_is_compared_with_its_own_silence(run):
    silent = run.per_query.filter(pl.col("method") == "no-think")
    silent = silent.with_columns(method=pl.lit("think-recpo/silent"))
    rows = [row for row in run.metrics if row.method == "oracle"]  # better than any simple method
    with_silent = replace(
        run,
        per_query=pl.concat([run.per_query, silent]),
        metrics=run.metrics + tuple(replace(row, method="think-recpo/silent") for row in rows),
    )
    pairs = [(one.method, one.reference) for one in views.versus(with_silent)]
    assert ("think-recpo", "think-recpo/silent") in pairs
    assert pairs[-1] == ("think-recpo", "follow-counter")
    assert "think-recpo/silent" in Page(render_report(with_silent)).text


def test_the_breakdown_adds_up_to_the_mean(run):
    for by in ("history", "popularity"):
        forest = views.breakdown(run, by)
        assert sum(band.num_queries for band in forest.bands) == 300
        for n, method in enumerate(("no-think", "think-sft", "think-recpo")):
            marks = [(band.marks[n], band.num_queries) for band in forest.bands]
            assert {mark.method for mark, _ in marks} == {method}
            mean = sum(mark.value * count for mark, count in marks) / 300
            (row,) = (
                r for r in run.metrics
                if (r.method, r.protocol, r.metric) == (method, "full", "ndcg@10")
            )  # fmt: skip
            assert mean == pytest.approx(row.value)


def test_intervals_are_over_users_and_unknown_users_are_all_different(run):
    def widths(user_index):
        table = run.per_query.with_columns(user_index=user_index.cast(pl.Int32))
        other = replace(run, per_query=table)
        mark, test = (
            views.breakdown(other, "history").bands[0].marks[0],
            views.versus(other)[0].test,
        )
        return mark.high - mark.low, test.high - test.low

    band, paired = widths(pl.lit(4))  # all queries of one person: no other sample of people
    assert band == pytest.approx(0, abs=1e-12) and paired == pytest.approx(0, abs=1e-12)
    unknown, known = widths(pl.lit(-1)), widths(pl.col("user_index"))
    assert unknown == pytest.approx(known, rel=0.2)  # drawn in another order


def test_thought_examples_are_the_largest_moves(run):
    up, down = views.moved(run)
    assert len(up) == len(down) == views.NUM_EXAMPLES
    full = run.per_query.filter(pl.col("protocol") == "full")
    before = full.filter(pl.col("method") == "no-think").sort("query")["rank"].to_numpy()
    after = full.filter(pl.col("method") == "think-recpo").sort("query")["rank"].to_numpy()
    gains = np.log2(1 + before) - np.log2(1 + after)
    shown = [np.log2(1 + one.rank_before) - np.log2(1 + one.rank_after) for one in (*up, *down)]
    np.testing.assert_allclose(shown[:3], np.sort(gains)[::-1][:3])
    np.testing.assert_allclose(shown[3:], np.sort(gains)[:3])
    assert all(0 < len(one.history) <= 5 for one in (*up, *down))


def test_thought_examples_tell_items_of_one_title_apart_as_thoughts_do(run):
    twins = Catalogue(run.dataset.catalogue.table.with_columns(title=pl.lit("Twin")))
    up, _ = views.moved(replace(run, dataset=replace(run.dataset, catalogue=twins)))
    before, _ = views.moved(run)
    index_of = {title: n for n, title in enumerate(run.dataset.catalogue.titles)}
    numbers = [index_of[one.target] + 1 for one in before]
    assert [one.target for one in up] == [f"Twin #{n}" if n > 1 else "Twin" for n in numbers]


def test_a_masked_target_is_no_thought_example(run):
    lost = run.per_query.with_columns(
        rank=pl.when(pl.col("query") < 290).then(float("inf")).otherwise(pl.col("rank"))
    )
    up, down = views.moved(replace(run, per_query=lost))
    assert all(np.isfinite([one.rank_before, one.rank_after]).all() for one in (*up, *down))


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("recommendations.json", "stored no recommendations"),
        ("config.json", "resolved configuration is not in this run"),
        ("evaluation/per_query.parquet", "no paired comparison"),
        ("evaluation/thoughts.parquet", "stored no thoughts"),
        ("data/rejected.parquet", "record of rejected rows"),
    ],
)
def test_a_missing_part_is_said_to_be_missing(folder, tmp_path, missing, said):
    import shutil

    copy = shutil.copytree(folder, tmp_path / "run")
    (copy / missing).unlink()
    if missing.startswith("data/"):
        records = replace(load_run(folder), rejected=None)
    else:
        records = load_run(copy)
    assert said in Page(render_report(records)).text


def test_a_run_with_nothing_measured_still_has_a_page(run):
    bare = replace(run, metrics=(), per_query=None, thoughts=None, curves=(), recommendations=(),
                   config=None, manifest=None, rejected=None)  # fmt: skip
    text = Page(render_report(bare)).text
    for said in (
        "Nothing was measured",
        "No latencies",
        "No training curves",
        "No model that thinks",
    ):
        assert said in text


def test_a_run_without_a_thinking_model_says_so(run):
    floor = ("popularity", "item-knn")
    html = render_report(
        replace(
            run,
            metrics=tuple(row for row in run.metrics if row.method in floor),
            per_query=run.per_query.filter(pl.col("method").is_in(floor)),
        )
    )
    assert "No model that thinks was measured" in Page(html).text


def test_several_seeds_are_averaged_and_named(run):
    again = tuple(replace(row, seed=1, value=row.value + 0.01) for row in run.metrics)
    per_query = pl.concat([run.per_query, run.per_query.with_columns(seed=pl.lit(1, pl.Int64))])
    html = render_report(replace(run, metrics=run.metrics + again, per_query=per_query))
    assert "2 seeds" in Page(html).text
    assert "or the spread over seeds" in Page(html).text


def test_the_page_is_written_whole(run, tmp_path):
    out = write_report(run, tmp_path / "new" / "report.html")
    assert out.read_text("utf-8").rstrip().endswith("</html>")
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]


def test_an_unwritable_report_is_a_stated_failure(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ReasonrecError, match="report must be writable"):
        write_report(run, tmp_path / "file" / "report.html")


def test_half_a_surrogate_does_not_stop_the_report(run, tmp_path):
    broken = replace(run.recommendations[0], thought="a \ud800 b")
    out = write_report(replace(run, recommendations=(broken,)), tmp_path / "report.html")
    assert "a ? b" in out.read_text("utf-8")


def test_damaged_parts_are_named(folder, tmp_path):
    import shutil

    for name, content, said in (
        ("config.json", "{", "config.json must be JSON"),
        ("recommendations.json", '[{"user_id": 1}]', "recommendations.json"),
        ("metrics.json", "{}{", "metrics.json"),
        ("evaluation/per_query.parquet", "PAR1", "cannot be read"),
    ):
        copy = shutil.copytree(folder, tmp_path / name.replace("/", "-"))
        (copy / name).write_text(content)
        with pytest.raises(CheckpointError, match=said):
            load_run(copy)


def test_curves_leave_out_a_line_that_a_kill_cut_short(tmp_path):
    (tmp_path / "m.jsonl").write_text(
        '{"step": 1, "a": 2, "why": "text"}\n{"step": 0, "a": 1, "b": NaN}\n[1]\n{"step": 2, "a'
    )
    assert read_curves(tmp_path / "m.jsonl", "x") == [Curve("x", "a", (0.0, 1.0), (1.0, 2.0))]
    assert read_curves(tmp_path / "none.jsonl", "x") == []


def test_a_long_run_is_thinned_to_what_a_chart_shows(run):
    steps = tuple(float(n) for n in range(100_000))
    (panel,) = views.panels(replace(run, curves=(Curve("no-think", "train/loss", steps, steps),)))
    ((_, xs, _),) = panel.lines
    assert len(xs) <= 240
    assert (xs[0], xs[-1]) == (0.0, 99_999.0)


def test_ticks_are_round_and_hold_the_values():
    # 0.23 / 4 = 0.0575 a step, so the next round one is 0.1
    assert nice_scale(0.0, 0.23, num_ticks=4).ticks == (0.0, 0.1, 0.2, 0.3)
    assert nice_scale(-1.2, 3.0, num_ticks=4).ticks == (-2.0, 0.0, 2.0, 4.0)
    assert nice_scale(0.0, 590.0, num_ticks=4, is_tight=True).ticks == (0.0, 200.0, 400.0)
    flat = nice_scale(2.0, 2.0, num_ticks=4)
    assert flat.low < 2.0 < flat.high
    assert nice_scale(0.0, 4.0, num_ticks=4).percent(1.0) == 25.0
    assert nice_scale(0.0, 4.0, num_ticks=4).percent(9.0) == 100.0


def test_a_logarithmic_scale_spans_powers_of_ten():
    scale = log_scale(0.05, 4.9)
    assert scale.ticks == pytest.approx((0.01, 0.1, 1.0, 10.0))
    assert scale.percent(0.1) == pytest.approx(100 / 3, abs=1e-3)
    assert log_scale(1.0, 1.0).ticks == (1.0, 10.0)


def chain(via: str, neighbour: str, item: str, weight: float, rank: int | None = None):
    return EvidenceChain(via, via, neighbour, item, item, 1, weight, rank)


def test_chains_share_nodes_and_keep_an_edge_for_each_colour():
    drawing = draw_chains([chain("A", "u1", "X", 2.0, 1), chain("B", "u1", "X", 1.0, 1)])
    assert drawing is not None
    assert [node.label for node in drawing.nodes] == ["you", "A", "B", "u1", "X"]
    # you-A, A-u1, u1-X in the first colour; you-B, B-u1, u1-X in the second
    assert [edge.tone for edge in drawing.edges] == [0, 0, 0, 1, 1, 1]
    # the strongest is 1.2 + 2.8 = 4.0 wide, the other 1.2 + 2.8 / 2 = 2.6
    assert [edge.width for edge in drawing.edges] == [4.0, 4.0, 4.0, 2.6, 2.6, 2.6]
    assert "you took A, so did neighbour u1, who went on to X" in drawing.description


def test_chains_that_end_in_the_ranking_are_drawn_first():
    chains = [chain(f"A{n}", "u", f"X{n}", 9.0 - n) for n in range(8)] + [
        chain("B", "u", "Y", 0.1, 2)
    ]
    drawing = draw_chains(chains)
    assert drawing is not None
    assert drawing.num_left_out == 9 - MAX_CHAINS
    assert next(n.label for n in drawing.nodes if n.kind == "item") == "Y"
    assert draw_chains([]) is None


def test_texts_are_cut_to_the_room_there_is():
    assert shorten("a short one", 20) == "a short one"
    assert shorten("two\nlines  and more", 30) == "two lines and more"
    assert shorten("The Harbour, Vol. 3", 13) == "The Harbour…"
    assert shorten("東京東京東京", 6) == "東京…"  # each takes two columns
    assert shorten("", 5) == ""


def test_the_command_to_reproduce_says_what_was_asked_and_is_safe_to_paste(run):
    assert views.reproduce(run) == ()  # a toy does not say how it was made
    asked = PrepareConfig(name="shop", split="given", k_core=None).model_dump(mode="json")
    config = {"seed": 3, "r2ec": {"head": {"repeats": True}}, "evaluation": {"num_queries": 90}}
    hostile = replace(run.dataset, statistics={"source": "my data; rm -rf ~"})
    made = replace(run, dataset=hostile, config=config, preparation={"config": asked, "seed": 0})
    *preset, line = views.reproduce(made)
    assert preset == ["cat > toy.toml <<'END'", "head.repeats = true", "END"]
    assert line == (
        "reasonrec demo 'my data; rm -rf ~' --out toy --seed 3 --preset toy.toml "
        "--prepare.split given --num-queries 90"
    )
    assert "my data; rm -rf ~" in Page(render_report(made)).text


def test_settings_are_flattened_to_dotted_keys():
    assert views.flattened({"a": {"b": 1, "c": {"d": None}}, "e": [1, 2]}) == [
        ("a.b", "1"),
        ("a.c.d", ""),
        ("e", "[1, 2]"),
    ]
