"""Configurations and TOML files: what is accepted, and how a refusal reads."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import PositiveInt, ValidationError

from reasonrec.config import Config, explain, read_toml
from reasonrec.errors import ConfigError


class Optimiser(Config):
    learning_rate: float = 0.1
    """Step size."""


class Training(Config):
    num_steps: PositiveInt = 3
    """Updates."""
    optimiser: Optimiser = Optimiser()


def write(folder, text):
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_keys_that_a_file_does_not_name_keep_their_defaults(tmp_path):
    config = Training.load(write(tmp_path, "[optimiser]\nlearning_rate = 0.5"))
    assert config == Training(num_steps=3, optimiser=Optimiser(learning_rate=0.5))


def test_an_unknown_key_is_refused_and_the_known_ones_are_named(tmp_path):
    path = write(tmp_path, "nun_steps = 4")
    with pytest.raises(ConfigError, match=r"nun_steps: .*known here: num_steps, optimiser"):
        Training.load(path)


def test_an_unknown_nested_key_is_refused_with_the_keys_of_its_table(tmp_path):
    path = write(tmp_path, "[optimiser]\nlr = 4")
    with pytest.raises(ConfigError, match=r"optimiser\.lr: .*known here: learning_rate"):
        Training.load(path)


def test_every_problem_of_a_file_is_named_at_once(tmp_path):
    path = write(tmp_path, 'num_steps = 0\n[optimiser]\nlearning_rate = "fast"')
    with pytest.raises(ConfigError) as refusal:
        Training.load(path)
    first, second, third = str(refusal.value).splitlines()
    assert str(path) in first
    assert "num_steps" in second
    assert second.endswith("got 0")
    assert "optimiser.learning_rate" in third
    assert third.endswith("got 'fast'")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"must exist; found none at .*absent\.toml"):
        read_toml(tmp_path / "absent.toml")


def test_a_file_that_is_no_toml_is_refused_with_the_place(tmp_path):
    with pytest.raises(ConfigError, match=r"must be TOML in UTF-8; .*line 2"):
        read_toml(write(tmp_path, "a = 1\nb = = 2"))


def test_a_file_in_another_encoding_is_refused(tmp_path):
    path = tmp_path / "run.toml"
    path.write_bytes("a = 'é'".encode("latin-1"))
    with pytest.raises(ConfigError, match="UTF-8"):
        read_toml(path)


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=str(tmp_path)):
        read_toml(tmp_path)


@given(st.binary(max_size=200))
def test_no_content_of_a_file_causes_anything_but_a_stated_failure(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("toml") / "run.toml"
    path.write_bytes(content)
    with suppress(ConfigError):
        Training.load(path)


def test_a_configuration_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        Training().num_steps = 4  # pyright: ignore[reportAttributeAccessIssue]


def test_the_line_below_a_field_is_its_description():
    assert Training.model_fields["num_steps"].description == "Updates."


def test_a_problem_with_the_whole_record_is_explained_too():
    with pytest.raises(ValidationError) as refusal:
        Training.model_validate("nothing")
    assert "(whole): " in explain(refusal.value, Training, "here")


def test_naming_one_key_of_a_nested_configuration_keeps_the_defaults_that_stand_beside_it(tmp_path):
    from reasonrec.methods.r2ec_config import R2ecConfig

    path = tmp_path / "one.toml"
    path.write_text("[sft.optimiser]\nlearning_rate = 3e-5\n[recpo.recpo]\ngroup_size = 8\n")
    changed, plain = R2ecConfig.load(path), R2ecConfig()
    expected = plain.model_dump()
    expected["sft"]["optimiser"]["learning_rate"] = 3e-5
    expected["recpo"]["recpo"]["group_size"] = 8
    assert changed.model_dump() == expected
    # the stage's own batch size, not that of any optimiser: what this test is there for
    assert plain.sft.optimiser.batch_size != type(plain.sft.optimiser)().batch_size


def test_so_does_an_option_of_the_command_line():
    from reasonrec.cli import build_app
    from reasonrec.methods.r2ec_config import R2ecConfig

    options = ["--sft.optimiser.learning-rate", "3e-5", "--recpo.recpo.group-size", "8"]
    line = ["train", "sft", "--data", "d", "--out", "o", "--start", "s", *options]
    bound = build_app(line).parse_args(line, exit_on_error=False, print_error=False)[1]
    expected = R2ecConfig().model_dump()
    expected["sft"]["optimiser"]["learning_rate"] = 3e-5
    expected["recpo"]["recpo"]["group_size"] = 8
    assert bound.arguments["settings"].model_dump() == expected
