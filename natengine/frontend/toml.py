"""Settings from TOML text.  Keys are the fields of `Settings` and, in [timeouts], of `Timeouts`; times in seconds.

    filtering = "address-dependent"
    port_hold_down = 30
    [timeouts]
    udp = 120
"""

from __future__ import annotations

import difflib
import enum
import tomllib
from dataclasses import fields, replace
from typing import Any, TypeVar

from natengine.errors import ConfigError
from natengine.settings import SECOND_NS, Settings, Timeouts

S = TypeVar("S", Settings, Timeouts)

_TIME = "_ns"                       # fields of this ending are written in seconds, without it
MAX_SECONDS = 10 * 365 * 86_400     # more is a mistake
MAX_NUMBER = 1 << 28
MAX_MARK = (1 << 32) - 1


def read_settings(text: str, source: str) -> Settings:
    """Return what the text says, and the defaults for the rest.

    Raises:
        ConfigError: Not TOML, an unknown key, or a value that its key cannot have; begins with `source`.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: {error}") from None
    timeouts = document.pop("timeouts", {})
    if not isinstance(timeouts, dict):
        raise ConfigError(f"{source}: timeouts is a table: [timeouts], and its keys below")
    settings = _fill(Settings(), document, source, "")
    return replace(settings, timeouts=_fill(Timeouts(), timeouts, source, "timeouts."))


def _fill(defaults: S, table: dict[str, Any], source: str, prefix: str) -> S:
    names = {each.name.removesuffix(_TIME): each.name for each in fields(defaults) if each.name != "timeouts"}
    changes: dict[str, Any] = {}
    for key, value in table.items():
        if key not in names:
            near = difflib.get_close_matches(key, names, 1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"there are {', '.join(names)}"
            raise ConfigError(f"{source}: unknown key {prefix}{key}; {hint}")
        name = names[key]
        changes[name] = _value(getattr(defaults, name), value, f"{source}: {prefix}{key}", is_time=name != key)
    return replace(defaults, **changes)


def _value(default: Any, value: Any, where: str, *, is_time: bool) -> Any:
    """Return a value of the default's kind."""
    if isinstance(default, enum.Enum):
        words = [each.value for each in type(default)]
        if value not in words:
            raise ConfigError(f"{where} is one of {', '.join(words)}, not {value!r}")
        return type(default)(value)
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise ConfigError(f"{where} is true or false, not {value!r}")
        return value
    if isinstance(default, tuple):
        if not isinstance(value, list) or not all(isinstance(word, str) and word for word in value):
            raise ConfigError(f"{where} is a list of names, such as [\"bond0.2\", \"ppp+\"], not {value!r}")
        return tuple(value)
    limit = MAX_SECONDS if is_time else MAX_MARK if where.endswith("_mark") else MAX_NUMBER
    if isinstance(value, bool) or not isinstance(value, int | float if is_time else int) or not 0 <= value <= limit:
        what = f"seconds, 0 to {limit}" if is_time else f"a whole number from 0 to {limit}"
        raise ConfigError(f"{where} is {what}, not {value!r}")
    return int(value * SECOND_NS) if is_time else value
