"""A small Hub on loopback: the calls that huggingface_hub makes to push to a repository and to load from it.

    python tests/support/hub_server.py FOLDER [--lfs]     # prints its address, serves until it is killed

The newest files of a repository lie below FOLDER/user/name, to be looked at. With --lfs weights travel by the LFS
protocol as on the Hub, otherwise inside the commit. The newer protocol (xet) is refused. Of the tokens "hf_test" may
read and write, "hf_read" may read; all others are wrong.

Failures are ordered by POST /-/control, one JSON object:

    {"faults": [{"method": "POST", "path": "commit", "status": 429, "headers": {"Retry-After": "1"}, "times": 2}]}
    {"faults": [{"method": "PUT", "path": "", "drop": "before", "times": 1}]}     # or "after": handled, no answer
    {"cut": 1000, "pid": 4711}     # after so many more bytes in bodies: kill the process, answer nobody any more
    {"heal": true}                 # no faults, no cut
    {"reset": true}                # and no repositories

GET /-/log gives what was asked: [{"method", "path", "status", "bytes"}].
"""

import argparse
import base64
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlparse


TOKENS = {"hf_test": "write", "hf_read": "read"}
LFS = re.compile(r"\.(safetensors|bin|png|jpg|model)$")


class LostLine(Exception):
    """The connection is to be dropped without an answer."""


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str | None = None, **content):
        self.status, self.code, self.content = status, code, {"error": message, **content}


class Store:
    """Repositories with their commits, and objects by their SHA-256."""

    def __init__(self, folder: Path, lfs: bool):
        self.folder, self.lfs = folder, lfs
        self.objects = folder / ".objects"
        self.clear()
        self.lock = threading.RLock()
        self.log: list[dict] = []
        self.faults: list[dict] = []
        self.received, self.cut, self.pid, self.down = 0, None, None, False

    def clear(self) -> None:
        """Forget all repositories and objects."""
        for path in self.folder.glob("*"):
            shutil.rmtree(path)
        self.objects.mkdir(parents=True, exist_ok=True)
        self.repositories: dict[str, dict] = {}

    def put(self, content: bytes) -> str:
        name = hashlib.sha256(content).hexdigest()
        part = self.objects / f"{name}.{threading.get_ident()}"
        part.write_bytes(content)
        os.replace(part, self.objects / name)
        return name

    def has(self, name: str) -> bool:
        return (self.objects / name).is_file()

    def head(self, name: str) -> dict:
        return self.repositories[name]["commits"][-1]

    def commit(self, name: str, files: dict[str, dict]) -> str:
        commits = self.repositories[name]["commits"]
        text = json.dumps([commits[-1]["oid"] if commits else "", files], sort_keys=True)
        commits.append({"oid": hashlib.sha1(text.encode()).hexdigest(), "files": files})
        copy = self.folder / name
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir(parents=True)
        for path, entry in files.items():
            (copy / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.objects / entry["sha256"], copy / path)
        return commits[-1]["oid"]

    def count(self, size: int) -> None:
        """Bytes of a body have come; the line may break here."""
        with self.lock:
            self.received += size
            if self.cut is not None and self.received >= self.cut:
                if self.pid is not None:
                    os.kill(self.pid, signal.SIGKILL)
                    self.pid = None
                self.down = True
        if self.down:
            raise LostLine

    def fault(self, method: str, path: str) -> dict | None:
        with self.lock:
            for fault in self.faults:
                if fault["times"] and fault.get("method", method) == method and re.search(fault["path"], path):
                    fault["times"] -= 1
                    return fault
        return None


