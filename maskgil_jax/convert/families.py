"""The families of published checkpoints: how each is recognised, what it is, and which table and network it belongs to."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from maskgil_jax.config import (
    AdaLNConfig,
    BertConfig,
    InceptionConfig,
    LlamaConfig,
    LPIPSConfig,
    MagvitConfig,
    MaskGITConfig,
    MaskGITVQConfig,
    VQConfig,
    choose,
)

from . import generator_tables as generators
from . import google_tables as google
from . import halton_tables as halton
from . import judge_tables as judges
from . import magvit_tables as magvit
from . import tokenizer_tables as tokenizers
from .checkpoint import Problem, shown
from .rules import Table
from .sizes import Sizes

MIT = "MIT"
GOOGLE = "Apache-2.0, the licence of the code they were published with"
_MASKGIL = {"positions": "1d_shifted", "class_position": "last", "mask_logit": True, "causal": False}
_LLAMAGEN = {"positions": "2d", "class_position": "first", "mask_logit": False, "causal": True}
_CLASS, _TEXT = {"condition": "class"}, {"condition": "text", "caption_norm": False, "null_text": "random"}
_PLAIN = {"prefix_rotation": "zero", "qk_norm": "none", "post_norm": "none", "norm_eps": 1e-5, "rope_base": 10000.0}


_OPEN_MAGVIT2: dict[str, Any] = {
    "kind": "tokenizer",
    "licence": "Apache-2.0 (of the code)",
    "container": "state_dict",
    "options": MagvitConfig,
    "fixed": {"norm_groups": 32},
    "settable": ("image_size",),
}


@dataclasses.dataclass(frozen=True)
class Family:
    """One kind of published file.

    title: what it is. kind: "tokenizer", "generator" or "judge". licence: of the published weights. container: outer key in
    the original's files, or "bare". options: our dataclass. fixed: options that every file of the family has. settable:
    options that shapes do not tell. signs: patterns; a file whose names begin with each of them belongs to the family, but
    for `not_signs`. inside: prefix under which files of other families hold this network, looked for if it is asked for.
    flax: the original's files are flax msgpack. decode: options of `DecodeConfig` that the original samples with, if not ours.
    """

    title: str
    kind: str
    licence: str
    container: str
    options: type
    fixed: Mapping[str, Any]
    settable: tuple[str, ...]
    table: Callable[[Any], Table]
    sizes: Callable[[Sizes], dict[str, Any]]
    signs: tuple[str, ...]
    not_signs: tuple[str, ...] = ()
    flax: bool = False
    decode: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    inside: str = ""

    def config(self, sizes: Sizes) -> Any:
        """The network's options. Raises: Problem for a file whose sizes cannot be told."""
        try:
            return self.options(**{**self.sizes(sizes), **self.fixed})
        except ValueError as error:
            raise Problem(str(error)) from None


