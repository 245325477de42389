"""The stage from a prepared set to kept traces, its teachers that need no server, and its pages."""

import asyncio
import json

import numpy as np
import polars as pl
import pytest
import torch
from tests.toy_endpoint import tiny_language_model
from tests.toy_models import plain_tokenizer
from tests.toy_traces import TITLES, asked_of, builder_of, hand_question, rated_shop

from reasonrec import cli
from reasonrec.errors import CheckpointError, TraceError
from reasonrec.graph.sampling import weigh_steps
from reasonrec.models.config import TinyConfig
from reasonrec.models.tiny.backbone import build_tiny_backbone
from reasonrec.models.tiny.tokenizer import train_tokenizer
from reasonrec.traces import store
from reasonrec.traces.interaction_of_thought import read_student_text
from reasonrec.traces.questions import Question
from reasonrec.traces.reading import trace_lines, write_html
from reasonrec.traces.reasoned import training_questions, write_reasoned_traces
from reasonrec.traces.reasoned_config import JudgementConfig, ReasonedTracesConfig, TeacherConfig
from reasonrec.traces.stages import look_at_all
from reasonrec.traces.teachers.choice import build_teacher
from reasonrec.traces.teachers.contract import Message, Request
from reasonrec.traces.teachers.ledger import Ledger
from reasonrec.traces.teachers.local import LocalTeacher
from reasonrec.traces.teachers.verbaliser import VerbaliserTeacher

SHOP = rated_shop(30)


def config_of(**parts) -> ReasonedTracesConfig:
    return ReasonedTracesConfig.model_validate({"num_questions": 40} | parts)


def write(out, config, *, task="rated", dataset=SHOP, teacher=None, seed=0):
    return write_reasoned_traces(
        dataset, dataset.catalogue.titles, out, config,
        teacher or (lambda: build_teacher(config, out, seed=seed)), task=task, seed=seed,
    )  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("rated")
    return out, write(out, config_of())


def test_the_verbaliser_writes_traces_that_are_right_grounded_and_whole(written):
    out, table = written
    assert table.height == 40 and set(table["run"]) == {"free", "guided"}
    kept = store.read_traces(out, kept=True)
    assert kept.height >= 20
    assert (kept["answer"].str.strip_chars() == kept["label"]).all()
    assert set(table["reason"].drop_nulls()) <= {"balance", "duplicate"}
    for row in kept.iter_rows(named=True):
        assert row["prompt"].count("?") == sum(
            chain["closes_on"] == "candidate" for chain in row["chains"]
        )
        assert len(row["prompt_hashes"]) == len(set(row["prompt_hashes"])) >= 2


@pytest.mark.parametrize("masking", ["evidence", "ratings", "target", "answer"])
@pytest.mark.parametrize("reading", ["candidate-closed", "history-closed"])
@pytest.mark.parametrize("task", ["rated", "likes"])
def test_every_reading_gives_usable_traces(tmp_path, masking, reading, task):
    evidence = {"reading": reading, "num_candidates": 4}
    for one_call in (False, True):
        config = config_of(
            num_questions=8, evidence=evidence,
            progressive={"masking": masking, "one_call": one_call},
            keep={"max_label_ratio": None, "drop_duplicates": False},
        )  # fmt: skip
        table = write(tmp_path / str(one_call), config, task=task)
        assert table["reason"].null_count() == 8, table["reason"].to_list()


def test_likes_offer_the_item_taken_among_items_never_touched():
    config = config_of(evidence={"num_candidates": 3})
    questions = training_questions(SHOP, TITLES, config, task="likes", seed=0)
    places = set()
    for question in questions:
        names = [item.title for item in question.candidates]
        places.add(names.index(question.label or ""))
        user = SHOP.train.user_index == question.user_index
        touched = {TITLES[i] for i in SHOP.train.item_index[user]}
        assert len(set(names)) == 3 and touched & set(names) == {question.label}
    assert places == {0, 1, 2}


def test_questions_and_traces_depend_on_the_seed_alone(tmp_path):
    config = config_of(num_questions=5)
    one, two = write(tmp_path / "a", config), write(tmp_path / "b", config)
    assert one.equals(two)
    other = write(tmp_path / "c", config, seed=1)
    assert one["key"].to_list() != other["key"].to_list()
    with pytest.raises(CheckpointError, match="another seed"):
        write(tmp_path / "a", config, seed=1)


