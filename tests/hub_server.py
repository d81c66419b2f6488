"""A small Hub on loopback, in memory, that huggingface_hub's real client talks to over HTTP.

It answers what the client asks for to create a repository, upload (regular and LFS files), commit, and download. No
Xet: the client must run with HF_HUB_DISABLE_XET=1. A private repository shows itself to who has the token only.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_loopback"
LFS_BYTES = 10_000_000  # files from this size on go by LFS, and so do these
LFS_FILES = (".safetensors", ".png")


def repository_key(kind: str, repo: str) -> str:
    """As the Hub addresses a repository: `user/name` of a model, `spaces/user/name` of a Space."""
    return f"spaces/{repo}" if kind == "spaces" else repo


class Hub:
    """`with Hub() as hub:` serves at `hub.endpoint`; `repos` and `requests` tell what happened."""

    def __init__(self):
        # id, of a Space with "spaces/" before it -> {"private": bool, "commits": [{"oid", "summary", "files": {...}}]}
        self.repos = {}  # files: {name: bytes}
        self.stored = {}  # LFS: sha256 -> bytes
        self.requests = []  # (method, path)
        self.errors = {}  # id -> HTTP status that every look at the repository gets
        self.broken = None  # "PUT": connections of LFS uploads are dropped half-way; "commit": so are commits

    def __enter__(self):
        handler = type("Handler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()

    def files(self, repo: str) -> dict[str, bytes]:
        """What the repository holds now."""
        commits = self.repos[repo]["commits"]
        return commits[-1]["files"] if commits else {}

    def commit(self, repo: str, lines: list[dict]) -> str:
        files = dict(self.files(repo))
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.stored[value["oid"]]  # uploaded before, or this is an error
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        oid = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.repos[repo]["commits"].append({"oid": oid, "summary": lines[0]["value"]["summary"], "files": files})
        return oid


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.note()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.refuse(401, "RepoNotFound")
        if self.path == "/api/repos/create":
            return self.create(json.loads(body))
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if self.path.startswith("/verify/"):
            asked = json.loads(body)
            held = self.hub.stored.get(asked["oid"], b"")
            return self.answer({}) if len(held) == asked["size"] else self.refuse(422)
        if found := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", self.path):
            return self.batch(json.loads(body)["objects"])
        found = re.fullmatch(r"/api/(models|spaces)/([^/]+/[^/]+)/(preupload|commit)/main", self.path)
        repo = found and repository_key(found[1], found[2])
        if repo not in self.hub.repos:
            return self.refuse(404, "RepoNotFound")
        if found[3] == "preupload":
            files = json.loads(body)["files"]
            return self.answer({"files": [self.upload_mode(file) for file in files]})
        if self.hub.broken == "commit":
            return self.drop()
        oid = self.hub.commit(repo, [json.loads(line) for line in body.splitlines() if line])
        self.answer({"commitUrl": f"{self.hub.endpoint}/{repo}/commit/{oid}", "commitOid": oid})

    def do_PUT(self):
        self.note()
        if self.hub.broken == "PUT":
            self.rfile.read(int(self.headers["Content-Length"]) // 2)
            return self.drop()
        content = self.rfile.read(int(self.headers["Content-Length"]))
        oid = self.path.rpartition("/")[2]
        if hashlib.sha256(content).hexdigest() != oid:
            return self.refuse(422)
        self.hub.stored[oid] = content
        self.answer({})

    def do_GET(self):
        self.note()
        if self.path.startswith("/lfs/"):
            return self.send(200, self.hub.stored[self.path.rpartition("/")[2]])
        found = re.match(r"/(?:api/(?:models/)?)?((?:spaces/)?[^/]+/[^/?]+)(.*)", self.path)
        if found and found[1] in self.hub.errors:
            return self.refuse(self.hub.errors[found[1]])
        repo = self.hub.repos.get(found[1]) if found else None
        if repo is None or (repo["private"] and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            return self.refuse(401, "RepoNotFound")
        files, rest = self.hub.files(found[1]), found[2].partition("?")[0]
        sha = repo["commits"][-1]["oid"] if repo["commits"] else None
        if self.path.startswith("/api/"):
            if rest in ("", "/revision/main", f"/revision/{sha}"):
                siblings = [{"rfilename": name} for name in files]
                return self.answer({"id": found[1], "private": repo["private"], "sha": sha, "siblings": siblings})
            return self.refuse(404, "EntryNotFound")
        resolve = re.fullmatch(r"/resolve/[^/]+/(.+)", rest)
        if resolve is None or resolve[1] not in files:
            return self.refuse(404, "EntryNotFound", {"X-Repo-Commit": sha or ""})
        content = files[resolve[1]]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        oid = hashlib.sha256(content).hexdigest()
        if oid not in self.hub.stored:
            return self.send(200, content, headers)
        headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
        # On the Hub, LFS files lie on another host; the client reads the commit from the answer before that.
        elsewhere = self.hub.endpoint.replace("127.0.0.1", "localhost")
        self.send(302, b"", headers | {"Location": f"{elsewhere}/lfs/{oid}"})

    do_HEAD = do_GET

    def create(self, asked: dict):
        repo = repository_key(f"{asked.get('type', 'model')}s", f"{asked['organization']}/{asked['name']}")
        url = f"{self.hub.endpoint}/{repo}"
        if repo in self.hub.repos:
            return self.send(409, json.dumps({"error": "it is there already", "url": url}).encode())
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repos[repo] = {"private": private, "commits": []}
        self.answer({"url": url, "id": repo, "name": asked["name"]})

    def upload_mode(self, file: dict) -> dict:
        large = file["size"] >= LFS_BYTES or file["path"].endswith(LFS_FILES)
        return {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}

    def batch(self, objects: list[dict]):
        entries = []
        for wanted in objects:
            oid, entry = wanted["oid"], dict(wanted)
            if oid not in self.hub.stored:
                entry["actions"] = {
                    "upload": {"href": f"{self.hub.endpoint}/lfs/{oid}"},
                    "verify": {"href": f"{self.hub.endpoint}/verify/{oid}"},
                }
            entries.append(entry)
        self.answer({"transfer": "basic", "objects": entries})

    def note(self):
        self.hub.requests.append((self.command, self.path))

    def drop(self):
        """End the connection without an answer."""
        self.close_connection = True
        self.connection.shutdown(2)

    def refuse(self, status: int, code: str = "", headers: dict | None = None):
        self.send(status, b"{}", {**({"X-Error-Code": code} if code else {}), **(headers or {})})

    def answer(self, content: dict):
        self.send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def send(self, status: int, content: bytes, headers: dict | None = None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
