"""The SigLIP paper's studies on the bundled emoji: `siglip-ext-train study NAME`."""