FAMILIES: dict[str, Family] = {
    "llamagen-vq": Family(
        title="LlamaGen's VQ tokenizer, VQ-16 or VQ-8 (vq_ds16_c2i.pt, vq_ds16_t2i.pt, vq_ds8_c2i.pt)",
        kind="tokenizer",
        licence=MIT,
        container="model",
        options=VQConfig,
        fixed={"l2_normalize": True, "norm_groups": 32},
        settable=("image_size",),
        table=tokenizers.llamagen_table,
        sizes=tokenizers.llamagen_sizes,
        signs=(r"encoder\.conv_blocks\.0\.res\.", r"quantize\.embedding\.weight$"),
    ),
    "taming-vqgan": Family(
        title="taming-transformers' VQGAN, f16 with 1024 or 16384 codes (last.ckpt)",
        kind="tokenizer",
        licence=MIT,
        container="state_dict",
        options=VQConfig,
        fixed={"l2_normalize": False, "norm_groups": 32},
        settable=("image_size",),
        table=tokenizers.taming_table,
        sizes=tokenizers.taming_sizes,
        signs=(r"encoder\.down\.0\.block\.", r"quantize\.embedding\.weight$", r"encoder\.down\.\d+\.attn\."),
    ),
    "chameleon-vqgan": Family(
        title="Chameleon's VQGAN, f16 with 8192 codes, attention in the middle only (vqgan.ckpt)",
        kind="tokenizer",
        licence="Chameleon Research License: non-commercial research only, also for what is made from it",
        container="state_dict",
        options=VQConfig,
        fixed={"l2_normalize": False, "norm_groups": 32, "attention_levels": ()},
        settable=("image_size",),
        table=tokenizers.chameleon_table,
        sizes=lambda sizes: {"image_size": 512} | tokenizers.taming_sizes(sizes),
        signs=(r"encoder\.down\.0\.block\.", r"quantize\.embedding\.weight$"),
        not_signs=(r"encoder\.down\.\d+\.attn\.",),
    ),
    "open-magvit2": Family(
        title="Open-MAGVIT2's tokenizer, 2^18 codes: the averaged weights (imagenet_256_L.ckpt, imagenet_128_L.ckpt)",
        table=magvit.averaged_table,
        sizes=magvit.averaged_sizes,
        signs=(r"model_ema\.decoderadaptive\d",),
        **_OPEN_MAGVIT2,
    ),
    "open-magvit2-raw": Family(  # not told from the names where the average is there too: --family open-magvit2-raw
        title="Open-MAGVIT2's tokenizer: the weights before averaging",
        table=magvit.raw_table,
        sizes=magvit.raw_sizes,
        signs=(r"decoder\.adaptive\.\d",),
        **_OPEN_MAGVIT2,
    ),
    "maskgil": Family(
        title="MaskGIL's generator as its published trainer saves it (.pth), any size",
        kind="generator",
        licence="code without a licence file; no weights were published",
        container="model_state_dict",
        options=LlamaConfig,
        fixed=_MASKGIL | _PLAIN | _CLASS,
        settable=("heads", "grid"),
        table=generators.maskgil_table,
        sizes=generators.maskgil_sizes,
        signs=(r"tok_emb\.weight$", r"layers\.0\.attention\.wqkv\."),
    ),
    "llamagen-c2i": Family(
        title="LlamaGen's class-conditional AR generator, B to 3B (c2i_B_256.pt ...)",
        kind="generator",
        licence=MIT,
        container="model",
        options=LlamaConfig,
        fixed=_LLAMAGEN | _PLAIN | _CLASS,
        settable=("heads", "grid"),
        table=generators.llamagen_table,
        sizes=generators.llamagen_sizes,
        signs=(r"tok_embeddings\.weight$", r"cls_embedding\.embedding_table\."),
    ),
    "llamagen-t2i": Family(
        title="LlamaGen's text-conditional AR generator, XL (t2i_XL_stage1_256.pt, t2i_XL_stage2_512.pt)",
        kind="generator",
        licence=MIT,
        container="model",
        options=LlamaConfig,
        fixed=_LLAMAGEN | _PLAIN | _TEXT,
        settable=("heads", "grid"),
        table=generators.llamagen_t2i_table,
        sizes=generators.llamagen_t2i_sizes,
        signs=(r"tok_embeddings\.weight$", r"cls_embedding\.cap_proj\.", r"cls_embedding\.uncond_embedding$"),
    ),
    "besnier-maskgit": Family(
        title="MaskGIT-pytorch's Transformer (MaskGIT_ImageNet_256.pth, MaskGIT_ImageNet_512.pth)",
        kind="generator",
        licence=MIT,
        container="model_state_dict",
        options=BertConfig,
        fixed={"class_position": "last", "mask_logit": True},
        settable=("heads", "num_classes"),
        table=generators.besnier_table,
        sizes=generators.besnier_sizes,
        signs=(r"transformer\.layers\.0\.0\.fn\.mha\.in_proj_weight$",),
    ),
    "maskgit-jax-tokenizer": Family(
        title="Google's MaskGIT tokenizer (tokenizer_imagenet256_checkpoint, tokenizer_imagenet512_checkpoint)",
        kind="tokenizer",
        licence=GOOGLE,
        container="params",
        options=MaskGITVQConfig,
        fixed={"norm_groups": 32},
        settable=("image_size",),
        table=google.tokenizer_table,
        sizes=google.tokenizer_sizes,
        signs=(r"encoder/ResBlock_0/", r"quantizer/codebook$"),
        flax=True,
    ),
    "maskgit-jax": Family(
        title="Google's MaskGIT Transformer (maskgit_imagenet256_checkpoint, maskgit_imagenet512_checkpoint)",
        kind="generator",
        licence=GOOGLE,
        container="params",
        options=MaskGITConfig,
        fixed={},
        settable=("num_classes",),
        table=google.transformer_table,
        sizes=google.transformer_sizes,
        signs=(r"Embed_0/word_embeddings/", r"TransformerLayer_0/"),
        flax=True,
        decode={"steps": 16, "schedule": "cosine", "plan": "gamma", "guidance": 1.0, "choice_temperature": 4.5},
    ),
    "halton": Family(
        title="Halton-MaskGIT's Transformer, tiny to large (ImageNet_256_base.pth, ImageNet_384_large.pth ...)",
        kind="generator",
        licence=MIT,
        container="model_state_dict",
        options=AdaLNConfig,
        fixed={"mask_logit": True},
        settable=("heads",),
        table=halton.halton_table,
        sizes=halton.halton_sizes,
        signs=(r"transformer\.layers\.0\.attn\.wq\.", r"last_norm\.norm_final\."),
    ),
    "inception": Family(
        title="the FID InceptionV3 (pt_inception-2015-12-05-6726825d.pth)",
        kind="judge",
        licence="Apache-2.0",
        container="bare",
        options=InceptionConfig,
        fixed={},
        settable=(),
        table=judges.inception_table,
        sizes=lambda sizes: {},
        signs=(r"Mixed_5b\.", r"Conv2d_1a_3x3\."),
    ),
    "lpips": Family(
        title="LPIPS over VGG16, its own file or with --family inside a taming-transformers last.ckpt",
        kind="judge",
        licence="BSD-2-Clause (LPIPS), CC BY 4.0 (VGG16)",
        container="bare",
        options=LPIPSConfig,
        fixed={},
        settable=(),
        table=judges.lpips_table,
        sizes=judges.lpips_sizes,
        signs=(r"lin0\.model\.", r"net\.slice1\."),
        inside="loss.perceptual_loss.",
    ),
}

