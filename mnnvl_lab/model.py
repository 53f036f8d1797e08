"""MoE shapes of named models, and the formats in which a token travels: what dispatch and combine have to move."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from mnnvl_lab.errors import Refused, choose, named_arguments, require_count, shown

DTYPE_BYTES = MappingProxyType({"bfloat16": 2, "float16": 2, "float32": 4, "float8_e4m3fn": 1, "uint8": 1})


@dataclass(frozen=True, kw_only=True)
class Model:
    """The numbers of a model that expert parallelism sees.

    Attributes:
        name: key in `MODELS`.
        hidden: H, values of the row that is dispatched. In a latent MoE (LatentMoE) that is the latent size: each rank
            projects its tokens to it before dispatch, and back after combine.
        experts: E, routed experts of a layer (shared experts are not dispatched).
        top_k: K, routed experts that a token chooses.
        moe_layers: layers that dispatch and combine, without multi-token-prediction layers.
        kv_bytes_per_token: bytes of key-value cache that one more token of context takes in bf16, over all layers and
            before any split over TP; None where no source gives it. With multi-head latent attention (MLA)
            `(kv_lora_rank + qk_rope_head_dim) * layers * 2`, with grouped-query attention (GQA)
            `2 * kv_heads * head_dim * layers * 2`. Only layers of full attention count: linear attention keeps a
            state of fixed size, sliding-window and chunked attention stop growing at their window. The index keys of
            sparse attention come on top.
        source: where the numbers stand.
        expert_inner: inner size of a routed expert (`moe_intermediate_size`); None where it is not known.
        expert_matrices: weight matrices `[H, expert_inner]` of an expert: 3 with a gate, 2 without.
        parameters: all parameters of the model, as its card states them; None where they are not known.
        model_hidden: hidden size of the rest of the model where it is not `hidden` (latent MoE); else None.
    """

    name: str
    hidden: int
    experts: int
    top_k: int
    moe_layers: int
    kv_bytes_per_token: int | None
    source: str
    expert_inner: int | None = None
    expert_matrices: int = 3
    parameters: float | None = None
    model_hidden: int | None = None

    def __post_init__(self):
        for field in ("hidden", "experts", "top_k", "moe_layers", "expert_matrices"):
            require_count(field, getattr(self, field))
        for field in ("kv_bytes_per_token", "expert_inner", "model_hidden"):
            if getattr(self, field) is not None:
                require_count(field, getattr(self, field))
        if self.top_k > self.experts:
            raise Refused(
                f"top_k is {self.top_k} but experts is {self.experts}: a token chooses distinct experts; lower top_k"
            )

    @property
    def expert_parameters(self) -> int | None:
        """Parameters of one routed expert in one layer, without biases; None where its inner size is not known."""
        return None if self.expert_inner is None else self.expert_matrices * self.hidden * self.expert_inner


@dataclass(frozen=True, kw_only=True)
class Part:
    """One tensor that travels with every token.

    Attributes:
        name: what it holds, such as `rows` or `scales`.
        dtype: name of a torch dtype.
        width: elements a token.
    """

    name: str
    dtype: str
    width: int

    def __post_init__(self):
        require_count("width", self.width)
        if not isinstance(self.dtype, str) or self.dtype not in DTYPE_BYTES:
            raise Refused(f"dtype is {shown(self.dtype)}: a part is of {', '.join(DTYPE_BYTES)}; name one of these")

    @property
    def row_bytes(self) -> int:
        return self.width * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, kw_only=True)
class Format:
    """How a token's H values travel in dispatch.

    Attributes:
        name: key in `FORMATS`.
        dtype: torch dtype of the rows.
        values_per_element: values in one element of that dtype (two e2m1 values in a byte).
        scale_dtype: torch dtype of the block scales, None where there are none.
        block: values that share a scale.
        pads: whether a last block may be incomplete; else `block` must divide H.
        source: where the form stands.
    """

    name: str
    dtype: str
    values_per_element: int = 1
    scale_dtype: str | None = None
    block: int = 1
    pads: bool = False
    source: str

    def parts(self, hidden: int) -> tuple[Part, ...]:
        """The tensors of one token: `rows`, then `scales` where there are any.

        Raises:
            Refused: `hidden` is no count, or does not divide into the format's blocks.
        """
        self.require_hidden(hidden)
        rows = Part(name="rows", dtype=self.dtype, width=-(-hidden // self.values_per_element))
        if self.scale_dtype is None:
            return (rows,)
        return rows, Part(name="scales", dtype=self.scale_dtype, width=-(-hidden // self.block))

    def bytes_per_token(self, hidden: int) -> int:
        """Bytes of rows and scales; expert ids and weights (8 bytes per choice) come on top."""
        return sum(part.row_bytes for part in self.parts(hidden))

    def require_hidden(self, hidden: int) -> None:
        """Refuse a hidden size that the format cannot carry.

        Raises:
            Refused: names the value, the rule and the remedy.
        """
        require_count("hidden", hidden)
        if not self.pads and hidden % self.block:
            raise Refused(
                f"hidden is {hidden}: format {self.name} has blocks of {self.block} values, which must divide it; "
                f"use hidden {-(-hidden // self.block) * self.block}, or format bf16"
            )


_VLLM = "vLLM all2all_utils.py, flashinfer_one_sided_dispatch_layout"
_MOE_EP = "FlashInfer 0.7.2 moe_ep/core/comm/communication.py, dispatch_bytes_per_token"

FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        form.name: form
        for form in (
            Format(name="bf16", dtype="bfloat16", source=f"{_VLLM}: unquantised, 2H bytes"),
            Format(name="fp16", dtype="float16", source=f"{_VLLM}: float16 input, 2H bytes"),
            Format(name="fp32", dtype="float32", source="FlashInfer moeAlltoAllKernels.cu takes float; no vLLM layout"),
            Format(
                name="fp8",
                dtype="float8_e4m3fn",
                source=f"{_MOE_EP}: FP8PerTensor, H bytes; the one scale of the tensor does not travel",
            ),
            Format(
                name="fp8_block",
                dtype="float8_e4m3fn",
                scale_dtype="float32",
                block=128,
                source=f"{_VLLM}: fp8 w8a8 with 1x128 scales, H + 4 H/128 bytes (DeepSeek-V3, arXiv 2412.19437)",
            ),
            Format(
                name="mxfp8",
                dtype="float8_e4m3fn",
                scale_dtype="uint8",
                block=32,
                pads=True,
                source=f"{_VLLM}: e4m3 with one ue8m0 scale for 32 values, H + ceil(H/32) bytes (OCP Microscaling 1.0)",
            ),
            Format(
                name="nvfp4",
                dtype="uint8",
                values_per_element=2,
                scale_dtype="uint8",
                block=16,
                source=f"{_VLLM}: two e2m1 values a byte with one e4m3 scale for 16 values, H/2 + H/16 bytes",
            ),
            Format(
                name="mxfp4",
                dtype="uint8",
                values_per_element=2,
                scale_dtype="uint8",
                block=32,
                pads=True,
                source=f"{_MOE_EP}: two e2m1 values a byte with one ue8m0 scale for 32 values, H/2 + H/32 bytes, each "
                "rounded up (OCP Microscaling 1.0)",
            ),
        )
    }
)


def require_format(name: str) -> Format:
    """The format of that name, in any case.

    Raises:
        Refused: there is none; says which there are.
    """
    return FORMATS[choose(name, FORMATS, "format")]


def _mla(*, layers: int, rank: int = 512, rope: int = 64) -> int:
    return (rank + rope) * layers * 2


def _gqa(*, layers: int, kv_heads: int, head_dim: int) -> int:
    return 2 * kv_heads * head_dim * layers * 2


# fmt: off
_COLUMNS = ("name", "hidden", "experts", "top_k", "moe_layers", "expert_inner", "parameters", "kv_bytes_per_token", "source")  # noqa: E501
_ROWS = (
    ("deepseek-v3", 7168, 256, 8, 61 - 3, 2048, 671e9, _mla(layers=61),
     "vLLM 0.11 transformers_utils/configs/deepseek_v3.py; config.json of DeepSeek-R1 conversions"),
    # the KV cache is compressed by 4 or 128 in most layers: no number per token
    ("deepseek-v4-pro", 7168, 384, 6, 61, 3072, 1600e9, None,
     "aiconfigurator model_configs/nvidia--DeepSeek-V4-Pro-NVFP4_config.json; sizes of the model card in ds4 #112"),
    ("deepseek-v4-flash", 4096, 256, 6, 43, 2048, 284e9, None,
     "fak #12635, architecture of DeepSeek-V4-Flash-0731; llama.cpp #22319; sizes of the model card in ds4 #112"),
    ("kimi-k2", 7168, 384, 8, 61 - 1, 2048, 1026e9, _mla(layers=61),
     "config.json of moonshotai/Kimi-K2-Instruct; Megatron Bridge KimiK2Provider; K2.5 has the same backbone"),
    ("qwen3-30b-a3b", 2048, 128, 8, 48, 768, 30.5e9, _gqa(layers=48, kv_heads=4, head_dim=128),
     "slime scripts/models/qwen3-30B-A3B.sh; card of Qwen/Qwen3-30B-A3B"),
    ("qwen3-235b-a22b", 4096, 128, 8, 94, 1536, 235e9, _gqa(layers=94, kv_heads=4, head_dim=128),
     "config.json of Qwen/Qwen3-235B-A22B; slime scripts/models/qwen3-235B-A22B.sh"),
    # every fourth layer is full attention, the others are gated delta nets
    ("qwen3.5-397b-a17b", 4096, 512, 10, 60, 1024, 397e9, _gqa(layers=60 // 4, kv_heads=2, head_dim=256),
     "card of mlx-community/Qwen3.5-397B-A17B-4bit; slime scripts/models/qwen3.5-397B-A17B.sh"),
    ("glm-4.5", 5120, 160, 8, 92 - 3, 1536, 355e9, _gqa(layers=92, kv_heads=8, head_dim=128),
     "config.json of zai-org/GLM-4.7; GGUF metadata of GLM-4.6; config.json of a GLM-4.5 conversion"),
    ("glm-5", 6144, 256, 8, 78 - 3, 2048, 744e9, _mla(layers=78),
     "aiconfigurator model_configs/zai-org--GLM-5-FP8_config.json; inference-sim model_configs/glm-5.2-fp8; GLM-5 README"),  # noqa: E501
    ("minimax-m2", 3072, 256, 8, 62, 1536, 230e9, _gqa(layers=62, kv_heads=8, head_dim=128),
     "transformers MiniMaxM2Config; config.json of MiniMax-M2.1 and M2.7 conversions"),
    ("minimax-m3", 6144, 128, 4, 60 - 3, 3072, 428e9, _gqa(layers=60, kv_heads=4, head_dim=128),
     "vLLM 0.33 transformers_utils/configs/minimax_m3.py; MoE-Infinity #230"),
    # every other layer is full attention, the others slide over 128 tokens
    ("gpt-oss-120b", 2880, 128, 4, 36, 2880, 117e9, _gqa(layers=36 // 2, kv_heads=8, head_dim=64),
     "transformers GptOssConfig; Megatron Bridge on GPT OSS 120B"),
    # every other layer is MoE; every fourth is full attention, the others work in chunks of 8192 tokens
    ("llama-4-maverick", 5120, 128, 1, 48 // 2, 8192, 400e9, _gqa(layers=48 // 4, kv_heads=8, head_dim=128),
     "transformers Llama4TextConfig; MaxText configs/models/llama4-17b-128e.yml"),
)
# fmt: on

_LATENT = (
    Model(
        name="kimi-k3",
        hidden=3584,
        experts=896,
        top_k=16,
        moe_layers=93 - 1,
        kv_bytes_per_token=_mla(layers=24),  # the other 69 layers are Kimi Delta Attention
        expert_inner=3072,
        parameters=2800e9,
        model_hidden=7168,
        source="inference-sim #1690 and #1638 (routed_expert_hidden_size 3584); tt-metal #52453; llama.cpp #26185 "
        "(first layer dense, 24 layers of MLA)",
    ),
    Model(
        name="nemotron-3-super",
        hidden=1024,
        experts=512,
        top_k=22,
        moe_layers=40,
        kv_bytes_per_token=_gqa(layers=8, kv_heads=2, head_dim=128),  # the other layers are Mamba-2 or MoE
        expert_inner=2688,
        expert_matrices=2,
        parameters=120e9,
        model_hidden=4096,
        source="slime #2378 and aiconfigurator #1143 (4096 to latent 1024, top-22 of 512); TensorRT-Model-Connect #186 "
        "(expert inner size 8 x 336)",
    ),
)

MODELS: Mapping[str, Model] = MappingProxyType(
    {model.name: model for model in (*(Model(**dict(zip(_COLUMNS, row, strict=True))) for row in _ROWS), *_LATENT)}
)

ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "deepseek-r1": "deepseek-v3",
        "deepseek-v3.1": "deepseek-v3",
        "deepseek-v3.2": "deepseek-v3",
        "kimi-k2.5": "kimi-k2",
        "kimi-k2.6": "kimi-k2",
        "glm-4.6": "glm-4.5",
        "glm-4.7": "glm-4.5",
        "glm-5.2": "glm-5",
        "minimax-m2.1": "minimax-m2",
        "minimax-m2.7": "minimax-m2",
        "nvidia-nemotron-3-super": "nemotron-3-super",
    }
)


@named_arguments
def require_model(model: Model | str) -> Model:
    """The model of that name or alias, in any case; a `Model` is returned as it is.

    Raises:
        Refused: there is none; says which names are near and which there are.
    """
    if isinstance(model, Model):
        return model
    name = choose(model, [*MODELS, *ALIASES], "model", remedy="or make a Model of its numbers")
    return MODELS[ALIASES.get(name, name)]
