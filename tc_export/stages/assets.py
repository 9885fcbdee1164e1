# SPDX-License-Identifier: Apache-2.0
"""Stage `assets`: the small files of a bundle, those of the checkpoint and those that say more.

config.json       the checkpoint's, with every setting that was left to us
graph_io.json     inputs, outputs and limits of both graphs (`tc_export.contracts.graph_document`)
tokenizer.json …  the tokenizer as a device reads it; whatever else is there, unchanged
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import partial
from hashlib import sha256
from typing import Any

from tc_export.bundle.layout import GRAPH_IO_FILE
from tc_export.checkpoint.reader import Checkpoint
from tc_export.checkpoint.tokenizer import TOKENIZER_FILES, write_tokenizer
from tc_export.contracts.graph_document import as_document
from tc_export.runner import Stage, StageContext
from tc_export.stages.inputs import BuildInputs
from tc_export.stages.tools import versions

STAGE = "assets"
CONFIG_FILE = "config.json"

COPIED = (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""Files of a checkpoint that a bundle carries, as far as they are there: all unchanged, but for the
two that the tokenizer is written to."""

TOKENIZER_READERS = ("transformers", "tokenizers")


def stage(inputs: BuildInputs) -> Stage:
    """Write the configuration and the graphs' contract, and copy tokenizer and preprocessing."""
    files = files_to_copy(inputs.checkpoint)
    documents = {CONFIG_FILE: _config(inputs), GRAPH_IO_FILE: _graph_io(inputs)}
    return Stage(
        name=STAGE,
        description="copy configuration and tokenizer",
        key={"documents": documents, "files": files, "tools": versions(TOKENIZER_READERS)},
        outputs=tuple(sorted({*documents, *files, *TOKENIZER_FILES})),
        run=partial(_run, inputs=inputs, files=files, documents=documents),
    )


def _run(
    context: StageContext,
    *,
    inputs: BuildInputs,
    files: Mapping[str, str],
    documents: Mapping[str, Any],
) -> None:
    folder = inputs.checkpoint.folder
    for name in files.keys() - set(TOKENIZER_FILES):
        shutil.copyfile(folder / name, context.path(name))
    write_tokenizer(folder, context.folder)
    for name, document in documents.items():
        context.path(name).write_text(json.dumps(document, indent=2) + "\n")


def files_to_copy(checkpoint: Checkpoint) -> dict[str, str]:
    """The checkpoint's small files that are there, with their hashes."""
    paths = [checkpoint.folder / name for name in COPIED]
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file()}


def _config(inputs: BuildInputs) -> dict[str, Any]:
    """The checkpoint's `config.json`, with every setting that was left to us."""
    checkpoint, spec = inputs.checkpoint, inputs.spec
    model = checkpoint.config.model
    return {
        **checkpoint.config.document,
        "vision_feature_select_strategy": model.vision.features,
        "temporal": model.temporal.model_dump(mode="json"),
        "pooling": model.pooling.model_dump(mode="json"),
        "cache": model.cache.model_dump(mode="json"),
        "builder_config": {
            "target": spec.target,
            "checkpoint": str(checkpoint.folder.resolve()),
            "precision": spec.precision_asked,
            **spec.profile.model_dump(),
        },
    }


def _graph_io(inputs: BuildInputs) -> dict[str, Any]:
    """Both graphs' inputs, outputs and limits, for runtimes that share no code with us."""
    return as_document(
        inputs.checkpoint.config.model,
        max_length=inputs.spec.profile.max_length,
        precisions=inputs.spec.precision_asked,
        engines=inputs.engine_graphs,
    )
