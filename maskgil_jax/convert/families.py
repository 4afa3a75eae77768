"""The families of published checkpoints: the names that identify each, its conversion table and its network."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
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

from .engine import Table
from .readers.checkpoint import Problem, sanitize
from .sizes import Sizes
from .tables import amused, besnier, chameleon, feature_networks, google, halton, llama, magvit2, vqgan

MIT = "MIT"
GOOGLE = "Apache-2.0, the licence of the code they were published with"
_MASKGIL = {"positions": "1d_shifted", "class_position": "last", "mask_logit": True, "causal": False, "null_class": True}
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

    title: what it is. kind: "tokenizer", "generator" or "feature network". licence: of the published weights.
    container: outer key in the original's files, or "bare". options: our dataclass. fixed: options that all networks of
    the family share and no tensor states. settable: options that no tensor states, or that tensors do not determine.
    required_keys: patterns; a file whose names begin with each of them belongs to the family, unless one begins with
    one of `forbidden_keys`.
    key_prefix: prefix under which files of other families hold this network, used if the family is asked for. flax: the
    original's files are flax msgpack. decode: decoding options that the original samples with, if not ours.
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
    required_keys: tuple[str, ...]
    forbidden_keys: tuple[str, ...] = ()
    flax: bool = False
    decode: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    key_prefix: str = ""

    def config(self, computed: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
        """The network's options, of those that `sizes` returned. given: may override `fixed`. Raises: Problem."""
        fixed = {name: given.get(name, value) for name, value in self.fixed.items()}
        try:
            return self.options(**{**computed, **fixed})
        except ValueError as error:
            raise Problem(str(error)) from None

    def matches(self, names: Iterable[str]) -> bool:
        """Whether a file with these names belongs to the family."""
        names = list(names)
        return _begin(names, self.required_keys) and not any(_begin(names, (key,)) for key in self.forbidden_keys)


def _begin(names: Iterable[str], patterns: Iterable[str]) -> bool:
    """Whether each pattern matches the beginning of a name."""
    return all(any(re.match(pattern, name) for name in names) for pattern in patterns)


