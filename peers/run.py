"""Answers one job: ``python peers/run.py FOLDER``, where ``FOLDER/job.json`` says what is asked.

Exit codes: 0 done, 3 these settings cannot be trained (the reason is the last line), 1 anything
else. ``contract.py`` says what the files hold.
"""

import importlib
import json
import sys
import warnings
from pathlib import Path

METHODS = {
    "sasrec": ("rectools", "rectools_models", "train_sasrec"),
    "esasrec": ("rectools", "rectools_models", "train_esasrec"),
    "hstu": ("rectools", "rectools_models", "train_hstu"),
    "bert4rec": ("rectools", "rectools_models", "train_bert4rec"),
    "lightgcn": ("torch-geometric", "pyg_lightgcn", "train_lightgcn"),
    "gru4rec": ("cornac", "cornac_gru4rec", "train_gru4rec"),
    "caser": ("recbole", "recbole_caser", "train_caser"),
}
"""Method word -> the library that holds it, and the module and function here that train it."""


def main(folder: Path) -> int:
    import torch
    from contract import UnfitError, answer

    # Adam's running means of what is no longer touched shrink to numbers that a CPU multiplies a
    # hundred times more slowly; they are as good as 0
    torch.set_flush_denormal(True)
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    library, module, function = METHODS[job["method"]]
    warnings.filterwarnings("ignore")  # of the libraries, about GPUs and workers that are not used
    train = getattr(importlib.import_module(module), function)
    try:
        answer(job, train, library, folder)
    except UnfitError as error:
        print(error, file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
