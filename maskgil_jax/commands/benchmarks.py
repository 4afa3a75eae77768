"""`maskgil evaluate --benchmark`: draws the prompts of a benchmark, reads its official results back,
or scores the images."""

from __future__ import annotations

import pathlib
from typing import Any

from maskgil_jax.commands.parser import at_least, one_of, path
from maskgil_jax.commands.start import add_process_options

NAMES = ("geneval", "dpg", "emoji-scenes", "emoji-captions", "emoji-classes", "polyvoice")
_OFFICIAL = ("geneval", "dpg")  # judged by networks that are not part of this package


def add_benchmark_options(sub) -> None:
    """The options of `--benchmark`."""
    group = sub.add_argument_group("benchmarks: images of --weights are drawn to the folder --out, or --results are read")
    group.add_argument("--benchmark", type=one_of(*NAMES), metavar="NAME", help=", ".join(NAMES))
    group.add_argument(
        "--prompts",
        type=path,
        metavar="PATH",
        help="your copy: evaluation_metadata.jsonl (geneval), dpg_bench/prompts (dpg), folder of recordings (polyvoice)",
    )
    group.add_argument(
        "--tts", metavar="NAME", help="polyvoice: speak the texts of --prompts into --out: espeak-ng, gtts, kokoro"
    )
    group.add_argument("--speech", metavar="MODEL", help="polyvoice: Whisper, for recordings without `heard` (default: base)")
    group.add_argument("--results", type=path, metavar="FILE", help="results of the official evaluator (geneval, dpg)")
    group.add_argument("--per-prompt", type=at_least(1), metavar="N", help="geneval: images of each prompt (default: 4)")
    group.add_argument("--height", type=at_least(1), metavar="N", help="height in pixels (default: the training size)")
    group.add_argument("--width", type=at_least(1), metavar="N", help="width in pixels (default: the training size)")
    group.add_argument("--negative-prompt", metavar="TEXT", help="what guidance moves away from (default: no text)")
    group.add_argument("--text-encoder", type=path, metavar="FOLDER", help="encoder of training, if it is elsewhere now")
    group.add_argument("--overwrite", action="store_true", help="delete images of other settings in --out first")
    add_process_options(sub)


def run_benchmark(args) -> None:
    """Draws or reads, as the options say."""
    from maskgil_jax.config import require

    name = args.benchmark
    for option in ("samples", "tokenizer", "reference", "save_samples"):
        require(not getattr(args, option), f"--{option.replace('_', '-')}: does not go with --benchmark {name}")
    require(name == "polyvoice" or not (args.tts or args.speech), f"--tts, --speech: belong to polyvoice, not to {name}")
    if args.tts:
        return build_set(args)
    if args.results:
        require(name in _OFFICIAL, f"--results: belongs to {' and '.join(_OFFICIAL)}; {name} is scored as it is drawn")
        require(not args.weights, "--results, --weights: give one of them")
        return read_back(name, args.results, args.out)
    require(bool(args.weights), f"--benchmark {name}: give --weights to draw with" + (", or --results" * (name in _OFFICIAL)))
    require(args.prompts is not None or name.startswith("emoji"), f"--prompts: give your copy of {name}; see --help")
    require(args.per_prompt is None or name == "geneval", f"--per-prompt: belongs to geneval, not to {name}")
    sized = args.height is not None or args.width is not None
    require(not (sized and name.startswith("emoji")), f"--height, --width: {name} has sizes of its own")
    return _DRAW[name](args)


def build_set(args) -> None:
    """Speaks the texts of --prompts into the folder --out."""
    from maskgil_jax.config import require
    from maskgil_jax.evaluation.benchmarks import spoken_sets

    require(not (args.weights or args.results), "--tts: makes a set alone; give --weights in a second command")
    require(args.prompts is not None and args.out is not None, "--tts: give --prompts FILE (.jsonl or .txt) and --out FOLDER")
    phrases = spoken_sets.read_phrases(args.prompts)[: args.count]
    file = spoken_sets.build_spoken_set(phrases, args.out, args.tts, args.overwrite)
    print(f"{len(phrases)} recordings by {args.tts}: {file}")


def read_back(name: str, results: str, out: str | None) -> None:
    """Prints the scores of an official results file, GenEval's beside the paper's.

    With --out writes results.json there too.
    """
    import json

    from maskgil_jax.evaluation.benchmarks import dpg, geneval
    from maskgil_jax.evaluation.benchmarks.layouts import SETTINGS, settings_text
    from maskgil_jax.files.atomic import write_json

    benchmark: Any = {"geneval": geneval, "dpg": dpg}[name]
    settings: dict = {}
    if out and (pathlib.Path(out) / SETTINGS).exists():
        settings = json.loads((pathlib.Path(out) / SETTINGS).read_text(encoding="utf-8"))
        print(settings_text(settings) + "\n")
    items = settings.get("benchmark", {}).get("items")
    scores = benchmark.read_results(results, items) if items else benchmark.read_results(results)
    print(benchmark.as_markdown(scores))
    if out:
        write_json(pathlib.Path(out) / "results.json", {**settings, "scores": scores, "results": results})


