"""A raw shop on disk, as small as a case allows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

WriteShop = Callable[..., Path]


@pytest.fixture
def write_shop(tmp_path: Path) -> WriteShop:
    """Return a writer of ``interactions.csv`` (user, item, rating, time) and ``items.csv``."""

    def write(
        rows: list[tuple[Any, ...]],
        titles: dict[str, str] | None = None,
        *,
        columns: tuple[str, ...] = ("user_id", "item_id", "rating", "timestamp"),
    ) -> Path:
        folder = tmp_path / "shop"
        folder.mkdir(exist_ok=True)
        lines = [",".join(columns), *(",".join(str(value) for value in row) for row in rows)]
        (folder / "interactions.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        titles = titles or {f"i{n}": f"Item {n}" for n in range(9)}
        items = pl.DataFrame({"item_id": list(titles), "title": list(titles.values())})
        items.write_csv(folder / "items.csv")
        return folder

    return write
