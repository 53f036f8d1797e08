"""MoE shapes of named models, and the formats in which a token travels: what dispatch and combine have to move."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from mnnvl_lab.errors import Refused, choose, require_count, shown

DTYPE_BYTES = MappingProxyType({"bfloat16": 2, "float16": 2, "float32": 4, "float8_e4m3fn": 1, "uint8": 1})


@dataclass(frozen=True, kw_only=True)
class Model:
    """The numbers of a model that expert parallelism sees.

    Attributes:
        name: key in `MODELS`.
        hidden: H.
        experts: E, routed experts of a layer (shared experts are not dispatched).
        top_k: K, routed experts that a token chooses.
        moe_layers: layers that dispatch and combine, without multi-token-prediction layers.
        kv_bytes_per_token: bytes of key-value cache that one more token of context takes in bf16, over all layers and
            before any split over TP; None where no source gives it. With multi-head latent attention (MLA)
            `(kv_lora_rank + qk_rope_head_dim) * layers * 2`, with grouped-query attention (GQA)
            `2 * kv_heads * head_dim * layers * 2`. Only layers of full attention count: linear attention keeps a
            state of fixed size, sliding-window and chunked attention stop growing at their window.
        source: where the numbers stand.
    """

    name: str
    hidden: int
    experts: int
    top_k: int
    moe_layers: int
    kv_bytes_per_token: int | None
    source: str

    def __post_init__(self):
        for field in ("hidden", "experts", "top_k", "moe_layers"):
            require_count(field, getattr(self, field))
        if self.kv_bytes_per_token is not None:
            require_count("kv_bytes_per_token", self.kv_bytes_per_token)
        if self.top_k > self.experts:
            raise Refused(
                f"top_k is {self.top_k} but experts is {self.experts}: a token chooses distinct experts; lower top_k"
            )


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
        rows = Part(name="rows", dtype=self.dtype, width=hidden // self.values_per_element)
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

FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        form.name: form
        for form in (
            Format(name="bf16", dtype="bfloat16", source=f"{_VLLM}: unquantised, 2H bytes"),
            Format(name="fp16", dtype="float16", source=f"{_VLLM}: float16 input, 2H bytes"),
            Format(name="fp32", dtype="float32", source="FlashInfer moeAlltoAllKernels.cu takes float; no vLLM layout"),
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
_COLUMNS = ("name", "hidden", "experts", "top_k", "moe_layers", "kv_bytes_per_token", "source")
_ROWS = (
    ("deepseek-v3", 7168, 256, 8, 61 - 3, _mla(layers=61),
     "vLLM 0.11 transformers_utils/configs/deepseek_v3.py; config.json of DeepSeek-R1 conversions"),
    ("kimi-k2", 7168, 384, 8, 61 - 1, _mla(layers=61),
     "config.json of moonshotai/Kimi-K2-Instruct; Megatron Bridge KimiK2Provider; K2.5 has the same backbone"),
    ("qwen3-235b-a22b", 4096, 128, 8, 94, _gqa(layers=94, kv_heads=4, head_dim=128),
     "config.json of Qwen/Qwen3-235B-A22B; slime scripts/models/qwen3-235B-A22B.sh"),
    # every fourth layer is full attention, the others are gated delta nets
    ("qwen3.5-397b-a17b", 4096, 512, 10, 60, _gqa(layers=60 // 4, kv_heads=2, head_dim=256),
     "card of mlx-community/Qwen3.5-397B-A17B-4bit; slime scripts/models/qwen3.5-397B-A17B.sh"),
    ("glm-4.5", 5120, 160, 8, 92 - 3, _gqa(layers=92, kv_heads=8, head_dim=128),
     "config.json of zai-org/GLM-4.7; GGUF metadata of GLM-4.6; config.json of a GLM-4.5 conversion"),
    ("minimax-m2", 3072, 256, 8, 62, _gqa(layers=62, kv_heads=8, head_dim=128),
     "transformers MiniMaxM2Config; config.json of MiniMax-M2.1 and M2.7 conversions"),
    # every other layer is full attention, the others slide over 128 tokens
    ("gpt-oss-120b", 2880, 128, 4, 36, _gqa(layers=36 // 2, kv_heads=8, head_dim=64),
     "transformers GptOssConfig; Megatron Bridge on GPT OSS 120B"),
    # every other layer is MoE; every fourth is full attention, the others work in chunks of 8192 tokens
    ("llama-4-maverick", 5120, 128, 1, 48 // 2, _gqa(layers=48 // 4, kv_heads=8, head_dim=128),
     "transformers Llama4TextConfig; MaxText configs/models/llama4-17b-128e.yml"),
)
# fmt: on

MODELS: Mapping[str, Model] = MappingProxyType(
    {row[0]: Model(**dict(zip(_COLUMNS, row, strict=True))) for row in _ROWS}
)

ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "deepseek-r1": "deepseek-v3",
        "kimi-k2.5": "kimi-k2",
        "glm-4.6": "glm-4.5",
        "glm-4.7": "glm-4.5",
        "minimax-m2.1": "minimax-m2",
        "minimax-m2.7": "minimax-m2",
    }
)


def require_model(model: Model | str) -> Model:
    """The model of that name or alias, in any case; a `Model` is returned as it is.

    Raises:
        Refused: there is none; says which names are near and which there are.
    """
    if isinstance(model, Model):
        return model
    name = choose(model, [*MODELS, *ALIASES], "model", remedy="or make a Model of its numbers")
    return MODELS[ALIASES.get(name, name)]
