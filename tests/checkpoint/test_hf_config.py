# SPDX-License-Identifier: Apache-2.0
"""config.json in the spellings of the hub's checkpoints, with transformers' reading as oracle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, CLIPVisionConfig, LlamaConfig, MistralConfig

from tc_export.checkpoint.hf_config import Origin, read_config
from tc_export.checkpoint.hf_schema import HfLlama, HfMistral, HfVision
from tc_export.checkpoint.names import Family
from tc_export.config import AfterClip, AttentionMask, KvFormat, ModelSettings, PoolingMode
from tc_export.errors import CheckpointError, UsageError

CLIP: dict[str, Any] = {
    "hidden_size": 1024,
    "image_size": 336,
    "intermediate_size": 4096,
    "model_type": "clip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "projection_dim": 768,
    "vocab_size": 32000,
}
VICUNA: dict[str, Any] = {
    "_name_or_path": "lmsys/vicuna-7b-v1.5",
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "rms_norm_eps": 1e-05,
    "torch_dtype": "float16",
    "vocab_size": 32064,
}
MISTRAL: dict[str, Any] = {
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "vocab_size": 32064,
}
YI: dict[str, Any] = {
    "eos_token_id": 7,
    "hidden_size": 7168,
    "intermediate_size": 20480,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 56,
    "num_hidden_layers": 60,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 5000000.0,
    "vocab_size": 64064,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def document(model_type: str, text: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model_type": model_type, "vision_config": CLIP, "text_config": text, **more}


DOCUMENTS = {
    "llava 1.5": document("llava", VICUNA, image_token_index=32000, ignore_index=-100),
    "nothing said": {"model_type": "llava"},
    "sub-configs null": {"model_type": "llava", "vision_config": None, "text_config": None},
    "sub-configs empty": {"model_type": "llava", "vision_config": {}, "text_config": {}},
    "next vicuna": document("llava_next", VICUNA),
    "next mistral": document("llava_next", MISTRAL),
    "mistral defaults": document("llava_next", {"model_type": "mistral", "sliding_window": None}),
    "next video": document("llava_next_video", VICUNA, video_token_index=32000),
    "next video 34B": document("llava_next_video", YI, image_token_index=64001),
    "pool by max": document(
        "llava_next_video", VICUNA, spatial_pool_mode="max", spatial_pool_stride=4
    ),
    "linear": document("llava", VICUNA | {"rope_scaling": {"type": "linear", "factor": 2.5}}),
    # The hub has this: scaling keys outside rope_scaling, which the library ignores.
    "stray factor": document("llava", VICUNA | {"type": "linear", "factor": 2.0}),
    "llama3": document("llava", VICUNA | {"rope_scaling": LLAMA3_ROPE, "rope_theta": 500000.0}),
    "rope of 5": document(
        "llava", VICUNA | {"rope_parameters": LLAMA3_ROPE | {"rope_theta": 500000.0}}
    ),
    "yarn": document(
        "llava",
        VICUNA
        | {
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 1024,
                "beta_fast": 16.0,
            }
        },
    ),
    "tied above": document("llava", VICUNA, tie_word_embeddings=True),
    "tied below": document("llava", VICUNA | {"tie_word_embeddings": True}),
    "full, layer -1": document(
        "llava",
        VICUNA,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        pooling={"stride": 1},
    ),
    "no projector bias": document(
        "llava", VICUNA, multimodal_projector_bias=False, projector_hidden_act="quick_gelu"
    ),
}


# Fields of the schemas that have no field of the same name and meaning in the model's config.
SOURCE_ONLY = {
    "model_type",
    "quantization_config",
    "auto_map",
    "num_channels",
    "head_dim",
    "eos_token_id",
    "tie_word_embeddings",
    "sliding_window",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "original_max_position_embeddings",
    "partial_rotary_factor",
}


def asked(where: str = "the command line", **parts: Any) -> ModelSettings:
    return ModelSettings.read(parts, where=where)


def write(folder: Path, values: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize("name", DOCUMENTS)
def test_equals_the_reading_of_transformers(tmp_path: Path, name: str) -> None:
    ours = read_config(write(tmp_path, DOCUMENTS[name]))
    oracle = AutoConfig.from_pretrained(tmp_path)
    vision, text, model = oracle.vision_config, oracle.text_config, ours.model
    assert ours.family == oracle.model_type
    for key in HfVision.model_fields.keys() - SOURCE_ONLY:
        assert getattr(model.vision, key) == getattr(vision, key), key
    for key in HfLlama.model_fields.keys() - SOURCE_ONLY - {"hidden_act"}:
        assert getattr(model.text, key) == getattr(text, key, False), key
    assert model.text.head_dim == (text.head_dim or text.hidden_size // text.num_attention_heads)
    assert model.text.tie_word_embeddings == oracle.tie_word_embeddings
    rope = dict(text.rope_parameters)
    assert model.text.rope.theta == rope.pop("rope_theta")
    assert rope.pop("rope_type") == model.text.rope.rope_type
    rope.pop("type", None)
    # transformers fills in the trained length; the model does so when it has to.
    rope.pop("original_max_position_embeddings", None)
    for key, value in rope.items():
        assert getattr(model.text.rope, key) == value, key
    assert model.vision.feature_layer == oracle.vision_feature_layer
    assert model.vision.keep_class_token == (oracle.vision_feature_select_strategy == "full")
    assert model.projector_act == oracle.projector_hidden_act
    assert model.projector_bias == oracle.multimodal_projector_bias
    assert ours.image_token_id == oracle.image_token_index
    assert ours.video_token_id == getattr(oracle, "video_token_index", None)
    assert ours.eos_token_ids == (text.eos_token_id,)
    if ours.family is Family.LLAVA_NEXT_VIDEO:
        assert model.pooling.stride == oracle.spatial_pool_stride
        assert model.pooling.mode == oracle.spatial_pool_mode
        assert model.pooling.before_projector


@pytest.mark.parametrize(
    ("schema", "oracle"),
    [(HfVision, CLIPVisionConfig), (HfLlama, LlamaConfig), (HfMistral, MistralConfig)],
)
def test_defaults_are_the_librarys(schema: Any, oracle: Any) -> None:
    library = oracle()
    # The library derives these from others; the test of whole documents compares them.
    derived = {"num_key_value_heads", "head_dim", "rope_scaling", "rope_parameters"}
    for name, field in schema.model_fields.items():
        if hasattr(library, name) and name not in derived:
            assert field.default == getattr(library, name), name


def test_the_trained_length_of_a_rope_is_read(tmp_path: Path) -> None:
    text = read_config(write(tmp_path, DOCUMENTS["llama3"])).model.text
    assert text.rope.original_max_position_embeddings == 8192


def test_the_first_next_video_checkpoints_are_known_by_their_architecture(tmp_path: Path) -> None:
    values = document("llava_next", VICUNA, spatial_pool_stride=2, video_token_index=32000)
    values["architectures"] = ["LlavaNextVideoForConditionalGeneration"]
    config = read_config(write(tmp_path, values))
    assert config.family is Family.LLAVA_NEXT_VIDEO
    assert (config.image_token_id, config.video_token_id) == (32001, 32000)
    assert config.model.pooling.before_projector


def test_token_ids_in_the_later_spelling(tmp_path: Path) -> None:
    values = document("llava_next_video", VICUNA, image_token_id=7, video_token_id=8)
    config = read_config(write(tmp_path, values))
    assert (config.image_token_id, config.video_token_id) == (7, 8)


@pytest.mark.parametrize(("stated", "expected"), [(5, (5,)), ([5, 6], (5, 6)), (None, (2,))])
def test_the_generation_config_says_what_ends_an_answer(
    tmp_path: Path, stated: object, expected: tuple[int, ...]
) -> None:
    write(tmp_path, DOCUMENTS["llava 1.5"])
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": stated}))
    assert read_config(tmp_path).eos_token_ids == expected


def test_settings_come_from_the_checkpoint_then_the_user_then_the_default(tmp_path: Path) -> None:
    values = document("llava", VICUNA, temporal={"gamma": 0.5}, pooling={"mode": "max"})
    flags = asked(
        temporal={"mask": "full_visual", "gamma": 0.5}, pooling={"stride": 3, "mode": "max"}
    )
    config = read_config(write(tmp_path, values), flags)
    assert config.model.temporal.gamma == 0.5
    assert config.model.temporal.mask is AttentionMask.FULL_VISUAL
    assert config.model.temporal.after_clip is AfterClip.RESTART
    assert config.model.pooling.mode == "max"
    assert config.model.pooling.stride == 3
    assert config.model.tokens_per_frame == 64
    assert config.origins == {
        "temporal.gamma": Origin.CHECKPOINT,
        "temporal.mask": Origin.USER,
        "temporal.after_clip": Origin.DEFAULT,
        "pooling.stride": Origin.USER,
        "pooling.mode": Origin.CHECKPOINT,
        "pooling.before_projector": Origin.DEFAULT,
        "vision.features": Origin.DEFAULT,
        "cache.kv": Origin.DEFAULT,
    }


STOCK = {"gamma": 0.0, "mask": "causal"}
METHOD = {"stride": 2, "mode": "average", "before_projector": False}


@pytest.mark.parametrize(
    ("model_type", "stated", "flags", "stride", "origin"),
    [
        ("llava", {}, {}, 2, Origin.DEFAULT),
        ("llava", {}, {"temporal": STOCK}, 1, Origin.STOCK),
        ("llava_next", {}, {"temporal": STOCK}, 1, Origin.STOCK),
        ("llava", {"temporal": STOCK}, {}, 1, Origin.STOCK),
        ("llava", {"temporal": {"gamma": 0}}, {"temporal": {"mask": "causal"}}, 1, Origin.STOCK),
        ("llava", {}, {"temporal": {"gamma": 0}}, 2, Origin.DEFAULT),
        ("llava", {}, {"temporal": {"mask": "causal"}}, 2, Origin.DEFAULT),
        ("llava", {}, {"temporal": STOCK, "pooling": {"stride": 2}}, 2, Origin.USER),
        ("llava", {}, {"temporal": STOCK, "pooling": {"mode": "max"}}, 2, Origin.DEFAULT),
        ("llava", {"pooling": METHOD}, {"temporal": STOCK}, 2, Origin.CHECKPOINT),
        ("llava_next_video", {}, {"temporal": STOCK}, 2, Origin.CHECKPOINT),
        ("llava_next_video", {"pooling": {"stride": 1}}, {}, 1, Origin.CHECKPOINT),
    ],
)
def test_stock_llava_is_not_pooled(
    tmp_path: Path,
    model_type: str,
    stated: dict[str, Any],
    flags: dict[str, Any],
    stride: int,
    origin: Origin,
) -> None:
    """The method's 2 x 2 is a default for the method: who asks for stock LLaVA gets that."""
    config = read_config(write(tmp_path, document(model_type, VICUNA, **stated)), asked(**flags))
    assert config.model.pooling.stride == stride
    assert config.origins["pooling.stride"] is origin
    before_projector = model_type == "llava_next_video"
    assert config.model.pooling.before_projector is before_projector


