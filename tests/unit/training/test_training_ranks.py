"""Several processes train as one would: the same gradients, files written once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from tests import two_ranks
from tests.toy_models import toy_model

from reasonrec import ranks
from reasonrec.cli import main
from reasonrec.errors import ConfigError
from reasonrec.manifest import check_outputs
from reasonrec.methods import r2ec
from reasonrec.training.loop import RankBatches
from reasonrec.training.sharding import hand_out, put_together, shared_out, whole


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folders of one process, and of two that torchrun started."""
    alone, together = (tmp_path_factory.mktemp(name) for name in ("alone", "together"))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        two_ranks.__file__, str(together),
    ]  # fmt: skip
    log = together / "log.txt"
    with log.open("w") as file, subprocess.Popen(
        command, stdout=file, stderr=file,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    ) as started:  # fmt: skip
        two_ranks.run(alone)
        assert started.wait(timeout=480) == 0, log.read_text()[-3000:]
    return alone, together


@pytest.fixture(scope="module", params=["whole weights", "shared weights"])
def runs(request, folders):
    """The folders of one process, and of two that held their weights in one way or the other."""
    alone, together = folders
    return alone, together / request.param


@pytest.mark.parametrize("case", two_ranks.CASES)
def test_two_processes_have_the_gradients_of_one_on_the_whole_batch(runs, case):
    alone, together = (load_file(run / case / "gradients.safetensors") for run in runs)
    assert alone.keys() == together.keys()
    assert len(alone) > 40
    for name, gradient in alone.items():
        # float32 sums in another order
        atol = 1e-5 * float(gradient.abs().max()) + 1e-7
        torch.testing.assert_close(together[name], gradient, atol=atol, rtol=0, msg=name)


@pytest.mark.parametrize("case", two_ranks.CASES)
def test_they_log_once_what_one_process_logs(runs, case):
    alone, together = (
        [json.loads(line) for line in (run / case / "metrics.jsonl").read_text().splitlines()]
        for run in runs
    )
    assert len(alone) == len(together)
    for one, two in zip(alone, together):
        assert one.keys() == two.keys()
        for name in one.keys() - {key for key in one if "seconds" in key}:
            assert two[name] == pytest.approx(one[name], rel=1e-4, abs=1e-5), name


def test_two_processes_learn_what_one_does_even_if_they_are_interrupted(runs):
    alone, together = (load_file(run / "learned" / "learned.safetensors") for run in runs)
    assert alone.keys() == together.keys()
    for name, weight in alone.items():
        # weights move by .03 and more; float32 sums in another order, at most 1.4e-6 was seen
        torch.testing.assert_close(together[name], weight, atol=1e-5, rtol=0, msg=name)


def test_the_first_process_alone_validates_and_writes(runs):
    _, together = runs
    assert (together / "validations.txt").read_text().split() == ["0"] * len(two_ranks.CASES)
    first, second = (json.loads((together / f"rank-{r}.json").read_text()) for r in (0, 1))
    assert first["road"] == second["road"]
    for folder in first["road"]:
        check_outputs(Path(folder))
        assert r2ec.load_recommender(Path(folder), two_ranks.DATASET).name == Path(folder).name
        rows = [*map(json.loads, (Path(folder) / "metrics.jsonl").read_text().splitlines())]
        logged = [row["step"] for row in rows if "train/loss" in row]
        assert logged == sorted(set(logged))
        assert not (Path(folder) / "checkpoints").exists()


def test_a_batch_that_cannot_be_shared_evenly_is_refused(runs):
    _, together = runs
    for r in (0, 1):
        said = json.loads((together / f"rank-{r}.json").read_text())["refused"]
        assert "2 of them need a multiple of 2; got 7" in said


def test_the_rows_of_a_batch_are_shared_out_in_order():
    # 11 rows in batches of 4: 0-3, 4-7, and three left over
    parts = [list(RankBatches(11, 4, rank=r, num_ranks=2)) for r in (0, 1)]
    assert parts == [[[0, 1], [4, 5], [8]], [[2, 3], [6, 7], [9, 10]]]
    # one row left over cannot be shared by two
    assert [len(RankBatches(9, 4, rank=r, num_ranks=2)) for r in (0, 1)] == [2, 2]
    assert list(RankBatches(9, 4, rank=0, num_ranks=1)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]


def test_other_commands_are_refused_under_torchrun(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as exit_:
        main(["doctor"])
    assert exit_.value.code == 2
    assert "of all commands only train runs as several processes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "ZeRO-3 shares them out"),
        ({"ACCELERATE_USE_FSDP": "true"}, "got FSDP_VERSION=1"),
        (two_ranks.FSDP2 | {"FSDP_OFFLOAD_PARAMS": "true"}, "got FSDP_OFFLOAD_PARAMS=true"),
    ],
)
def test_other_ways_of_sharing_out_weights_are_refused(monkeypatch, told, said):
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=said):
        ranks.join()


@pytest.fixture
def lone_group(tmp_path):
    """A process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_model_that_is_shared_out_has_its_weights_only_while_they_are_lent(lone_group):
    model = toy_model()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    shared = shared_out(model)
    assert sum(weight.numel() for weight in model.parameters()) == 0
    with whole(shared) as lent:
        assert lent is model
        for name, weight in model.named_parameters():
            torch.testing.assert_close(weight.detach(), before[name])
        model.asks_recent.data += 1.0
        hand_out(shared)
        model.asks_recent.data += 1.0  # forgotten: handed out no more
    assert sum(weight.numel() for weight in model.parameters()) == 0
    torch.testing.assert_close(put_together(shared).asks_recent, before["asks_recent"] + 1.0)
    assert shared.item_table.encoded is model.item_table.encoded
