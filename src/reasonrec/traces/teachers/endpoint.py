"""The teacher behind any OpenAI-compatible server: hosted, or vLLM, llama.cpp, transformers serve.

Many calls at once, evenly spaced under the rate limits; overloaded, broken or silent servers are
asked again after growing waits, and ``Retry-After`` holds for every call; a call that would break
the budget is not sent. Every reply is on disk before it is used (`ledger`), and every call carries
an idempotency key, so that a server that knows them bills a repeated call once.
"""

import asyncio
import contextlib
import os
import random
from collections.abc import Callable

import openai

from reasonrec.errors import TraceError
from reasonrec.traces.reasoned_config import LimitsConfig, TeacherConfig
from reasonrec.traces.teachers.contract import Reply, Request, Stopped
from reasonrec.traces.teachers.ledger import Ledger

_TRANSIENT = (408, 409, 425, 429)
"""Statuses beside 5xx after which the same call may succeed."""
_FATAL = (401, 402, 403, 404)
"""Statuses that every other call would get too."""


class Pacer:
    """Spaces calls evenly: at most ``rate`` units a minute start, however many wait."""

    def __init__(self, rate: float | None) -> None:
        self.rate, self._next = rate, 0.0

    async def wait(self, amount: float = 1.0) -> None:
        """Return when ``amount`` units may start."""
        if self.rate is None:
            return
        now = asyncio.get_running_loop().time()
        start = max(now, self._next)
        self._next = start + amount * 60 / self.rate
        await asyncio.sleep(start - now)


