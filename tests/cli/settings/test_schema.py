# SPDX-License-Identifier: Apache-2.0
"""Settings by their keys: types, limits, unknown keys with the nearest known one."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from tc_export.cli.build import build
from tc_export.cli.settings.schema import (
    FIELDS,
    Settings,
    from_keys,
    option_help,
    read_settings,
    stated,
    tables,
)
from tc_export.config import AttentionMask, ModelSettings, PoolingConfig, TemporalConfig
from tc_export.errors import UsageError


def refused(values: dict[str, Any]) -> tuple[str, str]:
    with pytest.raises(UsageError) as caught:
        read_settings(values, where="this.toml")
    return str(caught.value), str(caught.value.hint)


def test_what_is_stated_is_told_from_what_is_default() -> None:
    values = {"target": "orin", "profile": {"max_frames": 16}, "temporal": {"gamma": 1}}
    settings = read_settings(values, where="this.toml")
    assert stated(settings) == {
        "target": ("orin",),
        "profile.max_frames": 16,
        "temporal.gamma": 1.0,
    }
    assert settings == Settings(target=("orin",))
    assert list(stated(settings)) == ["target", "profile.max_frames", "temporal.gamma"]
    assert stated(Settings()) == {}


def test_settings_by_their_keys_are_those_of_the_tables() -> None:
    values = {"target": ("cpu", "orin"), "build.jobs": 2, "temporal.mask": AttentionMask.CAUSAL}
    settings = from_keys(values, where="the command line")
    assert settings.target == ("cpu", "orin")
    assert settings.build.jobs == 2
    assert stated(settings) == values


def test_every_flag_of_build_has_a_key() -> None:
    """A flag that has no key could not be stated; a key that has no flag could not be overruled."""
    flags = set(inspect.signature(build).parameters) - {"config"}
    tables_in_names = ("pooling", "vision")
    keys = {
        f"{table}_{name}" if table in tables_in_names else name
        for table, _, name in (key.rpartition(".") for key in FIELDS)
    }
    assert keys == flags


def test_the_defaults_are_the_models() -> None:
    settings = Settings()
    assert settings.temporal.model_dump() == TemporalConfig().model_dump()
    pooling = PoolingConfig().model_dump(exclude={"before_projector"})
    assert settings.pooling.model_dump() == pooling
    assert settings.vision.model_dump() == ModelSettings().vision.model_dump()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"chekpoint": "x"}, "'chekpoint' is unknown; did you mean checkpoint?"),
        ({"max_frames": 8}, "'max_frames' is unknown; did you mean profile.max_frames?"),
        ({"profile": {"frames": 8}}, "'profile.frames' is unknown; did you mean profile.max_fram"),
        ({"profil": {"max_frames": 8}}, "'profil' is unknown; did you mean [profile]?"),
        ({"temporal": {"stride": 1}}, "'temporal.stride' is unknown; did you mean pooling.stride?"),
        ({"zzz": 1}, "'zzz' is unknown"),
        ({"temporal": {"gamma": {"x": 1}}}, "temporal.gamma: "),
        ({"temporal": 5}, "temporal is a table, [temporal], not 5"),
        ({"checkpoint": {"x": 1}}, "checkpoint: "),
    ],
)
def test_unknown_keys_are_named_with_the_nearest(values: dict[str, Any], words: str) -> None:
    message, hint = refused(values)
    assert message.startswith("this.toml has wrong settings:\n")
    assert words in message
    if "unknown" not in message:
        assert hint == "tc-export build --help says what each is"
        return
    assert "checkpoint, output, target" in hint
    for table, kind in tables().items():
        assert f"in [{table}]: {', '.join(kind.model_fields)}" in hint


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("checkpoint", 5),
        ("checkpoint", ""),
        ("checkpoint", "a\0b"),
        ("output", True),
        ("target", 5),
        ("target", []),
        ("target", ["cpu", 5]),
        ("target", [""]),
        ("precision", ["fp16"]),
        ("release", 10.3),
        ("profile.max_frames", "8"),
        ("profile.max_frames", 0),
        ("profile.max_frames", 8.0),
        ("profile.max_frames", True),
        ("profile.max_length", 1),
        ("temporal.gamma", "1"),
        ("temporal.gamma", -0.5),
        ("temporal.gamma", float("nan")),
        ("temporal.gamma", float("inf")),
        ("temporal.mask", "round"),
        ("temporal.mask", 1),
        ("temporal.after_clip", ["share"]),
        ("pooling.stride", 0),
        ("pooling.mode", "sum"),
        ("vision.features", "cls"),
        ("build.parity", "yes"),
        ("build.parity", 1),
        ("build.memory", -1),
        ("build.jobs", 0),
    ],
)
def test_wrong_values_are_named(key: str, value: Any) -> None:
    with pytest.raises(UsageError) as caught:
        from_keys({key: value}, where="this.toml")
    _, *lines = str(caught.value).splitlines()
    assert lines
    assert all(line.startswith(f"  {key}") for line in lines)


def test_all_that_is_wrong_is_named_at_once_up_to_a_limit() -> None:
    message, _ = refused({"checkpoint": 5, "build": {"jobs": "x"}, "colour": "red"})
    assert len(message.splitlines()) == 4
    message, _ = refused({f"key{number}": 1 for number in range(1000)})
    assert len(message) < 1000
    assert message.endswith("and 990 more")


@pytest.mark.parametrize("key", FIELDS)
def test_the_help_says_the_default(key: str) -> None:
    text, default = option_help(key), FIELDS[key].default
    assert text.endswith(".")
    if isinstance(default, int | float | str) and not isinstance(default, bool):
        assert text.endswith(f"By default {default}.")
