"""Are our towers as fast as the stock ones? B/16 with the same weights, forward and forward + backward.

    python benchmarks/towers.py            # prints the table and writes benchmarks/results/towers.md

Each line is the ratio of our time to stock's over 20 alternating pairs. The bars: for a tower the lower end of the
95 % interval of the median stays at or below 1.02; resizing NaFlex positions for 64 different grids takes at most 0.2.
"""

import argparse
import random

import torch
from report import RESULTS, publish, table, versions
from timing import Ratio, alternate
from transformers import PreTrainedModel, Siglip2Model, SiglipModel
from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionEmbeddings

from modeling_siglip_ext import SiglipExtConfig, SiglipExtModel, native_config
from modeling_siglip_ext.positions import resize_positions


def against_stock(
    name: str, stock: PreTrainedModel, ours: PreTrainedModel, inputs: dict, rounds: int
) -> dict[str, Ratio]:
    """Forward, and forward with the loss and backward, of two dual models with the same weights."""
    stock.load_state_dict(ours.state_dict())

    def forward(model):
        with torch.no_grad():
            model(**inputs, return_loss=False)

    def step(model):
        model(**inputs, return_loss=True).loss.backward()
        model.zero_grad(set_to_none=True)

    lines = {}
    for what, run in {"forward": forward, "forward + backward": step}.items():
        for model in (stock, ours):
            model.train(run is step)
        lines[f"{name}, {what}"] = alternate(lambda run=run: run(ours), lambda run=run: run(stock), rounds)
    return lines


def texts(config: SiglipExtConfig, batch: int) -> torch.Tensor:
    return torch.randint(config.text_config.vocab_size, (batch, config.text_config.max_position_embeddings))


def fixed_resolution(batch: int = 4, rounds: int = 20) -> dict[str, Ratio]:
    """Our dual model against stock `SiglipModel`."""
    config = SiglipExtConfig()
    inputs = {"pixel_values": torch.randn(batch, 3, 224, 224), "input_ids": texts(config, batch)}
    models = SiglipModel(native_config(config)), SiglipExtModel(config)
    return against_stock(f"B/16-224, batch {batch}", *models, inputs, rounds)


def different_grids(count: int, tokens: int = 256, seed: int = 0) -> torch.Tensor:
    """Grids of patches as NaFlex images have them: of many aspect ratios, each filling most of the token budget."""
    draw = random.Random(seed)
    grids: set[tuple[int, int]] = set()
    while len(grids) < count:
        height = round(tokens**0.5 * 2 ** draw.uniform(-2, 2))
        grids.add((height, max(2, tokens // height - draw.randint(0, 2))))
    return torch.tensor(sorted(grids))


def naflex(batch: int = 4, rounds: int = 20) -> dict[str, Ratio]:
    """Resized positions against the stock loop, and our dual NaFlex model against stock `Siglip2Model`."""
    table = torch.randn(256, 768)
    grids = different_grids(64)

    def stock_loop():
        return Siglip2VisionEmbeddings.resize_positional_embeddings(table.view(16, 16, -1), grids, 256)

    torch.testing.assert_close(resize_positions(table, grids, 256), stock_loop(), rtol=0, atol=1e-6)
    lines = {
        "NaFlex positions of 64 grids, 256 tokens": alternate(
            lambda: resize_positions(table, grids, 256), stock_loop, rounds
        )
    }
    config = SiglipExtConfig(vision_config={"naflex": True})
    shapes = different_grids(batch)
    inputs = {
        "pixel_values": torch.randn(batch, 256, 768),
        "pixel_attention_mask": (torch.arange(256) < shapes.prod(1, keepdim=True)).long(),
        "spatial_shapes": shapes,
        "input_ids": texts(config, batch),
    }
    models = Siglip2Model(native_config(config)), SiglipExtModel(config)
    return lines | against_stock(f"NaFlex B/16, 256 tokens, batch {batch}", *models, inputs, rounds)


def render(found: dict[str, Ratio]) -> list[str]:
    return [
        "# Towers against stock transformers",
        "",
        f"{versions(f'{torch.get_num_threads()} threads', 'float32')}; "
        "ratio = ours / stock, median of alternating pairs with its 95 % interval.",
        "",
        *table(
            ("what", "ours, s", "stock, s", "ratio"),
            [[name, f"{r.seconds_a:.3f}", f"{r.seconds_b:.3f}", str(r)] for name, r in found.items()],
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=20, help="alternating pairs")
    args = parser.parse_args()
    found = fixed_resolution(args.batch, args.rounds) | naflex(args.batch, args.rounds)
    publish(RESULTS / "towers.md", render(found))


if __name__ == "__main__":
    main()
