"""Launch settings of the kernels by chunks, fixed by dtype and head size alone, never by batch, heads or length: no
result depends on those. (Linear attention's groups of chunks do, of which no result knows.)"""

# kernel -> its warps and the columns of its blocks; measured on an H200, torch 2.11, Triton 3.6 (ptxas 12.8). Neither a
# scan of one stage nor narrower blocks with four warps: there the compiled wgmma reads wrong shared memory.
SETTINGS = {
    "channel_gates": {"BK": 128, "num_warps": 4},
    "channel_levels": {"BK": 32, "num_warps": 2, "num_stages": 3},
    "head_products": {"BK": 64, "num_warps": 4},
    "wide": {"BK": 64, "BV": 64, "num_warps": 4, "num_stages": 1},  # both scans of heads above 128
    "solve": {"num_warps": 1},
    "fold": {"BK": 64, "num_warps": 4, "num_stages": 1},
    "scan": {"BV": 32, "STAGES": 2, "num_warps": 4},
    "scan_back": {"BV": 32, "STAGES": 3, "num_warps": 4},
    "pairs_back": {"BV": 64, "num_warps": 4, "num_stages": 1},
    "inside_back": {"BK": 64, "BV": 64, "num_warps": 8, "num_stages": 1},
    "transition": {"BV": 32, "STAGES": 2, "num_warps": 4},
    "merge": {"BV": 64, "num_warps": 8, "num_stages": 1},
}