class Hub(BaseHTTPRequestHandler):
    store: Store

    def handle_any(self) -> None:
        url = urlparse(self.path)
        # noted before the answer: who has it may clear the log at once
        self.entry = {"method": self.command, "path": url.path, "status": None, "bytes": 0}
        self.parts = [unquote(part) for part in url.path.strip("/").split("/")]
        self.query = {key: values[0] for key, values in parse_qs(url.query).items()}
        try:
            if self.parts[0] == "-" and self.parts[1] in ("control", "log"):
                return self.control()
            self.store.log.append(self.entry)
            if self.store.down:
                raise LostLine
            fault = self.store.fault(self.command, url.path)
            if fault is not None and fault.get("drop") == "before":
                raise LostLine
            if fault is not None and "status" in fault:
                self.body()
                return self.answer({"error": "ordered by the test"}, fault["status"], **fault.get("headers", {}))
            self.silent = fault is not None  # handled, but the answer is lost
            self.route()
        except Refusal as refusal:
            code = {} if refusal.code is None else {"X-Error-Code": refusal.code}
            self.answer(refusal.content, refusal.status, **code)
        except (LostLine, ConnectionError):
            self.drop()

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def route(self) -> None:
        first = self.parts
        if first[:2] == ["-", "lfs"]:
            return self.put_object(first[2]) if self.command == "PUT" else self.get_object(first[2])
        if first[:2] == ["-", "verify"]:
            return self.verify()
        if first == ["api", "whoami-v2"]:
            self.need("read", signed=True)
            return self.answer({"name": "user", "type": "user", "orgs": []})
        if first == ["api", "repos", "create"]:
            return self.create()
        if first == ["api", "validate-yaml"]:
            return self.validate()
        if first[:2] == ["api", "models"] and len(first) >= 4:
            return self.api("/".join(first[2:4]), first[4] if len(first) > 4 else "", first[5:])
        if first[2:] == ["info", "lfs", "objects", "batch"] and first[1].endswith(".git"):
            return self.batch(f"{first[0]}/{first[1].removesuffix('.git')}")
        if len(first) > 4 and first[2] == "resolve":
            return self.resolve("/".join(first[:2]), first[3], "/".join(first[4:]))
        raise Refusal(404, f"no such call: {self.command} {self.path}")

    # ---- who may do what ----

    def need(self, right: str, name: str | None = None, *, signed: bool = False) -> None:
        header = self.headers.get("Authorization")
        rights = None if header is None else TOKENS.get(header.removeprefix("Bearer "))
        if header is not None and rights is None:
            self.body()
            raise Refusal(401, "Invalid credentials in Authorization header")
        repository = self.store.repositories.get(name) if name else None
        if name is not None and (repository is None or (repository["private"] and rights is None)):
            self.body()
            raise Refusal(404 if rights else 401, "Repository not found", "RepoNotFound")
        if rights is None and (signed or right == "write"):
            self.body()
            raise Refusal(401, "Please log in")
        if right == "write" and rights == "read":
            self.body()
            raise Refusal(403, "this token may only read")

    # ---- calls about a repository ----

    def create(self) -> None:
        self.need("write")
        wanted = json.loads(self.body())
        name = f"{wanted.get('organization') or 'user'}/{wanted['name']}"
        url = {"url": f"{self.address()}/{name}", "id": name}
        with self.store.lock:
            if name in self.store.repositories:
                raise Refusal(409, "You already created this model repo", **url)
            private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
            self.store.repositories[name] = {"private": private, "commits": []}
            attributes = self.store.put(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
            self.store.commit(name, {".gitattributes": {"sha256": attributes, "size": 50, "lfs": False}})
        self.answer(url)

    def api(self, name: str, call: str, rest: list[str]) -> None:
        writes = call in ("preupload", "commit", "xet-write-token")
        self.need("write" if writes else "read", name)
        if call in ("", "revision"):
            return self.info(name, rest[0] if rest else "main")
        if call == "tree":
            return self.answer([self.described(p, e) for p, e in sorted(self.at(name, rest[0])["files"].items())])
        if call == "paths-info":
            wanted = parse_qs(self.body().decode()).get("paths", [])
            files = self.at(name, rest[0])["files"]
            return self.answer([self.described(path, files[path]) for path in wanted if path in files])
        if call == "refs":
            heads = [{"name": "main", "ref": "refs/heads/main", "targetCommit": self.store.head(name)["oid"]}]
            return self.answer({"branches": heads, "tags": [], "converts": []})
        if call == "preupload":
            return self.preupload(name)
        if call == "commit":
            return self.commit(name)
        raise Refusal(404, f"no such call: {call}")  # xet tokens among them

    def at(self, name: str, revision: str) -> dict:
        for commit in reversed(self.store.repositories[name]["commits"]):
            if revision in ("main", commit["oid"]):
                return commit
        raise Refusal(404, f"no revision {revision}", "RevisionNotFound")

    def info(self, name: str, revision: str) -> None:
        commit = self.at(name, revision)
        siblings = [{"rfilename": path} for path in sorted(commit["files"])]
        private = self.store.repositories[name]["private"]
        self.answer(
            {"_id": "0", "id": name, "sha": commit["oid"], "private": private, "siblings": siblings, "tags": []}
        )

    def described(self, path: str, entry: dict) -> dict:
        found = {"type": "file", "path": path, "size": entry["size"], "oid": self.git_oid(entry)}
        if entry["lfs"]:
            found["lfs"] = {"oid": entry["sha256"], "size": entry["size"], "pointerSize": 134}
        return found

    def git_oid(self, entry: dict) -> str:
        if entry["lfs"]:
            content = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\n" % entry["sha256"].encode()
        else:
            content = (self.store.objects / entry["sha256"]).read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def preupload(self, name: str) -> None:
        there = self.store.head(name)["files"]
        files = []
        for file in json.loads(self.body())["files"]:
            lfs = self.store.lfs and LFS.search(file["path"])
            entry = there.get(file["path"])
            oid = None if entry is None else entry["sha256"] if entry["lfs"] else self.git_oid(entry)
            mode = "lfs" if lfs else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.answer({"files": files})

    def batch(self, name: str) -> None:
        self.need("write", name)
        objects = []
        for wanted in json.loads(self.body())["objects"]:
            found = {"oid": wanted["oid"], "size": wanted["size"]}
            if not self.store.has(wanted["oid"]):
                actions = {"upload": "lfs", "verify": "verify"}
                found["actions"] = {k: {"href": f"{self.address()}/-/{v}/{wanted['oid']}"} for k, v in actions.items()}
            objects.append(found)
        self.answer({"transfer": "basic", "objects": objects})

    def put_object(self, oid: str) -> None:
        content = self.body()
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, "the content has another hash")
        self.store.put(content)
        self.answer({})

    def verify(self) -> None:
        wanted = json.loads(self.body())
        path = self.store.objects / wanted["oid"]
        if not path.is_file() or path.stat().st_size != wanted["size"]:
            raise Refusal(404, "no such object")
        self.answer({})

    def commit(self, name: str) -> None:
        lines = [json.loads(line) for line in self.body().splitlines()]
        with self.store.lock:
            head = self.store.head(name)
            files = dict(head["files"])
            for line in lines:
                value = line["value"]
                if line["key"] == "header":
                    if value.get("parentCommit") not in (None, head["oid"]):
                        raise Refusal(412, "a commit has happened since")
                elif line["key"] == "file":
                    content = base64.b64decode(value["content"])
                    files[value["path"]] = {"sha256": self.store.put(content), "size": len(content), "lfs": False}
                elif line["key"] == "lfsFile":
                    if not self.store.has(value["oid"]):
                        raise Refusal(400, f"{value['path']} was never uploaded")
                    files[value["path"]] = {"sha256": value["oid"], "size": value["size"], "lfs": True}
                elif line["key"] == "deletedFile":
                    if files.pop(value["path"], None) is None:
                        raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
                else:
                    raise Refusal(400, f"unknown operation {line['key']}")
            oid = self.store.commit(name, files)
        url = f"{self.address()}/{name}/commit/{oid}"
        self.answer({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def validate(self) -> None:
        """As the Hub: the metadata must be a mapping that huggingface_hub reads, with identifiers in their places."""
        from huggingface_hub import ModelCard  # late: the server is to start at once

        content = json.loads(self.body())["content"]
        try:
            data = ModelCard(content).data
        except (ValueError, TypeError, KeyError) as error:
            raise Refusal(400, "invalid metadata", errors=[{"message": str(error)}]) from error
        wrong = [key for key in ("license", "pipeline_tag", "library_name") if not isinstance(data.get(key, ""), str)]
        if wrong:
            raise Refusal(400, "invalid metadata", errors=[{"message": f"{key} must be a string"} for key in wrong])
        self.answer({"errors": [], "warnings": []})

    # ---- files ----

    def resolve(self, name: str, revision: str, path: str) -> None:
        self.need("read", name)
        commit = self.at(name, revision)
        entry = commit["files"].get(path)
        about = {"X-Repo-Commit": commit["oid"]}
        if entry is None:
            return self.answer({"error": "Entry not found"}, 404, **about, **{"X-Error-Code": "EntryNotFound"})
        etag = entry["sha256"] if entry["lfs"] else self.git_oid(entry)
        about |= {"ETag": f'"{etag}"', "X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(entry["size"])}
        if entry["lfs"]:
            # another host, as on the Hub: the client takes what it must know of the file from this answer
            elsewhere = f"http://localhost:{self.server.server_address[1]}/-/lfs/{entry['sha256']}"
            return self.send(302, b"", Location=elsewhere, **about)
        self.send_file(self.store.objects / entry["sha256"], **about)

    def get_object(self, oid: str) -> None:
        if not self.store.has(oid):
            raise Refusal(404, "no such object")
        self.send_file(self.store.objects / oid, ETag=f'"{oid}"')

    def send_file(self, path: Path, **headers: str) -> None:
        content = path.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return self.send(200, content, **headers)
        first, last = int(wanted[1]), int(wanted[2]) if wanted[2] else len(content) - 1
        place = f"bytes {first}-{min(last, len(content) - 1)}/{len(content)}"
        self.send(206, content[first : last + 1], **headers, **{"Content-Range": place})

    # ---- the line ----

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            found = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                found += self.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return found
        return self.read(int(self.headers.get("Content-Length", 0)))

    def read(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            part = self.rfile.read1(min(size - len(found), 1 << 14))
            if not part:
                raise LostLine  # the client is gone
            found += part
            self.entry["bytes"] += len(part)
            self.store.count(len(part))
        return found

    def address(self) -> str:
        return "http://{}:{}".format(*self.server.server_address)

    def answer(self, content: dict | list, status: int = 200, **headers: str) -> None:
        self.send(status, json.dumps(content).encode(), **{"Content-Type": "application/json", **headers})

    def send(self, status: int, body: bytes, **headers: str) -> None:
        if getattr(self, "silent", False):
            self.silent = False
            raise LostLine
        self.entry["status"] = status
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def drop(self) -> None:
        """End the connection as a broken line does: no answer, a reset."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def control(self) -> None:
        if self.command == "GET":
            return self.answer(self.store.log)
        order = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.store.lock:
            if order.get("reset"):
                self.store.clear()
            if order.get("heal") or order.get("reset"):
                self.store.faults, self.store.cut, self.store.pid, self.store.down = [], None, None, False
            if "faults" in order:
                self.store.faults = order["faults"]
            if "cut" in order:
                self.store.cut, self.store.pid = self.store.received + order["cut"], order.get("pid")
            self.store.log.clear()
        self.answer({})

    def log_message(self, *args) -> None:
        """No access log."""


class Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address) -> None:
        """A dropped connection is no error here."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--lfs", action="store_true", help="weights travel by the LFS protocol")
    arguments = parser.parse_args()
    Hub.store = Store(arguments.folder, arguments.lfs)
    server = Server(("127.0.0.1", 0), Hub)
    print("http://{}:{}".format(*server.server_address), flush=True)
    server.serve_forever()
