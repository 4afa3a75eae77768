"""Writes the files beside it with torch itself (2.13 was used): `python make_files.py`. Tests only read them."""

import argparse
import collections
import hashlib
import json
import sys
import types

import torch


def tensors() -> dict:
    """Every layout and type a state dict can hold."""
    base = torch.arange(48, dtype=torch.float32).reshape(6, 8) / 7
    shared = torch.nn.Parameter(torch.linspace(-1, 1, 10))
    return collections.OrderedDict(
        float32=base.clone(),
        float64=base.double() * 3,
        float16=base.half(),
        bfloat16=(base * 1.7).bfloat16(),
        int64=torch.tensor([-(2**60), 5]),
        int32=torch.tensor([-7, 2**31 - 1], dtype=torch.int32),
        int16=torch.tensor([-300], dtype=torch.int16),
        int8=torch.tensor([-128, 127], dtype=torch.int8),
        uint8=torch.tensor([0, 255], dtype=torch.uint8),
        bool=torch.tensor([True, False, True]),
        complex64=torch.tensor([1 + 2j]),
        scalar=torch.tensor(2.5),
        count=torch.tensor(0),
        empty=torch.zeros(0, 3),
        transposed=base.t(),
        strided=base[1:5:2, ::3],
        permuted=torch.arange(24).reshape(2, 3, 4).permute(2, 0, 1),
        offset=base[2:],
        tied_a=shared,
        tied_b=shared,
        nan_free=torch.tensor([float("1e-40"), -0.0]),
    )


def modern() -> dict:
    """Types that only the newer rebuild function writes."""
    base = torch.linspace(-4, 4, 12)
    return {
        "float8_e4m3fn": base.to(torch.float8_e4m3fn),
        "float8_e5m2": base.to(torch.float8_e5m2).reshape(3, 4).t(),
        "uint16": torch.tensor([65535], dtype=torch.uint16),
        "uint32": torch.tensor([2**32 - 1], dtype=torch.uint32),
    }


def foreign(module: str, name: str, base: type = object) -> type:
    """A class that pickle stores as module.name, as if that library were installed."""
    parts = module.split(".")
    for i in range(len(parts)):
        sys.modules.setdefault(".".join(parts[: i + 1]), types.ModuleType(".".join(parts[: i + 1])))
    made = type(name, (base,), {"__module__": module})
    setattr(sys.modules[module], name, made)
    return made


def holding(kind: type, **state) -> object:
    made = kind.__new__(kind)
    made.__dict__.update(state)
    return made


def lightning() -> dict:
    checkpoint = foreign("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
    attributes = foreign("pytorch_lightning.utilities.parsing", "AttributeDict", dict)
    config, node = foreign("omegaconf.dictconfig", "DictConfig"), foreign("omegaconf.nodes", "AnyNode")
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {
        "epoch": 3,
        "pytorch-lightning_version": "1.0.8",
        "state_dict": {
            "module.weight": torch.arange(6.0).reshape(2, 3),
            "_orig_mod.bias": torch.ones(2, dtype=torch.bfloat16),
            "loss.perceptual_loss.lin0": torch.zeros(1),
        },
        "callbacks": {checkpoint: {"best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [optimizer.state_dict()],
        "hyper_parameters": attributes(embed_dim=256, ddconfig=attributes(ch=128, ch_mult=[1, 2])),
        "config": holding(config, _content={"n_embed": holding(node, _val=1024)}, _metadata=None),
        "args": argparse.Namespace(image_size=256, vq_model="VQ-16", rate=0.1),
        "rng": torch.get_rng_state(),
    }


def describe(states: dict) -> dict:
    result = {}
    for name, tensor in states.items():
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        result[name] = [str(tensor.dtype)[6:], list(tensor.shape), hashlib.sha256(raw).hexdigest()]
    return result


torch.manual_seed(0)
torch.save(tensors(), "every_kind.pt")
torch.save(tensors(), "every_kind_legacy.pt", _use_new_zipfile_serialization=False)
torch.save({"ema": tensors(), "model": {"a": torch.zeros(1)}}, "protocol_4.pt", pickle_protocol=4)
torch.save(modern(), "modern.pt")
torch.save(lightning(), "lightning.ckpt")
step = torch.load("current.pth", weights_only=True)
expected = {
    "every_kind": describe(tensors()),
    "modern": describe(modern()),
    "lightning": describe(lightning()["state_dict"]),
    "current": describe(step["model_state_dict"]),
}
with open("expected.json", "w") as file:
    json.dump(expected, file, indent=0)
