# SPDX-License-Identifier: Apache-2.0
"""Every setting of a build: its key in `tc-export.toml`, its type, its default and its help.

A key is written with dots where its value stands in a table: `profile.max_frames`.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from tc_export.bundle.placement import Placement
from tc_export.config import (
    AfterClip,
    AttentionMask,
    CacheConfig,
    Config,
    KvFormat,
    PoolingConfig,
    PoolingMode,
    TemporalConfig,
    VisionFeatures,
)
from tc_export.errors import UsageError

_MOST_PROBLEMS = 10  # that a message lists


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("a NUL character is in it")
    return text


def _as_several(value: Any) -> Any:
    """One name stands for a list of one."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


Words = Annotated[str, Field(min_length=1), AfterValidator(_without_nul)]


def _as_number(value: Any) -> Any:
    """A number that is written as a word, as on the command line."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


Parts = Annotated[Literal["auto"] | Annotated[int, Field(ge=1)], BeforeValidator(_as_number)]
Names = Annotated[tuple[Words, ...], BeforeValidator(_as_several), Field(min_length=1)]


def _setting(help: str, default: Any = None, *, example: Any = None, **limits: Any) -> Any:
    examples = None if example is None else [example]
    return Field(default=default, description=help, examples=examples, **limits)


class Table(Config):
    """A table of the file: a word is no number, and a number is no word."""

    model_config = ConfigDict(strict=True)


class ProfileSettings(Table):
    """The largest input that the engines take."""

    max_frames: int = _setting("Most frames of a question.", 16, ge=1)
    max_length: int | None = _setting(
        "Most tokens of a conversation: rows of the key/value cache. By default the frames' "
        "tokens and 512 more, within the model's context.",
        example=4096,
        ge=2,
    )


class TemporalSettings(Table):
    """The method's own settings, where the checkpoint does not say."""

    gamma: float = _setting(
        "Weight of the temporal position, where the checkpoint states none.",
        TemporalConfig().gamma,
        ge=0,
    )
    mask: AttentionMask = _setting(
        "What a frame sees of others, where the checkpoint does not say: "
        f"{', '.join(AttentionMask)}. With gamma 0 and the mask causal the model is stock LLaVA, "
        "and is not pooled.",
        TemporalConfig().mask,
        strict=False,
    )
    after_clip: AfterClip = _setting(
        f"Temporal position after a clip, where the checkpoint does not say: "
        f"{', '.join(AfterClip)}.",
        TemporalConfig().after_clip,
        strict=False,
    )


class PoolingSettings(Table):
    """How a frame's patches become fewer tokens, where the checkpoint does not say."""

    stride: int = _setting(
        "Patches along each side of a square that becomes one token, where the checkpoint does "
        "not say; 1 keeps every patch.",
        PoolingConfig().stride,
        ge=1,
    )
    mode: PoolingMode = _setting(
        f"What becomes of pooled patches, where the checkpoint does not say: "
        f"{', '.join(PoolingMode)}.",
        PoolingConfig().mode,
        strict=False,
    )


class CacheSettings(Table):
    """How keys and values are kept, where the checkpoint does not say."""

    kv: KvFormat = _setting(
        f"Format of the key/value cache, where the checkpoint does not say: {', '.join(KvFormat)}. "
        "16 is the decoder's own; int8 takes half the room, with a scale for each row and head.",
        CacheConfig().kv,
        strict=False,
    )


class VisionFeatureSettings(Table):
    """What of the vision tower is used, where the checkpoint does not say."""

    features: VisionFeatures = _setting(
        "Tokens of the vision tower that are used, where the checkpoint does not say: default "
        "(the patches) or full (the class token too, which needs pooling stride 1).",
        VisionFeatures.DEFAULT,
        strict=False,
    )


class BuildSettings(Table):
    """How a build goes."""

    weights: Placement = _setting(
        f"How the checkpoint's files come into the bundle: {', '.join(Placement)}. auto is a "
        "reflink where the file system can, else a hard link, else a copy. ONNX's own tools refuse "
        "to read weights that are hard links.",
        Placement.AUTO,
        strict=False,
    )
    parity: bool = _setting(
        "Compare the graphs with PyTorch in float64, a layer in memory at a time.", True
    )
    memory: float | None = _setting(
        "GB of memory that comparing with PyTorch and building engines here may take. By default "
        "two thirds: of what is free to compare, of what there is to build.",
        example=8.0,
        ge=0,
    )
    parts: Parts = _setting(
        "Engines that the decoder is built as, one after the other, each in a process of its own: "
        "a number, or auto, which is as few as memory allows where they are built.",
        "auto",
    )
    jobs: int = _setting("Stages that may run at once; each takes memory of its own.", 1, ge=1)


