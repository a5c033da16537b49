"""The model card of an export: how to run it, and what was kept."""

from math import exp
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from modeling_siglip_ext.files import write_text
from modeling_siglip_ext.hub.card import CARD, NOTHING_MEASURED, mark, template, with_metadata
from modeling_siglip_ext.hub.facts import Example, facts_of
from siglip_ext_runtime.settings import ExportSettings

from .report import ExportReport, TowerReport
from .towers import TEXT, VISION


ENGINES = {"onnx": "ONNX", "openvino": "OpenVINO", "aoti": "AOTInductor"}
INHERITED = ("license", "license_name", "license_link", "language", "base_model", "datasets")


def figures_of(tower: TowerReport) -> dict[str, str]:
    """What the card's table says of a file."""
    parity, memory = tower.parity, tower.peak_memory
    return {
        "size": f"{tower.bytes / 1e6:,.1f} MB",
        "least cosine": f"{parity.cosine_least:.7f}",
        "mean cosine": f"{parity.cosine_mean:.7f}",
        "least cosine after centring": f"{parity.centred_cosine_least:.6f}",
        "largest difference of a component": f"{parity.largest_difference:.1e}",
        "largest difference between batches of 1 and of all": f"{parity.batch_largest_difference:.1e}",
        "torch's CPU time for one input, over this file's": f"{tower.cpu_time_ratio:.2f}",
        "memory of a process that runs it": "unknown" if memory is None else f"{memory / 1e6:,.0f} MB",
    }


def write_export_card(
    folder: Path, source: Path, settings: ExportSettings, report: ExportReport, backend: str = "onnx"
) -> None:
    """Write the card into an exported folder, which holds its configuration already.

    Args:
        source: the model's folder; licence, languages and base model are those of its card.
        backend: a key of `ENGINES`.

    Raises:
        ValueError: metadata of the model's card that the Hub would refuse.
    """
    towers = [figures_of(tower) for tower in report.towers.values()]
    name = f"{source.resolve().name}-{backend}"
    facts, bias = facts_of(folder), settings.logit_bias
    body = template("export").render(
        mark=mark(),
        name=name,
        source=source.resolve().name,
        engine=ENGINES[backend],
        backend=backend,
        settings=settings,
        report=report,
        facts=facts,
        example=Example(),
        texts=TEXT in report.towers and VISION in report.towers,
        scale="" if settings.logit_scale is None else f"{exp(settings.logit_scale):.4f}",
        bias="" if bias is None else f" {'plus' if bias > 0 else 'minus'} {abs(bias):.4f}",
        rows=[(label, [tower[label] for tower in towers]) for label in towers[0]],
        depends=any(tower.parity.batch_largest_difference > 1e-4 for tower in report.towers.values()),
        nothing_measured=NOTHING_MEASURED,
    )
    data = ModelCardData(
        library_name=backend, pipeline_tag=facts.task, tags=["siglip", "siglip-ext", backend], **inherited(source)
    )
    write_text(folder / CARD, with_metadata(body, data))


def inherited(source: Path) -> dict:
    """Metadata of the model's own card that hold for an export, too."""
    path = source / CARD
    if not path.is_file():
        return {}
    data = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict()
    return {name: data[name] for name in INHERITED if data.get(name) is not None}
