"""The pages and files around the code keep their word: commands, links, homes, pins, targets."""

import importlib
import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest

from reasonrec.baselines.floor import BASELINES, CONFIGS
from reasonrec.baselines.peers import PEERS
from reasonrec.cli import VERBS, build_app, keys_of
from reasonrec.methods.baselines.train import METHOD_OF
from reasonrec.methods.r2ec_config import R2ecConfig

ROOT = Path(__file__).parents[3]
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *sorted(
    str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("**/*.md")
)]  # fmt: skip


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def commands(page: str, program: str) -> list[list[str]]:
    """Return the arguments of every line of the page's ``sh`` blocks that calls ``program``."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text_of(page), flags=re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [found[1:] for found in words if found[:1] == [program]]


def bind(arguments: list[str]) -> None:
    """Parse a command line as far as the call of its verb, configuration file included."""
    app = build_app(arguments)
    if "--config" in arguments:
        place = arguments.index("--config")
        app.config = keys_of(ROOT / arguments[place + 1])
        arguments = arguments[:place] + arguments[place + 2 :]
    app.parse_args(arguments, exit_on_error=False, print_error=False)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_its_module_and_explains_itself(verb):
    name = verb.replace("-", "_")
    module = importlib.import_module(f"reasonrec.cli.{name}")
    assert "Examples:\n" in (getattr(module, name).__doc__ or "")


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_is_accepted(page):
    for arguments in commands(page, "reasonrec"):
        bind(arguments)


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_of_a_page_exists(page):
    # read, not run: even `make --dry-run` runs the lines that call make again
    targets = re.findall(r"^([a-z-]+):.*## ", text_of("Makefile"), re.MULTILINE)
    for arguments in commands(page, "make"):
        assert arguments[0] in targets, f"make {shlex.join(arguments)}"


@pytest.mark.parametrize("page", PAGES)
def test_every_link_to_a_file_leads_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", text_of(page))
    local = [link for link in links if "://" not in link]
    missing = [link for link in local if not ((ROOT / page).parent / link).exists()]
    assert missing == []


def test_the_imports_of_the_readme_work():
    snippets = re.findall(r"^```python\n(.*?)^```", text_of("README.md"), re.MULTILINE | re.DOTALL)
    assert snippets
    for snippet in snippets:
        compile(snippet, "README.md", "exec")
        for line in snippet.splitlines():
            if line.startswith(("from ", "import ")):
                exec(line, {})


def test_the_readme_has_the_place_that_results_are_written_to():
    text = text_of("README.md")
    assert 0 < text.index("<!-- results:start -->") < text.index("<!-- results:end -->")


def test_every_home_and_test_in_the_paper_index_exists():
    text = text_of("docs/paper_index.md")
    named = re.findall(r"`([\w/]+\.py): (\w+)`", text)
    assert len(named) > 40
    for path, name in named:
        folder = "tests/unit" if Path(path).name.startswith("test_") else "src/reasonrec"
        source = (ROOT / folder / path).read_text(encoding="utf-8")
        assert re.search(rf"^ *(def|class) {name}\b", source, re.MULTILINE), f"{path}: {name}"
    tests = re.findall(r"`(\w+/test_\w+\.py)`", text)
    assert len(tests) > 20
    assert [path for path in tests if not (ROOT / "tests/unit" / path).exists()] == []


def test_each_of_the_fifteen_requirements_names_a_function_and_a_test():
    table = text_of("docs/paper_index.md").partition("### Requirements")[2].partition("\n### ")[0]
    rows = [line.split(" | ") for line in table.splitlines() if re.match(r"\| \d", line)]
    assert [int(row[0].removeprefix("| ")) for row in rows] == list(range(1, 16))
    for number, _, home, test, _ in rows:
        assert re.search(r"`[\w/]+\.py: \w+`", home), number
        assert re.search(r"`\w+/test_\w+\.py: test_\w+`", test), number


def test_every_entry_of_the_paper_index_that_the_code_cites_is_there():
    entries = set(re.findall(r"^\| \*([^*]+)\*", text_of("docs/paper_index.md"), re.MULTILINE))
    for path in (ROOT / "src/reasonrec").glob("**/*.py"):
        source = path.read_text(encoding="utf-8")
        cited = re.findall(r"paper_index\.md``, entry\s+\*([^*]+)\*", source)
        assert set(cited) <= entries, f"{path}: {cited}"


def test_every_part_of_r2rec_says_where_it_comes_from():
    part = text_of("docs/paper_index.md").partition("\n## R2Rec\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("|")]
    heading, _, *parts = rows
    source = heading.index("source")
    assert len(parts) > 25
    words = {"paper", "second-hand", "inferred", "ours"}
    assert {row[0]: row[source] for row in parts if row[source] not in words} == {}
    # where nothing is known, nobody but us can be the source
    unknown = [row for row in parts if row[1] in ("—", "unknown")]
    assert {row[source] for row in unknown} == {"ours"}


def test_nothing_that_the_paper_index_calls_planned_is_built():
    planned = re.findall(r"\*planned\* `([\w/]+\.py)`", text_of("docs/paper_index.md"))
    assert [path for path in planned if (ROOT / "src/reasonrec" / path).exists()] == []


def test_the_defaults_in_the_paper_index_are_those_of_the_code():
    settings = text_of("docs/paper_index.md").partition("### Settings")[2].partition("\n## ")[0]
    config = R2ecConfig()
    recpo, optimiser = config.recpo.recpo, config.recpo.optimiser
    owners = {
        **recpo.model_dump(), **optimiser.model_dump(),
        "num_prompts": config.recpo.num_prompts, "max_history": config.head.max_history,
        "text_words": config.head.text_words,
    }  # fmt: skip
    named = re.findall(r"`(\w+)` ([\d.e-]*\d)", settings)
    assert {"group_size", "beta", "max_tokens", "learning_rate", "num_prompts"} <= {*dict(named)}
    for key, value in named:
        assert owners[key] == float(value), key


def tables_of(page: str) -> dict[tuple[str, ...], dict[str, list[str]]]:
    """Return the tables of a page by heading; of each, the other cells of what its rows name."""
    tables: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for block in re.findall(r"^\|.*(?:\n\|.*)*", text_of(page), re.MULTILINE):
        heading, _, *rows = ([*map(str.strip, r.strip("|").split("|"))] for r in block.split("\n"))
        named = tables.setdefault(tuple(heading), {})
        for first, *others in rows:
            named |= dict.fromkeys(re.findall(r"`([^`]+)`", first), others)
    return tables


def test_every_baseline_has_an_entry_with_its_library_and_its_settings():
    tables = tables_of("docs/baselines.md")
    libraries = {}
    for (first, *others), named in tables.items():
        if first == "word" and "library" in others:
            libraries |= {name: cells[others.index("library")] for name, cells in named.items()}
    searched = tables["word", "settings and the values searched"]
    assert {*libraries} == {*CONFIGS} == {*BASELINES, *PEERS}
    assert all(libraries.values())
    assert {name for name in CONFIGS if not searched.get(name, [""])[0]} == set()
    ours = tables["word", "trained on", "ranks by", "settings (defaults)"]
    assert {*ours} == {*METHOD_OF.values()}
    assert all(all(cells) for cells in ours.values())


def test_every_baseline_is_among_the_words_of_methods():
    words = tables_of("docs/conventions.md")["word", "what it is"]
    assert {*CONFIGS, *METHOD_OF.values()} - {*words} == set()


def test_every_configuration_is_accepted_by_the_command_on_its_first_line():
    # the first line of a file in configs/ is the command that uses it, as a comment
    for path in sorted((ROOT / "configs").glob("**/*.toml")):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        words = shlex.split(first.removeprefix("#"))
        assert words[:1] == ["reasonrec"], f"{path}: {first}"
        assert str(path.relative_to(ROOT)) in words, f"{path}: {first}"
        bind(words[1:])


def test_every_dependency_is_pinned_within_its_range():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    tested = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    lines = [line for line in text_of("constraints.txt").splitlines() if not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    assert list(pins) == sorted(pins)
    for wanted in map(Requirement, tested):
        assert wanted.specifier.contains(pins[canonicalize_name(wanted.name)]), wanted


def test_the_check_of_every_change_is_the_command_that_the_readme_names():
    assert ["test"] in commands("README.md", "make")
    assert text_of(".ci/run").rstrip().endswith("make test")
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_make_refuses_a_python_that_is_too_old(tmp_path):
    old = tmp_path / "python3.9"
    old.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    old.chmod(0o755)
    asked = ["make", "-C", str(ROOT), "demo", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}"]
    ended = subprocess.run(asked, capture_output=True, text=True)
    assert ended.returncode != 0
    assert "needs Python 3.11 or newer" in ended.stdout + ended.stderr
    assert not (tmp_path / "venv").exists()


def test_make_demo_hands_its_words_to_the_command():
    asked = ["make", "-C", str(ROOT), "--dry-run", "demo", "DATA=my shop"]
    asked += ["ARGS=--prepare.split given", "SEED=3", "OUT=runs/there"]
    said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    line = next(line for line in said.splitlines() if "/reasonrec demo" in line)
    assert shlex.split(line)[1:] == [
        "demo", "my shop", "--out", "runs/there", "--seed", "3", "--prepare.split", "given",
    ]  # fmt: skip


def test_the_licence_is_the_apache_licence_without_a_foreign_name():
    licence = text_of("LICENSE")
    assert "Version 2.0, January 2004" in licence
    assert "Copyright [yyyy] [name of copyright owner]" in licence
