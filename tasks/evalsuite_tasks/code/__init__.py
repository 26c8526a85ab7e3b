"""Programs that models write, judged by tests in the sandbox: HumanEval, MBPP, their EvalPlus inputs, CRUXEval."""

from evalsuite_tasks.code.task import Code

__all__ = ["Code"]
