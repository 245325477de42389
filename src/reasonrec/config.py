"""What every configuration class shares: frozen, typed, and closed to unknown keys."""

import reprlib
import tomllib
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from reasonrec.errors import ConfigError


class Config(BaseModel):
    """Base of all configuration records. Unknown keys are refused; instances are frozen."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def keep_defaults_beside(cls, given: Any) -> Any:
        """Put what is given of a nested configuration over the default that stands here.

        ``RecpoStage`` has a batch size of its own; naming another key of its optimiser must not
        bring back the batch size of ``OptimiserConfig``.
        """
        if not isinstance(given, dict):
            return given
        merged = dict(given)
        for name, value in given.items():
            field = cls.model_fields.get(name)
            if field is not None and isinstance(field.default, BaseModel):
                merged[name] = _over(field.default.model_dump(), value)
        return merged

    @classmethod
    def load(cls, path: Path) -> Self:
        """Return the configuration that a TOML file holds; keys it does not name keep defaults.

        Raises:
            ConfigError: The file is missing or no TOML, or a key or value is not accepted.
        """
        try:
            return cls.model_validate(read_toml(path))
        except ValidationError as error:
            raise ConfigError(explain(error, cls, str(path))) from None


def _over(default: dict[str, Any], given: Any) -> Any:
    """Return nested keys of ``given`` over those of ``default``; other values replace it."""
    if not isinstance(given, dict):
        return given
    return default | {
        name: _over(default[name], value) if isinstance(default.get(name), dict) else value
        for name, value in given.items()
    }


def read_toml(path: Path) -> dict[str, Any]:
    """Return the content of a TOML file, or a ``ConfigError`` that names the line at fault."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"the configuration file must exist; found none at {path}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(
            f"the configuration file must be TOML in UTF-8; {path}: {error}"
        ) from None


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200
_SHORT.maxlevel = 2
"""A whole table that was refused is shown by its first keys."""


def explain(error: ValidationError, config_class: type[BaseModel], origin: str) -> str:
    """Return one readable line for each problem that pydantic found."""
    lines = [f"{config_class.__name__} ({origin}) was not accepted:"]
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"]) or "(whole)"
        if problem["type"] == "extra_forbidden":
            known = ", ".join(sorted(_fields_at(config_class, problem["loc"][:-1])))
            lines.append(f"  {key}: there is no such key; known here: {known}")
        else:
            lines.append(f"  {key}: {problem['msg']}; got {_SHORT.repr(problem['input'])}")
    return "\n".join(lines)


def _fields_at(config_class: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    for part in path:
        field = config_class.model_fields.get(str(part))
        inner = field.annotation if field else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        config_class = inner
    return list(config_class.model_fields)
