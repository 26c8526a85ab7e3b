"""lm_eval's own command line, with our models among its names."""

import sys
from collections.abc import Sequence

from evalsuite.errors import UserError
from evalsuite.integrations.lm_eval import register

NO_MODEL = {"-h", "--help", "ls", "validate"}  # words with which none is opened


def run(words: Sequence[str]) -> None:
    """`lm_eval WORDS`, in this process. Raises UserError where lm_eval is not installed, SystemExit as it exits."""
    try:
        register()
        from lm_eval.__main__ import cli_evaluate
    except ImportError as error:
        raise UserError(f"lm_eval is not installed ({error}); pip install 'evalsuite[lm-eval]'") from error
    if not NO_MODEL & {*words}:  # hf is the default, and a file of --config may name it
        import evalsuite.models.modeling  # noqa: F401 - AutoModelForCausalLM then opens checkpoints of this package
    before = sys.argv
    sys.argv = ["lm-eval", *words]
    try:
        cli_evaluate()
    finally:
        sys.argv = before
