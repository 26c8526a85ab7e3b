"""The live report: of this machine alone, and of nothing but the folder's runs."""

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from asked import keep, row
from evalsuite import cli, store
from evalsuite.errors import UserError
from evalsuite.report import serve
from evalsuite.store import Store


@contextmanager
def serving(folder: Path) -> Iterator[int]:
    server = serve.server(folder, 0)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def get(port: int, path: str, host: str = "", method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host or f"127.0.0.1:{port}")
    connection.endheaders()
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def test_it_follows_a_run(tmp_path: Path) -> None:
    with serving(tmp_path) as port:
        assert "is no run" in get(port, "/")[1]
        with Store.open(tmp_path / "m", {**meta_of("m"), "missing": {}}) as writer:
            assert "no sample is stored in" in get(port, "/")[1]
            writer.append(row("knowledge", 0, 1.0))
            before = get(port, "/stamp")[1]
            assert get(port, "/stamp")[1] == before
            status, page = get(port, "/")
            assert (status, "UNFINISHED</strong> m: 1 samples so far" in page) == (200, True)
            assert "connect-src &#39;self&#39;" in page
            assert 'id="live"' in page
            writer.append(row("knowledge", 1, 0.0))
            assert get(port, "/stamp")[1] != before
            assert "m: 2 samples so far" in get(port, "/")[1]


def meta_of(model: str) -> dict[str, object]:
    from asked import meta

    return meta(model, [row("knowledge", 0, 1.0)])


def test_a_page_that_has_not_changed_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(tmp_path, "m", [row("knowledge", 0, 1.0)])
    made = []
    monkeypatch.setattr(serve, "_page", lambda folder: made.append(folder) or "page")  # type: ignore[func-returns-value]
    live = serve.Live(tmp_path)
    assert [live.page(), live.page()] == ["page", "page"]
    assert made == [tmp_path]


@pytest.mark.parametrize(
    "path",
    ["/m/run.json", "/../secret", "/..%2fsecret", "//etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/?x", "/.", "stamp"],
)
def test_there_is_nothing_else_to_get(tmp_path: Path, path: str) -> None:
    (tmp_path / "secret").write_text("secret")
    keep(tmp_path / "runs", "m", [row("knowledge", 0, 1.0)])
    with serving(tmp_path / "runs") as port:
        status, text = get(port, path)
        assert status in (400, 404)
        assert "secret" not in text.replace(path, "")
        assert "root:" not in text


def test_other_host_names_are_refused(tmp_path: Path) -> None:
    """A page of another site that made its name point here must read nothing."""
    keep(tmp_path, "m", [row("knowledge", 0, 1.0)])
    with serving(tmp_path) as port:
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", "localhost:1"):
            assert get(port, "/", host)[0] == 421
            assert get(port, "/stamp", host)[0] == 421
        assert get(port, "/stamp", f"localhost:{port}")[0] == 200
        assert get(port, "/", method="POST")[0] == 501


def test_only_this_machine_is_listened_to(tmp_path: Path) -> None:
    server = serve.server(tmp_path, 0)
    host, port = server.server_address[:2]
    assert host == "127.0.0.1"
    with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1:{port}"):
        serve.server(tmp_path, port)
    server.server_close()
    with pytest.raises(UserError, match="is no folder"):
        serve.server(tmp_path / "none", 0)


def test_the_verbs(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = keep(tmp_path, "m", [row("knowledge", 0, 1.0)])
    monkeypatch.setattr("sys.argv", ["evalsuite", "report", str(folder), "-o", str(tmp_path / "r.html")])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert (end.value.code, capsys.readouterr().out) == (0, f"{tmp_path / 'r.html'}\n")
    monkeypatch.setattr("socketserver.BaseServer.serve_forever", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr("sys.argv", ["evalsuite", "view", str(folder), "--port", "0"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("http://127.0.0.1:")
    assert store.read(folder).rows
