"""What is asked of a teacher, and what comes back. Every teacher answers the same requests."""

import hashlib
import json
from dataclasses import dataclass
from typing import Protocol

from reasonrec.traces.stages import View


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    """``system``, ``user`` or ``assistant``; ``prompt`` for text that is simply continued."""
    content: str


@dataclass(frozen=True)
class Request:
    """One call."""

    messages: tuple[Message, ...]
    view: View
    """What the messages were rendered from, and all that a teacher without a model may look at."""
    max_new_tokens: int
    temperature: float
    seed: int

    def key(self, teacher: str) -> str:
        """Return the name of this call to one teacher: equal calls have equal names."""
        asked = {
            "teacher": teacher,
            "messages": [[m.role, m.content] for m in self.messages],
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
        }
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    @property
    def max_tokens(self) -> int:
        """Most tokens that the call can take: no tokenizer makes more than one of a byte."""
        # each message is wrapped in a few tokens of the chat format
        return self.max_new_tokens + sum(len(m.content.encode()) + 16 for m in self.messages)


@dataclass(frozen=True)
class Reply:
    """What a teacher said, or why it said nothing."""

    text: str
    is_complete: bool = True
    """False if it was cut at ``max_new_tokens`` or on the way."""
    problem: str | None = None
    """Why there is no reply: ``failed`` after all attempts, or ``refused``."""
    prompt_tokens: int = 0
    reply_tokens: int = 0
    cost: float = 0.0
    is_cached: bool = False
    """True if it was bought by an earlier call."""


class Stopped(Exception):
    """A call was not sent because the run is being stopped."""


class Teacher(Protocol):
    """Answers requests; many may be asked at once."""

    name: str
    """Kind and model, as provenance: ``endpoint:big-model``."""

    async def ask(self, request: Request) -> Reply:
        """Return the reply.

        Raises:
            TraceError: No further call can succeed: wrong key, no such model, budget spent.
            Stopped: `stop` was called before this call was sent.
        """
        ...

    def stop(self) -> None:
        """Send nothing more; what is under way is still answered."""
        ...

    async def close(self) -> None:
        """Give back connections and files."""
        ...