def test_vision_features_are_asked_for(tmp_path: Path) -> None:
    write(tmp_path, document("llava", VICUNA))
    config = read_config(tmp_path, asked(vision={"features": "full"}, pooling={"stride": 1}))
    assert config.model.vision.keep_class_token
    assert config.model.tokens_per_frame == 577
    assert config.origins["vision.features"] is Origin.USER


def test_the_settings_of_a_model_ask_for_that_model(tmp_path: Path) -> None:
    write(tmp_path, document("llava", VICUNA))
    flags = asked(temporal={"gamma": 0.5}, vision={"features": "full"}, pooling={"stride": 1})
    model = read_config(tmp_path, flags).model
    again = read_config(tmp_path, model.settings)
    assert again.model == model
    assert set(again.origins.values()) == {Origin.USER}
    assert model.pooling.mode is PoolingMode.AVERAGE


@pytest.mark.parametrize(
    ("flags", "message", "hint"),
    [
        ({"pooling": {"stride": 25}}, "stride 25 exceeds the 24", "--pooling-stride 1"),
        ({"vision": {"features": "full"}}, "class token cannot be", "--pooling-stride 1"),
    ],
)
def test_a_pooling_that_cannot_be_is_the_users_fault(
    tmp_path: Path, flags: dict[str, Any], message: str, hint: str
) -> None:
    write(tmp_path, document("llava", VICUNA))
    with pytest.raises(UsageError, match=message) as caught:
        read_config(tmp_path, asked(**flags))
    assert hint in str(caught.value.hint)


