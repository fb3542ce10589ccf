"""The composed layer over many devices: who holds which blocks, how tokens reach them, what a chip will hold."""
