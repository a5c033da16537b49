"""The folder that `from_pretrained` loads: opened, its processor, and the report of what it was made from."""
