"""Small tasks of lm_eval as files, what `evalsuite run` makes of them, and what lm_eval does."""

from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from evalsuite import plan, runner, store
from evalsuite.integrations.lm_eval.model import EvalsuiteLM
from evalsuite.models.own import OwnModel

DOCS = """
import datasets
import random

def docs(**metadata):
    rows = [{"q": f"edge {i} then {random.random():.3f}", "gold": i % 3, "answer": f"word {i}"} for i in range(9)]
    return {"test": datasets.Dataset.from_list(rows), "train": datasets.Dataset.from_list(rows[:5])}

def sized(**metadata):
    lengths = metadata.get("max_seq_lengths", [4096])
    if 333 in lengths:
        raise ValueError("no text is so short")
    rows = [{"q": f"edge {n} {random.random():.6f}", "answer": "a", "max_length": n} for n in lengths for _ in range(5)]
    return {"test": datasets.Dataset.from_list(rows), "train": datasets.Dataset.from_list(rows)}

def by_length(doc, results):
    return {"4096": -1.0, str(doc["max_length"]): float(len(results[0]) % 2)}

def worded(max_seq_lengths="0k", **metadata):
    size = {"0k": 0, "1k": 1000, "4k": 4000}[max_seq_lengths]
    rows = [{"q": f"edge {size} {i}", "answer": "a"} for i in range(5)]
    return {"test": datasets.Dataset.from_list(rows), "train": datasets.Dataset.from_list(rows)}

def unreachable(**metadata):
    raise ConnectionError("nobody answers" + chr(10) + "here")

def odd(doc, results):
    return {"length": 7.0}

def hundred(doc, results):
    same = results[0] == doc["answer"]
    near = 0.5 if len(results[0]) % 2 else 37.0
    return {"bleu": 100.0 if same else 0.0 if not results[0] else near, "right": float(same)}

def errors(doc, results):
    return {"right": float(results[0] == doc["answer"]), "wer": 0.25, "unlisted": 0.5}

def part(doc, results):
    return {"4096": -1.0, "512": float(len(results[0]) % 2)}
"""
HEAD = "custom_dataset: !function docs.docs\ntest_split: test\nfewshot_split: train\ndoc_to_text: '{{q}}'\n"
TASKS = {
    "mc": "output_type: multiple_choice\nnum_fewshot: 2\ndoc_to_choice: ['fowa', 'lefe', 'teacher next']\n"
    "doc_to_target: '{{gold}}'\nmetadata: {version: 2.1}\n",
    "gen": "output_type: generate_until\nnum_fewshot: 1\ndoc_to_target: '{{answer}}'\n"
    "generation_kwargs: {until: ['o'], max_gen_toks: 6}\n"
    "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    "filter_list:\n  - {name: first, filter: [{function: regex, regex_pattern: '(\\w+)'}, {function: take_first}]}\n"
    "  - {name: whole, filter: [{function: take_first}]}\n",
    "ll": "output_type: loglikelihood\ndoc_to_target: ' {{answer}}'\n"
    "metric_list: [{metric: acc}, {metric: perplexity}]\n",
    "part": "output_type: generate_until\ndoc_to_target: '{{answer}}'\nprocess_results: !function docs.part\n"
    "metric_list: [{metric: '4096', aggregation: mean, higher_is_better: true}]\n"
    "generation_kwargs: {until: [], max_gen_toks: 4}\n",
    "sized": "output_type: generate_until\ndoc_to_target: '{{answer}}'\nprocess_results: !function docs.by_length\n"
    "metric_list: [{metric: '4096', aggregation: mean, higher_is_better: true}]\n"
    "generation_kwargs: {until: [], max_gen_toks: 4}\n",
    "worded": "output_type: generate_until\ndoc_to_target: '{{answer}}'\nmetric_list: [{metric: exact_match}]\n"
    "generation_kwargs: {until: [], max_gen_toks: 4}\n",
    "odd": "output_type: generate_until\ndoc_to_target: x\nprocess_results: !function docs.odd\n"
    "metric_list: [{metric: length, aggregation: mean, higher_is_better: true}]\n",
    "hundred": "output_type: generate_until\ndoc_to_target: ' '\nprocess_results: !function docs.hundred\n"
    "metric_list: [{metric: bleu, aggregation: mean, higher_is_better: true},"
    " {metric: right, aggregation: mean, higher_is_better: true}]\n"
    "generation_kwargs: {until: [], max_tokens: 3, temperature: 0.7, num_beams: 1}\n",
    "lower": "output_type: generate_until\ndoc_to_target: '{{answer}}'\nprocess_results: !function docs.errors\n"
    "metric_list: [{metric: right, aggregation: mean, higher_is_better: true},"
    " {metric: wer, aggregation: mean, higher_is_better: false}]\ngeneration_kwargs: {until: [], max_gen_toks: 3}\n",
    "greedy": "output_type: multiple_choice\ndoc_to_choice: ['fowa', 'lefe', 'teacher next']\n"
    "doc_to_target: '{{gold}}'\nmetric_list: [{metric: exact_match}, {metric: acc}]\n",
    "beams": "output_type: generate_until\ndoc_to_target: x\ngeneration_kwargs: {until: [], num_beams: 10}\n",
    "targetless": "output_type: generate_until\nprocess_results: !function docs.part\n",
    "none": "output_type: generate_until\nnum_fewshot: 0\ndoc_to_target: '{{answer}}'\n"
    "metric_list: [{metric: exact_match}]\n",
    "away": "output_type: generate_until\ndoc_to_target: x\nmetadata: {version: 4}\n"
    "metric_list: [{metric: exact_match}]\n",
    "rolling": "output_type: loglikelihood_rolling\ndoc_to_target: '{{q}}'\n",
    "unsafe": "output_type: generate_until\ndoc_to_target: x\nunsafe_code: true\n",
    "repeats": "output_type: generate_until\ndoc_to_target: x\nrepeats: 5\n",
    "twice": "output_type: multiple_choice\ndoc_to_choice: ['a', 'b']\ndoc_to_target: '{{answer}}'\n",
}


def written(folder: Path) -> Path:
    """All of them as files in a folder."""
    folder.mkdir()
    (folder / "docs.py").write_text(DOCS)
    for name, text in TASKS.items():
        head = HEAD.replace("docs.docs", "docs.unreachable") if name == "away" else HEAD
        head = head.replace("docs.docs", f"docs.{name}") if name in ("sized", "worded") else head
        head = head.replace("'{{q}}'", "'{{gold % 2}}'") if name == "twice" else head
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{head}{text}")
    return folder


def ran(model: OwnModel, place: Path, out: Path, *names: str, limit: int = 100) -> store.Run:
    chosen = plan.select([f"lm_eval:{place / name}.yaml" for name in names], limit=limit)
    return runner.run(model, plan.make(chosen, model.wording), out)


def theirs(model: OwnModel, place: Path, name: str) -> dict[str, Any]:
    """What lm_eval makes of the task alone, with its default seeds."""
    manager = TaskManager(include_defaults=False)
    asked = [seeded(manager, place / f"{name}.yaml")]
    return simple_evaluate(model=EvalsuiteLM(model), tasks=asked, task_manager=manager, bootstrap_iters=10)


def seeded(manager: TaskManager, file: Path) -> Any:
    import random

    random.seed(0)  # simple_evaluate seeds before it loads what it is given by name
    (task,) = manager.load([str(file)])["tasks"].values()
    return task


def asked(place: Path, *names: str, wording: str = "natural", **options: Any) -> plan.Plan:
    return plan.make(plan.select([f"lm_eval:{place / name}.yaml" for name in names], **options), wording)
