"""maskgil evaluate: evaluates samples, a tokenizer, or the rows of one of the paper's tables."""

from __future__ import annotations

import argparse
import pathlib

from maskgil_jax.commands.benchmarks import add_benchmark_options, read_back, run_benchmark
from maskgil_jax.commands.decoding_options import add_decoding_options, with_cli_options
from maskgil_jax.commands.run_files import read_run_file
from maskgil_jax.commands.start import prepare_jax


def add(command) -> None:
    sub = command("evaluate", run, "Evaluate samples, a tokenizer, or the rows of one of the paper's tables.", overrides=True)
    what = sub.add_argument_group(
        "what to evaluate (one of these; with --config, --weights is the folder of the rows' weights)"
    )
    what.add_argument("--weights", help="pipeline folder, shipped name or hf://owner/repo to draw samples from")
    what.add_argument("--samples", help="images: a folder, an .npz (arr_0), an .array_record, emoji or tfds:NAME")
    what.add_argument("--tokenizer", help="weights folder of a tokenizer, evaluated by its reconstructions of --data")
    what.add_argument("--config", metavar="FILE", help="run file of a table, e.g. configs/eval_table3.py")
    what.add_argument("--geneval-results", metavar="FILE", help="as --benchmark geneval --results FILE")

    add_benchmark_options(sub)

    how = sub.add_argument_group("reference, features and metrics")
    how.add_argument("--reference", help="an ADM .npz, a stats file, a folder, emoji or tfds:NAME")
    how.add_argument("--features", help="weights folder whose features are compared: a converted FID Inception, or demo")
    how.add_argument("--protocol", help="how images enter the FID Inception: adm (default), pytorch-fid or torch-fidelity")
    how.add_argument("--metrics", action=MetricsOption, help="comma-separated names")
    how.add_argument("--texts", metavar="FILE", help="for clip_score: one text per image, in order (default: of the manifest)")
    how.add_argument(
        "--clip", default="", metavar="MODEL", help="for clip_score: Hugging Face folder, or hf://owner/repo, of a CLIP"
    )
    add_source_options(how)

    draw = sub.add_argument_group("samples of --weights")
    draw.add_argument("--count", type=image_count, help="images to draw (default: 50000), or to use of --samples and --data")
    draw.add_argument("--seed", type=int, default=0, help="seed of the samples (default: 0)")
    draw.add_argument(
        "--labels",
        default="balanced",
        choices=("balanced", "reference"),
        help="each class equally often (default), or with the frequencies of the reference data set",
    )
    draw.add_argument("--save-samples", metavar="PATH", help="also write them: a folder of PNGs, an .npz or an .array_record")
    add_decoding_options(sub)

    tok = sub.add_argument_group("reconstructions of --tokenizer")
    tok.add_argument("--data", help="images to reconstruct, as for --samples")
    tok.add_argument("--train-reference", metavar="SPEC", help="also compute the distance to this reference, e.g. ADM's .npz")
    tok.add_argument("--lpips", metavar="DIR", help="LPIPS weights folder; without it LPIPS is left out")

    sub.add_argument(
        "--out",
        type=output_path,
        help="JSON file (default: evaluation.json), or the folder of a table's results (default: evaluation)",
    )
    sub.add_argument("--batch-size", type=batch_size, default=64, help="images per batch (default: 64)")


class MetricsOption(argparse.Action):
    """`--metrics`. Its help lists the rows of `evaluation.metrics`, which import JAX, only when it is printed."""

    @property
    def help(self) -> str:
        from maskgil_jax.evaluation.metrics import sample_metrics

        return f"{self._text}: " + "; ".join(f"{name} ({row.help})" for name, row in sample_metrics().items())

    @help.setter
    def help(self, text: str) -> None:
        self._text = text

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        setattr(namespace, self.dest, values)


def output_path(text: str) -> str:
    """A path that is not empty."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; give a path")
    return text


def image_size(text: str) -> tuple[int, int]:
    """SIZE or HEIGHTxWIDTH in pixels."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) >= 1 for side in sides):
        raise argparse.ArgumentTypeError(f"expected a number of pixels, or HEIGHTxWIDTH, each at least 1, got {text!r}")
    return int(sides[0]), int(sides[-1])


