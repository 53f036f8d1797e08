"""Mode `pico`: a one-sided all-to-all in one short Triton file, between CPU processes and on GPUs.

`kernels` is the file to read. The workspace is FlashInfer's one-sided one with a tail: a flag for each block of rows,
and a few words. Dispatch lands where FlashInfer's does: replaying the recorded rounds of FlashInfer's kernels leaves
the same bytes in every region. Rounds that pull take the experts' rows from the combine region of the workspace; larger
rounds push, from wherever the experts wrote them, which saves a copy.
"""
