"""The code that travels with a model saved in `siglip_ext` form, for `trust_remote_code` where this package is absent.

transformers flattens remote code to base names, so the bundle is a flat folder of files that import each other as
`from .name import`. The loss in it is the eager one, in one file.
"""

from pathlib import Path

from transformers.configuration_utils import PreTrainedConfig

from .files import write_text


MODULES = (
    "configuration_siglip_ext",
    "cpu_products",
    "embeddings",
    "files",
    "foreign",
    "gpu",
    "image_budget",
    "images",
    "initialisation",
    "inputs",
    "layers",
    "loading",
    "losses",
    "modeling_siglip_ext",
    "naflex",
    "naflex_form",
    "own_tokenizer",
    "packing",
    "pipeline_siglip_ext",
    "pooling",
    "positions",
    "remote_code",
    "sentence_embedding",
    "stock",
    "texts",
)
# Every Auto class finds its class in the modeling file, the configurations too: transformers loads each file named
# here as a copy of its own, and two files would bring two different configuration classes.
ENTRY = "modeling_siglip_ext"
CLASSES = {  # model type: the class behind each Auto class
    "siglip_ext": {
        "AutoConfig": "SiglipExtConfig",
        "AutoModel": "SiglipExtModel",
        "AutoModelForZeroShotImageClassification": "SiglipExtModel",
        "AutoModelForImageClassification": "SiglipExtForImageClassification",
    },
    "siglip_ext_text_model": {"AutoConfig": "SiglipExtTextConfig", "AutoModel": "SiglipExtTextModel"},
    "siglip_ext_vision_model": {"AutoConfig": "SiglipExtVisionConfig", "AutoModel": "SiglipExtVisionModel"},
}


def pipelines() -> dict[str, dict]:
    """`custom_pipelines` of a dual model: what `pipeline()` loads with trust_remote_code."""
    # this import is also how transformers comes to copy the pipeline's files to where a loaded model's code lies
    from .pipeline_siglip_ext import TASK, SiglipExtZeroShotImageClassificationPipeline

    implementation = f"pipeline_siglip_ext.{SiglipExtZeroShotImageClassificationPipeline.__name__}"
    return {TASK: {"impl": implementation, "pt": ["AutoModelForZeroShotImageClassification"], "type": "multimodal"}}


def source_file(module: str) -> Path:
    """Where a module of the bundle lies, in this package or in a bundle that was loaded itself."""
    here = Path(__file__).parent
    packaged = here / "losses" / "eager.py"
    return packaged if module == "losses" and packaged.exists() else here / f"{module}.py"


def add_remote_code(config: PreTrainedConfig, folder: str | Path) -> None:
    """Copy the bundle into the folder and name its classes in `config.auto_map`."""
    for module in MODULES:
        write_text(Path(folder) / f"{module}.py", source_file(module).read_text(encoding="utf-8"))
    config.auto_map = {auto: f"{ENTRY}.{name}" for auto, name in CLASSES[config.model_type].items()}
    if config.model_type == "siglip_ext" and "SiglipExtForImageClassification" not in (config.architectures or ()):
        config.custom_pipelines = pipelines()
