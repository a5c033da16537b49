"""A small Hub on loopback: the calls that huggingface_hub makes to create a repository and to push to it.

    python tests/hub_server.py FOLDER      # prints its address, serves until it is killed

Every file arrives inline in the commit (the server asks for no LFS upload) and is written below FOLDER/user/name.
"""

import argparse
import base64
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse


class Hub(BaseHTTPRequestHandler):
    folder: Path

    def do_GET(self) -> None:
        parts = self._parts()
        if parts == ["api", "whoami-v2"]:
            return self._answer({"name": "user", "type": "user", "orgs": []})
        if parts[:2] == ["api", "models"]:
            return self._answer({"id": "/".join(parts[2:4]), "sha": "0" * 40, "siblings": []})
        return self._missing()

    def do_HEAD(self) -> None:
        self._missing()

    def do_POST(self) -> None:
        parts, body = self._parts(), self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if parts == ["api", "repos", "create"]:
            request = json.loads(body)
            name = f"{request.get('organization') or 'user'}/{request['name']}"
            (self.folder / name).mkdir(parents=True, exist_ok=True)
            return self._answer({"url": f"{self._address()}/{name}", "id": name})
        if parts == ["api", "validate-yaml"]:
            return self._answer({"errors": [], "warnings": []})
        if parts[:2] == ["api", "models"] and parts[4:5] == ["preupload"]:
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            return self._answer({"files": files})
        if parts[:2] == ["api", "models"] and parts[4:5] == ["commit"]:
            repository = self.folder / parts[2] / parts[3]
            for line in body.splitlines():
                operation = json.loads(line)
                if operation["key"] == "file":
                    path = repository / operation["value"]["path"]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(base64.b64decode(operation["value"]["content"]))
            url = f"{self._address()}/{parts[2]}/{parts[3]}/commit/{'0' * 40}"
            return self._answer({"success": True, "commitOid": "0" * 40, "commitUrl": url, "hookOutput": ""})
        return self._missing()

    def _parts(self) -> list[str]:
        return [unquote(part) for part in urlparse(self.path).path.strip("/").split("/")]

    def _address(self) -> str:
        return "http://{}:{}".format(*self.server.server_address)

    def _answer(self, content: dict, status: int = 200, **headers: str) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _missing(self) -> None:
        self._answer({"error": "not found"}, 404, X_Error_Code="EntryNotFound")

    def log_message(self, *args) -> None:
        """No access log."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    Hub.folder = parser.parse_args().folder
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    print("http://{}:{}".format(*server.server_address), flush=True)
    server.serve_forever()