class Settings(Table):
    """All of them. Only what is set has been said; the rest has its default."""

    checkpoint: Words | None = _setting(
        "Hugging Face folder of a LLaVA-family model. By default the one in the working folder or "
        "in its checkpoints folder, if there is just one.",
        example="checkpoints/llava-1.5-7b-hf",
    )
    output: Words | None = _setting(
        "Folder to write the bundle to; with several targets each has its own below it. By default "
        "engines/out/CHECKPOINT-TARGET.",
        example="engines/out/my-bundle",
    )
    target: Names = _setting(
        "Device, or the path of a target's file. Several, in a list or by several flags, "
        "make a bundle each, and what they have in common is made once.",
        ("cpu",),
    )
    precision: Words | None = _setting(
        "One format for both engines, or each: vision=fp16,decoder=bf16. By default the target's "
        "first.",
        example="fp16",
    )
    quantize: Words | None = _setting(
        "Recipe, or the path of a recipe's file, by which the checkpoint is quantised first, into "
        "a folder beside the bundle. By default its weights stay as they are.",
        example="int4-weights",
    )
    release: Words | None = _setting(
        "The device's software, by name or TensorRT version. By default the newest that the "
        "target lists.",
        example="10.3",
    )
    profile: ProfileSettings = ProfileSettings()
    temporal: TemporalSettings = TemporalSettings()
    pooling: PoolingSettings = PoolingSettings()
    vision: VisionFeatureSettings = VisionFeatureSettings()
    cache: CacheSettings = CacheSettings()
    build: BuildSettings = BuildSettings()


def tables() -> dict[str, type[Table]]:
    """The tables of the file by name, in its order."""
    kinds = {name: field.annotation for name, field in Settings.model_fields.items()}
    return {
        name: kind
        for name, kind in kinds.items()
        if isinstance(kind, type) and issubclass(kind, Table)
    }


def _fields() -> dict[str, FieldInfo]:
    """Every setting by its key."""
    inner = tables()
    found = {key: field for key, field in Settings.model_fields.items() if key not in inner}
    for table, kind in inner.items():
        found |= {f"{table}.{name}": field for name, field in kind.model_fields.items()}
    return found


FIELDS: Mapping[str, FieldInfo] = _fields()


def option_help(key: str) -> str:
    """What `--help` says of a setting's option."""
    field = FIELDS[key]
    if field.default is None or isinstance(field.default, bool):
        return str(field.description)
    default = ", ".join(field.default) if isinstance(field.default, tuple) else field.default
    return f"{field.description} By default {default}."


def stated(settings: Settings) -> dict[str, Any]:
    """The settings that were said, by their keys and in their order."""
    said = {}
    for key in FIELDS:
        table, _, name = key.rpartition(".")
        values = getattr(settings, table) if table else settings
        if name in values.model_fields_set:
            said[key] = getattr(values, name)
    return said


def from_keys(values: Mapping[str, Any], *, where: str) -> Settings:
    """Settings from values by their keys.

    Raises:
        UsageError: a value is wrong.
    """
    nested: dict[str, Any] = {}
    for key, value in values.items():
        table, _, name = key.rpartition(".")
        (nested.setdefault(table, {}) if table else nested)[name] = value
    return read_settings(nested, where=where)


def read_settings(values: Mapping[str, Any], *, where: str) -> Settings:
    """Settings from the content of a file.

    Raises:
        UsageError: naming every unknown key, with the nearest that there is, and every wrong value.
    """
    try:
        return Settings.model_validate(dict(values))
    except ValidationError as error:
        lines = list(_problems(error))
        more = len(lines) - _MOST_PROBLEMS
        lines = lines[:_MOST_PROBLEMS] + ([f"and {more} more"] if more > 0 else [])
        raise UsageError(
            f"{where} has wrong settings:\n  " + "\n  ".join(lines),
            hint=_known_keys()
            if any(problem["type"] == "extra_forbidden" for problem in error.errors())
            else "tc-export build --help says what each is",
        ) from error


def _problems(error: ValidationError) -> Iterator[str]:
    for problem in error.errors(include_url=False):
        key = ".".join(map(str, problem["loc"]))
        match problem["type"]:
            case "extra_forbidden":
                yield f"{key!r} is unknown" + _nearest(key)
            case "model_type":
                yield f"{key} is a table, [{key}], not {reprlib.repr(problem['input'])}"
            case _:
                yield f"{key}: {problem['msg']}, not {reprlib.repr(problem['input'])}"


def _nearest(key: str) -> str:
    """The known key or table that is most like `key`, also by its name without the table."""
    names = {key.rpartition(".")[2]: key for key in FIELDS}
    names |= {key: key for key in FIELDS} | {table: f"[{table}]" for table in tables()}
    name = key.rpartition(".")[2]
    near = [name] if name in names else []  # the right name in the wrong table
    for wrong in (key, name):
        near += difflib.get_close_matches(wrong, names, n=1)
    return f"; did you mean {names[near[0]]}?" if near else ""


def _known_keys() -> str:
    top = [key for key in FIELDS if "." not in key]
    lines = [f"known keys: {', '.join(top)}"]
    lines += [f"in [{table}]: {', '.join(kind.model_fields)}" for table, kind in tables().items()]
    return "\n  ".join(lines)
