"""One engine beside the training pass: what it writes, how far apart the two are, seconds of each.

    python benchmarks/engines.py --data runs/shop/data --backbone models/qwen --kind vllm-server

Rollouts are written with the starting weights, again after a step that the engine was not told of,
and once more after a sync. Prints one JSON object. ``apart_unsynced`` must be large beside the
other two: it is what an engine with the wrong weights looks like.
"""

import argparse
import json
import time
from pathlib import Path


def main() -> None:
    # here, since the processes that vLLM starts read this file too, and need none of it
    import torch

    from reasonrec.data.dataset import Dataset
    from reasonrec.graph.build import InteractionGraph
    from reasonrec.models.backbone import build_model
    from reasonrec.models.config import HeadConfig, TinyConfig, WeightsConfig
    from reasonrec.traces.config import ThoughtConfig
    from reasonrec.traces.verbaliser import Verbaliser
    from reasonrec.training.config import EngineConfig, RecpoConfig
    from reasonrec.training.examples import events_with_history
    from reasonrec.training.rl.engines.choice import build_engine
    from reasonrec.training.rl.recpo import Recpo

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--kind", default="sampler")
    parser.add_argument("--handover", default="merged")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--temperature", type=float, default=1.0, help="of sampling")
    parser.add_argument("--eager", action="store_true")
    asked = parser.parse_args()
    torch.manual_seed(0)
    dataset = Dataset.load(asked.data)
    model = build_model(
        dataset.catalogue, backbone=asked.backbone, tiny=TinyConfig(), seed=0,
        head=HeadConfig(dropout=0.0, max_history=10),
        weights=WeightsConfig(dtype=asked.dtype, lora=asked.handover == "adapter"),
    ).eval()  # fmt: skip
    graph = InteractionGraph.build(dataset.train, dataset.num_items)
    verbaliser = Verbaliser(model.writer, graph, dataset.catalogue, ThoughtConfig())
    engine = build_engine(
        EngineConfig(
            kind=asked.kind, handover=asked.handover, url=asked.url, eager=asked.eager,
            max_length=1024,
        )
    )  # fmt: skip
    config = RecpoConfig(max_tokens=asked.max_tokens, temperature=asked.temperature)
    learner = Recpo(config, dataset.train, verbaliser, seed=0, engine=engine)
    optimiser = torch.optim.AdamW(
        [weight for weight in model.parameters() if weight.requires_grad], lr=asked.learning_rate
    )
    event = torch.from_numpy(events_with_history(dataset.train)[: 2 * asked.prompts])

    def step(key: int) -> dict[str, float]:
        rows = event[key * asked.prompts :][: asked.prompts]
        number = torch.full_like(rows, key)
        inputs = {"event": rows, "key": number, "batch": number}
        optimiser.zero_grad()
        loss, logged = learner(model, inputs)
        loss.backward()
        optimiser.step()
        return logged

    class Unsynced:
        """The engine, deaf to new weights."""

        def __init__(self) -> None:
            self.think = engine.think

        def sync(self, _: object) -> None:
            return

    started = time.perf_counter()
    first = step(0)
    start_s = time.perf_counter() - started
    learner.engine = Unsynced()  # pyright: ignore[reportAttributeAccessIssue]
    unsynced = step(1)
    learner.engine = engine
    synced = step(0)
    engine.close()
    tokens = synced["rl/thought_tokens"] * asked.prompts * config.group_size
    print(
        json.dumps(
            {
                "kind": asked.kind,
                "handover": asked.handover,
                "dtype": asked.dtype,
                "temperature": asked.temperature,
                "first_step_s": round(start_s, 2),
                "sync_s": round(synced["rl/sync_seconds"], 3),
                "rollout_s": round(synced["rl/rollout_seconds"], 3),
                "tokens": round(tokens),
                "tokens_per_s": round(tokens / synced["rl/rollout_seconds"]),
                "apart_first": first["rl/sampler_mismatch"],
                "apart_unsynced": unsynced["rl/sampler_mismatch"],
                "apart_synced": synced["rl/sampler_mismatch"],
            }
        )
    )


if __name__ == "__main__":
    main()