def loaded(args) -> Any:
    """The pipeline of --weights with the decoding options, over this process's devices."""
    import jax

    from maskgil_jax.commands.decoding_options import with_cli_options
    from maskgil_jax.commands.start import join_processes, prepare_jax
    from maskgil_jax.pipelines.pipeline import load

    join_processes(args)
    prepare_jax()
    pipeline = with_cli_options(load(args.weights, text_encoder=args.text_encoder), args)
    return pipeline if len(jax.local_devices()) == 1 else pipeline.over()


def draw(pipeline: Any, args, about: dict, **asked: Any) -> pathlib.Path:
    """Draws the images of a benchmark and prints the settings; the folder of the job."""
    import json

    import jax

    from maskgil_jax.evaluation.benchmarks.layouts import SETTINGS, draw_benchmark, settings_text

    out = pathlib.Path(args.out or args.benchmark)
    options = dict(seed=args.seed, batch_size=args.batch_size, overwrite=args.overwrite)
    drawn = draw_benchmark(pipeline, out, {"name": args.benchmark, **about}, **asked, **options)
    if jax.process_index() == 0:
        print(settings_text(json.loads((out / SETTINGS).read_text(encoding="utf-8"))) + "\n")
    return drawn


def _requests(args, texts: list[str], each: int = 1) -> list[Any]:
    from maskgil_jax.pipelines.prompts import PromptRequest

    options = dict(negative_prompt=args.negative_prompt, height=args.height, width=args.width)
    return [PromptRequest(text, **options) for text in texts for _ in range(each)]


def _geneval(args) -> None:
    import jax

    from maskgil_jax.evaluation.benchmarks import geneval
    from maskgil_jax.evaluation.benchmarks.layouts import IMAGES, digest

    prompts, each = geneval.read_prompts(args.prompts)[: args.count], args.per_prompt or geneval.PER_PROMPT
    about = {"prompts": len(prompts), "per_prompt": each, "file": digest(args.prompts)}
    drawn = draw(loaded(args), args, about, prompts=_requests(args, [record["prompt"] for record in prompts], each))
    if jax.process_index() == 0:
        images = drawn.parent / IMAGES
        geneval.lay_out(drawn, images, prompts, each)
        print(f"{len(prompts)} folders in {images}. Run GenEval's evaluation/evaluate_images.py on it, then")
        print(f"maskgil evaluate --benchmark geneval --results results.jsonl --out {drawn.parent}")


def _dpg(args) -> None:
    import jax

    from maskgil_jax.evaluation.benchmarks import dpg
    from maskgil_jax.evaluation.benchmarks.layouts import IMAGES, digest

    prompts = dpg.read_prompts(args.prompts)[: args.count]
    items = [item for item, _ in prompts]
    pipeline = loaded(args)
    rows, columns = pipeline.grid_of(args.height, args.width)
    about = {"prompts": len(prompts), "per_prompt": dpg.PER_PROMPT, "folder": digest(args.prompts)}
    drawn = draw(pipeline, args, about, prompts=_requests(args, [text for _, text in prompts], dpg.PER_PROMPT))
    if jax.process_index() == 0:
        images, cell = drawn.parent / IMAGES, pipeline.tokenizer.cfg.downsample
        dpg.lay_out(drawn, images, items)
        side = (
            f"--resolution {rows * cell}"
            if rows == columns
            else f"(its evaluator expects squares, not {rows}x{columns} tokens)"
        )
        print(f"{len(items)} grids in {images}. Run DPG-Bench's compute_dpg_bench.py on it with --pic-num 4 {side}, then")
        print(f"maskgil evaluate --benchmark dpg --results dpg-bench_..._results.txt --out {drawn.parent}")


