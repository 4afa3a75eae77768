"""Families from names and shapes alone: every published name is used, and families without a network are refused."""

import gzip
import json

import numpy as np
import pytest
from helpers import google_twin
from helpers.recipe import GOLDEN

from maskgil_jax.config import ADALN_PRESETS, BERT_PRESETS, LLAMA_PRESETS, MAGVIT_PRESETS, VQ_PRESETS, LPIPSConfig
from maskgil_jax.convert.planner import make_plan
from maskgil_jax.convert.readers.checkpoint import Problem

LISTINGS = json.loads(gzip.decompress((GOLDEN / "convert" / "listings.json.gz").read_bytes()))
# Google's two have no listing from the original classes: names by hand, totals as published (54.52M, 172.46M, 173.05M).
LISTINGS |= {
    "google_tokenizer": {
        "tensors": google_twin.tokenizer_shapes(**google_twin.TOKENIZER),
        "parameters": 54_515_587,
    },
    **{
        f"google_transformer_{size}": {
            "tensors": google_twin.transformer_shapes(**(google_twin.TRANSFORMER | {"places": places})),
            "parameters": parameters,
        }
        for size, places, parameters in ((256, 257, 172_457_193), (512, 1025, 173_047_017))
    },
}


def found_in(listing: str) -> dict:
    """{name: (shape, dtype)} of a published file."""
    split = {
        name: ([s for s in t if type(s) is int], [s for s in t if type(s) is str])
        for name, t in LISTINGS[listing]["tensors"].items()
    }
    return {name: (tuple(shape), np.dtype(kind[0] if kind else "float32")) for name, (shape, kind) in split.items()}


FULL_SIZE = {
    "llamagen_vq16": "llamagen-vq",
    "llamagen_vq8": "llamagen-vq",
    "taming_vqgan_f16_1024": "taming-vqgan",
    "chameleon_vqgan_8192": "chameleon-vqgan",
    "open_magvit2_262144": "open-magvit2",
    **{f"maskgil_gpt_{size}": "maskgil" for size in ("b", "l", "xl", "xxl")},
    **{f"llamagen_c2i_gpt_{size}": "llamagen-c2i" for size in ("b", "l", "xl", "xxl", "3b")},
    "llamagen_t2i_gpt_xl": "llamagen-t2i",
    **{f"maskgil_masktransformer_base_{size}": "besnier-maskgit" for size in (1024, 8192, 16384, 262144)},
    "google_tokenizer": "maskgit-jax-tokenizer",
    **{f"google_transformer_{size}": "maskgit-jax" for size in (256, 512)},
    **{f"halton_transformer_{size}": "halton" for size in ("base", "large")},
    "fid_inception_v3": "inception",
    "lpips_vgg16": "lpips",
}


@pytest.mark.slow
@pytest.mark.parametrize("listing,family", FULL_SIZE.items(), ids=FULL_SIZE)
def test_plan_uses_every_published_name_exactly_once(listing, family):
    found = found_in(listing)
    plan, problems = make_plan(found)
    assert problems == [] and plan.name == family
    assert plan.needed.keys() | plan.ignored.keys() == found.keys() and not plan.needed.keys() & plan.ignored.keys()
    left_out = {"llamagen_vq16": 1, "llamagen_vq8": 1, "taming_vqgan_f16_1024": 55, "fid_inception_v3": 94, "lpips_vgg16": 2}
    left_out["open_magvit2_262144"] = 409
    assert len(plan.ignored) == left_out.get(listing, family == "halton")
    if family not in ("taming-vqgan", "open-magvit2", "inception"):  # whose listings count the loss too, or no statistics
        buffers = 120 * 2048 if family == "llamagen-t2i" else 0  # the null text, which the original does not train
        assert plan.parameters - buffers == LISTINGS[listing]["parameters"]
    for name in ("codebook_used", "loss", "head.weight"):
        assert not any(name in needed for needed in plan.needed)


@pytest.mark.slow
def test_sizes_from_shapes_equal_the_presets():
    def cfg(listing, **options):
        return make_plan(found_in(listing), options=options)[0].cfg

    assert cfg("llamagen_vq16") == VQ_PRESETS["VQ-16"] and cfg("llamagen_vq8") == VQ_PRESETS["VQ-8"]
    for size in ("B", "L", "XL", "XXL"):
        ours, preset = cfg(f"maskgil_gpt_{size.lower()}"), LLAMA_PRESETS[size]
        for option in ("width", "depth", "heads", "hidden", "codebook_size", "num_classes", "grid"):
            assert getattr(ours, option) == getattr(preset, option), (size, option)
    assert cfg("llamagen_c2i_gpt_3b").head_dim == 100
    assert cfg("llamagen_c2i_gpt_b", grid=24).grid == (24, 24)
    text = cfg("llamagen_t2i_gpt_xl", grid=32)
    assert (text.condition, text.text_tokens, text.text_dim, text.grid) == ("text", 120, 2048, (32, 32))
    assert (text.width, text.depth, text.heads, text.hidden) == (1280, 36, 20, LLAMA_PRESETS["XL"].hidden)
    baseline = cfg("maskgil_masktransformer_base_16384")
    assert (baseline.heads, baseline.depth) == (BERT_PRESETS["B-24"].heads, BERT_PRESETS["B-24"].depth)
    assert cfg("open_magvit2_262144") == MAGVIT_PRESETS["MAGVIT2-256"]
    for size in ("base", "large"):
        ours, preset = cfg(f"halton_transformer_{size}"), ADALN_PRESETS[size]
        for option in ("width", "depth", "heads", "hidden", "codebook_size", "num_classes", "grid", "registers"):
            assert getattr(ours, option) == getattr(preset, option), (size, option)
    assert cfg("lpips_vgg16") == LPIPSConfig()
    assert cfg("chameleon_vqgan_8192").attention_levels == () and cfg("chameleon_vqgan_8192").image_size == 512


def test_make_plan_uses_and_compares_options_in_the_file():
    found = found_in("llamagen_c2i_gpt_b")
    args = {"n_head": 6, "image_size": 384, "downsample_size": 16, "vocab_size": 16384, "num_classes": 1000}
    plan, problems = make_plan(found, extras={"args": args})
    assert (plan.cfg.heads, plan.cfg.grid, problems, plan.notes) == (6, (24, 24), [], ())
    _, problems = make_plan(found, extras={"args": {"vocab_size": 8192}})
    assert problems == ["its options say vocab_size = 8192, its tensors make it 16384"]


def test_lpips_is_planned_from_a_taming_file():
    found = found_in("taming_vqgan_f16_1024")
    plan, problems = make_plan(found, family="lpips")
    assert problems == [] and plan.cfg == LPIPSConfig() and plan.parameters == LISTINGS["lpips_vgg16"]["parameters"]
    assert {name for name in found if "perceptual" in name} == plan.needed.keys() | plan.repeats.keys()


def test_identify_refuses_families_without_a_network_by_name():
    names = ("encoder.conv_in.weight", "quantize.proj.weight", "quantize.embed.weight")
    found = dict.fromkeys(names, found_in("chameleon_vqgan_8192")["encoder.conv_in.weight"])
    with pytest.raises(Problem, match=r"recognised as taming-gumbel .*not supported yet; supported are llamagen-vq"):
        make_plan(found)
    with pytest.raises(Problem, match="recognised as taming-gumbel "):
        make_plan(found_in("maskgil_gpt_b"), family="taming-gumbel")
    with pytest.raises(Problem, match="not recognised by its 22 names"):
        make_plan(found_in("patchgan_ndf64_n3"))
