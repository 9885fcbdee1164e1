# SPDX-License-Identifier: Apache-2.0
"""The parity check: vision features, prefill logits, every decode step, and the greedy answer.

Three runners go through the same feeds: PyTorch in float64 (the truth), PyTorch in the engine's
format, and the engine. The decoder is fed with the truth's features and tokens, so that an error
is seen where it arises; the greedy answer is free-running, with each side's own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from polygraphy.comparator import Comparator, IterationResult, RunResults
from polygraphy.logger import G_LOGGER

from tc_export.config import ModelConfig
from tc_export.contracts.graph_io import FRAMES_A_CALL, LOGITS_A_CALL, PREFILL_TOKENS
from tc_export.dtypes import round_to
from tc_export.engine.interface import Engine
from tc_export.engine.session import DecoderSession, position_feeds
from tc_export.errors import EnvironmentLacks
from tc_export.model.positions import TEXT, Layout, Text, frame_chunks, lay_out
from tc_export.model.tc_llava import TcLlava
from tc_export.parity.tensors.runners import EngineRunner
from tc_export.parity.tensors.scenario import DECODE_STEPS, Scenario
from tc_export.parity.tensors.tolerance import TensorComparison, compare
from tc_export.parity.torch_engine import TorchDecoderEngine, TorchVisionEngine
from tc_export.targets import Precisions

Feed = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class AnswerComparison:
    """A free-running greedy answer of both sides.

    `margin` is how much the truth's logits prefer its own token to the engine's where the answers
    part: up to twice the logits' tolerance either is right. Where they never do it is the truth's
    smallest gap between its first and second choice.
    """

    scenario: str
    true_tokens: tuple[int, ...]
    engine_tokens: tuple[int, ...]
    margin: float
    tolerance: float

    @property
    def first_difference(self) -> int | None:
        """Index of the first token that differs."""
        pairs = zip(self.true_tokens, self.engine_tokens, strict=True)
        return next((i for i, (true, engine) in enumerate(pairs) if true != engine), None)

    @property
    def passed(self) -> bool:
        """True where the answers agree, or part at a tie."""
        return self.first_difference is None or self.margin <= 2 * self.tolerance


def answer_margin(true_logits: Sequence[np.ndarray], engine_tokens: Sequence[int]) -> float:
    """See `AnswerComparison`; the truth's logits [V] of each token, and the engine's tokens."""
    gaps = []
    for logits, token in zip(true_logits, engine_tokens, strict=True):
        second, first = np.partition(logits, -2)[-2:]
        if token != logits.argmax():
            return float(first - logits[token])
        gaps.append(float(first - second))
    return min(gaps)


@dataclass(frozen=True, kw_only=True)
class Side:
    """One implementation: its two engines and a name."""

    name: str
    vision: Engine
    decoder: Engine

    def features(self, pixel_values: np.ndarray) -> np.ndarray:
        """Visual features [frames, m, E] of frames [frames, 3, size, size]."""
        calls = [self.vision.run(feed)["visual_features"] for feed in vision_feeds(pixel_values)]
        return np.concatenate(calls)


def vision_feeds(pixel_values: np.ndarray) -> list[Feed]:
    """A feed for each call of the vision engine."""
    starts = range(0, len(pixel_values), FRAMES_A_CALL)
    return [{"pixel_values": pixel_values[start : start + FRAMES_A_CALL]} for start in starts]


@dataclass(frozen=True, kw_only=True)
class ParityResult:
    """Everything that was compared."""

    engine: str
    truth: str
    precision: str
    tensors: tuple[TensorComparison, ...]
    answers: tuple[AnswerComparison, ...]

    @property
    def passed(self) -> bool:
        """True where every tensor and every answer passed, and something was compared."""
        verdicts = [x.passed for x in self.tensors] + [x.passed for x in self.answers]
        return bool(verdicts) and all(verdicts)


def torch_side(model: TcLlava) -> Side:
    """The PyTorch model in the format that it was loaded in."""
    decoder = TorchDecoderEngine(model)
    return Side(name=decoder.backend, vision=TorchVisionEngine(model), decoder=decoder)


def _torch_baseline(load_model: Callable[[torch.dtype], TcLlava], precisions: Precisions) -> Side:
    """PyTorch in the formats of the two engines."""
    vision, decoder = (x.dtype.torch for x in (precisions.vision, precisions.decoder))
    whole = torch_side(load_model(decoder))
    if vision == decoder:
        return whole
    tower = TorchVisionEngine(load_model(vision))
    return Side(name=f"{tower.backend}; {whole.name}", vision=tower, decoder=whole.decoder)


def check_parity(
    config: ModelConfig,
    load_model: Callable[[torch.dtype], TcLlava],
    engine: Side,
    precisions: Precisions,
    scenarios: Sequence[Scenario],
    advance: Callable[[str], None] = lambda phrase: None,
) -> ParityResult:
    """Run every scenario on the truth, on PyTorch in the engine's format, and on the engine.

    Args:
        config: the model's.
        load_model: reads the reference model in a given type.
        engine: what is to be judged.
        precisions: the floating-point formats of its two graphs.
        scenarios: what is run.
        advance: called with a phrase after each step of a scenario.

    Raises:
        EnvironmentLacks: the profile has no room for any scenario.
    """
    if not scenarios:
        raise EnvironmentLacks(
            "the bundle's profile is too small for any parity scenario",
            hint="build with more --max-frames or a larger --max-length",
        )
    truth = torch_side(load_model(torch.float64))
    pytorch = _torch_baseline(load_model, precisions)
    embedding = _Embedding(truth)
    tensors: list[TensorComparison] = []
    answers: list[AnswerComparison] = []
    for scenario in scenarios:
        check = _ScenarioCheck(config, scenario, precisions, truth, pytorch, engine, embedding)
        tensors += check.vision()
        advance(f"{scenario.name}: vision")
        decoded = check.decoder()
        tensors += decoded
        advance(f"{scenario.name}: decoder")
        answers.append(check.answer(max(item.tolerance for item in decoded)))
        advance(f"{scenario.name}: answer")
    return ParityResult(
        engine=engine.name,
        truth=truth.name,
        precision=str(precisions),
        tensors=tuple(tensors),
        answers=tuple(answers),
    )


class _Embedding:
    """Token embeddings, from the truth's table (rounded nowhere)."""

    def __init__(self, truth: Side) -> None:
        assert isinstance(truth.decoder, TorchDecoderEngine)
        self._table = truth.decoder.embedding_table()

    def prompt(self, scenario: Scenario, features: np.ndarray) -> np.ndarray:
        """Embed a prompt [S] whose visual places are -1; features are [frames, m, E]."""
        embeds: np.ndarray = self._table[np.maximum(scenario.token_ids, 0)].astype(np.float64)
        embeds[scenario.token_ids == TEXT] = features.reshape(-1, features.shape[-1])
        return embeds

    def token(self, token: int) -> np.ndarray:
        """Embed one token: [E]."""
        return np.asarray(self._table[token])


