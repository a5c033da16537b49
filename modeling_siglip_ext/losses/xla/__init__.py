"""The losses on XLA devices; imported only where a tensor lies on one."""
