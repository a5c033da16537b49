"""big_vision's captioning decoder (`models/proj/cappa`), to ours and back, its blocks one by one or stacked.

Of a captioner's parameters these are all but `encoder/`, which is a plain ViT.
"""

from collections.abc import Mapping
from typing import Any

import torch

from modeling_siglip_ext.captioning import CaptionDecoder, CaptionDecoderConfig, TextFormat

from ..errors import CheckpointError
from ..name_map import SAME, Rule, from_torch, to_torch, unclaimed
from .names import DENSE, HEADS_IN, HEADS_OUT, LINEAR, NORM, SEQUENCE, entries, expand


PREFIX = "params/"
BLOCK, STACK = "decoder/EncDecBlock", "decoder/EncDecBlock/"
KERNEL_IN, KERNEL_OUT = (("weight", "kernel", HEADS_IN),), (("weight", "kernel", HEADS_OUT),)


def attention(ours: str, theirs: str) -> tuple:
    return (
        *entries(f"{ours}.q_proj", f"{theirs}/query", KERNEL_IN),
        *entries(f"{ours}.k_proj", f"{theirs}/key", KERNEL_IN),
        *entries(f"{ours}.v_proj", f"{theirs}/value", KERNEL_IN),
        *entries(f"{ours}.out_proj", f"{theirs}/out", KERNEL_OUT),
    )


def decoder_rules(config: CaptionDecoderConfig, stacked: bool) -> list[Rule]:
    """Every tensor of a decoder and the array it is made of; stacked arrays with their layers along the first axis."""
    norm = NORM if config.bias else (("weight", "scale", SAME),)
    linear = LINEAR if config.bias else (("weight", "kernel", DENSE),)
    heads = config.num_attention_heads
    ends = (
        ("position_embedding.weight", ("pos_embedding_decoder",), SEQUENCE),
        ("token_embedding.weight", ("decoder/EmbedTargets/embedding",), SAME),
        *entries("final_layer_norm", "decoder/LayerNorm", NORM),
        *entries("output", "decoder/LogitsDense", LINEAR),
    )
    block = (
        *entries("layer_norm1", "LayerNorm1", norm),
        *attention("self_attn", "SelfAttn"),
        *entries("layer_norm2", "LayerNorm2", norm),
        *attention("cross_attn", "CrossAttn"),
        *entries("layer_norm3", "LayerNorm3", norm),
        *entries("mlp.fc1", "MLP/Dense_0", linear),
        *entries("mlp.fc2", "MLP/Dense_1", linear),
    )
    rules = expand(ends, "", "", heads)
    for i in range(config.num_hidden_layers):
        source = STACK if stacked else f"{BLOCK}{i}/"
        rules += expand(block, f"layers.{i}.", source, heads, i if stacked else None)
    return rules


def decoder_arrays(arrays: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The decoder's part of a captioner's arrays, without prefix, stacked ones with their layers along the first axis.

    big_vision stacks a decoder's layers along the second axis, and a ViT's along the first.
    """
    own = {name.removeprefix(PREFIX): array for name, array in arrays.items()}
    own = {name: array for name, array in own.items() if name.startswith(("decoder/", "pos_embedding_decoder"))}
    return {name: array.movedim(1, 0) if name.startswith(STACK) else array for name, array in own.items()}


def describe_decoder(own: Mapping[str, torch.Tensor], **fields: Any) -> CaptionDecoderConfig:
    """The configuration that arrays as `decoder_arrays` gives them have.

    Raises:
        CheckpointError: they are not of a captioner.
    """
    stacked = any(name.startswith(STACK) for name in own)
    first = STACK if stacked else f"{BLOCK}0/"
    needed = {
        "output": "decoder/LogitsDense/kernel",
        "tokens": "decoder/EmbedTargets/embedding",
        "positions": "pos_embedding_decoder",
        "query": f"{first}SelfAttn/query/kernel",
        "image": f"{first}CrossAttn/key/kernel",
        "mlp": f"{first}MLP/Dense_0/kernel",
    }
    missing = [name for name in needed.values() if name not in own]
    if missing:
        raise CheckpointError(f"the checkpoint has no {missing[0]}: not a captioner of big_vision")
    shapes = {key: tuple(own[name].shape) for key, name in needed.items()}
    single = sum(name.startswith(BLOCK) and name.endswith("SelfAttn/query/kernel") for name in own)
    layers = shapes["query"][0] if stacked else single
    rest: dict[str, Any] = {"text_format": TextFormat(caption=""), **fields}  # CapPa has one task and no prefix
    width, words = shapes["output"]
    return CaptionDecoderConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=shapes["mlp"][-1],
        num_hidden_layers=layers,
        num_attention_heads=shapes["query"][-2],
        encoder_hidden_size=shapes["image"][-3],
        max_length=shapes["positions"][1],
        bias=f"{first}MLP/Dense_0/bias" in own,
        mask_token=shapes["tokens"][0] == words + 1,
        **rest,
    )


def decoder_from_big_vision(arrays: Mapping[str, torch.Tensor], **fields: Any) -> CaptionDecoder:
    """A decoder from a captioner's arrays, e.g. {"decoder/LogitsDense/kernel": ...}, with or without `params/`.

    Args:
        fields: of the configuration that arrays do not tell: `eos_token_id`, `pad_token_id`, `text_format`, `dropout`.

    Raises:
        CheckpointError: they are not of a captioner, some are missing, left over or of a wrong shape.
    """
    own = decoder_arrays(arrays)
    config = describe_decoder(own, **fields)
    rules = decoder_rules(config, any(name.startswith(STACK) for name in own))
    over = unclaimed(own, rules)
    missing = [slot.name for rule in rules for slot in rule.slots if slot.name not in own]
    if over or missing:
        raise CheckpointError(f"arrays of the decoder missing or left over: {', '.join((missing + over)[:5])}")
    with torch.device("meta"):
        decoder = CaptionDecoder(config)
    tensors = dict(to_torch(rules, own.__getitem__))
    wrong = [name for name, tensor in decoder.state_dict().items() if tensors[name].shape != tensor.shape]
    if wrong:
        raise CheckpointError(f"{wrong[0]} would have the shape {tuple(tensors[wrong[0]].shape)}")
    decoder.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, assign=True)
    return decoder.eval()


def decoder_to_big_vision(decoder: CaptionDecoder, *, stacked: bool = False) -> dict[str, torch.Tensor]:
    """A decoder's arrays under big_vision's names, without `params/`.

    Args:
        stacked: one array for all layers, as `scan=True` has them.
    """
    tensors = {name: tensor.detach() for name, tensor in decoder.state_dict().items()}
    arrays = from_torch(decoder_rules(decoder.config, stacked), tensors)
    return {
        name: array.movedim(0, 1).contiguous() if name.startswith(STACK) else array.clone() for name, array in arrays
    }
