"""A server that answers as the Hub does, for one repository at one commit."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "a" * 40


class HubServer:
    """Serves a folder as owner/repo; everything else is not found.

    Attributes:
        url: for HF_ENDPOINT.
        fetched: names of the files whose content was sent.
    """

    def __init__(self, folder: Path, repo: str):
        self.fetched: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                self._answer(with_body=False)

            def do_GET(self):
                self._answer(with_body=True)

            def _answer(self, with_body):
                path = self.path.partition("?")[0].strip("/")
                files = sorted(x for x in folder.rglob("*") if x.is_file())
                if path == f"api/models/{repo}/revision/main":
                    return self._send(json.dumps({"id": repo, "sha": COMMIT}).encode(), with_body)
                if path == f"api/models/{repo}/tree/{COMMIT}":
                    tree = [
                        {
                            "type": "file",
                            "path": str(x.relative_to(folder)),
                            "size": x.stat().st_size,
                            "oid": hashlib.sha1(x.read_bytes()).hexdigest(),
                        }
                        for x in files
                    ]
                    return self._send(json.dumps(tree).encode(), with_body)
                start = f"{repo}/resolve/{COMMIT}/"
                if path.startswith(start) and (folder / path.removeprefix(start)).is_file():
                    data = (folder / path.removeprefix(start)).read_bytes()
                    if with_body:
                        outer.fetched.append(path.removeprefix(start))
                    etag = f'"{hashlib.sha256(data).hexdigest()}"'
                    return self._send(data, with_body, {"ETag": etag, "X-Repo-Commit": COMMIT})
                known = path.startswith(f"api/models/{repo}/")
                kind = "RevisionNotFound" if known else "RepoNotFound"
                self._send(b"{}", with_body, {"X-Error-Code": kind}, 404)

            def _send(self, data, with_body, headers=None, status=200):
                self.send_response(status)
                for name, value in {**(headers or {}), "Content-Length": len(data)}.items():
                    self.send_header(name, str(value))
                self.end_headers()
                if with_body:
                    self.wfile.write(data)

            def log_message(self, format, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