def test_a_cache_is_stated_or_asked_for(tmp_path: Path) -> None:
    plain = document("llava", VICUNA)
    assert read_config(write(tmp_path, plain)).model.cache.kv is KvFormat.OWN
    found = read_config(write(tmp_path, plain), asked(cache={"kv": "int8"}))
    assert found.model.cache.kv is KvFormat.INT8
    assert found.origins["cache.kv"] is Origin.USER
    found = read_config(write(tmp_path, {**plain, "cache": {"kv": "int8"}}))
    assert found.model.cache.kv is KvFormat.INT8
    assert found.origins["cache.kv"] is Origin.CHECKPOINT
    with pytest.raises(UsageError, match=r"cache\.kv: 16 asked for, int8 in the checkpoint"):
        read_config(tmp_path, asked(cache={"kv": "16"}))
    with pytest.raises(CheckpointError, match="`cache` in"):
        read_config(write(tmp_path, {**plain, "cache": {"kv": "int7"}}))


def test_a_cache_in_eight_bits_needs_a_mask_that_is_a_prefix(tmp_path: Path) -> None:
    frame_block, int8 = {"mask": "frame_block"}, {"kv": "int8"}
    write(tmp_path, document("llava", VICUNA, cache=int8))
    with pytest.raises(UsageError, match="a cache in int8 has no mask frame_block"):
        read_config(tmp_path, asked(temporal=frame_block))
    write(tmp_path, document("llava", VICUNA, cache=int8, temporal=frame_block))
    with pytest.raises(CheckpointError, match="a cache in int8 has no mask frame_block"):
        read_config(tmp_path)


