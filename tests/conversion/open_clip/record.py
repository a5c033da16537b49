"""Written with open_clip 3.3 and timm: what timm's names stand for, and small models with what open_clip computes.

    PYTHONPATH=tests OTHER/bin/python tests/conversion/open_clip/record.py

OTHER is an environment with this package, open_clip_torch and timm. Writes `timm_towers.json` and `recorded/` here.
"""

import json
import shutil
from pathlib import Path

import torch

import support.torchvision_shim  # noqa: F401 - before the peers


HERE = Path(__file__).parent
TOWER = {"embed_dim": 16, "depth": 1, "num_heads": 2, "mlp_ratio": 2.0, "patch_size": 8, "img_size": 32}
NAFLEX = {**{key: value for key, value in TOWER.items() if key != "img_size"}, "pos_embed_grid_size": [4, 4]}
TEXT = {
    "context_length": 8,
    "vocab_size": 50,
    "width": 16,
    "heads": 4,
    "layers": 1,
    "no_causal_mask": True,
    "pool_type": "last",
    "proj_bias": True,
}
EPS, TANH = {"norm_kwargs": {"eps": 1e-6}}, {"act_kwargs": {"approximate": "tanh"}}
CASES = {  # what is set on timm's tower, text_cfg, model_cfg
    "exact": (TOWER, {**TEXT, **EPS}, {"init_logit_bias": -10}),
    "tanh": ({**TOWER, "act_layer": "gelu_tanh"}, {**TEXT, **EPS, **TANH}, {"init_logit_bias": -10}),
    "defaults": (TOWER, {**TEXT, "pool_type": "first", "mlp_ratio": 2.7}, {}),
    "quick": ({**TOWER, "num_heads": 4, "act_layer": "quick_gelu"}, {**TEXT, **EPS}, {"quick_gelu": True}),
    "naflex": ({**NAFLEX, "pos_embed_interp_mode": "bilinear"}, {**TEXT, **EPS, "proj_type": "none"}, {}),
}


def facts(name: str) -> dict:
    """Of a tower, by the modules that timm builds."""
    import timm

    model = timm.create_model(name, num_classes=0, device="meta")
    block, naflex = model.blocks[0], name.startswith("naflex")
    norms = {type(m).__name__ + f" {m.eps}" for m in model.modules() if isinstance(m, torch.nn.LayerNorm)}
    activations = {str(block.mlp.act), str(model.attn_pool.mlp.act)}
    assert len(norms) == len(activations) == 1, (norms, activations)
    assert block.attn.num_heads == model.attn_pool.num_heads
    (eps,) = {m.eps for m in model.modules() if isinstance(m, torch.nn.LayerNorm)}
    grid = model.embeds.pos_embed.shape[1] if naflex else None
    return {
        "hidden_size": model.embed_dim,
        "num_hidden_layers": len(model.blocks),
        "intermediate_size": block.mlp.fc1.out_features,
        "num_attention_heads": block.attn.num_heads,
        "patch_size": model.embeds.patch_size[0] if naflex else model.patch_embed.patch_size[0],
        "image_size": None if naflex else model.patch_embed.img_size[0],
        "num_patches": grid and grid**2,
        "activation": activations.pop(),
        "layer_norm_eps": eps,
        "interpolation": model.embeds.pos_embed_interp_mode if naflex else None,
    }


def record(name: str, timm_arguments: dict, text: dict, model: dict) -> None:
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(0)
    folder, naflex = HERE / "recorded" / name, "pos_embed_grid_size" in timm_arguments
    folder.mkdir(parents=True)
    stem = "naflexvit_base_patch16_siglip" if naflex else "vit_base_patch16_siglip_224"
    tower = {"architecture": stem, "num_classes": 0, "model_args": timm_arguments, "pretrained_cfg": {}}
    (folder / "config.json").write_text(json.dumps(tower, indent=1))
    vision = {"image_size": 32, "timm_pool": "map", "timm_proj": "none"}
    settings = {"embed_dim": 16, "custom_text": True, **model, "vision_cfg": vision, "text_cfg": text}
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash"}

    def write(place: str) -> None:
        vision["timm_model_name"] = f"local-dir:{place}"
        content = {"model_cfg": settings, "preprocess_cfg": preprocess}
        (folder / "open_clip_config.json").write_text(json.dumps(content, indent=1))

    write(str(folder))
    made = open_clip.create_model(f"local-dir:{folder}").eval()
    with torch.no_grad():
        for parameter in made.parameters():  # larger than usual, so that activations and epsilons show
            parameter.add_(torch.randn(parameter.shape) * 0.3)
        inputs = {"images": torch.rand(2, 3, 32, 48 if naflex else 32) * 2 - 1, "texts": torch.randint(50, (3, 8))}
        outputs = {"image": made.encode_image(inputs["images"]), "text": made.encode_text(inputs["texts"])}
    save_file(
        {key: value.contiguous() for key, value in made.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    save_file({key: value.contiguous() for key, value in (inputs | outputs).items()}, folder / "io.safetensors")
    write(".")


def main() -> None:
    import timm

    names = [*timm.list_models("vit_*_siglip_[0-9]*"), *timm.list_models("naflexvit_*_siglip")]
    text = json.dumps({name: facts(name) for name in names}, indent=1)
    (HERE / "timm_towers.json").write_text(text + "\n")
    shutil.rmtree(HERE / "recorded", ignore_errors=True)
    for name, case in CASES.items():
        record(name, *case)


if __name__ == "__main__":
    main()
