"""Transports on GPUs: FlashInfer's one-sided and two-sided kernels on symmetric memory."""