def test_a_flag_that_contradicts_the_checkpoint_is_an_error(tmp_path: Path) -> None:
    values = document("llava", VICUNA, temporal={"gamma": 0.5, "mask": "causal"})
    with pytest.raises(UsageError, match=r"gamma: 0\.25 asked for, 0\.5 in the check") as caught:
        read_config(write(tmp_path, values), asked(temporal={"gamma": 0.25, "mask": "causal"}))
    assert "mask" not in str(caught.value)


def test_all_contradictions_are_named_at_once(tmp_path: Path) -> None:
    """LLaVA-NeXT-Video states its pooling by its family, whether its file does or not."""
    values = document("llava_next_video", VICUNA, vision_feature_select_strategy="default")
    flags = asked(
        temporal={"gamma": 0.5}, pooling={"stride": 4, "mode": "max"}, vision={"features": "full"}
    )
    with pytest.raises(UsageError) as caught:
        read_config(write(tmp_path, values), flags)
    _, *lines = str(caught.value).splitlines()
    assert [line.strip() for line in lines] == [
        "pooling.mode: max asked for, average in the checkpoint",
        "pooling.stride: 4 asked for, 2 in the checkpoint",
        "vision.features: full asked for, default in the checkpoint",
    ]


@pytest.mark.parametrize("flags", [{"gamma": -1}, {"mask": "round"}, {"gama": 1.0}])
def test_a_wrong_flag_is_a_usage_error(tmp_path: Path, flags: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="the command line"):
        read_config(write(tmp_path, DOCUMENTS["llava 1.5"]), asked(temporal=flags))


