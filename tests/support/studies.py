"""Runs of studies for the processes of a pool, which import `support` wherever pytest was started from."""

from modeling_siglip_ext.training.studies.experiment import Settings


def fails_at_seed_1(settings: Settings, device: str) -> dict[str, float]:
    if settings.seed == 1:
        raise RuntimeError("out of memory")
    return {f"held_out_{way}_recall@1": 0.5 for way in ("image_to_text", "text_to_image")}
