"""A vector index over passages, in files that are mapped into memory: FAISS, by cosine.

The folder of an index holds `passages.jsonl` (where the corpus is a JSON array; else the corpus stays where it is), `offsets.npy`
(where each passage begins), `index.faiss`, and `about.json`, which is written last. Up to `MOST_EXACT` passages are compared one
by one; more go into the cells of an inverted file, with a byte for each dimension.
"""

import json
import os
import random
import sys
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np

MOST_EXACT = 20_000
A_BATCH = 4096
Embed = Callable[[list[str]], np.ndarray]


class Passages:
    """Passages by meaning; several threads may search. `embed` is that of the build, of vectors of length 1."""

    def __init__(self, folder: Path, embed: Embed) -> None:
        about = json.loads((folder / "about.json").read_text())
        self._embed = embed
        self._index = faiss.read_index(str(folder / "index.faiss"), faiss.IO_FLAG_MMAP)
        look_into(self._index)
        self._offsets = np.load(folder / "offsets.npy", mmap_mode="r")
        self._file = os.open(about["passages"], os.O_RDONLY)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def search(self, query: str, most: int) -> list[dict[str, str]]:
        _, places = self._index.search(self._embed([query]), most)
        return [json.loads(self._line(place)) for place in places[0] if place >= 0]

    def _line(self, place: int) -> bytes:
        begin, end = (int(self._offsets[at]) for at in (place, place + 1))
        return os.pread(self._file, end - begin, begin)


def build(corpus: Path, folder: Path, embed: Embed) -> None:
    """Make the index of a corpus, `[{"title", "text"}]` in JSON or one a line; it says how far it is on stderr."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = corpus.absolute()
    if corpus.suffix == ".json":
        lines = folder.absolute() / "passages.jsonl"
        lines.write_text("".join(json.dumps(row) + "\n" for row in json.loads(corpus.read_text())))
    offsets = array("Q", [0])
    with lines.open("rb") as file:
        for line in file:
            offsets.append(offsets[-1] + len(line))
    np.save(folder / "offsets.npy", np.frombuffer(offsets, np.uint64))
    count = len(offsets) - 1

    def texts(wanted: set[int] | None = None) -> Iterator[list[str]]:
        batch: list[str] = []
        with lines.open("rb") as file:
            for place, line in enumerate(file):
                if wanted is None or place in wanted:
                    row = json.loads(line)
                    batch.append(f"{row['title']}. {row['text']}")
                if len(batch) == A_BATCH:
                    yield batch
                    batch = []
        if batch:
            yield batch

    index = made(count, lambda wanted: map(embed, texts(wanted)))
    faiss.write_index(index, str(folder / "index.faiss"))
    (folder / "about.json").write_text(json.dumps({"passages": str(lines), "count": count}))


def made(count: int, vectors: Callable[[set[int] | None], Iterable[np.ndarray]]) -> Any:
    """The index of `count` vectors; `vectors(wanted)` gives those at certain places, or all, in batches of `(rows, width)`."""
    if not count:
        raise ValueError("the corpus has no passages")
    if count <= MOST_EXACT:
        found = np.concatenate(list(vectors(None)))
        index = faiss.IndexFlatIP(found.shape[1])
        index.add(found)
        return index
    cells = cells_of(count)
    wanted = set(random.Random(0).sample(range(count), min(count, 64 * cells)))
    sample = np.concatenate(list(vectors(wanted)))
    say(f"{count:,} passages: {cells:,} cells are found by {len(sample):,} of them")
    width = sample.shape[1]
    index = faiss.index_factory(width, f"IVF{cells},SQ8", faiss.METRIC_INNER_PRODUCT)
    index.train(sample)
    began, told = time.monotonic(), time.monotonic()
    for batch in vectors(None):
        index.add(batch)
        if time.monotonic() - told > 5:
            told = time.monotonic()
            left = (told - began) / index.ntotal * (count - index.ntotal)
            say(f"{index.ntotal:,} of {count:,} passages, {left / 60:.0f} min left")
    return index


def cells_of(count: int) -> int:
    """A power of two near four times the root."""
    return 1 << round(float(np.log2(4 * count**0.5)))


def look_into(index: Any) -> None:
    """Have a search look into a 32nd of the cells, if it has any, and into 64 at most."""
    if hasattr(index, "nprobe"):
        index.nprobe = min(64, max(1, index.nlist // 32))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def embedder(name: str) -> Embed:
    """`wordllama`, whose package has its weights (static vectors, 16 MB), or a sentence-transformers model of the hub."""
    if name == "wordllama":
        import wordllama

        # Its package has the model; where it looks for the tokenizer, a letter is missing, and it would download that.
        model = wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)
        return lambda texts: np.asarray(model.embed(texts, norm=True), dtype=np.float32)
    from sentence_transformers import SentenceTransformer

    other = SentenceTransformer(name)
    return lambda texts: np.asarray(other.encode(texts, normalize_embeddings=True), dtype=np.float32)
