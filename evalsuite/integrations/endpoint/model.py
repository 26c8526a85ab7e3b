"""A model behind an OpenAI-compatible server."""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, as_completed
from typing import Any

import anyio
import httpx2
from anyio.from_thread import start_blocking_portal

from evalsuite.errors import UserError
from evalsuite.integrations.endpoint import choices as choosing
from evalsuite.integrations.endpoint.arguments import Arguments
from evalsuite.integrations.endpoint.choices import Echo
from evalsuite.integrations.endpoint.counting import Counter
from evalsuite.integrations.endpoint.wire import OWN, AwayError, Json, RefusedError, Server
from evalsuite.models.base import Speed
from evalsuite.records import Completion, Sample

OPENING = 10.0  # seconds of patience with a server that has not answered yet: its address may be wrong
SHORT = 16  # characters that may be missing from an echo
STOPS = 4  # stop strings that every server takes
PROBE = "Zoë counted 31,415 apples:\n\tdef f(x): return x**2  # naïve café, 東京"
ENDS = ("eos", "eos_token", "end_turn", "stop_sequence")  # other words for "stop"
CONTEXTS = ("max_model_len", "context_length", "context_window")  # as servers call it
SAYS = ("id", "owned_by", "root", "parent", *CONTEXTS)  # of the listed model; the rest changes with every request


class CutError(Exception):
    """What the server read or sent is not what it was to read or send: the sample's recorded error."""


