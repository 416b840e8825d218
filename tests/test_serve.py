"""The server, over HTTP, as its clients meet it."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest
from conftest import checkpoint, refuse
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.generation.storyteller import Storyteller
from slm.printable import printable
from slm.serving.api import make_app
from slm.serving.protocol import Allowed
from slm.serving.scheduler import Scheduler
from slm.training.checkpoint import open_checkpoint

KEY = "a secret"


def start(folder, *words, **env):
    """A server in a process of its own: the process, and its address."""
    command = [sys.executable, "-m", "slm.cli", "serve", "--port", "0", "--ckpt_path"]
    command += [str(checkpoint("best", root=folder)), "--trainer.accelerator", "cpu", *words]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"} | env
    )
    lines = []
    while "Try " not in (line := process.stderr.readline()):
        assert line, lines
        lines.append(line)
    return process, re.search(r"http://[\d.:]+", line)[0]


@contextmanager
def serving(folder, *words, **env):
    process, address = start(folder, *words, **env)
    try:
        with httpx.Client(base_url=address, timeout=60) as client:
            yield process, client
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.fixture(scope="module")
def server(trained):
    """A server with few rows, a short queue and a key."""
    words = ("--batch_size", "4", "--queue", "4", "--max_tokens", "4000", "--timeout", "20")
    with serving(trained, *words, SLM_API_KEY=KEY) as (_, client):
        client.headers["Authorization"] = f"Bearer {KEY}"
        yield client


@pytest.fixture(scope="module")
def client(server):
    """OpenAI's own client."""
    return openai.OpenAI(base_url=f"{server.base_url}/v1", api_key=KEY, max_retries=0)


