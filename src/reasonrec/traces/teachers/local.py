"""Teachers that run here: a chat model of a folder or the hub, and the trained model itself.

Calls that wait at the same moment are read as one batch. Every row draws from a stream of its own
(Gumbel noise on the logits: the largest is a draw from the softmax), so a reply does not depend on
what else was in its batch, beyond rounding of padded rows.
"""

import asyncio
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from reasonrec.errors import TraceError
from reasonrec.traces.teachers.contract import Message, Reply, Request, Stopped
from reasonrec.traces.teachers.ledger import Ledger


def load_teacher_model(
    name: str, *, device: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a causal LM and its tokenizer from a folder or the hub.

    A folder that ``reasonrec train`` wrote holds its language model in ``model/backbone``.

    Raises:
        TraceError: There is none.
    """
    folder = Path(name)
    inner = [folder / "model" / "backbone", folder / "backbone"]
    source = next((str(path) for path in inner if path.is_dir()), name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise TraceError(
            f"a local teacher must be a folder or hub name of a causal LM; {name!r} gave: "
            f"{str(error).splitlines()[0]}"
        ) from None
    model.to(torch.device(device))  # pyright: ignore[reportArgumentType]
    return model.eval(), tokenizer


class LocalTeacher:
    """Writes replies with a model in this process, and keeps them: time is a cost too."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        ledger: Ledger,
        batch_size: int,
    ) -> None:
        self.name, self.ledger, self.batch_size = name, ledger, batch_size
        self._model, self._tokenizer = model, tokenizer
        self._waiting: list[tuple[Request, asyncio.Future[Reply]]] = []
        self._reader: asyncio.Task[None] | None = None
        self._is_stopping = False

    async def ask(self, request: Request) -> Reply:
        """Return the reply, from the ledger where it was written before."""
        key = request.key(self.name)
        written = self.ledger.find(key)
        if written is not None:
            return written
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._reader is None or self._reader.done():
            self._reader = asyncio.create_task(self._read())
        reply = await future
        if reply.problem is None:
            self.ledger.settle(key, self.name, reply)
        return reply

    def stop(self) -> None:
        """Write nothing more than the batch under way."""
        self._is_stopping = True

    async def close(self) -> None:
        """Close the ledger."""
        self.ledger.close()

    async def _read(self) -> None:
        """Answer what waits, batch by batch; one turn of the loop lets the others come too."""
        await asyncio.sleep(0)
        while self._waiting:
            if self._is_stopping:
                for _, future in self._waiting:
                    future.set_exception(Stopped())
                self._waiting.clear()
                return
            # alike in length, so that little is padding
            self._waiting.sort(key=lambda entry: sum(len(m.content) for m in entry[0].messages))
            batch = self._waiting[: self.batch_size]
            del self._waiting[: self.batch_size]
            try:
                replies = self._write([request for request, _ in batch])
            except Exception as error:  # a failure in the task must reach those who wait
                for _, future in batch:
                    future.set_exception(error)
                continue
            for (_, future), reply in zip(batch, replies):
                future.set_result(reply)
            await asyncio.sleep(0)

    @torch.no_grad()
    def _write(self, requests: list[Request]) -> list[Reply]:
        prompts = [self._encode(request.messages) for request in requests]
        most = max(request.max_new_tokens for request in requests)
        room = self._model.config.max_position_embeddings - most
        fits = [r for r, prompt in enumerate(prompts) if len(prompt) <= room]
        replies = [Reply("", problem="refused")] * len(requests)  # longer than the model can read
        if not fits:
            return replies
        T = max(len(prompts[r]) for r in fits)
        pad = self._pad_id
        ids = torch.tensor([[pad] * (T - len(prompts[r])) + prompts[r] for r in fits])
        mask = torch.tensor([[0] * (T - len(prompts[r])) + [1] * len(prompts[r]) for r in fits])
        written = self._model.generate(  # pyright: ignore[reportCallIssue]
            input_ids=ids.to(self._model.device),
            attention_mask=mask.to(self._model.device),
            max_new_tokens=most,
            do_sample=False,  # the noise is the sampling
            pad_token_id=pad,
            eos_token_id=self._end_ids,
            logits_processor=LogitsProcessorList([_RowNoise([requests[r] for r in fits])]),
        )[:, T:]
        for r, row in zip(fits, written.tolist()):
            row = row[: requests[r].max_new_tokens]
            end = next((t for t, token in enumerate(row) if token in self._end_ids), None)
            body = row if end is None else row[:end]
            replies[r] = Reply(
                str(self._tokenizer.decode(body, skip_special_tokens=not _continues(requests[r]))),
                is_complete=end is not None,
                prompt_tokens=len(prompts[r]),
                reply_tokens=len(body),
            )
        return replies

    def _encode(self, messages: tuple[Message, ...]) -> list[int]:
        tokenizer = self._tokenizer
        if messages[0].role == "prompt":
            start = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
            return [*start, *tokenizer.encode(messages[0].content, add_special_tokens=False)]  # pyright: ignore[reportReturnType]
        turns = [{"role": m.role, "content": m.content} for m in messages]
        if tokenizer.chat_template is None:
            text = "\n\n".join(m.content for m in messages) + "\n\n"
            return tokenizer.encode(text)
        return tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=True, return_dict=False
        )  # pyright: ignore[reportReturnType]

    @property
    def _end_ids(self) -> list[int]:
        settings = self._model.generation_config
        ends = settings.eos_token_id if settings is not None else None
        ends = ends if ends is not None else self._tokenizer.eos_token_id
        several = ends if isinstance(ends, list | tuple) else [ends]
        return [end for end in several if isinstance(end, int)]

    @property
    def _pad_id(self) -> int:
        pad = self._tokenizer.pad_token_id
        return int(pad) if pad is not None else self._end_ids[0]  # pyright: ignore[reportArgumentType]


class _RowNoise(LogitsProcessor):
    """Adds each row's own Gumbel noise to its logits over temperature: greedy becomes sampling."""

    def __init__(self, requests: list[Request]) -> None:
        self._temperatures = [request.temperature for request in requests]
        self._streams = [torch.Generator().manual_seed(request.seed) for request in requests]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        rows = []
        for row, (temperature, stream) in enumerate(zip(self._temperatures, self._streams)):
            logits = scores[row]
            if temperature > 0:
                uniform = torch.rand(logits.shape, generator=stream).clamp_min(1e-20)
                logits = logits / temperature - torch.log(-torch.log(uniform)).to(logits.device)
            rows.append(logits)
        return torch.stack(rows)


def _continues(request: Request) -> bool:
    """Whether the reply continues a prompt, where markers are part of the text."""
    return request.messages[0].role == "prompt"
