"""The search of examples/musique at 100,000 vectors: how large, how fast, how much of the exact answer.

    LIGHTNING_DATA=… make bench-retrieval            # minutes

The vectors are those of the corpus by WordLlama, each many times with noise of its own (cosine 0.8 to where it came from); the
queries are the questions', with the same noise. Runs in the Python of examples/musique/requirements-search.txt. One JSON line each:

- `retrieval_recall_at_5`: share of the five nearest that the index finds, beside exact search;
- `retrieval_bytes`: of the index on disk for each vector, beside float32; with it `resident_mb`, what the process grew by when it had answered;
- `retrieval_p95_ms`: of a query in one thread, beside exact search;
- `retrieval_build_s`: seconds to train and fill the index; with it `embedded_per_s`, passages embedded in a second, which a corpus adds.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bench.report import figure

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples/musique"
COUNT, QUERIES, NEAREST, COSINE, BATCH = 100_000, 1_000, 5, 0.8, 10_000


def main() -> None:
    try:
        import faiss
    except ImportError:
        from lightning_core.agents.venv import interpreter

        python = interpreter(EXAMPLE / "requirements-search.txt", ROOT / "var/environments")
        os.chdir(ROOT)
        os.execv(python, [str(python), "-m", "bench.retrieval"])
    sys.path.insert(0, str(EXAMPLE))
    import numpy as np
    from passages import embedder, look_into, made  # type: ignore[import-not-found]

    faiss.omp_set_num_threads(1)
    data = Path(os.environ.get("LIGHTNING_DATA", "."))
    texts = [f"{row['title']}. {row['text']}" for row in json.loads((data / "musique_corpus.json").read_text())]
    questions = [json.loads(line)["question"] for line in (data / "musique_questions.jsonl").read_text().splitlines()]
    embed = embedder("wordllama")
    began = time.monotonic()
    corpus = embed(texts)
    embedded = len(texts) / (time.monotonic() - began)

    def noisy(found: Any, count: int, seed: int) -> Any:
        random = np.random.default_rng(seed)
        chosen = found[random.integers(0, len(found), count)]
        noise = random.normal(size=chosen.shape).astype(np.float32)
        noise /= np.linalg.norm(noise, axis=1, keepdims=True)
        mixed = COSINE * chosen + (1 - COSINE**2) ** 0.5 * noise
        return mixed / np.linalg.norm(mixed, axis=1, keepdims=True)

    everything = noisy(corpus, COUNT, 0)

    def vectors(wanted: set[int] | None) -> Iterable[Any]:
        chosen = everything if wanted is None else everything[sorted(wanted)]
        return (chosen[at : at + BATCH] for at in range(0, len(chosen), BATCH))

    exact = faiss.IndexFlatIP(corpus.shape[1])
    exact.add(everything)
    queries = noisy(embed(questions), QUERIES, 1)
    right, exact_ms = ask(exact, queries)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "index.faiss"
        began = time.monotonic()
        faiss.write_index(made(COUNT, vectors), str(file))
        seconds = time.monotonic() - began
        before = resident_mb()
        index = faiss.read_index(str(file), faiss.IO_FLAG_MMAP)
        look_into(index)
        found, ms = ask(index, queries)
        grown = resident_mb() - before
        recall = np.mean([len(set(ours) & set(theirs)) / NEAREST for ours, theirs in zip(found, right, strict=True)])
        size = file.stat().st_size / COUNT
    figure("retrieval_recall_at_5", float(recall), "share", 1.0, QUERIES, cells=index.nlist, looked_into=index.nprobe)
    figure("retrieval_bytes", size, "bytes", 4.0 * corpus.shape[1], COUNT, smaller_is_better=True, resident_mb=grown)
    figure("retrieval_p95_ms", p95(ms), "ms", p95(exact_ms), QUERIES, smaller_is_better=True)
    figure("retrieval_build_s", seconds, "s", None, COUNT, embedded_per_s=embedded)


def ask(index: Any, queries: Any) -> tuple[list[list[int]], list[float]]:
    """The places found for each query, asked one by one, and the milliseconds of each."""
    search: Callable[[Any, int], Any] = index.search
    found, ms = [], []
    for query in queries:
        began = time.perf_counter()
        found.append(search(query[None], NEAREST)[1][0].tolist())
        ms.append(1000 * (time.perf_counter() - began))
    return found, ms


def p95(values: list[float]) -> float:
    return sorted(values)[int(0.95 * len(values))]


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
