"""Reproducers of faults in FlashInfer's all-to-all kernels, each one file that needs FlashInfer and torch alone."""
