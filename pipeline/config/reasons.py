"""Why a value in force is not the one in the settings; each setting has one reason at most."""

from __future__ import annotations

from pipeline.config.resolved import Reason


class Reasons:
    """Collects why; the last reason for a setting is the one that holds."""

    def __init__(self) -> None:
        self._by_setting: dict[str, Reason] = {}

    def say(self, setting: str, value: bool | int | str, why: str) -> None:
        self._by_setting[setting] = Reason(setting, value, why)

    def has(self, setting: str) -> bool:
        return setting in self._by_setting

    def all(self) -> tuple[Reason, ...]:
        return tuple(self._by_setting.values())
