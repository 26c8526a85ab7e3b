"""Tokens of prompts, by the tokenizer that the user says is the server's, in the way that the server reads prompts."""

import hashlib
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from transformers.utils import logging

from evalsuite.errors import UserError


class Counter:
    """Counts as the server does: special tokens included, and in a chat the template around the user's turn."""

    def __init__(self, name: str, *, chat: bool) -> None:
        """Raises UserError where there is no such tokenizer, or a chat is asked of one without a template."""
        self.chat = chat
        folder = Path(name).expanduser()
        level = logging.get_verbosity()
        logging.set_verbosity_error()  # of a model type that it does not know: only its tokenizer is read
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder if folder.is_dir() else name)
        except Exception as error:  # the hub's clients raise errors of a dozen libraries
            why = (str(error).splitlines() or [type(error).__name__])[0][:160]
            raise UserError(
                f"openai: tokenizer={name} cannot be had ({why}); give a folder with tokenizer.json"
            ) from error
        finally:
            logging.set_verbosity(level)
        if chat and not self.tokenizer.chat_template:
            raise UserError(f"openai: tokenizer={name} has no chat template; give the one that the server uses")

    def __call__(self, text: str) -> int:
        """Tokens that the server reads for a prompt."""
        if self.chat:
            turn = [{"role": "user", "content": text}]
            text = self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        return len(self.tokenizer(text, add_special_tokens=not self.chat, verbose=False)["input_ids"])

    def digest(self) -> str:
        """Hash of what a count depends on."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        rules = backend.to_str() if backend else repr(sorted(self.tokenizer.get_vocab().items()))
        template = str(self.tokenizer.chat_template) if self.chat else ""
        return hashlib.sha256(f"{rules}\0{template}".encode()).hexdigest()
