"""Stands in for Google Cloud Storage in tests: objects in memory behind the JSON API, on localhost.

It speaks what gcsfs, google-cloud-storage and TensorStore say to a bucket without hierarchy: get,
list, delete, rewrite and move of objects, uploads of the kinds media, multipart and resumable,
ranges and generation preconditions. An upload changes an object at its end and all at once.

with Store().serve() as store:           # reached through store.environment
    store.objects[BUCKET, "run/a.json"]  # bytes
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import email
import hashlib
import json
import re
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

BUCKET = "stand-in"
OBJECT = r"/storage/v1/b/(?P<bucket>[^/]+)/o/(?P<name>[^/]+)"


class Refused(Exception):
    """An answer that is no success: its HTTP status."""


@dataclasses.dataclass
class Store:
    """The objects of one bucket.

    Attributes:
      objects: (bucket, name) to content.
      puts: names of the objects that were written, in order.
      changes_left: requests that may still change something; then all that would are forbidden, as
        if the process that sends them had been killed. None for any number.
      readable: whether objects may be read.
      fault: called with the method and path of every request; returns the HTTP status to answer in
        place of what is asked for, 0 to hang up without an answer, or None.
      on_put: called with the name of an object that has been written, before the writer is told.
    """

    objects: dict[tuple[str, str], bytes] = dataclasses.field(default_factory=dict)
    puts: list[str] = dataclasses.field(default_factory=list)
    changes_left: int | None = None
    readable: bool = True
    fault: Callable[[str, str], int | None] = lambda method, path: None
    on_put: Callable[[str], None] = lambda name: None
    environment: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        self.lock = threading.RLock()
        self._meta: dict[tuple[str, str], tuple[int, float]] = {}  # generation, time written
        self._generation = 0
        self._uploads: dict[str, tuple[tuple[str, str], dict, bytearray]] = {}

    @contextlib.contextmanager
    def serve(self) -> Iterator[Store]:
        """Answers on a port of its own, and says in `environment` how to be reached."""
        handler = type("Handler", (_Handler,), {"store": self})
        server = _Server(("localhost", 0), handler)
        url = f"http://localhost:{server.server_port}"
        self.environment = {
            "STORAGE_EMULATOR_HOST": url,  # of gcsfs and google-cloud-storage
            "TENSORSTORE_GCS_HTTP_URL": url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",  # TensorStore then looks for no other
            "FSSPEC_GCS_TOKEN": "anon",
        }
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()

    def clear(self) -> None:
        """Forgets all objects, and what was forbidden."""
        with self.lock:
            self.objects.clear()
            self.puts.clear()
            self.changes_left, self.readable, self.on_put = None, True, lambda name: None
            self.fault = lambda method, path: None

    def copy_to(self, folder: Path, prefix: str) -> Path:
        """The objects below a prefix as files of a folder, which it returns."""
        with self.lock:
            for (_, name), data in self.objects.items():
                if name.startswith(prefix):
                    file = folder / name.removeprefix(prefix).lstrip("/")
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(data)
        return folder

    def names(self, prefix: str = "") -> list[str]:
        """Names of the objects that begin so, in order."""
        with self.lock:
            return sorted(n for _, n in self.objects if n.startswith(prefix))

    def describe(self, key: tuple[str, str]) -> dict[str, Any]:
        if key not in self.objects:
            raise Refused(404)
        generation, written = self._meta[key]
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(written)) + ".000000Z"
        md5 = base64.b64encode(hashlib.md5(self.objects[key]).digest()).decode()
        return {
            "kind": "storage#object", "bucket": key[0], "name": key[1], "md5Hash": md5,
            "size": str(len(self.objects[key])), "generation": str(generation),
            "metageneration": "1", "updated": stamp, "timeCreated": stamp,
        }  # fmt: skip

    def put(self, key: tuple[str, str], data: bytes, asked: dict[str, str]) -> dict[str, Any]:
        self._change(key, asked)
        self._generation += 1
        self.objects[key] = bytes(data)
        self._meta[key] = self._generation, time.time()
        self.puts.append(key[1])
        self.on_put(key[1])
        return self.describe(key)

    def delete(self, key: tuple[str, str], asked: dict[str, str]) -> None:
        self.describe(key)
        self._change(key, asked)
        del self.objects[key]

    def _change(self, key: tuple[str, str], asked: dict[str, str]) -> None:
        now = self._meta[key][0] if key in self.objects else 0
        if int(asked.get("ifGenerationMatch", now)) != now:
            raise Refused(412)
        if self.changes_left is not None:
            if not self.changes_left:
                raise Refused(403)
            self.changes_left -= 1

    def list(self, bucket: str, asked: dict[str, str]) -> dict[str, Any]:
        prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter", "")
        first, end = asked.get("startOffset", ""), asked.get("endOffset")
        first, most = max(first, asked.get("pageToken", "")), int(asked.get("maxResults", 1000))
        items, prefixes = [], []
        for name in self.names(prefix):
            if name < first or (end and name >= end):
                continue
            if len(items) + len(prefixes) == most:
                return _page(items, prefixes) | {"nextPageToken": name}
            head, found, _ = name.removeprefix(prefix).partition(delimiter or "\0")
            if found:
                if (folder := f"{prefix}{head}{delimiter}") not in prefixes:
                    prefixes.append(folder)
            else:
                items.append(self.describe((bucket, name)))
        return _page(items, prefixes)

    def begin(self, key: tuple[str, str], asked: dict[str, str]) -> str:
        number = str(len(self._uploads))
        self._uploads[number] = key, asked, bytearray()
        return number

    def go_on(self, number: str, data: bytes, span: str) -> tuple[dict[str, Any] | None, int]:
        """(the object where the upload is complete, bytes that are there)."""
        key, asked, kept = self._uploads[number]
        kept += data
        total = span.rpartition("/")[2]
        done = total not in ("", "*") and len(kept) == int(total)
        return (self.put(key, kept, asked) if done else None), len(kept)


def _page(items: list, prefixes: list) -> dict[str, Any]:
    return {"kind": "storage#objects", "items": items, "prefixes": prefixes}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):  # of a client that went away
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    store: Store
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def _answer(self, status: int, body: bytes | dict = b"", **headers: str) -> None:
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_GET(self):
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urllib.parse.urlsplit(self.path)
        asked = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        try:
            with self.store.lock:
                fault = self.store.fault(self.command, urllib.parse.unquote(self.path))
                if fault == 0:
                    self.close_connection = True
                    return
                if fault:
                    raise Refused(fault)
                self._act(url.path.removeprefix("/download"), asked, data)
        except Refused as refused:
            (status,) = refused.args
            self._answer(status, {"error": {"code": status, "message": f"status {status}"}})

    do_POST = do_PUT = do_DELETE = do_GET

    def _act(self, path: str, asked: dict[str, str], data: bytes) -> None:
        store = self.store
        part = lambda found, name: urllib.parse.unquote(found[name])  # noqa: E731
        if (found := re.search(r"/storage/v1/b/([^/]+)", path)) and found[1] != BUCKET:
            raise Refused(404)
        if found := re.fullmatch(r"/storage/v1/b/([^/]+)", path):
            return self._answer(200, {"kind": "storage#bucket", "name": found[1]})
        if found := re.fullmatch(r"/storage/v1/b/([^/]+)/o", path):
            return self._answer(200, store.list(found[1], asked))
        if found := re.fullmatch(OBJECT, path):
            key = found["bucket"], part(found, "name")
            if self.command == "DELETE":
                store.delete(key, asked)
                return self._answer(204)
            return self._read(key, asked)
        if found := re.fullmatch(OBJECT + r"/rewriteTo/b/([^/]+)/o/(?P<to>[^/]+)", path):
            old, new = (found["bucket"], part(found, "name")), (found[3], part(found, "to"))
            store.describe(old)
            made = store.put(new, store.objects[old], asked)
            return self._answer(200, {"done": True, "resource": made})
        if found := re.fullmatch(r"/upload/storage/v1/b/([^/]+)/o", path):
            return self._upload(found[1], asked, data)
        raise Refused(501)

    def _read(self, key: tuple[str, str], asked: dict[str, str]) -> None:
        if not self.store.readable:
            raise Refused(403)
        described = self.store.describe(key)
        generation = described["generation"]
        if asked.get("ifGenerationNotMatch") == generation:
            return self._answer(304)
        if asked.get("ifGenerationMatch", generation) != generation:
            raise Refused(412)
        if asked.get("alt") != "media":
            return self._answer(200, described)
        data, headers = self.store.objects[key], {"x_goog_generation": generation}
        if not (span := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")):
            return self._answer(200, data, **headers)
        first = int(span[1]) if span[1] else len(data) - int(span[2])
        last = min(int(span[2]) if span[1] and span[2] else len(data), len(data) - 1)
        if first > last:
            raise Refused(416)
        headers["Content_Range"] = f"bytes {first}-{last}/{len(data)}"
        return self._answer(206, data[first : last + 1], **headers)

    def _upload(self, bucket: str, asked: dict[str, str], data: bytes) -> None:
        kind = asked.get("uploadType")
        if kind == "media":
            return self._answer(200, self.store.put((bucket, asked["name"]), data, asked))
        if kind == "multipart":
            head = f"Content-Type: {self.headers['Content-Type']}\n\n".encode()
            described, content = email.message_from_bytes(head + data).get_payload()
            del content["Content-Type"]
            boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
            body = data.split(b"--" + boundary, 2)[2]
            body = body[re.search(rb"\r?\n\r?\n", body).end() :]
            body = re.sub(rb"\r?\n--" + re.escape(boundary) + rb"--\s*\Z", b"", body)
            key = bucket, json.loads(described.get_payload())["name"]
            return self._answer(200, self.store.put(key, body, asked))
        if number := asked.get("upload_id"):
            if self.command == "DELETE":
                return self._answer(499)
            made, there = self.store.go_on(number, data, self.headers.get("Content-Range", ""))
            if made:
                return self._answer(200, made)
            return self._answer(308, Range=f"bytes=0-{there - 1}")
        name = asked.get("name") or json.loads(data)["name"]
        number = self.store.begin((bucket, name), asked)
        where = f"http://{self.headers['Host']}/upload/storage/v1/b/{bucket}/o?upload_id={number}"
        return self._answer(200, Location=where)
