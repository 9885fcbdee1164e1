# SPDX-License-Identifier: Apache-2.0
"""Measures what quantising cost while an engine is compared with the quantised model.

The unquantised model answers first and by itself, so that no more than one model is in memory; then
this listens to the comparison of the other two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tc_export.checkpoint.reader import Checkpoint
from tc_export.checkpoint.unquantised import Unquantised
from tc_export.parity.answers.asking import Language, Reply, Respondent
from tc_export.parity.cost.result import Change, Cost, CostLimits
from tc_export.parity.cost.text import measure_text
from tc_export.tasks import Item
from tc_export.tasks.passages import TextTokenizer


class CostMeasure:
    """What becomes of one checkpoint's answers when another is quantised from it."""

    def __init__(self, before: Checkpoint, after: Checkpoint) -> None:
        self._before = before
        self._after = after
        self._replies: list[Reply] = []
        self._changes: list[Change] = []

    def ask(
        self,
        side: Respondent,
        items: Sequence[Item],
        language: Language,
        advance: Callable[[int], None],
    ) -> None:
        """Ask the unquantised model all items; `advance` gets how many are done."""
        for done, item in enumerate(items, start=1):
            question = language.question(item, side.config.vision.image_size)
            self._replies += side.replies(question, [range(len(question.pixel_values))], language)
            advance(done)

    def hear(self, item: Item, quantised: Reply, engine: Reply) -> None:
        """Take what the other sides say to the next item; logits are reduced at once."""
        unquantised = self._replies[len(self._changes)]
        self._changes.append(Change.of(item, unquantised, quantised, engine))

    def cost(self, limits: CostLimits, tokenizer: TextTokenizer) -> Cost:
        """What was found, and what both models make of text."""
        return Cost(
            recipe=_recipe_name(self._after),
            unquantised=str(self._before.folder),
            is_checked=Unquantised.stated_in(self._after.config.document) is not None,
            limits=limits,
            changes=tuple(self._changes),
            text=measure_text(self._before, self._after, tokenizer),
        )


def _recipe_name(checkpoint: Checkpoint) -> str:
    """What config.json calls the way that its weights were quantised."""
    quantization = checkpoint.config.document["quantization_config"]
    recipe = quantization.get("recipe")
    named = recipe.get("name") if isinstance(recipe, dict) else quantization.get("quant_method")
    return str(named)
