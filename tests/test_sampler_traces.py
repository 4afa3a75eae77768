"""Published samplers, replayed step by step from their recorded logits, draws and noise (golden/samplers/traces.npz).

`before` and `final` are the codes before each step and at the end, `conf` the confidences as they were ranked. Recorded
behaviour the library leaves out on purpose is added here, by each test, and named there.
"""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from maskgil_jax.config import DecodeConfig
from maskgil_jax.decoding.guidance import guidance_scales, mix, progress
from maskgil_jax.decoding.masked import confidence, reveal
from maskgil_jax.decoding.orders import halton_ranks
from maskgil_jax.decoding.schedules import reveal_counts

# Not a code: the published loop can draw its own [MASK] id, which then counts as known and is clamped at the end.
HIDDEN = -1


SAMPLERS = Path(__file__).parent / "golden/samplers"


@pytest.fixture(scope="module")
def traces():
    arrays, params = {}, {}
    for name in ("traces.npz", "halton.npz"):
        with np.load(SAMPLERS / name) as file:
            arrays |= {key: file[key] for key in file.files}
        params |= json.loads(arrays.pop("params").tobytes())
    return lambda name: (params[name], {k.split("/")[1]: v for k, v in arrays.items() if k.startswith(name + "/")})


def step_logits(trace, i, scale, factor, width=None):
    """Guided logits of step `i`: a trace with guidance has conditional rows, then unconditional ones."""
    logits = jnp.asarray(trace["logits"][i], jnp.float32)[..., :width] / 512
    if logits.shape[0] == 2 * trace["before"].shape[1]:
        cond, uncond = jnp.split(logits, 2)
        logits = mix(cond, uncond, scale)
    return logits * factor


def flat(codes):
    return np.asarray(codes, np.int32).reshape(len(codes), -1)


NOISE_FREE = ("trace_no_noise_given_codes", "trace_warm_up_w0")
RELEASE = ("trace_linear_argmax", "trace_linear_w0", *NOISE_FREE, "trace_inpaint_linear", "fid_sample_cfg", "fid_sample_cfg0")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * name.startswith("trace_linear")) for name in RELEASE]
)
def test_decode_equals_the_published_maskgil_loop(traces, name):
    params, trace = traces(name)
    steps = params.get("step") or params["steps"]
    weight, guidance = params["r_temp"], params.get("w", params.get("cfg"))
    cfg = DecodeConfig(steps, params.get("sched", "arccos"), guidance=float(guidance), guidance_ramp="linear")
    b = trace["before"].shape[1]
    plan = reveal_counts("density", cfg.schedule, steps, 256)
    if "init" not in params:
        np.testing.assert_array_equal(trace["step_t"], plan)
    else:  # the published loop plans for 256 tokens even when half are given, and stops when none are left
        np.testing.assert_array_equal(trace["step_t"][:-1], plan[: len(trace["step_t"]) - 1])
    tokens = jnp.full((b, 256), HIDDEN)
    if "init" in trace:
        tokens = jnp.where(flat(trace["init"]) == params["V"], HIDDEN, flat(trace["init"]))
    for i, count in enumerate(trace["step_t"]):
        np.testing.assert_array_equal(np.where(tokens == HIDDEN, params["V"], tokens), flat(trace["before"][i]))
        width = trace["width"][i] if "width" in trace else None  # FID_sample drops the [MASK] class only with guidance
        logits = step_logits(trace, i, guidance_scales(cfg)[i], params.get("sm_temp", 1.0), width)
        picks = jnp.asarray(trace["given"][i], jnp.int32) if "given" in trace else jnp.argmax(logits, axis=-1)
        if name not in NOISE_FREE:
            scores = confidence(logits, picks, jnp.asarray(trace["gumbel"][i]), weight * (1 - progress(steps)[i]))
        elif name == "trace_warm_up_w0" and i < 2:  # two steps in random order, then plain confidence
            scores = jnp.asarray(trace["rand_like"][i, ..., 0])
        else:  # recorded as a probability; the same order
            scores = jnp.exp(confidence(logits, picks))
        ranked = np.isfinite(trace["conf"][i])
        np.testing.assert_array_equal(ranked, tokens == HIDDEN)
        np.testing.assert_allclose(scores[ranked], trace["conf"][i][ranked], atol=1e-4, rtol=1e-5)
        tokens = reveal(tokens, picks, scores, jnp.full(b, count), HIDDEN)
    np.testing.assert_array_equal(jnp.clip(tokens, max=params["V"] - 1), flat(trace["final"]))


