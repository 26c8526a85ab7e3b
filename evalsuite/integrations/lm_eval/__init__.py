"""EleutherAI's lm_eval, both ways: our models and tasks inside it, its models, tasks and result files inside ours.

`model` and `tasks` are what lm_eval sees of us, `folder` writes the task folder for its `--include_path`, `command`
runs its command line; `opening` and `backend` adapt its models to ours, with an eye on its servers (`watching`);
`foreign` and `parts` adapt its tasks, `export` writes its result files.
"""

NAME = "evalsuite"
TARGET = "evalsuite.integrations.lm_eval.model:EvalsuiteLM"
MAX_NEW = 256  # tokens that lm_eval generates where a task names no number
NEUTRAL = {"num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1.0}  # settings that change nothing


def register() -> None:
    """Make `evalsuite` a model name of lm_eval, whose own names stay: it registers them only while it knows none.

    Needed up to lm_eval 0.4.13; later releases find the entry point `lm_eval.models`. Raises ImportError without it.
    """
    import lm_eval.models  # noqa: F401 - first, or its own names would be lost
    from lm_eval.api.registry import model_registry

    if NAME not in model_registry:
        model_registry.register(NAME, target=TARGET)
