"""vLLM as what continues tokens: started here on the same device, or a server of somebody's.

Both read weights from a folder (`handover`), both are told every setting of sampling, so that
nothing of a ``generation_config.json`` gets in between, and both forget their cached prefixes when
the weights change. Log-probabilities are asked for raw, at temperature 1 among all tokens, and
corrected for the few that are never written, whose own are asked for beside them. Those of the
policy that drew (``--logprobs-mode processed_logprobs``) are a setting of the whole server, so they
are not counted on: weights are compared by the raw ones, and that the server obeyed temperature and
``top_k`` is taken on trust.
"""

import json
import math
import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

from reasonrec import ranks
from reasonrec.errors import ConfigError, ReasonrecError
from reasonrec.training.rl.engines.continuation import (
    Continuation,
    Handover,
    Request,
    Sampling,
)

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as ``max_lora_rank``."""
_BAN = -100.0
"""Added to the logits of tokens that are never written: the most that vLLM takes."""


def settings_of(request: Request, sampling: Sampling) -> dict[str, Any]:
    """Return every setting of sampling that could differ, by vLLM's names."""
    return {
        "max_tokens": request.max_tokens,
        "seed": request.seed,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": 1.0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop": list(request.stop),
        "stop_token_ids": list(request.stop_ids),
        "ignore_eos": True,
        "skip_special_tokens": False,
        "logit_bias": {str(token): _BAN for token in sampling.never},
    }


def without_never(logp: float, never: Sequence[float]) -> float:
    """Return a token's log-probability among all tokens but some, from theirs and its raw one."""
    return logp - math.log1p(-min(sum(math.exp(one) for one in never), 1 - 1e-9))


