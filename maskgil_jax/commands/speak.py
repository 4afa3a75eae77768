"""maskgil speak: spoken prompts, in any of Whisper's languages, to images."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable
from typing import Any

from maskgil_jax.commands.decoding_options import add_decoding_options, with_cli_options
from maskgil_jax.commands.parser import at_least, path
from maskgil_jax.commands.sample import add_pipeline_options
from maskgil_jax.commands.start import prepare_jax


def add(command) -> None:
    sub = command("speak", run, "Draw what is said, in a file or into the microphone, in any of Whisper's languages.")
    sub.add_help_all()
    sub.add_argument("file", nargs="?", type=path, metavar="FILE", help="recording: WAV, Ogg, WebM, FLAC, MP3 or MP4")
    sub.add_argument("--microphone", action="store_true", help="listen; a phrase ends after half a second of silence")
    sub.add_argument("--speech", default="base", metavar="MODEL", help="Whisper: tiny to large-v3, or a folder (default: base)")
    sub.add_argument(
        "--language", metavar="CODE", help="language that is spoken, e.g. zh (default: detected, in twice the time)"
    )
    sub.add_argument("--text-encoder", type=path, metavar="FOLDER", help="encoder of training, if not where the weights say")
    sub.add_argument("--count", type=at_least(1), default=1, metavar="N", help="images per phrase (default: 1)")
    sub.add_argument("--out", type=path, default="spoken", help="folder for the images (default: spoken)")
    add_pipeline_options(sub)
    add_decoding_options(sub)


def run(args, rest) -> None:
    """maskgil speak"""
    from maskgil_jax.conditioning.languages import language_name
    from maskgil_jax.conditioning.speech import NoSpeech, check_model, load_transcriber, microphone, phrases
    from maskgil_jax.config import require
    from maskgil_jax.files.images import save_png
    from maskgil_jax.pipelines.pipeline import load
    from maskgil_jax.pipelines.words import request_of_words

    require((args.file is None) == args.microphone, "FILE, --microphone: give one of them")
    check_model(args.speech)
    prepare_jax()
    pipeline = with_cli_options(load(args.weights, rope_scaling=args.rope_scaling, text_encoder=args.text_encoder), args)
    transcriber = load_transcriber(args.speech)
    recordings: Iterable[Any] = [args.file]
    if args.microphone:
        print("listening; end with Ctrl+C", flush=True)
        recordings = phrases(microphone())
    out, written = pathlib.Path(args.out), 0
    out.mkdir(parents=True, exist_ok=True)
    for recording in recordings:
        try:
            heard = transcriber(recording, args.language)
        except NoSpeech as error:
            if args.microphone:
                print(error, flush=True)
                continue
            raise
        print(f"{language_name(heard.language)} ({heard.language_probability:.0%}): {heard.text}", flush=True)
        for warning in heard.warnings:
            print(f"warning: {warning}", flush=True)
        request, shown = request_of_words(pipeline, heard.text)
        if shown != heard.text:
            print(f"drawn as: {shown}", flush=True)
        seeds = [(args.seed + i) % 2**32 for i in range(args.count)]
        for image in pipeline(**request, seeds=seeds):
            save_png(out / f"spoken-{written:03d}.png", image)
            written += 1
    print(f"{written} images in {out}")
