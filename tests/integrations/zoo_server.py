"""`transformers serve` with this package's architecture, and a log of every prompt that it answered.

python zoo_server.py LOG PORT CHECKPOINT. The server is transformers' own; only its ASGI application is listened to.
"""

import json
import os
import sys

import transformers
import transformers.cli.serving.server as serving
from transformers.cli.serve import Serve

from evalsuite.models.modeling import EvalsuiteForCausalLM


class Listened:
    """An ASGI application whose answers to prompts are logged, one line each, once they are sent whole."""

    def __init__(self, app, log):
        self.app, self.log = app, os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    async def __call__(self, scope, receive, send):
        body, status = bytearray(), [0]

        async def hear():
            message = await receive()
            body.extend(message.get("body", b""))
            return message

        async def say(message):
            status[0] = message.get("status", status[0])
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body") and body:
                asked = json.loads(body)
                prompt = asked["prompt"] if "prompt" in asked else asked["messages"][-1]["content"]
                line = {"prompt": prompt, "status": status[0]}
                os.write(self.log, (json.dumps(line) + "\n").encode())

        await self.app(scope, hear, say)


def main(log, port, checkpoint):
    """Serve until killed."""
    transformers.EvalsuiteForCausalLM = EvalsuiteForCausalLM  # it looks architectures up there alone
    build = serving.build_server
    serving.build_server = lambda *args, **options: Listened(build(*args, **options), log)
    Serve(force_model=checkpoint, dtype="float32", device="cpu", port=int(port), host="127.0.0.1")


if __name__ == "__main__":
    main(*sys.argv[1:])