class VllmServer:
    """A running ``vllm serve``; holds its address."""

    def __init__(self, url: str, *, concurrency: int, timeout_s: float) -> None:
        self.url, self.timeout_s = url.rstrip("/"), timeout_s
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="vllm")
        self._base: str | None = None
        self._adapter: str | None = None

    def load(self, folder: Path, handover: Handover, dtype: str) -> None:
        """Let the server read the weights in ``folder``, which it must see under the same path.

        What it computes in was said when it was started.
        """
        self._base, self._adapter = ranks.first_alone(lambda: self._tell(folder, handover))

    def _tell(self, folder: Path, handover: Handover) -> tuple[str, str | None]:
        """Return the names of the server's model and of the adapter that it has read."""
        base: str = self._base or self._get("/v1/models")["data"][0]["id"]
        if handover == "merged":
            self._post(
                "/collective_rpc",
                {"method": "reload_weights", "kwargs": {"weights_path": str(folder.resolve())}},
                hint="start the server with VLLM_SERVER_DEV_MODE=1, which opens this path",
            )
            self._post("/reset_prefix_cache", {})
            return base, None
        # under a new name each time: what the server has cached is kept by name
        name = f"rollouts-{folder.parent.name}-{folder.name}"
        self._post(
            "/v1/load_lora_adapter",
            {"lora_name": name, "lora_path": str(folder.resolve())},
            hint="start the server with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1",
        )
        if self._adapter is not None:
            self._post("/v1/unload_lora_adapter", {"lora_name": self._adapter})
        return base, name

    def complete(self, requests: Sequence[Request], sampling: Sampling) -> list[Continuation]:
        """Return what the server writes behind each sequence; many are asked at a time."""
        return list(self._pool.map(lambda request: self._complete(request, sampling), requests))

    def close(self) -> None:
        """Let the threads go; the server stays as it is."""
        self._pool.shutdown()

    def _complete(self, request: Request, sampling: Sampling) -> Continuation:
        body = settings_of(request, sampling) | {
            "model": self._adapter or self._base,
            "prompt": request.token_ids,
            "logprobs": 1,
            "logprob_token_ids": list(sampling.never) or None,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
        said = self._post("/v1/completions", body)["choices"][0]
        tokens, found = said.get("token_ids"), said.get("logprobs") or {}
        if not tokens or len(found.get("token_logprobs") or []) != len(tokens):
            raise ReasonrecError(
                f"{self.url} must return the ids and log-probabilities of at least one token; got "
                f"{str(said)[:200]}. Is it vLLM 0.32 or newer, and the prompt shorter than its "
                "--max-model-len?"
            )
        beside = found.get("top_logprobs") or [{}] * len(tokens)
        names = [f"token_id:{token}" for token in sampling.never]
        logp = [
            without_never(one, [row[name] for name in names if name in row])
            for one, row in zip(found["token_logprobs"], beside, strict=True)
        ]
        return Continuation(tokens, logp)

    def _get(self, path: str) -> Any:
        return self._send(urllib.request.Request(self.url + path))

    def _post(self, path: str, body: Mapping[str, Any], *, hint: str = "") -> Any:
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        return self._send(request, hint)

    def _send(self, request: urllib.request.Request, hint: str = "") -> Any:
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as reply:
                content = reply.read()
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")[:300]
            raise ReasonrecError(
                f"the vLLM server must accept {request.full_url}; it answered {error.code}: {said}"
                + (f". To mend it, {hint}" if hint else "")
            ) from None
        except OSError as error:
            raise ReasonrecError(
                f"engine.url must be that of a running vLLM server; {request.full_url} gave: "
                f"{getattr(error, 'reason', error)}"
            ) from None
        try:
            return json.loads(content) if content else None
        except ValueError:
            return None  # some of its paths answer in words


class VllmColocated:
    """vLLM on the device that trains, in a process of its own that starts at the first `load`."""

    def __init__(self, *, memory_frac: float, max_length: int, is_eager: bool) -> None:
        self._settings = {
            "gpu_memory_utilization": memory_frac,
            "max_model_len": max_length,
            "enforce_eager": is_eager,
        }
        self._engine: Any = None
        self._adapter: Any = None
        self._count = 0

    def load(self, folder: Path, handover: Handover, dtype: str) -> None:
        """Start with the weights in ``folder``, or take them over."""
        if handover == "adapter":
            self._load_adapter(folder, dtype)
        elif self._engine is None:
            self._start(str(folder), dtype)
        else:
            self._engine.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
            self._engine.reset_prefix_cache()

    def complete(self, requests: Sequence[Request], sampling: Sampling) -> list[Continuation]:
        """Return what is written behind each sequence."""
        params = import_module("vllm").SamplingParams
        asked = []
        for request in requests:
            settings = settings_of(request, sampling)
            bias = {int(token): added for token, added in settings.pop("logit_bias").items()}
            never = list(sampling.never)
            asked.append(
                params(
                    **settings, logit_bias=bias or None,
                    logprobs=None if never else 0, logprob_token_ids=never or None,
                )
            )  # fmt: skip
        prompts = [{"prompt_token_ids": request.token_ids} for request in requests]
        written = self._engine.generate(prompts, asked, use_tqdm=False, lora_request=self._adapter)
        continuations = []
        for one in written:
            (said,) = one.outputs
            logp = [
                without_never(
                    row[token].logprob, [row[n].logprob for n in sampling.never if n in row]
                )
                for token, row in zip(said.token_ids, said.logprobs, strict=True)
            ]
            continuations.append(Continuation(list(said.token_ids), logp))
        return continuations

    def close(self) -> None:
        """Stop vLLM and give its memory back."""
        if self._engine is not None:
            self._engine.llm_engine.engine_core.shutdown()
            self._engine = None

    def _start(self, base: str, dtype: str, **more: Any) -> None:
        # a process of its own: vLLM sets global seeds and has process groups of its own
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        try:
            vllm = import_module("vllm")
        except ImportError as error:
            raise ConfigError(
                "engine.kind = 'vllm-colocated' needs the package vllm, beside a matching torch; "
                f"importing it gave: {error}. docs/scaling.md says what was tried; "
                "'vllm-server' can run from an environment of its own"
            ) from None
        # the type is said, since vLLM halves float32 of its own accord
        self._engine = vllm.LLM(
            model=base, dtype=dtype, generation_config="vllm", enable_prefix_caching=True,
            **self._settings, **more,
        )  # fmt: skip

    def _load_adapter(self, folder: Path, dtype: str) -> None:
        if self._engine is None:
            about = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
            base: str = about["base_model_name_or_path"]
            self._start(base, dtype, enable_lora=True, max_lora_rank=room_for_rank(about["r"]))
        self._count += 1
        # a new number each time: what is cached is kept by number
        request = import_module("vllm.lora.request").LoRARequest
        self._adapter = request(f"rollouts-{self._count}", self._count, str(folder))


def room_for_rank(rank: int) -> int:
    """Return the least ``max_lora_rank`` of vLLM that holds adapters of that rank.

    Raises:
        ConfigError: There is none.
    """
    for room in LORA_RANKS:
        if rank <= room:
            return room
    raise ConfigError(
        f"vLLM takes adapters of rank {LORA_RANKS[-1]} at most; got {rank}. Lower "
        "weights.lora_rank, or let the engine take merged weights (engine.handover merged)"
    )
