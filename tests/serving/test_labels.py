"""What becomes of labels for which the model gives no vector, as in float16 when it overflows."""

import asyncio

import numpy as np
import pytest


pytest.importorskip("fastapi", reason="the server needs siglip-ext[serve]")

from modeling_siglip_ext.serving.batcher import Outcome
from modeling_siglip_ext.serving.labels import LabelEmbeddings, LabelError


def test_a_label_without_a_vector_is_named():
    async def encode(items):
        return [
            Outcome(None, error="not finite") if "bad" in item.content else Outcome(np.array([0.6, 0.8], np.float32))
            for item in items
        ]

    labels = LabelEmbeddings(encode, batch=2)
    good = asyncio.run(labels.of((("a", "b", "c"), ("{}.",))))
    np.testing.assert_allclose(good.embeds, [[0.6, 0.8]] * 3, atol=1e-6)
    with pytest.raises(LabelError, match=r"'bad\.': not finite"):
        asyncio.run(labels.of((("a", "b", "bad"), ("{}.",))))
    assert not labels.running
