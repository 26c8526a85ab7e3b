"""`python -m evalsuite.lab.recall MODEL --tasks multihop.graph --set multihop.hops=1,2,4`: of what full attention would
read, how much the indexers of a model with layers D choose, by hops or any other facet.

Beside a score it tells why: a hop that is missed at a recall of 1 was not lost by the indexer.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from evalsuite import models, plan
from evalsuite.errors import UserError
from evalsuite.models.own import OwnModel
from evalsuite.stats import Estimate, estimate

Row = dict[str, Any]


def measured(model: OwnModel, made: plan.Plan, by: str) -> Iterator[tuple[str, str, str, list[float], float]]:
    """Of each question its task, its facet `by`, its cluster, the recall of each layer D at the token
    that the answer is read from, and the mean over layers and all tokens."""
    device = next(model.model.parameters()).device
    for _, sample in made.samples(model.count):
        if by not in sample.facets:
            raise UserError(f"{sample.id} has no facet {by!r}; it has {', '.join(sorted(sample.facets))}")
        ids = model.encode(sample.text)
        if not 0 < len(ids) <= model.context:
            raise UserError(
                f"{sample.id} has {len(ids)} tokens, beyond the context of {model.context}; lower --lengths"
            )
        recall = model.model.selection_recall(torch.tensor([ids], device=device))[:, 0].double()
        facet = str(sample.facets[by])
        yield sample.task, facet, sample.cluster or sample.id, recall[:, -1].tolist(), recall.mean().item()


def rows(model: OwnModel, made: plan.Plan, by: str) -> list[Row]:
    """One row a task and value of the facet, with 95 % intervals clustered as the task says."""
    found: dict[tuple[str, str], list[tuple[str, list[float], float]]] = {}
    for task, facet, cluster, layers, everywhere in measured(model, made, by):
        found.setdefault((task, facet), []).append((cluster, layers, everywhere))
    table = []
    for (task, facet), each in found.items():
        clusters = [cluster for cluster, _, _ in each]
        at_answer = estimate([sum(layers) / len(layers) for _, layers, _ in each], clusters)
        row: Row = {"task": task, by: facet, "n": len(each), "at_answer": _interval(at_answer)}
        row["everywhere"] = _interval(estimate([everywhere for _, _, everywhere in each], clusters))
        row["layers"] = [sum(values) / len(each) for values in zip(*(layers for _, layers, _ in each), strict=True)]
        table.append(row)
    return table


def _interval(found: Estimate) -> list[float]:
    return [found.value, found.low, found.high]


def _shown(interval: list[float]) -> str:
    return "{:.2f} [{:.2f}, {:.2f}]".format(*interval)


def report(table: list[Row], by: str, layers: list[int]) -> str:
    """The same in Markdown."""
    lines = [f"| task | {by} | n | at the answer | everywhere | {' | '.join(f'layer {i}' for i in layers)} |"]
    lines.append("|" + "---|" * (5 + len(layers)))
    for row in table:
        each = " | ".join(f"{value:.2f}" for value in row["layers"])
        cells = (row["task"], row[by], row["n"], _shown(row["at_answer"]), _shown(row["everywhere"]), each)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="How much of full attention a model's indexers choose.")
    parser.add_argument("model", help="a preset or a checkpoint folder with layers D")
    parser.add_argument("--tasks", default="multihop.graph")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="TASK.KNOB=VALUES")
    parser.add_argument("--by", default="hops", help="facet to group by")
    parser.add_argument("--lengths", default="")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    args = parser.parse_args(argv)
    try:
        if args.json and not args.json.parent.is_dir():
            raise UserError(f"--json {args.json}: there is no folder {args.json.parent}")
        selection = plan.select(
            args.tasks.split(","), lengths=plan.parse_lengths(args.lengths), limit=args.limit, seed=args.seed,
            settings=args.settings,
        )  # fmt: skip
        model = models.load(args.model, device=args.device)
        if not isinstance(model, OwnModel) or "D" not in model.model.config.pattern:
            raise UserError(f"{args.model} has no indexer: its layers are not D")
        layers = [i for i, letter in enumerate(model.model.config.pattern) if letter == "D"]
        table = rows(model, plan.make(selection, model.wording), args.by)
        print(report(table, args.by, layers))
        if args.json:
            args.json.write_text(json.dumps(table, indent=1) + "\n")
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
