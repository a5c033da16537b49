"""Colors of tokens: alike where tokens are, apart where they are not."""

import numpy as np
import torch

from modeling_siglip_ext.evaluation.pictures.features import feature_colors


def test_what_is_alike_is_of_one_color():
    kinds = torch.tensor([[0, 0, 1, 1], [2, 1, 0, 2]])
    tokens = torch.eye(3)[kinds] @ torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    images = feature_colors(tokens, 20)
    assert [image.size for image in images] == [(20, 20)] * 2
    colors = np.stack([np.asarray(image)[5::10, 5::10].reshape(4, 3) for image in images])
    seen = {kind: {tuple(color) for color in colors[kinds == kind]} for kind in range(3)}
    assert all(len(own) == 1 for own in seen.values())
    assert len(set.union(*seen.values())) == 3
    assert np.array_equal(np.asarray(feature_colors(tokens, 20)[0]), np.asarray(images[0]))
