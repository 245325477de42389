"""The teacher that a configuration names. The only module that knows all of them."""

from collections.abc import Callable
from pathlib import Path

from reasonrec.traces.reasoned_config import ReasonedTracesConfig
from reasonrec.traces.teachers.contract import Teacher
from reasonrec.traces.teachers.ledger import Ledger
from reasonrec.traces.teachers.verbaliser import VerbaliserTeacher

LEDGER = "replies.sqlite"


def build_teacher(
    config: ReasonedTracesConfig,
    out: Path,
    *,
    seed: int,
    on_wait: Callable[[str], None] | None = None,
) -> Teacher:
    """Return the teacher of a run into ``out``.

    Raises:
        TraceError: The model cannot be loaded, or the file of bought replies cannot be used.
    """
    teacher, limits = config.teacher, config.limits
    if teacher.kind == "verbaliser":
        return VerbaliserTeacher(teacher)
    assert teacher.model is not None
    ledger = Ledger(limits.cache or Path(out) / LEDGER)
    if teacher.kind == "endpoint":
        from reasonrec.traces.teachers.endpoint import EndpointTeacher

        return EndpointTeacher(teacher, limits, ledger, seed=seed, on_wait=on_wait)
    from reasonrec.traces.teachers.local import LocalTeacher, load_teacher_model

    model, tokenizer = load_teacher_model(teacher.model, device=teacher.device)
    return LocalTeacher(
        model,
        tokenizer,
        name=f"{teacher.kind}:{weights_name(Path(teacher.model))}",
        ledger=ledger,
        batch_size=teacher.batch_size,
    )


def weights_name(folder: Path) -> str:
    """Return a model's name; for a folder also what its weights are, as they may be trained on."""
    from reasonrec.manifest import fingerprint

    files = sorted(folder.rglob("*.safetensors")) if folder.is_dir() else []
    return "-".join([folder.name if files else str(folder), *(fingerprint(f)[:8] for f in files)])
