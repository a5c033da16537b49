"""The models that a recipe starts from: whether they are there, before anything is loaded."""

import difflib
from pathlib import Path

from huggingface_hub.utils import validate_repo_id
from transformers import AutoConfig

from .fields import ModelArguments


SOURCES = ("model_name_or_path", "vision_name_or_path", "text_name_or_path", "tokenizer_name_or_path")
CONFIGURED = SOURCES[:3]
OF_A_MODEL, OF_A_TOKENIZER, OF_AN_ADAPTER = "config.json", "tokenizer_config.json", "adapter_config.json"


def check_sources(model: ModelArguments) -> None:
    """Check that every folder or name of the Hub that a recipe starts from is one.

    Raises:
        OSError: naming the field, and the nearest folder.
        ValueError: what is there is no model.
    """
    for field in SOURCES:
        name = getattr(model, field)
        if name is None:
            continue
        wanted = OF_A_MODEL if field in CONFIGURED else OF_A_TOKENIZER
        folder = is_folder(field, name, wanted)
        if field in CONFIGURED:
            check_configuration(field, name, folder)


def is_folder(field: str, name: str, wanted: str) -> bool:
    """Whether a source is a folder of this machine; if not, it can be a name of the Hub.

    Raises:
        OSError: it is meant to be a folder and is none, or one without the wanted file.
    """
    path = Path(name)
    if path.is_dir():
        if not (path / wanted).is_file() and not (path / OF_A_MODEL).is_file():
            if (path / OF_AN_ADAPTER).is_file():
                raise FileNotFoundError(
                    f"{field}={name!r} is an adapter of PEFT: merge it into its model (merge_and_unload), save that, "
                    "and begin with it"
                )
            raise FileNotFoundError(f"{field}={name!r}: the folder has no {wanted}, so it is no saved model")
        return True
    if path.exists():
        raise NotADirectoryError(f"{field}={name!r} is a file: give the folder of a saved model, or a name of the Hub")
    like_a_path = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if like_a_path or (path.parent.name and path.parent.is_dir()):
        raise FileNotFoundError(f"{field}={name!r}: there is no such folder{nearest(path)}")
    return False


def check_configuration(field: str, name: str, folder: bool) -> None:
    """
    Raises:
        OSError: the Hub has no model of this name, or cannot be asked.
        ValueError: a configuration that is damaged, or of something else.
    """
    try:
        if not folder:
            validate_repo_id(name)
        AutoConfig.from_pretrained(name)
    except OSError as error:
        if folder:
            raise OSError(f"{field}={name!r}: its configuration cannot be read: {error}") from error
        why = nearest(Path(name)) or f": {str(error).strip().partition('. ')[0]}"
        raise OSError(f"{field}={name!r} is no folder, and no model of the Hub that can be read{why}") from error
    except ValueError as error:
        raise ValueError(f"{field}={name!r}: its configuration cannot be read: {error}") from error


def nearest(path: Path) -> str:
    """The folder beside a path that is named most like it, as a question."""
    parent = path.parent
    names = [entry.name for entry in parent.iterdir() if entry.is_dir()] if parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {str(parent / near[0])!r}?" if near else ""