def image_count(text: str) -> int:
    """A number of images, at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of images of at least 1, got {text!r}")
    return int(text)


def batch_size(text: str) -> int:
    """A number of images per batch, at least 1."""
    return image_count(text)


def add_source_options(group) -> None:
    """Adds the options of data sets and folders, for `evaluate` and `stats`."""
    group.add_argument("--split", default="train", help="split of emoji and tfds:NAME (default: train)")
    group.add_argument("--data-label", default="subgroup", help="emoji only: subgroup, group or style")
    group.add_argument("--data-dir", help="tfds only: folder of the prepared data sets")
    group.add_argument(
        "--image-size",
        type=image_size,
        metavar="SIZE",
        help="centre-crop every image to a square of SIZE pixels, or to HEIGHTxWIDTH; without it all must have one size",
    )


def source_options(args) -> dict:
    """The arguments of `images.open_image_set` that these options set, except the size."""
    return dict(split=args.split, label=args.data_label, data_dir=args.data_dir)


def run(args, rest) -> None:
    """maskgil evaluate"""
    from maskgil_jax.config import ConfigError, require

    if rest and not args.config:
        raise ConfigError(f"unknown option {rest[0]}; --config.name=value needs --config")
    if args.config:
        given = [f"--{name}" for name in ("samples", "tokenizer", "geneval_results", "benchmark") if getattr(args, name)]
        require(not given, f"--config and {' and '.join(given)}: give one of them")
        return table(args, rest)
    if args.benchmark:
        require(not args.geneval_results, "--geneval-results: does not go with --benchmark; give --results")
        return run_benchmark(args)
    stray = next(
        (name for name in ("prompts", "results", "per_prompt", "overwrite", "tts", "speech") if getattr(args, name)), None
    )
    require(stray is None, f"--{(stray or '').replace('_', '-')}: belongs to --benchmark")
    given = [name for name in ("weights", "samples", "tokenizer", "geneval_results") if getattr(args, name)]
    require(len(given) == 1, "give one of --weights, --samples, --tokenizer, --benchmark, --config; see --help")
    if given == ["geneval_results"]:
        return read_back("geneval", args.geneval_results, args.out)
    return (tokenizer if args.tokenizer else samples)(args)


def samples(args) -> None:
    """Evaluates samples, given or drawn, against a reference."""
    from maskgil_jax.config import require
    from maskgil_jax.evaluation.clip_embedding import texts_of
    from maskgil_jax.evaluation.features import load_feature_extractor
    from maskgil_jax.evaluation.images import open_image_set, saved
    from maskgil_jax.evaluation.metrics.clip import ClipScorer
    from maskgil_jax.evaluation.reference import open_reference
    from maskgil_jax.evaluation.run import default_metrics, evaluate, needs

    metrics = tuple(name.strip() for name in (args.metrics or "").split(",") if name.strip())
    if metrics == ("clip_score",) and args.samples and not args.reference:
        return samples_by_clip(args)
    require(bool(args.reference), "--reference: give an ADM .npz, a stats file, a folder, emoji or tfds:NAME")
    require(not args.save_samples or bool(args.weights), "--save-samples: belongs to --weights")
    prepare_jax()
    extractor = load_feature_extractor(args.features, args.protocol)
    clip = None
    if args.texts or "clip_score" in metrics:
        clip = ClipScorer(clip_embedder(args), texts_of(args.samples or args.weights, args.texts))
    if args.weights:
        images, warnings = drawn(args)
    else:
        options = dict(image_size=args.image_size, count=args.count, **source_options(args))
        images, warnings = open_image_set(args.samples, **options), []
    if not metrics:
        known = bool(extractor.class_names) and images.class_names == extractor.class_names
        metrics = default_metrics(extractor, known, clip is not None)
    moments, keep = needs(metrics)
    if args.save_samples:
        images = saved(images, args.save_samples)
    reference = open_reference(
        args.reference,
        extractor,
        moments=moments or ("features",),
        keep=keep,
        image_size=images.size,
        batch_size=args.batch_size,
        **source_options(args),
    )
    result = evaluate(images, reference, extractor, metrics, batch_size=args.batch_size, clip=clip)
    result["warnings"] = warnings + result["warnings"]
    show(result, args.out or "evaluation.json")


def clip_embedder(args):
    """The CLIP of --clip."""
    from maskgil_jax.config import require
    from maskgil_jax.evaluation.clip_embedding import ClipEmbedder

    require(bool(args.clip), "--clip: give the Hugging Face folder, or hf://owner/repo, of a CLIP, for clip_score")
    return ClipEmbedder(args.clip)


def samples_by_clip(args) -> None:
    """CLIPScore alone, which needs neither a reference nor a feature network."""
    from maskgil_jax.evaluation.clip_embedding import score_samples, texts_of

    prepare_jax()
    texts = texts_of(args.samples, args.texts)
    options = dict(image_size=args.image_size, count=args.count, **source_options(args))
    show(score_samples(args.samples, texts, clip_embedder(args), **options), args.out or "evaluation.json")


def drawn(args):
    """Returns (the samples of --weights as an image set, warnings)."""
    from maskgil_jax.checkpoints.weights import load_weights
    from maskgil_jax.config import require
    from maskgil_jax.evaluation.generated import cycled_labels, even_counts, generated_set, labels_like
    from maskgil_jax.evaluation.images import open_image_set
    from maskgil_jax.pipelines.pipeline import load

    pipeline = with_cli_options(load(args.weights), args)
    count = 50_000 if args.count is None else args.count
    require(count >= 2, f"--count: must be at least 2, got {count}")
    classes = len(pipeline.class_names)
    if args.labels == "reference":
        source = open_image_set(args.reference, image_size=args.image_size, **source_options(args))
        require(
            source.labels is not None and source.class_names == pipeline.class_names,
            f"--labels reference: {args.reference} does not have the classes of the generator; use balanced",
        )
        labels, warnings = labels_like(source.labels(), count, args.seed), []
    else:
        labels, warnings = cycled_labels(count, classes), even_counts(count, classes)
    hashes = {part: load_weights(args.weights, part).hash for part in ("tokenizer", "generator")}
    found = generated_set(pipeline, labels, seed=args.seed, batch_size=args.batch_size, hashes=hashes)
    found.provenance["labels"] = args.labels
    return found, warnings


def tokenizer(args) -> None:
    """Evaluates a tokenizer on a set of images."""
    from maskgil_jax.checkpoints.weights import load_weights
    from maskgil_jax.config import require
    from maskgil_jax.evaluation.features import load_feature_extractor
    from maskgil_jax.evaluation.images import open_image_set
    from maskgil_jax.evaluation.reconstruction import evaluate_tokenizer, open_lpips
    from maskgil_jax.evaluation.reference import open_reference
    from maskgil_jax.files.images import save_png

    require(bool(args.data), "--data: give the images to reconstruct: a folder, an .npz, emoji or tfds:NAME")
    names = [name.strip() for name in (args.metrics or "").split(",") if name.strip()]
    prepare_jax()
    lpips = open_lpips(args.lpips) if args.lpips or "lpips" in names else None
    extractor = load_feature_extractor(args.features, args.protocol)
    weights = load_weights(args.tokenizer, "tokenizer")
    size = args.image_size or getattr(weights.cfg, "image_size", None)
    images = open_image_set(args.data, image_size=size, count=args.count, **source_options(args))
    train = None
    if args.train_reference:
        options = dict(image_size=images.size, batch_size=args.batch_size, label=args.data_label, data_dir=args.data_dir)
        train = open_reference(args.train_reference, extractor, moments=("features",), keep=False, **options)
    result, sheet = evaluate_tokenizer(
        weights, images, extractor, train_reference=train, lpips=lpips, batch_size=args.batch_size
    )
    out = pathlib.Path(args.out or "evaluation.json")
    show(result, out)
    save_png(out.with_suffix(".png"), sheet)
    print(f"originals above reconstructions: {out.with_suffix('.png')}")


def table(args, rest) -> None:
    """Evaluates the rows of a run file."""
    from maskgil_jax.config import choose, require
    from maskgil_jax.evaluation.benchmarks.paper_tables import run_table

    config = read_run_file(args.config, rest)
    choose("config.task", config.task, ("evaluation",))
    require(bool(args.weights), "--weights: give the folder with a sub-folder of weights for each row")
    if args.features:
        config.features = args.features
    if args.reference:
        config.reference = args.reference
    prepare_jax()
    out = args.out or "evaluation"
    run_table(config, args.weights, out)
    print(f"\nresults: {out}")


def show(result: dict, out) -> None:
    """Writes a result and prints it."""
    from maskgil_jax.evaluation.report import as_markdown, as_table
    from maskgil_jax.files.atomic import write_json

    write_json(out, result)
    print(f"{as_table(result)}\n\n{as_markdown(result)}\n\nresult: {out}")