# Families that are recognised but have no network here: name -> (title, signs). Looked at first: their signs are narrower.
UNSUPPORTED: dict[str, tuple[str, tuple[str, ...]]] = {
    "taming-gumbel": ("taming-transformers' Gumbel VQGAN", (r"quantize\.embed\.weight$", r"quantize\.proj\.")),
}


def detect(names: Iterable[str]) -> str:
    """The family whose signs are all there. Raises: Problem for names of no family, or of one that has no network here."""
    names = list(names)

    def begins(pattern: str) -> bool:
        return any(re.match(pattern, name) for name in names)

    for family, (_, signs) in UNSUPPORTED.items():
        if all(map(begins, signs)):
            raise Problem(refusal(family))
    for name, about in FAMILIES.items():
        if all(map(begins, about.signs)) and not any(map(begins, about.not_signs)):
            return name
    some = ", ".join(shown(name, 60) for name in names[:3])
    raise Problem(
        f"not recognised by its {len(names)} names ({some} ...); known are {', '.join(FAMILIES)}: see --list and --family"
    )


def refusal(family: str) -> str:
    """The sentence for a family that is known but has no network here."""
    return f"recognised as {family} ({UNSUPPORTED[family][0]}), not supported yet; supported are {', '.join(FAMILIES)}"


def named(family: str) -> Family:
    """The family of this name. Raises: ConfigError for an unknown name, Problem for one that has no network here."""
    if family in UNSUPPORTED:
        raise Problem(refusal(family))
    return FAMILIES[choose("--family", family, FAMILIES)]