def complete(server, **body):
    answer = server.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def metric(server, name):
    return float(re.search(rf"^{name} (\S+)$", server.get("/metrics").text, re.MULTILINE)[1])


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_story_is_that_of_predict_with_the_same_seed(server, slm, trained):
    words = ("--ckpt_path", checkpoint("best", root=trained), "--trainer.accelerator", "cpu")
    generated = slm("predict", *words, "--prompt", "A cat", "--seed", "5", "--num_samples", "2").out
    answer = complete(server, prompt="A cat", seed=5, n=2, echo=True)
    for choice in answer["choices"]:
        assert printable(choice["text"]) in generated
        assert choice["seed"] == 5 + choice["index"]
        assert choice["finish_reason"] in ("stop", "length")
    assert answer["choices"][0]["text"] != answer["choices"][1]["text"]
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_openais_client_reads_answers_and_streams(client):
    options = {"model": "slm", "prompt": ["A cat", "A dog"], "max_tokens": 20, "seed": 3}
    whole = client.completions.create(**options, logprobs=2, extra_body={"top_k": 5})
    assert [choice.index for choice in whole.choices] == [0, 1]
    assert len(whole.choices[0].logprobs.tokens) <= 20
    assert client.models.list().data[0].id == "slm"
    texts = ["", ""]
    stream = client.completions.create(
        **options, stream=True, stream_options={"include_usage": True}, extra_body={"top_k": 5}
    )
    events = list(stream)
    for event in events[:-1]:
        texts[event.choices[0].index] += event.choices[0].text
    assert texts == [choice.text for choice in whole.choices]
    assert len(events) > 4, "in pieces"
    assert events[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_the_examples_of_the_documentation_work(server, capsys):
    text = (Path(__file__).parent.parent / "docs" / "serving.md").read_text(encoding="utf-8")
    bodies = [json.loads(body) for body in re.findall(r"^curl .* -d '(.*)'$", text, re.MULTILINE)]
    assert len(bodies) == 2
    whole = complete(server, **bodies[0], top_k=20)["choices"][0]["text"]
    events = server.post("/v1/completions", json=bodies[1])
    assert events.headers["Content-Type"].startswith("text/event-stream")
    assert events.text.endswith("data: [DONE]\n\n")
    (example,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    example = example.replace("http://127.0.0.1:8000", str(server.base_url).rstrip("/"))
    exec(example.replace('"none"', repr(KEY)), {})
    assert capsys.readouterr().out == f"{whole}\n"


def test_log_probabilities_add_up_and_an_echo_has_its_own(server):
    body = {"prompt": "A cat", "max_tokens": 8, "seed": 1, "logprobs": 3, "echo": True}
    (choice,) = complete(server, **body)["choices"]
    found = choice["logprobs"]
    assert "".join(found["tokens"]) == choice["text"]
    assert [choice["text"][at] for at in found["text_offset"]] == [t[0] for t in found["tokens"]]
    assert all(value < 0 for value in found["token_logprobs"])
    assert all(len(best) == 3 for best in found["top_logprobs"])
    # Read at once as a prompt: the same.
    (again,) = complete(
        server, prompt=choice["text"], max_tokens=0, logprobs=3, echo=True
    )["choices"]  # fmt: skip
    assert again["logprobs"]["token_logprobs"] == pytest.approx(found["token_logprobs"], abs=0.05)
    assert again["finish_reason"] == "length"
    # As ids, nothing precedes the first.
    (ids,) = complete(server, prompt=[65, 32, 99], max_tokens=0, logprobs=1, echo=True)["choices"]
    assert ids["text"] == "A c"
    assert ids["logprobs"]["token_logprobs"][0] is None
    streamed = server.post("/v1/completions", json=body | {"stream": True}).text
    events = [json.loads(line[6:]) for line in streamed.split("\n\n")[:-2]]
    pieces = [event["choices"][0] for event in events]
    assert "".join(piece["text"] for piece in pieces) == choice["text"]
    for name, values in found.items():
        assert [value for piece in pieces for value in piece["logprobs"][name]] == values


def test_a_stop_text_ends_a_story_and_is_not_part_of_it(server):
    (free,) = complete(server, prompt="A cat", seed=2, max_tokens=60)["choices"]
    stop = free["text"][10:13]
    (cut,) = complete(server, prompt="A cat", seed=2, max_tokens=60, stop=stop)["choices"]
    assert cut["text"] == free["text"][: free["text"].index(stop)]
    assert cut["finish_reason"] == "stop"


def test_without_a_seed_stories_differ(server):
    found = {complete(server, prompt="A")["choices"][0]["text"] for _ in range(4)}
    assert len(found) > 1


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "JSON decode error"),
        (b"[1]", 400, "valid"),
        ({"prompt": 7}, 400, "prompt"),
        ({"prompt": []}, 400, "empty list"),
        ({"prompt": [300]}, 400, "outside 0 to 299"),
        ({"prompt": [-1]}, 400, "outside 0 to 299"),
        ({"prompt": "x" * 500}, 400, "context is 16"),
        ({"temperature": -1}, 400, "temperature is -1.0"),
        (b'{"temperature": NaN}', 400, "temperature is nan"),
        (b'{"seed": 1e400}', 400, "seed"),
        ({"temperature": "0.8"}, 400, "temperature"),
        ({"max_tokens": 4001}, 400, "this server allows 4000"),
        (
            {"max_tokens": 5, "min_tokens": 6},
            400,
            "min_tokens is 6; it must be from 0 to max_tokens",
        ),
        ({"temperature": 0, "n": 2}, 400, "n is 2; it must be 1"),
        ({"n": 5}, 400, "at most 4 stories"),
        ({"logprobs": 21}, 400, "logprobs"),
        ({"logit_bias": {"5": 1.0}}, 400, "not supported"),
        ({"suffix": "The end"}, 400, "not supported"),
        ({"stop": [""]}, 400, "stop"),
        ({"stop": ["a"] * 17}, 400, "at most 16"),
        ({"words": ["dragon"]}, 400, "not trained on requests"),
        ({"model": "gpt-4"}, 404, "no model 'gpt-4'"),
        ({"temprature": 1}, 400, "temprature"),
        (b'{"prompt": ' + b'"x' + b"x" * 2_000_000 + b'"}', 413, "1,048,576"),
        (b"[" * 100_000, 400, ""),
        ({"seed": 2**64}, 400, "seed"),
    ],
    ids=lambda case: str(case)[:40],
)
def test_what_cannot_be_answered_is_explained(server, body, status, message):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    answer = server.post("/v1/completions", content=content, headers=headers)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=3)
    ), max_leaves=6,
)  # fmt: skip
FIELDS = ("prompt", "n", "stop", "seed", "logprobs", "echo", "stream", "top_p", "top_k", "words",
          "temperature", "min_p", "min_tokens", "no_repeat_ngram", "suffix", "model")  # fmt: skip


