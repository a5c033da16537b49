"""What `benchmarks/gpu.py` measures, a file a subject, and how."""
