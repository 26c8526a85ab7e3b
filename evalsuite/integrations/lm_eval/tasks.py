"""Our tasks as tasks of lm_eval: the same samples, prompts and scorers as `evalsuite run`, through lm_eval's requests.

What lm_eval calls metadata (its `--model_args` and `--metadata`) says what is asked:
    tokenizer, pretrained or model   whose tokens are counted, the first of them that is given
    lengths, limit, seed, wording    as in `evalsuite run`; limit counts samples of a cell
    set, data                        "multihop.hops=1,2" or a list of such, and "essays=PATH"; several on the command
                                     line are --metadata 'set=["multihop.hops=1,2", "multihop.facts=8"]'
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.task import Task

from evalsuite import plan
from evalsuite import task as tasks
from evalsuite.errors import UserError, unknown
from evalsuite.integrations.lm_eval import register
from evalsuite.models import ZOO, shipped
from evalsuite.models.loading import read_config, read_json, read_tokenizer, read_wording
from evalsuite.records import Completion, Sample, Score
from evalsuite.task import Count, Executing

METRIC = "score"
SEVERAL = """'set=["A","B"]'"""  # of set or data, as lm_eval's command line takes them
log = logging.getLogger(__name__)
register()  # a task given by its file's path is read before the model is looked up


class EvalsuiteTask(Task):
    """One part of a task family. Raises UserError where nothing can be asked, or no tokenizer is named."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        with _quiet():
            super().__init__()
        self.metadata = dict(config.get("metadata") or {})
        self.asks = str(config["evalsuite"])  # "multihop.graph"
        self._config.task = config["task"]
        self._config.num_fewshot = 0
        self._config.repeats = 1
        made = _planned(self.asks, self.metadata)
        ((self.family, self.plugin),) = made.selection.tasks.items()
        self.VERSION = self.plugin.version
        if isinstance(self.plugin, Executing):
            self.plugin.tier()  # no sandbox is said before anything is asked
        count = _count(self.metadata)
        found = sorted(made.samples(count), key=lambda pair: pair[0].index)  # --limit takes some of every cell
        if not found or made.missing:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in made.missing.items())
            if not found:
                raise UserError(f"{self.asks} has nothing to ask: {reasons}")
            log.warning("%s leaves out %s", self.asks, reasons)
        self.samples = {sample.id: sample for _, sample in found}
        self.docs = [_doc(item, sample) for item, sample in found]
        ranked = bool(found[0][1].choices)
        self.OUTPUT_TYPE = self._config.output_type = "multiple_choice" if ranked else "generate_until"
        self._config.generation_kwargs = {}  # what --gen_kwargs says goes before a sample's own
        self._config.metadata = {**self.metadata, "missing": dict(made.missing), "wording": made.wording}

    def download(self, *_: Any, **__: Any) -> None:
        """Nothing: the samples are made here."""

    def has_training_docs(self) -> bool:
        return False

    def has_validation_docs(self) -> bool:
        return False

    def has_test_docs(self) -> bool:
        return True

    def test_docs(self) -> list[dict[str, Any]]:
        return self.docs

    def doc_to_text(self, doc: Mapping[str, Any]) -> str:
        return str(doc["prompt"] + doc["answer_prefix"])

    def doc_to_target(self, doc: Mapping[str, Any]) -> list[str]:
        return list(doc["target"])

    def build_all_requests(self, **options: Any) -> None:
        """lm_eval's cache of requests (`--cache_requests`) knows no lengths, seeds or ways of generating: its key does
        here."""
        asked = json.dumps([self.VERSION, self.docs, self._config.generation_kwargs], sort_keys=True, default=str)
        digest = hashlib.sha256(asked.encode()).hexdigest()[:16]
        super().build_all_requests(**{**options, "tokenizer_name": f"{options.get('tokenizer_name', '')}{digest}"})

    def fewshot_context(self, doc: Mapping[str, Any], num_fewshot: int = 0, **options: Any) -> str:
        """The prompt as it is, or as the turns of a chat with the answer's beginning as the assistant's."""
        system, template = options.get("system_instruction"), options.get("chat_template")
        if not (options.get("apply_chat_template") and template):
            return f"{system}\n\n{self.doc_to_text(doc)}" if system else self.doc_to_text(doc)
        prefix = doc["answer_prefix"]
        turns = [{"role": "system", "content": system}] if system else []
        turns.append({"role": "user", "content": doc["prompt"]})
        turns += [{"role": "assistant", "content": prefix}] if prefix else []
        return template(turns, add_generation_prompt=not prefix)

    def construct_requests(self, doc: Mapping[str, Any], ctx: str, **options: Any) -> list[Instance]:
        """A log-likelihood for every choice, or one generation."""
        metadata = options["metadata"]
        if doc["choices"]:
            return [
                Instance("loglikelihood", doc, (ctx, choice), i, metadata) for i, choice in enumerate(doc["choices"])
            ]
        own = {"until": list(doc["stop"]), "max_gen_toks": doc["max_new_tokens"], "do_sample": doc["temperature"] > 0}
        own |= {"temperature": doc["temperature"], "top_p": doc["top_p"]} if doc["temperature"] else {}
        return [Instance("generate_until", doc, (ctx, own | dict(self._config.generation_kwargs or {})), 0, metadata)]

    def process_results(self, doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
        """The family's own score of the answer. A question whose every choice was refused is wrong."""
        sample = self.samples[doc["id"]]
        if not sample.choices:
            completion = Completion(sample.id, str(results[0]), 0)
        else:
            values = tuple(float(value) for value, _ in results)
            if max(values) == float("-inf"):
                return {METRIC: 0.0}
            best = max(range(len(values)), key=values.__getitem__)
            completion = Completion(sample.id, sample.choices[best], 0, choice_logprobs=values)
        return {METRIC: self._score(sample, completion).value}

    def aggregation(self) -> dict[str, Callable[..., float]]:
        return {METRIC: mean}

    def higher_is_better(self) -> dict[str, bool]:
        return {METRIC: True}

    def _score(self, sample: Sample, completion: Completion) -> Score:
        if isinstance(self.plugin, Executing):
            return self.plugin.scores([(sample, completion)])[0]
        return self.plugin.score(sample, completion)


@contextmanager
def _quiet() -> Iterator[None]:
    """lm_eval warns of settings that an empty configuration lacks, before ours are in it."""
    theirs = logging.getLogger("lm_eval.config.task")
    before = theirs.level
    theirs.setLevel(logging.ERROR)
    try:
        yield
    finally:
        theirs.setLevel(before)


def _doc(item: plan.Item, sample: Sample) -> dict[str, Any]:
    """A sample as plain JSON, with its identity in `evalsuite run`."""
    return {
        "id": sample.id,
        "task": sample.task,
        "facets": {**item.cell.facets, **sample.facets},
        "cluster": sample.cluster,
        "chance": item.cell.chance,
        "prompt_hash": sample.prompt_hash,
        "prompt": sample.prompt,
        "answer_prefix": sample.answer_prefix,
        "choices": list(sample.choices),
        "target": list(sample.target),
        "max_new_tokens": sample.max_new_tokens,
        "stop": list(sample.stop),
        "temperature": sample.temperature,
        "top_p": sample.top_p,
    }


def _planned(name: str, metadata: Mapping[str, Any]) -> plan.Plan:
    """What `evalsuite run --tasks NAME` would ask."""
    family = name.partition(".")[0]
    plugin = tasks.load(family)
    selection = plan.select(
        [name],
        lengths=plan.parse_lengths(",".join(map(str, _listed(metadata.get("lengths"))))),
        limit=_number(metadata, "limit", 100),
        seed=_number(metadata, "seed", 0),
        settings=[s for s in _listed(metadata.get("set")) if _owner(s) == family],
        data=[pair for pair in _listed(metadata.get("data")) if _of(plugin, pair)],
    )
    wording = metadata.get("wording") or _wording(metadata)
    try:
        return plan.make(selection, wording)
    except UserError as error:
        raise UserError(f"{error}; inside lm_eval --data and --set are --metadata data=... and set=...") from error


def _owner(setting: Any) -> str:
    """The family that a setting is about. Raises UserError where none has that name: no task would look at it."""
    family = str(setting).partition("=")[0].partition(".")[0]
    if family not in tasks.names():
        raise UserError(f"--metadata set={setting}: {unknown('task', family, tasks.names())}; several are {SEVERAL}")
    return family


def _of(plugin: tasks.Task, pair: Any) -> bool:
    """Whether a family takes that data. Raises UserError where none does."""
    name = str(pair).partition("=")[0]
    if not any(tasks.uses(each, name) for each in (plugin, *map(tasks.load, tasks.names()))):
        raise UserError(f"--metadata data={pair}: no task takes data called {name!r}; several are {SEVERAL}")
    return tasks.uses(plugin, name)


def _number(metadata: Mapping[str, Any], name: str, default: int) -> int:
    value = metadata.get(name)
    try:
        return default if value in (None, "") else int(value)
    except (TypeError, ValueError):
        raise UserError(f"--metadata {name}={value} is no whole number") from None


def _listed(given: Any) -> list[Any]:
    """`512`, `"1k,2k"` and `[512, 1024]` are lists of one, one and two."""
    return [] if given in (None, "") else list(given) if isinstance(given, list | tuple) else [given]


def _named(metadata: Mapping[str, Any], keys: Sequence[str]) -> str:
    return next((str(metadata[key]) for key in keys if isinstance(metadata.get(key), str) and metadata[key]), "")


def _own(spec: str) -> Path | None:
    """The folder of a checkpoint of this package; None for another's."""
    folder = ZOO / spec if shipped(spec) else Path(spec).expanduser()
    if not (spec and (folder / "config.json").is_file()):
        return None
    return folder if read_json(folder / "config.json").get("model_type") == "evalsuite" else None


def _wording(metadata: Mapping[str, Any]) -> str:
    """The wording that a checkpoint of this package was trained on; natural for any other."""
    folder = _own(_named(metadata, ("pretrained", "model")))
    return "natural" if folder is None else read_wording(folder, read_config(folder))


def _count(metadata: Mapping[str, Any]) -> Count:
    spec = _named(metadata, ("tokenizer", "pretrained", "model"))
    if not spec:
        raise UserError(
            "evalsuite's tasks fit their prompts with the model's tokenizer, and none is named; give lm_eval "
            "--model_args pretrained=... or --metadata tokenizer=..."
        )
    return _counter(spec, str(metadata.get("revision") or "main"), bool(metadata.get("trust_remote_code")))


@cache
def _counter(spec: str, revision: str, trust: bool) -> Count:
    """Counts tokens, special ones included, as the model's own prompts are made."""
    folder = _own(spec)
    if folder is not None:
        own = read_tokenizer(folder, read_config(folder))
        return lambda text: len(own(text, split_special_tokens=True, verbose=False)["input_ids"])
    from transformers import AutoTokenizer

    try:
        other = AutoTokenizer.from_pretrained(spec, revision=revision, trust_remote_code=trust)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"no tokenizer {spec!r} ({reason}); give --metadata tokenizer=FOLDER") from error
    return lambda text: len(other(text, verbose=False)["input_ids"])
