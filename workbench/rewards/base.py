"""What the rewards that are made with settings share: a name for their curves, and checks of the settings."""

from __future__ import annotations

import math
from typing import Any

from workbench.errors import SettingError
from workbench.rewards.signature import short


class Named:
    """Gives the objects of a class the `__name__` that metrics (`rewards/<name>/mean`) and TRL's trainers ask a
    reward function for: the name of the class."""

    @property
    def __name__(self) -> str:
        return type(self).__name__


def store(made: Any, **settings: Any) -> None:
    """Put checked settings into a frozen dataclass while it is made."""
    for name, value in settings.items():
        object.__setattr__(made, name, value)


def whole(reward: str, name: str, value: Any, least: int) -> int:
    """`value` as a whole number from `least`; SettingError otherwise."""
    number = _plain(value)
    if number is None or not float(number).is_integer() or number < least:
        raise SettingError(f"{reward}: {name}={short(value, 60)} must be a whole number from {least}.")
    return int(number)


def finite(reward: str, name: str, value: Any) -> float:
    """`value` as a finite number; SettingError otherwise."""
    number = _plain(value)
    if number is None or not math.isfinite(number):
        raise SettingError(f"{reward}: {name}={short(value, 60)} must be a finite number.")
    return float(number)


def above_zero(reward: str, name: str, value: Any) -> float:
    """`value` as a finite number above 0; SettingError otherwise."""
    number = finite(reward, name, value)
    if number <= 0:
        raise SettingError(f"{reward}: {name}={short(value, 60)} must be above 0.")
    return number


def _plain(value: Any) -> int | float | None:
    value = value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value
    return None if isinstance(value, bool) or not isinstance(value, (int, float)) else value
