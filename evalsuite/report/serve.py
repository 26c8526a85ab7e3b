"""The report of a folder of runs, live: read again when its files change, served to this machine alone.

The server knows two addresses, the page and a stamp that changes with the files. It opens no file by a name that a
request gives, listens on 127.0.0.1 only, and answers no other host name, so that no page of another site can read it.
"""

import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from evalsuite import compare as comparing
from evalsuite.errors import UserError
from evalsuite.report import build, charts, figures, words

HOST = "127.0.0.1"


class Live:
    """The page of a folder, made anew where a file has changed since."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._made = ""
        self._page = ""

    def stamp(self) -> str:
        """What changes when a run of the folder does: the names, sizes and times of its files."""
        found = []
        for file in sorted([*self.folder.glob("*.*"), *self.folder.glob("*/*.*")]):
            try:
                about = file.stat()
            except OSError:  # replaced while we look
                continue
            found.append(f"{file.name} {about.st_size} {about.st_mtime_ns}")
        return f"{hash(tuple(found)) & (2**64 - 1):016x}"

    def page(self) -> str:
        """The report, or one line that says why there is none yet."""
        with self._lock:
            now = self.stamp()
            if now != self._made:
                self._page, self._made = _page(self.folder), now
            return self._page


def _page(folder: Path) -> str:
    try:
        runs = comparing.load([folder], prompts=True)
        asked = [run for run in runs if run.rows]
        if not asked:
            raise UserError(f"no sample is stored in {folder} yet")
        result = comparing.compare(asked)
        return build.page(asked, result, figures.figures(result, asked), live=True)
    except (UserError, OSError) as error:  # a file may go while it is read: a run that ends replaces its log
        return build.render("waiting.html", live=True, reason=words.visible(str(error)))


def server(folder: Path, port: int) -> ThreadingHTTPServer:
    """A server of the folder's report on 127.0.0.1, not yet running; port 0 takes a free one.

    Raises UserError where the port is taken, where there is no such folder and where the extra `report` is missing.
    """
    charts.check()
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give the --out of a run")
    live = Live(folder)

    class Handler(_Handler):
        answers = {"/": ("text/html", live.page), "/stamp": ("text/plain", live.stamp)}  # noqa: RUF012 - this server's

    try:
        return ThreadingHTTPServer((HOST, port), Handler)
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen on {HOST}:{port}: {error}; give another --port, or 0 for a free one") from error


class _Handler(BaseHTTPRequestHandler):
    answers: dict[str, tuple[str, Callable[[], str]]]
    server_version = "evalsuite"
    sys_version = ""

    def do_GET(self) -> None:
        """The page or its stamp; nothing else exists."""
        _, port = self.connection.getsockname()
        if self.headers.get("Host") not in (f"{HOST}:{port}", f"localhost:{port}"):
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST)
            return
        if self.path not in self.answers:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        kind, make = self.answers[self.path]
        body = make().encode(errors="replace")
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the terminal says where the page is, and that is all."""


def view(folder: Path, port: int, say: Callable[[str], None]) -> None:
    """Serve the folder's report until interrupted."""
    with server(folder, port) as serving:
        say(f"http://{HOST}:{serving.server_address[1]}/  (Ctrl-C ends it)")
        try:
            serving.serve_forever()
        except KeyboardInterrupt:
            return
