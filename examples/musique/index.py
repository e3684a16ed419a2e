"""A vector index over passages: FAISS, with an embedding model that comes in a package, or any of a hub by name.

`MUSIQUE_EMBEDDER`: `wordllama` (static vectors, 16 MB, in its package), or the name of a sentence-transformers model, such as
`BAAI/bge-small-en-v1.5` (install sentence-transformers beside the requirements). The index is made once, and kept in
`MUSIQUE_INDEX` (default: var/musique) under a digest of passages and model.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np

Embed = Callable[[list[str]], np.ndarray]


class Passages:
    """Passages by meaning. `search` is by cosine: vectors have length 1."""

    def __init__(self, corpus: Path) -> None:
        self.rows: list[dict[str, str]] = json.loads(corpus.read_text())
        name = os.environ.get("MUSIQUE_EMBEDDER", "wordllama")
        self._embed = embedder(name)
        digest = hashlib.sha256(corpus.read_bytes() + name.encode()).hexdigest()[:16]
        file = Path(os.environ.get("MUSIQUE_INDEX", "var/musique")) / f"{digest}.faiss"
        self._index = faiss.read_index(str(file)) if file.is_file() else self._build(file)

    def _build(self, file: Path) -> Any:
        vectors = self._embed([f"{row['title']}. {row['text']}" for row in self.rows])
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_suffix(f".{os.getpid()}")
        faiss.write_index(index, str(beside))
        beside.replace(file)
        return index

    def search(self, query: str, most: int = 4) -> list[dict[str, str]]:
        _, places = self._index.search(self._embed([query]), most)
        return [self.rows[place] for place in places[0] if place >= 0]


def embedder(name: str) -> Embed:
    if name == "wordllama":
        import wordllama

        # Its package has the model; where it looks for the tokenizer, a letter is missing, and it would download that.
        model = wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)
        return lambda texts: np.asarray(model.embed(texts, norm=True), dtype=np.float32)
    from sentence_transformers import SentenceTransformer

    other = SentenceTransformer(name)
    return lambda texts: np.asarray(other.encode(texts, normalize_embeddings=True), dtype=np.float32)
