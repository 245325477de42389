"""The command line: one module per verb. Parses, calls one function of a stage, prints, exits.

Exit codes: 0 done, 1 a stated failure, 2 bad usage (an option or a configuration that cannot be
used), 130 interrupted, 141 the reader of our output went away.
"""

import inspect
import os
import sys
import textwrap
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, get_args

import cyclopts
import docstring_parser
from cyclopts import App, Group, Parameter

from reasonrec import __version__
from reasonrec.errors import FREE_SPACE, FULL, ConfigError, ReasonrecError, system_failure

VERBS = {
    "demo": "Do the whole road once, on a generated shop or on your data.",
    "prepare": "Turn a raw log into a checked, split data set.",
    "chains": "Sample user-item chains from the training graph.",
    "traces": "Write thoughts from histories and graph evidence.",
    "train": "Train a recommender: without thoughts, by SFT, by RecPO.",
    "tune": "Search the settings of baselines on validation.",
    "evaluate": "Measure recommenders on the held-out queries.",
    "compare": "Put evaluated recommenders side by side, with paired tests.",
    "reproduce": "Make a result again from its passport, and compare every number.",
    "audit": "Look for leaks and short cuts in a data set and its evaluation.",
    "faithfulness": "Test whether thoughts matter, and whether they are true.",
    "encode-items": "Write the rows that a model scores items with.",
    "recommend": "Rank items for a user, with the thought and its evidence.",
    "doctor": "Say what this machine has and what it can do.",
}
"""Every verb and its line in ``reasonrec --help``; the verb's own help is its docstring."""
HELP = """Recommenders that think before they recommend, and show why.

From a raw log to explained recommendations: prepare, chains, traces, train, evaluate, compare,
recommend. `reasonrec demo` does all of it on a generated shop, without network or GPU.

Every command reads folders and writes one folder; the same command on an unfinished folder
continues it. Any key of a configuration can be given in `--config FILE.toml` or as an option,
and an option wins.
"""

# cyclopts reads pydantic's own source anew for every nested configuration: a second for `train`
docstring_parser.parse_from_object = cache(docstring_parser.parse_from_object)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; return when done, or say why not and exit with the fitting code."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        build_app(arguments).meta(arguments, exit_on_error=False, print_error=False)
        sys.stdout.flush()  # here, where a reader that went away can still be answered
    except (ReasonrecError, cyclopts.CycloptsError) as error:
        _fail(_message(error), code=2 if _is_usage(error) else 1)
    except KeyboardInterrupt:
        _fail("interrupted; the same command continues where it stopped", code=130)
    except BrokenPipeError:
        # without this the interpreter flushes once more at exit, and prints a traceback
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except ImportError as error:
        _fail_missing_package(error)
    except Exception as error:
        failure = system_failure(error)
        if failure is None:
            raise
        hint = f". {FREE_SPACE}" if failure.errno in FULL else ""
        told = failure.strerror or failure
        _fail(f"{failure.filename or 'a file'} cannot be used: {told}{hint}", code=1)


def build_app(arguments: list[str]) -> App:
    """Return the application that answers ``arguments``."""
    app = App(name="reasonrec", help=HELP, version=__version__, help_format="markdown")
    app.result_action = "return_none"
    app.suppress_keyboard_interrupt = app.meta.suppress_keyboard_interrupt = False  # see main
    asks_help = not {"--help", "-h"}.isdisjoint(arguments)
    for position, (verb, line) in enumerate(VERBS.items()):
        asked = verb in arguments
        app.command(
            # By name: a verb is imported when asked for, so --help needs neither torch nor polars.
            f"{_module_of(verb)}:{verb.replace('-', '_')}",
            name=verb,
            help=None if asked else line,  # a text here would hide the verb's own docstring
            help_epilogue=_examples(verb) if asked and asks_help else None,
            sort_key=position,
        )

    @app.meta.default
    def launch(
        *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
        config: Annotated[
            Path | None,
            Parameter(
                group=Group("Every command"), help="TOML file with any of the command's keys."
            ),
        ] = None,
    ) -> None:
        if tokens and tokens[0] not in {*VERBS, "--help", "-h", "--version"}:
            # cyclopts would import every verb to word this
            near = get_close_matches(tokens[0], VERBS, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(VERBS)}."
            raise cyclopts.CycloptsError(msg=f"A command comes first; got {tokens[0]}. {hint}")
        several = os.environ.get("WORLD_SIZE", "1") != "1"
        if several and tokens and tokens[0] in VERBS and tokens[0] != "train":
            raise ConfigError(
                f"of all commands only train runs as several processes; got {tokens[0]} under "
                "torchrun or accelerate launch. Start it alone"
            )
        if config is not None:
            app.config = keys_of(config)
        app(tokens, exit_on_error=False, print_error=False)

    return app


