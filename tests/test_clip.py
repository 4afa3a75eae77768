"""CLIPScore through the transformers library (extra [clip]), with a tiny random model; skipped where it is not installed."""

import json

import numpy as np
import pytest

from maskgil_jax.evaluation.images import array_set
from maskgil_jax.evaluation.metrics.clip import open_clip

TEXTS = ["a cat", "dogs", "big hat", "sun", "a b c"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """(folder of a CLIP model with random weights and an alphabet for a vocabulary, the model, its processor)."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder, letters = tmp_path_factory.mktemp("clip"), "abcdefghijklmnopqrstuvwxyz"
    names = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)
    sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, projection_dim=8)
    ends = dict(bos_token_id=len(names) - 2, eos_token_id=len(names) - 1, pad_token_id=len(names) - 1)
    text = transformers.CLIPTextConfig(vocab_size=len(names), max_position_embeddings=16, **sizes, **ends)
    vision = transformers.CLIPVisionConfig(image_size=32, patch_size=8, **sizes)
    torch.manual_seed(0)
    network = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    )
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = transformers.CLIPProcessor(images, tokenizer)
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder, network.eval(), processor


def test_clip_embeddings_equal_the_library(model):
    folder, network, processor = model
    images = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)
    scorer = open_clip(TEXTS, str(folder))
    assert sum(map(len, scorer.embedding(array_set(images)).batches(2))) == 5
    inputs = processor(text=TEXTS, images=list(images), return_tensors="pt", padding=True)
    theirs = network(**inputs)
    ours = np.concatenate(scorer._rows), scorer.embed_texts(TEXTS)
    for rows, expected in zip(ours, (theirs.image_embeds, theirs.text_embeds), strict=True):
        np.testing.assert_allclose(rows / np.linalg.norm(rows, axis=1, keepdims=True), expected.detach().numpy(), atol=1e-6)
    cosines = (theirs.logits_per_image / network.logit_scale.exp()).diag().detach().numpy()
    result = scorer.result()
    np.testing.assert_allclose(result.values["clipscore"], max(100 * cosines.mean(), 0.0), atol=1e-4)
    assert result.settings["model"] == str(folder)
