# SPDX-License-Identifier: Apache-2.0
"""Weight names of each LLaVA family, as tables: name on disk, our name, None for dropped.

The name of a part depends on the family, on the library version that saved it, and on whether it
was saved from a whole model or from its parts. `SPELLINGS` lists what has been written by
transformers 4.36 to 5.23; the tables use the part's name alone. Our names are the keys of
`TcLlava.state_dict()`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Family(StrEnum):
    """The supported families, by Hugging Face's `model_type`."""

    LLAVA = "llava"
    LLAVA_NEXT = "llava_next"
    LLAVA_NEXT_VIDEO = "llava_next_video"


# The first spelling of each part is what save_pretrained writes today.
SPELLINGS = {
    "VISION": (
        "vision_tower",
        "vision_tower.vision_model",
        "model.vision_tower",
        "model.vision_tower.vision_model",
    ),
    "PROJECTOR": ("multi_modal_projector", "model.multi_modal_projector"),
    "LANGUAGE": (
        "language_model.model",
        "model.language_model",
        "model.language_model.model",
        "language_model",
    ),
    "HEAD": ("language_model.lm_head", "lm_head", "model.language_model.lm_head", "model.lm_head"),
    "NEWLINE": ("image_newline", "model.image_newline"),
}

# `*` stands for the rest of the name; the first row that fits counts.
COMMON: tuple[tuple[str, str | None], ...] = (
    ("VISION.embeddings.position_ids", None),  # a buffer that counts from 0
    ("VISION.embeddings.*", "vision.vision_tower.embeddings.*"),
    ("VISION.pre_layrnorm.*", "vision.vision_tower.pre_layernorm.*"),
    ("VISION.encoder.layers.*", "vision.vision_tower.layers.*"),
    ("VISION.post_layernorm.*", None),  # follows the last layer; features are taken before it
    ("PROJECTOR.*", "vision.multi_modal_projector.*"),
    ("LANGUAGE.embed_tokens.*", "embed_tokens.*"),
    ("LANGUAGE.layers.*.rotary_emb.inv_freq", None),  # computed from the config
    ("LANGUAGE.rotary_emb.inv_freq", None),
    ("LANGUAGE.layers.*", "decoder.layers.*"),
    ("LANGUAGE.norm.*", "decoder.norm.*"),
    ("HEAD.*", "decoder.lm_head.*"),
)

# Ends a row of patches in the families that cut an image into tiles; video frames are not cut.
NEWLINE: tuple[tuple[str, str | None], ...] = (("NEWLINE", None),)

TABLES: dict[Family, tuple[tuple[str, str | None], ...]] = {
    Family.LLAVA: COMMON,
    Family.LLAVA_NEXT: COMMON + NEWLINE,
    Family.LLAVA_NEXT_VIDEO: COMMON + NEWLINE,
}


@dataclass(frozen=True)
class Renaming:
    """The names on disk, sorted by what becomes of them."""

    sources: dict[str, list[str]]
    """Our name -> names on disk that claim it; more than one is an error."""
    dropped: list[str]
    unknown: list[str]


def rename(on_disk: Iterable[str], family: Family, vision_layers_used: int) -> Renaming:
    """Translate names on disk by the family's table.

    Layers of the vision tower from `vision_layers_used` on follow the feature layer: dropped.
    """
    rows = [(_compile(source), ours) for source, ours in TABLES[family]]
    renaming = Renaming(sources={}, dropped=[], unknown=[])
    for name in on_disk:
        fits = ((row.fullmatch(name), ours) for row, ours in rows)
        match, ours = next(((match, ours) for match, ours in fits if match), (None, None))
        if match is None:
            renaming.unknown.append(name)
            continue
        if ours is not None:
            ours = ours.replace("*", match[1])
        if ours is None or _follows_feature_layer(ours, vision_layers_used):
            renaming.dropped.append(name)
        else:
            renaming.sources.setdefault(ours, []).append(name)
    return renaming


def usual_name(ours: str, family: Family) -> str:
    """The name on disk that save_pretrained writes today for our name."""
    for source, target in TABLES[family]:
        match = re.fullmatch(re.escape(target).replace(r"\*", "(.+)"), ours) if target else None
        if match:
            part, _, rest = source.partition(".")
            return f"{SPELLINGS[part][0]}.{rest.replace('*', match[1])}"
    return ours


def _compile(source: str) -> re.Pattern[str]:
    part, dot, rest = source.partition(".")
    spellings = "|".join(map(re.escape, SPELLINGS[part]))
    return re.compile(f"(?:{spellings}){re.escape(dot + rest)}".replace(r"\*", "(.+)"))


def _follows_feature_layer(ours: str, layers_used: int) -> bool:
    match = re.match(r"vision\.vision_tower\.layers\.(\d+)\.", ours)
    return match is not None and int(match[1]) >= layers_used
