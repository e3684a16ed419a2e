"""Search over passages as a service on this machine, for all attempts: builds the index where there is none, then answers.

python3 -m venv var/search && var/search/bin/pip install -r examples/musique/requirements-search.txt
var/search/bin/python examples/musique/serve.py $LIGHTNING_DATA/musique_corpus.json
curl 'http://127.0.0.1:8899/search?query=first+president&most=2'       # [{"title", "text"}], the nearest first
"""

import argparse
import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import faiss
from passages import Passages, build, embedder, say


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help='[{"title", "text"}] as .json, or one a line as .jsonl')
    parser.add_argument(
        "--embedder", default="wordllama", help="or a sentence-transformers model: BAAI/bge-small-en-v1.5"
    )
    parser.add_argument("--folder", type=Path, default=Path("var/musique"), help="of the indexes; default: var/musique")
    parser.add_argument("--port", type=int, default=8899, help="0: any that is free")
    parser.add_argument("--build-only", action="store_true", help="end when the index is there")
    options = parser.parse_args()
    if not options.corpus.is_file():
        parser.error(f"there is no file {options.corpus}")
    embed = embedder(options.embedder)
    folder = options.folder / f"{digest(options.corpus)}-{options.embedder.replace('/', '-')}"
    if not (folder / "about.json").is_file():
        build(options.corpus, folder, embed)
    passages = Passages(folder, embed)
    if options.build_only:
        return
    faiss.omp_set_num_threads(1)  # a thread a request, instead
    with ThreadingHTTPServer(("127.0.0.1", options.port), handler(passages)) as server:
        say(f"{len(passages):,} passages at http://127.0.0.1:{server.server_port}/search")
        server.serve_forever()


def digest(corpus: Path) -> str:
    """Of its size, and of its first and last megabyte: a corpus may have many gigabytes."""
    size = corpus.stat().st_size
    with corpus.open("rb") as file:
        found = hashlib.sha256(f"{size}\n".encode() + file.read(1 << 20))
        file.seek(max(0, size - (1 << 20)))
        found.update(file.read())
    return found.hexdigest()[:12]


def handler(passages: Passages) -> type[BaseHTTPRequestHandler]:
    class Search(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            asked = parse_qs(url.query)
            most = asked.get("most", ["4"])[0]
            if url.path != "/search" or not asked.get("query") or not most.isdecimal() or not 0 < int(most) <= 100:
                self._answer(400, {"error": "ask for /search?query=…&most=4 (1 to 100)"})
            else:
                self._answer(200, passages.search(asked["query"][0], int(most)))

        def _answer(self, status: int, value: object) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Search


if __name__ == "__main__":
    main()
