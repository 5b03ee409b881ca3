"""Time of encoding texts: the hourly stamps of ETTh1, and 168 short ones.

Each row is measured with a cache directory of its own: encoded the first time, read from the disk
by a new process (the model is loaded in both, imports do not count), and read again from memory.
Results go to ``docs/results/text.json``.

    OMP_NUM_THREADS=2 python examples/benchmarks/text.py
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from _store import FOLDER, Results

from tsllm_estimators.llm.pristine import DEFAULT_BACKBONE, clear_backbone_cache
from tsllm_estimators.llm.text import clear_text_cache, load_text_encoder

N_STAMPS, N_SHORT = 17_420, 168


def stamps(n: int) -> list[str]:
    """Return ETTh1's first n stamps in words."""
    times = [datetime(2016, 7, 1) + timedelta(hours=i) for i in range(n)]
    return [f"{t:%A}, {t.day} {t:%B %Y}, {t:%H:%M}" for t in times]


def short_texts(n: int) -> list[str]:
    """Return the hours of a week in words, n of them."""
    return [text.split(",")[0] + text[-6:] for text in stamps(n)]


TEXTS = {"stamps": stamps, "short texts": short_texts}


def seconds(run: str, n: int, backbone: str) -> dict[str, float]:
    """Return how long a fresh process takes for the model, its texts, and the same once more."""
    load_text_encoder("tiny")  # imports all that a load imports late
    clear_backbone_cache()
    clear_text_cache(disk=False)
    texts = TEXTS[run](n)
    begin = time.perf_counter()
    encoder = load_text_encoder(backbone)
    loaded = time.perf_counter()
    vectors = encoder.pooled(texts)
    encoded = time.perf_counter()
    assert vectors.equal(encoder.pooled(texts))
    again = time.perf_counter()
    return {"load": loaded - begin, "texts": encoded - loaded, "memory": again - encoded}


def measure(**settings: Any) -> dict[str, float]:
    """Return the seconds of a first encoding, and from the disk and memory afterwards."""
    command = [sys.executable, __file__, "--once", json.dumps(settings)]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "TSLLM_CACHE": folder}
        first, later = (
            json.loads(
                subprocess.run(
                    command, env=environment, capture_output=True, text=True, check=True
                ).stdout
            )
            for _ in range(2)
        )
        n_bytes = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    return {
        "seconds_first": first["load"] + first["texts"],
        "seconds_from_disk": later["load"] + later["texts"],
        "seconds_of_loading_the_model": later["load"],
        "seconds_from_memory": later["memory"],
        "megabytes_on_disk": n_bytes / 1e6,
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure what is not stored yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=N_STAMPS)
    parser.add_argument("--n-short", type=int, default=N_SHORT)
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE)
    parser.add_argument("--results", type=Path, default=FOLDER / "text.json")
    parser.add_argument("--once", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.once:
        print(json.dumps(seconds(**options.once)))
        return
    results = Results(options.results)
    for run, n in (("stamps", options.n), ("short texts", options.n_short)):
        key = {"run": run, "n": n, "backbone": options.backbone}
        if key not in results:
            results.add(key, measure(**key))


if __name__ == "__main__":
    main()
