"""Models behind an OpenAI-compatible server: `--model openai:base_url=http://HOST/v1,model=NAME,context=N`."""

from evalsuite.errors import UserError
from evalsuite.models.base import Model


def open_endpoint(args: str) -> Model:
    """The model that the arguments name (see `arguments.Arguments`), asked once so that every mistake shows now.

    Raises UserError, one line, where an argument is wrong or missing, a package is, or the server does not answer.
    """
    try:
        from evalsuite.integrations.endpoint.model import Endpoint
    except ModuleNotFoundError as error:
        if error.name not in ("httpx2", "anyio"):
            raise
        raise UserError(f"--model openai:... needs {error.name}; pip install 'evalsuite[endpoint]'") from error
    from evalsuite.integrations.endpoint.arguments import parse

    return Endpoint.open(parse(args))