def _module_of(verb: str) -> str:
    return f"reasonrec.cli.{verb.replace('-', '_')}"


def _examples(verb: str) -> str | None:
    """Return the examples of a verb's docstring, which the parser of docstrings leaves out."""
    function = getattr(import_module(_module_of(verb)), verb.replace("-", "_"))
    _, _, rest = (inspect.getdoc(function) or "").partition("\nExamples:\n")
    indented = takewhile(lambda line: not line or line.startswith(" "), rest.splitlines())
    commands = textwrap.dedent("\n".join(indented)).strip("\n")
    return f"Examples:\n\n{textwrap.indent(commands, '    ')}" if commands else None


def keys_of(path: Path) -> Any:
    """Return the configuration source that puts a TOML file's keys below the options."""
    from reasonrec.config import read_toml

    values = read_toml(path)

    def source(app: App, commands: tuple[str, ...], arguments: Any) -> None:
        # Filed under the verb, else a table [train] in a demo's file would be taken for the verb.
        nested: dict[str, Any] = values
        for command in reversed(commands):
            nested = {command: nested}
        cyclopts.config.Dict(nested, source=str(path))(app, commands, arguments)

    return source


def _is_usage(error: Exception) -> bool:
    return isinstance(error, cyclopts.CycloptsError | ConfigError)


def _message(error: Exception) -> str:
    """Return the error's text; for a configuration, each problem on a line of its own."""
    if isinstance(error, cyclopts.UnknownOptionError) and error.token.source != "cli":
        key = (error.token.keyword or "").strip("[]").replace("][", ".")
        leaves = [found.name for found in error.argument_collection if not found.children]
        known = sorted(name.lstrip("-").replace("-", "_") for name in leaves)
        near = get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        table = key.rpartition(".")[0] + "."
        beside = [name for name in known if name.startswith(table)]
        beside = beside or sorted({name.partition(".")[0] for name in known})
        return f"{error.token.source}: there is no key {key}; {hint}Known: {', '.join(beside)}"
    if isinstance(error, cyclopts.ValidationError) and error.argument is not None:
        from pydantic import BaseModel, ValidationError

        from reasonrec.config import explain

        hints = (error.argument.hint, *get_args(error.argument.hint))  # X, or X | None
        models = [hint for hint in hints if isinstance(hint, type) and issubclass(hint, BaseModel)]
        if isinstance(error.__cause__, ValidationError) and models:
            return explain(error.__cause__, models[0], "options and --config")
    return str(error)


def _fail_missing_package(error: ImportError) -> None:
    missing: BaseException | None = error
    while missing is not None and not isinstance(missing, ModuleNotFoundError):
        missing = missing.__cause__
    name = (missing.name or "") if isinstance(missing, ModuleNotFoundError) else ""
    if not name or name.startswith("reasonrec"):
        raise error  # our own mistake: show where
    _fail(
        f"this needs the package {name}, which is not installed; "
        "`reasonrec doctor` says which extra brings it",
        code=1,
    )


def _fail(message: str, *, code: int) -> None:
    print(f"reasonrec: {message}", file=sys.stderr)
    sys.exit(code)
