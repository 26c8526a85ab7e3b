"""What must be so before any test file is imported."""

import os

import torch

# Triton reads these when it is imported, by whichever file of tests is first. Without a GPU its kernels run in its
# interpreter; impl="auto" takes none of them there. From Triton 3.9 on an unset default of fusion is warned about.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
