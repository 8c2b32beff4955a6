"""The recipe of a chat endpoint against ``transformers serve``, killed in the middle and resumed.

    python tests/benchmarks/api_teacher.py [OUTPUT_DIR]

Starts ``transformers serve`` with SmolLM2-135M-Instruct, runs
``recipes/text_classification/movie_reviews_chat.yaml``, kills it with SIGKILL after 60 and after
160 answers and in the student's training, runs it to its end, and prints what the server's log, the
files and the report contain. About 10 minutes on 2 cores. Needs ``pip install
transformers[serving] gguf``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

import real_servers  # noqa: E402

from recipes import sources  # noqa: E402

RECIPE = ROOT / "recipes" / "text_classification" / "movie_reviews_chat.yaml"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def count(path: Path) -> int:
    """Lines of a file."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def train(out: Path, url: str) -> subprocess.Popen[bytes]:
    """The run, in a process of its own."""
    command = [sys.executable, "-m", "hf_distill", "train", str(RECIPE), "--output_dir", str(out)]
    command += ["--teacher.api.base_url", url, "--training.disable_tqdm", "true"]
    # The Hub is not needed; the client sends nothing where it is switched off.
    environment = os.environ | {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment)


def kill_when(out: Path, url: str, reached: Callable[[], bool]) -> None:
    """Run until a point, and kill."""
    process = train(out, url)
    while not reached():
        assert process.poll() is None, "the run ended before it was killed"
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()


def main(out: Path) -> None:
    answers = out / "annotations" / "answers.jsonl"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / MODEL).parent.mkdir()
        (Path(folder) / MODEL).symlink_to(sources.smollm2_135m_instruct())
        with real_servers.transformers_serve(Path(folder), MODEL) as url:
            start = time.perf_counter()
            kept = []
            for least in (60, 160):
                kill_when(out, url, lambda least=least: count(answers) >= least)
                kept.append(count(answers))
            trained = out / "student" / "seed-0" / "stage.json"
            kill_when(out, url, trained.exists)
            assert train(out, url).wait() == 0
            seconds = time.perf_counter() - start
            log = (Path(folder) / "server.log").read_text()
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    report = json.loads((out / "report.json").read_text())
    print(f"answers on disk at the kills: {kept}; at the end: {len(lines)}")
    print(f"different requests among them: {len({line['key'] for line in lines})}")
    print(f"requests that the server answered: {log.count('POST /v1/chat/completions HTTP/1.1')}")
    print(json.dumps(report["annotations"], indent=1))
    print((out / "report.md").read_text())
    print(f"{seconds:.0f} s")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as own:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else own))
