"""maskgil serve: an HTTP server with the OpenAI images API and a web page."""

from __future__ import annotations

import os
import socket

from maskgil_jax.commands.parser import Parser, at_least, in_range, path


def add(command) -> None:
    sub = command("serve", run, "Serve a pipeline: the OpenAI images API and a web page.")
    sub.add_help_all()
    sub.add_argument(
        "--weights", type=path, default="demo", help="pipeline folder, shipped name or hf://owner/repo (default: demo)"
    )
    sub.add_argument("--ar", metavar="WEIGHTS", help="causal network with the same tokenizer, for hybrid sampling")
    sub.add_argument("--text-encoder", type=path, metavar="FOLDER", help="encoder of training, if not where the weights say")
    sub.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine alone)")
    sub.add_argument("--port", type=at_least(0), default=8000, metavar="N", help="port (default: 8000; 0: any free one)")
    sub.add_argument(
        "--api-key-file",
        type=path,
        metavar="FILE",
        help="file with the key that clients must send (default: the variable MASKGIL_API_KEY; without both, no key)",
    )
    sub.add_argument("--speech", metavar="MODEL", help="Whisper model for spoken prompts: tiny to large-v3, or a folder")
    sub.add_argument("--no-page", action="store_true", help="serve the API alone, without gradio")
    sub.add_argument("--model-name", metavar="NAME", help="name of the model in the API (default: the name of the weights)")
    sub.add_argument("--root-path", default="", metavar="PATH", help="path at which a proxy serves this, e.g. /maskgil")
    _add_limits(sub)


def _add_limits(sub: Parser) -> None:
    limits = sub.add_argument_group("batches and limits")
    sizes = "images per network call, with commas between; all are compiled at the start (default: 1,2,4,8)"
    limits.add_argument("--batch-sizes", metavar="N,N", help=sizes)
    limits.add_argument(
        "--max-wait-ms", type=in_range(0, 1000), metavar="X", help="wait for images that share the batch (default: 4)"
    )
    limits.add_argument("--max-queue", type=at_least(1), metavar="N", help="images that may wait; then 429 (default: 64)")
    limits.add_argument(
        "--time-limit", type=in_range(1, 86400), metavar="SECONDS", help="until a waiting request is given up (default: 60)"
    )
    limits.add_argument("--max-images", type=at_least(1), metavar="N", help="images per request (default: 8)")
    limits.add_argument("--sizes", metavar="WxH,WxH", help="sizes in pixels that are drawn (default: training size, 3:2, 2:3)")
    limits.add_argument("--steps", metavar="N,N", help="numbers of steps that are drawn (default: 4,8,16,32)")
    rare = {
        "--max-prompt": "characters of a prompt (default: 1000)",
        "--max-upload": "bytes of an upload (default: 25 million)",
        "--max-side": "pixels a side of an uploaded picture (default: 4096)",
        "--max-connections": "open connections (default: 512)",
    }
    text = "time for a client to send its headers, and its body (default: 10 and 30)"
    sub.add_rare(limits, "--client-seconds", type=in_range(1, 86400), metavar="SECONDS", help=text)
    for name, text in rare.items():
        sub.add_rare(limits, name, type=at_least(1), metavar="N", help=text)


def run(args, rest) -> None:
    """maskgil serve"""
    from maskgil_jax.config import ConfigError, require

    missing = "pip install 'maskgil_jax[web]'"
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise ConfigError(f"serve: needs FastAPI and uvicorn: {missing}") from None
    if not args.no_page:
        try:
            import gradio  # noqa: F401
        except ImportError:
            raise ConfigError(f"serve: the page needs gradio: {missing}; or give --no-page") from None
    import jax

    from maskgil_jax.commands.start import prepare_jax
    from maskgil_jax.pipelines.pipeline import load
    from maskgil_jax.web.server import create_server

    prepare_jax()
    cfg, key = serve_config(args), _api_key(args.api_key_file)
    require(key is None or len(key) >= 8, "API key: must have at least 8 characters")
    sock = bound_socket(args.host, args.port)
    pipeline = load(args.weights, ar=args.ar, text_encoder=args.text_encoder)
    if len(jax.local_devices()) > 1:
        pipeline = pipeline.over()
    speech = None
    if args.speech:
        from maskgil_jax.web.listening import Speech

        print(f"loading Whisper {args.speech}", flush=True)
        speech = Speech(args.speech, cfg.max_audio_seconds)
    server = create_server(
        pipeline,
        cfg,
        model=args.model_name or os.path.basename(args.weights.rstrip("/")),
        api_key=key,
        speech=speech,
        page=not args.no_page,
        root_path=args.root_path,
        progress=lambda text: print(text, flush=True),
    )
    where = "API" if args.no_page else "page and API"
    print(f"{where} at http://{args.host}:{sock.getsockname()[1]}{args.root_path or '/'}", flush=True)
    if args.host not in ("127.0.0.1", "localhost", "::1") and key is None:
        print(f"warning: {args.host} can be reached by others and no API key is set", flush=True)
    server.run(sockets=[sock])


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that has the address, before anything is loaded; it listens when the server runs."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"--port: cannot listen on {host}:{port} ({error.strerror}); give another") from None
    return sock


def serve_config(args):
    """The `ServeConfig` of the command line."""
    from maskgil_jax.config import ServeConfig

    given = {
        "batch_sizes": _numbers("--batch-sizes", args.batch_sizes),
        "steps": _numbers("--steps", args.steps),
        "sizes": _sizes(args.sizes),
    }
    for name in ("max_wait_ms", "max_queue", "time_limit", "max_images", "max_prompt", "max_upload", "max_side"):
        given[name] = getattr(args, name)
    given |= {
        "max_connections": args.max_connections,
        "header_seconds": args.client_seconds,
        "body_seconds": args.client_seconds,
    }
    if given["max_queue"] is not None and given["max_images"] is None:
        given["max_images"] = min(ServeConfig.max_images, given["max_queue"])
    return ServeConfig(**{name: value for name, value in given.items() if value is not None})


def _numbers(option: str, text: str | None) -> tuple[int, ...] | None:
    from maskgil_jax.config import require

    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    require(all(part.isdecimal() for part in parts), f"{option}: expected whole numbers with commas between, got {text!r}")
    return tuple(map(int, parts))


def _sizes(text: str | None) -> tuple[tuple[int, int], ...] | None:
    from maskgil_jax.config import require

    if text is None:
        return None
    pairs = [part.strip().lower().split("x") for part in text.split(",")]
    sound = all(len(pair) == 2 and all(side.isdecimal() for side in pair) for pair in pairs)
    require(sound, f"--sizes: expected WIDTHxHEIGHT in pixels with commas between, e.g. 64x64,96x64; got {text!r}")
    return tuple((int(height), int(width)) for width, height in pairs)


def _api_key(file: str | None) -> str | None:
    """The key in a file, or in the environment: not on the command line, which other users of a machine can read."""
    if file is None:
        return os.environ.get("MASKGIL_API_KEY") or None
    with open(file, encoding="utf-8") as lines:
        return lines.read().strip()
