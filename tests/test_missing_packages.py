# SPDX-License-Identifier: Apache-2.0
"""The packages of `[export]`, and what is said where one is missing."""

from __future__ import annotations

import tomllib

import pytest

from tc_export.errors import UnsupportedEnvironment
from tc_export.missing_packages import EXPORT_PACKAGES, missing_packages_named
from tests.repository import REPOSITORY


def test_the_packages_are_those_of_the_extra() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    names = {
        text.split(">")[0].replace("-", "_") for text in project["optional-dependencies"]["export"]
    }
    assert names == EXPORT_PACKAGES
    assert not {text.split(">")[0] for text in project["dependencies"]} & EXPORT_PACKAGES


def test_another_missing_module_is_a_bug_of_ours() -> None:
    with pytest.raises(ModuleNotFoundError), missing_packages_named():
        raise ModuleNotFoundError("No module named 'tc_export.nowhere'", name="tc_export.nowhere")
    with pytest.raises(UnsupportedEnvironment, match="onnx_ir"), missing_packages_named():
        raise ModuleNotFoundError("No module named 'onnx_ir.passes'", name="onnx_ir.passes")
