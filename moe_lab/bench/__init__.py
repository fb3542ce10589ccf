"""How fast the routed layer is, as ratios within one run: cases, competitors, interleaved timing, a report.

`peers` needs the `peers` extra; nothing else here imports torch.
"""
