"""What `modeling_siglip_ext.conversion` exports."""

import subprocess
import sys

import pytest

from modeling_siglip_ext import conversion
from modeling_siglip_ext.conversion import converter


def test_every_name_is_there():
    assert {name for name in conversion.__all__ if not callable(getattr(conversion, name))} == set()
    assert conversion.convert is converter.convert
    assert conversion.find("siglip2_b16_naflex") is conversion.entries()["siglip2_b16_naflex"]
    with pytest.raises(AttributeError, match="no attribute 'unheard_of'"):
        conversion.unheard_of  # noqa: B018


def test_the_face_alone_imports_no_reader():
    code = (
        "import sys\nimport modeling_siglip_ext.conversion\n"
        "print([name for name in sys.modules if name.startswith('modeling_siglip_ext.conversion.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.strip() == "[]"
