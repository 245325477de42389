import io
import json
import re
from dataclasses import replace

import pytest
from rich.console import Console

from reasonrec.cli.recommend import find_model, ids_of, print_recommendation
from reasonrec.cli.recommend import recommend as recommend_command
from reasonrec.errors import CheckpointError, ServingError
from reasonrec.manifest import write_manifest
from reasonrec.rng import stream
from reasonrec.serving.explanations import render_because, render_chain
from toy_runs import recommendation, toy_titles, write_toy_run


def finish(folder, **fields):
    folder.mkdir(parents=True, exist_ok=True)
    manifest = write_manifest(folder, stage="train", inputs={}, config={}, outputs=[], seconds=0.0)
    (folder / "manifest.json").write_text(json.dumps(manifest | fields))
    return folder


def test_a_demo_run_answers_with_its_furthest_model(tmp_path):
    (tmp_path / "data").mkdir()
    finish(tmp_path / "no-think")
    assert find_model(tmp_path, None, None) == (tmp_path / "no-think", tmp_path / "data")
    (tmp_path / "think-recpo").mkdir()  # without a manifest it is unfinished
    finish(tmp_path / "think-sft")
    assert find_model(tmp_path, None, None)[0] == tmp_path / "think-sft"
    finish(tmp_path / "think-recpo")
    assert find_model(tmp_path, None, None)[0] == tmp_path / "think-recpo"
    assert find_model(tmp_path, "no-think", None)[0] == tmp_path / "no-think"


def test_a_model_folder_names_its_data_from_where_it_stands(tmp_path):
    (tmp_path / "run" / "data").mkdir(parents=True)
    model = finish(tmp_path / "run" / "model", data_folder="../data")
    assert find_model(model, None, None)[1].resolve() == tmp_path / "run" / "data"
    assert find_model(model, None, tmp_path)[1] == tmp_path


def test_a_run_without_data_of_its_own_asks_its_model(tmp_path):
    (tmp_path / "shop").mkdir()
    finish(tmp_path / "served" / "think-recpo", data_folder="../../shop")
    model, data = find_model(tmp_path / "served", None, None)
    assert (model.name, data.resolve()) == ("think-recpo", tmp_path / "shop")


def test_ids_with_commas_are_told_as_json():
    assert ids_of("i3, i12,,i40") == ["i3", "i12", "i40"]
    assert ids_of('["sku,1", "1"]') == ["sku,1", "1"]
    for wrong in ("[1]", "[i3", '["a"] b'):
        with pytest.raises(ServingError, match=r"must be a JSON list of ids"):
            ids_of(wrong)


def test_what_is_no_finished_model_is_a_stated_failure(tmp_path):
    with pytest.raises(CheckpointError, match="must be a folder that exists"):
        find_model(tmp_path / "none", None, None)
    with pytest.raises(CheckpointError, match=r"no manifest\.json"):
        find_model(tmp_path, None, None)
    (tmp_path / "data").mkdir()
    with pytest.raises(CheckpointError, match="no finished model among think-recpo"):
        find_model(tmp_path, None, None)
    with pytest.raises(CheckpointError, match="no finished model among think-more"):
        find_model(tmp_path, "think-more", None)
    with pytest.raises(CheckpointError, match="give --data FOLDER"):
        find_model(finish(tmp_path / "model"), None, None)
    with pytest.raises(CheckpointError, match="which is gone"):
        find_model(finish(tmp_path / "model", data_folder="../lost"), None, None)
    finish(tmp_path / "model", format=99, data_folder="../data")
    with pytest.raises(CheckpointError, match="written in format 99"):
        find_model(tmp_path / "model", None, None)


def test_nobody_named_is_a_stated_failure(tmp_path):
    run = write_toy_run(tmp_path / "run")
    with pytest.raises(ServingError, match="somebody must be named"):
        recommend_command(run)
    with pytest.raises(ServingError, match="one user; got 2 users"):
        recommend_command(run, user=["u1", "u2"], history="i1")


def test_an_answer_is_printed_with_thought_chains_and_notes():
    answer = recommendation(toy_titles(), "u4", stream(0, "toy"))
    out = io.StringIO()
    print_recommendation(answer, Console(file=out, width=200))
    text = out.getvalue()
    assert "For u4, by think-recpo" in text
    for item in answer.items:
        assert item.title in text
    assert str(answer.thought) in text
    assert answer.notes[0] in text
    chain = answer.chains[0]
    drawn = f"you ── [{chain.via_title}] ── neighbour u100 (+3) ── [{chain.title}]  #1"
    assert render_chain(chain) == drawn
    assert drawn in text


def test_chains_to_the_top_of_the_list_are_printed_first_and_not_too_many():
    answer = recommendation(toy_titles(), "u4", stream(0, "toy"))
    chain = answer.chains[0]
    places = [None, *range(1, 13)]
    chains = tuple(
        replace(chain, rank=p, item_id=f"i{p}", title=f"To {p}", weight=1.0) for p in places
    )
    stronger = replace(chain, rank=2, via_item_id="other", title="Strong to 2", weight=9.0)
    again = replace(chains[1], weight=0.5)  # found by two look-ups
    out = io.StringIO()
    print_recommendation(
        replace(answer, chains=(again, *chains, stronger)), Console(file=out, width=200)
    )
    drawn = re.findall(r"── \[([^]]*)\](?:  #\d+)?$", out.getvalue(), re.MULTILINE)
    assert drawn == ["To 1", "Strong to 2", *(f"To {p}" for p in range(2, 10))]
    assert "and 4 more" in out.getvalue()


def test_a_title_of_a_whole_description_stands_in_the_list_alone_in_full():
    long = "Pen, " + "very blue, " * 20 + "end"
    answer = recommendation([long] * 20, "u4", stream(0, "toy"))
    answer = replace(answer, thought=f"Mostly ink. Alike: [Nib] [{long}];")
    out = io.StringIO()
    print_recommendation(answer, Console(file=out, width=400))
    text = out.getvalue()
    assert text.count(long) == len(answer.items)
    assert f"Alike: [Nib] [{long[:56]} ...];" in text
    assert f"── [{long[:56]} ...]  #1" in text


def test_brackets_in_titles_are_printed_as_they_are():
    titles = [f"[bold]{title}[/]" for title in toy_titles()]
    answer = recommendation(titles, "u4", stream(0, "toy"))
    out = io.StringIO()
    print_recommendation(answer, Console(file=out, width=200))
    assert answer.items[0].title in out.getvalue()


def test_what_adds_most_is_said_first_and_trifles_are_not():
    because = {"first": -0.3, "steps": 0.75, "count": 0.5, "ease": 0.4, "words": 0.001}
    assert render_because(because) == "chains +1.25, ease +0.40, the first stage -0.30"