def test_limits_may_change_and_the_question_may_not(tmp_path):
    write(tmp_path, config_of(num_questions=3))
    write(tmp_path, config_of(num_questions=3, limits={"max_tokens": 5, "concurrency": 1}))
    with pytest.raises(CheckpointError, match="masking"):
        write(tmp_path, config_of(num_questions=3, progressive={"masking": "answer"}))
    with pytest.raises(CheckpointError, match="task"):
        write(tmp_path, config_of(num_questions=3), task="likes")


def test_a_teacher_that_needs_a_model_must_be_given_one():
    with pytest.raises(ValueError, match="kind endpoint needs a model"):
        config_of(teacher={"kind": "endpoint"})
    with pytest.raises(ValueError, match="only an endpoint has a base_url"):
        config_of(teacher={"base_url": "http://localhost/v1"})
    with pytest.raises(ValueError, match="own_words continues the student's prompt"):
        config_of(progressive={"own_words": True})


def requests_of(questions: list[Question], *, temperature: float) -> list[Request]:
    return [
        Request(
            (Message("user", "Say something."), Message("assistant", f"{n}" * (n + 1))),
            look_at_all(question, "together"), 6, temperature, seed=n,
        )
        for n, question in enumerate(questions)
    ]  # fmt: skip


def answers(folder, requests, *, batch_size: int):
    model, tokenizer = tiny_language_model()
    ledger = Ledger(folder / f"{batch_size}.sqlite")
    teacher = LocalTeacher(model, tokenizer, name="toy", ledger=ledger, batch_size=batch_size)

    async def ask_all():
        return await asyncio.gather(*(teacher.ask(request) for request in requests))

    first, second = asyncio.run(ask_all()), asyncio.run(ask_all())
    assert [reply.is_cached for reply in second] == [True] * len(requests)
    assert [reply.text for reply in first] == [reply.text for reply in second]
    asyncio.run(teacher.close())
    return [reply.text for reply in first]


def test_a_local_model_says_the_same_in_any_batch(tmp_path):
    questions = training_questions(SHOP, TITLES, config_of(num_questions=5), task="rated", seed=0)
    requests = requests_of(questions, temperature=1.0)
    alone = answers(tmp_path, requests, batch_size=1)
    assert alone == answers(tmp_path, requests, batch_size=5)
    assert len(set(alone)) > 1


def test_a_prompt_longer_than_a_local_model_reads_is_refused(tmp_path):
    model, tokenizer = tiny_language_model(length=32)
    ledger = Ledger(tmp_path / "replies.sqlite")
    teacher = LocalTeacher(model, tokenizer, name="toy", ledger=ledger, batch_size=2)
    config = config_of(num_questions=1)
    table = write(tmp_path / "out", config, teacher=lambda: teacher)
    assert table["reason"].to_list() == ["refused"]


def trained_student(table: pl.DataFrame):
    """Return a tiny model that was taught a few traces by heart, and its tokenizer."""
    columns = table.select("prompt", "thought", "answer").iter_rows()
    texts = [f"{prompt}<think> {thought}<answer>{answer}" for prompt, thought, answer in columns]
    tokenizer = train_tokenizer(TITLES, texts, vocab_size=600)
    shape = TinyConfig(width=48, num_layers=2, num_heads=2, feed_forward_width=96, vocab_size=600)
    model = build_tiny_backbone(shape, tokenizer, seed=0).train()
    rows = [
        torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode(text), tokenizer.eos_token_id]])
        for text in texts
    ]
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(40):
        for row in rows:
            optimiser.zero_grad()
            model(input_ids=row, labels=row).loss.backward()
            optimiser.step()
    return model.eval(), tokenizer


def test_a_trained_model_is_a_teacher_of_its_own_kind(tmp_path, written):
    config = config_of(num_questions=3, evidence={"num_chains": 1})
    taught = write(tmp_path / "taught", config)
    model, tokenizer = trained_student(taught)
    folder = tmp_path / "student" / "model" / "backbone"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    own = config_of(
        num_questions=3, evidence={"num_chains": 1},
        progressive={"temperature": 0.0, "max_new_tokens": 300},
        teacher={"kind": "self", "model": str(tmp_path / "student")},
    )  # fmt: skip
    table = write(tmp_path / "own", own)
    assert set(table["voice"]) == {"own-words"}
    assert table["teacher"][0].startswith("self:student-")
    assert table["thought"].is_not_null().sum() >= 2
    assert (table["thought"] == taught["thought"]).sum() >= 1  # it knows them by heart