class _ScenarioCheck:
    """One scenario on three sides."""

    def __init__(
        self,
        config: ModelConfig,
        scenario: Scenario,
        precisions: Precisions,
        truth: Side,
        pytorch: Side,
        engine: Side,
        embedding: _Embedding,
    ) -> None:
        self._config = config
        self._scenario = scenario
        self._precisions = precisions
        self._sides = (truth, pytorch, engine)
        self._embedding = embedding
        self._rows = scenario.length + DECODE_STEPS

    def vision(self) -> list[TensorComparison]:
        """Compare the visual features of all frames."""
        inputs = self._sides[2].vision.inputs
        runners = [EngineRunner(side.name, side.vision, inputs) for side in self._sides]
        pixels = round_to(self._scenario.pixel_values, self._precisions.vision.dtype)
        pixels = pixels.astype(inputs["pixel_values"].dtype)
        return self._compare("vision", self._precisions.vision, runners, vision_feeds(pixels))

    def decoder(self) -> list[TensorComparison]:
        """Compare the logits of the prefill and of every teacher-forced decode step."""
        features = self._sides[0].features(self._scenario.pixel_values)
        embeds = self._embedding.prompt(self._scenario, features)
        answer, _ = self._greedy(self._sides[0], embeds)
        fed = np.stack([self._embedding.token(token) for token in answer[:-1]])
        feeds = self._decoder_feeds(np.concatenate([embeds, fed]))
        inputs = self._sides[2].decoder.inputs
        runners = [
            EngineRunner(
                side.name, side.decoder, inputs, partial(side.decoder.new_cache, self._rows)
            )
            for side in self._sides
        ]
        return self._compare("decoder", self._precisions.decoder, runners, feeds)

    def answer(self, tolerance: float) -> AnswerComparison:
        """Compare the greedy answers, each side with its own features."""
        answers = []
        for side in (self._sides[0], self._sides[2]):
            features = side.features(self._scenario.pixel_values)
            embeds = self._embedding.prompt(self._scenario, features)
            answers.append(self._greedy(side, embeds))
        (true_tokens, true_logits), (engine_tokens, _) = answers
        return AnswerComparison(
            scenario=self._scenario.name,
            true_tokens=tuple(true_tokens),
            engine_tokens=tuple(engine_tokens),
            margin=answer_margin(true_logits, engine_tokens),
            tolerance=tolerance,
        )

    def _greedy(self, side: Side, embeds: np.ndarray) -> tuple[list[int], list[np.ndarray]]:
        """A greedy answer of a fixed length, and the logits [V] that each token was chosen by."""
        chunk = self._scenario.chunk_tokens or PREFILL_TOKENS
        session = DecoderSession(side.decoder, self._config, self._rows, chunk)
        logits = session.prefill(embeds, self._scenario.segments)
        tokens: list[int] = []
        chosen_by: list[np.ndarray] = []
        while True:
            tokens.append(int(logits.argmax()))
            chosen_by.append(logits)
            if len(tokens) == DECODE_STEPS + 1:
                return tokens, chosen_by
            logits = session.step(self._embedding.token(tokens[-1]))

    def _decoder_feeds(self, embeds: np.ndarray) -> list[Feed]:
        """A feed for each prefill chunk, then one for each decode step."""
        segments = [*self._scenario.segments, Text(DECODE_STEPS)]
        layout, _ = lay_out(segments, self._config.temporal)
        prompt, mask = self._scenario.length, self._config.temporal.mask
        chunk = self._scenario.chunk_tokens or PREFILL_TOKENS
        if not mask.allows_frame_chunks:
            chunk = prompt
        spans = frame_chunks(layout.tokens(0, prompt), mask, chunk)
        spans += [(step, step + 1) for step in range(prompt, layout.length)]
        return [self._feed(embeds[a:b], layout, a, b) for a, b in spans]

    def _feed(self, embeds: np.ndarray, layout: Layout, start: int, stop: int) -> Feed:
        rows = min(stop - start, LOGITS_A_CALL)
        # All of a short call, evenly spread over a long one.
        wanted = np.linspace(0, stop - start - 1, rows).round().astype(np.int64)
        dtype = self._sides[2].decoder.inputs["inputs_embeds"].dtype
        rounded = round_to(embeds[None], self._precisions.decoder.dtype)
        feed = {"inputs_embeds": rounded.astype(dtype), "logits_indices": wanted[None]}
        feed |= position_feeds(layout.tokens(start, stop).batched())
        if not self._config.temporal.mask.is_prefix:
            frame_ids = np.full((1, self._rows), TEXT, dtype=np.int64)
            frame_ids[0, :stop] = layout.frame_ids[:stop]
            feed["key_frame_ids"] = frame_ids
        return feed

    def _compare(
        self, stage: str, precision: str, runners: list[EngineRunner], feeds: list[Feed]
    ) -> list[TensorComparison]:
        """Run all feeds on all runners through Polygraphy, and compare step by step."""
        comparisons: list[TensorComparison] = []
        # Its summary of what failed is an error to Polygraphy, which prints it on our output.
        with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
            results = Comparator.run(runners, data_loader=feeds)
            (_, truths), (_, pytorch), (_, engines) = results.items()
            steps = iter(enumerate(pytorch))

            def within_tolerance(
                truth: IterationResult, engine: IterationResult
            ) -> OrderedDict[str, bool]:
                step, baseline = next(steps)
                found = [
                    compare(
                        f"{self._scenario.name}: {stage}",
                        step,
                        name,
                        truth=value,
                        pytorch=baseline[name],
                        engine=engine[name],
                        precision=precision,
                    )
                    for name, value in truth.items()
                ]
                comparisons.extend(found)
                return OrderedDict((item.tensor, item.passed) for item in found)

            pair = RunResults([(runners[0].name, truths), (runners[2].name, engines)])
            Comparator.compare_accuracy(pair, compare_func=within_tolerance)
        return comparisons