@pytest.mark.parametrize("name", ["google_decode_cosine", "google_decode_pow2_known"])
def test_decode_equals_the_published_maskgit_loop(traces, name):
    params, trace = traces(name)
    steps, schedule = params["T"], {"cosine": "cosine", "pow2": "square"}[params["method"]]
    tokens = jnp.asarray(trace["init"], jnp.int32)
    masked = (tokens == params["V"]).sum(axis=-1)
    plan = np.array(reveal_counts("gamma", schedule, steps, masked))
    if name == "google_decode_pow2_known":
        # 36 * (1 - (4/6)^2) is 20 exactly; their float32 product falls short of it, so one token comes a step early.
        assert masked[0] == 36
        plan[0, 3:5] += (1, -1)
    left = np.asarray(masked)[:, None] - np.cumsum(plan, axis=1)
    np.testing.assert_array_equal(left[:, :-1].T, trace["mask_len"][:-1])
    for i in range(steps):
        np.testing.assert_array_equal(tokens, trace["before"][i])
        picks = jnp.asarray(trace["given"][i], jnp.int32)
        # Their noise falls with (i + 1) / T where the MaskGIL code has i / (T - 1).
        weight = params["temp"] * (1 - (i + 1) / steps)
        scores = confidence(step_logits(trace, i, None, 1.0), picks, jnp.asarray(trace["gumbel"][i]), weight)
        tokens = reveal(tokens, picks, scores, jnp.asarray(plan[:, i]), params["V"])
    np.testing.assert_array_equal(tokens, trace["final"][:, -1])


@pytest.mark.parametrize("name", ["confidence_trace_linear", "confidence_trace_no_noise"])
def test_decode_equals_the_published_confidence_sampler(traces, name):
    params, trace = traces(name)
    steps, (b, size) = params["step"], trace["before"].shape[1:3]
    cfg = DecodeConfig(steps, params["sched"], guidance=float(params["w"]), guidance_ramp="linear")
    plan = reveal_counts("cumulative", params["sched"], steps, size**2)
    np.testing.assert_array_equal(np.cumsum(plan), trace["step_total"])
    tokens = jnp.full((b, size**2), params["V"])
    overwritten = np.array(tokens)
    for i in range(steps):
        np.testing.assert_array_equal(overwritten, flat(trace["before"][i]))
        logits = step_logits(trace, i, guidance_scales(cfg)[i], params["sm_temp"])
        picks = jnp.asarray(trace["given"][i], jnp.int32)
        if params["randomize"] == "linear":
            weight = params["r_temp"] * (1 - progress(steps)[i])
            scores = confidence(logits, picks, jnp.asarray(trace["gumbel"][i]), weight)
        else:
            scores = jnp.exp(confidence(logits, picks))
        ranked = np.isfinite(trace["conf"][i])
        np.testing.assert_allclose(scores[ranked], trace["conf"][i][ranked], atol=1e-4, rtol=1e-5)
        tokens = reveal(tokens, picks, scores, jnp.full(b, plan[i]), params["V"])
        np.testing.assert_array_equal(tokens == params["V"], flat(trace["mask_after"][i]).astype(bool))
        # A defect of theirs: every known token is drawn again at each step; in the library known tokens never change.
        overwritten = np.where(tokens == params["V"], overwritten, picks)
    np.testing.assert_array_equal(overwritten, flat(trace["final"]))


def test_orders_equal_the_published_halton_orders():
    with np.load(SAMPLERS / "halton.npz") as file:
        orders = {name: file[name] for name in file.files if name.startswith("order/")}
    assert len(orders) == 3
    for name, cells in orders.items():
        rows, columns = map(int, name.split("/")[1].split("x"))
        queue = np.argsort(halton_ranks((rows, columns)))
        np.testing.assert_array_equal(np.stack([queue // columns, queue % columns], axis=1), cells, err_msg=name)


@pytest.mark.parametrize("name", ["halton_trace_plain", "halton_trace_rolled_temp"])
def test_decode_equals_the_published_halton_sampler(traces, name):
    params, trace = traces(name)
    steps, (b, size) = params["step"], trace["before"].shape[1:3]
    plan = reveal_counts("gamma_ceil", "arccos", steps, size**2)
    roll = trace["roll"] if params["randomize"] else np.zeros(b, int)
    queue = -((halton_ranks((size, size)) + roll[:, None]) % size**2).astype(np.float32)
    tokens = jnp.full((b, size**2), params["V"])
    for i in range(steps):
        np.testing.assert_array_equal(tokens, flat(trace["before"][i]))
        # Their constant guidance is (1 + w) cond - w uncond, and the recorded temperature multiplies the logits.
        logits = step_logits(trace, i, 1.0 + params["w"], trace["temperature"][i])
        if i < params["warmup"]:  # a halved sharpness that the library does not have
            logits = logits / 2
        probs = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(probs[:, :8], trace["prob"][i], atol=2e-6)
        tokens = reveal(
            tokens, jnp.asarray(trace["given"][i], jnp.int32), jnp.asarray(queue), jnp.full(b, plan[i]), params["V"]
        )
        np.testing.assert_array_equal(np.asarray(tokens) != flat(trace["before"][i]), flat(trace["mask"][i]).astype(bool))
    np.testing.assert_array_equal(tokens, flat(trace["final"]))
