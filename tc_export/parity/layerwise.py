# SPDX-License-Identifier: Apache-2.0
"""The PyTorch model in one number format, with the weights of one layer in memory at a time.

All tokens of all sequences go through a layer before the next is read, decode steps too: a token
sees the rows below its `kv_end`, and those are the same whether the tokens after it are there or
not. So a model of any size gives the numbers that it gives as a whole, at the cost of reading its
weights once for each pass. Several draws of a format's noise go through in one pass too.

Axes: F frames, m tokens a frame, S tokens of a sequence, E channels, L logits wanted, V vocabulary,
K key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from tc_export.checkpoint.reader import Checkpoint
from tc_export.config import KvFormat
from tc_export.contracts.graph_io import cache_parts
from tc_export.dtypes import DType
from tc_export.model.decoder import LayerCache, Rotary, new_layer_cache, plain_cache
from tc_export.model.positions import TEXT, Cursor, Layout, Segment, Text, frame_chunks, lay_out
from tc_export.model.rope import inverse_frequencies
from tc_export.parity.frames import by_frames, distinct
from tc_export.parity.noise import CODES_A_ROW, PLAIN, Draw
from tc_export.parity.part_loader import PartLoader
from tc_export.parity.sequences import GreedyAnswer, LayerOutput, Running, TokenSequence
from tc_export.targets import Precisions

QUERIES_A_CALL = 512
"""Tokens whose attention is computed at once: bounds the scores in memory, not what they are."""

CODES_A_ROW_ALONE = 1.0
"""As `CODES_A_ROW`, of a layer by itself, whose rows are judged one by one."""

Advance = Callable[[int, int], None]
"""Called after each layer: with those that are done, and how many there are in the pass."""

Watch = Callable[[str, nn.Module], None]
"""Gets a part of the model and its name before it is run."""


class LayerwiseModel:
    """The reference model. Weights come from the checkpoint's files whenever a layer is needed."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: DType,
        advance: Advance = lambda done, total: None,
        *,
        weights: Precisions | None = None,
        rounds_inputs: bool = True,
    ) -> None:
        """Read nothing yet.

        Args:
            checkpoint: where the weights lie.
            dtype: the format that everything is computed in.
            advance: called after each layer.
            weights: formats that the weights of each graph are rounded to before; None: `dtype`.
            rounds_inputs: round what enters products of eight bits, as the graph does.
        """
        self.name = f"PyTorch {torch.__version__}, {dtype}"
        if weights is not None and {*weights.model_dump().values()} != {dtype}:
            self.name += f" with weights in {weights}"
        if not rounds_inputs:
            self.name += ", inputs of products as they are"
        self.checkpoint = checkpoint
        self.config = checkpoint.config.model
        self._dtype = dtype.torch
        self._advance = advance
        self._parts = PartLoader(checkpoint, dtype, weights, rounds_inputs=rounds_inputs)

    def features(self, clips: Sequence[np.ndarray], watch: Watch | None = None) -> list[np.ndarray]:
        """Visual features [F, m, E] of each clip's pixels [F, 3, size, size].

        `watch` gets each module before it is run, to hang hooks on it; each clip then goes through
        it by itself.
        """
        if watch is None:
            (features,) = self.feature_draws(clips, PLAIN)
        else:
            (features,) = self._features(clips, PLAIN, watch)
        return features

    def feature_draws(
        self, clips: Sequence[np.ndarray], draws: Sequence[Draw]
    ) -> list[list[np.ndarray]]:
        """For each draw, what `features` gives. A frame of several clips is looked at once."""
        frames, places = distinct(clips)
        of_draws = self._features([frames], draws)
        return [[features[at] for at in places] for (features,) in of_draws]

    @torch.inference_mode()
    def _features(
        self,
        clips: Sequence[np.ndarray],
        draws: Sequence[Draw],
        watch: Watch = lambda name, module: None,
    ) -> list[list[np.ndarray]]:
        def load(name: str) -> nn.Module:
            module = self._parts.load(name)
            watch(name, module)
            return module

        def through(module: nn.Module, x: Tensor, draw: Draw) -> Tensor:
            draw.order_sums(module)
            return by_frames(module, draw.move(x))

        tower = self._parts.empty.vision.vision_tower
        embeddings = load("vision.vision_tower.embeddings")
        begin = nn.Sequential(embeddings, load("vision.vision_tower.pre_layernorm"))
        pixels = [self._tensor(clip) for clip in clips]
        xs = [[through(begin, x, draw) for x in pixels] for draw in draws]
        for index in range(len(tower.layers)):
            layer = load(f"vision.vision_tower.layers.{index}")
            xs = [[through(layer, x, draw) for x in of] for of, draw in zip(xs, draws, strict=True)]
            del layer
            self._advance(index + 1, len(tower.layers))
        projector = load("vision.multi_modal_projector")

        def finish(x: Tensor, draw: Draw) -> Tensor:
            draw.order_sums(projector)
            return self._parts.empty.vision.project_and_pool(tower.select(draw.move(x)), projector)

        return [
            [_array(by_frames(partial(finish, draw=draw), x)) for x in of]
            for of, draw in zip(xs, draws, strict=True)
        ]

    def embed(self, token_ids: np.ndarray) -> np.ndarray:
        """Rows [S, E] of the embedding table in float64, as they are stored."""
        table = self.checkpoint.embedding.as_array()
        rows: np.ndarray = table[token_ids].astype(np.float64)
        return rows

    def hidden(self, sequences: Sequence[TokenSequence], layers: range) -> list[np.ndarray]:
        """Hidden states [S, E] that leave `layers`; the sequences hold those that enter them."""
        (hidden,) = self.hidden_draws(sequences, PLAIN, layers)
        return hidden

    @torch.inference_mode()
    def layer(
        self,
        index: int,
        sequences: Sequence[TokenSequence],
        watch: Watch = lambda name, module: None,
        draw: Draw = PLAIN[0],
    ) -> list[LayerOutput]:
        """What one layer makes of each sequence, which holds what enters it.

        `watch` gets the layer before it is run, to hang hooks on it. Of `draw` only the codes of a
        cache in eight bits are taken.
        """
        layer = self._parts.load(f"decoder.layers.{index}")
        self._shake(layer, draw, CODES_A_ROW_ALONE)
        watch(f"decoder.layers.{index}", layer)
        outputs = []
        for sequence in sequences:
            x = self._start(sequence.embeds, sequence.layout, sequence.layout.length, keep=True)
            self._through_layer(layer, index, x)
            assert x.kept is not None
            keys, values = (_array(part[0].transpose(0, 1)) for part in plain_cache(x.kept[-1]))
            outputs.append(LayerOutput(hidden=_array(x.x[0]), keys=keys, values=values))
        return outputs

    @torch.inference_mode()
    def head(
        self, hidden: Sequence[np.ndarray], watch: Watch = lambda name, module: None
    ) -> list[np.ndarray]:
        """Logits [L, V] of each sequence's wanted hidden states [L, E], which leave the layers.

        `watch` gets the last norm before it is run.
        """
        return self._head([self._tensor(x) for x in hidden], watch=watch)

    @torch.inference_mode()
    def hidden_draws(
        self, sequences: Sequence[TokenSequence], draws: Sequence[Draw], layers: range
    ) -> list[list[np.ndarray]]:
        """For each draw, what `hidden` gives."""
        passed = self._draws_through_layers(sequences, draws, layers)
        return [[_array(x.x[0]) for x in running] for running in passed]

    def logits(
        self, sequences: Sequence[TokenSequence], layers: range | None = None
    ) -> list[np.ndarray]:
        """Logits [L, V] of each sequence's wanted tokens.

        With `layers`, which end with the last, the sequences hold what enters these.
        """
        (logits,) = self.logit_draws(sequences, PLAIN, layers)
        return logits

    @torch.inference_mode()
    def logit_draws(
        self,
        sequences: Sequence[TokenSequence],
        draws: Sequence[Draw],
        layers: range | None = None,
    ) -> Iterator[list[np.ndarray]]:
        """For each draw in turn, what `logits` gives: those of one draw are in memory at once."""
        wanted = []
        for running in self._draws_through_layers(sequences, draws, layers):
            wanted.append(
                [
                    x.x[0, torch.from_numpy(sequence.logits_indices)]
                    for x, sequence in zip(running, sequences, strict=True)
                ]
            )
        for xs, draw in zip(wanted, draws, strict=True):
            yield self._head(xs, draw)

    @torch.inference_mode()
    def logits_and_answers(
        self,
        sequences: Sequence[TokenSequence],
        prompts: Mapping[int, Sequence[Segment]],
        tokens: int,
    ) -> tuple[list[np.ndarray], list[GreedyAnswer]]:
        """What `logits` gives, and free-running greedy answers of `tokens` tokens each.

        `prompts` says which sequences are answered, and what their first tokens are: an answer
        comes after these, whatever else follows them in its sequence. The first pass over all
        weights serves both; then each token takes another, in which all answers take part. Their
        caches are kept meanwhile: see `cache_bytes`.
        """
        laid_out = {index: lay_out(of, self.config.temporal) for index, of in prompts.items()}
        running = []
        for index, sequence in enumerate(sequences):
            answer_ends = laid_out[index][0].length + tokens - 1 if index in prompts else 0
            rows = max(sequence.rows, answer_ends)
            x = self._start(sequence.embeds, sequence.layout, rows, keep=index in prompts)
            x.before = sequence.past
            running.append(x)
        self._through_layers(running)
        wanted = [torch.from_numpy(sequence.logits_indices) for sequence in sequences]
        logits = self._head([x.x[0, at] for x, at in zip(running, wanted, strict=True)])
        answering = [running[index] for index in prompts]
        for x, (layout, _) in zip(answering, laid_out.values(), strict=True):
            x.x = x.x[:, layout.length - 1 : layout.length]
        del running
        return logits, self._greedy(answering, [cursor for _, cursor in laid_out.values()], tokens)

    def _greedy(
        self, answering: Sequence[Running], cursors: list[Cursor], tokens: int
    ) -> list[GreedyAnswer]:
        """Answers of so many tokens; the hidden states are those that the first one comes from."""
        answers = [GreedyAnswer() for _ in answering]
        for count in range(tokens if answers else 0):
            if count:
                self._through_layers(answering, few_tokens=True)
            found = self._head([x.x[0] for x in answering], few_tokens=True)
            for index, (x, answer, logits) in enumerate(
                zip(answering, answers, found, strict=True)
            ):
                answer.logits.append(logits[0])
                answer.tokens.append(int(logits[0].argmax()))
                x.x = self._tensor(self.embed(np.array(answer.tokens[-1:])))[None]
                x.layout, cursors[index] = self._next_token(cursors[index])
        return answers

    @torch.inference_mode()
    def caches(self, embeds: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Each layer's key and value [K, S, D] after embedded text [S, E]."""
        layout, _ = lay_out([Text(len(embeds))], self.config.temporal)
        running = self._start(embeds, layout, layout.length, keep=True)
        self._through_layers([running])
        plain = map(plain_cache, running.kept or ())
        return [(_array(key[0]), _array(value[0])) for key, value in plain]

    def cache_bytes(self, rows: int) -> int:
        """What `logits_and_answers` keeps in memory for a sequence of so many rows."""
        with torch.device("meta"):
            layer = new_layer_cache(self.config, 1, rows, self._dtype)
        return self.config.text.num_hidden_layers * sum(part.nbytes for part in layer)

    def _next_token(self, cursor: Cursor) -> tuple[Layout, Cursor]:
        return lay_out([Text(1)], self.config.temporal, cursor)

    def _draws_through_layers(
        self, sequences: Sequence[TokenSequence], draws: Sequence[Draw], layers: range | None
    ) -> list[list[Running]]:
        """Take every draw of every sequence through these layers, which are read once."""
        of_draws = [[self._start_after(x, draw) for x in sequences] for draw in draws]
        self._through_layers([x for running in of_draws for x in running], layers)
        return of_draws

    def _start(
        self,
        embeds: np.ndarray,
        layout: Layout,
        rows: int,
        *,
        keep: bool = False,
        draw: Draw = PLAIN[0],
    ) -> Running:
        frame_ids = None
        if not self.config.temporal.mask.is_prefix:
            frame_ids = torch.full((1, rows), TEXT)
            frame_ids[0, torch.from_numpy(layout.position_ids)] = torch.from_numpy(layout.frame_ids)
        x = self._tensor(embeds)[None]
        return Running(x, layout, frame_ids, rows, [] if keep else None, draw)

    def _start_after(self, sequence: TokenSequence, draw: Draw) -> Running:
        running = self._start(sequence.embeds, sequence.layout, sequence.rows, draw=draw)
        running.before = sequence.past
        return running

    def _through_layers(
        self,
        running: Sequence[Running],
        layers: range | None = None,
        *,
        few_tokens: bool = False,
    ) -> None:
        """Take every sequence through these layers, or all; caches are kept, and nothing else."""
        layers = range(self.config.text.num_hidden_layers) if layers is None else layers
        for index in layers:
            layer = self._parts.load(f"decoder.layers.{index}", few_tokens=few_tokens)
            for x in running:
                x.draw.order_sums(layer)
                self._shake(layer, x.draw)
                x.x = x.draw.move(x.x)
                self._through_layer(layer, index, x)
            del layer
            self._advance(index + 1 - layers.start, len(layers))

    def _shake(self, layer: nn.Module, draw: Draw, codes_a_row: float = CODES_A_ROW) -> None:
        """Let the codes of a cache in eight bits fall as they do in a draw."""
        if self.config.cache.kv is not KvFormat.OWN:
            draw.shake_cache(layer, self.config.text.head_dim, codes_a_row)

    def _through_layer(self, layer: nn.Module, index: int, running: Running) -> None:
        """Take one sequence through one layer, so many queries at a time."""
        temporal = self.config.temporal
        inv_freq, attention_factor = inverse_frequencies(self.config.text)
        past = self._past(index, running)
        out = []
        for start, stop in self._spans(running.layout):
            part = running.layout.tokens(start, stop).batched()
            rotary = Rotary(
                torch.from_numpy(part.position_ids),
                torch.from_numpy(part.temporal_ids),
                inv_freq,
                temporal.gamma,
                attention_factor,
            )
            kv_end = torch.from_numpy(part.kv_end)
            x, past = layer(running.x[:, start:stop], rotary, kv_end, past, running.frame_ids)
            out.append(x)
        running.x = torch.cat(out, dim=1)
        if running.kept is not None:
            running.kept[index : index + 1] = [past]

    def _past(self, index: int, running: Running) -> LayerCache:
        """A layer's cache before the pass."""
        if running.kept is not None and index < len(running.kept):
            return running.kept[index]
        past = new_layer_cache(self.config, 1, running.rows, self._dtype)
        if running.before is not None:
            for tensor, part in zip(past, cache_parts(self.config), strict=True):
                drawn = torch.from_numpy(running.before.draw(index, part))
                tensor[0, :, : running.before.rows] = drawn
        return past

    def _spans(self, layout: Layout) -> list[tuple[int, int]]:
        mask = self.config.temporal.mask
        if not mask.allows_frame_chunks:
            return [(0, layout.length)]
        return frame_chunks(layout, mask, max(QUERIES_A_CALL, self.config.tokens_per_frame))

    def _head(
        self,
        xs: Sequence[Tensor],
        draw: Draw = PLAIN[0],
        watch: Watch = lambda name, module: None,
        *,
        few_tokens: bool = False,
    ) -> list[np.ndarray]:
        """Logits [L, V] of hidden states [L, E]."""
        norm = self._parts.load("decoder.norm")
        head = self._parts.load("decoder.lm_head", few_tokens=few_tokens)
        watch("decoder.norm", norm)
        draw.order_sums(head)
        return [_array(head(norm(draw.move(x)))) for x in xs]

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self._dtype)


def _array(tensor: Tensor) -> np.ndarray:
    """The values for NumPy, which lacks bfloat16: that is handed out in float32, without loss."""
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
