"""Item rows from a trained model, by the command."""

import numpy as np
import polars as pl
import pytest
from tests.toy_models import ring_rows

from reasonrec.cli import main
from reasonrec.models.reasoning_recommender import ReasoningRecommender

SMALL = """
backbone = "tiny"
num_valid_queries = 4
tiny = { width = 16, num_heads = 2, feed_forward_width = 32, vocab_size = 300 }
head = { item_rows = "text+id", max_history = 8, dropout = 0.0 }
[no_think]
num_epochs = 1
optimiser = { batch_size = 8, num_validations = 1 }
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    rows = ring_rows(8, 6, 5)
    log = [(f"u{u}", f"i{i}", 100 * u + t) for u, row in enumerate(rows) for t, i in enumerate(row)]
    pl.DataFrame(log, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(
        folder / "interactions.csv"
    )
    items = {"item_id": [f"i{n}" for n in range(6)], "title": [f"Tale {n}" for n in range(6)]}
    pl.DataFrame(items).write_csv(folder / "items.csv")
    (folder / "small.toml").write_text(SMALL)
    main(["prepare", str(folder), "--out", str(folder / "data")])
    main(
        ["train", "no-think", "--data", str(folder / "data"), "--out", str(folder / "model"),
         "--config", str(folder / "small.toml")]
    )  # fmt: skip
    return folder


def test_every_item_gets_the_row_that_the_model_scores_it_with(trained, capsys):
    out = trained / "rows.parquet"
    capsys.readouterr()
    main(["encode-items", str(trained / "model"), "--out", str(out)])
    assert capsys.readouterr().out == f"6 rows of 16 numbers: {out}\n"
    table = pl.read_parquet(out)
    assert table["item_id"].to_list() == [f"i{n}" for n in range(6)]
    model = ReasoningRecommender.from_pretrained(trained / "model" / "model")
    rows = np.array(table["row"].to_list(), np.float32)
    np.testing.assert_allclose(rows, model.item_rows().detach().numpy(), atol=1e-5)
    assert len(np.unique(rows.round(4), axis=0)) == 6


def test_a_folder_that_is_no_model_is_a_stated_failure(trained, capsys):
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["encode-items", str(trained / "data"), "--out", str(trained / "none.parquet")])
    assert ended.value.code == 1
    assert "reasonrec: " in capsys.readouterr().err
    assert not (trained / "none.parquet").exists()
