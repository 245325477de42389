"""A small server of vLLM's paths with a real tiny language model behind it, read from a folder.

It answers what `training.rl.engines.vllm` asks of ``vllm serve``, one token after the other through
the whole sequence: slow, and obviously right.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    """Of two processes that ask with all their threads at once."""


class ToyVllm:
    """Serves one causal LM on a free port; weights change only where it is told to read others."""

    def __init__(self, folder: Path, *, is_dev: bool = True) -> None:
        """Args:
        is_dev: Whether the path is open through which weights are reloaded.
        """
        self.folder, self.is_dev = folder, is_dev
        self.bodies: list[tuple[str, dict[str, Any]]] = []
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._models = {"base": self._read(folder)}
        self._lock = threading.Lock()
        toy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                toy._send(self, 200, {"data": [{"id": "base"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with toy._lock:
                    toy.bodies.append((self.path, body))
                    status, said = toy._answer(self.path, body)
                toy._send(self, status, said)

            def log_message(self, format: str, *args: Any) -> None:
                return

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> "ToyVllm":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def _answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/v1/completions":
            if len(body["stop"]) > 4:  # VLLM_MAX_STOP_STRINGS
                return 400, {"error": "stop: List should have at most 4 items"}
            return 200, {"choices": [self._complete(body)]}
        if path == "/collective_rpc" and self.is_dev:
            assert body["method"] == "reload_weights"
            self._models["base"] = self._read(Path(body["kwargs"]["weights_path"]))
            return 200, {"results": [None]}
        if path == "/reset_prefix_cache":
            return 200, {"success": True}
        if path == "/v1/load_lora_adapter":
            model = self._models[body["lora_name"]] = self._read(self.folder)
            model.load_adapter(body["lora_path"])
            return 200, "Success"
        if path == "/v1/unload_lora_adapter":
            del self._models[body["lora_name"]]
            return 200, "Success"
        return 404, {"detail": "Not Found"}

    @torch.no_grad()
    def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(body["seed"])
        tokens: list[int] = []
        logps, beside = [], []
        while len(tokens) < body["max_tokens"]:
            ids = torch.tensor([body["prompt"] + tokens])
            logits = self._models[body["model"]](ids).logits[0, -1].float()
            raw = logits.log_softmax(-1)
            for token, added in body["logit_bias"].items():
                logits[int(token)] += added
            if body["top_k"]:
                logits[logits < logits.topk(body["top_k"]).values[-1]] = -torch.inf
            if body["temperature"] == 0:
                drawn = int(logits.argmax())
            else:
                p = (logits / body["temperature"]).softmax(-1)
                drawn = int(torch.multinomial(p, 1, generator=generator))
            tokens.append(drawn)
            logps.append(float(raw[drawn]))
            asked = [drawn, *(body["logprob_token_ids"] or [])]
            beside.append({f"token_id:{token}": float(raw[token]) for token in asked})
            text = str(self._tokenizer.decode(tokens))
            if drawn in body["stop_token_ids"] or any(text.endswith(s) for s in body["stop"]):
                break
        return {
            "token_ids": tokens, "logprobs": {"token_logprobs": logps, "top_logprobs": beside}
        }  # fmt: skip

    @staticmethod
    def _read(folder: Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @staticmethod
    def _send(handler: BaseHTTPRequestHandler, status: int, said: Any) -> None:
        content = json.dumps(said).encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)
