"""Batches with one thing wrong each, and how the refusal begins; rank 2 of four is the one that sends them."""

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Change:
    """One field of a batch replaced; an object of a module, so that ranks can be given it."""

    what: str

    def __call__(self, batch):
        return replace(batch, **getattr(self, self.what)(batch))

    def negative_id(self, batch):
        return {"experts_TK": batch.experts_TK.clone().index_fill_(1, torch.tensor([2]), -1)}

    def id_beyond_the_experts(self, batch):
        return {"experts_TK": batch.experts_TK.clone().index_fill_(0, torch.tensor([1]), 16)}

    def int64_ids(self, batch):
        return {"experts_TK": batch.experts_TK.long()}

    def turned_ids(self, batch):
        return {"experts_TK": batch.experts_TK.t().contiguous().t()}

    def numpy_ids(self, batch):
        return {"experts_TK": batch.experts_TK.numpy()}

    def lists_of_weights(self, batch):
        return {"weights_TK": batch.weights_TK.tolist()}

    def bare_rows(self, batch):
        return {"payloads": batch.payloads[0]}

    def missing_rows(self, batch):
        return {"payloads": (None,)}

    def rows_elsewhere(self, batch):
        return {"payloads": (batch.payloads[0].to("meta"),)}

    def size_in_words(self, batch):
        return {"runtime_max_tokens": "6"}

    def mask_in_words(self, batch):
        return {"active_ranks": ("all", [1])}

    def another_top_k(self, batch):
        return {"experts_TK": batch.experts_TK[:, :3].contiguous()}

    def bf16_weights(self, batch):
        return {"weights_TK": batch.weights_TK.bfloat16()}

    def fewer_weights(self, batch):
        return {"weights_TK": batch.weights_TK[:-1]}

    def more_tokens_than_announced(self, batch):
        return {"runtime_max_tokens": batch.tokens - 1}

    def more_announced_than_opened_for(self, batch):
        return {"runtime_max_tokens": 9}

    def none_announced(self, batch):
        return {"runtime_max_tokens": 0}

    def others_announced(self, batch):
        return {"runtime_max_tokens": batch.runtime_max_tokens + 1}

    def no_payload(self, batch):
        return {"payloads": ()}

    def surplus_payload(self, batch):
        return {"payloads": (*batch.payloads, torch.zeros(batch.tokens, 16, dtype=torch.uint8))}

    def fp16_rows(self, batch):
        return {"payloads": (batch.payloads[0].half(),)}

    def narrower_rows(self, batch):
        return {"payloads": (batch.payloads[0][:, :64].contiguous(),)}

    def turned_rows(self, batch):
        return {"payloads": (batch.payloads[0].t().contiguous().t(),)}

    def fewer_rows(self, batch):
        return {"payloads": (batch.payloads[0][:-1],)}

    def unreserved_statistics(self, batch):
        return {"eplb_stats_E": torch.zeros(16, dtype=torch.int32)}

    def mask_without_the_option(self, batch):
        return {"active_ranks": (0, 1, 2, 3)}

    def mask_of_strangers(self, batch):
        return {"active_ranks": (0, 1, 2, 3, 4)}

    def mask_in_another_order(self, batch):
        return {"active_ranks": (3, 2, 1, 0)}


BEGINNINGS = {
    "negative_id": "ep_rank 2: expert ids span -1 to",
    "id_beyond_the_experts": "ep_rank 2: expert ids span",
    "int64_ids": "ep_rank 2: experts_TK is [6, 4] of int64",
    "turned_ids": "ep_rank 2: experts_TK is non-contiguous [6, 4]",
    "numpy_ids": "ep_rank 2: experts_TK is a ndarray: it must be a torch.Tensor",
    "lists_of_weights": "ep_rank 2: weights_TK is a list: it must be a torch.Tensor",
    "bare_rows": "ep_rank 2: payloads is a Tensor: it must be a tuple of tensors",
    "missing_rows": "ep_rank 2: payload 0 is a NoneType: it must be a torch.Tensor",
    "rows_elsewhere": "ep_rank 2: payload 0 is on meta: this rank's transport takes tensors on",
    "size_in_words": "ep_rank 2: runtime_max_tokens is '6': it must be a whole number",
    "mask_in_words": "ep_rank 2: active_ranks is ('all', [1]): it must be a tuple of ep_ranks",
    "another_top_k": "ep_rank 2: experts_TK is [6, 3] of int32",
    "bf16_weights": "ep_rank 2: weights_TK is [6, 4] of bfloat16",
    "fewer_weights": "ep_rank 2: experts_TK has 6 tokens but weights_TK 5",
    "more_tokens_than_announced": "ep_rank 2: 6 tokens but runtime_max_tokens is 5",
    "more_announced_than_opened_for": "ep_rank 2: runtime_max_tokens is 9: it must lie in [1, max_tokens = 8]",
    "none_announced": "ep_rank 2: runtime_max_tokens is 0",
    "others_announced": "runtime_max_tokens is 6 on ep_rank 0 but 7 on ep_rank 2",
    "no_payload": "ep_rank 2: 0 payloads: format bf16",
    "surplus_payload": "ep_rank 2: 2 payloads: format bf16",
    "fp16_rows": "ep_rank 2: payload 0 is torch.float16: format bf16",
    "narrower_rows": "ep_rank 2: payload 0 is [6, 64] of bfloat16",
    "turned_rows": "ep_rank 2: payload 0 is non-contiguous [6, 128]",
    "fewer_rows": "ep_rank 2: payload 0 is [5, 128]",
    "unreserved_statistics": "ep_rank 2: eplb_stats_E is [16] of int32: it must be [0]",
    "mask_without_the_option": "ep_rank 2: active_ranks given but enable_rank_mask is False",
    "mask_of_strangers": "ep_rank 2: active_ranks (0, 1, 2, 3, 4): each must lie in [0, ep_size = 4)",
    "mask_in_another_order": "active_ranks is None on ep_rank 0 but (3, 2, 1, 0) on ep_rank 2",
}
WITH_MASKS = ("mask_of_strangers", "mask_in_another_order")
WITHOUT_MASKS = ("mask_without_the_option",)


def changes(*, masks):
    """By name, for a transport that was opened with or without rank masks."""
    left_out = WITHOUT_MASKS if masks else WITH_MASKS
    return {name: Change(name) for name in BEGINNINGS if name not in left_out}
