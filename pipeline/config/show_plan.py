"""What will run and why, as a table for people or JSON for programs: ``dumpstream plan``."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from pipeline.config.layers import BUILT_IN, LoadedSettings
from pipeline.config.resolved import Resolved
from pipeline.config.schema import is_size, setting_keys, value_of
from pipeline.config.settings import NETWORK_SECTIONS
from pipeline.memory.sizes import show_size
from pipeline.obs.plain import json_text


class PlanRow(Struct, frozen=True):
    """One setting: what was asked for, what it became, who asked, and why it became that."""

    key: str
    asked: object
    value: object
    origin: str
    why: str


def plan_rows(resolved: Resolved, loaded: LoadedSettings) -> Iterator[PlanRow]:
    """Every setting, in the order of the sections."""
    reasons = {reason.setting: reason.why for reason in resolved.reasons}
    for key in setting_keys():
        asked = value_of(loaded.settings, key)
        value = resolved.memory_budget if key == "memory.budget" else value_of(resolved, key)
        yield PlanRow(key, asked, value, loaded.origin(key), reasons.get(key, ""))


def settings_in_force(resolved: Resolved, loaded: LoadedSettings) -> dict[str, tuple[object, str]]:
    """Value in force and origin of what was asked for, by dotted key; for ``--stats``."""
    return {row.key: (row.value, row.origin) for row in plan_rows(resolved, loaded)}


def plan_json(resolved: Resolved, loaded: LoadedSettings) -> str:
    """One JSON object: ``settings`` by dotted key, and ``memory`` with its ``consumers``."""
    compressor = resolved.compressor
    plan = {
        "settings": {row.key: _row_object(row) for row in plan_rows(resolved, loaded)},
        "slots": {"per_worker": compressor.slots_per_worker, "bytes": compressor.slot_bytes},
        "memory": {
            "budget_bytes": resolved.memory_budget,
            "planned_bytes": resolved.counted_bytes,
            "consumers": [
                {"consumer": each.consumer, "bytes": each.n_bytes, "in_budget": each.counted}
                for each in resolved.shares
            ],
        },
    }
    return json_text(plan).decode()


def plan_text(resolved: Resolved, loaded: LoadedSettings) -> str:
    """Two tables: settings with value, origin and reason; memory by consumer."""
    rows = [
        (row.key, _shown(row.key, row.value), _shown_origin(row), row.why)
        for row in plan_rows(resolved, loaded)
        if _matters(row, loaded)
    ]
    memory = [
        (each.consumer, show_size(each.n_bytes), "" if each.counted else "outside the budget")
        for each in resolved.shares
    ]
    budget = f"of a budget of {show_size(resolved.memory_budget)}"
    memory.append(("in all", show_size(resolved.counted_bytes), budget))
    settings_table = _table([("setting", "value", "from", "why"), *rows])
    return f"{settings_table}\n\n{_table([('memory of', 'at most', ''), *memory])}"


def _matters(row: PlanRow, loaded: LoadedSettings) -> bool:
    """Settings of network targets are shown where somebody set them, or the budget changed them."""
    section = row.key.split(".")[0]
    is_local = section not in NETWORK_SECTIONS
    return is_local or bool(row.why) or loaded.origin(row.key) != BUILT_IN


def _row_object(row: PlanRow) -> dict[str, object]:
    shown = {"value": row.value, "asked": row.asked, "origin": row.origin}
    return {**shown, "why": row.why} if row.why else shown


def _shown_origin(row: PlanRow) -> str:
    return f"auto, {row.origin}" if row.asked == "auto" else row.origin


def _shown(key: str, value: object) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case None:
            return "-"
        case int() if is_size(key):
            return show_size(value)
        case _:
            return str(value)


def _table(rows: list[tuple[str, ...]]) -> str:
    """Columns as wide as their widest cell, two spaces between."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)
