"""Files on loopback: over HTTP, with ranges of bytes, and by the calls of Cloud Storage that gcsfs makes to read.

    python file_server.py FOLDER [--certificate FILE]    # prints its address, serves until it is killed

`/files/x` is FOLDER/x, `/whole/x` the same without ranges, `/sent` the number of bytes sent so far, `/denied/` is 403.
`gs://bucket/x` is FOLDER/bucket/x for a client with STORAGE_EMULATOR_HOST.
"""

import argparse
import base64
import hashlib
import json
import re
import ssl
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlparse


OBJECTS = re.compile(r"/(?:download/)?storage/v1/b/([^/]+)/o(?:/(.*))?")


class Files(BaseHTTPRequestHandler):
    folder: Path
    sent = 0

    def do_GET(self) -> None:
        url = urlparse(self.path)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        objects = OBJECTS.fullmatch(url.path)
        if url.path.startswith("/files/"):
            self.send_file(self.folder / unquote(url.path.removeprefix("/files/")))
        elif url.path.startswith("/whole/"):
            self.send_file(self.folder / unquote(url.path.removeprefix("/whole/")), ranges=False)
        elif url.path == "/sent":
            self.send_text(200, str(Files.sent))
        elif objects and objects[2]:
            bucket, name = objects[1], unquote(objects[2])
            path = self.folder / bucket / name
            if query.get("alt") == "media" or not path.is_file():
                self.send_file(path)
            else:
                self.send_json(self.described(bucket, path))
        elif objects:
            self.list_objects(objects[1], query.get("prefix", ""), query.get("delimiter"))
        else:
            self.send_text(403 if url.path.startswith("/denied/") else 404, "no")

    do_HEAD = do_GET

    def list_objects(self, bucket: str, prefix: str, delimiter: str | None) -> None:
        root, items, prefixes = self.folder / bucket, [], set()
        for path in sorted(path for path in root.rglob("*") if path.is_file()):
            name = path.relative_to(root).as_posix()
            if name.startswith(prefix):
                head, found, _ = name.removeprefix(prefix).partition(delimiter or "\0")
                if found:
                    prefixes.add(prefix + head + found)
                else:
                    items.append(self.described(bucket, path))
        self.send_json({"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)})

    def described(self, bucket: str, path: Path) -> dict:
        name = path.relative_to(self.folder / bucket).as_posix()
        checksum = base64.b64encode(hashlib.md5(path.read_bytes()).digest()).decode()
        size = str(path.stat().st_size)
        return {"kind": "storage#object", "bucket": bucket, "name": name, "size": size, "md5Hash": checksum}

    def send_file(self, path: Path, ranges: bool = True) -> None:
        if not path.is_file():
            return self.send_text(404, "no such file")
        content = path.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None or not ranges:
            return self.send_bytes(200, content, **{"Accept-Ranges": "bytes" if ranges else "none"})
        first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        place = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
        return self.send_bytes(206, content[first : last + 1], **place)

    def send_json(self, content: dict) -> None:
        self.send_bytes(200, json.dumps(content).encode(), **{"Content-Type": "application/json"})

    def send_text(self, status: int, text: str) -> None:
        self.send_bytes(status, text.encode())

    def send_bytes(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            Files.sent += len(content)
            self.wfile.write(content)

    def log_message(self, *args) -> None:
        """No access log."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--certificate", help="a file with key and certificate; the address is then an https one")
    arguments = parser.parse_args()
    Files.folder = arguments.folder
    server = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    scheme = "http"
    if arguments.certificate:
        scheme = "https"
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(arguments.certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    print(f"{scheme}://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()
