"""What benchmarks/r2rec.py trains and measures: the sets, the configurations, the names of rows."""

from running import merged

PREPARE = {
    "ml-100k": [],
    "office-2018": ["--split", "given"],
    "ml-latest-small": [],
    "ml-1m": [],
}
"""The sets of the page, and what `reasonrec prepare` is told; of ml-1m it keeps likes unasked."""
BASELINES = ("popularity", "recent-popularity", "item-knn-bm25", "follow-counter", "ease", "ials")
BUDGET = 20
"""Settings that are tried for each baseline, by NDCG@10 on validation."""
NUM_QUERIES = 2000
PROTOCOL = "candidates-20"
ALL = {"ranking": {"num_orders_measured": 0}, "blend": False}
"""What configurations have unless they say otherwise: no blend, and nothing measured of what the
order does, for time."""
SFT = {"stages": ["r2rec-sft"]}
ON_HISTORY = {"reading": "history-closed"}
MAIN = {
    "r2rec": {"blend": True},
    "direct": {"think": False, "stages": ["r2rec-sft"]},
    "history-closed": {"stages": ["r2rec-sft"], "traces": {"evidence": ON_HISTORY}},
    "no-chains": {"stages": ["r2rec-sft"], "traces": {"evidence": {"num_chains": 0}}},
}
"""Configurations that every seed of every set trains."""
AFTER_SFT = ["r2rec-sft", "r2rec-rl"]
LONGER = {"num_prompts": 800, "optimiser": {"num_validations": 5}}
ABLATIONS = {
    "no-recital": {"recites": "never"},
    "no-recital-on-history": {"recites": "never", "traces": {"evidence": ON_HISTORY}},
    "random-chains": {"traces": {"evidence": {"chain_ends": "random"}}},
    "no-support": {"traces": {"evidence": {"show_support": False}}},
    "one-chain": {"traces": {"evidence": {"num_chains": 1}}},
    "five-chains": {"traces": {"evidence": {"num_chains": 5}}, "max_tokens": 200},
    "copying": {"copies": True},
    "longer": {"sft": {"num_epochs": 8, "optimiser": {"num_validations": 8}}},
    "any-event": {
        "traces": {"events": "any", "num_questions": 6400},
        "sft": {"optimiser": {"num_validations": 8}},
    },
    "no-likeness": {"traces": {"evidence": {"show_likeness": False}}},
    "free-only": {"traces": {"progressive": {"runs": "free"}}},
    "guided-only": {"traces": {"progressive": {"runs": "guided"}}},
    "full-style": {"traces": {"teacher": {"style": "full"}}, "max_tokens": 300},
    "no-masking": {
        "traces": {"teacher": {"style": "full"}, "progressive": {"masking": "answer"}},
        "max_tokens": 300,
    },
    "masked-ratings": {
        "traces": {"teacher": {"style": "full"}, "progressive": {"masking": "ratings"}},
        "max_tokens": 300,
    },
    "words-of-answers": {"chooses": False},
    "four-orders": {"ranking": {"num_orders": 4}},
    "rl-only": {"stages": ["r2rec-rl"]},
    "rl-longer": {"stages": AFTER_SFT, "rl": LONGER},
    "rl-held": {"stages": AFTER_SFT, "rl": {**LONGER, "grpo": {"kl_weight": 0.1}}},
    "rl-rewards-alone": {"stages": AFTER_SFT, "rl": {**LONGER, "grpo": {"answer_weight": 0.0}}},
    "rl-spread": {
        "stages": AFTER_SFT,
        "rl": {**LONGER, "grpo": {"answer_weight": 0.0, "advantage": "grpo"}},
    },
    "rl-groups-of-16": {
        "stages": AFTER_SFT,
        "rl": {"num_prompts": 400, "grpo": {"group_size": 16}},
    },
    "rl-faster": {
        "stages": AFTER_SFT,
        "rl": merged(LONGER, {"optimiser": {"learning_rate": 5e-4}}),
    },
}
"""One change each from r2rec-sft, whose first stage alone is trained unless they say otherwise."""
RATED = {
    "rated": {"task": "rated"},
    "rated-direct": {"task": "rated", "think": False, "stages": ["r2rec-sft"]},
}
"""Pointwise: twenty questions a query, the expected rating of each candidate."""
NUM_RATED = 300
"""Queries that are ranked by ratings, of the same sample, for time."""
ONE_SCALE = ("ml-100k", "ml-1m", "office-2018")
"""Sets that are rated from 1 to 5 in whole stars."""
TRANSFERRED = {"r2rec-sft": "r2rec", "direct-sft": "direct"}
"""Rows that are measured on other sets than they were trained on, and their folders."""
BLENDED = "r2rec-rl/blend"
JOINED = "joined-sft/blend"
EVIDENCE = "blend/no-answers"