class EndpointTeacher:
    """Asks a chat endpoint; holds the connection, the limits and the ledger."""

    def __init__(
        self,
        config: TeacherConfig,
        limits: LimitsConfig,
        ledger: Ledger,
        *,
        seed: int = 0,
        on_wait: Callable[[str], None] | None = None,
    ) -> None:
        """Args:
        seed: Of the jitter between attempts.
        on_wait: Told in words why a call waits.
        """
        assert config.model is not None
        self.model, self.limits, self.ledger = config.model, limits, ledger
        self.name = f"endpoint:{config.model}"
        self._url = config.base_url or "the default address"
        self._key_name = config.api_key_env
        self._client = openai.AsyncOpenAI(
            base_url=config.base_url,
            api_key=os.environ.get(config.api_key_env) or "none",
            timeout=limits.timeout_s,
            max_retries=0,  # ours know the budget and the ledger
        )
        self._slots = asyncio.Semaphore(limits.concurrency)
        self._calls = Pacer(limits.requests_per_minute)
        self._tokens = Pacer(limits.tokens_per_minute)
        self._resume_at = 0.0
        self._jitter = random.Random(seed)
        self._on_wait = on_wait or (lambda words: None)
        self._spent_tokens, self._spent_cost = ledger.spent()
        self._under_way = 0
        self._changed = asyncio.Condition()
        self._stopping = asyncio.Event()

    async def ask(self, request: Request) -> Reply:
        """Return the reply, from the ledger where it was bought before.

        Raises:
            TraceError: The budget is spent, the key or the model is refused.
        """
        key = request.key(self.name)
        bought = self.ledger.find(key)
        if bought is not None:
            return bought
        async with self._slots:
            most = self._price(request.max_tokens - request.max_new_tokens, request.max_new_tokens)
            if not self.ledger.is_in_doubt(key):  # else its cost is in the sums already
                await self._reserve(request.max_tokens, most)
            if self._stopping.is_set():
                raise Stopped
            self.ledger.enter(key, self.name, request, most)
            self._under_way += 1
            try:
                return await self._buy(key, request, most)
            finally:
                self._under_way -= 1
                async with self._changed:
                    self._changed.notify_all()

    def stop(self) -> None:
        """Send nothing more; calls under way are still answered and kept."""
        self._stopping.set()

    async def close(self) -> None:
        """Close connections and ledger."""
        await self._client.close()
        self.ledger.close()

    async def _buy(self, key: str, request: Request, most: float) -> Reply:
        """Return the reply, and put it and what it cost on record."""
        reply, is_in_doubt = await self._attempt(key, request)
        if reply is not None and reply.problem is None:
            self.ledger.settle(key, self.name, reply)
        elif is_in_doubt:  # it may have been paid: it stays on record in full
            return reply or Reply("", problem="failed")
        else:
            self.ledger.withdraw(key)
        reply = reply or Reply("", problem="failed")
        self._spent_tokens += reply.prompt_tokens + reply.reply_tokens - request.max_tokens
        self._spent_cost += reply.cost - most
        if self._stopping.is_set() and reply.problem == "failed":
            raise Stopped
        return reply

    async def _reserve(self, tokens: int, cost: float) -> None:
        """Set aside what a call can cost; wait while calls under way may give some back.

        Raises:
            TraceError: It does not fit, and nothing is under way.
        """
        limits = self.limits
        async with self._changed:
            while (
                limits.max_tokens is not None and self._spent_tokens + tokens > limits.max_tokens
            ) or (limits.max_cost is not None and self._spent_cost + cost > limits.max_cost):
                if self._stopping.is_set():
                    raise Stopped
                if self._under_way == 0:
                    raise TraceError(
                        f"the budget must cover the next call, up to {tokens:,} tokens and "
                        f"{cost:.4f}; spent are {self._spent_tokens:,} tokens of "
                        f"{limits.max_tokens or 'any'}, {self._spent_cost:.4f} of "
                        f"{limits.max_cost or 'any'}. All replies are kept: the same command with "
                        "a larger --limits.max-tokens or --limits.max-cost continues"
                    )
                await self._changed.wait()
            self._spent_tokens += tokens
            self._spent_cost += cost

    async def _attempt(self, key: str, request: Request) -> tuple[Reply | None, bool]:
        """Return the reply, None after the last attempt, and whether a lost one may be paid."""
        limits, is_in_doubt = self.limits, False
        for attempt in range(limits.max_attempts):
            await self._calls.wait()
            await self._tokens.wait(request.max_tokens)
            await self._pause(self._resume_at - asyncio.get_running_loop().time())
            if self._stopping.is_set():
                break
            asked_to_wait = None
            try:
                return await self._send(key, request), is_in_doubt
            except openai.APIStatusError as error:
                if error.status_code in _FATAL:
                    self.ledger.withdraw(key)
                    self.stop()  # nobody else needs to hear the same
                    raise TraceError(self._fatal(error)) from None
                if error.status_code < 500 and error.status_code not in _TRANSIENT:
                    return Reply("", problem="refused"), is_in_doubt
                asked_to_wait = _retry_after(error)
                what = f"status {error.status_code}"
            except openai.APITimeoutError:
                is_in_doubt, what = True, f"no reply within {limits.timeout_s:g} s"
            except openai.APIConnectionError as error:
                refused = type(error.__cause__).__name__ == "ConnectError"
                is_in_doubt = is_in_doubt or not refused
                what = "nobody answers" if refused else "the connection broke"
            except (openai.APIResponseValidationError, ValueError):
                is_in_doubt, what = True, "a reply that is none"
            if attempt + 1 == limits.max_attempts:
                break
            grown = min(limits.max_backoff_s, limits.backoff_s * 2**attempt)
            pause = grown * (0.5 + 0.5 * self._jitter.random())
            if asked_to_wait is not None:
                pause = min(limits.max_backoff_s, max(pause, asked_to_wait))
                now = asyncio.get_running_loop().time()
                self._resume_at = max(self._resume_at, now + pause)  # holds for every call
            self._on_wait(f"{what}; waiting {pause:.1f} s")
            await self._pause(pause)
        return None, is_in_doubt

    async def _pause(self, seconds: float) -> None:
        """Wait, unless the run is stopped meanwhile."""
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), seconds)

    async def _send(self, key: str, request: Request) -> Reply:
        """Return one reply; a body without what the protocol promises is a ``ValueError``."""
        said = await self._client.chat.completions.create(
            model=self.model,
            messages=[  # pyright: ignore[reportArgumentType]
                {"role": "user" if m.role == "prompt" else m.role, "content": m.content}
                for m in request.messages
            ],
            max_tokens=request.max_new_tokens,
            temperature=request.temperature,
            seed=request.seed,
            extra_headers={"Idempotency-Key": key},
        )
        if not getattr(said, "choices", None):
            raise ValueError("a reply must have choices")
        choice = said.choices[0]
        text = choice.message.content or ""
        if said.usage is not None:
            prompt_tokens, reply_tokens = said.usage.prompt_tokens, said.usage.completion_tokens
        else:  # a server that does not count: a token is about four letters
            prompt_tokens = sum(len(m.content) for m in request.messages) // 4 + 1
            reply_tokens = len(text) // 4 + 1
        return Reply(
            text=text,
            is_complete=choice.finish_reason in ("stop", None),
            prompt_tokens=prompt_tokens,
            reply_tokens=reply_tokens,
            cost=self._price(prompt_tokens, reply_tokens),
        )

    def _price(self, prompt_tokens: int, reply_tokens: int) -> float:
        limits = self.limits
        return (prompt_tokens * limits.price_prompt + reply_tokens * limits.price_reply) / 1e6

    def _fatal(self, error: openai.APIStatusError) -> str:
        hint = {
            401: f"is the key in ${self._key_name} right?",
            402: "is the account funded?",
            403: f"may the key in ${self._key_name} use this model?",
            404: f"does the server know the model {self.model!r}, and does the address end in /v1?",
        }[error.status_code]
        return f"the endpoint at {self._url} must accept calls; it said {error.status_code}: {hint}"


def _retry_after(error: openai.APIStatusError) -> float | None:
    """Return the seconds that a server asked to wait."""
    try:
        return float(error.response.headers.get("retry-after", ""))
    except ValueError:
        return None
