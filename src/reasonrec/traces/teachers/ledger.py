"""Bought replies on disk, and what they cost: nothing is lost or paid twice, whenever cut off.

One SQLite file. A call is entered before it is sent, and its reply, with tokens and price, in one
transaction when it comes. So after a kill the file knows every reply that arrived, and which calls
were under way: those are sent again under the same idempotency key, and until they are answered
count as spent in full.
"""

import sqlite3
import time
from pathlib import Path

from reasonrec.errors import TraceError
from reasonrec.traces.teachers.contract import Reply, Request

_TABLES = """
create table if not exists calls (
    key text primary key, teacher text not null, sent_at real not null, max_tokens integer not null,
    max_cost real not null, num_sent integer not null
);
create table if not exists replies (
    key text primary key, teacher text not null, text text not null, is_complete integer not null,
    prompt_tokens integer not null, reply_tokens integer not null, cost real not null,
    arrived_at real not null
);
"""


class Ledger:
    """The file of bought replies; runs may share it."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make it.

        Raises:
            TraceError: It is not such a file, or cannot be written.
        """
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, isolation_level=None, timeout=30.0)
            self._db.execute("pragma journal_mode = wal")
            self._db.execute("pragma synchronous = full")
            self._db.executescript(_TABLES)
        except (sqlite3.Error, OSError) as error:
            raise TraceError(
                f"bought replies must be kept in a file of this program; {path}: {error}. "
                "Name another file with --limits.cache"
            ) from None

    def find(self, key: str) -> Reply | None:
        """Return the reply that was bought under a key."""
        row = self._db.execute(
            "select text, is_complete, prompt_tokens, reply_tokens, cost from replies "
            "where key = ?",
            (key,),
        ).fetchone()
        if row is None:
            return None
        text, is_complete, prompt_tokens, reply_tokens, cost = row
        return Reply(
            text, bool(is_complete), None, prompt_tokens, reply_tokens, cost, is_cached=True
        )

    def enter(self, key: str, teacher: str, request: Request, max_cost: float) -> None:
        """Note that a call is about to be sent."""
        self._db.execute(
            "insert into calls values (?, ?, ?, ?, ?, 1) "
            "on conflict (key) do update set num_sent = num_sent + 1, sent_at = excluded.sent_at",
            (key, teacher, time.time(), request.max_tokens, max_cost),
        )

    def settle(self, key: str, teacher: str, reply: Reply) -> None:
        """Keep a reply that arrived; it will not be bought again."""
        self._db.execute("begin")
        self._db.execute(
            "insert or replace into replies values (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                key, teacher, reply.text, int(reply.is_complete), reply.prompt_tokens,
                reply.reply_tokens, reply.cost, time.time(),
            ),
        )  # fmt: skip
        self._db.execute("delete from calls where key = ?", (key,))
        self._db.execute("commit")

    def withdraw(self, key: str) -> None:
        """Forget a call that the server refused: it costs nothing."""
        self._db.execute("delete from calls where key = ?", (key,))

    def spent(self) -> tuple[int, float]:
        """Return tokens and money of all replies, and of calls whose fate is unknown in full."""
        paid = "select coalesce(sum(prompt_tokens + reply_tokens), 0), coalesce(sum(cost), 0) "
        tokens, cost = self._db.execute(f"{paid} from replies").fetchone()
        doubt = "select coalesce(sum(max_tokens), 0), coalesce(sum(max_cost), 0) from calls"
        doubtful_tokens, doubtful_cost = self._db.execute(doubt).fetchone()
        return int(tokens + doubtful_tokens), float(cost + doubtful_cost)

    def in_doubt(self) -> list[str]:
        """Return the keys of calls that were sent and never answered."""
        return [key for (key,) in self._db.execute("select key from calls order by key")]

    def is_in_doubt(self, key: str) -> bool:
        """Return whether a call was sent before and never answered."""
        found = self._db.execute("select 1 from calls where key = ?", (key,))
        return found.fetchone() is not None

    def close(self) -> None:
        """Close the file."""
        self._db.close()