@settings(max_examples=200)
@given(
    st.dictionaries(st.sampled_from(FIELDS) | st.text(), JSON, max_size=4)
    | JSON
    | st.fixed_dictionaries({"prompt": st.text(st.characters())})
)
def test_no_body_is_too_much(server, body):
    if isinstance(body, dict):
        body = body | {"max_tokens": 2}
    answer = server.post(
        "/v1/completions", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code < 500, answer.text
    if answer.status_code != 200:
        assert answer.json()["error"]["message"]


def test_an_error_of_the_server_has_the_form_of_the_others(trained, monkeypatch):
    checkpoint_ = open_checkpoint(checkpoint("best", root=trained))
    storyteller = Storyteller(checkpoint_.make_model(), checkpoint_.make_tokenizer())
    scheduler = Scheduler(storyteller, 2)
    app = make_app(scheduler, Allowed("slm", 16, False, 100, 2))
    monkeypatch.setattr(storyteller.model, "unembed", lambda hidden: 1 / 0)

    async def ask():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            body = {"prompt": "A", "echo": True, "logprobs": 1}
            answers = [await client.post("/v1/completions", json=body) for _ in range(2)]
            answers.append(await client.post("/v1/completions", json={"prompt": "A"}))
            return answers, (await client.get("/metrics")).text

    answers, metrics = asyncio.run(ask())
    scheduler.close()
    assert [answer.status_code for answer in answers] == [500] * 3
    assert all(answer.json()["error"]["type"] == "server_error" for answer in answers)
    assert 'slm_requests_total{path="/v1/completions",status="500"} 3.0' in metrics


def test_only_who_has_the_key_is_answered(server):
    for headers in ({"Authorization": "Bearer wrong"}, {"Authorization": ""}):
        for path in ("/v1/models", "/metrics"):
            answer = httpx.get(f"{server.base_url}{path}", headers=headers)
            assert answer.status_code == 401
            assert "API key" in answer.json()["error"]["message"]
        answer = httpx.post(f"{server.base_url}/v1/completions", headers=headers, json={})
        assert answer.status_code == 401
    assert httpx.get(f"{server.base_url}/health").json() == {"status": "ok"}


@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_frees_the_row(server, stream):
    body = json.dumps({"prompt": "A", "max_tokens": 4000, "min_tokens": 4000, "stream": stream})
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((server.base_url.host, server.base_url.port)) as connection:
        connection.sendall((head + body).encode())
        wait_for(lambda: metric(server, "slm_stories_running") == 1)
        before = metric(server, "slm_generated_tokens")
    wait_for(lambda: metric(server, "slm_stories_running") == 0)
    assert metric(server, "slm_generated_tokens") - before < 3000, "it did not just end"


def test_too_many_wait_their_turn_or_are_told_to_come_back(server):
    """Four rows and four places in the queue; each answer is the one it would get alone."""
    body = {"prompt": "A cat", "max_tokens": 600, "min_tokens": 600, "n": 2}
    alone = [complete(server, **body, seed=seed)["choices"][0]["text"] for seed in range(4)]
    answers = {}

    def ask(seed):
        answers[seed] = server.post("/v1/completions", json=body | {"seed": seed % 4})

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    statuses = [answer.status_code for answer in answers.values()]
    assert set(statuses) == {200, 503}
    assert statuses.count(200) >= 4
    for seed, answer in answers.items():
        if answer.status_code == 200:
            assert answer.json()["choices"][0]["text"] == alone[seed % 4]
        else:
            assert answer.headers["Retry-After"]
            assert "queue is full" in answer.json()["error"]["message"]


def test_a_request_that_takes_too_long_is_ended(trained):
    with serving(trained, "--timeout", "1", "--max_tokens", "1000000") as (_, client):
        body = {"prompt": "A", "max_tokens": 1_000_000, "min_tokens": 1_000_000}
        answer = client.post("/v1/completions", json=body)
        assert answer.status_code == 504
        events = client.post("/v1/completions", json=body | {"stream": True}).text.split("\n\n")
        assert "longer than this server allows" in events[-2]
        assert metric(client, "slm_stories_running") == 0


def test_sigterm_finishes_what_is_under_way(trained):
    with serving(trained) as (process, client):
        answers = []
        body = {"prompt": "A", "max_tokens": 900, "min_tokens": 900, "seed": 1}
        threads = [
            threading.Thread(
                target=lambda: answers.append(client.post("/v1/completions", json=body))
            )
            for _ in range(20)
        ]
        for thread in threads:
            thread.start()
        wait_for(lambda: metric(client, "slm_stories_waiting") == 4)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert process.wait(30) == 0
        assert [answer.status_code for answer in answers] == [200] * 20
        assert len({answer.json()["choices"][0]["text"] for answer in answers}) == 1
        err = process.stderr.read()
        assert "Stopped    18,000 tokens generated" in err
        assert "Traceback" not in err
        with pytest.raises(httpx.ConnectError):
            client.get("/health")


def test_many_idle_connections_do_no_harm(server):
    async def hold(count):
        address = (server.base_url.host, server.base_url.port)
        opened = await asyncio.gather(*(asyncio.open_connection(*address) for _ in range(count)))
        answer = await asyncio.to_thread(complete, server, prompt="A", max_tokens=3)
        for _, writer in opened:
            writer.close()
        return answer

    assert asyncio.run(hold(100))["choices"]


def test_what_the_command_line_cannot_mean_is_explained(slm, trained, monkeypatch):
    words = ("serve", "--ckpt_path", checkpoint("best", root=trained))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refuse(slm(*words, "--port", port), "in use", f"--port {int(port) + 1}")
    refuse(slm(*words, "--host", "no.such.host.invalid"), "--host no.such.host.invalid")
    refuse(slm(*words, "--port", "99999"), "--port 99999")
    refuse(slm(*words, "--timeout", "0"), "--timeout 0.0", "1 or more")
    monkeypatch.setenv("SLM_API_KEY", "two\nlines")
    refuse(slm(*words), "SLM_API_KEY")


def test_without_the_extra_it_says_how_to_install_it(slm, trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = slm("serve", "--ckpt_path", checkpoint("best", root=trained))
    refuse(result, "uvicorn", "pip install 'slm-stories[serve]'")
