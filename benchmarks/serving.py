"""Loads a server with many clients, and compares every answer with `slm predict`.

    python benchmarks/serving.py --ckpt_path FILE --out benchmarks/DATE-serving.json

One client for a minute, then 32, every second one streaming; each request has one of 64 seeds, and
its text must be that of `slm predict` with the same seed. Then: clients that hang up, one that does
not read, 1,000 idle connections, SIGTERM under load. Server and clients share the machine.
"""

import argparse
import asyncio
import json
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import httpx

from slm import __version__
from slm.hardware import describe_machine, find_device

PROMPT = "Once upon a time"
SEEDS = 64


def expected_stories(checkpoint: str, folder: Path) -> dict[int, str]:
    """The text after the prompt, by seed, as `slm predict` generates it one at a time."""
    out = folder / "stories.jsonl"
    words = ["--ckpt_path", checkpoint, "--prompt", PROMPT, "--num_samples", str(SEEDS)]
    words += ["--seed", "0", "--batch_size", "1", "--out", str(out)]
    subprocess.run([sys.executable, "-m", "slm.cli", "predict", *words], check=True)
    stories = map(json.loads, out.read_text(encoding="utf-8").splitlines())
    return {each["options"]["seed"]: each["story"].removeprefix(PROMPT) for each in stories}