def test_a_model_that_is_none_is_a_stated_failure(tmp_path):
    config = config_of(teacher={"kind": "local", "model": str(tmp_path / "none")})
    with pytest.raises(TraceError, match="must be a folder or hub name of a causal LM"):
        write(tmp_path / "out", config)


def test_a_chat_without_a_template_is_plain_text(tmp_path):
    model, _ = tiny_language_model()
    ledger = Ledger(tmp_path / "replies.sqlite")
    teacher = LocalTeacher(model, plain_tokenizer(), name="x", ledger=ledger, batch_size=2)
    table = write(tmp_path / "out", config_of(num_questions=1), teacher=lambda: teacher)
    assert table["prompt_tokens"][0] > 100


def test_statistics_add_up(written):
    out, table = written
    said = json.loads((out / store.STATISTICS).read_text())
    assert said["num_kept"] == sum(part["num_kept"] for part in said["runs"].values())
    dropped = sum(sum(part["reasons"].values()) for part in said["runs"].values())
    assert said["num_kept"] + dropped == said["num_questions"] == table.height
    assert sum(said["labels"].values()) == 40
    assert sum(said["labels_kept"].values()) == said["num_kept"]


def test_pages_cover_the_table_and_end_with_it(written):
    _, table = written
    pages = [store.page_of(table, page, page_size=7) for page in range(1, 7)]
    assert pl.concat(pages).equals(table) and pages[-1].height == 5
    for page in (0, 7):
        with pytest.raises(TraceError, match=r"pages go from 1 to 6"):
            store.page_of(table, page, page_size=7)


def test_a_trace_reads_from_question_to_answer(written):
    _, table = written
    row = table.row(0, named=True)
    lines = list(trace_lines(row))
    assert lines[0].startswith(f"User {row['user_id']}: [")
    assert lines[-1].startswith("  answer ") and f"true {row['label']}" in lines[-1]
    assert len(lines) == 2 + len(row["chains"]) + sum(map(len, row["steps"])) + bool(
        row["together"]
    )


def test_a_page_escapes_what_comes_from_data(tmp_path):
    titles = ["<script>alert(1)</script>", *TITLES[1:]]
    shop = rated_shop(20, titles=titles)
    table = write(tmp_path / "out", config_of(num_questions=30), dataset=shop)
    statistics = json.loads((tmp_path / "out" / store.STATISTICS).read_text())
    page = tmp_path / "page.html"
    assert write_html(table, statistics, page, folder="shop", page_size=4) == 30
    text = page.read_text()
    assert "<script>" not in text and "&lt;script&gt;alert(1)" in text
    assert text.count("<section") == 8 and text.count("<article") == 30


def test_a_thought_can_be_read_back_from_its_row(written):
    _, table = written
    questions = training_questions(SHOP, TITLES, config_of(), task="rated", seed=0)
    for question, row in zip(questions, table.iter_rows(named=True)):
        text = f"<think> {row['thought']}<answer>{row['answer']}"
        assert read_student_text(question, text) == (row["thought"], row["answer"].strip())


def test_the_verbaliser_by_hand():
    view = look_at_all(hand_question(), "whole")
    request = Request((), view, 1, 0.0, 0)
    text = asyncio.run(VerbaliserTeacher(TeacherConfig(style="full")).ask(request)).text
    # usual 3.5, moved by one neighbour: (1 - 1/4) x 0.6 x (2 - 3) / (1 + 0.75) = -0.26, so 3.24
    assert text == (
        "<taste>The user gave [Harbour] 5, above their usual 3.5: they like its Sea.</taste>"
        "<agreement>@1 gave it 4 and nearly agrees, and they share 6 items: a fair guide."
        "</agreement>"
        "<suggestion>@1 gave [Comet] 2, below their usual 3.0: that speaks against it."
        "</suggestion>"
        "<closure>Beside the usual 3.5 this comes to 3.</closure>"
        "<together>@1 speaks against it; the user mostly gives 3.5. For [Comet] that comes to 3."
        "</together><answer>3</answer>"
    )


