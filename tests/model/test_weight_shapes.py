# SPDX-License-Identifier: Apache-2.0
"""The table of weights is that of the model, for every configuration."""

from __future__ import annotations

from hypothesis import given, settings

from tc_export.checkpoint.reader import empty_model
from tc_export.config import ModelConfig
from tc_export.model.weight_shapes import weight_shapes
from tests.plan.configs import model_configs


@settings(max_examples=60)
@given(config=model_configs())
def test_names_shapes_and_order_are_the_models(config: ModelConfig) -> None:
    model = {name: tuple(weight.shape) for name, weight in empty_model(config).state_dict().items()}
    assert list(weight_shapes(config).items()) == list(model.items())
