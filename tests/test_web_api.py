"""The running server against the official `openai` client, and against clients that misbehave."""

import base64
import concurrent.futures
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from helpers.tiny_pipeline import SIDE, tiny_pipeline
from helpers.web_server import serving
from PIL import Image

pytestmark = pytest.mark.slow

for name in ("fastapi", "uvicorn", "prometheus_client", "multipart"):
    pytest.importorskip(name, reason="the server needs the extra [web]")
openai = pytest.importorskip("openai", reason="the official client of the images API")

KEY = "a-key-of-this-test"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    options = ("--no-page", "--batch-sizes", "1,4", "--max-queue", "16", "--max-upload", "300000")
    with serving(tmp_path_factory.mktemp("served"), *options, env={"MASKGIL_API_KEY": KEY}) as server:
        yield server
        assert server.process.poll() is None, server.log.read_text()


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0, timeout=60) as client:
        yield client


def pixels(entry):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(entry.b64_json))).convert("RGB"))


def png(image_hwc):
    buffer = io.BytesIO()
    Image.fromarray(image_hwc).save(buffer, format="PNG")
    return buffer.getvalue()


def post(served, path="/v1/images/generations", body=b"{}", headers=(), key=KEY):
    """(status, answer) of one request by a plain HTTP client."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    try:
        sent = {"Content-Type": "application/json", "Authorization": f"Bearer {key}", **dict(headers)}
        connection.request("POST", path, body, sent, encode_chunked="Transfer-Encoding" in sent)
        response = connection.getresponse()
        return response.status, json.loads(response.read() or b"null")
    finally:
        connection.close()


# ------------------------------------------------------------------------------------------------ the official client
def test_openai_client_generates_the_images_of_the_pipeline(client):
    answer = client.images.generate(model="tiny", prompt="bee", n=3, size="16x16", extra_body={"seed": 5})
    expected = tiny_pipeline()(["bee"], seeds=[5, 6, 7])
    np.testing.assert_array_equal(np.stack([pixels(entry) for entry in answer.data]), expected)
    assert answer.output_format == "png" and answer.size == "16x16"


def test_openai_client_generates_other_sizes_and_formats(client):
    answer = client.images.generate(prompt="0", size="24x16", output_format="webp", extra_body={"seed": 1, "steps": 4})
    assert pixels(answer.data[0]).shape == (16, 24, 3)


def test_openai_client_edits_with_a_mask(client):
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    alpha = np.full((SIDE, SIDE), 255, np.uint8)
    alpha[:8, :8] = 0
    files = dict(image=("../../etc/passwd", png(image)), mask=("mask.png", png(np.dstack([image, alpha]))))
    answer = client.images.edit(**files, prompt="cat", n=2, extra_body={"seed": 4})
    made = np.stack([pixels(entry) for entry in answer.data])
    one_by_one = [tiny_pipeline().inpaint(image[None], alpha == 0, ["cat"], seed=seed)[0] for seed in (4, 5)]
    np.testing.assert_array_equal(made, one_by_one)


def test_openai_client_lists_the_model(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "maskgil_jax"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("dall-e-3")


def test_openai_client_sees_errors_of_its_own_kinds(served, client):
    with pytest.raises(openai.BadRequestError) as wrong:
        client.images.generate(prompt="bee", n=1000)
    assert wrong.value.param == "n" and "1..8" in wrong.value.message
    with pytest.raises(openai.AuthenticationError), openai.OpenAI(base_url=f"{served.url}/v1", api_key="wrong-key") as other:
        other.images.generate(prompt="bee")
    with pytest.raises(openai.APIStatusError) as missing:
        client.audio.translations.create(model="base", file=("a.wav", b"RIFF"))
    assert missing.value.status_code == 501


# ------------------------------------------------------------------------------------------------ misuse
def test_same_image_whatever_shares_the_batch(served):
    asked = [(label, seed) for seed in range(4) for label in range(3)]

    def ask(label_and_seed):
        label, seed = label_and_seed
        status, answer = post(served, body=json.dumps({"prompt": str(label), "seed": seed}))
        assert status == 200
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"]))))

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        made = list(pool.map(ask, asked))
    for (label, seed), image in zip(asked, made, strict=True):
        np.testing.assert_array_equal(image, tiny_pipeline()([label], seed=seed)[0])


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b"[]", 400),
        (b'{"prompt": NaN}', 400),
        (b"[" * 100_000, 400),
        (json.dumps({"prompt": "x" * 10_000}).encode(), 400),
        (json.dumps({"prompt": "x" * 300_000}).encode(), 413),
        (json.dumps({"prompt": "bee", "n": 8, "size": "99999x99999"}).encode(), 400),
    ],
    ids=["cut", "binary", "list", "nan", "deep", "long", "too long", "size"],
)
def test_bad_json_gets_a_clear_status(served, body, status):
    found, answer = post(served, body=body)
    assert found == status and answer["error"]["message"], answer


def test_wrong_key_is_refused_and_health_is_open(served):
    for key in ("", "wrong", KEY + "x", "\u00e9"):
        assert post(served, body=b'{"prompt": "bee"}', key=key)[0] == 401
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    connection.request("GET", "/healthz")
    assert json.loads(connection.getresponse().read())["status"] == "ok"


def test_unknown_paths_are_404_and_no_file_is_served(served):
    for path in ("/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/file=/etc/passwd", "/docs", "/openapi.json"):
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
        connection.request("GET", path, headers={"Authorization": f"Bearer {KEY}"})
        assert connection.getresponse().status == 404


def test_large_upload_is_refused_in_flat_memory(served):
    before = served.memory()
    parts = b"x" * 1_000_000
    sock = socket.create_connection(("127.0.0.1", served.port), timeout=60)
    head = f"POST /v1/images/edits HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 100000000\r\n"
    sock.sendall((head + "Content-Type: multipart/form-data; boundary=x\r\n\r\n").encode())
    for _ in range(100):
        sock.sendall(parts)
    assert sock.recv(65536).startswith(b"HTTP/1.1 413")
    sock.close()
    assert served.memory() - before < 50_000_000


def test_large_chunked_upload_is_refused(served):
    head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    body = (head if part == 0 else b"x" * 50_000 for part in range(10))
    headers = {"Content-Type": "multipart/form-data; boundary=x", "Transfer-Encoding": "chunked"}
    assert post(served, "/v1/images/edits", body, headers.items())[0] == 413


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("application/json", b"{}", 415),
        ("multipart/form-data", b"{}", 400),
        ("multipart/form-data; boundary=x", b"no form", 400),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nbee\r\n--x--\r\n',
            400,
        ),
    ],
    ids=["json", "no boundary", "no form", "no image"],
)
def test_bad_form_gets_a_clear_status(served, content_type, body, status):
    found, answer = post(served, "/v1/images/edits", body, {"Content-Type": content_type}.items())
    assert found == status and answer["error"]["message"], answer


def test_picture_that_unpacks_to_gigabytes_is_refused(served, client):
    bomb = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(bomb, format="PNG")
    with pytest.raises(openai.BadRequestError, match="at most 4096"):
        client.images.edit(image=("a.png", bomb.getvalue()), prompt="bee")


def test_full_queue_answers_429_with_retry_after(tmp_path):
    with serving(tmp_path, "--no-page", "--batch-sizes", "1", "--max-queue", "2", "--max-wait-ms", "0") as served:

        def ask(seed):
            connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
            connection.request("POST", "/v1/images/generations", json.dumps({"prompt": "bee", "seed": seed, "n": 2}))
            response = connection.getresponse()
            return response.status, response.headers.get("Retry-After"), response.read()

        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(ask, range(32)))
        assert {status for status, _, _ in answers} == {200, 429}
        assert all(int(after) >= 1 for status, after, _ in answers if status == 429)


def test_killed_client_frees_its_place(served):
    code = f"""if True:
        import http.client, json
        c = http.client.HTTPConnection("127.0.0.1", {served.port})
        for _ in range(1000):
            c.request("POST", "/v1/images/generations", json.dumps({{"prompt": "bee", "n": 8}}),
                      {{"Authorization": "Bearer {KEY}"}})
            c.getresponse().read()
            print("one", flush=True)
    """
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
    until = time.monotonic() + 30
    while waiting(served) and time.monotonic() < until:
        time.sleep(0.05)
    assert waiting(served) == 0
    assert post(served, body=b'{"prompt": "bee"}')[0] == 200


def waiting(served):
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    connection.request("GET", "/healthz")
    return json.loads(connection.getresponse().read())["waiting"]


def test_slow_clients_are_closed_and_do_not_hold_others_up(tmp_path):
    with serving(tmp_path, "--no-page", "--batch-sizes", "1", "--client-seconds", "1") as served:
        slow = [socket.create_connection(("127.0.0.1", served.port), timeout=30) for _ in range(50)]
        for sock in slow[:25]:
            sock.sendall(b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nX-A: ")
        for sock in slow[25:]:
            sock.sendall(b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
        assert post(served, body=b'{"prompt": "bee"}')[0] == 200
        ends = [sock.recv(1000) for sock in slow]
        assert all(end == b"" for end in ends[:25]) and all(end.startswith(b"HTTP/1.1 408") for end in ends[25:])


def test_metrics_count_images_and_answers(served, client):
    client.images.generate(prompt="bee", n=2)
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {KEY}"})
    text = connection.getresponse().read().decode()
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(lines["maskgil_images_total"]) >= 2
    assert float(lines['maskgil_requests_total{route="/v1/images/generations",status="200"}']) >= 1


def test_sigterm_under_load_loses_nothing_that_was_accepted(tmp_path):
    answers, refused, started = [], [], threading.Event()
    with serving(tmp_path, "--no-page", "--batch-sizes", "1,4", "--max-queue", "64") as served:

        def ask(first):
            for seed in range(first, first + 1000):
                try:
                    status, answer = post(served, body=json.dumps({"prompt": "bee", "seed": seed}))
                except (ConnectionRefusedError, ConnectionResetError, http.client.RemoteDisconnected) as error:
                    refused.append(error)
                    return
                answers.append((seed, status, answer))
                if len(answers) > 20:
                    started.set()
                if status != 200:
                    return

        threads = [threading.Thread(target=ask, args=(1000 * i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        assert started.wait(60)
        served.terminate()
        for thread in threads:
            thread.join(60)
        served.process.wait(60)
        assert "images accepted and not answered: 0" in served.log.read_text(), served.log.read_text()
    assert {status for _, status, _ in answers} <= {200, 503}
    for seed, _, answer in [entry for entry in answers if entry[1] == 200][-8:]:
        image = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"]))))
        np.testing.assert_array_equal(image, tiny_pipeline()(["bee"], seed=seed)[0])