class Server:
    """`slm serve` in a process of its own."""

    def __init__(self, checkpoint: str) -> None:
        command = [sys.executable, "-m", "slm.cli", "serve", "--port", "0"]
        command += ["--ckpt_path", checkpoint, "--timeout", "60"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr
        while "Try " not in (line := self.process.stderr.readline()):
            assert line, "the server has not started"
        found = re.search(r"http://[\d.:]+", line)
        assert found
        self.address = found[0]

    def memory(self) -> float:
        """Resident memory, in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+)", status)
        assert found
        return int(found[1]) / 1e3

    def metric(self, name: str) -> float:
        """The present value of a metric."""
        text = httpx.get(f"{self.address}/metrics", timeout=60).text
        found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
        assert found
        return float(found[1])


async def ask(client: httpx.AsyncClient, seed: int, stream: bool) -> tuple[str, int]:
    """The text and the tokens of a story."""
    body = {"prompt": PROMPT, "seed": seed, "stream": stream}
    if not stream:
        answer = await client.post("/v1/completions", json=body)
        answer.raise_for_status()
        plain = answer.json()
        return plain["choices"][0]["text"], plain["usage"]["completion_tokens"]
    body["stream_options"] = {"include_usage": True}
    text, tokens = "", 0
    async with client.stream("POST", "/v1/completions", json=body) as events:
        events.raise_for_status()
        async for line in events.aiter_lines():
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                text += "".join(choice["text"] for choice in event["choices"])
                tokens = event.get("usage", {}).get("completion_tokens", tokens)
    return text, tokens


async def load(
    server: Server, clients: int, seconds: float, expected: dict[int, str]
) -> dict[str, object]:
    """Clients that ask again as soon as they are answered."""
    end = time.perf_counter() + seconds
    latencies: list[float] = []
    wrong, lost, tokens, memory = 0, 0, 0, []
    started = time.perf_counter()

    async def work(number: int) -> None:
        nonlocal wrong, lost, tokens
        async with httpx.AsyncClient(base_url=server.address, timeout=60) as client:
            turn = 0
            while (begun := time.perf_counter()) < end:
                seed = (number * 7 + turn) % SEEDS
                turn += 1
                try:
                    text, count = await ask(client, seed, stream=number % 2 == 1)
                except httpx.HTTPError as error:
                    print(f"lost: {error!r}", file=sys.stderr)
                    lost += 1
                    continue
                wrong += text != expected[seed]
                tokens += count
                latencies.append(time.perf_counter() - begun)

    async def watch() -> None:
        while time.perf_counter() < end:
            memory.append(server.memory())
            await asyncio.sleep(1)

    await asyncio.gather(watch(), *(work(number) for number in range(clients)))
    took = time.perf_counter() - started
    return {
        "clients": clients,
        "stories": len(latencies),
        "wrong": wrong,
        "lost": lost,
        "tokens_per_second": tokens / took,
        "median_seconds": statistics.median(latencies),
        "slowest_seconds": max(latencies),
        "memory_first_10_s": statistics.median(memory[:10]),
        "memory_last_10_s": statistics.median(memory[-10:]),
    }


async def hang_up(server: Server) -> dict[str, object]:
    """Sixteen clients that leave after a few tokens; how long until all rows are free."""

    async def leave() -> None:
        body = {"prompt": PROMPT, "max_tokens": 1000, "min_tokens": 1000, "stream": True}
        async with (
            httpx.AsyncClient(base_url=server.address) as client,
            client.stream("POST", "/v1/completions", json=body) as events,
        ):
            lines = events.aiter_lines()
            for _ in range(6):
                await anext(lines)

    await asyncio.gather(*(leave() for _ in range(16)))
    started, running = time.perf_counter(), 1.0
    while running:
        running = await asyncio.to_thread(server.metric, "slm_stories_running")
    return {"rows_free_after_seconds": time.perf_counter() - started}


async def slow_reader(server: Server, expected: dict[int, str]) -> dict[str, object]:
    """A client that asks for a stream and does not read it; the others do not notice."""
    host, _, port = server.address.removeprefix("http://").partition(":")
    _, writer = await asyncio.open_connection(host, int(port), limit=1)
    tokens = {"max_tokens": 1000, "min_tokens": 1000, "logprobs": 20}  # a megabyte of events
    body = json.dumps({"prompt": PROMPT, "stream": True, **tokens})
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    writer.write(f"{head}Content-Type: application/json\r\n\r\n{body}".encode())
    found = await load(server, 4, 10, expected)
    free = await asyncio.to_thread(server.metric, "slm_stories_running") == 0
    writer.close()
    return {"wrong": found["wrong"], "lost": found["lost"], "its_row_is_free": free}


async def idle_connections(server: Server, expected: dict[int, str]) -> dict[str, object]:
    """1,000 connections that say nothing, and four clients."""
    host, _, port = server.address.removeprefix("http://").partition(":")
    held = [await asyncio.open_connection(host, int(port)) for _ in range(1000)]
    found = await load(server, 4, 10, expected)
    for _, writer in held:
        writer.close()
    return {"connections": len(held), "wrong": found["wrong"], "lost": found["lost"]}


async def stop_under_load(server: Server, expected: dict[int, str]) -> dict[str, object]:
    """SIGTERM while 32 clients wait: each gets its story, and the process ends with status 0."""

    async def one(seed: int) -> bool:
        async with httpx.AsyncClient(base_url=server.address, timeout=60) as client:
            return (await ask(client, seed, stream=seed % 2 == 1))[0] == expected[seed]

    tasks = [asyncio.create_task(one(seed)) for seed in range(32)]
    while await asyncio.to_thread(server.metric, "slm_stories_waiting") < 16:
        pass
    server.process.send_signal(signal.SIGTERM)
    right = await asyncio.gather(*tasks, return_exceptions=True)
    status = await asyncio.to_thread(server.process.wait)
    return {"right": sum(each is True for each in right), "of": len(tasks), "status": status}


def main() -> None:
    """Measures, and writes a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ckpt_path", required=True)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--out", type=Path, default=Path("serving.json"))
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    with tempfile.TemporaryDirectory() as folder:
        expected = expected_stories(options.ckpt_path, Path(folder))
    server = Server(options.ckpt_path)
    asyncio.run(load(server, 2, 3, expected))  # warm-up
    one = asyncio.run(load(server, 1, options.seconds, expected))
    many = asyncio.run(load(server, 32, options.seconds, expected))
    ratio = float(str(many["tokens_per_second"])) / float(str(one["tokens_per_second"]))
    results = {
        "date": datetime.now(UTC).date().isoformat(),
        "slm": __version__,
        "machine": describe_machine(find_device("cpu")),
        "one": one,
        "many": many,
        "ratio": ratio,
        "hang_up": asyncio.run(hang_up(server)),
        "slow_reader": asyncio.run(slow_reader(server, expected)),
        "idle": asyncio.run(idle_connections(server, expected)),
        "sigterm": asyncio.run(stop_under_load(server, expected)),
    }
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
