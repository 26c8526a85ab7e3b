"""A hub on loopback, as far as `datasets` asks one: sets of files under commits, and a list of what was asked."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def reply(self, status, raw=b"", length=None, **headers):
        self.send_response(status)
        for name, text in {"Content-Length": len(raw) if length is None else length, **headers}.items():
            self.send_header(name.replace("_", "-"), str(text))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def absent(self, code):
        self.reply(404, b"{}", X_Error_Code=code, X_Error_Message=f"{code} here")

    def do_HEAD(self):
        self.do_GET()

    def do_POST(self):
        self.body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path).strip("/")
        self.server.asked.append(path)
        api = path.startswith("api/")
        parts = path.removeprefix("api/").removeprefix("datasets/").split("/")
        name, rest = "/".join(parts[:2]), parts[2:]
        commits = self.server.sets.get(name)
        if commits is None:
            return self.absent("RepoNotFound")
        newest = list(commits)[-1]
        kind, revision = (rest[0], rest[1]) if len(rest) > 1 else ("revision", "main")
        commit = newest if revision == "main" else revision
        if commit not in commits:
            return self.absent("RevisionNotFound")
        files = commits[commit]
        inside = "/".join(rest[2:])
        if not api and kind == "resolve":
            return self.file(files, inside, commit)
        if kind == "revision":
            siblings = [{"rfilename": file} for file in files]
            value = {"id": name, "_id": "0", "sha": commit, "siblings": siblings, "private": False, "gated": False}
            value |= {"disabled": False, "tags": [], "downloads": 0, "likes": 0, "cardData": {}}
            return self.reply(200, json.dumps(value).encode(), Content_Type="application/json")
        return self.listing(kind, files, inside)

    def file(self, files, inside, commit):
        if inside not in files:
            return self.absent("EntryNotFound")
        raw = files[inside]
        etag = hashlib.sha1(raw).hexdigest()
        return self.reply(200, raw, len(raw), ETag=f'"{etag}"', X_Repo_Commit=commit, Accept_Ranges="bytes")

    def listing(self, kind, files, inside):
        def entry(file):
            return {
                "type": "file",
                "oid": hashlib.sha1(files[file]).hexdigest(),
                "size": len(files[file]),
                "path": file,
            }

        if kind == "paths-info":
            wanted = self.body.get("paths", [])
            found = [entry(file) for file in files if file in wanted]
            found += [{"type": "directory", "oid": "0" * 40, "size": 0, "path": path} for path in wanted
                      if any(file.startswith(f"{path}/") for file in files)]  # fmt: skip
        else:
            prefix = f"{inside}/" if inside else ""
            found = [entry(file) for file in files if file.startswith(prefix) and "/" not in file[len(prefix) :]]
            folders = {file[len(prefix) :].partition("/")[0] for file in files if file.startswith(prefix)
                       and "/" in file[len(prefix) :]}  # fmt: skip
            found += [
                {"type": "directory", "oid": "0" * 40, "size": 0, "path": prefix + each} for each in sorted(folders)
            ]
            if not found and inside:
                return self.absent("EntryNotFound")
        return self.reply(200, json.dumps(found).encode(), Content_Type="application/json")


class Hub(ThreadingHTTPServer):
    """`sets` is name -> commit -> path -> bytes, the newest commit last."""

    daemon_threads = True

    def __init__(self, sets, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.sets, self.asked = sets, []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def stop(self):
        self.shutdown()
        self.server_close()
