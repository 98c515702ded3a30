"""For tests: a bucket of Google Cloud Storage on this machine, for everything that speaks to one.

gcp-storage-emulator (2026.7) knows nothing of generations, by which TensorStore notices that two
writers meet: they are added here.
"""

import contextlib
import io
import re
from collections.abc import Iterator
from unittest import mock
from urllib.parse import parse_qs, quote, unquote, urlsplit

from gcp_storage_emulator import server

BUCKET = "bucket"


def _generation(handler) -> str:
    """Of the object that a request is about; "0" where there is none."""
    address = urlsplit(handler.path)
    match = re.fullmatch(r".*/b/([^/]+)/o(?:/(.+))?", address.path)
    if match is None:
        return "0"
    name = unquote(match[2] or "") or parse_qs(address.query).get("name", [""])[0]
    entry = handler.storage.objects.get(match[1], {}).get(name)
    return "0" if entry is None else entry["generation"]


class _Response(server.Response):
    def close(self):
        if (found := _generation(self._handler)) != "0":
            self["x-goog-generation"] = found
        super().close()


class _Handler(server.RequestHandler):
    """Refuses what was asked on a condition that does not hold."""

    def _refused(self) -> bool:
        self._put_name_into_the_address()
        query, found = parse_qs(urlsplit(self.path).query), _generation(self)
        if query.get("ifGenerationMatch", [found]) != [found]:
            status = 412
        elif query.get("ifGenerationNotMatch", [""]) == [found] and found != "0":
            status = 304
        else:
            return False
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return True

    def _put_name_into_the_address(self) -> None:
        """Of an upload in one request, whose first part names the object."""
        if "uploadType=multipart" in self.path and "name=" not in self.path:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.rfile = io.BytesIO(body)
            name = re.search(rb'"name": ?"([^"]+)"', body)[1].decode()
            self.path += f"&name={quote(name, safe='')}"

    def do_GET(self):
        if not self._refused():
            super().do_GET()

    def do_POST(self):
        if not self._refused():
            super().do_POST()

    def do_DELETE(self):
        if not self._refused():
            super().do_DELETE()


@contextlib.contextmanager
def running() -> Iterator[tuple[server.Server, dict[str, str]]]:
    """The server, with an empty bucket, and the environment that leads programs to it."""
    with (
        mock.patch.object(server, "Response", _Response),
        mock.patch.object(server, "RequestHandler", _Handler),
        mock.patch.object(server.server.HTTPServer, "handle_error", lambda *_: None),
        server.create_server("127.0.0.1", 0, in_memory=True, default_bucket=BUCKET) as store,
    ):
        url = f"http://127.0.0.1:{store._api._httpd.server_port}"
        yield (
            store,
            {
                "STORAGE_EMULATOR_HOST": url,  # gcsfs and Google's own library
                "TENSORSTORE_GCS_HTTP_URL": url,
                # Otherwise both look for credentials, and for a machine of Google's around them.
                "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
                "NO_GCE_CHECK": "true",
            },
        )


def objects(store: server.Server) -> dict[str, bytes]:
    """Everything in the bucket, by name."""
    return {name: store._storage.get_file(BUCKET, name) for name in names(store)}


def names(store: server.Server) -> list[str]:
    """Names of all objects in the bucket."""
    return sorted(store._storage.objects.get(BUCKET, {}))
