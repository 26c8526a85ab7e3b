"""The command line: a few lines a verb. Verbs import what they need when they run, so that --help starts at once."""

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from evalsuite.errors import UserError

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Ask models of different attention designs the same questions, and see what each design costs.",
)

Runs = Annotated[list[str], typer.Argument(metavar="RUN...", help="Folders of runs, or folders that hold them.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


@app.callback()
def common(
    ctx: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Options of every verb."""
    ctx.obj = debug


@app.command()
def run(  # noqa: PLR0913 - each option is one parameter of a verb
    *,
    model: Annotated[
        list[str], typer.Option("--model", "-m", help="Presets, checkpoint folders or BACKEND:ARGS; a,b,c.")
    ],
    tasks: Annotated[list[str], typer.Option("--tasks", "-t", help="multihop,ruler, multihop.graph or lm_eval:NAME.")],
    lengths: Annotated[str, typer.Option(help="Tokens of prompt and answer: 1k,2k,4k. Default: each task's.")] = "",
    limit: Annotated[int, typer.Option(help="Samples in each cell.")] = 100,
    seed: Annotated[int, typer.Option(help="Other questions of the same kind.")] = 0,
    set_: Annotated[list[str] | None, typer.Option("--set", help="A knob: multihop.hops=1,2,4.")] = None,
    data: Annotated[
        list[str] | None, typer.Option("--data", help="Data that a task needs: NAME=PATH or NAME=hub.")
    ] = None,
    wording: Annotated[str, typer.Option(help="natural or terse. Default: each model's own.")] = "",
    out: Annotated[str, typer.Option(help="Folder of the runs; one folder a model.")] = "runs",
    resume: Annotated[
        bool, typer.Option("--resume", help="Only go on with runs that exist. Runs go on anyway.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 or auto.")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, float16, or auto: the weights' own, float32 on a CPU.")
    ] = "auto",
    allow_unsandboxed: Annotated[
        bool, typer.Option("--allow-unsandboxed", help="Run models' code where this machine has no sandbox.")
    ] = False,
    kernels: Annotated[
        str,
        typer.Option(
            help="reference, chunked, triton, auto, or recurrent: prompts token by token, as in decoding. With "
            "--model hf:...: evalsuite."
        ),
    ] = "auto",
    executor: Annotated[str, typer.Option(help="ray: spread over a running Ray cluster. Default: here.")] = "",
    json: Json = False,
) -> None:
    """Ask models the questions of tasks, store every answer, and show the models side by side."""
    from evalsuite import verbs

    given = (
        lengths,
        limit,
        seed,
        set_ or [],
        data or [],
        wording,
        out,
        resume,
        device,
        json,
        allow_unsandboxed,
        kernels,
        executor,
        dtype,
    )
    verbs.run(verbs.Asked(model, tasks, *given))


@app.command()
def compare(
    runs: Runs,
    form: Annotated[
        str, typer.Option("--format", help="rich, md, json or csv. Default: rich at a terminal, else md.")
    ] = "",
    flips: Annotated[
        bool,
        typer.Option("--flips", help="List each sample scored otherwise than in the first run, and what was said."),
    ] = False,
    by: Annotated[str, typer.Option(help="Break down by facets: hops, or length,depth, or family,length.")] = "",
    margin: Annotated[float, typer.Option(help="Points of 100 within which a difference is called equal.")] = 2.0,
    json: Json = False,
) -> None:
    """Show runs side by side, with intervals and paired differences to the first."""
    from evalsuite import verbs

    verbs.compare(runs, "json" if json else form, flips=flips, by=by, margin=margin)


@app.command()
def gate(  # noqa: PLR0913 - as above
    *,
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder of one model's run.")],
    baseline: Annotated[str, typer.Option(help="The run or the promoted baseline to hold it against.")],
    policy: Annotated[str, typer.Option(metavar="FILE", help="The rules, TOML: see examples/gate.toml.")],
    release: Annotated[str, typer.Option(help="A pinned release's run: no slow drift away from it.")] = "",
    escalate: Annotated[
        str, typer.Option(metavar="RUN,RUN", help="Second run and baseline, on the fresh questions of the policy.")
    ] = "",
    agreement: Annotated[
        str, typer.Option(metavar="FILE", help="What `evalsuite kernels --json` said, for a policy with [kernels].")
    ] = "",
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 4 where a critical family is undecided.")] = False,
    out: Annotated[str, typer.Option(help="Folder of gate.json, gate.xml and gate.md. Default: RUN.")] = "",
    json: Json = False,
) -> None:
    """Hold a run against its baseline. Exit code: 0 pass, 1 regression, 2 usage, 3 invalid, 4 undecided."""
    from evalsuite import verbs

    paths = {"run": run, "baseline": baseline, "release": release, "escalate": escalate, "agreement": agreement}
    raise typer.Exit(verbs.gate(paths, policy, strict=strict, out=out, as_json=json))


baselines = typer.Typer(help="Baselines that the gate holds runs against.")
app.add_typer(baselines, name="baseline")


@baselines.command()
def promote(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder of one model's finished run.")],
    reason: Annotated[str, typer.Option(help="Why the scores may change, for whoever reviews it.")],
    to: Annotated[str, typer.Option(metavar="DIR", help="results/baselines/SUITE; one folder a model.")],
) -> None:
    """Make a run the baseline of its model; the lock beside it is the diff to review."""
    from evalsuite import verbs

    verbs.promote(run, to, reason)


@app.command()
def report(
    runs: Runs,
    out: Annotated[str, typer.Option("--out", "-o", help="The HTML file.")] = "report.html",
    figures: Annotated[str, typer.Option(metavar="FOLDER", help="Keep the figures there, as PNG and SVG.")] = "",
) -> None:
    """Write runs side by side as one HTML file that opens offline: tables, figures and every sample."""
    from evalsuite import verbs

    verbs.report(runs, out, figures)


@app.command()
def view(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Folder of a run, or of runs, finished or not.")],
    port: Annotated[int, typer.Option(help="Of this machine alone; 0 takes a free one.", min=0, max=65535)] = 8377,
) -> None:
    """Serve the report to a browser of this machine while a run goes on."""
    from evalsuite import verbs

    verbs.view(folder, port)


@app.command()
def kernels(  # noqa: PLR0913 - as above
    *,
    model: Annotated[list[str], typer.Option("--model", "-m", help="One of this package's own models.")],
    tasks: Annotated[list[str], typer.Option("--tasks", "-t", help="multihop,ruler or multihop.graph; a,b,c.")],
    kernels: Annotated[str, typer.Option(help="What is looked at: reference, chunked, triton, recurrent or auto.")],
    against: Annotated[str, typer.Option(help="What it is compared with, the same words.")] = "chunked",
    lengths: Annotated[str, typer.Option(help="Tokens of prompt and answer: 1k,2k,4k. Default: each task's.")] = "",
    limit: Annotated[int, typer.Option(help="Samples in each cell.")] = 20,
    seed: Annotated[int, typer.Option(help="Other questions of the same kind.")] = 0,
    set_: Annotated[list[str] | None, typer.Option("--set", help="A knob: multihop.hops=1,2,4.")] = None,
    prompts: Annotated[int, typer.Option(help="Prompts of each length whose hidden states are compared.")] = 4,
    tolerance: Annotated[
        float | None, typer.Option(help="Relative error of a layer that is none. Default: by the weights' dtype.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 or auto.")] = "auto",
    form: Annotated[str, typer.Option("--format", help="rich, md or json. Default: rich at a terminal, else md.")] = "",
    json: Json = False,
) -> None:
    """Compare two kernels of one model: hidden states, gold answers, greedy tokens, scores, and where they part."""
    from evalsuite import verbs

    asked = verbs.Asked(model, tasks, lengths, limit, seed, set_ or [], device=device, kernels=kernels)
    verbs.kernels(asked, against, "json" if json else form, prompts=prompts, tolerance=tolerance)


@app.command()
def train(  # noqa: PLR0913 - each option is one parameter of a verb
    *,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="Presets or patterns such as 'KKKF KKKF'; a,b,c. Default: the budget's."),
    ] = None,
    budget: Annotated[
        str, typer.Option(help="tiny (a few minutes on a CPU) or reference: equal parameters, tokens and questions.")
    ] = "",
    mixer: Annotated[
        str, typer.Option(help="MODULE:CLASS of layers X, for --budget: --model 'XXXF XXXF' --mixer my_module:MyMixer.")
    ] = "",
    seeds: Annotated[int, typer.Option(help="Seeds of each design. Default: the budget's, or 3.")] = 0,
    each: Annotated[int, typer.Option(help="Trainings at a time on each GPU.")] = 1,
    shuffled: Annotated[
        bool, typer.Option("--shuffled", help="For --budget: a blind test, labels shuffled; no task may be learned.")
    ] = False,
    out: Annotated[str, typer.Option(help="Folder of the token streams and the checkpoints.")] = "checkpoints",
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 4000,
    tokens: Annotated[int, typer.Option(help="Tokens in each step.")] = 4096,
    width: Annotated[int, typer.Option(help="Hidden size, a multiple of 16.")] = 64,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 2e-3,
    seed: Annotated[int, typer.Option(help="Of the weights and of the token stream.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    compiled: Annotated[
        bool, typer.Option("--compile", help="torch.compile the model: faster, minutes to start.")
    ] = False,
    mimetic: Annotated[
        bool, typer.Option("--mimetic", help="Keys start equal to queries (arXiv 2305.09828), in every design.")
    ] = False,
    json: Json = False,
) -> None:
    """Train designs on one token stream made by the task plugins; an interrupted run goes on.

    With --budget all else is decided: designs of equal size learn from equal tokens, at a learning rate chosen for
    each by one rule, are asked equal questions, and end in one table.
    """
    from evalsuite import verbs

    options = {"steps": steps, "tokens_per_step": tokens, "width": width, "lr": lr, "seed": seed}
    options |= {"compiled": compiled, "mimetic": mimetic}
    if budget:
        models = verbs.with_mixer(model or [], mixer)
        place = device, each
        verbs.equal(budget, models, out, seeds=seeds, device=place, shuffled=shuffled, decided=options, as_json=json)
    elif mixer or seeds or each != 1 or json or shuffled:
        raise UserError("--mixer, --seeds, --each, --shuffled and --json are for --budget; name one, or leave them out")
    else:
        verbs.train(model or [], out, **options, device=device)


@app.command()
def lab(
    place: Annotated[
        str, typer.Argument(metavar="DIR|FILE", help="Folder of `evalsuite train --budget`, or a lab.json of one.")
    ],
    figures: Annotated[
        str, typer.Option(metavar="FOLDER", help="Keep there lab.json (all results), tables.md and figures as PNG.")
    ] = "",
    json: Json = False,
) -> None:
    """Show what an equal-budget training found so far, and the gates that a claim must pass."""
    from evalsuite import verbs

    verbs.lab(Path(place), figures, as_json=json)


@app.command(
    "lm-eval",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def lm_eval(ctx: typer.Context) -> None:
    """Run lm_eval's own command line, every option its own, with `--model evalsuite` among its models."""
    from evalsuite.integrations.lm_eval import command

    command.run(ctx.args)


@app.command()
def path(
    what: Annotated[str, typer.Argument(metavar="lm-eval|PRESET", help="The task folder, or a preset's checkpoint.")],
) -> None:
    """Print where the tasks for lm_eval's --include_path are, or a preset's checkpoint."""
    from evalsuite import verbs

    verbs.path(what)


exports = typer.Typer(help="Runs in the layouts of other tools.")
app.add_typer(exports, name="export")


@exports.command("lm-eval")
def export_lm_eval(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder of one model's run.")],
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Where to write; one folder a model.")],
) -> None:
    """Write a run as lm_eval writes its results: results_*.json and samples_*.jsonl."""
    from evalsuite import verbs

    verbs.export_lm_eval(run, folder)


@exports.command("hf")
def export_hf(
    runs: Runs,
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Where to write; an export there is replaced.")],
    prompts: Annotated[
        bool, typer.Option("--prompts/--no-prompts", help="Whether texts of benchmarks and answers go with it.")
    ] = True,
) -> None:
    """Write runs as a dataset with a card, for datasets.load_dataset(DIR) and the hub."""
    from evalsuite import verbs

    verbs.export_hf(runs, folder, prompts=prompts)


@app.command("list")
def list_(what: Annotated[str, typer.Argument(metavar="models|tasks")], json: Json = False) -> None:
    """Show the installed models or tasks, with what each needs."""
    from evalsuite import verbs

    verbs.listing(what, as_json=json)


@app.command()
def doctor(json: Json = False) -> None:
    """Show what this machine can do, and how to fix what it lacks."""
    from evalsuite import doctor as checks

    checks.show(as_json=json)


def main() -> None:
    """Entry point. Errors are one line on standard error and exit code 2; --debug shows the traceback."""
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error; which class it is depends on Typer's version
            _fail(" ".join(error.format_message().split()), 2)
        if "--debug" in sys.argv:
            raise
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        fix = "" if isinstance(error, UserError) else " (--debug before the verb shows where)"
        _fail(f"{kind}{' '.join(str(error).split())}{fix}", 2)
    if code == 130:  # what Typer makes of an interrupt
        _fail("interrupted; what was answered is stored and the same command goes on", 130)
    raise SystemExit(code or 0)


def _fail(message: str, code: int) -> NoReturn:
    sys.stdout.flush()
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
