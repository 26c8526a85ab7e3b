"""evalsuite: the same questions for models of different attention designs, and what each design costs."""

__version__ = "0.1.0"