class Endpoint:
    """Answers samples through a server, several at a time. Where a server gives no log probability of a prompt, what
    it generates is read as a choice: `choices` says which, for the whole run."""

    def __init__(self, given: Arguments, context: int, says: Json) -> None:
        self.given, self.context, self.says = given, context, says
        self.name = given.name or given.model.rstrip("/").rpartition("/")[2]
        self.wording = given.wording
        self.speed = Speed()  # stays 0: the time on the wire is not the model's
        self.server = Server(given)
        self.counter = Counter(given.tokenizer, chat=given.chat) if given.tokenizer else None
        self.choices = "generation"
        self.limit = "max_tokens"
        self.checked = self.counter is not None  # counts of tokens, against what the server says that it read
        self._more = 0  # tokens that the server counts beside the tokenizer's: a beginning of the text, for one
        self._answers_as = ""  # what the server calls what answers
        self._backends: set[str] = set()

    @classmethod
    def open(cls, given: Arguments) -> "Endpoint":
        """Ask the server what it is, and one short question. Raises UserError for whatever will not work."""
        with start_blocking_portal() as portal:
            server = Server(given)
            with portal.wrap_async_context_manager(server.client()) as client:
                says = portal.call(_says, server, client, given.model)
                told = next((size for name in CONTEXTS if isinstance(size := says.get(name), int)), 0)
                if not told and not given.context:
                    raise UserError(f"openai: {server.url} does not say how long a context it serves; give context=N")
                if told and given.context > told:
                    raise UserError(
                        f"openai: context={given.context}, and {server.url} serves {told} tokens; give less"
                    )
                made = cls(given, given.context or told, says)
                portal.call(made._probe, client)
        return made

    def identity(self) -> Mapping[str, Any]:
        """Server, model, what the server says of it, how choices are answered, and the tokenizer that counts."""
        return {
            "server": self.server.url,
            "model": self.given.model,
            "says": dict(self.says),
            "answers as": self._answers_as,
            "api": "chat" if self.given.chat else "completions",
            "choices": self.choices,
            "tokenizer": self.counter.digest() if self.counter else "",
            "tokens": "checked" if self.checked else "as the server tells them, unchecked",
        }

    def ran(self) -> Mapping[str, list[str]]:
        """What the server said of itself with its answers."""
        return {"server": sorted(self._backends)} if self._backends else {}

    def count(self, text: str) -> int:
        """Tokens that a prompt costs. Raises UserError without a tokenizer: nothing else knows."""
        if self.counter is None:
            raise UserError(
                f"{self.name} has no tokenizer to count a prompt's tokens with; add tokenizer=DIR or tokenizer=NAME"
            )
        return self.counter(text) + self._more

    def cost(self, length: int) -> Mapping[str, int]:
        """Unknown."""
        return {}

    def answer(self, samples: Sequence[Sample]) -> Iterator[Completion]:
        """Completions as they come. Where the server stays away, every answer that is there is given before the
        UserError; an interrupt ends what is under way at once."""
        failed: BaseException | None = None
        with start_blocking_portal() as portal, portal.wrap_async_context_manager(self.server.client()) as client:
            seats = portal.call(anyio.CapacityLimiter, self.given.concurrency)
            asked: list[Future[Completion]] = [
                portal.start_task_soon(self._seated, seats, client, sample) for sample in samples
            ]
            try:
                for future in as_completed(asked):
                    if future.cancelled():
                        continue
                    error = future.exception()
                    if error is None:
                        yield future.result()
                    elif failed is None:
                        failed = error
                        _cancel(asked)
            finally:
                _cancel(asked)
        if failed is not None:
            raise failed

    async def _seated(self, seats: anyio.CapacityLimiter, client: httpx2.AsyncClient, sample: Sample) -> Completion:
        async with seats:
            try:
                return await (self._choose if sample.choices else self._generate)(client, sample)
            except RefusedError as error:
                if error.status != 413 and not OWN.search(error.said):
                    raise  # a fault of the request: the next sample's would be refused too
                return Completion(
                    sample.id, "", 0, finish="error", error=f"the server refused the prompt: {error.said}"
                )
            except AwayError as error:
                raise UserError(f"{error} (asked: {sample.id})") from error
            except CutError as error:
                return Completion(sample.id, "", 0, finish="error", error=str(error))

    async def _generate(self, client: httpx2.AsyncClient, sample: Sample) -> Completion:
        body: dict[str, Any] = {"temperature": sample.temperature}
        if sample.temperature:
            body |= {"top_p": sample.top_p, "seed": zlib.crc32(sample.id.encode()) >> 1}
        stops = tuple(stop for stop in sample.stop if stop)
        if stops:
            body["stop"] = list(stops[:STOPS])
        answer, tokens = await self._ask(client, sample.text, sample.max_new_tokens, body)
        text, finish = _said(answer)
        cut = min((place for stop in stops if (place := text.find(stop)) >= 0), default=-1)
        if cut >= 0:  # some servers send the stop string too
            text, finish = text[:cut], "stop"
        used = (answer.get("usage") or {}).get("completion_tokens") or 0
        return Completion(sample.id, text, tokens, used, finish=finish)

    async def _choose(self, client: httpx2.AsyncClient, sample: Sample) -> Completion:
        if self.choices == "generation":
            return await self._generated_choice(client, sample)
        prompt, tokens = await self._echo(client, sample.text)
        wholes = [(await self._echo(client, sample.text + choice))[0] for choice in sample.choices]
        values = choosing.logprobs(prompt, wholes) if all(sample.choices) else None
        if values is None:
            raise CutError("a choice is empty, or shares no token with the prompt to start from")
        best = max(range(len(values)), key=values.__getitem__)
        return Completion(sample.id, sample.choices[best], tokens, choice_logprobs=values)

    async def _generated_choice(self, client: httpx2.AsyncClient, sample: Sample) -> Completion:
        """No log probability: the sample's completion has none, by which its score is told from others."""
        text = sample.text + (choosing.instruction(sample.choices) if self.given.chat else "")
        answer, tokens = await self._ask(client, text, choosing.room(sample.choices), {"temperature": 0.0})
        said, finish = _said(answer)
        used = (answer.get("usage") or {}).get("completion_tokens") or 0
        return Completion(sample.id, choosing.chosen(said, sample.choices) or said, tokens, used, finish=finish)

    async def _echo(self, client: httpx2.AsyncClient, text: str) -> tuple[Echo, int]:
        answer, tokens = await self._ask(client, text, 1, {"temperature": 0.0, "echo": True, "logprobs": 1})
        found = choosing.echo(answer, text)
        if found is None:
            raise CutError("the server gave no log probabilities of the prompt, as it did when the run began")
        given, sent = _solid("".join(found.tokens)), _solid(text)
        if given < sent - max(SHORT, sent // 50):
            raise CutError(f"the server sent {given} of {sent} characters of the prompt back: it cut the others off")
        return found, tokens

    async def _ask(
        self, client: httpx2.AsyncClient, text: str, room: int, body: Json, *, opening: bool = False
    ) -> tuple[Json, int]:
        """The answer to one prompt, and its tokens. Raises CutError where the server has not read the whole prompt."""
        counted = self.counter(text) + self._more if self.counter else 0
        if counted + room > self.context and counted and not opening:
            raise CutError(f"prompt of {counted} tokens + {room} new > context {self.context}")
        asked = {"messages": [{"role": "user", "content": text}]} if self.given.chat else {"prompt": text}
        path = "/chat/completions" if self.given.chat else "/completions"
        request = {"model": self.given.model, **asked, self.limit: room, **body}
        answer = await self.server.ask(client, path, request, patience=OPENING if opening else None)
        given = answer.get("choices")
        if given == [] and not opening:
            raise CutError("the server gave no choices, as some do for a prompt that a filter holds back")
        if not isinstance(given, list) or not given or not isinstance(given[0], dict):
            raise UserError(f"{self.server.url}{path} answers without `choices`: it is no OpenAI-compatible server")
        now = str(answer.get("model") or "")
        if opening:
            self._answers_as = now
        elif now != self._answers_as:
            raise UserError(
                f"{self.server.url} answers as {now!r}, and began as {self._answers_as!r}: another model would mix its "
                "answers in; take another --out, or start the server as it was"
            )
        self._backends |= {str(answer["system_fingerprint"])} if answer.get("system_fingerprint") else set()
        read = (answer.get("usage") or {}).get("prompt_tokens")
        if self.checked and read != counted:
            said = "did not say how many" if read is None else f"read {read}"
            raise CutError(f"the server {said} tokens of a prompt of {counted}: it was cut, or altered, on the way")
        return answer, read if isinstance(read, int) else counted

    async def _probe(self, client: httpx2.AsyncClient) -> None:
        """One short question: whether it is answered, how it is counted, and how choices can be answered."""
        checked, self.checked = self.checked, False
        room = 1 if not self.given.chat else 16
        try:
            answer, _ = await self._ask(client, PROBE, room, {"temperature": 0.0}, opening=True)
        except RefusedError as error:
            if "max_completion_tokens" not in error.said:
                raise
            self.limit = "max_completion_tokens"
            answer, _ = await self._ask(client, PROBE, room, {"temperature": 0.0}, opening=True)
        if self.counter:
            self._tally(answer, self.counter(PROBE))
            self.checked = checked and isinstance((answer.get("usage") or {}).get("prompt_tokens"), int)
        if not self.given.chat and self.given.choices != "generation":
            body = {"temperature": 0.0, "echo": True, "logprobs": 1}
            try:
                answer, _ = await self._ask(client, PROBE, 1, body, opening=True)
                given = choosing.echo(answer, PROBE) is not None
            except RefusedError:
                given = False
            except AwayError as error:
                raise UserError(f"{error}; if it fails at log probabilities alone, add choices=generation") from error
            self.choices = "log probabilities" if given else "generation"
        if self.given.choices == "logprobs" and self.choices == "generation":
            raise UserError(f"{self.server.url} gives no log probabilities of a prompt; leave choices=logprobs out")

    def _tally(self, answer: Json, ours: int) -> None:
        """What the server counts beside the tokenizer. Raises UserError where the two do not fit together."""
        read = (answer.get("usage") or {}).get("prompt_tokens")
        if not isinstance(read, int):
            return
        if abs(read - ours) > 1:
            raise UserError(
                f"openai: tokenizer={self.given.tokenizer} makes {ours} tokens of a text of which {self.server.url} "
                f"reads {read}; give the tokenizer that the server uses"
            )
        self._more = read - ours


async def _says(server: Server, client: httpx2.AsyncClient, model: str) -> Json:
    """What the server lists about the model; {} where it has no list."""
    try:
        listed = (await server.ask(client, "/models", patience=OPENING)).get("data")
    except RefusedError as error:
        if error.status in (401, 403):
            raise
        return {}
    except AwayError as error:
        if not error.heard:
            raise
        return {}  # it answers, and has no list
    found = [each for each in listed or () if isinstance(each, dict)]
    own = next((each for each in found if each.get("id") == model), None)
    if found and own is None and not any(str(each.get("id", "")).startswith(model) for each in found):
        names = ", ".join(sorted(str(each.get("id")) for each in found)[:5])
        raise UserError(f"{server.url} serves no model {model!r}; it serves {names}")
    return {name: own[name] for name in SAYS if own and own.get(name) is not None}


def _solid(text: str) -> int:
    """Characters but blanks, which some servers drop from single tokens."""
    return len("".join(text.split()))


def _said(answer: Json) -> tuple[str, str]:
    """Text and finish of an answer. Raises CutError where the server held the text back."""
    choice = answer["choices"][0]
    message = choice.get("message") or {}
    text = choice.get("text") if "text" in choice else message.get("content")
    finish = choice.get("finish_reason") or "stop"
    finish = "stop" if finish in ENDS else finish
    if finish not in ("stop", "length"):
        raise CutError(f"the server ended its answer for another reason than its end: {finish}")
    if not isinstance(text, str):  # it was thinking, refused, called a tool or answers in parts
        kind = "no text" if text is None else f"a {type(text).__name__} instead of a text"
        others = ", ".join(sorted(name for name, value in message.items() if value and name not in ("role", "content")))
        raise CutError(f"the server gave {kind}" + (f", but {others}" if others else ""))
    return text, finish


def _cancel(asked: Sequence[Future[Completion]]) -> None:
    for future in asked:
        future.cancel()