def _emoji_scenes(args) -> None:
    import dataclasses

    import jax
    import numpy as np

    from maskgil_jax.evaluation.benchmarks import emoji_scenes
    from maskgil_jax.evaluation.benchmarks.layouts import job_images
    from maskgil_jax.files.images import read_image
    from maskgil_jax.tokenizers.images import reconstruct

    pipeline, prompts = loaded(args), emoji_scenes.scene_prompts(args.count or 100)
    requests = [
        dataclasses.replace(request, height=prompt.scene.height, width=prompt.scene.width)
        for request, prompt in zip(_requests(args, [prompt.prompt for prompt in prompts]), prompts)
    ]
    drawn = draw(pipeline, args, {"per_task": args.count or 100, "threshold": emoji_scenes.THRESHOLD}, prompts=requests)
    if jax.process_index() != 0:
        return
    images = [read_image(file) for file in job_images(drawn, len(prompts))]
    tokenizer = "true scenes through the tokenizer"
    known = emoji_scenes.reference_scores(prompts, lambda images: np.asarray(reconstruct(pipeline.tokenizer, images)))
    known = {tokenizer if name.endswith("transformed") else name: row for name, row in known.items()}
    _report(drawn.parent, {"generated": emoji_scenes.score(prompts, images), **known}, emoji_scenes.as_markdown)


def _emoji_captions(args) -> None:
    import jax

    from maskgil_jax.evaluation.benchmarks import emoji_drawings
    from maskgil_jax.evaluation.benchmarks.layouts import job_images
    from maskgil_jax.evaluation.features import load_feature_extractor

    pipeline, prompts = loaded(args), emoji_drawings.caption_prompts(args.count or emoji_drawings.COUNT, args.seed)
    requests = _requests(args, [prompt.prompt for prompt in prompts])
    drawn = draw(pipeline, args, {"prompts": len(prompts)}, prompts=requests)
    if jax.process_index() == 0:
        extractor, files = load_feature_extractor(args.features or "demo"), job_images(drawn, len(prompts))
        scores = emoji_drawings.caption_scores(prompts, files, extractor, pipeline.tokenizer)
        _report(drawn.parent, scores, emoji_drawings.as_markdown)


def _emoji_classes(args) -> None:
    import jax

    from maskgil_jax.evaluation.benchmarks import emoji_drawings
    from maskgil_jax.evaluation.benchmarks.layouts import job_images
    from maskgil_jax.evaluation.features import load_feature_extractor

    labels = emoji_drawings.class_labels(args.count or emoji_drawings.COUNT)
    drawn = draw(loaded(args), args, {"images": len(labels)}, labels=labels)
    if jax.process_index() == 0:
        extractor = load_feature_extractor(args.features or "demo")
        scores = emoji_drawings.class_scores(labels, job_images(drawn, len(labels)), extractor)
        _report(drawn.parent, scores, emoji_drawings.as_markdown)


def _polyvoice(args) -> None:
    import jax

    from maskgil_jax.config import require
    from maskgil_jax.evaluation.benchmarks import polyvoice
    from maskgil_jax.evaluation.benchmarks.layouts import digest, job_images
    from maskgil_jax.evaluation.clip_embedding import ClipEmbedder
    from maskgil_jax.files.images import read_image

    require(bool(args.clip), "--clip: give the Hugging Face folder, or hf://owner/repo, of a CLIP, for the CLIPScores")
    read = polyvoice.read_spoken(args.prompts)[: args.count]
    known = polyvoice.transcribed(read, args.speech or "base")
    items = [item for item in known if item.heard.strip()]
    require(bool(items), f"{args.prompts}: Whisper hears no words in any of its {len(read)} recordings; try a larger --speech")
    options = dict(negative_prompt=args.negative_prompt, height=args.height, width=args.width)
    requests = polyvoice.requests_of(items, args.seed, **options)
    about = {"recordings": len(items), "metadata": digest(pathlib.Path(args.prompts) / "metadata.jsonl"), "clip": args.clip}
    if known != read or len(items) < len(read):
        made = sum(a != b for a, b in zip(known, read, strict=True))
        about |= {"transcribed": made, "unheard": len(read) - len(items), "speech": args.speech or "base"}
    drawn = draw(loaded(args), args, about, prompts=requests)
    if jax.process_index() == 0:
        polyvoice.write_heard(items, drawn.parent / "heard.jsonl")
        images = map(read_image, job_images(drawn, len(requests)))
        _report(drawn.parent, polyvoice.score_images(items, images, ClipEmbedder(args.clip)), polyvoice.as_markdown)


def _report(out: pathlib.Path, rows: dict, as_markdown) -> None:
    """Prints the scores and writes them beside the settings."""
    import json

    from maskgil_jax.evaluation.benchmarks.layouts import SETTINGS
    from maskgil_jax.files.atomic import write_json

    settings = json.loads((out / SETTINGS).read_text(encoding="utf-8"))
    write_json(out / "results.json", {**settings, "scores": rows})
    print(f"{as_markdown(rows)}\n\nresults: {out / 'results.json'}")


_DRAW = {
    "geneval": _geneval,
    "dpg": _dpg,
    "emoji-scenes": _emoji_scenes,
    "emoji-captions": _emoji_captions,
    "emoji-classes": _emoji_classes,
    "polyvoice": _polyvoice,
}