def test_how_far_the_verbaliser_follows_a_neighbour_is_told():
    view = look_at_all(hand_question(), "together")
    judgement = JudgementConfig(prior_weight=1e-6, trust=1.5)
    teacher = VerbaliserTeacher(TeacherConfig(judgement=judgement))
    text = asyncio.run(teacher.ask(Request((), view, 1, 0.0, 0))).text
    # usual 3.5, moved by one neighbour alone, by 1.5 x (2 - 3)
    assert text.endswith("<answer>2</answer>")


@pytest.mark.parametrize("kind", ["steps", "count"])
def test_support_counts_the_steps_that_it_is_told(kind):
    asked, candidates = asked_of(SHOP, [6, 13]), np.array([[1, 2, 3], [4, 5, 6]])
    steps = {"window": 1, "reverse_share": 0.0, "recency_power": 0.0, "total_power": 1.0}
    told = builder_of(SHOP, steps=steps).weights(asked, candidates)[kind]
    usual = builder_of(SHOP).weights(asked, candidates)[kind]
    assert (told == usual).all() == (kind == "count")
    if kind == "steps":
        graph = builder_of(SHOP).graph
        by_hand = weigh_steps(graph, asked, candidates, max_history=20, **steps)
        np.testing.assert_array_equal(told, by_hand)


def test_show_takes_a_folder_and_writing_takes_data_and_out(capsys):
    for words, said in (
        (["traces", "show"], "takes a folder"),
        (["traces", "rated", "somewhere"], "takes a folder"),
        (["traces", "rated"], "needs --data and --out"),
        (["traces", "rated", "--teacher.kind", "self"], "needs a model"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        assert ended.value.code == 2
        assert said in capsys.readouterr().err


def test_show_prints_a_page_and_writes_a_file(written, tmp_path, capsys):
    out, _ = written
    cli.main(["traces", "show", str(out), "--page", "2", "--page-size", "3"])
    text = capsys.readouterr().out
    assert text.count("answer ") >= 3 and "page 2 of 14" in text
    cli.main(["traces", "show", str(out), "--html", str(tmp_path / "t.html")])
    assert "40 of 40 traces written" in capsys.readouterr().out
    cli.main(["traces", "show", str(out), "--json"])
    assert json.loads(capsys.readouterr().out)["num_questions"] == 40


def test_last_events_are_asked_about_again_with_other_candidates():
    dataset = rated_shop(6, length=7, titles=[f"Tale {n}" for n in range(14)])
    log = dataset.train
    config = ReasonedTracesConfig.model_validate(
        {"num_questions": 14, "events": "last", "max_rounds": 5, "evidence": {"num_candidates": 4}}
    )
    titles = dataset.catalogue.titles
    asked = training_questions(dataset, titles, config, task="likes", seed=2)
    # six users: six questions, six again, and two more make 14
    assert [len({q.key for q in asked[a:b]}) for a, b in ((0, 6), (6, 12), (12, 14))] == [6, 6, 2]
    last = {int(stop) - 1 for stop in log.user_offsets[1:]}
    assert {question.key for question in asked} == last
    first, again = ({q.key: set(q.answers) for q in asked[a : a + 6]} for a in (0, 6))
    assert first != again
    once = config.model_copy(update={"max_rounds": 1})
    assert training_questions(dataset, titles, once, task="likes", seed=2) == asked[:6]


def test_a_brief_thought_says_the_same_whatever_the_answer_is(tmp_path):
    config = config_of(
        num_questions=8, evidence={"num_candidates": 4}, keep={"drop_duplicates": False}
    )
    said = [
        write(
            tmp_path / runs,
            config.model_copy(
                update={"progressive": config.progressive.model_copy(update={"runs": runs})}
            ),
            task="likes",
        )
        for runs in ("free", "guided")
    ]
    assert said[0]["thought"].to_list() == said[1]["thought"].to_list()
    assert said[0]["answer"].to_list() != said[1]["answer"].to_list()


def test_teachers_that_are_asked_in_words_are_sent_no_titles_unless_they_may():
    def aliases(kind, alias=None, **progressive):
        config = config_of(
            teacher={"kind": kind, "model": "m"}, evidence={"alias_titles": alias},
            progressive=progressive,
        )  # fmt: skip
        return config.shown.alias_titles

    assert aliases("endpoint") and aliases("local")
    assert not aliases("endpoint", False) and not aliases("local", own_words=True)
    assert not aliases("self") and aliases("self", True)
