"""Text encoders of the transformers library, run by `python -m benchmarks.text --torch-python`: what the JAX ones are
measured against. It needs torch and transformers alone, so that they can live in another environment.

python benchmarks/torch_text.py FOLDER INPUTS.npz THREADS

FOLDER is a Hugging Face folder, INPUTS holds `ids` and `mask`. For each line on standard input one line of JSON comes
back: "run" gives seconds and CPU-seconds of one batch, "save FILE" writes the states to FILE as .npy.
"""

import json
import os
import sys
import time

CLASSES = {  # `model_type` of config.json -> class of the library
    "bert": "BertModel",
    "clip_text_model": "CLIPTextModel",
    "t5": "T5EncoderModel",
    "gemma": "GemmaModel",
    "gemma2": "Gemma2Model",
}


def main(folder: str, inputs: str, threads: str) -> None:
    """Answers the lines of standard input."""
    import numpy as np
    import torch
    import transformers

    torch.set_num_threads(int(threads))
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        kind = json.load(file)["model_type"]
    model = getattr(transformers, CLASSES[kind]).from_pretrained(folder, dtype=torch.float32).eval()
    with np.load(inputs) as arrays:
        ids, mask = (torch.from_numpy(arrays[name].astype(np.int64)) for name in ("ids", "mask"))

    def states():
        with torch.inference_mode():
            # CLIP is trained and used without a mask: padding after the text is seen by nothing but later padding.
            return model(input_ids=ids, attention_mask=None if kind.startswith("clip") else mask).last_hidden_state

    states()
    print(json.dumps({"torch": torch.__version__, "transformers": transformers.__version__}), flush=True)
    for line in sys.stdin:
        word, _, path = line.strip().partition(" ")
        if word == "save":
            np.save(path, states().numpy())
            print(json.dumps({}), flush=True)
            continue
        began, busy = time.perf_counter(), time.process_time()
        states()
        print(json.dumps({"seconds": time.perf_counter() - began, "cpu_s": time.process_time() - busy}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
