"""A small strict OpenAI-compatible server on loopback that can be told to fail: words are its tokens.

It knows what it was asked and when. `faults` are taken one a request, first come first served: each is a callable of
the handler, after which nothing else is sent.
"""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONTEXT = 64


def tokens_of(text):
    """`a b` -> ["a", " b"]: the tokens join to the text."""
    found = []
    for word in text.split(" "):
        found.append(f" {word}" if found else word)
    return found


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def log_message(self, *args):
        pass

    def reply(self, status, value, **headers):
        raw = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": len(raw), **headers}.items():
            self.send_header(name.replace("_", "-"), str(text))
        self.end_headers()
        self.wfile.write(raw)

    def do_GET(self):
        if self.path != "/v1/models" or not self.server.lists:
            return self.reply(404, {"error": {"message": "no such path"}})
        entry = {"id": "wise", "object": "model", "created": int(time.time() * 1e6), "owned_by": "nobody"}
        if self.server.tells_context:
            entry["max_model_len"] = CONTEXT
        return self.reply(200, {"object": "list", "data": [entry]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        chat = self.path == "/v1/chat/completions"
        prompt = body["messages"][0]["content"] if chat else body["prompt"]
        server = self.server
        with server.lock:
            server.asked.append((time.monotonic(), prompt, body))
            server.headers.append(dict(self.headers))
            fault = server.faults.pop(0) if server.faults and server.armed else None
            server.busy += 1
            server.most = max(server.most, server.busy)
        try:
            if server.key and self.headers.get("Authorization") != f"Bearer {server.key}":
                given = self.headers.get("Authorization")
                return self.reply(401, {"error": {"message": f"Incorrect key: {given}", "code": "invalid_api_key"}})
            if prompt in server.poison:
                return self.reply(500, {"error": "this one never works"})
            if server.echo_fault is not None and body.get("echo"):
                return server.echo_fault(self)
            if fault is not None:
                return fault(self)
            time.sleep(server.seconds)
            return self.reply(200, self.answer(prompt, body, chat))
        finally:
            with server.lock:
                server.busy -= 1

    def answer(self, prompt, body, chat):
        server = self.server
        tokens = tokens_of(prompt)
        if server.cuts:
            tokens = tokens[-server.cuts :]
        text = server.says(prompt)
        choice = {"index": 0, "finish_reason": server.finish}
        told = text if isinstance(text, dict) else {"content": text}
        choice |= {"message": {"role": "assistant", **told}} if chat else {"text": text}
        if body.get("echo") and server.logprobs:
            told = [*tokens, " end"] if server.lists_end else tokens
            values = [None, *(-server.surprise(token, tokens[:i]) for i, token in enumerate(told[1:], 1))]
            told = [token.strip() for token in told] if server.strips else told
            choice["text"] = prompt + " end"
            choice["logprobs"] = {"tokens": told, "token_logprobs": values, "top_logprobs": None, "text_offset": []}
        value = {"id": "x", "object": "text_completion", "model": server.calls_itself, "choices": [choice]}
        if server.usage:
            read = len(tokens) + server.begins
            value["usage"] = {"prompt_tokens": read, "completion_tokens": 1, "total_tokens": read + 1}
        return value


class Strict(ThreadingHTTPServer):
    """What it gives and how it fails are its attributes; `faults` wait until it is `armed`."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.lock = threading.Lock()
        self.asked, self.headers, self.faults, self.poison = [], [], [], set()
        self.key, self.seconds, self.cuts, self.busy, self.most = "", 0.0, 0, 0, 0
        self.lists = self.tells_context = self.logprobs = self.usage = True
        self.armed, self.finish = False, "stop"
        self.begins, self.lists_end = 0, True  # tokens before a prompt, counted and not listed; its answer's among them
        self.calls_itself, self.echo_fault, self.strips = "wise-2026", None, False
        self.says = lambda prompt: f" {prompt.split()[-1]}"
        self.surprise = lambda token, before: float(len(token))
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def handle_error(self, request, client_address):
        """Clients that hang up are what is tested."""

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def prompts(self):
        """What was asked, in order, since `arm`."""
        return [prompt for _, prompt, _ in self.asked]

    def arm(self, *faults):
        """Forget what was asked, and fail so from now on."""
        with self.lock:
            self.asked.clear()
            self.headers.clear()
            self.faults[:] = faults
            self.armed = True
            self.most = 0


def status(code, message="", **headers):
    """An error with a body in OpenAI's layout."""
    return lambda handler: handler.reply(code, {"error": {"message": message, "code": None}}, **headers)


def dropped(handler):
    """The connection ends in the middle of an answer."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"te')
    handler.wfile.flush()
    handler.close_connection = True


def torn(handler):
    """As above, where nothing says how long the answer should be."""
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"text": "half an an')
    handler.close_connection = True


def slow(seconds):
    """It answers at last, to nobody."""

    def fault(handler):
        time.sleep(seconds)
        handler.close_connection = True

    return fault
