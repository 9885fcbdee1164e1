# SPDX-License-Identifier: Apache-2.0
"""A small bundle with a tokenizer, built by the real pipeline, for tests of the whole road."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tc_export.bundle import read_manifest
from tc_export.bundle.files import walk_files
from tc_export.bundle.manifest import MANIFEST, FileRecord, write_manifest
from tc_export.digests import Digests
from tc_export.pipeline import BuildRequest, build
from tc_export.runner import SilentReporter
from tests.checkpoint.families import edit_config, save_small
from tests.runtime.tokenizers_for_tests import sentencepiece_like

MAX_FRAMES = 4
MAX_LENGTH = 120


def save_with_tokenizer(folder: Path, text: dict[str, Any] | None = None) -> Path:
    """A small LLaVA whose vocabulary is its tokenizer's; `text` changes its language model."""
    tokenizer = sentencepiece_like(["<image>"])
    save_small(folder, text={"vocab_size": len(tokenizer), **(text or {})})
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    edit_config(folder, lambda document: document.update(image_token_index=image_token))
    tokenizer.save_pretrained(folder)
    return folder


def request_for(checkpoint: Path, output: Path) -> BuildRequest:
    return BuildRequest(
        checkpoint=checkpoint, output=output, max_frames=MAX_FRAMES, max_length=MAX_LENGTH
    )


def build_small(folder: Path) -> Path:
    """Build `folder`/bundle from `folder`/checkpoint."""
    checkpoint = save_with_tokenizer(folder / "checkpoint")
    build(request_for(checkpoint, folder / "bundle"), SilentReporter())
    return folder / "bundle"


def copy_bundle(bundle: Path, folder: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(bundle, folder / "bundle"))


def reseal(bundle: Path) -> Path:
    """Let the manifest list the files as they are now, as if a build had made them so.

    New files count as assets.
    """
    manifest = read_manifest(bundle)
    owners = {path: name for name, stage in manifest.stages.items() for path in stage.files}
    files: dict[str, dict[str, FileRecord]] = {name: {} for name in manifest.stages}
    for path in set(walk_files(bundle)) - {MANIFEST}:
        record = FileRecord(
            sha256=Digests().sha256(bundle / path), size_bytes=(bundle / path).stat().st_size
        )
        files[owners.get(path, "assets")][path] = record
    stages = {
        name: stage.model_copy(update={"files": files[name]})
        for name, stage in manifest.stages.items()
    }
    write_manifest(bundle, manifest.model_copy(update={"stages": stages}))
    return bundle
