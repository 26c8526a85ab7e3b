"""What a comparison says in words: who was asked how much, what is missing from its tables, and what it comes to."""

from evalsuite.compare import Comparison


def heading(result: Comparison) -> str:
    """Who was asked how much."""
    counts = sorted({c.n for c in result.columns})
    asked = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    lengths = sorted({int(line.get("length")) for line in result.lengths})
    parts = [
        f"{len(result.columns)} model{'s' if len(result.columns) > 1 else ''}",
        f"{asked} questions each",
        f"{', '.join(map(tokens, lengths))} tokens" if lengths else "",
        f"{' and '.join(result.wordings)} wording",
        f"seed {' and '.join(map(str, result.seeds))}",
    ]
    return "evalsuite: " + ", ".join(filter(None, parts))


def warnings(result: Comparison) -> list[str]:
    """What is missing from the tables, one line each: tasks left out, unequal prompts, unfinished runs, errors."""
    lines = []
    left_out: dict[tuple[str, str], list[str]] = {}
    for c in result.columns:
        for name, reason in c.missing.items():
            left_out.setdefault((name, reason), []).append(c.name)
    for (name, reason), models in left_out.items():
        who = "" if len(models) == len(result.columns) else f" ({', '.join(models)})"
        lines.append(f"LEFT OUT {name}{who}: {reason}")
    lines += (f"UNLIKE {name}: {reason}" for name, reason in result.unlike.items())
    for each in result.unequal:
        more = ", ..." if len(each.ids) > 3 else ""
        who, first = result.columns[each.model].name, result.columns[0].name
        lines.append(
            f"UNEQUAL {who}: {len(each.ids)} of {each.of} samples of {each.task} have other prompts than in {first} "
            f"and are in no difference: {', '.join(each.ids[:3])}{more}"
        )
    for c in result.columns:
        if not c.finished:
            lines.append(f"UNFINISHED {c.name}: {c.n} samples so far; the same command goes on")
        if c.unreadable:
            lines.append(
                f"UNREADABLE {c.name}: {c.unreadable} damaged lines in its log; the same command asks them again"
            )
        for reason, count in list(c.errors.items())[:3]:
            lines.append(f"ERRORS {c.name}: {count} of {c.n} samples count as wrong: {reason}")
        if len(c.errors) > 3:
            rest = sum(list(c.errors.values())[3:])
            lines.append(f"ERRORS {c.name}: {rest} more for {len(c.errors) - 3} other reasons")
    return lines


def footnotes(result: Comparison) -> list[str]:
    """Answers that ended at max_new_tokens: many are whole, one word was asked; some are cut."""
    lines = []
    for c in result.columns:
        if c.truncated:
            worst = ", ".join(f"{task} {count}" for task, count in list(c.truncated.items())[:2])
            total = sum(c.truncated.values())
            more = ", ..." if len(c.truncated) > 2 else ""
            lines.append(
                f"{c.name}: {total} answers ended at max_new_tokens, {c.spoiled} of them wrong ({worst}{more})"
            )
    return lines


def closing(result: Comparison) -> list[tuple[str, str]]:
    """(model, what is said of it): where each is weakest, then what each after the first comes to."""
    said = [(c.name, c.weakest.removeprefix(c.name)) for c in result.columns]
    others = zip(result.columns[1:], result.verdicts, strict=True)
    return said + [(c.name, verdict.line.removeprefix(c.name)) for c, verdict in others]


def margin(result: Comparison) -> str:
    """What the closing lines call equal; "" where there is one model."""
    if len(result.columns) < 2:
        return ""
    return (
        f"Beside {result.columns[0].name}, in points of 100. Equal: the whole interval lies within "
        f"{100 * result.margin:g} points. Not told apart: it holds 0 and is wider."
    )


def tokens(length: int) -> str:
    """`2k`, `1000`."""
    return f"{length // 1024}k" if length % 1024 == 0 else str(length)
