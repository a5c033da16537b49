"""Zero-shot classification, retrieval and probes as in the SigLIP papers."""

if __name__ == "evaluation":
    raise ImportError(
        "this room is imported as modeling_siglip_ext.evaluation; run `pip install -e .` in the repository first"
    )
