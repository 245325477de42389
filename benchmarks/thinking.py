"""Time thinking on a trained model: CPU-milliseconds a thought, in batches and one user at a time.

    python benchmarks/thinking.py runs/demo/data runs/demo/think-sft/model --num-users 256

Prints one JSON object a line. Greedy, as evaluation and serving think, and four sampled thoughts a
user. The quickest of ``--repeats`` counts; CPU time of one thread, since other work may run beside.
"""

import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from cyclopts import App

from reasonrec.data.dataset import Dataset
from reasonrec.graph.build import InteractionGraph
from reasonrec.models.reasoning_recommender import ReasoningRecommender
from reasonrec.models.recommenders import ThinkingRecommender
from reasonrec.traces.config import ThoughtConfig
from reasonrec.traces.verbaliser import Verbaliser

app = App(help=__doc__)


@app.default
def main(data: Path, model: Path, /, *, num_users: int = 256, repeats: int = 3) -> None:
    """Time the thoughts about the first test users.

    Args:
        data: Folder that `reasonrec prepare` wrote.
        model: Folder of a trained model.
    """
    torch.set_num_threads(1)
    dataset = Dataset.load(data)
    loaded = ReasoningRecommender.from_pretrained(model)
    graph = InteractionGraph.build(dataset.train, dataset.num_items)
    verbaliser = Verbaliser(loaded.writer, graph, dataset.catalogue, ThoughtConfig())
    histories = dataset.test.histories()
    histories = histories.take(np.arange(min(num_users, len(histories))))
    for name, batch_size, num_asked, num_samples in (
        ("batches of 128", 128, len(histories), 1),
        ("batches of 128, four samples", 128, len(histories) // 4, 4),
        ("one user at a time", 1, 20, 1),
    ):
        recommender = ThinkingRecommender(
            loaded, verbaliser, batch_size=batch_size, num_samples=num_samples,
            temperature=float(num_samples > 1),
        )  # fmt: skip
        part = histories.take(np.arange(num_asked))
        recommender.score(part.take(np.arange(2)))
        best, num_tokens = float("inf"), 0
        for _ in range(repeats):
            started = time.process_time()
            scored = recommender.score(part)
            best = min(best, time.process_time() - started)
            assert scored.num_tokens is not None
            num_tokens = int(scored.num_tokens.sum())
        num_thoughts = num_asked * num_samples
        line = {
            "what": name, "thoughts": num_thoughts, "tokens": num_tokens,
            "cpu_ms_per_thought": round(1000 * best / num_thoughts, 3),
            "tokens_per_cpu_s": round(num_tokens / best), "load": round(os.getloadavg()[0], 1),
        }  # fmt: skip
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    app()
