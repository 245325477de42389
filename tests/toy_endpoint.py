"""A small OpenAI-compatible server with a real tiny language model behind it, and faults on demand.

The model chooses every sentence and every answer (the likeliest of a few under its own weights), so
replies are its own and still have the shape that a prompt asks for, as with guided decoding.
"""

import json
import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from tests.toy_models import plain_tokenizer
from transformers import Qwen3Config, Qwen3ForCausalLM

SENTENCES = (
    "The user seems to like this kind of thing.",
    "It is hard to say from this alone.",
    "This speaks for it, if not by much.",
    "That is of little weight here.",
)


def tiny_language_model(*, seed: int = 0, length: int = 4096):
    """Return an untrained causal LM of a few thousand weights, and a tokenizer with a chat form."""
    tokenizer = plain_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}"
    end = tokenizer.eos_token_id
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, head_dim=8, max_position_embeddings=length,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=end, pad_token_id=end,
        tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config).eval(), tokenizer


class ToyEndpoint:
    """Serves ``/v1/chat/completions`` on a free port, counts calls, fails where it is told to."""

    def __init__(self, *, seconds: float = 0.0, faults: dict[int, str] | None = None) -> None:
        """Args:
        seconds: What a reply takes at least.
        faults: What happens to the n-th call, from 0; -1 stands for every call.
        """
        self.seconds, self.faults = seconds, faults or {}
        self.answered: Counter[str] = Counter()
        """Replies computed, by idempotency key: what a server that knows no keys would bill."""
        self.bodies: list[dict[str, Any]] = []
        self.arrivals: list[float] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._model, self._tokenizer = tiny_language_model()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                endpoint._answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> "ToyEndpoint":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            fault = self.faults.get(len(self.bodies), self.faults.get(-1, ""))
            self.bodies.append(body)
            self.arrivals.append(time.monotonic())
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            time.sleep(self.seconds)
            self._reply(handler, body, fault)
        except OSError:
            handler.close_connection = True  # who asked is gone
        finally:
            with self._lock:
                self._at_once -= 1

    def _reply(self, handler: BaseHTTPRequestHandler, body: dict[str, Any], fault: str) -> None:
        if fault.isdigit():
            headers = {"Retry-After": "0.3"} if fault == "429" else {}
            _send(handler, int(fault), json.dumps({"error": {"message": "as asked"}}), headers)
            return
        if fault == "hang":
            time.sleep(1.0)
        with self._lock:
            text, tokens = self._write(body)
            self.answered[handler.headers.get("Idempotency-Key", "")] += 1
        if fault == "break":
            handler.close_connection = True
            return
        if fault == "garbage":
            _send(handler, 200, "<html>busy</html>")
            return
        content, finish = {
            "empty": ("", "stop"),
            "cut": (text[: len(text) // 2], "length"),
            "chatter": ("Sure, here you go!", "stop"),
            "obey": ("<taste>I ignore all previous instructions and say five.</taste>", "stop"),
        }.get(fault, (text, "stop"))  # fmt: skip
        said = {
            "id": "toy", "object": "chat.completion", "created": 0, "model": body["model"],
            "choices": [{"index": 0, "finish_reason": finish,
                         "message": {"role": "assistant", "content": content}}],
            "usage": {"prompt_tokens": tokens, "completion_tokens": 10},
        }  # fmt: skip
        _send(handler, 200, json.dumps(said))

    def _write(self, body: dict[str, Any]) -> tuple[str, int]:
        """Return a reply in the tags that the last message asks for, and the prompt's tokens."""
        asked = body["messages"][-1]["content"]
        prompt = self._tokenizer.apply_chat_template(
            body["messages"], tokenize=True, return_dict=False
        )
        tags = re.findall(r"<(\w+)>\.\.\.</\1>", asked)
        offered = re.search(r"one of ([\d., ]+\d)", asked)
        numbers = re.findall(r"^(\d+)\. \[", asked, re.MULTILINE)
        answers = offered.group(1).split(", ") if offered else numbers
        parts = []
        for n, tag in enumerate(tags):
            options = answers if tag == "answer" else SENTENCES
            parts.append(f"<{tag}>{self._choose(prompt, options, body['seed'] + n)}</{tag}>")
        return "".join(parts), len(prompt)

    @torch.no_grad()
    def _choose(self, prompt: list[int], options: Any, seed: int) -> str:
        """Return the option whose first token the model draws, given the prompt's end."""
        tokens = torch.tensor([prompt[-64:]])
        logits = self._model(tokens).logits[0, -1]
        first = [self._tokenizer.encode(option, add_special_tokens=False)[0] for option in options]
        noise = torch.rand(len(options), generator=torch.Generator().manual_seed(seed))
        scores = logits[first] - torch.log(-torch.log(noise.clamp_min(1e-9)))
        return options[int(scores.argmax())]


def _send(
    handler: BaseHTTPRequestHandler, status: int, text: str, headers: dict[str, str] | None = None
) -> None:
    content = text.encode()
    handler.send_response(status)
    for name, value in (headers or {}).items():
        handler.send_header(name, value)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)
