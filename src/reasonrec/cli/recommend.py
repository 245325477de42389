"""``reasonrec recommend``: what to offer a person next, and why."""

import json as json_format
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from reasonrec.errors import CheckpointError, ServingError
from reasonrec.manifest import read_manifest

if TYPE_CHECKING:
    from rich.console import Console

    from reasonrec.records import Recommendation

METHODS = ("think-recpo", "think-sft", "r2rec-rl", "r2rec-sft", "no-think")
"""Models of a run, the one to use first."""
MOST_CHAINS = 10
"""Printed for one person."""


def recommend(
    run: Path,
    /,
    *,
    user: Annotated[list[str] | None, Parameter(negative="")] = None,
    history: str | None = None,
    k: int = 10,
    explain: bool = False,
    mask: Literal["history", "none"] = "history",
    method: str | None = None,
    data: Path | None = None,
    json: bool = False,
) -> None:
    """Say what to offer a person next, and with --explain why.

    Examples:

        reasonrec recommend runs/demo --user u17 --k 5 --explain

        reasonrec recommend runs/demo --history i3,i12,i40

        reasonrec recommend runs/demo/no-think --data runs/demo/data --user u17 --json

    Args:
        run: A folder that `reasonrec demo` or `reasonrec train` wrote.
        user: Id of a known user; give it several times for several users.
        history: Item ids with commas between them, or a JSON list of them, oldest first: for
            somebody new, or instead of what is known of the user.
        k: Length of the list.
        explain: Show the thought, the chains that it rests on (ten, those to the top of the list
            first; all, and whole titles, with --json), and, where a method weighs several kinds of
            evidence, what each adds to the first place.
        mask: What is not offered: what the person took before (history), or nothing (none), for
            models trained with head.repeats.
        method: Which model of a demo run answers; the best trained one if not given.
        data: Prepared data folder, where the run does not name it.
        json: Print a JSON list with one answer for each user.
    """
    from reasonrec.data.dataset import Dataset
    from reasonrec.serving import recommender as serving

    if not user and history is None:
        raise ServingError("somebody must be named: give --user ID, --history ID,ID or both")
    if history is not None and user and len(user) > 1:
        raise ServingError(f"a --history belongs to one user; got {len(user)} users")
    model_folder, data_folder = find_model(run, method, data)
    from reasonrec.methods.loading import load_recommender

    dataset = Dataset.load(data_folder)
    model = load_recommender(model_folder, dataset)
    if history is not None:
        item_ids = ids_of(history)
        answers = [
            serving.recommend_for_history(
                model,
                dataset,
                item_ids,
                user_id=user[0] if user else None,
                k=k,
                explain=explain,
                mask=mask,
            )
        ]
    else:
        answers = serving.recommend(model, dataset, user or [], k=k, explain=explain, mask=mask)
    if json:
        print(
            json_format.dumps(
                [answer.to_json() for answer in answers], ensure_ascii=False, indent=2
            )
        )
        return
    from rich.console import Console

    for answer in answers:
        print_recommendation(answer, Console(highlight=False))


def ids_of(history: str) -> list[str]:
    """Return the item ids of a list parted by commas, or of a JSON list.

    Raises:
        ServingError: It begins as a JSON list, and is none of strings.
    """
    if not history.lstrip().startswith("["):
        return [item_id.strip() for item_id in history.split(",") if item_id.strip()]
    try:
        found = json_format.loads(history)
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise ServingError(
            f'a --history that begins with [ must be a JSON list of ids, as ["17"]; got {history}'
        )
    return found


def find_model(run: Path, method: str | None, data: Path | None) -> tuple[Path, Path]:
    """Return the model folder and the prepared data folder that ``run`` stands for.

    Raises:
        CheckpointError: There is no finished model, or it does not name its data.
    """
    if not run.is_dir():
        raise CheckpointError(f"the run must be a folder that exists; found none at {run}")
    asked = METHODS if method is None else (method,)
    models = [run / name for name in asked if (run / name / "manifest.json").exists()]
    if models:
        inside = run / "data"
        return models[0], data or (inside if inside.is_dir() else named_data(models[0]))
    if method is not None or (run / "data").is_dir():
        raise CheckpointError(
            f"{run} has no finished model among {', '.join(asked)}; "
            "run the command that writes it again and it continues"
        )
    return run, data or named_data(run)


def named_data(model: Path) -> Path:
    """Return the prepared data folder that a trained model names.

    Raises:
        CheckpointError: It names none, or one that is gone.
    """
    named: Any = read_manifest(model).get("data_folder")
    if named is None:
        raise CheckpointError(
            f"{model} does not say which data it was trained on; give --data FOLDER"
        )
    # a relative path is meant from the model folder, so that a run can be moved as a whole
    found = next((path for path in (model / named, Path(named)) if path.is_dir()), None)
    if found is None:
        raise CheckpointError(f"{model} was trained on {named}, which is gone; give --data FOLDER")
    return found


def print_recommendation(answer: "Recommendation", console: "Console") -> None:
    """Print one answer for people: history, ranking, thought, chains as text."""
    from rich.table import Table
    from rich.text import Text

    from reasonrec.serving.explanations import (
        in_order,
        in_short,
        render_because,
        render_chain,
        render_thought,
    )

    console.print(
        Text(f"\nFor {answer.user_id or 'somebody new'}, by {answer.method}", style="bold")
    )
    if answer.history:
        shown = answer.history[-8:]
        before = f"{len(answer.history) - len(shown)} earlier, " if len(answer.history) > 8 else ""
        console.print(
            Text("history  ", style="dim")
            + Text(before + " · ".join(in_short(h.title) for h in shown))
        )
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("#", justify="right")
    table.add_column("title", overflow="fold")
    table.add_column("id", style="dim")
    table.add_column("score", justify="right")
    for item in answer.items:
        table.add_row(str(item.rank), Text(item.title), Text(item.item_id), f"{item.score:.3f}")
    console.print(table)
    if answer.thought:
        console.print(
            Text("thought  ", style="dim") + Text(render_thought(answer.thought), style="italic")
        )
    if answer.items and answer.items[0].because:
        told = render_because(answer.items[0].because)
        console.print(Text("because  ", style="dim") + Text(f"{told} (#1, beside the others)"))
    chains = in_order(answer.chains)
    for chain in chains[:MOST_CHAINS]:
        console.print(Text("chain    ", style="dim") + Text(render_chain(chain)))
    if len(chains) > MOST_CHAINS:
        console.print(Text(f"         and {len(chains) - MOST_CHAINS} more", style="dim"))
    for note in answer.notes:
        console.print(Text("note     ", style="yellow") + Text(note))