UNSUPPORTED = {
    "vision_feature_layer": {"vision_feature_layer": [-2, -5]},
    "vision_feature_select_strategy": {"vision_feature_select_strategy": "cls"},
    "projector_hidden_act": {"projector_hidden_act": "relu"},
    "spatial_pool_mode": {"spatial_pool_mode": "conv"},
    "quantization_config": {"quantization_config": {"quant_method": "bitsandbytes"}},
    "auto_map": {"auto_map": {"AutoModel": "modeling.Evil"}},
    "vision_config.model_type": {"vision_config": CLIP | {"model_type": "siglip_vision_model"}},
    "vision_config.num_channels": {"vision_config": CLIP | {"num_channels": 4}},
    "vision_config.hidden_act": {"vision_config": CLIP | {"hidden_act": "relu"}},
    "text_config.model_type": {"text_config": {"model_type": "qwen2"}},
    "text_config.hidden_act": {"text_config": VICUNA | {"hidden_act": "gelu"}},
    "text_config.quantization_config": {"text_config": VICUNA | {"quantization_config": {}}},
    "text_config.sliding_window": {"text_config": {"model_type": "mistral"}},
    "rope_type": {"text_config": VICUNA | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}},
    "partial_rotary_factor": {"text_config": VICUNA | {"partial_rotary_factor": 0.5}},
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_not_supported_is_named(tmp_path: Path, name: str) -> None:
    write(tmp_path, DOCUMENTS["llava 1.5"] | UNSUPPORTED[name])
    with pytest.raises(CheckpointError, match=f"not supported:\n  .*{name}"):
        read_config(tmp_path)


def test_all_that_is_not_supported_is_named_at_once(tmp_path: Path) -> None:
    write(tmp_path, DOCUMENTS["llava 1.5"] | UNSUPPORTED["auto_map"] | UNSUPPORTED["rope_type"])
    with pytest.raises(CheckpointError, match=r"auto_map(.|\n)*rope_type"):
        read_config(tmp_path)


def test_a_window_longer_than_the_context_changes_nothing(tmp_path: Path) -> None:
    text = MISTRAL | {"sliding_window": 32768}
    assert read_config(write(tmp_path, document("llava_next", text))).model.text.head_dim == 128


WRONG = {
    "not LLaVA": ({"model_type": "bert"}, "model_type 'bert', expected one of llava, llava_next"),
    "no model_type": ({}, "model_type None"),
    "original format": ({"model_type": "llava", "mm_vision_tower": "x"}, "original format"),
    "not an object": ([], "holds list"),
    "sub-config": ({"model_type": "llava", "text_config": 5}, "text_config: .* not 5"),
    "a word for a number": (document("llava", VICUNA | {"hidden_size": "x"}), "hidden_size: .*'x'"),
    "no heads": (document("llava", VICUNA | {"num_attention_heads": 0}), "num_attention_heads"),
    "odd heads": (document("llava", VICUNA | {"num_key_value_heads": 5}), "not a multiple"),
    "zero heads of keys": (document("llava", VICUNA | {"num_key_value_heads": 0}), "greater than"),
    "image size": ({"model_type": "llava", "vision_config": {"patch_size": 15}}, "not a multiple"),
    "layer": (document("llava", VICUNA, vision_feature_layer=-40), "outside the tower"),
    "stride": (document("llava", VICUNA, pooling={"stride": 0}), r"`pooling` in .*\n.*stride"),
    "class token pooled": (
        document("llava", VICUNA, vision_feature_select_strategy="full"),
        "class token cannot be pooled",
    ),
    "pooling": (document("llava", VICUNA, pooling={"mode": "sum"}), r"`pooling` in .*\n.*mode"),
    "stride of next video": (
        document("llava_next_video", VICUNA, spatial_pool_stride=0),
        r"`pooling` in .*\n.*stride",
    ),
    "stride beyond the grid": (
        document("llava", VICUNA, pooling={"stride": 25}),
        "exceeds the 24 patches",
    ),
    "temporal": (document("llava", VICUNA, temporal={"gama": 1}), r"`temporal` in .*\n.*gama"),
    "rope": (
        document("llava", VICUNA | {"rope_scaling": {"type": "linear", "fctor": 2}}),
        "text.rope.fctor",
    ),
    "token": (document("llava", VICUNA, image_token_index=-200), "image_token"),
    "end": (document("llava", VICUNA | {"eos_token_id": None}), "eos_token_id is None"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_values_are_named(tmp_path: Path, case: str) -> None:
    values, message = WRONG[case]
    with pytest.raises(CheckpointError, match=message) as caught:
        read_config(write(tmp_path, values))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_config_that_is_not_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json is not JSON"):
        read_config(tmp_path)