FAMILIES: dict[str, Family] = {
    "llamagen-vq": Family(
        title="LlamaGen's VQ tokenizer, VQ-16 or VQ-8 (vq_ds16_c2i.pt, vq_ds16_t2i.pt, vq_ds8_c2i.pt)",
        kind="tokenizer",
        licence=MIT,
        container="model",
        options=VQConfig,
        fixed={"l2_normalize": True, "norm_groups": 32},
        settable=("image_size",),
        table=vqgan.llamagen_table,
        sizes=vqgan.llamagen_sizes,
        required_keys=(r"encoder\.conv_blocks\.0\.res\.", r"quantize\.embedding\.weight$"),
    ),
    "taming-vqgan": Family(
        title="taming-transformers' VQGAN, f16 with 1024 or 16384 codes (last.ckpt)",
        kind="tokenizer",
        licence=MIT,
        container="state_dict",
        options=VQConfig,
        fixed={"l2_normalize": False, "norm_groups": 32},
        settable=("image_size",),
        table=vqgan.taming_table,
        sizes=vqgan.taming_sizes,
        required_keys=(r"encoder\.down\.0\.block\.", r"quantize\.embedding\.weight$", r"encoder\.down\.\d+\.attn\."),
    ),
    "chameleon-vqgan": Family(
        title="Chameleon's VQGAN, f16 with 8192 codes, attention in the middle only (vqgan.ckpt)",
        kind="tokenizer",
        licence="Chameleon Research License: non-commercial research only, also for what is made from it",
        container="state_dict",
        options=VQConfig,
        fixed={"l2_normalize": False, "norm_groups": 32, "attention_levels": ()},
        settable=("image_size",),
        table=vqgan.chameleon_table,
        sizes=vqgan.chameleon_sizes,
        required_keys=(r"encoder\.down\.0\.block\.", r"quantize\.embedding\.weight$"),
        forbidden_keys=(r"encoder\.down\.\d+\.attn\.",),
    ),
    "open-magvit2": Family(
        title="Open-MAGVIT2's tokenizer, 2^18 codes: the averaged weights (imagenet_256_L.ckpt, imagenet_128_L.ckpt)",
        table=magvit2.averaged_table,
        sizes=magvit2.averaged_sizes,
        required_keys=(r"model_ema\.decoderadaptive\d",),
        **_OPEN_MAGVIT2,
    ),
    "open-magvit2-raw": Family(  # not identified where the file has the average too: --family open-magvit2-raw
        title="Open-MAGVIT2's tokenizer: the weights before averaging",
        table=magvit2.raw_table,
        sizes=magvit2.raw_sizes,
        required_keys=(r"decoder\.adaptive\.\d",),
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
        table=llama.maskgil_table,
        sizes=llama.maskgil_sizes,
        required_keys=(r"tok_emb\.weight$", r"layers\.0\.attention\.wqkv\."),
    ),
    "llamagen-c2i": Family(
        title="LlamaGen's class-conditional AR generator, B to 3B (c2i_B_256.pt ...)",
        kind="generator",
        licence=MIT,
        container="model",
        options=LlamaConfig,
        fixed=_LLAMAGEN | _PLAIN | _CLASS,
        settable=("heads", "grid", "num_classes"),
        table=llama.llamagen_table,
        sizes=llama.llamagen_sizes,
        required_keys=(r"tok_embeddings\.weight$", r"cls_embedding\.embedding_table\."),
    ),
    "llamagen-t2i": Family(
        title="LlamaGen's text-conditional AR generator, XL (t2i_XL_stage1_256.pt, t2i_XL_stage2_512.pt)",
        kind="generator",
        licence=MIT,
        container="model",
        options=LlamaConfig,
        fixed=_LLAMAGEN | _PLAIN | _TEXT,
        settable=("heads", "grid"),
        table=llama.llamagen_t2i_table,
        sizes=llama.llamagen_t2i_sizes,
        required_keys=(r"tok_embeddings\.weight$", r"cls_embedding\.cap_proj\.", r"cls_embedding\.uncond_embedding$"),
        decode={"guidance": 7.5, "top_k": 1000},
    ),
    "besnier-maskgit": Family(
        title="MaskGIT-pytorch's Transformer (MaskGIT_ImageNet_256.pth, MaskGIT_ImageNet_512.pth)",
        kind="generator",
        licence=MIT,
        container="model_state_dict",
        options=BertConfig,
        fixed={"class_position": "last", "mask_logit": True},
        settable=("heads", "num_classes", "codebook_size", "grid"),
        table=besnier.besnier_table,
        sizes=besnier.besnier_sizes,
        required_keys=(r"transformer\.layers\.0\.0\.fn\.mha\.in_proj_weight$",),
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
        required_keys=(r"encoder/ResBlock_0/", r"quantizer/codebook$"),
        flax=True,
    ),
    "maskgit-jax": Family(
        title="Google's MaskGIT Transformer (maskgit_imagenet256_checkpoint, maskgit_imagenet512_checkpoint)",
        kind="generator",
        licence=GOOGLE,
        container="params",
        options=MaskGITConfig,
        fixed={},
        settable=("num_classes", "codebook_size", "grid"),
        table=google.transformer_table,
        sizes=google.transformer_sizes,
        required_keys=(r"Embed_0/word_embeddings/", r"TransformerLayer_0/"),
        flax=True,
        decode={"steps": 16, "schedule": "cosine", "plan": "gamma", "guidance": 1.0, "choice_temperature": 4.5},
    ),
    "amused": Family(
        title="aMUSEd's U-ViT, 256 or 512 pixels (transformer/diffusion_pytorch_model.safetensors)",
        required_keys=(r"encoder_proj_layer_norm\.", r"down_block\.res_blocks\.0\.", r"mlm_layer\.conv2\."),
        **amused.UVIT,
    ),
    "amused-vq": Family(
        title="aMUSEd's VQ tokenizer (vqvae/diffusion_pytorch_model.safetensors)",
        required_keys=(r"encoder\.down_blocks\.0\.resnets\.", r"quantize\.embedding\.weight$"),
        **amused.VQ,
    ),
    "chameleon": Family(
        title="Chameleon's or Lumina-mGPT's language model (folder of model-*.safetensors with config.json)",
        required_keys=(
            r"model\.embed_tokens\.weight$",
            r"model\.layers\.0\.self_attn\.q_norm\.bias$",
            r"lm_head\.weight$",
        ),
        **chameleon.LANGUAGE_MODEL,
    ),
    "halton": Family(
        title="Halton-MaskGIT's Transformer, tiny to large (ImageNet_256_base.pth, ImageNet_384_large.pth ...)",
        kind="generator",
        licence=MIT,
        container="model_state_dict",
        options=AdaLNConfig,
        fixed={"mask_logit": True},
        settable=("heads", "grid"),
        table=halton.halton_table,
        sizes=halton.halton_sizes,
        required_keys=(r"transformer\.layers\.0\.attn\.wq\.", r"last_norm\.norm_final\."),
    ),
    "inception": Family(
        title="the FID InceptionV3 (pt_inception-2015-12-05-6726825d.pth)",
        kind="feature network",
        licence="Apache-2.0",
        container="bare",
        options=InceptionConfig,
        fixed={},
        settable=(),
        table=feature_networks.inception_table,
        sizes=lambda sizes: {},
        required_keys=(r"Mixed_5b\.", r"Conv2d_1a_3x3\."),
    ),
    "lpips": Family(
        title="LPIPS over VGG16, its own file or with --family inside a taming-transformers last.ckpt",
        kind="feature network",
        licence="BSD-2-Clause (LPIPS), CC BY 4.0 (VGG16)",
        container="bare",
        options=LPIPSConfig,
        fixed={},
        settable=(),
        table=feature_networks.lpips_table,
        sizes=feature_networks.lpips_sizes,
        required_keys=(r"lin0\.model\.", r"net\.slice1\."),
        key_prefix="loss.perceptual_loss.",
    ),
}

