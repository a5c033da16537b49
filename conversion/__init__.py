"""JAX (big_vision) and other checkpoints to safetensors and back; publishing to the Hub."""

if __name__ == "conversion":
    raise ImportError(
        "this room is imported as modeling_siglip_ext.conversion; run `pip install -e .` in the repository first"
    )
