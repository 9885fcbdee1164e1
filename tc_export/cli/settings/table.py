# SPDX-License-Identifier: Apache-2.0
"""The settings of a build as a table: what each one is, and who said so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from tc_export.checkpoint.hf_config import CheckpointConfig, Origin
from tc_export.cli.settings.choose import DEFAULT, ChosenSettings
from tc_export.config import ModelSettings

_WHY = {
    "precision": "the target's first",
    "release": "the target's newest",
    "profile.max_length": "the frames' tokens and room for text",
    "temporal.gamma": "the method's",
    "temporal.mask": "the method's",
    "temporal.after_clip": "the method's",
    "pooling.stride": "2x2 as the method pools",
    "pooling.mode": "as the method pools",
    "pooling.before_projector": "as the method pools",
    "vision.features": "as in LLaVA",
    "cache.kv": "the decoder's own format",
    "build.memory": "two thirds of what is free",
}
"""Of defaults that deserve a reason."""


def settings_table(
    chosen: ChosenSettings, in_effect: Mapping[str, Any], config: CheckpointConfig
) -> Table:
    """Every setting of the build of one bundle; what nobody has chosen is marked in colour.

    `in_effect` are settings whose value follows from the target and the checkpoint, by their keys.
    """
    table = Table(
        title=f"{chosen.checkpoint.resolve().name} ({config.family})", caption=config.image_note
    )
    for heading in ("setting", "value", "from"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "setting")
    for key, value in in_effect.items():
        _add(table, key, value, chosen.source(key))
    for key, value, source in _of_the_model(chosen, config):
        _add(table, key, value, source)
    table.add_row("tokens per frame", str(config.model.tokens_per_frame), "computed")
    for name in type(chosen.values.build).model_fields:
        key = f"build.{name}"
        _add(table, key, getattr(chosen.values.build, name), chosen.source(key))
    return table


def _of_the_model(
    chosen: ChosenSettings, config: CheckpointConfig
) -> Iterator[tuple[str, Any, str]]:
    for part in ModelSettings.model_fields:
        for name, value in getattr(config.model.settings, part).model_dump(mode="json").items():
            key = f"{part}.{name}"
            origin = config.origins[key]
            yield key, value, chosen.source(key) if origin is Origin.USER else origin


def _add(table: Table, key: str, value: Any, source: str) -> None:
    shown = "-" if value is None else str(value)
    match source:
        case Origin.STOCK:
            origin = Text("default (stock LLaVA does not pool)", style="yellow")
        case "default":
            why = f" ({_WHY[key]})" if key in _WHY else ""
            origin = Text(DEFAULT + why, style="yellow")
        case _:
            origin = Text(source)
    table.add_row(key, shown, origin)