# Identified, but without a network here: name -> (title, required keys). Compared first, since their keys are narrower.
UNSUPPORTED: dict[str, tuple[str, tuple[str, ...]]] = {
    "taming-gumbel": ("taming-transformers' Gumbel VQGAN", (r"quantize\.embed\.weight$", r"quantize\.proj\.")),
}

# Attributes under which training code holds a network: Lightning's, DDP's, Fabric's, saved trainers'.
_WRAPPER_NAME = re.compile(r"(?:_forward_module|module|model|state_dict|network|net|generator)\.")


def identify(names: Iterable[str], family: str | None = None) -> tuple[str, Family, str]:
    """(name, family, prefix of the names) of a file with these tensor names.

    A prefix that all names share is stripped if the file is identified without it. With `family`, it may be one
    that only some names have; the others are left out.
    Raises: Problem for names of no family, or of one that has no network here; ConfigError for an unknown `family`.
    """
    names = list(names)
    if family is not None:
        about = named(family)
        prefixes = ("", about.key_prefix, *_prefixes(names)) if about.key_prefix else ("", *_prefixes(names))
        return family, about, next((prefix for prefix in prefixes if about.matches(_under(names, prefix))), "")
    if name := _identify(names):
        return name, FAMILIES[name], ""
    for prefix, count in _prefixes(names).items():
        name = _identify(_under(names, prefix))
        if name and count == len(names):
            return name, FAMILIES[name], prefix
        if name:
            raise Problem(
                f"{count} of its {len(names)} names begin with {prefix!r} and are those of {name}: "
                f"--family {name} takes them and leaves the others out"
            )
    some = ", ".join(sanitize(name, 60) for name in names[:3])
    raise Problem(
        f"not recognised by its {len(names)} names ({some} ...); known are {', '.join(FAMILIES)}: see --list and --family"
    )


def _identify(names: list[str]) -> str | None:
    """The family of these names, without any prefix. Raises: Problem if it has no network here."""
    for family, (_, required_keys) in UNSUPPORTED.items():
        if _begin(names, required_keys):
            raise Problem(refusal(family))
    return next((name for name, about in FAMILIES.items() if about.matches(names)), None)


def _prefixes(names: Iterable[str]) -> Counter[str]:
    """{prefix made of wrapper names, e.g. "model.module.": number of names that begin with it}."""
    found: Counter[str] = Counter()
    for name in names:
        end = 0
        while match := _WRAPPER_NAME.match(name, end):
            end = match.end()
            found[name[:end]] += 1
    return found


def _under(names: Iterable[str], prefix: str) -> list[str]:
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def refusal(family: str) -> str:
    """The sentence for a family that is known but has no network here."""
    return f"recognised as {family} ({UNSUPPORTED[family][0]}), not supported yet; supported are {', '.join(FAMILIES)}"


def named(family: str) -> Family:
    """The family of this name. Raises: ConfigError for an unknown name, Problem for one that has no network here."""
    if family in UNSUPPORTED:
        raise Problem(refusal(family))
    return FAMILIES[choose("--family", family, FAMILIES)]
