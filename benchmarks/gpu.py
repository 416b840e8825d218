r"""Runs every GPU check in one call: tests, speed, and training runs of fixed duration.

    python benchmarks/gpu.py STORIES --nanogpt nanoGPT/model.py --out report

STORIES are training stories, as `--data.source` takes them. Each part is a command of `slm` in a
process of its own; parts that fail or take too long are reported as such. Writes report.json with
everything and report.md with the tables.

In small sizes it runs on a CPU:

    python benchmarks/gpu.py STORIES --accelerator cpu --configs quickstart --batch_sizes 2 \
        --counts 1 2 --tokens 4 --repeats 1 --budgets 5s --compile false
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from slm.hardware import describe_machine, find_device

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Part:
    """One command, and how long it may take."""

    name: str
    command: list[str]
    limit: float
    """Seconds."""


def slm(*args: str) -> list[str]:
    """A command line of `slm`."""
    return [sys.executable, "-m", "slm.cli", *args]


def plan(options: argparse.Namespace, folder: Path) -> list[Part]:
    """The parts, most valuable first."""
    device = ["--trainer.accelerator", options.accelerator]
    compiled = ["--compile", options.compile]
    against = ["--vs", str(options.nanogpt.resolve())] if options.nanogpt else []
    tests = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        "--tb=short",
        "--show-capture=no",
        "tests",
    ]
    parts = [Part("tests", tests, 120)]
    for config, size in zip(options.configs, options.batch_sizes, strict=True):
        args = ["--config", config, "--batch_size", str(size), "--dropout", "0", *compiled]
        measured = ["--repeats", str(options.repeats), "--loop", "false"]
        json_file = ["--json", str(folder / f"train-{config}.json")]
        command = slm("bench", "train", *args, *measured, *against, *json_file, *device)
        parts.append(Part(f"train-{config}", command, 180))
    counts = "[" + ",".join(map(str, options.counts)) + "]"
    args = ["--config", options.configs[0], "--stories", counts, "--tokens", str(options.tokens)]
    args += ["--repeats", str(options.repeats), *compiled]
    reference = ["--vs", "transformers"] if options.nanogpt else []
    json_file = ["--json", str(folder / "generate.json")]
    command = slm("bench", "generate", *args, *reference, *json_file, *device)
    parts.append(Part("generate", command, 180))
    for budget in options.budgets:
        source = ["--data.source", str(options.stories.resolve())]
        source += ["--data.root", str(folder / "data")]
        run = ["--trainer.default_root_dir", str(folder / budget), "--report", "false"]
        parts.append(
            Part(f"budget-{budget}", slm("fit", "--budget", budget, *source, *run, *device), 480)
        )
    return [part for part in parts if not options.only or part.name in options.only]


def run(part: Part, folder: Path) -> dict[str, Any]:
    """Runs a part; returns its command, time, status and results."""
    print(f"{part.name}: {' '.join(part.command)}", file=sys.stderr, flush=True)
    started = time.perf_counter()
    try:
        done = subprocess.run(
            part.command, cwd=ROOT, capture_output=True, text=True, timeout=part.limit
        )
        status, out, output = done.returncode, done.stdout, done.stdout + done.stderr
    except subprocess.TimeoutExpired as error:
        parts = (error.stdout, error.stderr)  # bytes, even with text=True
        status, out, output = 124, "", "".join(bytes(each or b"").decode() for each in parts)
    seconds = time.perf_counter() - started
    print(f"{output[-8000:]}\n{part.name}: status {status}, {seconds:.0f} s", file=sys.stderr)
    found: dict[str, Any] = {"output": output[-8000:]}
    if (file := folder / f"{part.name}.json").is_file():
        found = json.loads(file.read_text(encoding="utf-8"))
    elif part.name.startswith("budget") and (bits := re.findall(r"bits_per_byte ([\d.]+)", output)):
        found |= {
            "bits_per_byte": float(bits[-1]),
            "tokens": "".join(re.findall(r"([\d.,]+ M) tokens seen", output)[-1:]),
            "model": "".join(re.findall(r"  model +(.*?):", output)[-1:]),
            "plan": "".join(re.findall(r"  steps +about (.*)", output)[-1:]),
            "story": out.partition("best checkpoint:\n")[2].strip(),
        }
    command = " ".join(["python", *part.command[1:]]).replace(f"{folder}/", "")
    return {"command": command, "status": status, "seconds": round(seconds, 1)} | found


def as_markdown(facts: dict[str, Any]) -> str:
    """The tables."""
    parts = facts["parts"]
    lines = [
        f"# {facts['machine']}, {facts['date']}",
        "",
        f"Commit {facts['commit']}; `{facts['command']}`, {facts['seconds']:.0f} s in all.",
        "",
        "| part | status | seconds |",
        "| --- | --- | --- |",
        *(f"| {name} | {part['status']} | {part['seconds']:.0f} |" for name, part in parts.items()),
        "",
        "| training | batch | tokens/s | share of matrix rate | memory |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, part in parts.items():
        for rate in part.get("rates", []):
            shape = f"{rate['training']['batch_size']} x {rate['training']['gpt']['block_size']}"
            share = sorted(rate["utilization"])[len(rate["utilization"]) // 2]
            lines.append(
                f"| {name.removeprefix('train-')}: {rate['arm']} | {shape} | "
                f"{rate['median_tokens_per_second']:,.0f} | {share:.0%} | "
                f"{rate['peak_bytes'] / 1e9:.2f} GB |"
            )
    lines += ["", "| generation | stories | tokens/s | first token |", "| --- | --- | --- | --- |"]
    for speed in parts.get("generate", {}).get("speeds", []):
        lines.append(
            f"| {speed['teller']} | {speed['stories']} | {speed['tokens_per_second']:,.0f} | "
            f"{speed['first_token_ms']:.1f} ms |"
        )
    lines += ["", "| time | model | tokens | bits per byte |", "| --- | --- | --- | --- |"]
    for name, part in parts.items():
        if "bits_per_byte" in part:
            lines.append(
                f"| {name.removeprefix('budget-')} | {part['model']} | {part['tokens']} | "
                f"{part['bits_per_byte']:.4f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs the parts and writes the report, again after each, so that nothing is lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stories", type=Path)
    parser.add_argument("--nanogpt", type=Path, help="model.py; else no baselines are measured")
    parser.add_argument("--accelerator", default="gpu")
    parser.add_argument("--configs", nargs="+", default=["small", "medium"])
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[256, 128])
    parser.add_argument("--counts", nargs="+", type=int, default=[1, 16, 256], help="of stories")
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile", default="true")
    parser.add_argument("--budgets", nargs="+", default=["1m", "5m"])
    parser.add_argument("--only", nargs="+", help="names of parts")
    parser.add_argument("--commit", help="for the report, if git is not available")
    parser.add_argument("--out", type=Path, default=Path("gpu"))
    options = parser.parse_args()
    started = time.perf_counter()
    head = subprocess.run(["git", "log", "-1", "--format=%h"], cwd=ROOT, capture_output=True)
    facts: dict[str, Any] = {
        "machine": describe_machine(find_device(options.accelerator)),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": options.commit or head.stdout.decode().strip(),
        "command": "python benchmarks/gpu.py " + " ".join(sys.argv[1:]),
        "parts": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        for part in plan(options, Path(folder)):
            facts["parts"][part.name] = run(part, Path(folder))
            facts["seconds"] = time.perf_counter() - started
            options.out.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")
            options.out.with_suffix(".md").write_text(as_markdown(facts))
    print(as_markdown(facts))


if __name__ == "__main__":
    main()
