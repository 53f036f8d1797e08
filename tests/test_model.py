import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnnvl_lab.errors import Refused
from mnnvl_lab.model import ALIASES, FORMATS, MODELS, Model, Part, require_format, require_model

# bytes of a token by vLLM's flashinfer_one_sided_dispatch_layout: rows, scales
VLLM_BYTES = {
    "bf16": lambda h: (2 * h, 0),
    "fp16": lambda h: (2 * h, 0),
    "fp32": lambda h: (4 * h, 0),
    "fp8": lambda h: (h, 0),
    "fp8_block": lambda h: (h, h // 128 * 4),
    "mxfp8": lambda h: (h, (h + 31) // 32),
    "nvfp4": lambda h: (h // 2, h // 16),
    "mxfp4": lambda h: (h // 2, h // 32),
}


@pytest.mark.parametrize("name", FORMATS)
@given(blocks=st.integers(1, 128))
def test_formats_take_the_bytes_that_vllm_reserves(name, blocks):
    hidden = 128 * blocks
    rows, scales = VLLM_BYTES[name](hidden)
    parts = {part.name: part.row_bytes for part in FORMATS[name].parts(hidden)}
    assert parts == ({"rows": rows, "scales": scales} if scales else {"rows": rows})
    assert FORMATS[name].bytes_per_token(hidden) == rows + scales


def test_every_format_has_its_bytes_tested():
    assert set(VLLM_BYTES) == set(FORMATS)


@pytest.mark.parametrize(
    ("name", "dispatch_bytes"), [("nvfp4", 4096), ("fp8_block", 7456), ("mxfp8", 7456), ("bf16", 14400)]
)
def test_deepseek_dispatch_bytes_of_vllm(name, dispatch_bytes):
    """vLLM adds an int32 id and a float32 weight for each choice."""
    model = require_model("deepseek-v3")
    assert FORMATS[name].bytes_per_token(model.hidden) + 8 * model.top_k == dispatch_bytes


def test_parts_name_dtypes_of_torch():
    torch = pytest.importorskip("torch")
    for form in FORMATS.values():
        for part in form.parts(256):
            dtype = getattr(torch, part.dtype)
            assert part.row_bytes == part.width * dtype.itemsize


def test_an_incomplete_last_block_is_padded_or_refused():
    assert FORMATS["mxfp8"].bytes_per_token(100) == 100 + 4
    with pytest.raises(Refused, match=r"hidden is 2880: format fp8_block has blocks of 128 .*use hidden 2944"):
        FORMATS["fp8_block"].parts(2880)
    with pytest.raises(Refused, match=r"hidden is 40: format nvfp4 has blocks of 16 .*use hidden 48"):
        FORMATS["nvfp4"].require_hidden(40)
    with pytest.raises(Refused, match="hidden is 0"):
        FORMATS["bf16"].require_hidden(0)


@pytest.mark.parametrize(
    ("name", "kv_bytes"),
    [
        ("deepseek-v3", 70_272),  # 576 values of 2 bytes in 61 layers
        ("kimi-k2", 70_272),
        ("qwen3-235b-a22b", 192_512),
        ("qwen3.5-397b-a17b", 30_720),  # 15 layers of full attention
        ("glm-4.5", 376_832),
        ("minimax-m2", 253_952),
        ("gpt-oss-120b", 36_864),  # 18 layers of full attention
        ("llama-4-maverick", 49_152),  # 12 layers of full attention
        ("qwen3-30b-a3b", 98_304),
        ("glm-5", 89_856),  # 576 values of 2 bytes in 78 layers
        ("kimi-k3", 27_648),  # 24 layers of MLA
        ("minimax-m3", 122_880),
        ("nemotron-3-super", 8_192),  # 8 layers of attention
    ],
)
def test_kv_bytes_worked_out_by_hand(name, kv_bytes):
    assert MODELS[name].kv_bytes_per_token == kv_bytes


def test_models_are_keyed_by_their_names_and_sourced():
    for name, model in MODELS.items():
        assert name == model.name == name.lower()
        assert model.source
    assert MODELS["kimi-k2"].moe_layers == 60
    assert MODELS["deepseek-v3"].moe_layers == 58
    assert MODELS["llama-4-maverick"].moe_layers == 24


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [
        ("nemotron-3-super", 225),  # aiconfigurator #1143: with the hidden size instead of the latent, 902
        ("kimi-k3", 2 * 2723),  # 92 layers of 896 experts with three matrices of 3584 x 3072
        ("deepseek-v4-pro", 2 * 1547),
        ("minimax-m3", 2 * 413),
    ],
)
def test_experts_weigh_in_bf16_what_reports_say(name, gigabytes):
    model = MODELS[name]
    assert round(2 * model.moe_layers * model.experts * model.expert_parameters / 1e9) == pytest.approx(
        gigabytes, abs=1
    )


def test_a_latent_model_sends_its_latent_rows():
    """Nemotron-3-Super sends 1024 values a token, not 4096: a quarter of the bytes."""
    model = require_model("nvidia-nemotron-3-super")
    assert (model.hidden, model.model_hidden, model.experts, model.top_k) == (1024, 4096, 512, 22)
    assert FORMATS["bf16"].bytes_per_token(model.hidden) == 2048
    assert MODELS["deepseek-v3"].model_hidden is None


def test_the_formats_of_flashinfer_take_the_bytes_that_it_counts():
    communication = pytest.importorskip("flashinfer.moe_ep.core.comm.communication")
    names = {"fp8": "FP8PerTensor", "mxfp4": "MXFP4", "mxfp8": "MXFP8", "fp8_block": "DeepSeekFp8", "nvfp4": "NVFP4"}
    for name, theirs in names.items():
        for hidden in (1024, 2048, 3584, 7168):
            counted = communication._DISPATCH_BYTES_PER_TOKEN[theirs](hidden)
            assert FORMATS[name].bytes_per_token(hidden) == counted
    assert FORMATS["mxfp4"].bytes_per_token(2881) == communication._DISPATCH_BYTES_PER_TOKEN["MXFP4"](2881)


def test_aliases_lead_to_models():
    assert require_model("deepseek-r1") is MODELS["deepseek-v3"]
    assert set(ALIASES.values()) <= set(MODELS)
    assert not set(ALIASES) & set(MODELS)


@pytest.mark.parametrize("table", [MODELS, FORMATS, ALIASES])
def test_tables_are_read_only(table):
    with pytest.raises(TypeError):
        table["new"] = None


@pytest.mark.parametrize("name", ["DeepSeek-V3", "deepseek_v3", "DEEPSEEK-R1", MODELS["deepseek-v3"]])
def test_a_model_is_found_in_any_case_and_may_be_one(name):
    assert require_model(name) is MODELS["deepseek-v3"]


@pytest.mark.parametrize("name", [None, 3, True, b"kimi-k2", object()])
@pytest.mark.parametrize("require", [require_model, require_format])
def test_what_is_no_name_is_refused(require, name):
    with pytest.raises(Refused, match="a name is a string"):
        require(name)


def test_unknown_names_are_refused_with_near_ones():
    with pytest.raises(Refused, match=r"model 'DeepSeek-V4' is not known: did you mean .*deepseek-v4-pro"):
        require_model("DeepSeek-V4")
    with pytest.raises(Refused, match=r"format 'fp8block' is not known: .*fp8_block"):
        require_format("fp8block")
    with pytest.raises(Refused, match="choose one of bf16"):
        require_format("zzzz")
    assert require_format("NVFP4") is require_format("nvfp4") is FORMATS["nvfp4"]


def test_impossible_models_and_parts_are_refused():
    shape = {"name": "toy", "hidden": 64, "experts": 8, "top_k": 2, "moe_layers": 1, "kv_bytes_per_token": None}
    assert Model(**shape, source="made up").kv_bytes_per_token is None
    with pytest.raises(Refused, match="top_k is 9 but experts is 8"):
        Model(**shape | {"top_k": 9}, source="made up")
    with pytest.raises(Refused, match="hidden is 0"):
        Model(**shape | {"hidden": 0}, source="made up")
    with pytest.raises(Refused, match=r"dtype is \['uint8'\]"):
        Part(name="rows", dtype=["uint8"], width=4)
    with pytest.raises(Refused, match="dtype is 'int3'"):
        Part(name="rows", dtype="int3", width=4)
