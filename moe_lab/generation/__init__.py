"""Text written by a composed model: rows that share one forward, each with its own price, opt-outs and draws."""
