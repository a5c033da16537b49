"""Serving SigLIP-family models: an HTTP server, and the same encoder inside distributed engines."""

if __name__ == "serving":
    raise ImportError(
        "this room is imported as modeling_siglip_ext.serving; run `pip install -e .` in the repository first"
    )

from .batch_embedder import BatchEmbedder


__all__ = ["BatchEmbedder"]
