"""The whole proof of the GPU kernels in one run: `python -m evalsuite_kernels.sweep --out DIR` writes DIR/*.json.

correctness.json: errors against fp64; bitwise.json: what must not change a bit; sanitize.json: what compute-sanitizer
finds; speed.json and roofline.png: times beside flash-linear-attention's and SDPA's, with the roofline of each row;
decode.json: one step against the copy bandwidth; start.json: first calls with an empty Triton cache; environment.json:
what all this ran on.

`--only dispatch` and `--only tune` measure what the committed tables say, full/dispatch.py FASTER and the launch
settings of chunk_settings.py and full/settings.py.
"""
