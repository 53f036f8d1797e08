"""Random rounds and mutations: each is right, or refused by all ranks in the same words; the table of hazards."""

import re
from itertools import cycle

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mnnvl_lab.faults.fuzz import REFUSED, RIGHT, FuzzCase, run_fuzz_cases, soften
from mnnvl_lab.faults.invalid_inputs import BOTH, INVALID_INPUTS, invalid_inputs
from mnnvl_lab.layout import Layout

TOP_K = {"one_sided": (1, 2, 4, 6, 8), "two_sided": range(1, 9)}
# Hidden sizes whose rows and scales two_sided can move: multiples of 16 bytes.
HIDDEN = {"bf16": 64, "fp16": 64, "fp32": 64, "fp8_block": 512, "mxfp8": 512, "nvfp4": 256}
ROUTINGS = ("uniform", "zipf:1.2", "hot_rank:0.5", "hot_expert:0.8", "balanced")
TRIALS_A_CALL = 24


@st.composite
def trials(draw, ep_size):
    """A trial within the limits, written down from the reference and not from the package's checks."""
    mode, form = draw(st.sampled_from(BOTH)), draw(st.sampled_from(sorted(HIDDEN)))
    name = draw(st.sampled_from([None] * 8 + [invalid_input.name for invalid_input in invalid_inputs(mode)]))
    top_k = draw(st.sampled_from(TOP_K[mode]))
    least = -(-top_k // (4 * ep_size)) * 4 * ep_size
    experts = least * draw(st.integers(1, 3)) + (draw(st.integers(0, 3)) if mode == "one_sided" else 0)
    one_sided = ("payload_in_workspace",) if mode == "one_sided" else ()
    options = tuple((option, draw(st.booleans())) for option in one_sided)
    trial = FuzzCase(
        mode=mode,
        tokens=tuple(draw(st.lists(st.integers(0, 12), min_size=ep_size, max_size=ep_size))),
        experts=experts,
        top_k=top_k,
        hidden=HIDDEN[form] * draw(st.integers(1, 2)),
        format=form,
        combine_dtype=draw(st.sampled_from(("bf16", "fp16", "fp32"))),
        options=(*options, ("extra_payload_bytes", draw(st.sampled_from(((), (16,)))))),
        routing=draw(st.sampled_from(ROUTINGS)),
        seed=draw(st.integers(0, 2**31)),
        invalid_input=name,
        target=draw(st.integers(0, ep_size - 1)),
    )
    return soften(trial)


def pattern(invalid_input):
    return f"{REFUSED}.*{invalid_input.words}"  # no group around the words, which count groups of their own


def require_due(trials, outcomes_of_ranks):
    """Right where nothing is spoiled, refused in the hazard's words where something is, alike on all ranks."""
    for trial, *outcomes in zip(trials, *outcomes_of_ranks, strict=True):
        assert len(set(outcomes)) == 1, (trial, outcomes)
        due = next((pattern(h) for h in INVALID_INPUTS if h.name == trial.invalid_input), f"{RIGHT}$")
        assert re.match(due, outcomes[0], re.DOTALL), (trial, outcomes[0])


@pytest.fixture(scope="module")
def ranks(host_ranks):
    host_ranks.use(Layout(dp=4))
    return host_ranks


# Not shrunk: a call costs a second, and the assertion names the one trial that failed.
@settings(max_examples=6, phases=(Phase.reuse, Phase.generate), suppress_health_check=list(HealthCheck))
@given(chosen=st.lists(trials(4), min_size=TRIALS_A_CALL, max_size=TRIALS_A_CALL))
def test_random_rounds_are_right_or_refused(ranks, chosen):
    require_due(chosen, ranks.run(run_fuzz_cases, chosen))


@pytest.mark.parametrize(("mode", "experts"), [("one_sided", 16), ("one_sided", 18), ("two_sided", 16)])
def test_every_hazard_is_refused_in_its_own_words_and_the_transport_goes_on(ranks, mode, experts):
    """Also where ranks own different numbers of experts. No pattern fits the refusal of another hazard."""
    chosen = [
        FuzzCase(
            mode=mode,
            tokens=(5, 3, 5, 2),
            experts=experts,
            top_k=4,
            hidden=64,
            invalid_input=invalid_input.name,
            target=target,
        )
        for target, invalid_input in zip(cycle(range(4)), invalid_inputs(mode), strict=False)
    ]
    outcomes = ranks.run(run_fuzz_cases, chosen)
    require_due(chosen, outcomes)
    for trial, refusal in zip(chosen, outcomes[0], strict=True):
        fitting = [h.name for h in invalid_inputs(mode) if re.match(pattern(h), refusal, re.DOTALL)]
        assert fitting == [trial.invalid_input], refusal


def test_ranks_without_tokens_in_every_format(ranks):
    """Nothing sent by some, nothing received from them."""
    chosen = [
        FuzzCase(mode=mode, tokens=(0, 3, 0, 2), experts=16, top_k=2, hidden=HIDDEN[form], format=form)
        for mode in BOTH
        for form in HIDDEN
    ]
    require_due(chosen, ranks.run(run_fuzz_cases, chosen))


def test_hazards_have_names_of_their_own_and_say_what_the_kernels_would_do():
    assert len({invalid_input.name for invalid_input in INVALID_INPUTS}) == len(INVALID_INPUTS)
    assert all(
        invalid_input.unchecked and (invalid_input.exchange or invalid_input.batch or invalid_input.partials)
        for invalid_input in INVALID_INPUTS
    )
