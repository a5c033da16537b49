"""What `modeling_siglip_ext.conversion` exports."""

import importlib
import sys

import pytest

import modeling_siglip_ext
from modeling_siglip_ext import conversion
from modeling_siglip_ext.conversion import converter


def test_every_name_is_there():
    assert {name for name in conversion.__all__ if not callable(getattr(conversion, name))} == set()
    assert conversion.convert is converter.convert
    assert conversion.find("siglip2_b16_naflex") is conversion.entries()["siglip2_b16_naflex"]
    with pytest.raises(AttributeError, match="no attribute 'unheard_of'"):
        conversion.unheard_of  # noqa: B018 - asking for it is the test


def test_the_face_alone_imports_no_reader(monkeypatch):
    face = "modeling_siglip_ext.conversion"
    for name in [name for name in sys.modules if name == face or name.startswith(f"{face}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(modeling_siglip_ext, "conversion")
    importlib.import_module(face)
    assert [name for name in sys.modules if name.startswith(face)] == [face]
