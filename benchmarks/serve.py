"""The server under load, and the way from the end of a spoken phrase to its picture.

python -m benchmarks.serve --clients 1,8,50 --seconds 20       # throughput and latency, with and without shared batches
python -m benchmarks.serve --clients 50 --seconds 120 --batching on --verify
python -m benchmarks.serve --speech MODEL --audio "CLIPS/*/*.wav" --phrases 50

--verify compares every answer's image with the pipeline's own, bit for bit. Traffic goes to a server that this starts
on 127.0.0.1. MODEL: what `maskgil speak --speech` takes.
"""

from __future__ import annotations

import argparse
import base64
import collections
import contextlib
import glob
import http.client
import io
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
from PIL import Image

from maskgil_jax.files.atomic import write_json

BATCHES = {"on": "1,2,4,8", "off": "1"}
PAIRS = 200  # distinct (class, seed) requests


@contextlib.contextmanager
def server(weights: str, batching: str):
    """(port, process) of `maskgil serve` without the page; stopped by SIGTERM at the end."""
    command = [sys.executable, "-m", "maskgil_jax", "serve", "--weights", weights, "--port", "0", "--no-page"]
    command += ["--batch-sizes", BATCHES[batching], "--max-queue", "64"]
    with tempfile.TemporaryFile("w+") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            port = None
            while port is None:
                time.sleep(0.2)
                log.seek(0)
                text = log.read()
                found = re.search(r"http://127\.0\.0\.1:(\d+)", text)
                port = int(found[1]) if found else None
                if process.poll() is not None:
                    raise SystemExit(text)
            yield port, process
            process.send_signal(signal.SIGTERM)
            process.wait(90)
        finally:
            process.kill()


def resident(pid: int) -> float:
    """Resident memory of a process in MiB."""
    return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def load(port: int, pid: int, clients: int, seconds: float, pairs: list, expected: dict | None) -> dict:
    """Requests of one image by `clients` threads, each asking again when it has its answer.

    429 is waited for and counted.
    """
    until, lock = time.perf_counter() + seconds, threading.Lock()
    latencies, statuses, wrong, lost, memory = [], collections.Counter(), 0, 0, []

    def client(number: int) -> None:
        nonlocal wrong, lost
        rng = random.Random(number)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        while time.perf_counter() < until:
            label, seed = rng.choice(pairs)
            start = time.perf_counter()
            try:
                body = json.dumps({"prompt": str(label), "seed": seed})
                connection.request("POST", "/v1/images/generations", body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                answer = json.loads(response.read())
            except (OSError, http.client.HTTPException, ValueError):
                with lock:
                    lost += 1
                connection.close()
                continue
            took = time.perf_counter() - start
            same = True
            if response.status == 200 and expected is not None:
                image = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"]))))
                same = np.array_equal(image, expected[label, seed])
            with lock:
                statuses[response.status] += 1
                wrong += not same
                if response.status == 200:
                    latencies.append(took)
            if response.status == 429:
                time.sleep(float(response.headers["Retry-After"]) * rng.random())

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        memory.append(resident(pid))
        time.sleep(1)
    took = time.perf_counter() - start
    p50, p95 = np.percentile(latencies, [50, 95]) if latencies else (np.nan, np.nan)
    return {
        "clients": clients,
        "seconds": round(took, 1),
        "images_per_s": round(len(latencies) / took, 1),
        "p50_ms": round(1000 * p50),
        "p95_ms": round(1000 * p95),
        "statuses": dict(statuses),
        "lost": lost,
        "wrong": wrong if expected is not None else None,
        "memory_mib": [round(memory[0]), round(max(memory)), round(memory[-1])],
    }


def own_images(weights: str, pairs: list) -> dict:
    """The images of a pipeline's own calls, one request each."""
    from maskgil_jax.pipelines.pipeline import load as load_pipeline

    pipeline = load_pipeline(weights)
    return {(label, seed): pipeline([label], seed=seed, batch_size=1)[0] for label, seed in pairs}


def spoken(weights: str, model: str, pattern: str, count: int, language: bool) -> dict:
    """Seconds from the end of speech until the text, the first preview and the image, over `count` phrases."""
    from maskgil_jax.conditioning.speech import END_OF_PHRASE, NoSpeech, load_transcriber
    from maskgil_jax.config import ServeConfig
    from maskgil_jax.pipelines.pipeline import load as load_pipeline
    from maskgil_jax.web.engine import Engine
    from maskgil_jax.web.requests import RequestReader

    files = sorted(glob.glob(pattern))
    if not files:
        raise SystemExit(f"--audio: no file is called {pattern}")
    pipeline, cfg = load_pipeline(weights), ServeConfig(batch_sizes=(1,), max_wait_ms=0)
    engine, reader, transcriber = Engine(pipeline, cfg).start(), RequestReader(pipeline, cfg, weights), load_transcriber(model)
    reader.prompts.warm_up()
    times, silent = [], 0
    for number in range(count + 1):
        file = files[number % len(files)]
        with open(file, "rb") as recording:
            data = recording.read()
        start, steps = time.perf_counter(), []
        try:
            heard = transcriber(data, pathlib.Path(file).parent.name if language else None)
        except NoSpeech:
            silent += 1
            continue
        text = time.perf_counter() - start
        asked = reader.images({"prompt": heard.text, "seed": number}, nearest=True)
        ticket = engine.submit(asked.drawings, lambda *_: steps.append(time.perf_counter() - start))  # noqa: B023
        ticket.future.result()
        if number:  # the first one compiles
            times.append((text, steps[0], time.perf_counter() - start))
    engine.stop()
    p50, p95 = END_OF_PHRASE + np.percentile(np.array(times), [50, 95], axis=0)
    stages = ("text", "first_preview", "image")
    rounded = {name: {"p50_s": round(a, 2), "p95_s": round(b, 2)} for name, a, b in zip(stages, p50.tolist(), p95.tolist())}
    return {"phrases": len(times), "without_words": silent, "end_of_phrase_s": END_OF_PHRASE, **rounded}


def main() -> None:
    """Runs what the options name and prints one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="demo")
    parser.add_argument("--clients", default="1,8,50")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--batching", choices=("on", "off", "both"), default="both")
    parser.add_argument("--verify", action="store_true")
    parser.add_argument("--speech", metavar="MODEL")
    parser.add_argument("--audio", metavar="PATTERN", help="recordings; with --language their folder names the language")
    parser.add_argument("--language", action="store_true")
    parser.add_argument("--phrases", type=int, default=50)
    parser.add_argument("--json")
    args = parser.parse_args()

    rows = []
    if args.speech:
        rows.append({"language": "given" if args.language else "detected"})
        rows[-1] |= spoken(args.weights, args.speech, args.audio or "", args.phrases, args.language)
        print(json.dumps(rows[-1]), flush=True)
    else:
        rng = random.Random(0)
        pairs = [(rng.randrange(98), rng.randrange(2**32)) for _ in range(PAIRS)]
        expected = own_images(args.weights, pairs) if args.verify else None
        for batching in ("on", "off") if args.batching == "both" else (args.batching,):
            with server(args.weights, batching) as (port, process):
                load(port, process.pid, 1, 2, pairs, None)  # warm
                for clients in map(int, args.clients.split(",")):
                    found = load(port, process.pid, clients, args.seconds, pairs, expected)
                    rows.append({"batching": batching, **found})
                    print(json.dumps(rows[-1]), flush=True)
    if args.json:
        write_json(args.json, rows)


if __name__ == "__main__":
    main()
